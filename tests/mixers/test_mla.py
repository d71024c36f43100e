"""Latent attention against plain attention over keys and values that are written out."""

import math

import pytest
import torch
from contract import close
from test_attention import Largest
from torch.utils.flop_counter import FlopCounterMode

from postx import mixers
from postx.mixers import attention, mla
from postx.parts.rope import Rope

FORMS = [("recurrent", {}), ("parallel", {}), ("chunked", {"chunk": 5}), ("chunked", {})]


def warm(w):
    z, _ = mla.example(9, seed=5)
    return mla.parallel(*z, lengths_B=torch.tensor([9, 4]), **w)[1]


def absorbed_by_step(z, w, S=None):
    outputs, S = [], mla.init(*(x[:, 0] for x in z), **w) if S is None else S
    for t in range(z[0].shape[1]):
        y, S = mla.step_absorbed(S, *(x[:, t] for x in z), **w)
        outputs.append(y)
    return torch.stack(outputs, 1), S


def test_is_attention_over_keys_and_values_grown_from_the_latent():
    (q, c, r), w = mla.example(13)
    B, T, H, nope = 2, 13, 4, 6
    turn = torch.exp(1j * torch.arange(T)[:, None] * 10000.0 ** (-torch.arange(2) / 2).double())

    def rotate(x):  # interleaved pairs [B, T, heads, 4] as complex numbers
        pairs = torch.view_as_complex(x.unflatten(-1, (2, 2)).contiguous()) * turn[:, None]
        return torch.view_as_real(pairs).flatten(-2)

    content = torch.stack([c @ w["up_k_HKR"][h].T for h in range(H)], 2)
    values = torch.stack([c @ w["up_v_HVR"][h].T for h in range(H)], 2)
    keys = torch.cat([content, rotate(r[:, :, None]).expand(B, T, H, 4)], -1)
    queries = torch.cat([q[..., :nope], rotate(q[..., nope:])], -1)
    scores = torch.einsum("bthk,bmhk->bhtm", queries, keys) / math.sqrt(nope + 4)
    p = scores.masked_fill(torch.ones(T, T).triu(1).bool(), -torch.inf).softmax(-1)
    want = torch.einsum("bhtm,bmhv->bthv", p, values)
    for form, more in FORMS:
        close(getattr(mla, form)(q, c, r, **w, **more)[0], want)
    close(absorbed_by_step((q, c, r), w)[0], want)
    close(attention.parallel(queries, keys, values)[0], want)


@pytest.mark.parametrize("rope", [mla.ROPE, Rope(), None], ids=("interleaved", "half", "plain"))
@pytest.mark.parametrize("T", [1, 8, 21])
def test_forms_equal_step(T, rope):
    z, w = mla.example(T)
    w["rope"] = rope
    lengths, reset = torch.tensor([T, T // 3]), torch.rand(2, T, generator=torch.Generator().manual_seed(T)) < 0.2
    for S in (None, warm(w)):
        close(absorbed_by_step(z, w, S), mixers.by_step(mla, *z, S=S, **w))
        for side in ({}, {"lengths_B": lengths}, {"lengths_B": lengths, "reset_BT": reset}):
            want = mixers.by_step(mla, *z, S=S, **side, **w)
            for form, more in FORMS:
                close(getattr(mla, form)(*z, S=S, **side, **w, **more), want)


@pytest.mark.parametrize(("form", "more"), FORMS)
def test_a_sequence_cut_anywhere_and_resumed_is_the_whole(form, more):
    z, w = mla.example(20)
    whole = getattr(mla, form)(*z, **w, **more)
    for cut in (1, 5, 19):
        y_a, S = getattr(mla, form)(*(x[:, :cut] for x in z), **w, **more)
        y_b, S = getattr(mla, form)(*(x[:, cut:] for x in z), S=S, **w, **more)
        close((torch.cat([y_a, y_b], 1), S), whole)


@pytest.mark.parametrize(("form", "more"), FORMS)
def test_later_tokens_change_nothing(form, more):
    z, w = mla.example(20)
    y = getattr(mla, form)(*z, **w, **more)[0]
    changed = tuple(torch.cat([x[:, :12], x[:, 12:] + 5], 1) for x in z)
    moved = (getattr(mla, form)(*changed, **w, **more)[0] - y).abs().amax((0, 2, 3)) > 0
    assert moved.tolist() == [False] * 12 + [True] * 8


def test_gradients_agree_with_absorbed_steps():
    grads = []
    for run in (absorbed_by_step, lambda z, w, S: mla.chunked(*z, S=S, chunk=5, **w)):
        z, w = mla.example(11)
        S = warm(w)
        inputs = [x.requires_grad_() for x in (*z, *w.values(), *S[:2])]
        y, S = run(z, w, S)
        weights = torch.linspace(-1, 2, y.numel(), dtype=torch.float64).view_as(y)
        grads.append(torch.autograd.grad((y * weights).sum() + S[0].pow(3).sum() + S[1].square().sum(), inputs))
    close(grads[1], grads[0])


@pytest.mark.parametrize("step", [mla.step, mla.step_absorbed])
def test_steps_are_pure_and_inplace_is_their_equal_without_reallocating(step):
    z, w = mla.example(40)
    pure = inplace = mla.init(*(x[:, 0] for x in z), **w)
    homes = []
    for t in range(40):
        token = tuple(x[:, t] for x in z)
        before = mixers.map_state(torch.clone, pure)
        y, after = step(pure, *token, **w)
        close(pure, before, 0.0)
        y_inplace, inplace = step(inplace, *token, inplace=True, **w)
        close((y_inplace, inplace), (y, after))
        pure = after
        homes.append(inplace[0].data_ptr())
    assert sum(a != b for a, b in zip(homes, homes[1:], strict=False)) == 2  # capacities 16, 32, 64


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2), (torch.float16, 3e-3)])
def test_low_precision(dtype, bound):
    """Against float64 on the same rounded inputs; the cache keeps the dtype of what it stores."""
    z, w = mla.example(40)
    z, w = tuple(x.to(dtype) for x in z), {name: x.to(dtype) for name, x in w.items()}
    want = mla.parallel(*(x.double() for x in z), **{name: x.double() for name, x in w.items()})[0]
    for y, S in (absorbed_by_step(z, w), *(getattr(mla, form)(*z, **w, **more) for form, more in FORMS)):
        assert y.dtype == S[0].dtype == S[1].dtype == dtype
        close(y, want, bound)


def test_huge_logits_stay_right():
    (q, c, r), w = mla.example(20)
    for loud in (36.0, 1e4):
        want = mixers.by_step(mla, q * loud, c, r, **w)
        for form, more in FORMS:
            close(getattr(mla, form)(q * loud, c, r, **w, **more), want)
        close(absorbed_by_step((q * loud, c, r), w), want)


def test_the_cache_holds_r_plus_rotary_numbers_a_token_whatever_the_heads():
    for H in (1, 8):
        z, w = mla.example(12, H=H, R=7, rotary=2)
        S = mla.parallel(*z, **w)[1]
        assert S[0].numel() + S[1].numel() == 2 * 12 * (7 + 2) == mla.cost(12, H=H, R=7, rotary=2).state_floats
    assert not mla.cost(12).bounded


def test_flops_of_a_decoded_token_are_those_counted():
    sizes = {"B": 1, "H": 8, "nope": 16, "rotary": 8, "R": 32, "V": 16}
    z, w = mla.example(101, **sizes)
    S = mla.parallel(*(x[:, :100] for x in z), **w)[1]
    counted = {}
    for form, step in (("expanded", mla.step), ("absorbed", mla.step_absorbed)):
        with FlopCounterMode(display=False) as counter:
            step(S, *(x[:, 100] for x in z), **w)
        counted[form] = counter.get_total_flops()
        assert counted[form] == mla.cost(1, past=100, form=form, **sizes).flops
    assert counted["expanded"] > 10 * counted["absorbed"]
    with FlopCounterMode(display=False) as counter:
        mla.chunked(*z, chunk=1, **w)
    assert counter.get_total_flops() == mla.cost(101, **sizes).flops


def test_the_price_of_a_cached_token_in_deepseek_v3():
    """At H=128, nope=V=128, rotary=64, R=512, by the slope of `cost`: 33.6 against 0.28 million FLOPs."""
    sizes = {"B": 1, "H": 128, "nope": 128, "rotary": 64, "R": 512, "V": 128}
    slope = {
        form: mla.cost(1, past=2000, form=form, **sizes).flops - mla.cost(1, past=1999, form=form, **sizes).flops
        for form in ("expanded", "absorbed")
    }
    assert slope == {"expanded": 2 * 128 * (512 * 256 + 320), "absorbed": 2 * 128 * 1088}
    assert 120 < slope["expanded"] / slope["absorbed"] < 121


@pytest.mark.parametrize("train", [False, True])
def test_tiles_never_hold_a_table(train):
    T, H, chunk = 512, 4, 16
    z, w = mla.example(T, B=1, H=H)
    with Largest() as largest:
        y = mla.chunked(*(x.requires_grad_(train) for x in z), chunk=chunk, **w)[0]
        if train:
            y.sum().backward()
    assert largest.numel == H * T * chunk


def test_layer_generates_what_it_computes_at_once_from_its_norms():
    torch.manual_seed(0)
    layer = mla.Layer(16, H=2, R=6, Rq=10, nope=4, rotary=2, V=3).double()
    x = torch.randn(2, 20, 16, dtype=torch.float64)
    with torch.no_grad():
        y, want = layer(x)
        outputs, S = layer(x[:, :7])
        for t in range(7, 20):
            y_t, S = layer(x[:, t : t + 1], S, inplace=True)
            outputs = torch.cat([outputs, y_t], 1)
        close((outputs, S), (y, want))
        size = want[0].square().mean(-1)  # the cached latent is normalized, so its size is 1
        close(size, torch.ones_like(size), 1e-3)
        other, state = layer(100 * x)
        close(state[0], want[0], 1e-3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda q, c, r, w: mla.parallel(q[..., 1:], c, r, **w), r"q: expected K = nope \+ rotary = 6 \+ 4, got shape"),
        (lambda q, c, r, w: mla.parallel(q, c[..., 1:], r, **w), r"up_k_HKR: .* with R=4 .*\(4, 6, 5\)"),
        (lambda q, c, r, w: mla.parallel(q[:, :, :3], c, r, **w), r"up_k_HKR: .* with H=3 .*\(4, 6, 5\)"),
        (lambda q, c, r, w: mla.parallel(q, c, r[:, 1:], **w), r"r_BTK: expected axes \[B, T, K\] with T=6"),
        (lambda q, c, r, w: mla.parallel(q[:1], c[:1], r[:1], S=warm(w), **w), r"c_BMR: .* with B=1"),
        (lambda q, c, r, w: mla.chunked(q, c, r, chunk=0, **w), "chunk: expected a whole number >= 1"),
        (lambda q, c, r, w: mla.cost(3, form="tiled"), "form: expected 'expanded' or 'absorbed'"),
    ],
)
def test_bad_input_is_named(call, message):
    z, w = mla.example(6)
    with pytest.raises(ValueError, match=message):
        call(*z, w)
