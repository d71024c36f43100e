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
from postx.scans.gpu_chunked_ops import Affine, Work

SIZES = {"linear": gpu.linear, "one decay": gpu.one_decay, "SSD": gpu.ssd}


def variants(case):
    """(pass, chunk, blocks, share) of everything that is tried."""
    wide = 64 if case == "SSD" else 128
    for block, warps, stages in itertools.product((32, 64, 128), (4, 8), (1, 2, 3)):
        if block <= wide:
            yield "fused", 64, (64, block, warps, stages), 1
    for stages in (1, 2):
        yield "fused", 128, (128, 64, 8, stages), 1
    for blocks in ((64, 64, 4, 2), (64, 64, 4, 3), (64, 64, 4, 4), (128, 64, 4, 3), (32, 64, 4, 3)):
        yield "walk", 64, blocks, 1
    for way in ("y", "dv"):
        yield way, 64, (128, wide, 4, 1), 1
    for way in ("dk", "dq"):
        for warps, stages, share in itertools.product((4, 8), (1, 2), (1, 4, 8) if case == "SSD" else (1,)):
            yield way, 64, (wide, 128, warps, stages), share
    if case != "linear":
        for blocks in ((128, 64, 4, 1), (128, 64, 4, 2), (128, 64, 4, 3), (128, 32, 4, 2), (64, 64, 4, 2), (128, 64, 8, 2)):
            yield "dg", 64, blocks, 1


def runner(case, way, chunk, blocks, share, B, T):
    """A call of one pass alone."""
    x = SIZES[case](B=B, T=T)
    q, k, v, g = x["q"], x["k"], x["v"], x.get("g")
    S = v.new_zeros(B, v.shape[2], k.shape[3], v.shape[3], dtype=torch.float32)
    row = {"chunk": chunk, **dict.fromkeys(("fused", "walk", "dg"), blocks)}
    gpu_blocks.decay = lambda *_: row
    work, chunks = Work(q, k, v, g, S, None), -(-T // chunk)
    H, dy, last = v.shape[2], torch.randn_like(v), torch.empty_like(S)
    if way == "fused":
        y = torch.empty_like(v)
        return lambda: work.fused((q, k, v), (k, v), S, y, last)
    if way == "walk":
        return lambda: work.tables(k, v, S, last, 0, chunk, chunks, False)
    tables = torch.randn(B, H, chunks, *S.shape[2:], device="cuda", dtype=v.dtype)
    if way == "dg":
        adjoints, dg = torch.randn_like(tables), v.new_empty(v.shape[:3], dtype=torch.float32)
        return lambda: work.decays(dy, tables, adjoints, dg, 0, chunk)
    roles, turned, reverse = {
        "y": ((q, k, v), tables, False), "dv": ((k, q, dy), tables, True),
        "dk": ((v, dy, q), tables.mT, True), "dq": ((dy, v, k), tables.mT, False),
    }[way]  # fmt: skip
    out = v.new_empty(B, T, H // share, roles[2].shape[3], dtype=torch.float32 if share > 1 else v.dtype)
    return lambda: work.outputs(roles, turned, out, 0, chunk, blocks, reverse, share)


AFFINE = itertools.product((128, 256, 512), (64, 128, 256), (4, 8, 16), (2, 4))


def affine(blocks, B=8, T=4096):
    """The affine scan's backward pass with blocks of its own (it holds every kernel but `walk`)."""
    gpu_blocks.AFFINE = blocks
    x = gpu.rg_lru(B=B, T=T)
    S = x["b"].new_zeros(B, 2048, dtype=torch.float32)
    g, b = (x[name].requires_grad_(True) for name in "gb")
    y = Affine.apply(g, b, S, None)[0]
    dy = torch.randn_like(y)
    return lambda: torch.autograd.grad(y, (g, b), dy, retain_graph=True)


def compile_one(task):
    try:
        (affine(task[2], B=1, T=256) if task[0] == "affine" else runner(*task, B=1, T=256))()
        torch.cuda.synchronize()
    except Exception as reason:
        return f"{type(reason).__name__}: {reason}"[:80]


def milliseconds(task):
    """By a captured graph: what the GPU alone takes."""
    from triton.testing import do_bench, do_bench_cudagraph

    if task[0] == "affine":
        return do_bench(affine(task[2]), warmup=10, rep=50, return_mode="median")
    return do_bench_cudagraph(runner(*task, B=8, T=4096), rep=30, return_mode="median")


def main():
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_tune", description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    tasks = [(case, *variant) for case in SIZES for variant in variants(case)]
    tasks += [("affine", "backward", blocks, 0, 1) for blocks in AFFINE if 32 * blocks[3] <= blocks[0]]
    with multiprocessing.get_context("spawn").Pool(min(14, os.cpu_count())) as pool:
        failed = pool.map(compile_one, tasks, chunksize=2)
    found = []
    for task, why in zip(tasks, failed, strict=True):
        ms = why or milliseconds(task)
        found.append([*task, ms])
    found.sort(key=lambda row: (row[0], row[1], row[-1] if isinstance(row[-1], float) else 1e9))
    for row in found:
        print(*row[:2], row[2], row[3], "share", row[4], row[5] if isinstance(row[5], str) else f"{row[5]:.3f}", flush=True)
    if options.json:
        options.json.write_text(json.dumps(found))


if __name__ == "__main__":
    main()
