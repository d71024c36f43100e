"""The Triton kernels: outputs, state and every gradient equal the torch reference; the dispatch says what is there.

Without a GPU the kernels run in Triton's interpreter, number by number, in a process of its own (the variable
TRITON_INTERPRET is read when triton is imported). That holds the arithmetic, not what the compiler makes of it: the
tests of the second half need a GPU.
"""

import json
import types

import contract
import interpreter
import pytest
import torch
from test_scans import randn

from postx import scans
from postx.scans import gpu_blocks

MISSING = "triton is not installed (there are builds of it for Linux only)"
needs_triton = pytest.mark.skipif(not scans.has_triton(), reason=MISSING)
on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")


def unit(x):
    return x / x.norm(dim=-1, keepdim=True)


def table(g_axes, B, T, H, K, V):
    """What both table recurrences take: q, k, v, g or None, S; q and k with fewer heads."""
    sizes = {"B": B, "T": T, "H": H, "K": K}
    g = None if g_axes is None else -randn(*(sizes[axis] for axis in g_axes), seed=9).abs()
    q, k = randn(B, T, max(1, H // 2), K), unit(randn(B, T, 1, K, seed=1))
    return q, k, randn(B, T, H, V, seed=2), g, randn(B, H, K, V, seed=3)


def decay(g_axes, read="after", bonus=False):
    """(function of (impl, lengths, *inputs), inputs of sizes B, T, H, K, V)."""

    def run(impl, lengths, q, k, v, g, S, u):
        return scans.decay(q, k, v, g, S, read=read, u_HK=u, lengths_B=lengths, impl=impl)

    def inputs(B, T, H, K, V):
        return *table(g_axes, B, T, H, K, V), randn(H, K, seed=4) if bonus else None

    return run, inputs


def delta(g_axes, read="after", free=True, beta=True):
    def run(impl, lengths, q, k, v, beta, g, S, b, c):
        return scans.delta(q, k, v, beta, g, S, b_BTHK=b, c_BTHK=c, read=read, lengths_B=lengths, impl=impl)

    def inputs(B, T, H, K, V):
        q, k, v, g, S = table(g_axes, B, T, H, K, V)
        rate = randn(B, T, H, seed=4).sigmoid() if beta else None
        b, c = (unit(randn(B, T, heads, K, seed=6)) if free else None for heads in (max(1, H // 2), H))
        return q, k, v, rate, g, S, b, c

    return run, inputs


def diagonal(delta_axes="BTD", B_axes="BTN", C_axes="BTN"):
    def run(impl, lengths, u, delta, A, write, read, S):
        return scans.diagonal(u, delta, A, write, read, S, lengths_B=lengths, impl=impl)

    def inputs(B, T, H, K, V):
        D, N = max(1, H * V - 1), K
        sizes = {"B": B, "T": T, "D": D, "N": N}
        delta, write, read = (
            randn(*(sizes[axis] for axis in axes), seed=seed)
            for seed, axes in enumerate((delta_axes, B_axes, C_axes))
        )
        S = randn(B, D, N, seed=6)
        return randn(B, T, D, seed=5), delta.abs() / 2, -randn(D, N, seed=3).abs() * 2, write, read, S

    return run, inputs


CASES = {
    "decay, none": decay(None),
    "decay, a head": decay("H"),
    "decay, a head and key": decay("HK"),
    "decay, a token": decay("BTH"),
    "decay, a token and key": decay("BTHK"),
    "decay, read before": decay("BTHK", "before"),
    "decay, bonus": decay("HK", "before", bonus=True),
    "delta, none": delta(None, free=False),
    "delta, a head and key": delta("HK", free=False, beta=False),
    "delta, a token": delta("BTH", free=False),
    "delta, b and c": delta("BTHK"),
    "delta, read before": delta("BTH", "before", free=False),
    "delta, b and c, read before": delta("H", "before"),
    "diagonal, selective": diagonal(),
    "diagonal, constant": diagonal("D", "DN", "DN"),
    "diagonal, constant B": diagonal("BTD", "DN", "BTN"),
    "diagonal, constant C": diagonal("D", "BTN", "DN"),
}


def results(run, inputs, impl, lengths):
    """Flat: outputs, then the gradients of a random linear loss on them, all on the CPU in float64."""
    inputs = [None if x is None else x.detach().clone().requires_grad_(True) for x in inputs]
    outputs = run(impl, lengths, *inputs)
    loss = sum((y.double() * randn(*y.shape, seed=i).to(y.device)).sum() for i, y in enumerate(outputs))
    grads = torch.autograd.grad(loss, [x for x in inputs if x is not None])
    assert [g.dtype for g in grads] == [x.dtype for x in inputs if x is not None]
    assert all(x.isfinite().all() for x in (*outputs, *grads))
    return [x.detach().cpu().double() for x in (*outputs, *grads)]


def worst(got, want):
    """The largest difference of any, each by its own scale."""
    return max(contract.error(a, b) for a, b in zip(got, want, strict=True))


# ---------------------------------------------------------------- in the interpreter

SMALL = (3, 2, 5, 6)  # T, H, K, V: two chunks of tokens and two blocks of values, the second ones cut short


def interpreted():
    """{case: largest difference}, printed: the body of the process that `differences` starts."""
    from postx.scans import gpu_ops

    interpreter.install()
    gpu_ops.CHUNK, found = 2, {}
    gpu_blocks.diagonal = lambda *_: (8, 1, 2, 1, 2)  # two segments of one chunk, the second cut short
    for i, (name, (run, make)) in enumerate(CASES.items()):
        inputs, lengths = make(1 + i % 2, *SMALL), torch.tensor([3, 1]) if i % 2 else None
        found[name] = worst(*(results(run, inputs, impl, lengths) for impl in ("triton", "reference")))
    # The interpreter multiplies the bits of bfloat16.
    for name in ("in_chunks", "keys_in_chunks", "delta_in_chunks"):
        setattr(scans.choice, name, lambda *_: False)
    for name in ("decay, a token", "delta, a token", "diagonal, selective"):
        run, make = CASES[name]
        half = [x if x is None else x.bfloat16() for x in make(1, 3, 1, 5, 6)]
        wide = [x if x is None else x.double() for x in half]
        y, S = run("triton", None, *half)
        if (y.dtype, S.dtype) != (torch.bfloat16, torch.float32):
            raise TypeError(f"{name}: expected bfloat16 and float32, got {y.dtype} and {S.dtype}")
        got, want = results(run, half, "triton", None), results(run, wide, "reference", None)
        found[f"{name}, bfloat16"] = worst(got, want)
    print(json.dumps(found))


@pytest.fixture(scope="module")
def differences():
    return interpreter.differences(__file__)


@needs_triton
@pytest.mark.parametrize("name", CASES)
def test_interpreted_kernel_equals_the_reference(name, differences):
    assert differences[name] <= 1e-9


@needs_triton
@pytest.mark.parametrize("name", ["decay, a token", "delta, a token", "diagonal, selective"])
def test_interpreted_bfloat16_differs_by_rounding_only(name, differences):
    assert differences[f"{name}, bfloat16"] <= 2e-2


# ---------------------------------------------------------------- the dispatch


@pytest.mark.parametrize("scan", [scans.decay, scans.delta])
def test_triton_is_refused_by_name_on_a_cpu(scan):
    x = torch.ones(1, 2, 1, 3)
    there = "impl: 'triton' is not available here; there are 'auto', 'reference', 'numba'"
    with pytest.raises(ValueError, match=there):
        scan(x, x, x, impl="triton")


@pytest.mark.parametrize(
    ("installed", "kernel", "auto"), [(1, 1, "triton"), (1, 0, "reference"), (0, 1, "reference")]
)
def test_auto_on_a_gpu_takes_triton_where_there_is_a_kernel(monkeypatch, installed, kernel, auto):
    monkeypatch.setattr(scans.choice, "has_triton", lambda: bool(installed))
    x = types.SimpleNamespace(device=torch.device("cuda"), is_cuda=True)
    assert scans.choose("auto", x, bool(kernel)) == auto
    assert scans.choose("reference", x, bool(kernel)) == "reference"
    if auto == "reference":
        with pytest.raises(
            ValueError, match="impl: 'triton' is not available here; there are 'auto', 'reference'$"
        ):
            scans.choose("triton", x, bool(kernel))


# ---------------------------------------------------------------- on a GPU

BOUNDS = {torch.float64: 1e-9, torch.float32: 5e-5, torch.bfloat16: 4e-2}
# (B, T, H, K, V), ragged: one of each; cut chunks and blocks; whole ones; the widest tile of each kind. Each kernel
# is compiled for each line, so the lines are few.
LINES = [
    ((1, 1, 1, 1, 1), False, torch.float32),
    ((2, 37, 4, 48, 20), True, torch.float32),
    ((2, 37, 4, 48, 20), True, torch.float64),
    ((3, 64, 2, 64, 64), False, torch.float32),
    ((3, 64, 2, 64, 64), False, torch.bfloat16),
    ((2, 50, 2, 128, 72), True, torch.float32),
    ((1, 33, 1, 256, 40), False, torch.float32),
]


def cuda(x):
    return None if x is None else x.cuda()


@on_gpu
@needs_triton
@pytest.mark.parametrize(("size", "ragged", "dtype"), LINES, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_compiled_kernel_equals_the_float64_reference(name, size, ragged, dtype):
    run, make = CASES[name]
    if name.startswith("diagonal"):
        size = (*size[:3], min(size[3], scans.MOST_STATES), size[4])
    inputs = [None if x is None else x.to(dtype) for x in make(*size)]
    lengths = torch.arange(size[0]) * size[1] // max(1, size[0] - 1) if ragged else None  # from none to all
    want = results(run, [None if x is None else x.double() for x in inputs], "reference", lengths)
    got = results(run, [cuda(x) for x in inputs], "triton", cuda(lengths))
    assert worst(got, want) <= BOUNDS[dtype]


@on_gpu
@needs_triton
@pytest.mark.parametrize("name", [name for name in CASES if name.startswith("diagonal")])
def test_a_long_row_of_few_channels_is_cut_into_segments(name):
    run, make = CASES[name]
    size, lengths = (2, 1100, 1, 16, 25), torch.tensor([1100, 700])
    assert gpu_blocks.diagonal(2, 1100, 24, 16)[-1] > 1
    want = results(run, make(*size), "reference", lengths)
    got = results(run, [cuda(x) for x in make(*size)], "triton", cuda(lengths))
    assert worst(got, want) <= BOUNDS[torch.float64]


@on_gpu
@needs_triton
@pytest.mark.parametrize("name", CASES)
def test_two_runs_agree_to_the_last_bit(name):
    run, make = CASES[name]
    inputs = [None if x is None else x.float().cuda() for x in make(2, 100, 2, 64, 64)]
    first, second = (results(run, inputs, "triton", None) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@on_gpu
@needs_triton
@pytest.mark.parametrize("name", ["decay, a token", "delta, a token", "diagonal, selective"])
def test_a_training_step_can_be_captured_in_a_graph(name):
    run, make = CASES[name]
    inputs = [None if x is None else x.float().cuda().requires_grad_(True) for x in make(2, 40, 2, 16, 16)]
    held = [x for x in inputs if x is not None]

    def step():
        return torch.autograd.grad(run("auto", None, *inputs)[0].square().sum(), held)

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # compiled before the capture
        want = [g.clone() for g in step()]
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = step()
    for g in got:
        g.fill_(torch.nan)
    graph.replay()
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


if __name__ == "__main__":
    interpreted()
