"""The scans on a CPU beside what people would use instead, and beside what this machine can do at best.

    python -m benchmarks --only scans [--small] [--threads N]

All of a table is measured in one run, medians, float32. Ratios carry over to other machines, milliseconds do not.
A peer that is not installed, runs out of memory, or would take minutes is reported as that.
"""

import importlib
import os
import statistics
import time

import numba
import numpy as np
import torch
from torch.nn.functional import scaled_dot_product_attention

from postx import scans
from postx.mixers import mamba, ssd
from postx.scans import lanes
from postx.scans.runtime import FASTMATH

PATIENCE = 20.0  # seconds that one call may take; above that the longer sequences are left out


def seconds(function, budget=1.5):
    """Median time of a call after one to warm up; at least 3 calls, and as many as fit the budget."""
    function()
    times = []
    while len(times) < 3 or (sum(times) < budget and len(times) < 50):
        began = time.perf_counter()
        function()
        times.append(time.perf_counter() - began)
        if times[0] > PATIENCE / 4:
            break
    return statistics.median(times)


def limit_memory():
    """Let an allocation beyond what is free fail, where the system allows it, rather than end the process."""
    try:
        import resource
    except ImportError:  # not on Windows
        return
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_DATA, (int(free * 0.9), resource.RLIM_INFINITY))


class Peer:
    """One column of a table: measured at rising lengths until it is missing, out of memory or too slow."""

    def __init__(self, name, build):
        self.name, self.build, self.last, self.why = name, build, None, None

    def measure(self, T, growth=4):
        if self.why is None and self.last is not None and self.last * growth > PATIENCE:
            self.why = "too slow"
        if self.why is None:
            try:
                self.last = seconds(self.build(T))
                return self.last
            except ImportError as error:
                self.why = f"no {error.name}"
            except RuntimeError as error:
                if "allocate" not in str(error):
                    raise
                self.why = "no memory"
            except MemoryError:
                self.why = "no memory"
        return self.why


def table(title, lengths, peers, note=lambda T, best: ""):
    """Milliseconds of each peer, and how many times the first one's that is."""
    print(f"\n{title}")
    print(f"{'T':>7}" + "".join(f"{peer.name:>24}" for peer in peers))
    for T in lengths:
        found = [peer.measure(T) for peer in peers]
        cells = []
        for x in found:
            if isinstance(x, str):
                cells.append(x)
            else:
                ratio = f" ({x / found[0]:.1f}x)" if x is not found[0] else ""
                cells.append(f"{1e3 * x:.2f}{ratio}")
        print(f"{T:>7}" + "".join(f"{cell:>24}" for cell in cells) + note(T, found[0]), flush=True)


# ---------------------------------------------------------------- the machine's own limits


@numba.njit(parallel=True, fastmath=FASTMATH)
def _triad(a, b, c):
    for i in numba.prange(a.size):
        a[i] = b[i] + np.float32(3) * c[i]


@numba.njit(parallel=True, fastmath=FASTMATH)
def _math_exp(x, out):
    for i in numba.prange(x.shape[0]):
        for j in range(x.shape[1]):
            out[i, j] = np.exp(x[i, j])


@numba.njit(parallel=True)
def _lanes_exp2(x, out, rounds):
    for i in numba.prange(x.shape[0]):
        for _ in range(rounds):
            for j in range(i * x.shape[1], (i + 1) * x.shape[1], lanes.LANES):
                lanes.store(out, j, lanes.exp2(lanes.load(x, j)))


def ceilings():
    n = 32_000_000
    a, b, c = (np.ones(n, np.float32) for _ in range(3))
    x = -np.random.default_rng(0).random((64, 2048), dtype=np.float32)
    out = np.empty_like(x)
    m = torch.randn(2048, 2048)
    limits = {
        "triad GB/s": 12 * n / seconds(lambda: _triad(a, b, c)) / 1e9,
        "lanes.exp2 Gexp/s": 20 * x.size / seconds(lambda: _lanes_exp2(x, out, 20)) / 1e9,
        "math.exp Gexp/s": x.size / seconds(lambda: _math_exp(x, out)) / 1e9,
        "sgemm GFLOP/s": 2 * 2048**3 / seconds(lambda: m @ m) / 1e9,
    }
    print("This machine, in this run: " + ", ".join(f"{name} {value:.1f}" for name, value in limits.items()))
    return limits


# ---------------------------------------------------------------- selective scan, B=1, D=1536, N=16

D, N = 1536, 16


def _selective(run, backward):
    """build(T) for a peer: run(u, delta, A, write, read) -> y, forward alone or with every gradient."""

    def build(T):
        (u, delta, write, read), w = mamba.example(T, B=1, D=D, N=N)
        x = [part.float() for part in (u, delta, w["A_DN"], write, read)]
        prepared = run()
        if not backward:
            return lambda: prepared(*x)
        x = [part.requires_grad_(True) for part in x]
        return lambda: torch.autograd.grad(prepared(*x).sum(), x)

    return build


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
    _selective(_ours, False)(16)()
    middle = time.perf_counter()
    _selective(_ours, True)(16)()
    print(
        f"\nfirst call, compiled or read from the cache: forward {middle - began:.1f} s, "
        f"backward {time.perf_counter() - middle:.1f} s"
    )
    for name, backward in (("forward", False), ("forward and backward", True)):
        columns = [Peer(peer, _selective(run, backward)) for peer, run in peers.items()]
        title = f"selective scan, {name}, B=1 D={D} N={N}, ms (times numba's)"
        table(title, lengths, columns, (lambda T, best: "") if backward else rate)


# ---------------------------------------------------------------- SSD, B=1, H=24, K=128, V=64

H, K, V = 24, 128, 64


def _ssd(run):
    def build(T):
        x = [part.float() for part in ssd.example(T, B=1, H=H, G=1, K=K, V=V)[0]]
        prepared = run(T)
        return lambda: prepared(*x)

    return build


def _transformers2(T):
    module = importlib.import_module("transformers.models.mamba2.modeling_mamba2")
    dt, A = torch.ones(1, T, H), -torch.ones(H)  # the same work whatever the decays are
    return lambda q, k, v, g: module.mamba2_chunk_scan(v, dt, A, k, q, 256)


def _attention(T):
    q, k, v = (torch.randn(1, H, T, V) for _ in range(3))
    return lambda *x: scaled_dot_product_attention(q, k, v, is_causal=True)


def duality(lengths):
    columns = [
        Peer("numba", _ssd(lambda T: lambda *x: ssd.recurrent(*x, impl="numba")[0])),
        Peer("chunked torch", _ssd(lambda T: lambda *x: ssd.chunked(*x)[0])),
        Peer("transformers", _ssd(_transformers2)),
        Peer("attention", _ssd(_attention)),
    ]
    table(f"SSD, forward, B=1 H={H} K={K} V={V}; attention with {H} heads of {V}, ms (times numba's)", lengths, columns)


def main(small=False):
    limit_memory()
    load = f", load {os.getloadavg()[0]:.1f} before the start" if hasattr(os, "getloadavg") else ""
    print(f"{numba.get_num_threads()} numba threads, {torch.get_num_threads()} torch threads{load}")
    limits = ceilings()
    selective((512,) if small else (512, 2048, 8192, 32768), limits)
    duality((32, 128, 512, 2048) if small else (32, 64, 128, 512, 2048, 8192, 16384))
