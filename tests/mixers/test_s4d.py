"""S4D against independent routes: scipy's zero-order hold, its own impulse response, and a plain convolution."""

import contract
import numpy as np
import pytest
import torch
from scipy.signal import cont2discrete

from postx.mixers import s4d


def test_one_step_is_scipys_zero_order_hold():
    """The complex pair of each oscillator as a real two-dimensional system, discretized by scipy."""
    (u,), w = s4d.example(1, B=1, D=1, N=1, seed=3)
    delta, A, C = w["delta_D"][0].item(), complex(w["A_DN"][0, 0]), complex(w["C_DN"][0, 0])
    a, b = A.real, A.imag
    Ad, Bd, *_ = cont2discrete(
        (np.array([[a, -b], [b, a]]), np.array([[1.0], [0.0]]), np.eye(2), np.zeros((2, 1))), delta, "zoh"
    )
    h = np.zeros((2, 1))
    S = s4d.init(u[:, 0], **w)
    for value in (0.7, -1.3, 0.2):
        h = Ad @ h + Bd * value
        y, S = s4d.step(S, torch.tensor([[value]], dtype=torch.float64), **w)
        want = 2 * (C * complex(h[0, 0], h[1, 0])).real + w["skip_D"][0].item() * value
        assert abs(y.item() - want) < 1e-12


def test_the_kernel_is_the_impulse_response():
    T = 50
    _, w = s4d.example(T)
    impulse = torch.zeros(1, T, 3, dtype=torch.float64)
    impulse[:, 0] = 1
    y, _ = s4d.recurrent(impulse, **w)
    y[:, 0] -= w["skip_D"]
    K_DT = s4d.kernel(T, **{name: w[name] for name in ("delta_D", "A_DN", "C_DN")})
    assert contract.close(y[0].mT, K_DT) <= contract.TOLERANCE


def test_the_recurrence_is_a_convolution():
    (u,), w = s4d.example(40)
    K_DT = s4d.kernel(40, **{name: w[name] for name in ("delta_D", "A_DN", "C_DN")})
    want = w["skip_D"] * u
    for lag in range(40):
        want[:, lag:] += K_DT[:, lag] * u[:, : 40 - lag]
    assert contract.close(s4d.parallel(u, **w)[0], want) <= contract.TOLERANCE


def test_small_steps_keep_their_digits_in_float32():
    """(exp(z) - 1) / z loses every digit at z = 1e-7 in float32; expm1 does not."""
    (u,), w = s4d.example(30)
    w |= {"delta_D": torch.full_like(w["delta_D"], 1e-7), "skip_D": torch.zeros_like(w["skip_D"])}
    want, _ = s4d.recurrent(u, **w)
    narrow = contract.cast(w, torch.float32)
    y, _ = s4d.recurrent(u.float(), **narrow)
    assert (y - want).abs().max() < 1e-5 * want.abs().max()
    z = (narrow["delta_D"][:, None] * narrow["A_DN"])[:, 1:]
    assert ((torch.exp(z) - 1) / z - 1).abs().max() > 1e-2  # what expm1 avoids
    assert (torch.special.expm1(z) / z - 1).abs().max() < 1e-5


def test_long_parallel_does_not_wrap():
    """An input at the very end must not appear at the beginning."""
    (u,), w = s4d.example(64)
    late = torch.zeros_like(u)
    late[:, -1] = 1
    y, _ = s4d.parallel(late, **w)
    assert contract.close(y[:, :-1], torch.zeros_like(y[:, :-1]), 1e-12) <= 1e-12


def test_layer_is_stable_whatever_it_learns():
    layer = s4d.Layer(8, N=4)
    with torch.no_grad():
        for p in layer.parameters():
            p.copy_(5 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1)))
    w = layer.weights()
    assert (w["A_DN"].real < 0).all()
    assert (torch.exp(w["delta_D"][:, None] * w["A_DN"]).abs() <= 1).all()


def test_errors():
    (u,), w = s4d.example(4)
    with pytest.raises(ValueError, match=r"A_DN: expected complex numbers \[D, N\], got torch.float64"):
        s4d.recurrent(u, **{**w, "A_DN": w["A_DN"].real})
    with pytest.raises(ValueError, match=r"delta_D: expected axes \[D\] with D=3"):
        s4d.recurrent(u, **{**w, "delta_D": w["delta_D"][:2]})
    with pytest.raises(ValueError, match="chunk: expected a whole number >= 1, got -2"):
        s4d.chunked(u, **w, chunk=-2)
