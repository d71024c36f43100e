import math

import contract
import pytest
import torch

from postx import mixers
from postx.mixers import mamba3, ssd


def running_angles(q, k, v, g, now, before, theta, up):
    """The published way round: q and k turned by the sum of all angles, kept modulo 2 pi; the table never turns."""
    B, T, R, H, K = q.shape
    S, outputs = q.new_zeros(B, H, K, v.shape[-1]), []
    angle = q.new_zeros(B, 1, H, theta.shape[-1])
    k_last, v_last = q.new_zeros(B, R, H, K), q.new_zeros(B, R, H, v.shape[-1])
    for t in range(T):
        angle = (angle + theta[:, t, None]) % (2 * math.pi)
        q_t, k_t = mamba3.turn(q[:, t], angle), mamba3.turn(k[:, t], angle)
        v_t, fade = v[:, t, None] * up, g[:, t].exp()[..., None, None]
        S = fade * S + fade * before[:, t, :, None, None] * torch.einsum("brhk,brhv->bhkv", k_last, v_last)
        S = S + now[:, t, :, None, None] * torch.einsum("brhk,brhv->bhkv", k_t, v_t)
        outputs.append(torch.einsum("brhk,bhkv->brhv", q_t, S))
        k_last, v_last = k_t, v_t
    return torch.stack(outputs, 1)


@pytest.mark.parametrize("R", [1, 3])
def test_a_turning_state_is_a_running_sum_of_angles(R):
    z, w = mamba3.example(30, R=R)
    want = running_angles(*z, w["up_RHV"])
    for form in ("recurrent", "parallel", "chunked"):
        contract.close(getattr(mamba3, form)(*z, **w)[0], want)


def test_without_its_three_changes_it_is_ssd():
    (q, k, v, g, now, before, theta), _ = mamba3.example(30, R=1)
    y, (S, _, _) = mamba3.recurrent(q, k, v, g, now, 0 * before, 0 * theta)
    want = ssd.recurrent(q[:, :, 0], k[:, :, 0], v * now[..., None], g)
    contract.close((y[:, :, 0], S), want)


def test_trapezoid_is_of_second_order():
    """An input that changes smoothly: halving the step divides the error by 4, where Mamba-2's rule divides by 2."""
    rate = 0.7

    def error(steps, blend):
        t = torch.linspace(0, 4, steps + 1, dtype=torch.float64)[1:]
        dt, one = 4 / steps, torch.ones(1, steps, 1, dtype=torch.float64)
        z = one[:, :, None, :, None], one[:, :, None, :, None], torch.sin(t).view(1, -1, 1, 1)
        start = (torch.zeros(1, 1, 1, 1), torch.ones(1, 1, 1, 1), torch.zeros(1, 1, 1))  # sin 0 = 0 came before
        start = tuple(x.double() for x in start)
        y, _ = mamba3.recurrent(*z, -rate * dt * one, blend * dt * one, (1 - blend) * dt * one, one[..., None][..., :0],
                                S=start)  # fmt: skip
        exact = (rate * torch.sin(t) - torch.cos(t) + torch.exp(-rate * t)) / (1 + rate**2)
        return float((y.flatten() - exact).abs().max())

    assert 3.8 < error(64, 0.5) / error(128, 0.5) < 4.2
    assert 1.8 < error(64, 1.0) / error(128, 1.0) < 2.2


def parity(bits, angle, kind=torch.float64):
    """One head with one pair of channels: written once at the start, turned by `angle` at each 1, read everywhere."""
    T = bits.shape[1]
    one = torch.ones(1, T, 1, dtype=kind)
    key = torch.tensor([1.0, 0.0], dtype=kind).expand(1, T, 1, 1, 2)
    first = torch.zeros_like(one)
    first[:, 0] = 1
    theta = angle * bits.to(kind)[..., None, None]
    y, _ = mamba3.recurrent(key, key, one[..., None], 0 * one, first, 0 * one, theta)
    return y.flatten()


def test_parity_by_turning_half_a_circle():
    bits = torch.randint(2, (1, 4096), generator=torch.Generator().manual_seed(0))
    bits[0, 0] = 0
    want = 1 - 2 * (bits.cumsum(1) % 2)
    contract.close(parity(bits, math.pi), want.double().flatten())


def test_positive_decays_cannot_count_parity():
    """Over a run of ones Mamba-2 repeats one update S <- a S + b with a > 0: its read moves one way only, and
    parity changes its sign at every token."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        q, k, v, g = (torch.randn(s, generator=generator, dtype=torch.float64) for s in [(4,), (4,), (3,), ()])
        T = 12
        token = q.expand(1, T, 1, 4), k.expand(1, T, 1, 4), v.expand(1, T, 1, 3), -g.abs().expand(1, T, 1)
        moves = ssd.recurrent(*token)[0][0, :, 0].diff(dim=0)
        assert ((moves >= 0).all(0) | (moves <= 0).all(0)).all()


def test_angles_survive_a_long_text_in_float32():
    """The sum of angles is kept in float64: in float32 a million tokens in, it has lost the fourth digit."""
    T = 200_000
    y = parity(torch.ones(1, T, dtype=torch.int64), 1.1, torch.float32)
    step = torch.tensor(1.1).double()  # 1.1 as float32 holds it
    want = torch.cos(step * torch.arange(T, dtype=torch.float64))
    assert float((y - want).abs().max()) < 1e-5


def test_pairs_that_do_not_fit_are_named():
    z, w = mamba3.example(3)
    with pytest.raises(ValueError, match="theta: 4 pairs need 2 N <= K = 6"):
        mamba3.recurrent(*z[:-1], torch.zeros(2, 3, 3, 4, dtype=torch.float64), **w)


def test_layer_with_many_inputs_equals_its_parts():
    torch.manual_seed(0)
    layer = mamba3.Layer(16, K=8, V=8, rank=3).double()
    x = torch.randn(2, 9, 16, dtype=torch.float64)
    y, S = layer(x)
    y_a, S_a = layer(x[:, :4])
    y_b, S_b = layer(x[:, 4:], S_a)
    contract.close((torch.cat([y_a, y_b], 1), S_b), (y, S))
    y.square().sum().backward()
    assert all(p.grad.abs().max() > 0 for p in layer.parameters())
    assert mixers.names().count("mamba3") == 1
