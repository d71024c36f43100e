"""Hyena against its matrices, any order; H3 against its own recurrence; filters; a text longer than the filter."""

import contract
import pytest
import torch

from postx.mixers import hyena, s4d

FORMS = ("recurrent", "parallel", "chunked")


def matrices(v, x, response_LDW, skip_LD):
    """E1: y = D_L S_L .. D_1 S_1 v for one row, each S_n a causal Toeplitz matrix with the skip on its diagonal."""
    T, L, D = x.shape
    lag = torch.arange(T)[:, None] - torch.arange(T)
    y = torch.empty_like(v)
    for d in range(D):
        whole = torch.eye(T, dtype=v.dtype)
        for n in range(L):
            h = response_LDW[n, d]
            S = torch.where((lag >= 0) & (lag < len(h)), h[lag.clamp(0, len(h) - 1)], 0.0)
            whole = torch.diag(x[:, n, d]) @ (S + skip_LD[n, d] * torch.eye(T, dtype=v.dtype)) @ whole
        y[:, d] = whole @ v[:, d]
    return y


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("order", "W"), [(1, 8), (2, 1), (2, 40), (3, 21), (5, 3)])
def test_equals_the_product_of_matrices(order, W, form):
    (v, x), w = hyena.example(30, L=order, W=W)
    y, _ = getattr(hyena, form)(v, x, **w)
    want = torch.stack([matrices(v[b], x[b], **w) for b in range(2)])
    assert contract.close(y, want) <= contract.TOLERANCE


@pytest.mark.parametrize("chunk", [1, 7, 64])
def test_any_chunk(chunk):
    z, w = hyena.example(30)
    assert contract.close(hyena.chunked(*z, **w, chunk=chunk), hyena.parallel(*z, **w)) <= contract.TOLERANCE


@pytest.mark.parametrize("form", FORMS)
def test_h3_is_order_two(form):
    """q * ssm(v * shift(k)), the SSM carried as a recurrence that has never heard of a filter's length."""
    (k,), w = s4d.example(25, D=3)
    generator = torch.Generator().manual_seed(1)
    v, q, taps = (
        torch.randn(s, generator=generator, dtype=k.dtype) for s in ((2, 25, 3), (2, 25, 3), (3, 4))
    )
    skip = torch.randn(2, 3, generator=generator, dtype=k.dtype)
    shifted = sum(taps[:, j] * torch.cat([k.new_zeros(2, j, 3), k[:, : 25 - j]], 1) for j in range(4))
    memory, _ = s4d.recurrent(v * (shifted + skip[0] * k), **w | {"skip_D": skip[1]})
    ssm = {key: w[key] for key in ("delta_D", "A_DN", "C_DN")}
    y, _ = getattr(hyena, form)(
        k, torch.stack([v, q], 2), response_LDW=hyena.h3(taps, 25, **ssm), skip_LD=skip
    )
    assert contract.close(y, q * memory) <= contract.TOLERANCE


@pytest.mark.parametrize("form", FORMS)
def test_safaris_order_two_is_ours_with_a_first_response_of_one(form):
    (v, x), w = hyena.example(30)
    one = torch.zeros_like(w["response_LDW"])
    one[0, :, 0], one[1] = 1.0, w["response_LDW"][1]
    skip = torch.stack([torch.zeros_like(w["skip_LD"][0]), w["skip_LD"][1]])
    single = {"response_LDW": w["response_LDW"][1:], "skip_LD": w["skip_LD"][1:]}
    want, _ = hyena.parallel(x[:, :, 0] * v, x[:, :, 1:], **single)
    assert (
        contract.close(getattr(hyena, form)(v, x, response_LDW=one, skip_LD=skip)[0], want)
        <= contract.TOLERANCE
    )


@pytest.mark.parametrize("form", FORMS)
def test_what_is_further_back_than_the_filter_is_not_seen(form):
    (v, x), w = hyena.example(30, L=1, W=8)
    changed = v.clone()
    changed[:, 2] += 1
    moved = (getattr(hyena, form)(changed, x, **w)[0] - getattr(hyena, form)(v, x, **w)[0]).abs().amax((0, 2))
    assert moved.gt(1e-9).tolist() == [2 <= t < 10 for t in range(30)]


def test_state_is_bounded_and_said_so():
    (v, x), w = hyena.example(200, W=9)
    _, S = hyena.parallel(v, x, **w)
    assert S.shape == (2, 2, 8, 3)
    bill = hyena.cost(200, B=2, W=9)
    assert bill.bounded
    assert "9 taps" in bill.by


def test_filters_fade_and_their_size_does_not_grow_with_the_length():
    torch.manual_seed(0)
    short, long = hyena.Filters(2, 4, 16), hyena.Filters(2, 4, 4096)
    count = [sum(p.numel() for p in f.parameters()) for f in (short, long)]
    assert count[0] == count[1]
    h = long()
    assert h.shape == (2, 4, 4096)
    window = long.window_DW
    assert window[0, -1].item() == pytest.approx(0.05 + 0.01 ** (1 / 1.5), rel=1e-4)
    assert window[-1, round(0.3 * 4095)].item() == pytest.approx(0.06, rel=1e-2)
    late, early = h[:, -1, 3000:].abs().max(), h[:, -1, :300].abs().max()
    assert 0.01 * early < late < 0.1 * early  # what the floor leaves


@pytest.mark.parametrize("order", [1, 2, 4])
def test_layer_of_any_order_past_its_filters_length(order):
    torch.manual_seed(0)
    layer = hyena.Layer(8, order=order, W=6).double()
    x = torch.randn(2, 20, 8, dtype=torch.float64)
    y, S = layer(x)
    state, steps = None, []
    for t in range(20):
        y_t, state = layer(x[:, t : t + 1], state)
        steps.append(y_t)
    assert contract.close((torch.cat(steps, 1), state), (y, S)) <= contract.TOLERANCE
    reset = torch.zeros(2, 20, dtype=torch.bool)
    reset[:, 7] = True
    packed, S = layer(x, reset_BT=reset)
    assert contract.close((packed[:, 7:], S), layer(x[:, 7:])) <= contract.TOLERANCE


def test_bad_input_is_named():
    (v, x), w = hyena.example(4)
    with pytest.raises(ValueError, match=r"skip_LD: expected axes \[L, D\] with L=2"):
        hyena.parallel(v, x, response_LDW=w["response_LDW"], skip_LD=w["skip_LD"][:1])
    with pytest.raises(ValueError, match=r"S_BLWD: expected axes \[B, L, W-1, D\] with W=21 \(from response_LDW\)"):
        hyena.parallel(v, x, **w, S=torch.zeros(2, 2, 4, 3))
    with pytest.raises(ValueError, match="chunk: expected a whole number >= 1, got 0"):
        hyena.chunked(v, x, **w, chunk=0)
    with pytest.raises(ValueError, match="taps_DN: 4 taps do not fit into a response of W = 3"):
        hyena.shift(torch.zeros(2, 4), 3)
    with pytest.raises(ValueError, match="order: expected at least 1 level, got 0"):
        hyena.Layer(8, order=0)
