"""Softmax attention against definitions that share no code with it; the general contract is in test_contract.py."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from contract import close
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from postx import mixers
from postx.mixers import attention
from postx.parts import cache
from postx.parts.rope import Rope

WINDOWS = (None, 1, 3, 16)
ROPES = (None, Rope(), Rope(base=100.0, pairing="interleaved", dims=4))
FORMS = [("recurrent", {}), ("parallel", {}), ("chunked", {"chunk": 1}), ("chunked", {"chunk": 5}), ("chunked", {})]


def by_hand(q, k, v, window=None):
    """The definition with loops and Python floats: y_t = sum_m exp(s_tm) v_m / sum_m exp(s_tm)."""
    B, T, H, K = q.shape
    y = torch.zeros(B, T, H, v.shape[-1], dtype=torch.float64)
    for b, t, h in itertools.product(range(B), range(T), range(H)):
        g, first = h // (H // k.shape[2]), 0 if window is None else max(0, t - window + 1)
        weight = [math.exp(float(q[b, t, h] @ k[b, m, g]) / math.sqrt(K)) for m in range(first, t + 1)]
        for m, p in zip(range(first, t + 1), weight, strict=True):
            y[b, t, h] += p / sum(weight) * v[b, m, g]
    return y


def warm(w, B=2, lengths=(9, 4)):
    z, _ = attention.example(9, B=B, seed=5)
    return attention.parallel(*z, lengths_B=torch.tensor(lengths), **w)[1]


@pytest.mark.equation("eq-softmax-attention")
def test_every_form_is_the_definition(residual):
    worst = 0.0
    for window in WINDOWS:
        z, w = attention.example(11, window=window)
        want = by_hand(*z, window=window)
        outputs = [getattr(attention, form)(*z, **w, **more)[0] for form, more in FORMS]
        outputs.append(mixers.by_step(attention, *z, **w)[0])
        worst = max(worst, *(float((y - want).abs().max()) for y in outputs))
    assert worst <= 1e-9
    residual(worst)


@pytest.mark.equation("eq-online-softmax")
def test_a_running_softmax_is_the_softmax(residual):
    """Whatever the tiles, and also where the scores would overflow exp."""
    worst = 0.0
    for loud in (1.0, 40.0, 1e4):
        (q, k, v), _ = attention.example(23)
        scores = torch.einsum("bthk,bmhk->bhtm", loud * q, k.repeat_interleave(2, 2)) * q.shape[-1] ** -0.5
        scores = scores + torch.full((23, 23), -torch.inf, dtype=torch.float64).triu(1)
        want = torch.einsum("bhtm,bmhv->bthv", scores.softmax(-1), v.repeat_interleave(2, 2))
        for chunk in (1, 2, 7, 23, 64):
            got = attention.chunked(loud * q, k, v, chunk=chunk)[0]
            worst = max(worst, float((got - want).abs().max()))
    assert worst <= 1e-9
    residual(worst)


@pytest.mark.parametrize("rope", ROPES, ids=("plain", "half", "interleaved"))
@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("T", [1, 8, 21])
def test_forms_equal_step(T, window, rope):
    z, w = attention.example(T, window=window, rope=rope)
    lengths, reset = torch.tensor([T, T // 3]), torch.rand(2, T, generator=torch.Generator().manual_seed(T)) < 0.2
    ragged, packed = {"lengths_B": lengths}, {"lengths_B": lengths, "reset_BT": reset}
    for S, side in ((None, {}), (warm(w), {}), (warm(w), ragged), (None, packed), (warm(w), packed)):
        want = mixers.by_step(attention, *z, S=S, **side, **w)
        for form, more in FORMS:
            close(getattr(attention, form)(*z, S=S, **side, **w, **more), want)


@pytest.mark.parametrize(("form", "more"), FORMS)
@pytest.mark.parametrize("window", WINDOWS)
def test_a_sequence_cut_anywhere_and_resumed_is_the_whole(form, more, window):
    z, w = attention.example(20, window=window, rope=Rope())
    whole = getattr(attention, form)(*z, **w, **more)
    for cut in (1, 3, 16, 19):
        y_a, S = getattr(attention, form)(*(x[:, :cut] for x in z), **w, **more)
        y_b, S = getattr(attention, form)(*(x[:, cut:] for x in z), S=S, **w, **more)
        close((torch.cat([y_a, y_b], 1), S), whole)


@pytest.mark.parametrize(("form", "more"), FORMS)
def test_nothing_outside_of_the_window_is_seen(form, more):
    """Exactly nothing: neither a later token, nor one that has left the window."""
    (q, k, v), w = attention.example(20, window=4)
    y = getattr(attention, form)(q, k, v, **w, **more)[0]
    k2, v2 = k.clone(), v.clone()
    k2[:, 10], v2[:, 10] = 100.0, -100.0
    moved = (getattr(attention, form)(q, k2, v2, **w, **more)[0] - y).abs().amax((0, 2, 3)) > 0
    assert moved.nonzero().flatten().tolist() == [10, 11, 12, 13]


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize(("form", "more"), FORMS)
def test_gradients_equal_those_of_parallel(form, more, window):
    grads = []
    for name, options in (("parallel", {}), (form, more)):
        z, w = attention.example(19, window=window, rope=Rope())
        S = warm(w)
        inputs = [x.requires_grad_() for x in (*z, *S[:2])]
        y, S = getattr(attention, name)(*z, S=S, **w, **options)
        weights = torch.linspace(-1, 2, y.numel(), dtype=torch.float64).view_as(y)
        loss = (y * weights).sum() + S[0].square().sum() + S[1].pow(3).sum()
        grads.append(torch.autograd.grad(loss, inputs))
    close(grads[1], grads[0])


def test_gradients_of_tiles_equal_finite_differences():
    (q, k, v), _ = attention.example(4, B=1, K=2, V=2)
    inputs = [x.requires_grad_() for x in (q, k, v)]
    assert torch.autograd.gradcheck(lambda *z: attention.chunked(*z, chunk=3, window=3)[0], inputs)


@pytest.mark.parametrize("window", [None, 5])
def test_equals_torch_and_repeated_heads(window):
    z, w = attention.example(33, H=6, G=2, window=window)
    q, k, v = (x.transpose(0, -1).contiguous().transpose(0, -1) for x in z)  # strided, too
    band = torch.ones(33, 33, dtype=torch.bool).tril()
    band &= band.new_ones(33, 33).triu(-(window or 33) + 1)
    k6, v6 = k.repeat_interleave(3, 2), v.repeat_interleave(3, 2)
    heads = (x.transpose(1, 2) for x in (q, k6, v6))
    want = F.scaled_dot_product_attention(*heads, attn_mask=band).transpose(1, 2)
    for form, more in FORMS:
        close(getattr(attention, form)(q, k, v, **w, **more)[0], want)
        close(getattr(attention, form)(q, k6, v6, **w, **more)[0], want)
    scaled = F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k6, v6)), attn_mask=band, scale=2.5)
    close(attention.chunked(q, k, v, scale=2.5, **w)[0], scaled.transpose(1, 2))


@pytest.mark.parametrize("form", ["parallel", "chunked", "recurrent"])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-6), (torch.bfloat16, 2.1e-3), (torch.float16, 5.1e-4)])
def test_low_precision(form, dtype, bound):
    """Half precision costs one rounding of y, 2^-9 or 2^-11; the cache keeps the dtype of what it stores."""
    z, w = attention.example(70, window=20)
    z = tuple(x.to(dtype) for x in z)
    y, S = getattr(attention, form)(*z, **w)
    assert y.dtype == S[0].dtype == S[1].dtype == dtype
    want, _ = attention.parallel(*(x.double() for x in z), **w)
    close(y, want, bound)
    close(mixers.by_step(attention, *z, **w)[0], want, bound)


@pytest.mark.parametrize("loud", [36.0, 1e4])
def test_huge_logits_stay_right(loud):
    z, _ = attention.example(40)
    q, k, v = (x.float() for x in z)
    exact = attention.parallel(*(x.double() for x in (q * loud, k, v)))[0]
    inputs = [x.requires_grad_() for x in (q * loud, k, v)]
    for form, more in FORMS:
        y = getattr(attention, form)(*inputs, **more)[0]
        # A score of size s carries an error of s * 2^-24 or so, which exp turns into a relative one.
        close(y, exact, 1e-5 * loud)
        assert all(torch.isfinite(g).all() for g in torch.autograd.grad(y.square().sum(), inputs))


def test_garbage_past_the_length_reaches_nothing():
    z, w = attention.example(12)
    lengths = torch.tensor([12, 5])
    for form, more in FORMS:
        grads = []
        for junk in (0.0, torch.nan):
            inputs = [x.clone() for x in z]
            for x in inputs:
                x[1, 5:] = junk
                x.requires_grad_()
            y, S = getattr(attention, form)(*inputs, lengths_B=lengths, **w, **more)
            assert torch.equal(y[1, 5:], torch.zeros_like(y[1, 5:]))
            assert S[2].tolist() == [12, 5]
            grads.append(torch.autograd.grad(y.sum() + S[0].sum() + S[1].sum(), inputs))
        close(grads[1], grads[0], 0.0)


def test_the_cache_holds_absolute_positions():
    for window, expected in ((None, [0, 1, 2, 3, 4, 5, -1, -1]), (4, [4, 5, 2, 3]), (8, [0, 1, 2, 3, 4, 5, -1, -1])):
        assert cache.held(torch.tensor([6]), len(expected), window).tolist() == [expected]
    (q, k, v), w = attention.example(7, window=4)
    S = attention.parallel(q, k, v, lengths_B=torch.tensor([7, 3]), **w)[1]
    close(S[0][0], k[0, [4, 5, 6, 3]], 0.0)
    close(S[0][1], torch.cat([k[1, :3], torch.zeros_like(k[1, :1])]), 0.0)


def test_a_ring_never_grows_and_what_is_unused_is_zero():
    z, w = attention.example(30, window=4)
    S = attention.init(*(x[:, 0] for x in z), **w)
    for t in range(30):
        _, S = attention.step(S, *(x[:, t] for x in z), **w)
        assert S[0].shape[1] == S[1].shape[1] == 4
        assert torch.equal(S[0][:, t + 1 :], torch.zeros_like(S[0][:, t + 1 :]))
    assert attention.cost(30, window=4).state_floats == S[0].numel() + S[1].numel()
    assert (attention.cost(30, window=4).bounded, attention.cost(30).bounded) == (True, False)


@pytest.mark.parametrize("window", [None, 8])
def test_step_is_pure_and_inplace_is_its_equal_without_reallocating(window):
    z, w = attention.example(70, window=window, rope=Rope())
    pure = inplace = attention.init(*(x[:, 0] for x in z), **w)
    homes = []
    for t in range(70):
        token = tuple(x[:, t] for x in z)
        before = mixers.map_state(torch.clone, pure)
        y, after = attention.step(pure, *token, **w)
        close(pure, before, 0.0)
        y_inplace, inplace = attention.step(inplace, *token, inplace=True, **w)
        close((y_inplace, inplace), (y, after))
        pure = after
        homes.append(inplace[0].data_ptr())
    moves = sum(a != b for a, b in zip(homes, homes[1:], strict=False))
    assert moves == (3 if window is None else 0)  # capacities 16, 32, 64, 128


class Largest(TorchDispatchMode):
    """Records the most elements that any tensor had."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(x, torch.Tensor):
                self.numel = max(self.numel, x.numel())
        return out


@pytest.mark.parametrize("train", [False, True])
def test_tiles_never_hold_a_table(train):
    T, H, chunk = 512, 4, 16
    z, _ = attention.example(T, B=1, H=H)
    inputs = [x.requires_grad_(train) for x in z]
    sizes = {}
    for form, more in (("parallel", {}), ("chunked", {"chunk": chunk})):
        with Largest() as largest:
            y = getattr(attention, form)(*inputs, **more)[0]
            if train:
                y.sum().backward()
        sizes[form] = largest.numel
    assert sizes["parallel"] == H * T * T
    assert sizes["chunked"] == H * T * chunk


def test_flops_are_those_counted():
    z, _ = attention.example(96, B=1)

    def counted(form, **more):
        with FlopCounterMode(display=False) as counter:
            getattr(attention, form)(*z, **more)
        return counter.get_total_flops()

    assert counted("parallel") == attention.cost(96, B=1, form="naive").flops
    assert counted("chunked", chunk=1) == attention.cost(96, B=1).flops
    assert counted("chunked", chunk=1, window=8) == pytest.approx(attention.cost(96, B=1, window=8).flops)
    outer = 2 * 4 * 6  # the first token's one weight times one value: torch multiplies, and does not count it
    assert counted("recurrent") == attention.cost(96, B=1).flops - outer
    assert counted("chunked", chunk=16) == attention.cost(96, B=1).flops * (96 + 16) / (96 + 1)


def test_layer_generates_what_it_computes_at_once():
    torch.manual_seed(0)
    for window in (None, 5):
        layer = attention.Layer(12, H=4, G=2, K=6, V=5, window=window).double()
        x = torch.randn(2, 24, 12, dtype=torch.float64)
        with torch.no_grad():
            y, want = layer(x)
            outputs, S = [layer(x[:, :7])[0]], layer(x[:, :7])[1]
            for t in range(7, 24):
                y_t, S = layer(x[:, t : t + 1], S, inplace=True)
                outputs.append(y_t)
            close((torch.cat(outputs, 1), S), (y, want))
            ragged = layer(x, lengths_B=torch.tensor([24, 3]))[0]
        close(ragged[1, :3], y[1, :3])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda q, k, v: attention.parallel(q, k, v[:, :-1]), r"v_BTGV: expected axes \[B, T, G, V\] with T=6"),
        (lambda q, k, v: attention.parallel(q[..., :-1], k, v), r"k_BTGK: .* with K=7 .*\(2, 6, 2, 8\)"),
        (lambda q, k, v: attention.parallel(q[:, :, :3], k, v), "k_BTGK: 2 heads do not divide the 3 heads"),
        (lambda q, k, v: attention.chunked(q, k, v, window=0), "window: expected None or an integer >= 1"),
        (lambda q, k, v: attention.chunked(q, k, v, chunk=0), "chunk: expected a whole number >= 1"),
        (lambda q, k, v: attention.chunked(q, k, v, impl="cuda"), "impl: 'cuda' is not available.*'torch'"),
        (lambda q, k, v: attention.parallel(q, k, v, S=warm({"window": 3}), window=4), "M=4 slots, got M=3"),
        (lambda q, k, v: attention.parallel(q[:1], k[:1], v[:1], S=warm({})), r"k_BMGK: .*B=1 .*\(2, 9, 2, 8\)"),
        (lambda q, k, v: attention.Layer(10, H=4), "D: expected a multiple of H=4"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(*attention.example(6)[0])


@pytest.mark.parametrize(("T", "W"), [(37, 8), (64, 16), (10, 16), (16, 16), (17, 16), (33, 1)])
def test_torchs_kernel_under_a_window_in_blocks_is_attention_under_a_window(T, W):
    """`impl="sdpa"` is a GPU's; the cutting into blocks is the same on any device."""
    z, w = attention.example(T, window=W)
    z = [x.requires_grad_(True) for x in z]
    seen, _ = attention._look(*z, None, None, window=W)
    fused, (plain, _) = attention._fused(seen, W, None), attention.parallel(*z, **w)
    close(fused, plain)
    seed = torch.randn_like(plain)
    for got, want in zip(*(torch.autograd.grad(y, z, seed) for y in (fused, plain)), strict=True):
        close(got, want)
