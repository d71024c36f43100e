"""The chunked kernels of the general delta recurrence: outputs, state and gradients equal the torch reference.

As in `test_scans_gpu_chunked`, Triton's interpreter runs them where there is no GPU, in a process of its own and in
chunks of 16; what the compiler makes of them needs a GPU.
"""

import json
import math

import interpreter
import pytest
import torch
from test_scans import randn
from test_scans_triton import BOUNDS, cuda, needs_triton, on_gpu, results, unit, worst

from postx import scans
from postx.scans import choice, gpu_blocks


def delta(axes="BTHK", read="after", own=False, beta=True, steep=False, groups=(2, 2, 2, 2, 2)):
    """(function of (impl, lengths, *inputs), inputs of sizes B, T, H, K, V); groups are those of q, k, b, c and g."""

    def run(impl, lengths, q, k, v, rate, g, S, b, c):
        return scans.delta(q, k, v, rate, g, S, b_BTHK=b, c_BTHK=c, read=read, lengths_B=lengths, impl=impl)

    def inputs(B, T, H, K, V):
        q, k, b, c = (randn(B, T, n, K, seed=n + i) for i, n in enumerate(groups[:4]))
        sizes, g = {"B": B, "T": T, "H": groups[4], "K": K}, None
        if axes is not None:
            g = -randn(*(sizes[axis] for axis in axes), seed=9).abs()
        if steep:  # nothing is left of what came before, or almost nothing, of some keys or all
            g[:, ::7], g[:, 3::11, :, :2], g[:, 1::5] = -math.inf, -1e9, -1e-4
        rate = 2 * randn(B, T, 1, seed=4).sigmoid() if beta else None
        k, b, c = (unit(x) for x in (k, b, c))
        v, S = randn(B, T, H, V, seed=2), randn(B, H, K, V, seed=3)
        return q / K**0.5, k, v, rate, g, S, None if own else b, c

    return run, inputs


CASES = {
    "a token and key": delta(),
    "a token and key, shared heads": delta(groups=(1, 2, 1, 2, 1)),
    "a token and key, steep": delta(steep=True),
    "a token and key, b is k": delta(own=True, groups=(2, 1, 1, 2, 2)),
    "a token and key, b is k, steep": delta(own=True, steep=True),
    "a token and key, b is k, read before": delta(own=True, read="before", groups=(1, 2, 1, 2, 1)),
    "a key, b is k, no beta": delta("HK", own=True, beta=False),
    "none, b is k": delta(None, own=True),
    "a token and key, read before": delta(read="before", beta=False),
    "a key, no beta": delta("HK", beta=False),
    "a token": delta("BTH"),
    "none": delta(None),
}

# ---------------------------------------------------------------- in the interpreter

BLOCK = (16, 4, 1)
ROW = {"chunk": 16, "keys": (16, 4), "own": (16, 4)} | dict.fromkeys(("pairs", "inside", "squares"), 4)
ROW |= dict.fromkeys(("walk", "outputs", "values"), BLOCK)
SIZE = (1, 37, 2, 17, 18)  # B, T, H, K, V: three chunks and two blocks of each width, the last ones cut short
HALVES = "a token and key", "a token and key, steep", "a token and key, b is k", "a token and key, b is k, steep"


def interpreted():
    """{case: largest difference}, printed: the body of the process that `differences` starts."""
    interpreter.install()
    ops, started = choice.kernels("dplr_ops"), {}
    launch, names = ops.launch, {ops.gpu_dplr.pairs: "pairs", ops.gpu_dplr_back.keys: "keys"}
    names |= {ops.gpu_dplr_own.pairs: "own pairs", ops.gpu_dplr_own.keys: "own keys"}

    def launched(kernel, *args, **meta):
        started[case].add(names.get(kernel))
        launch(kernel, *args, **meta)

    ops.launch = launched
    choice.delta_in_chunks, gpu_blocks.general, found = lambda *_: "general", lambda *_: ROW, {}
    for i, (name, (run, make)) in enumerate(CASES.items()):
        B, lengths = 1 + i % 2, torch.tensor([37, 9]) if i % 2 else None
        inputs, case = make(B, *SIZE[1:]), name
        started[case] = set()
        found[name] = worst(*(results(run, inputs, impl, lengths) for impl in ("triton", "reference")))
    for name in HALVES:  # not bfloat16: the interpreter multiplies its bits
        (run, make), case = CASES[name], name
        half = [None if x is None else x.half() for x in make(*SIZE)]
        wide = [None if x is None else x.double() for x in half]
        got, want = results(run, half, "triton", None), results(run, wide, "reference", None)
        found[f"{name}, float16"] = worst(got, want)
    print(json.dumps(found | {"kernels": {case: sorted(names - {None}) for case, names in started.items()}}))


@pytest.fixture(scope="module")
def differences():
    return interpreter.differences(__file__)


@needs_triton
@pytest.mark.parametrize("name", CASES)
def test_interpreted_kernel_equals_the_reference(name, differences):
    assert differences[name] <= 1e-9


@needs_triton
@pytest.mark.parametrize("name", HALVES)
def test_interpreted_float16_differs_by_rounding_only(name, differences):
    assert differences[f"{name}, float16"] <= 5e-3


@needs_triton
@pytest.mark.parametrize("name", CASES)
def test_pairs_and_their_gradients_have_kernels_of_their_own_where_b_is_k(name, differences):
    own = "b is k" in name
    assert differences["kernels"][name] == (["own keys", "own pairs"] if own else ["keys", "pairs"])


# ---------------------------------------------------------------- the algebra, without triton


@pytest.mark.parametrize("chunk", [2, 16, 64])
def test_two_tokens_part_at_one_level_and_the_exponents_there_add_up(chunk):
    """L of each level, in torch: for j < i, L_i g + L_j g is the sum from j + 1 to i - 1 where they part."""
    i, j = torch.arange(chunk)[:, None], torch.arange(chunk)[None, :]
    g, apart = -torch.arange(1, chunk + 1).double(), i ^ j
    sums = torch.cat([torch.zeros(1), g]).cumsum(0)
    for level in range(chunk.bit_length() - 1):
        right = (i >> level) & 1 == 1
        L = (apart < 1 << level) & (i != j) & (right == (j < i))
        part = ((apart >> level) == 1) & (j < i)
        exponents = (L.double() @ g)[:, None] + (L.double() @ g)[None, :]
        assert torch.equal(exponents[part], (sums[i] - sums[j + 1])[part])
    assert (apart[j < i] > 0).all()


# ---------------------------------------------------------------- which kernels are taken


def test_chunks_are_for_half_precision_at_most_128_keys_and_many_tokens():
    def bf16(T, K):
        return torch.ones(1, T, 1, K, dtype=torch.bfloat16)

    many, few = bf16(512, 128), bf16(511, 128)
    assert choice.delta_in_chunks(True, None, few, few) == "plain"
    assert choice.delta_in_chunks(True, torch.ones(1, 511, 1), few, few) == "plain"
    assert choice.delta_in_chunks(True, torch.ones(1, 128), many, many) == "general"
    assert choice.delta_in_chunks(False, None, many, many) == "general"
    assert choice.delta_in_chunks(False, None, few, few) is None
    assert choice.delta_in_chunks(False, None, bf16(512, 129), many) is None
    assert choice.delta_in_chunks(False, None, many, many.double()) is None


# ---------------------------------------------------------------- on a GPU

LINES = [
    ((2, 137, 4, 20, 40), True),
    ((2, 300, 4, 64, 64), False),
    ((1, 200, 4, 128, 128), False),
    ((2, 100, 4, 100, 160), True),
]


@on_gpu
@needs_triton
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("size", "ragged"), LINES, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_compiled_kernel_equals_the_float64_reference(name, size, ragged, dtype, monkeypatch):
    monkeypatch.setattr(choice, "delta_in_chunks", lambda *_: "general")
    run, make = CASES[name]
    inputs = [None if x is None else x.to(dtype) for x in make(*size)]
    lengths = (torch.arange(size[0]) + 1) * size[1] // (size[0] + 1) if ragged else None
    wide = [None if x is None else x.double().cuda() for x in inputs]
    want = results(run, wide, "reference", cuda(lengths))
    got = results(run, [cuda(x) for x in inputs], "triton", cuda(lengths))
    again = results(run, [cuda(x) for x in inputs], "triton", cuda(lengths))
    assert worst(got, want) <= BOUNDS[torch.bfloat16]
    assert all(torch.equal(a, b) for a, b in zip(got, again, strict=True))


@on_gpu
@needs_triton
def test_inputs_are_read_by_their_strides():
    packed = (randn(2, 600, 4, 384) / 8).bfloat16().cuda()
    q, k, v, b, c, g = packed.split(64, -1)
    g = -g.abs()
    want = scans.delta(*(x.contiguous() for x in (q, k, v)), None, g, b_BTHK=b.contiguous(), c_BTHK=c.contiguous())
    got = scans.delta(q, k, v, None, g, b_BTHK=b, c_BTHK=c)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


if __name__ == "__main__":
    interpreted()
