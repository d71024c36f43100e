"""The scans on a CPU beside chunked torch, attention and a parallel scan: python -m benchmarks.cpu [--json FILE].

Float32, one sequence. A row holds medians in ms of the forward pass alone, and of forward and backward with every
input's gradient of the outputs' sum; `spread_forward` and `spread_both` are their first and third quartiles. The peers
of a case take turns, so that what else the machine does meets all of them. `chunked torch C` is `decay_chunked` or
`delta_chunked` with chunks of C, differentiated by autograd. --json adds to the file's rows, or replaces those of the
same case, T and threads, so that a record can be made in pieces (--only, --T, --threads).
"""

import argparse
import datetime
import json
import platform
import statistics
import time
from pathlib import Path

import numba
import torch
from torch.nn.functional import normalize, pad, scaled_dot_product_attention

from postx import scans
from postx.scans import cpu_selective, delta_chunked
from postx.scans.decay_chunked import decay_chunked

CHUNKS = 32, 64, 128
LEAST, MOST, BUDGET = 5, 30, 1.0  # rounds of a case, and the seconds after which no more than the least are taken


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def table(T, H, G, K, V, *rate):
    """q, k, v and, where `rate` names its axes, a log-decay g."""
    sizes = {"T": (1, T), "H": (H,), "K": (K,)}
    x = normal(1, T, G, K) / K**0.5, normal(1, T, G, K, seed=1), normal(1, T, H, V, seed=2)
    return [*x, *([-normal(*(n for axis in rate for n in sizes[axis]), seed=3).abs() / 10] if rate else [])]


def delta(T, *rate):
    q, k, v, *g = table(T, 16, 16, 64, 64, *rate)
    return [q, normalize(k, dim=-1), v, normal(1, T, 16, seed=4).sigmoid(), *g]


def selective(T, D=1536, N=16):
    step = normal(1, T, D, seed=1).sigmoid() / 10
    return [normal(1, T, D), step, -8 * torch.rand(D, N), normal(1, T, N, seed=2), normal(1, T, N, seed=3)]


class ParallelScan(torch.autograd.Function):
    """h_t = a_t h_(t-1) + x_t over axis 1 in log T rounds, in place, with its own backward: as mambapy does it.

    Work-efficient (Blelloch 1990): up a tree of pairs, and down again. The backward pass is the scan from the end.
    """

    @staticmethod
    def scan(a, h):
        T, step = h.shape[1], 1
        while 2 * step <= T:
            right, left = slice(2 * step - 1, None, 2 * step), slice(step - 1, None, 2 * step)
            h[:, right] += a[:, right] * h[:, left]
            a[:, right] *= a[:, left]
            step *= 2
        while step > 1:
            step //= 2
            right, left = slice(3 * step - 1, None, 2 * step), slice(2 * step - 1, T - step, 2 * step)
            h[:, right] += a[:, right] * h[:, left]
            a[:, right] *= a[:, left]
        return h

    @staticmethod
    def forward(ctx, a, x):
        h = ParallelScan.scan(a.clone(), x.clone())
        ctx.save_for_backward(a, h)
        return h

    @staticmethod
    def backward(ctx, dh):
        a, h = ctx.saved_tensors
        later = pad(a[:, 1:], (0, 0, 0, 0, 0, 1)).flip(1)
        dx = ParallelScan.scan(later, dh.flip(1)).flip(1)
        return dx * pad(h[:, :-1], (0, 0, 0, 0, 1, 0)), dx


def pscan(u, delta, A, write, read):
    written = (delta * u)[..., None] * write[:, :, None]
    return (ParallelScan.apply(torch.exp(delta[..., None] * A), written) @ read[..., None]).squeeze(3)


def attention(T):
    q, k, v = (normal(1, 24, T, 64, seed=seed) for seed in range(3))
    return [q, k, v]


def chunked(form):
    return {f"chunked torch {C}": (None, lambda *x, C=C: form(*x, chunk=C)) for C in CHUNKS}


def delta_form(q, k, v, beta, g=None, *, chunk):
    return delta_chunked.in_chunks(q, k, v, beta, g, None, lengths_B=None, chunk=chunk)[0]


def decay_form(*x, chunk):
    return decay_chunked(*x, chunk=chunk)[0]


DECAY = {"postx": (None, lambda *x: scans.decay(*x)[0])} | chunked(decay_form)
DELTA = {"postx": (None, lambda *x: scans.delta(*x)[0])} | chunked(delta_form)
CAUSAL = {"causal attention": (attention, lambda *x: scaled_dot_product_attention(*x, is_causal=True))}
SCAN = {"postx": (None, lambda *x: scans.diagonal(*x)[0]), "pscan": (None, pscan)}
CASES = {  # its inputs, and who computes it: (other inputs or None, function)
    "SSD, H=24 P=64 N=128 G=1": (lambda T: table(T, 24, 1, 128, 64, "T", "H"), DECAY | CAUSAL),
    "no decay, H=16 K=V=64": (lambda T: table(T, 16, 16, 64, 64), DECAY),
    "constant decay, H=16 K=V=64": (lambda T: table(T, 16, 16, 64, 64, "H"), DECAY),
    "a decay a token and head, H=16 K=V=64": (lambda T: table(T, 16, 16, 64, 64, "T", "H"), DECAY),
    "a decay a key, H=16 K=V=64": (lambda T: table(T, 16, 16, 64, 64, "T", "H", "K"), DECAY),
    "DeltaNet, H=16 K=V=64": (delta, DELTA),
    "Gated DeltaNet, H=16 K=V=64": (lambda T: delta(T, "T", "H"), DELTA),
    "selective, D=1536 N=16": (selective, SCAN),
}
SPLIT = "selective split over time, D=16 N=16"


def turns(calls, least=LEAST):
    """{name: sorted seconds}: a call of each in turn, after one to warm up."""
    for call in calls.values():
        call()
    times, began = {name: [] for name in calls}, time.perf_counter()
    while len(times[next(iter(calls))]) < least or (
        time.perf_counter() - began < BUDGET and len(times[next(iter(calls))]) < MOST
    ):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - start)
    return {name: sorted(found) for name, found in times.items()}


def backward(function, x):
    x = [part.detach().requires_grad_() for part in x]
    return lambda: torch.autograd.grad(function(*x).sum(), x)


def summary(kind, found):
    low, _, high = statistics.quantiles(found, n=4)
    return {f"{kind}_ms": 1e3 * statistics.median(found), f"spread_{kind}": [1e3 * low, 1e3 * high]}


def rows(case, T):
    inputs, peers = CASES[case]
    x = {name: (own or inputs)(T) for name, (own, _) in peers.items()}
    with torch.no_grad():
        forward = turns({name: (lambda f=f, name=name: f(*x[name])) for name, (_, f) in peers.items()})
    both = turns({name: backward(f, x[name]) for name, (_, f) in peers.items()})
    for name in peers:
        yield {"case": case, "T": T, "who": name} | summary("forward", forward[name]) | summary("both", both[name])


def split_rows(T):
    """Sixteen channels and a long T: time shared out among the threads, beside one thread."""
    x, shortest = selective(T, 16), cpu_selective.SHORTEST

    def run(least):
        cpu_selective.SHORTEST = least
        scans.diagonal(*x, impl="numba")
        cpu_selective.SHORTEST = shortest

    with torch.no_grad():
        found = turns({"split": lambda: run(shortest), "whole": lambda: run(T)})
    for name, times in found.items():
        yield {"case": SPLIT, "T": T, "who": f"postx, {name}"} | summary("forward", times)


def processor():
    """The processor's name, where the system tells it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def main():
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cpu", description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", help="parts of the cases' names")
    parser.add_argument("--T", nargs="*", type=int, default=[128, 512, 2048], help="tokens")
    parser.add_argument("--threads", nargs="*", type=int, default=[1], help="numba's and torch's threads alike")
    parser.add_argument("--json", type=Path, help="the file to add the rows to")
    options = parser.parse_args()
    kept = json.loads(options.json.read_text())["rows"] if options.json and options.json.exists() else []
    work = [(rows, case, T) for case in CASES for T in options.T] + [(None, SPLIT, 1_000_000)]
    for threads in options.threads:
        scans.set_threads(threads)
        for function, case, T in work:
            if options.only and not any(part in case for part in options.only):
                continue
            found = list(function(case, T) if function else split_rows(T))
            for row in found:
                row["threads"] = threads
                numbers = [f"{row[key]:10.2f}" if key in row else " " * 10 for key in ("forward_ms", "both_ms")]
                print(f"{case:40}{T:8}{threads:3} {row['who']:20}", *numbers, flush=True)
            kept = [r for r in kept if (r["case"], r["T"], r["threads"]) != (case, T, threads)] + found
            if options.json:
                record = {
                    "device": processor(), "cores": numba.config.NUMBA_NUM_THREADS, "dtype": "float32",
                    "versions": {"torch": torch.__version__, "numba": numba.__version__},
                    "date": str(datetime.date.today()), "rows": kept,
                }  # fmt: skip
                options.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
