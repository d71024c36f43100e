"""Times the block sizes of the chunked Triton kernels, one pass at a time: python -m benchmarks.gpu_tune [--json FILE].

What is fastest goes by hand into `postx.scans.gpu_blocks`, which is all that a call ever looks at. Variants are compiled
by a pool of processes first; Triton keeps them on disk.
"""

import argparse
import itertools
import json
import multiprocessing
import os
from pathlib import Path

import torch

from benchmarks import gpu
from postx.scans import gpu_blocks
from postx.scans.gpu_chunked_ops import Work

SIZES = {"linear": gpu.linear, "one decay": gpu.one_decay, "SSD": gpu.ssd}


def variants(case):
    """(pass, chunk, blocks, share) of everything that is tried."""
    for chunk, blocks, warps, stages in itertools.product((64, 128), ((64, 64), (128, 64), (64, 128)), (4, 8), (3,)):
        if case == "SSD" and blocks[1] > 64:
            continue
        yield "walk", chunk, (*blocks, warps, stages), 1
    wide = (64,) if case == "SSD" else (64, 128)
    for chunk, block, warps in itertools.product((64, 128), wide, (4, 8)):
        yield "y", chunk, (128, block, warps, 1), 1
    for way in ("dv",) if case == "SSD" else ("dv", "dk", "dq"):
        for block, warps in itertools.product(wide, (4, 8)):
            yield way, 64, (128, block, warps, 1), 1
    if case == "SSD":
        for way, block, warps, stages, share in itertools.product(("dk", "dq"), (64, 128), (4, 8), (1, 2), (1, 8)):
            if (way, stages) != ("dk", 1):
                yield way, 64, (64, block, warps, stages), share
    if case != "linear":
        for block, warps, stages in itertools.product((64, 128), (4, 8), (1, 2)):
            if block <= 64 or case != "SSD":
                yield "dg", 64, (128, block, warps, stages), 1


def runner(case, way, chunk, blocks, share, B, T):
    """A call of one pass alone."""
    x = SIZES[case](B=B, T=T)
    q, k, v, g = x["q"], x["k"], x["v"], x.get("g")
    S = v.new_zeros(B, v.shape[2], k.shape[3], v.shape[3], dtype=torch.float32)
    row = (chunk, *[blocks] * 5)
    gpu_blocks.nearest = lambda *_: {"forward": row, "backward": row}
    work = Work(q, k, v, g, S, None, "forward", S.shape[2:])
    H, dy, last = v.shape[2], torch.randn_like(v), torch.empty_like(S)
    if way == "walk":
        return lambda: work.walk(k, v, S, last, 0, H)
    tables = torch.randn(B, H, work.chunks, *S.shape[2:], device="cuda", dtype=v.dtype)
    if way == "dg":
        adjoints, dg = torch.randn_like(tables), v.new_empty(v.shape[:3], dtype=torch.float32)
        return lambda: work.decays(dy, tables, adjoints, dg, 0, H, blocks)
    roles, turned, reverse = {
        "y": ((q, k, v), tables, False), "dv": ((k, q, dy), tables, True),
        "dk": ((v, dy, q), tables.mT, True), "dq": ((dy, v, k), tables.mT, False),
    }[way]  # fmt: skip
    out = v.new_empty(B, T, H // share, roles[2].shape[3], dtype=torch.float32 if share > 1 else v.dtype)
    return lambda: work.outputs(roles, turned, out, 0, H, blocks, reverse, share)


def compile_one(task):
    try:
        runner(*task, B=1, T=256)()
        torch.cuda.synchronize()
    except Exception as reason:
        return f"{type(reason).__name__}: {reason}"[:80]


def main():
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_tune", description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    tasks = [(case, *variant) for case in SIZES for variant in variants(case)]
    with multiprocessing.get_context("spawn").Pool(min(14, os.cpu_count())) as pool:
        failed = pool.map(compile_one, tasks, chunksize=2)
    found = []
    for task, why in zip(tasks, failed, strict=True):
        ms = why or gpu.milliseconds(runner(*task, B=8, T=4096))
        found.append([*task, ms])
    found.sort(key=lambda row: (row[0], row[1], row[-1] if isinstance(row[-1], float) else 1e9))
    for row in found:
        print(*row[:2], row[2], row[3], "share", row[4], row[5] if isinstance(row[5], str) else f"{row[5]:.3f}", flush=True)
    if options.json:
        options.json.write_text(json.dumps(found))


if __name__ == "__main__":
    main()
