"""The chunked Triton kernels and the affine one: outputs, states and gradients equal the torch reference.

As in `test_scans_triton`, Triton's interpreter runs them where there is no GPU, in a process of its own and with
blocks of 16, so that a few dozen tokens make several chunks, cut ones, and several blocks. What the compiler makes of
them needs a GPU: the tests of the last part.
"""

import json
import math
import weakref

import interpreter
import pytest
import torch
from test_scans import randn
from test_scans_triton import BOUNDS, cuda, needs_triton, on_gpu, results, unit, worst

from postx import scans
from postx.scans import gpu_blocks


def keys(B, T, K, readers, writers):
    return randn(B, T, readers, K) / K**0.5, unit(randn(B, T, writers, K, seed=1))


def fading(axes, **sizes):
    return None if axes is None else -randn(*(sizes[axis] for axis in axes), seed=9).abs()


def decay(axes, readers=2, writers=2, steep=False):
    """(function of (impl, lengths, *inputs), inputs of sizes B, T, H, K, V)."""

    def run(impl, lengths, q, k, v, g, S):
        return scans.decay(q, k, v, g, S, lengths_B=lengths, impl=impl)

    def inputs(B, T, H, K, V):
        g = fading(axes, B=B, T=T, H=H)
        if steep:  # nothing is left of what came before, or almost nothing: a running sum would lose all later digits
            g[:, ::7], g[:, 3::11] = -math.inf, -1e9
        return *keys(B, T, K, readers, writers), randn(B, T, H, V, seed=2), g, randn(B, H, K, V, seed=3)

    return run, inputs


def frozen():
    """`decay` with a log-decay that learns nothing, as RetNet's: its gradients come from the kernel of one pass."""
    run_all, inputs_all = decay("BTH")

    def run(impl, lengths, q, k, v, S):
        g = fading("BTH", B=v.shape[0], T=v.shape[1], H=v.shape[2]).to(v)
        return run_all(impl, lengths, q, k, v, g, S)

    def inputs(*sizes):
        q, k, v, _, S = inputs_all(*sizes)
        return q, k, v, S

    return run, inputs


def keyed(axes, readers=2, writers=2, faders=None, read="after", bonus=False, steep=False, strided=False, learn=True):
    """`decay` with one decay a key, or with the old table read."""

    def run(impl, lengths, q, k, v, g, S, u):
        if not learn:
            g = fading(axes, B=v.shape[0], T=v.shape[1], H=v.shape[2], K=k.shape[3]).to(v)
        if strided:  # heads before tokens, and a key's log-decays two numbers apart
            q, k, v = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v))
            g = torch.stack([g, g], -1)[..., 0]
        return scans.decay(q, k, v, g, S, read=read, u_HK=u, lengths_B=lengths, impl=impl)

    def inputs(B, T, H, K, V):
        g = fading(axes, B=B, T=T, H=faders or H, K=K)
        if steep:
            g[:, ::7], g[:, 3::11, :, ::2], g[:, 5::9, :, 1::3] = -math.inf, -1e9, 0
        u = randn(H, K, seed=5) if bonus else None
        g = g if learn else None
        return *keys(B, T, K, readers, writers), randn(B, T, H, V, seed=2), g, randn(B, H, K, V, seed=3), u

    return run, inputs


def delta(axes, readers=2, writers=2, same=False):
    def run(impl, lengths, q, k, v, g, beta, S):
        return scans.delta(q, k, v, beta, g, S, lengths_B=lengths, impl=impl)

    def inputs(B, T, H, K, V):
        q, k = keys(B, T, K, readers, writers)
        k = k[:, :1].expand(-1, T, -1, -1).contiguous() if same else k  # each token erases all that the last one wrote
        beta = torch.ones(B, T, H, dtype=torch.float64) if same else 2 * randn(B, T, 1, seed=4).sigmoid()
        return q, k, randn(B, T, H, V, seed=2), fading(axes, B=B, T=T, H=H), beta, randn(B, H, K, V, seed=3)

    return run, inputs


def affine():
    def run(impl, lengths, g, b, S):
        return scans.affine(g, b, S, lengths_B=lengths, impl=impl)

    def inputs(B, T, H, K, V):
        return -randn(B, T, H * V).abs(), randn(B, T, H * V, seed=1), randn(B, H * V, seed=2)

    return run, inputs


CASES = {
    "decay, none": decay(None),
    "decay, a head": decay("H"),
    "decay, a token": decay("BTH"),
    "decay, a token, shared heads": decay("BTH", 1, 1),
    "decay, none, shared heads": decay(None, 2, 1),
    "decay, frozen": frozen(),
    "decay, steep": decay("BTH", steep=True),
    "keys, a head": keyed("HK"),
    "keys, a token": keyed("BTHK"),
    "keys, a token, shared heads": keyed("BTHK", 1, 2, faders=1),
    "keys, strided": keyed("BTHK", strided=True),
    "keys, frozen": keyed("BTHK", learn=False),
    "keys, steep": keyed("BTHK", steep=True),
    "keys, steep, read before": keyed("BTHK", read="before", bonus=True, steep=True),
    "keys, read before": keyed("BTHK", 2, 1, read="before"),
    "keys, bonus": keyed("BTHK", read="before", bonus=True),
    "keys, bonus, a head": keyed("HK", read="before", bonus=True, faders=1),
    "none, read before": keyed(None, read="before"),
    "one decay, bonus": keyed("BTH", read="before", bonus=True),
    "delta, none": delta(None),
    "delta, a head": delta("H", 1, 2),
    "delta, a token": delta("BTH", 2, 1),
    "delta, the same key": delta(None, same=True),
    "affine": affine(),
}

# ---------------------------------------------------------------- in the interpreter

BLOCK = (16, 16, 4, 1)
KEYS_ROW = {"walk": BLOCK, "outputs": (*BLOCK, 1), "gradients": (*BLOCK, 1), "chunk": 16}
DECAY_ROW = dict.fromkeys(("fused", "walk", "dv", "dk", "dq", "dg"), BLOCK) | {"chunk": 16}
DELTA_ROW = dict.fromkeys(("forward", "backward", "gradients"), BLOCK[1:]) | {"chunk": 16, "solve": 4}
HALVES = "decay, a token", "keys, a token", "keys, bonus", "delta, a token"
WAYS = "decay, none", "decay, a token, shared heads"
SIZE = (1, 21, 2, 17, 18)  # B, T, H, K, V: two chunks and two blocks of each width, the second ones cut short


def interpreted():
    """{case: largest difference}, printed: the body of the process that `differences` starts."""
    interpreter.install()
    ops = scans.choice.kernels("chunked_ops")
    segments = gpu_blocks.segments
    scans.choice.in_chunks = scans.choice.keys_in_chunks = lambda *_: True
    scans.choice.delta_in_chunks = lambda *_: "plain"
    gpu_blocks.decay, gpu_blocks.delta, gpu_blocks.keys = lambda *_: row, lambda *_: DELTA_ROW, lambda *_: KEYS_ROW
    gpu_blocks.AFFINE, row, found = (16, 8, 4, 1), DECAY_ROW, {}
    make_tables, made, alive = ops.Work.tables, [], []

    def tables(*args):
        alive.append(sum(table() is not None for table in made))
        table = make_tables(*args)
        made.append(weakref.ref(table))
        return table

    ops.Work.tables = tables
    for i, (name, (run, make)) in enumerate(CASES.items()):
        B, lengths = 1 + i % 2, torch.tensor([21, 9]) if i % 2 else None
        inputs = make(B, *SIZE[1:])
        found[name] = worst(*(results(run, inputs, impl, lengths) for impl in ("triton", "reference")))
    for name in WAYS:  # time in segments, tables in memory, heads in turns
        run, make = CASES[name]
        inputs = make(1, 40, *SIZE[2:])
        gpu_blocks.segments, gpu_blocks.AT_ONCE, gpu_blocks.SHARE = lambda programs, chunks: 2, 1, 1
        for row in (DECAY_ROW, DECAY_ROW | {"fused": None}):
            how = "fused" if row["fused"] else "tables"
            found[f"{name}, {how}"] = worst(*(results(run, inputs, impl, None) for impl in ("triton", "reference")))
        gpu_blocks.segments, row = segments, DECAY_ROW
    for name in HALVES:  # not bfloat16: the interpreter multiplies its bits
        run, make = CASES[name]
        half = [None if x is None else x.half() for x in make(*SIZE)]
        wide = [None if x is None else x.double() for x in half]
        got, want = results(run, half, "triton", None), results(run, wide, "reference", None)
        found[f"{name}, float16"] = worst(got, want)
    print(json.dumps(found | {"tables that others are made beside": max(alive)}))


@pytest.fixture(scope="module")
def differences():
    return interpreter.differences(__file__)


SPLIT = [f"{name}, {how}" for name in WAYS for how in ("fused", "tables")]


@needs_triton
@pytest.mark.parametrize("name", [*CASES, *SPLIT])
def test_interpreted_kernel_equals_the_reference(name, differences):
    assert differences[name] <= 1e-9


@needs_triton
def test_tables_of_one_slice_of_heads_are_gone_before_the_next_ones_are_made(differences):
    assert differences["tables that others are made beside"] == 1


@needs_triton
@pytest.mark.parametrize("name", HALVES)
def test_interpreted_float16_differs_by_rounding_only(name, differences):
    assert differences[f"{name}, float16"] <= 5e-3


# ---------------------------------------------------------------- which blocks are taken


def test_nearest_row_is_by_the_logarithms_of_the_widths():
    table = {(2, 128, 128): "wide", (2, 16, 16): "narrow", (4, 64, 64): "float32"}
    assert gpu_blocks.nearest(table, 2, 40, 60) == "wide"  # 40 is nearer to 16 but not on a logarithmic scale
    assert gpu_blocks.nearest(table, 2, 20, 90) == "narrow"
    assert gpu_blocks.nearest(table, 4, 1, 1000) == "float32"
    assert gpu_blocks.nearest(table, 8, 128, 128) == "float32"


@pytest.mark.parametrize(
    ("dtype", "tokens", "want"),
    [(torch.bfloat16, 64, True), (torch.float16, 64, True), (torch.bfloat16, 63, False), (torch.float32, 64, False)],
)
def test_keys_that_decay_on_their_own_go_in_chunks_where_that_is_faster(dtype, tokens, want):
    assert scans.choice.keys_in_chunks(torch.zeros(1, tokens, 1, 1, dtype=dtype)) is want


def test_blocks_hold_the_width_and_no_half_block_is_narrower_than_64():
    assert [gpu_blocks.whole(size, 4) for size in (1, 16, 17, 129)] == [16, 16, 32, 256]
    assert [gpu_blocks.whole(size, 2) for size in (1, 64, 65)] == [64, 64, 128]
    assert gpu_blocks.fit(64, 20, 4) == 32
    assert gpu_blocks.fit(64, 500, 4) == 64


@pytest.mark.parametrize(
    ("heads", "groups", "want"), [(64, (1, 1), 8), (4, (4, 4), 1), (12, (2, 4), 3), (6, (1, 3), 2)]
)
def test_heads_that_are_added_up_share_q_and_k(heads, groups, want):
    assert gpu_blocks.share(heads, *groups) == want


@needs_triton
@pytest.mark.parametrize(("groups", "want"), [((1, 1), 6), ((3, 1), 4), ((3, 2), 2), ((12, 2), 6), ((12, 12), 8)])
def test_slices_of_heads_take_whole_groups_or_a_part_of_one(groups, want, monkeypatch):
    """Of 12 heads 8 fit, of 100 bytes each."""
    monkeypatch.setattr(gpu_blocks, "AT_ONCE", 800)
    share = min(2, gpu_blocks.share(12, *groups))
    there = scans.choice.kernels("chunked_ops").slices(12, 100, torch.zeros(1), share, *groups)
    assert there == [(h0, min(want, 12 - h0)) for h0 in range(0, 12, want)]


def test_time_is_cut_only_where_programs_are_few():
    assert gpu_blocks.segments(512, 64) == 1
    assert gpu_blocks.segments(64, 2048) == 264 // 64
    assert gpu_blocks.segments(1, 80) == 10  # no segment below 8 chunks
    assert gpu_blocks.segments(1, 3) == 1


# ---------------------------------------------------------------- on a GPU

LINES = [
    ((2, 137, 4, 20, 40), True),
    ((2, 300, 4, 128, 64), False),
    ((1, 200, 4, 128, 128), False),
    ((1, 100, 4, 100, 160), True),
    ((1, 3000, 2, 32, 32), False),  # few heads, many tokens: segments
]


@on_gpu
@needs_triton
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("size", "ragged"), LINES, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_compiled_kernel_equals_the_float64_reference(name, size, ragged, dtype):
    run, make = CASES[name]
    inputs = [None if x is None else x.to(dtype) for x in make(*size)]
    lengths = (torch.arange(size[0]) + 1) * size[1] // (size[0] + 1) if ragged else None
    wide = [None if x is None else x.double().cuda() for x in inputs]
    want = results(run, wide, "reference", cuda(lengths))
    got = results(run, [cuda(x) for x in inputs], "triton", cuda(lengths))
    again = results(run, [cuda(x) for x in inputs], "triton", cuda(lengths))
    assert worst(got, want) <= BOUNDS[dtype]
    assert all(torch.equal(a, b) for a, b in zip(got, again, strict=True))


@on_gpu
@needs_triton
def test_inputs_are_read_by_their_strides():
    packed = randn(2, 100, 4, 192).bfloat16().cuda()
    q, k, v = packed.split(64, -1)
    want = scans.decay(*(x.contiguous() for x in (q, k, v)))
    got = scans.decay(q, k, v)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


if __name__ == "__main__":
    interpreted()
