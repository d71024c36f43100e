"""The scans on a GPU beside what people install: python -m benchmarks.gpu [--json FILE] [--only CASE ...] [--checks].

Every case is first held to the float64 reference of this package on fewer tokens of the same widths, outputs and
gradients; only then is it timed. Times are medians in ms by GPU events, with the L2 cache emptied between calls; the
loss is a fixed random tensor's dot product with y. `peak_bytes` is what a forward and backward pass needs beyond the
inputs and their gradients' seed. `error` is the largest of |x - reference| / |reference| over y and the gradients.
`floor_ms` is what its inputs and outputs alone take at the copy rate of an H200 (4.28 TB/s), once forward; both ways
they pass three times: in, y's seed and the gradients. The cases are in `gpu_cases`, lengths in `gpu_lengths`.

Peers are optional and are looked for on the path: fla (flash-linear-attention with fla-core), mamba_ssm (its Triton
part is enough), and torch's fused attention. The H200's rows were recorded with torch 2.11, where this package pins
2.13: what that machine had.
"""

import argparse
import contextlib
import datetime
import importlib.metadata
import json
from pathlib import Path

import torch

from benchmarks.gpu_cases import CASES, normal

CHECK_T = 512  # tokens of the float64 reference, which goes one by one
COPY_RATE = 4.28e12  # bytes a second, an H200's


def header():
    """{device, versions, date}: what every record of a GPU begins with."""
    versions = {"torch": torch.__version__}
    for name in ("triton", "flash-linear-attention", "mamba_ssm", "transformers"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return {"device": torch.cuda.get_device_name(), "versions": versions, "date": str(datetime.date.today())}


def leaves(inputs, dtype=None):
    return {
        name: x.detach().to(x.dtype if dtype is None else dtype).requires_grad_(True) for name, x in inputs.items()
    }


def gradients(run, inputs, seed):
    y = run(**inputs)
    return torch.autograd.grad(y, list(inputs.values()), seed.to(y.dtype))


def errors(run, ours, inputs):
    """(relative error of y, {name: that of its gradient}) of `run` against the float64 reference."""
    wide = leaves(inputs, torch.float64)
    want = ours(**wide, impl="reference")
    seed = normal(*want.shape, seed=7)
    wanted = torch.autograd.grad(want, list(wide.values()), seed.double())
    narrow = leaves(inputs)
    y = run(**narrow)
    found = torch.autograd.grad(y, list(narrow.values()), seed.to(y.dtype))

    def error(got, want):
        return float(((got.double() - want).norm() / want.norm()).detach())

    return error(y, want), {name: error(a, b) for name, a, b in zip(narrow, found, wanted, strict=True)}


def milliseconds(function):
    """The median of what fits 80 ms; of a call that takes longer than 200 ms, one."""
    from triton.testing import do_bench

    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    function()
    end.record()
    torch.cuda.synchronize()
    once = start.elapsed_time(end)
    return once if once > 200 else do_bench(function, warmup=15, rep=80, return_mode="median")


def floor(inputs, y):
    """ms for the inputs and y once at the copy rate."""
    return sum(x.numel() * x.element_size() for x in (*inputs.values(), y)) / COPY_RATE * 1e3


def measure(run, inputs):
    """{forward_ms, both_ms, peak_bytes, floor_ms} of `run`."""
    inputs = leaves(inputs)
    with torch.no_grad():
        y = run(**inputs)
        seed, least = normal(*y.shape, dtype=y.dtype, seed=7), floor(inputs, y)
        del y
        forward = milliseconds(lambda: run(**inputs))
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    gradients(run, inputs, seed)
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated() - before
    both = milliseconds(lambda: gradients(run, inputs, seed))
    return {"forward_ms": forward, "both_ms": both, "peak_bytes": peak, "floor_ms": least}


def row(case, who, checks_only):
    """What one of those who are there does in a case, or what kept it from running."""
    make, runs = CASES[case]
    run, small, whole = runs[who], make(B=1, T=CHECK_T), None if checks_only else make()
    found = {"case": case, "who": who, "date": str(datetime.date.today())}
    if not checks_only:  # a peer that tunes itself at its first call does so at the size that is timed
        with contextlib.suppress(Exception):
            inputs = leaves(whole)
            y = run(**inputs)
            torch.autograd.grad(y.float().square().sum(), list(inputs.values()))
        inputs = y = None
    try:
        found["error_forward"], each = errors(run, runs["postx"], small)
        found["error"], found["errors"] = max(found["error_forward"], *each.values()), each
    except Exception as reason:  # a peer that refuses its backward may still go forward
        found["refused"] = f"{type(reason).__name__}: {reason}"[:300]
    if not checks_only:
        try:
            with torch.no_grad():
                run(**small)
            if "refused" in found:
                found["forward_ms"] = milliseconds(lambda: run(**whole))
            else:
                found |= measure(run, whole)
        except Exception as reason:
            found["refused"] = f"{type(reason).__name__}: {reason}"[:300]
    torch.cuda.empty_cache()
    return found


def tasks(only):
    """(case, who): ours first, peers after them, and last the peer that compiles for minutes."""
    there = [(case, who) for case, (_, runs) in CASES.items() for who in runs]
    there = [task for task in there if not only or any(part in " ".join(task) for part in only)]
    return sorted(there, key=lambda task: (not task[1].startswith("postx"), task[1] == "fla gla"))


def merged(path, result):
    """`result` with the rows of an earlier record of this device and these versions, where they are not made anew."""
    before = json.loads(path.read_text()) if path and path.exists() else {}
    if any(before.get(key) != result[key] for key in ("device", "versions")):
        return result
    made = {(x["case"], x["who"]) for x in result["rows"]}
    return {**result, "rows": result["rows"] + [x for x in before["rows"] if (x["case"], x["who"]) not in made]}


def show(row):
    numbers = [f"{row[key]:.3g}" if key in row else "-" for key in ("forward_ms", "both_ms", "error_forward", "error")]
    each = {name: f"{value:.1e}" for name, value in row.get("errors", {}).items()}
    print(f"{row['case']:36}{row['who']:24}", *(f"{x:>9}" for x in numbers),
          f"{row.get('peak_bytes', 0) / 2**20:9.0f} MiB", each, row.get("refused", ""), flush=True)  # fmt: skip


def main():
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", help="parts of the cases' names, or of who")
    parser.add_argument("--checks", action="store_true", help="only what comes before the timing")
    parser.add_argument("--json", type=Path, help="write the results there, beside earlier ones of other cases")
    options = parser.parse_args()
    result = {**header(), "rows": []}
    for task in tasks(options.only):
        result["rows"].append(row(*task, options.checks))
        show(result["rows"][-1])
        if options.json and not options.checks:
            options.json.write_text(json.dumps(merged(options.json, result), indent=1) + "\n")


if __name__ == "__main__":
    main()
