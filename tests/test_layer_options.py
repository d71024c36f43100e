"""Options of Layers that experiments switch: ALiBi, and the short convolution over q, k and v."""

import pytest
import torch

from postx import mixers
from postx.mixers import attention

WITH_TAPS = "linear", "gla", "deltanet", "gated_deltanet"


def test_alibi_is_a_constant_price_per_token_of_distance():
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 1, 9, 2, 4, dtype=torch.float64).unbind()
    slopes = attention.alibi_slopes(2).double()
    assert slopes.tolist() == [2**-4, 2**-8]
    t = torch.arange(9)
    scores = torch.einsum("bthk,bmhk->bhtm", q, k) / 2 - slopes[:, None, None] * (t[:, None] - t)
    p = scores.masked_fill(t[:, None] < t, -torch.inf).softmax(-1)
    want = torch.einsum("bhtm,bmhv->bthv", p, v)
    got, _ = attention.chunked(q, k, v, slopes_H=slopes, chunk=4)
    assert (got - want).abs().max() < 1e-12


@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("form", mixers.forms(attention))
def test_alibi_in_every_form_equals_step(form, window):
    z, w = attention.example(11, window=window)
    w["slopes_H"] = attention.alibi_slopes(4).double()
    S = mixers.by_step(attention, *(x[:, :4] for x in z), **w)[1]
    rest = [x[:, 4:] for x in z]
    want, S_want = mixers.by_step(attention, *rest, S=S, **w)
    got, S_got = getattr(attention, form)(*rest, S=S, **w)
    assert (got - want).abs().max() < 1e-12
    assert all(torch.equal(a, b) for a, b in zip(S_got, S_want, strict=True))
    plain, _ = getattr(attention, form)(*rest, S=S, **w | {"slopes_H": None})
    assert (got - plain).abs().max() > 1e-3


def test_alibi_backward():
    z, w = attention.example(7, B=1)
    w["slopes_H"] = attention.alibi_slopes(4).double()
    grads = []
    for form in (attention.chunked, attention.parallel):
        leaves = [x.clone().requires_grad_() for x in z]
        form(*leaves, **w)[0].square().sum().backward()
        grads.append([x.grad for x in leaves])
    assert max((a - b).abs().max() for a, b in zip(*grads, strict=True)) < 1e-12


def test_slopes_of_another_number_of_heads_are_refused():
    z, _ = attention.example(3)
    with pytest.raises(ValueError, match="slopes_H"):
        attention.parallel(*z, slopes_H=torch.ones(3))


@pytest.mark.parametrize("name", WITH_TAPS)
def test_a_layer_with_a_short_convolution_goes_on_from_its_state(name):
    torch.manual_seed(0)
    layer = mixers.load(name).Layer(16, width=4)
    x = torch.randn(2, 9, 16)
    whole, S_whole = layer(x)
    first, S = layer(x[:, :5])
    second, S = layer(x[:, 5:], S)
    assert (torch.cat([first, second], 1) - whole).abs().max() < 1e-5
    assert S[1].shape[:2] == (2, 3) and (S[1] - S_whole[1]).abs().max() < 1e-6
    assert len(mixers.load(name).Layer(16)(x)[1]) == 1


@pytest.mark.parametrize("name", WITH_TAPS)
def test_the_taps_reach_as_far_back_as_they_are_many(name):
    """With the recurrence's own memory cut off by a reset, a token sees `width` inputs and no more."""
    torch.manual_seed(0)
    layer = mixers.load(name).Layer(16, width=3)
    x = torch.randn(1, 8, 16, requires_grad=True)
    q, *_ = layer.taps(*(p(x) for p in (layer.q, layer.k, layer.v)))
    q[:, 6].sum().backward()
    seen = x.grad[0].abs().sum(-1) > 0
    assert seen.tolist() == [False] * 4 + [True] * 3 + [False]


def test_a_width_below_one_is_refused():
    from postx.mixers._conv import Taps

    with pytest.raises(ValueError, match="width"):
        Taps(4, 0)
