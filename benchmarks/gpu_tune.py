"""Times the block sizes of the Triton kernels, one pass at a time: python -m benchmarks.gpu_tune [--json FILE].

What is fastest goes by hand into `postx.scans.gpu_blocks`, which is all that a call ever looks at. Variants are
compiled by a pool of processes first; Triton keeps them on disk.
"""

import argparse
import json
import multiprocessing
import os
from pathlib import Path

import torch

from benchmarks import gpu
from postx.scans import gpu_blocks, gpu_delta_ops
from postx.scans.gpu_chunked_ops import Affine, Work

SIZES = {"linear": gpu.linear, "one decay": gpu.one_decay, "SSD": gpu.ssd}


def variants(case):
    """(pass, chunk, blocks, share) of everything that is tried."""
    for blocks in ((64, 4, 1), (64, 4, 2), (64, 4, 3), (64, 8, 1), (64, 8, 2), (64, 8, 3)):
        yield "fused", 64, (64, *blocks), 1
    yield "fused", 128, (128, 64, 8, 1), 1
    if case != "SSD":
        for blocks in ((128, 4, 1), (128, 8, 1), (128, 8, 2)):
            yield "fused", 64, (64, *blocks), 1
    if case != "linear":
        for blocks in ((128, 64, 4, 1), (128, 64, 4, 2), (128, 64, 4, 3), (64, 64, 4, 2)):
            yield "dg", 64, blocks, 1


DELTA = {
    "solve": (2, 4, 8), "gradients": ((64, 8, 1), (64, 8, 2), (128, 8, 1), (64, 4, 1)),
    "forward": ((64, 4, 1), (64, 4, 2), (64, 8, 1), (64, 8, 2), (128, 8, 1)),
    "backward": ((64, 4, 1), (64, 4, 2), (64, 8, 1), (64, 8, 2), (128, 8, 1)),
}  # fmt: skip


def delta_runner(way, blocks, B, T):
    """A call of one pass of the delta scan alone, with one decay a head."""
    x = gpu.gated_delta(B=B, T=T)
    q, k, v, g, beta = (x[name] for name in ("q", "k", "v", "g", "beta"))
    row = {"chunk": 64, **dict.fromkeys(DELTA, blocks)}
    gpu_blocks.delta = lambda *_: row
    S = v.new_zeros(B, v.shape[2], k.shape[3], v.shape[3], dtype=torch.float32)
    work = gpu_delta_ops.Work(q, k, v, g, beta, S, None)
    if way == "solve":
        return work.solve
    inverse = torch.randn(work.programs, work.chunks, 64, 64, device="cuda", dtype=v.dtype) / 64
    y, last, dbeta = torch.empty_like(v), torch.empty_like(S), torch.empty(v.shape[:3], device="cuda")
    if way == "forward":
        return lambda: work.forward(inverse, y, last, None, None)
    tables = torch.randn(*S.shape[:2], work.chunks, *S.shape[2:], device="cuda", dtype=v.dtype)
    if way == "backward":
        return lambda: work.backward(inverse, v, S, y, last, tables)
    dq, dk = torch.empty_like(q), torch.empty_like(k)
    return lambda: work.gradients(tables, tables, v, v, v, dq, dk, dbeta, torch.empty_like(dbeta))


def runner(case, way, chunk, blocks, share, B, T):
    """A call of one pass alone."""
    if case == "affine":
        return affine(blocks, B, T)
    if case == "delta":
        return delta_runner(way, blocks, B, T)
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


AFFINE = [
    (block, segment, ahead, block // 64) for block in (128, 256) for segment in (64, 128) for ahead in (8, 16, 32)
]


def affine(blocks, B, T):
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
        runner(*task, B=1, T=256)()
        torch.cuda.synchronize()
    except Exception as reason:
        return f"{type(reason).__name__}: {reason}"[:80]


def milliseconds(task):
    """By a captured graph: what the GPU alone takes."""
    from triton.testing import do_bench, do_bench_cudagraph

    call = runner(*task, B=8, T=4096)
    if task[0] == "affine":
        return do_bench(call, warmup=10, rep=40, return_mode="median")
    return do_bench_cudagraph(call, rep=20, return_mode="median")


def main():
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_tune", description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    tasks = [(case, *variant) for case in SIZES for variant in variants(case)]
    tasks += [("delta", way, 64, blocks, 1) for way in DELTA for blocks in DELTA[way]]
    tasks += [("affine", "backward", 0, blocks, 1) for blocks in AFFINE]
    with multiprocessing.get_context("spawn").Pool(min(14, os.cpu_count())) as pool:
        failed = pool.map(compile_one, tasks, chunksize=2)
    found = []
    for task, why in zip(tasks, failed, strict=True):
        ms = why or milliseconds(task)
        found.append([*task, ms])
        print(*task[:2], task[2], task[3], "share", task[4], ms if why else f"{ms:.3f}", flush=True)
    if options.json:
        options.json.write_text(json.dumps(found))


if __name__ == "__main__":
    main()
