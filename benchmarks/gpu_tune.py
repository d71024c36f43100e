"""Times other block sizes than the recorded ones: python -m benchmarks.gpu_tune [--only CASE ...] [--json FILE].

What is fastest goes by hand into `postx.scans.gpu_blocks`, which is all that a call ever looks at. Each variant is
one change of its tables; a case is then timed as a whole, forward and both ways. Variants are compiled by a pool of
processes first; Triton keeps them on disk.
"""

import argparse
import json
import multiprocessing
import os
from pathlib import Path

import torch

from benchmarks import gpu
from benchmarks.gpu_cases import CASES
from postx.scans import gpu_blocks

FUSED = [(64, v, warps, stages) for v, warps in ((64, 4), (64, 8), (128, 8)) for stages in (1, 2, 3)]
DELTA = [(v, warps, stages) for v, warps in ((64, 4), (64, 8), (128, 8)) for stages in (1, 2)]
KEYS = {
    "walk": [(64, v, warps, stages) for v, warps in ((64, 4), (128, 4), (128, 8)) for stages in (2, 3)],
    "outputs": [(64, 128, 4, 1, n) for n in (1, 2, 3)] + [(128, 128, 4, 1, n) for n in (1, 2, 3)],
    "gradients": [(64, 64, 4, stages, n) for stages in (1, 2) for n in (1, 2, 3)],
}
CUT = 1024, 4096
CHANNELS = [(c, c // 2, group, groups, CUT) for c in (8, 16, 32) for group in (2, 4, 8) for groups in (4, 8)]
# case: [(table of gpu_blocks, its row or None, the pass or None, what is tried)]
VARIANTS = {
    "SSD, B=8": [("DECAY", (2, 128, 64), "fused", FUSED)],
    "linear, B=8": [("DECAY", (2, 128, 128), "fused", FUSED)],
    "GLA": [("KEYS", (2, 128, 128), way, KEYS[way]) for way in KEYS],
    "Gated DeltaNet": [("DELTA", (2, 128, 128), way, DELTA) for way in ("forward", "backward", "gradients")],
    "SSD, B=1": [("PROGRAMS", None, None, [1, 264, 528, 1056])],
    "RG-LRU": [("AFFINE", None, None, [(b, s, a, b // 64) for b in (128, 256) for s in (64, 128) for a in (8, 16)])],
    "selective scan, B=8": [("DIAGONAL", None, None, CHANNELS)],
    "selective scan, B=1": [("DIAGONAL", None, None, [(16, 8, 4, 8, (1024, n)) for n in (1024, 4096, 8192)])],
}  # fmt: skip


def change(table, row, way, value):
    if row is None:
        setattr(gpu_blocks, table, value)
    else:
        getattr(gpu_blocks, table)[row][way] = value


def task(case, *variant, full=False):
    """(forward ms, both ms) with the variant, or what kept it from running; without `full` it is only compiled."""
    change(*variant)
    name = next(name for name in CASES if name.startswith(case))
    make, runs = CASES[name]
    try:
        if full:
            found = gpu.measure(runs["postx"], make())
            return found["forward_ms"], found["both_ms"]
        inputs = gpu.leaves(make(T=1024) if "T=4096" in name or "same" in name else make())
        runs["postx"](**inputs).sum().backward()
        with torch.no_grad():
            runs["postx"](**inputs)
        torch.cuda.synchronize()
    except Exception as reason:
        return f"{type(reason).__name__}: {reason}"[:80]


def main():
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_tune", description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", default=[""], help="how the cases' names begin")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    tasks = [
        (case, *where, value)
        for case, changes in VARIANTS.items() if any(case.startswith(part) for part in options.only)
        for *where, values in changes for value in values
    ]  # fmt: skip
    spawn, found = multiprocessing.get_context("spawn"), []
    with spawn.Pool(min(14, os.cpu_count()), maxtasksperchild=1) as pool:
        pool.starmap(task, tasks, chunksize=1)
    before = {name: getattr(gpu_blocks, name) for name in ("AFFINE", "DIAGONAL", "PROGRAMS")}
    tables = {name: getattr(gpu_blocks, name) for name in ("DECAY", "KEYS", "DELTA")}
    rows = {(name, key): dict(row) for name, table in tables.items() for key, row in table.items()}
    for one in tasks:
        ms = task(*one, full=True)
        for name, value in before.items():
            setattr(gpu_blocks, name, value)
        for (name, key), row in rows.items():
            tables[name][key].update(row)
        found.append([*one, ms])
        print(*one, ms if isinstance(ms, str) else "{:.3f} {:.3f}".format(*ms), flush=True)
    if options.json:
        options.json.write_text(json.dumps(found))


if __name__ == "__main__":
    main()
