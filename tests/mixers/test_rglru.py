"""RG-LRU against Griffin's equations written out, its first token in both readings, its variance, its clip."""

import math

import contract
import pytest
import torch

from postx import mixers
from postx.mixers import rglru

FORMS = ("recurrent", "parallel", "chunked")


def equations(x, r, i, lambda_D, whole):
    """Eqs. 3 and 4 as printed, in the form that the two codes compute, from h_0 = 0."""
    h, ys = torch.zeros_like(x[:, 0]), []
    for t in range(x.shape[1]):
        a = torch.sigmoid(-lambda_D) ** (8 * r[:, t])
        scale = torch.ones_like(a) if whole and t == 0 else torch.sqrt(1 - a**2)
        h = a * h + scale * (i[:, t] * x[:, t])
        ys.append(h)
    return torch.stack(ys, 1)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("first", rglru.STARTS)
def test_equals_the_papers_equations(first, form):
    (x, r, i), _ = rglru.example(40)
    lambda_D = torch.linspace(-4, 2, x.shape[2], dtype=torch.float64)
    y, _ = getattr(rglru, form)(x, r, i, delta_D=rglru.rate(lambda_D), first=first)
    assert contract.close(y, equations(x, r, i, lambda_D, first == "whole")) <= contract.TOLERANCE


@pytest.mark.parametrize("form", FORMS)
def test_scaled_first_token_holds_the_contract_too(form):
    """`example` is whole; the other reading must resume, pack and take ragged rows as well."""

    class Scaled:
        init, step, by = rglru.init, rglru.step, None
        example = staticmethod(lambda T, seed=0: rglru.example(T, seed=seed, first="scaled"))

    setattr(Scaled, form, staticmethod(getattr(rglru, form)))
    assert contract.form_equals_step(Scaled, form, 37) <= contract.TOLERANCE
    contract.cut_and_resume(Scaled, form)
    contract.ragged(Scaled, form)


@pytest.mark.parametrize("form", FORMS)
def test_a_row_without_tokens_has_not_started(form):
    """Its first real token, in the next call, is still the first."""
    z, w = rglru.example(6)
    _, S = getattr(rglru, form)(*z, **w, lengths_B=torch.tensor([0, 6]))
    assert S[1].tolist() == [0, 1]
    y, _ = getattr(rglru, form)(*z, **w, S=S)
    fresh, _ = getattr(rglru, form)(*z, **w)
    assert contract.close(y[0], fresh[0]) <= contract.TOLERANCE
    assert contract.error(y[1], fresh[1]) > 1e-3


def test_white_noise_keeps_its_variance():
    """F7: a = 0.97, open input gate: variance 1 within 3%, from the first token if that one is written whole."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4000, 200, 8, generator=generator)
    one = torch.ones_like(x)
    delta = torch.full((8,), -0.97).neg().log().neg()
    whole, _ = rglru.recurrent(x, one, one, delta_D=delta, first="whole")
    scaled, _ = rglru.recurrent(x, one, one, delta_D=delta, first="scaled")
    for t in (0, 10, 199):
        assert whole[:, t].var().item() == pytest.approx(1, rel=0.03)
    assert scaled[:, 199].var().item() == pytest.approx(1, rel=0.03)
    assert scaled[:, 0].var().item() == pytest.approx(1 - 0.97**2, rel=0.03)


def test_expm1_keeps_the_digits_near_no_decay():
    """In float32 1 - a * a is 0 at delta r = 1e-8; the write must be sqrt(2e-8) x all the same."""
    x = torch.ones(1, 2, 1)
    delta = torch.tensor([1e-8])
    assert 1 - torch.exp(-delta) ** 2 == 0
    for form in FORMS:
        y, _ = getattr(rglru, form)(x, x, x, delta_D=delta, first="scaled")
        assert y[0, 0, 0].item() == pytest.approx(2e-8**0.5, rel=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_slope_bound_changes_gradients_only_near_one(form):
    """The bound is on d sqrt(q) / dq: at q = 1 - a^2 = 2e-10 the slope is 35,355 and is held at 1000."""

    def run(delta, bound):
        x = torch.ones(1, 1, 1, dtype=torch.float64)
        delta = torch.tensor([delta], dtype=torch.float64, requires_grad=True)
        y, _ = getattr(rglru, form)(x, x, x, delta_D=delta, first="scaled", max_slope=bound)
        return y.item(), torch.autograd.grad(y.sum(), delta)[0].item()

    assert run(0.1, None) == run(0.1, 1000.0)
    (y, exact), (y_held, held) = run(1e-10, None), run(1e-10, 1000.0)
    assert y == y_held
    assert exact == pytest.approx(2 * 0.5 / 2e-10**0.5, rel=1e-6)
    assert held == pytest.approx(2 * 1000, rel=1e-6)


def test_gradient_at_no_decay_at_all():
    """r = 0: unbounded, the gradient is not a number; with the bound it is finite. What the bound is for."""
    x = torch.ones(1, 3, 1)
    for bound, finite in ((None, False), (1000.0, True)):
        r = torch.zeros(1, 3, 1, requires_grad=True)
        y, _ = rglru.recurrent(x, r, x, delta_D=torch.ones(1), first="scaled", max_slope=bound)
        (grad,) = torch.autograd.grad(y.sum(), r)
        assert bool(torch.isfinite(grad).all()) is finite


@pytest.mark.parametrize("form", FORMS)
def test_slow_rates_survive_a_great_forgetting(form):
    """One token that forgets everything, then slow ones: the difference of two running sums loses the slow rates."""
    delta_r = torch.tensor([1e-3, 1e12, 1e-3, 2e-3], dtype=torch.float64)[None, :, None]
    x, one = torch.tensor([1.0, 1, 0, 0], dtype=torch.float64)[None, :, None], torch.ones_like(delta_r)
    y, _ = getattr(rglru, form)(x, delta_r, one, delta_D=torch.ones(1, dtype=torch.float64))
    want = math.exp(-3e-3)
    assert y[0, 3, 0].item() == pytest.approx(want, rel=1e-12)
    running = -delta_r.cumsum(1)[0, :, 0]
    assert abs((running[3] - running[1]).exp().item() - want) > 1e-6


@pytest.mark.parametrize("chunk", [1, 3, 16, 64])
def test_any_chunk(chunk):
    z, w = rglru.example(40)
    assert contract.close(rglru.chunked(*z, **w, chunk=chunk), rglru.recurrent(*z, **w)) <= contract.TOLERANCE


def test_layer_starts_in_the_papers_band_and_takes_resets():
    torch.manual_seed(0)
    layer = rglru.Layer(16).double()
    a = torch.exp(-rglru.rate(layer.lambda_D))
    assert a.min() > 0.9
    assert a.max() < 0.999
    x = torch.randn(1, 12, 16, dtype=torch.float64)
    reset = torch.zeros(1, 12, dtype=torch.bool)
    reset[0, 5] = True
    packed, S = layer(x, reset_BT=reset)
    alone, S_alone = layer(x[:, 5:])
    assert contract.close((packed[:, 5:], S), (alone, S_alone)) <= contract.TOLERANCE


def test_bad_input_is_named():
    z, w = rglru.example(4)
    with pytest.raises(ValueError, match="first: expected 'whole' or 'scaled', got 'half'"):
        rglru.recurrent(*z, delta_D=w["delta_D"], first="half")
    with pytest.raises(ValueError, match=r"delta_D: expected axes \[D\] with D=5"):
        rglru.parallel(*z, delta_D=w["delta_D"][:2])
    with pytest.raises(ValueError, match="chunk: expected a whole number >= 1, got 0"):
        rglru.chunked(*z, **w, chunk=0)
    with pytest.raises(ValueError, match="H: 3 blocks do not divide the width 16"):
        rglru.Layer(16, H=3)
    assert "rglru" in mixers.names()
