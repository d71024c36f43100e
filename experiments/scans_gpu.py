"""The three recurrences with Triton kernels on a GPU: first whether they are right, then how fast they are.

    python experiments/scans_gpu.py [FILE]     default: experiments/results/scans_gpu.json

Right: float32 and bfloat16 against the float64 reference on the same rounded inputs, outputs, state and every
gradient, each by its own scale; the run stops where one is off. Fast: medians of CUDA events, forward, and forward
with every gradient, bfloat16 inputs, float32 states, random normal inputs. "triton": our kernels (with 1, 2 and 3
tokens in flight; the plain name is the package's own setting). "chunked": the chunked form in plain torch, not
compiled. "loop": the torch reference, token by token. "floor": inputs read and outputs written once, twice that with
gradients, over the speed of a copy measured in the same run. A form that runs out of memory is left out.
"""

import datetime
import json
import statistics
import sys
import time
from functools import partial
from pathlib import Path

import torch
import triton

from postx import scans
from postx.mixers import mamba
from postx.scans import delta_chunked, gpu_ops
from postx.scans.decay_chunked import decay_chunked

SEED = 0
BOUNDS = {torch.float32: 5e-5, torch.bfloat16: 4e-2}
# (recurrence, sizes): the large ones fill the GPU, the small ones are those of a training run in the book.
SIZES = [
    ("diagonal", {"B": 8, "T": 4096, "D": 2048, "N": 16}),
    ("decay", {"B": 8, "T": 4096, "H": 16, "K": 64}),
    ("decay", {"B": 8, "T": 4096, "H": 16, "K": 128}),
    ("delta", {"B": 8, "T": 4096, "H": 16, "K": 64}),
    ("delta", {"B": 8, "T": 4096, "H": 16, "K": 128}),
    ("diagonal", {"B": 64, "T": 512, "D": 256, "N": 16}),
    ("decay", {"B": 64, "T": 512, "H": 4, "K": 32}),
    ("delta", {"B": 64, "T": 512, "H": 4, "K": 32}),
]


def inputs(kind, sizes, dtype):
    """The tensors of one recurrence; V is K, and one decay a token and head."""
    rng = torch.Generator("cuda").manual_seed(SEED)

    def randn(*axes):
        return torch.randn(*axes, generator=rng, device="cuda")

    if kind == "diagonal":
        B, T, D, N = sizes.values()
        steps = torch.nn.functional.softplus(randn(B, T, D) - 3)
        rates = -torch.rand(D, N, generator=rng, device="cuda") * N - 0.5
        x = [randn(B, T, D), steps, rates, randn(B, T, N), randn(B, T, N)]
    else:
        B, T, H, K = sizes.values()
        q, k, v = (randn(B, T, H, K) for _ in range(3))
        k = k / k.norm(dim=-1, keepdim=True)
        fade = torch.nn.functional.logsigmoid(randn(B, T, H) + 4)
        x = [q, k, v, randn(B, T, H).sigmoid(), fade] if kind == "delta" else [q, k, v, fade]
    return [part.to(dtype) for part in x]


def _delta_chunked(q, k, v, beta, g):
    S = v.new_zeros(v.shape[0], v.shape[2], k.shape[3], v.shape[3], dtype=torch.float32)
    q, k, v, beta, g = (x.float() for x in (q, k, v, beta, g))
    return delta_chunked.in_chunks(q, k, v, beta, g, S, lengths_B=None, chunk=64)


def _mamba_chunked(u, delta, A, write, read):
    return mamba.chunked(u, delta, write, read, A_DN=A, skip_D=torch.zeros_like(A[:, 0]))


CHUNKED = {"diagonal": _mamba_chunked, "decay": decay_chunked, "delta": _delta_chunked}


def with_gradients(run, x):
    """Outputs, and the gradients of their sum."""
    x = [part.detach().requires_grad_(True) for part in x]
    outputs = run(*x)
    return [*outputs, *torch.autograd.grad(outputs, x, [torch.ones_like(y) for y in outputs])]


def check():
    """Raises RuntimeError where a kernel is off; returns rows of what was found."""
    rows = []
    small = {"diagonal": [(2, 130, 100, 16), (8, 70, 512, 16)], "decay": [(2, 130, 3, 48), (2, 70, 8, 128)]}
    small["delta"] = small["decay"]
    for kind, shapes in small.items():
        for shape in shapes:
            for dtype, bound in BOUNDS.items():
                axes = "BTDN" if kind == "diagonal" else "BTHK"
                x = inputs(kind, dict(zip(axes, shape, strict=True)), dtype)
                scan = getattr(scans, kind)
                exact = with_gradients(partial(scan, impl="reference"), [part.double() for part in x])
                got = with_gradients(partial(scan, impl="triton"), x)
                off = [((a - b).abs().max() / b.abs().max()).item() for a, b in zip(got, exact, strict=True)]
                rows.append(
                    {"scan": kind, "shape": shape, "dtype": str(dtype), "worst": max(off), "bound": bound}
                )
                print(rows[-1], flush=True)
                if not max(off) <= bound:  # NaN too
                    raise RuntimeError(f"{kind} {shape} {dtype}: differs by {off}")
    return rows


def measure(run, budget):
    """(median milliseconds, peak bytes beyond what was held before), or None when memory runs out."""
    torch.cuda.empty_cache()
    held = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    began = time.perf_counter()
    try:
        run()
        torch.cuda.synchronize()
        times = []
        while len(times) < 3 or (time.perf_counter() - began < budget and len(times) < 30):
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            run()
            end.record()
            torch.cuda.synchronize()
            times.append(start.elapsed_time(end))
    except torch.cuda.OutOfMemoryError:
        return None
    return round(statistics.median(times), 4), torch.cuda.max_memory_allocated() - held


def copy_speed():
    """Bytes a millisecond of a large copy, read and written."""
    source = torch.ones(2**30, dtype=torch.float32, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.nbytes / measure(lambda: target.copy_(source), 2)[0]


def forms(kind):
    """{name: (function, tokens in flight)}."""
    scan, own = getattr(scans, kind), gpu_ops.STAGES
    found = {"triton": (partial(scan, impl="triton"), own)}
    for stages in {1, 2, 3} - {own}:
        found[f"triton, {stages} in flight"] = (partial(scan, impl="triton"), stages)
    return found | {"chunked": (CHUNKED[kind], own), "loop": (partial(scan, impl="reference"), own)}


def main(path):
    own, checked, speed, rows = gpu_ops.STAGES, check(), copy_speed(), []
    for kind, sizes in SIZES:
        x = inputs(kind, sizes, torch.bfloat16)
        moved = sum(part.nbytes for part in x) + x[2 if kind != "diagonal" else 0].nbytes
        for name, (run, stages) in forms(kind).items():
            gpu_ops.STAGES = stages
            row = {
                "scan": kind,
                **sizes,
                "form": name,
                "floor": [round(n * moved / speed, 4) for n in (1, 2)],
            }
            for part, call in (("forward", partial(run, *x)), ("both", partial(with_gradients, run, x))):
                if name == "loop" and part == "both" and sizes["T"] > 1024:
                    continue  # autograd would keep every state: hundreds of gigabytes
                result = measure(call, 2)
                row[part] = result and result[0]
                row[f"{part}_peak_bytes"] = result and result[1]
            gpu_ops.STAGES = own
            rows.append(row)
            size = " ".join(f"{axis}={n}" for axis, n in sizes.items())
            floor = "{} / {}".format(*row["floor"])
            times = f"{row['forward']!s:>10}{row.get('both')!s:>11} ms, floor {floor}"
            print(f"{kind:9}{size:26}{name:22}{times}", flush=True)
    record = {
        "what": __doc__.splitlines()[0], "seed": SEED, "dtype": "bfloat16", "device": torch.cuda.get_device_name(),
        "torch": torch.__version__, "triton": triton.__version__, "cuda": torch.version.cuda,
        "copy_bytes_per_second": round(1e3 * speed), "stages": own, "date": datetime.date.today().isoformat(),
        "checked": checked, "rows": rows,
    }  # fmt: skip
    Path(path).write_text(json.dumps(record, indent=1) + "\n", encoding="utf8")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent / "results" / "scans_gpu.json")
