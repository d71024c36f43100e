"""The scans on a CPU beside what people would use instead, and beside what this machine can do at best.

    python -m benchmarks --only scans [--small] [--threads N] [--json FILE]

All of a table is measured in one run, medians, float32. Ratios carry over to other machines, milliseconds do not.
A peer that is not installed, runs out of memory, or would take over a minute is reported as that.
"""

import importlib
import os
import time

import numba
import torch
from torch.nn.functional import normalize, scaled_dot_product_attention

from benchmarks.measure import RESULTS, Peer, ceilings, limit_memory, seconds, table, timed
from postx import scans
from postx.mixers import mamba, ssd
from postx.scans import cpu_selective, delta_chunked
from postx.scans.decay_chunked import decay_chunked

BOTH = {"forward": False, "forward and backward": True}

# ---------------------------------------------------------------- selective scan, B=1, D=1536, N=16

D, N = 1536, 16


def _selective(T):
    (u, delta, write, read), w = mamba.example(T, B=1, D=D, N=N)
    return [part.float() for part in (u, delta, w["A_DN"], write, read)]


def _ours():
    return lambda *x: scans.diagonal(*x, impl="numba")[0]


def _associative():
    skip = torch.zeros(D)
    return lambda u, delta, A, write, read: mamba.chunked(u, delta, write, read, A_DN=A, skip_D=skip)[0]


def _pscan():
    pscan = importlib.import_module("mambapy.pscan").pscan

    def run(u, delta, A, write, read):
        written = delta[..., None] * write[:, :, None] * u[..., None]
        return (pscan(torch.exp(delta[..., None] * A), written) @ read[..., None]).squeeze(3)

    return run


def _transformers():
    module = importlib.import_module("transformers.models.mamba.modeling_mamba")

    def run(u, delta, A, write, read):
        return module.mamba_selective_scan(*(x.mT for x in (u, delta)), A, write.mT, read.mT).mT

    return run


def _loop():
    return lambda *x: scans.diagonal(*x, impl="reference")[0]


def selective(lengths, limits):
    peers = {
        "numba": _ours,
        "mambapy pscan": _pscan,
        "chunked torch": _associative,
        "transformers loop": _transformers,
        "torch loop": _loop,
    }

    def rate(T, best):
        exps = T * D * N / best / 1e9
        return f"   {exps:.1f} Gexp/s, {exps / limits['lanes.exp2 Gexp/s']:.0%} of the ceiling"

    began = time.perf_counter()
    timed(_ours, _selective, False)(16)()
    middle = time.perf_counter()
    timed(_ours, _selective, True)(16)()
    print(
        f"\nfirst call, compiled or read from the cache: forward {middle - began:.1f} s, "
        f"backward {time.perf_counter() - middle:.1f} s"
    )
    for name, backward in BOTH.items():
        columns = [Peer(peer, timed(run, _selective, backward)) for peer, run in peers.items()]
        title = f"selective scan, {name}, B=1 D={D} N={N}, ms (times numba's)"
        table(title, lengths, columns, (lambda T, best: "") if backward else rate)


# ---------------------------------------------------------------- SSD, B=1, H=24, K=128, V=64

H, K, V = 24, 128, 64


def _ssd(T):
    return [part.float() for part in ssd.example(T, B=1, H=H, G=1, K=K, V=V)[0]]


def _transformers2():
    module = importlib.import_module("transformers.models.mamba2.modeling_mamba2")

    def run(q, k, v, g):  # the same work whatever the decays are
        return module.mamba2_chunk_scan(v, torch.ones_like(g), -torch.ones(H), k, q, 256)[0]

    return run


def _attention():
    return lambda *qkv: scaled_dot_product_attention(*qkv, is_causal=True)


def _qkv(T):
    return [torch.randn(1, H, T, V) for _ in range(3)]


def duality(lengths):
    for name, backward in BOTH.items():
        columns = [
            Peer("numba", timed(lambda: lambda *x: ssd.recurrent(*x, impl="numba")[0], _ssd, backward)),
            Peer("chunked torch", timed(lambda: lambda *x: ssd.chunked(*x)[0], _ssd, backward)),
            Peer("transformers", timed(_transformers2, _ssd, backward)),
            Peer("attention", timed(_attention, _qkv, backward)),
        ]
        title = f"SSD, {name}, B=1 H={H} K={K} V={V}; attention with {H} heads of {V}, ms (times numba's)"
        table(title, lengths, columns)


# ---------------------------------------------------------------- decay and delta, B=1, H=16, K=V=64

HEADS, WIDTH = 16, 64


def _tokens(T, *axes):
    return [torch.randn(1, T, HEADS, *(WIDTH,) * n) for n in axes]


def _decay(kind):
    def inputs(T):
        q, k, v = _tokens(T, 1, 1, 1)
        if kind == "none":
            return [q, k, v]
        rate = torch.randn(HEADS) if kind == "constant" else _tokens(T, 1)[0]
        return [q, k, v, -rate.abs() / 10]

    return inputs


def _delta(kind):
    def inputs(T):
        q, k, v, b, c = _tokens(T, 1, 1, 1, 1, 1)
        beta, g = (x.sigmoid() for x in _tokens(T, 0, 0 if kind == "Gated DeltaNet" else 1))
        k, c = normalize(k, dim=-1), normalize(c, dim=-1)
        if kind == "RWKV-7":  # which erases with other keys than it writes
            return [q, k, v, -g / 10, c * 0.5, c]
        return [q, k, v, beta] + ([-g / 10] if kind == "Gated DeltaNet" else [])

    return inputs


def _free(scan, **more):
    """`scan` called as RWKV-7 does: without beta, with b and c of its own."""
    return lambda: lambda q, k, v, g, b, c: scan(q, k, v, None, g, b_BTHK=b, c_BTHK=c, **more)[0]


def _wy_chunks(q, k, v, beta, g=None, **more):
    S = torch.zeros(1, HEADS, WIDTH, WIDTH)
    chunk = 64 if g is None or g.dim() == 3 else 16  # a decay for each key needs a table [chunk, chunk, K]
    return delta_chunked.in_chunks(q, k, v, beta, g, S, lengths_B=None, chunk=chunk, **more)


def tables(lengths):
    decays = {
        "numba": lambda: lambda *x: scans.decay(*x, impl="numba")[0],
        "chunked torch": lambda: lambda *x: decay_chunked(*x)[0],
        "torch loop": lambda: lambda *x: scans.decay(*x, impl="reference")[0],
    }
    deltas = {
        "numba": lambda: lambda *x: scans.delta(*x, impl="numba")[0],
        "chunked torch": lambda: lambda *x: _wy_chunks(*x)[0],
        "torch loop": lambda: lambda *x: scans.delta(*x, impl="reference")[0],
    }
    frees = {
        "numba": _free(scans.delta, impl="numba"),
        "chunked torch": _free(_wy_chunks),
        "torch loop": _free(scans.delta, impl="reference"),
    }
    rows = [(f"decay {kind}", decays, _decay(kind)) for kind in ("none", "constant", "per key")]
    rows += [(kind, deltas, _delta(kind)) for kind in ("DeltaNet", "Gated DeltaNet")]
    rows += [("RWKV-7", frees, _delta("RWKV-7"))]
    for kind, peers, inputs in rows:
        for name, backward in BOTH.items():
            columns = [Peer(peer, timed(run, inputs, backward)) for peer, run in peers.items()]
            table(f"{kind}, {name}, B=1 H={HEADS} K=V={WIDTH}, ms (times numba's)", lengths, columns)


# ---------------------------------------------------------------- a million tokens


def stream(T, block=8192, channels=256):
    """Blocks through `recurrent`, the state passed on: the time, and by how much the peak of memory still grows."""
    import resource

    def peak():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

    (u, delta, write, read), w = mamba.example(block, B=1, D=channels, N=N)
    z = [x.float() for x in (u, delta, write, read)]
    w, S = {name: x.float() for name, x in w.items()}, None
    _, S = mamba.recurrent(*z, S=S, **w)
    first, began = peak(), time.perf_counter()
    for _ in range(T // block - 1):
        _, S = mamba.recurrent(*z, S=S, **w)
    took, grown = time.perf_counter() - began, peak() - first
    RESULTS.append({"table": "stream", "T": T, "seconds": took, "MB more than the first block": grown})
    print(
        f"\n{T:,} tokens in blocks of {block}, D={channels}: {took:.1f} s, peak {grown:.0f} MB above the first block's"
    )


def in_pieces(T):
    """One block of channels and a long T: time shared out among the threads, beside one thread."""
    x = [part.float() for part in (torch.randn(1, T, 16), torch.rand(1, T, 16) / 10, -torch.rand(16, N))]
    x += [torch.randn(1, T, N), torch.randn(1, T, N)]

    def run():
        return scans.diagonal(*x, impl="numba")

    shortest = cpu_selective.SHORTEST
    cut = seconds(run)
    cpu_selective.SHORTEST = T
    whole = seconds(run)
    cpu_selective.SHORTEST = shortest
    RESULTS.append({"table": "time in pieces", "T": T, "pieces": cut, "whole": whole})
    print(
        f"\nB=1 D=16 T={T:,}: {1e3 * cut:.0f} ms in pieces, {1e3 * whole:.0f} ms whole ({whole / cut:.2f}x)"
    )


def main(small=False):
    limit_memory()
    load = f", load {os.getloadavg()[0]:.1f} before the start" if hasattr(os, "getloadavg") else ""
    print(f"{numba.get_num_threads()} numba threads, {torch.get_num_threads()} torch threads{load}")
    limits = ceilings()
    selective((512,) if small else (512, 2048, 8192, 32768), limits)
    duality((32, 128, 512, 2048) if small else (32, 64, 128, 512, 2048, 8192, 16384))
    tables((512,) if small else (2048, 8192))
    in_pieces(100_000 if small else 1_000_000)
    stream(100_000 if small else 1_000_000)
