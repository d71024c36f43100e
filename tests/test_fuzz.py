"""Odd inputs, drawn by Hypothesis: a public function answers with numbers of the right kind, or refuses by name.

What it must not do: answer with NaN for finite numbers, answer in whole numbers, write into what it was given, or stop
with an error that names no argument. The draws are the same in every run.
"""

import functools
import math
import re

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from postx import cost, mixers, ngram, quant, tasks, text
from postx.diffusion import blank, masked, plaid, sedd
from postx.mixers import by_step
from postx.models.lm import sample
from postx.quant import rotate

NAMED = re.compile(r"^([A-Za-z_0-9, ()]+|pattern|model .*|quantizer .*|mixer .*): ")  # an argument, and what is wrong


def fuzz(examples):
    def decorator(function):
        quick = settings(max_examples=examples, derandomize=True, deadline=None, database=None,
                         suppress_health_check=list(HealthCheck))  # fmt: skip
        return quick(function)

    return decorator


def answer(call):
    """What call() gives; None where it refused with a ValueError or TypeError that names an argument."""
    try:
        return call()
    except (ValueError, TypeError) as error:
        if not NAMED.match(str(error)):
            raise AssertionError(f"names no argument: {type(error).__name__}: {error}") from error
        return None


ODD = [0.0, -0.0, 1.0, -3.5, 1e-45, 1e-30, 1e19, 3e38, -3.4e38, math.inf, -math.inf, math.nan]
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.uint8]


@st.composite
def tensors(draw, *sizes, dtypes=tuple(DTYPES), odd=True):
    """A tensor of those sizes (numbers or strategies), normal numbers with a few odd ones, of odd dtype and strides."""
    shape = [draw(size) if isinstance(size, st.SearchStrategy) else size for size in sizes]
    rng = torch.Generator().manual_seed(draw(st.integers(0, 3)))
    x = torch.randn(shape, generator=rng, dtype=torch.float64) * draw(st.sampled_from([1.0, 0.0, 1e-20, 1e15, 1e30]))
    if odd and x.numel() and draw(st.booleans()):
        x.view(-1)[draw(st.integers(0, x.numel() - 1))] = draw(st.sampled_from(ODD))
    dtype = draw(st.sampled_from(dtypes))
    x = (x.nan_to_num(0, 9, -9).clamp(-9, 9).abs() if not dtype.is_floating_point else x).to(dtype)
    if draw(st.booleans()):  # the same numbers with other strides
        x = x.transpose(0, -1).contiguous().transpose(0, -1)
    return x


@fuzz(120)
@given(st.sampled_from(quant.names()), st.data())
def test_quantizers(name, data):
    O, I = data.draw(st.sampled_from([(1, 1), (1, 8), (3, 8), (5, 33), (0, 8), (3, 0), (2, 7)]))
    W = data.draw(tensors(O, I))
    bits = data.draw(st.sampled_from([1, 2, 3, 4, 8, 0, 9, 2.5, True]))
    kw = {}
    if name in ("gptq", "awq") or name == "lattice" and data.draw(st.booleans()):
        kw["x_TI"] = data.draw(tensors(st.sampled_from([0, 1, 40]), I))
    if name in ("uniform", "gptq", "awq", "lloyd"):
        kw["group"] = data.draw(st.sampled_from(["row", "tensor", 4, 1, 0, -1, 100, 2.5]))
    before = W.clone()
    module = quant.load(name)
    q = answer(lambda: module.quantize(W, **kw) if name == "ternary" else module.quantize(W, bits, **kw))
    assert torch.equal(W.nan_to_num(), before.nan_to_num())
    if q is None:
        return
    back = q.dequantize()
    assert back.dtype == torch.float32
    assert back.shape == W.shape
    assert torch.isfinite(back).all()
    assert W.is_floating_point()
    assert q.bits_per_weight > 0
    y = answer(lambda: q.matvec(data.draw(tensors(I, odd=False))))
    assert y is None or y.dtype == torch.float32


@fuzz(40)
@given(tensors(st.integers(0, 3), st.sampled_from([1, 2, 3, 8, 12, 20, 24, 7])), st.integers(0, 2))
def test_rotations(x, seed):
    y = answer(lambda: rotate.spin(x, seed))
    if y is None:
        return
    assert y.dtype == x.dtype
    assert x.is_floating_point()
    back = rotate.unspin(y, seed)
    if torch.isfinite(back).all() and x.numel():
        tight = {torch.float16: 2e-2, torch.bfloat16: 1e-1}.get(x.dtype, 1e-4)
        assert float((back.double() - x.double()).abs().max()) <= tight * max(1e-30, float(x.double().abs().max()))


@fuzz(80)
@given(
    tensors(st.integers(0, 3), st.sampled_from([1, 2, 7])),
    st.sampled_from([0, 1.0, 0.3, 1e-44, 1e30, -1.0, math.nan, math.inf]),
    st.sampled_from([None, 1, 3, 50, 0, -1, 1.5, True]),
    st.sampled_from([None, 0.5, 1.0, 1e-9, 0.0, 2.0, math.nan]),
)
def test_sampling(logits, temperature, top_k, top_p):
    ids = answer(lambda: sample(logits, temperature, top_k, torch.Generator().manual_seed(0), top_p=top_p))
    if ids is None:
        return
    assert ids.shape == logits.shape[:1]
    assert ids.dtype == torch.int64
    assert not logits.isnan().any()
    chosen = logits.gather(1, ids[:, None]) if len(ids) else logits
    assert (chosen > -torch.inf).all()


SAMPLERS = {
    "ancestral": lambda net, given, Y, n: masked.ancestral(net, given, Y, steps=n),
    "remask": lambda net, given, Y, n: masked.remask(net, given, Y, steps=n),
    "absorbing": lambda net, given, Y, n: sedd.sample(net, given, sedd.Absorbing(Y), steps=n),
    "uniform": lambda net, given, Y, n: sedd.sample(net, given, sedd.Uniform(Y), steps=n),
    "plaid": lambda net, given, Y, n: plaid.sample(net, given, plaid.Process(Y, 2), steps=n),
    "nelbo": lambda net, given, Y, n: masked.nelbo(net, given.clamp(min=0), Y),
    "loss": lambda net, given, Y, n: sedd.loss(net, given.clamp(min=0), sedd.Uniform(Y)),
}


@fuzz(120)
@given(
    st.sampled_from(list(SAMPLERS)), st.integers(0, 2), st.integers(0, 4), st.integers(2, 4),
    st.sampled_from([0, 1, 3, 1.5]), st.sampled_from([0, 0, 0, 1, -1]),
    st.sampled_from([None, None, *ODD]), st.booleans(),
)  # fmt: skip
def test_diffusion(name, B, T, Y, steps, wider, bad, prompt):
    def net(x, *_):
        logits = torch.zeros(*x.shape[:2], Y + wider)
        if bad is not None and logits.numel():
            logits[0, -1, 0] = bad
        return logits

    given = blank(B, T)
    if prompt and T:
        given[:, 0] = Y - 1
    found = answer(lambda: SAMPLERS[name](net, given, Y, steps))
    if found is None:
        return
    if isinstance(found, torch.Tensor):
        assert found.shape == (B,)
        return
    ids = found.ids_BT
    assert ids.shape == (B, T)
    assert ((ids >= 0) & (ids < Y)).all()  # never a mask
    assert not (prompt and T) or (ids[:, 0] == Y - 1).all()


SIZES = st.sampled_from([1, 2, 3, 8, 40, 0, -1, 2.5, 4.0, math.nan, math.inf, True, "3", None, 10**30])


@fuzz(200)
@given(st.sampled_from(list(tasks.TASKS)), SIZES, SIZES, SIZES, SIZES)
def test_tasks(name, B, T, a, b):
    arguments = {
        "recall": {"pairs": a, "keys": b}, "selective_copying": {"tokens": a, "symbols": b},
        "induction": {"distance": a, "symbols": b}, "copying": {"tokens": a, "symbols": b},
        "phone_book": {"pairs": a, "name": b}, "parity": {}, "rewriting": {"writes": a, "held": b},
    }[name]  # fmt: skip
    assume(not any(x == 10**30 for x in (B, T)))
    found = answer(lambda: tasks.TASKS[name](B, T, **arguments))
    if found is not None:
        ids, targets = found
        assert ids.shape == targets.shape == (B, T)
        assert ids.dtype == targets.dtype == torch.int64


COSTS = {
    "attention": lambda T, a, b: cost.softmax_attention(T, K=a, tile=b),
    "all pairs": lambda T, a, b: cost.softmax_attention(T, K=a, causal=False),
    "window": lambda T, a, b: cost.softmax_attention(T, K=a, window=b),
    "past": lambda T, a, b: cost.softmax_attention(T, K=a, past=b),
    "matmul": cost.matmul,
    "decay": lambda T, a, b: cost.decay_recurrence(T, K=a, V=b),
    "delta": lambda T, a, b: cost.delta_recurrence(T, K=a, V=b),
    "chunked": lambda T, a, b: cost.chunked_recurrence(T, K=a, chunk=b),
    "scan": lambda T, a, b: cost.ssm_scan(T, D=a, N=b),
    "short": lambda T, a, b: cost.short_convolution(T, D=a, conv_size=b),
    "long": lambda T, a, b: cost.long_convolution(T, B=a, D=b),
}


@fuzz(200)
@given(st.sampled_from(list(COSTS)), SIZES, SIZES, SIZES)
def test_costs(name, T, a, b):
    found = answer(lambda: COSTS[name](T, a, b))
    if found is not None:
        assert found.flops >= 0
        assert all(math.isfinite(x) and x >= 0 for x in (found.flops, found.bytes, found.state_floats))


@functools.cache
def book():
    words = "".join(chr(97 + i * i % 23) for i in range(4000)).encode()
    return ngram.KneserNey(words, orders=(1, 2, 3))


@fuzz(40)
@given(st.binary(max_size=20), st.sampled_from([np.uint8, np.int64, np.float32]), st.sampled_from([1, 3, 0, 4]))
def test_counting_models(data, dtype, order):
    as_array = np.frombuffer(data, np.uint8).astype(dtype)
    for words in (data, as_array):
        bits = answer(lambda words=words: book().bits(words))
        assert bits is None or all(math.isfinite(x) and x > 0 for x in bits.values())
        p = answer(lambda words=words: book().distribution(words, order))
        assert p is None or abs(p.sum() - 1) < 1e-9


@fuzz(40)
@given(st.text(max_size=60))
def test_paragraphs_and_docstrings(words):
    assert all(p.strip() for p in text.paragraphs(words))
    assert isinstance(text.docstrings(words.encode("utf8", "surrogatepass")), list)
    assert text.split_of(text.group(words.encode("utf8", "replace").decode())) in text.SPLITS


@pytest.mark.parametrize("name", mixers.names())
def test_forms_of_a_mixer(name):
    """Few tokens, none in a row, other strides, float16: every form says what `step` says."""

    @fuzz(6)
    @given(st.sampled_from(mixers.forms(mixers.load(name))), st.sampled_from([1, 2, 5]), st.integers(0, 2),
           st.booleans(), st.booleans(), st.data())  # fmt: skip
    def check(form, T, B, strided, half, data):
        m = mixers.load(name)
        z, w = m.example(T)
        z = tuple(x[:B] for x in z)
        side = {}
        if data.draw(st.booleans()):
            side["lengths_B"] = torch.tensor([data.draw(st.integers(0, T)) for _ in range(B)], dtype=torch.int64)
        if data.draw(st.booleans()):
            side["reset_BT"] = torch.rand(B, T, generator=torch.Generator().manual_seed(T)) < 0.4
        if strided:
            z = tuple(x.transpose(0, 1).contiguous().transpose(0, 1) for x in z)
        before = [x.clone() for x in z]
        y, S = getattr(m, form)(*z, **w, **side)
        assert all(torch.equal(a, b) for a, b in zip(z, before, strict=True))
        assert y.is_floating_point()
        assert y.shape[:2] == (B, T)
        assert torch.isfinite(y).all()
        mixers.map_state(lambda x: x.shape[0] == B or pytest.fail(f"S has {x.shape[0]} rows"), S)
        if B:
            want, _ = by_step(m, *z, **w, **side)
            assert (y - want).abs().max() <= 1e-8 * max(1.0, float(want.abs().max()))
        if half and B:
            small, _ = getattr(m, form)(*(x.to(torch.float16) if x.is_floating_point() else x for x in z), **{
                k: x.to(torch.float32) if isinstance(x, torch.Tensor) and x.dtype == torch.float64 else x
                for k, x in w.items()}, **side)  # fmt: skip
            assert small.is_floating_point()
            assert torch.isfinite(small).all()

    check()
