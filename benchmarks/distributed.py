"""What several ranks make of one text and one training: python -m benchmarks.distributed --ranks 1 2 [--json FILE].

Starts torchrun once for each number of ranks and records what each measured: on GPUs (NCCL) from 131,072 to 4,194,304
tokens, on a CPU (gloo, one thread a rank) at small lengths. Parts:

  check     what the ranks make of 2,048 tokens, y and gradients, beside one process in float64: the relative `error`
  ring      causal attention by `distributed.attend`, zigzag and straight; on one rank it is torch's own kernel
  context   the same by torch's context_parallel, where it runs (`why` says where it does not)
  passed    SSD with a state passed in turn
  ddp       training steps of a model of 2.9 million and one of 100 million weights, at a fixed batch for each rank

A row has part, case, T, ranks, forward_s and both_s (median of `rounds`, of the slowest rank), bytes (that the busiest
rank sent for both) and peak_bytes (of a GPU). Efficiency is one rank's time over P times the time of P ranks. The clock
of two cores that are shared says nothing in seconds: read the ratios.
"""

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist

from postx import distributed
from postx.mixers import attention, ssd
from postx.models.lm import LM
from postx.train import Config, train

GPU = {"lengths": [2**n for n in range(17, 23)], "attention": {"H": 16, "G": 4, "K": 128, "V": 128},
       "ssd": {"H": 32, "G": 1, "K": 128, "V": 64}, "dtype": torch.bfloat16, "rows": 16, "T": 1024}  # fmt: skip
CPU = {"lengths": [2048, 4096, 8192], "attention": {"H": 4, "G": 2, "K": 32, "V": 32},
       "ssd": {"H": 8, "G": 1, "K": 32, "V": 32}, "dtype": torch.float32, "rows": 4, "T": 128}  # fmt: skip
MODELS = {  # pattern, D, Y and options; the first is the kept model `attention`
    "2.9 million": ("A" * 8, 192, 256, {"A": {"H": 4}, "F": {"F": 360}}),
    "100 million": ("A" * 12, 768, 24576, {"A": {"H": 12}}),
}
CHECK_T = 2048
LEAST, ROUNDS = 4.0, 7  # seconds that a case is repeated for, and how often at most
PATIENCE = 10.0  # seconds of a pass; four times that is what twice the length of attention would take


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    name = "distributed_gpu" if torch.cuda.is_available() else "distributed"  # one device a file
    parser.add_argument("--json", type=Path, default=Path(f"benchmarks/results/{name}.json"))
    parser.add_argument("--lengths", type=int, nargs="+")
    parser.add_argument("--only", nargs="+", default=["check", "ring", "context", "passed", "ddp"])
    options = parser.parse_args()
    if "RANK" in os.environ:
        return measure(options)
    for ranks in options.ranks:
        run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
        threads = {} if torch.cuda.is_available() else dict.fromkeys(("OMP_NUM_THREADS", "NUMBA_NUM_THREADS"), "1")
        subprocess.run([*run, "-m", "benchmarks.distributed", *sys.argv[1:]], env=os.environ | threads, check=True)


def measure(options):
    gpu = torch.cuda.is_available()
    mesh = distributed.start(device="cuda" if gpu else "cpu")
    wire, sizes, rows = distributed.Wire(), GPU if gpu else CPU, []
    device = torch.device("cuda", torch.cuda.current_device()) if gpu else torch.device("cpu")
    if not gpu:
        torch.set_num_threads(1)
    for part in options.only:
        parts = {"check": check, "ring": ring, "context": context, "passed": passed, "ddp": ddp}
        rows += parts[part](wire, mesh, sizes, options.lengths or sizes["lengths"], device)
        if wire.rank == 0:
            write(options.json, rows, device, wire.ranks)
    dist.barrier()
    dist.destroy_process_group()


def inputs(mixer, sizes, layout, wire, device, **more):
    """This rank's tokens: 1,024 that it draws, over and over, since only the time is looked at."""
    T = layout.size(wire.rank)
    z, _ = mixer.example(1024, B=1, seed=wire.rank, **more)
    z = (x.to(device, sizes["dtype"]).repeat(1, -(-T // 1024), *[1] * (x.ndim - 2))[:, :T] for x in z)
    return [x.contiguous().requires_grad_() for x in z]


def timed(wire, device, run, z):
    """{forward_s, both_s, bytes, peak_bytes, rounds}: medians of up to seven rounds, of the slowest rank.

    The first one compiles and is left out.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    times, sent, spent, warm = {"forward_s": [], "both_s": []}, 0, 0.0, False
    while len(times["both_s"]) < ROUNDS and spent < LEAST:
        for name, found in times.items():
            before = wire.sent
            wait(device)
            began = time.perf_counter()
            if name == "forward_s":
                with torch.no_grad():
                    run(*z)
            else:
                y = run(*z)
                torch.autograd.grad(y, z, torch.ones_like(y))
                del y
            wait(device)
            found.append(time.perf_counter() - began)
            sent = wire.sent - before
        last = longest(sum(found[-1] for found in times.values()), device)
        if warm:
            spent += last
        else:
            warm, times = True, {name: [] for name in times}
    forward, both = (longest(statistics.median(found), device) for found in times.values())
    found = {"forward_s": round(forward, 5), "both_s": round(both, 5), "bytes": int(longest(sent, device))}
    return found | {"peak_bytes": int(longest(peak(device), device)) or None, "rounds": len(times["both_s"])}


def longest(mine, device):
    """The largest of what the ranks have, so that all decide alike."""
    mine = torch.tensor(mine, dtype=torch.float64, device=device)
    dist.all_reduce(mine, dist.ReduceOp.MAX)
    return mine.item()


def wait(device):
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    dist.barrier()


def peak(device):
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0


def rows_of(part, case, cases, wire, device):
    """A row for each (T, run, z) while it is quick enough."""
    rows = []
    for T, run, z in cases:
        row = {"part": part, "case": case, "T": T, "ranks": wire.ranks}
        try:
            row |= timed(wire, device, run, z)
        except torch.OutOfMemoryError:
            if wire.ranks > 1:  # the others wait for this rank
                raise
            row["why"] = "out of memory"
        rows.append(row)
        if wire.rank == 0:
            print(row, flush=True)
        if "why" in row or row["both_s"] > PATIENCE:
            break
    return rows


def check(wire, mesh, sizes, lengths, device):
    rows = []
    for case, mixer, whole, layout in (
        ("zigzag", attention, attention.parallel, distributed.Layout(CHECK_T, wire.ranks, "zigzag")),
        ("straight", attention, attention.parallel, distributed.Layout(CHECK_T, wire.ranks)),
        ("SSD in turn", ssd, ssd.chunked, distributed.Layout(CHECK_T, wire.ranks)),
    ):
        z, _ = mixer.example(CHECK_T, B=1, seed=0, **sizes["ssd" if mixer is ssd else "attention"])
        z = [x.to(device, sizes["dtype"]) for x in z]  # rounded first: both sides are given the same numbers
        wide = [x.double().requires_grad_() for x in z]
        y = whole(*wide)[0]
        weight = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=y.dtype).to(device)
        want = [y.detach(), *torch.autograd.grad(y, wide, weight)]
        mine = [layout.split(x, wire.rank).detach().requires_grad_() for x in z]
        if mixer is ssd:
            y = distributed.run(ssd, *mine, layout=layout, wire=wire)[0]
        else:
            y = distributed.attend(*mine, layout, wire)
        got = [y.detach(), *torch.autograd.grad(y, mine, layout.split(weight, wire.rank).to(y.dtype))]
        own = [layout.split(x, wire.rank) for x in want]
        squares = [[(a.double() - b).square().sum(), b.square().sum()] for a, b in zip(got, own, strict=True)]
        squares = torch.tensor(squares, dtype=torch.float64, device=device)
        dist.all_reduce(squares)
        error = (squares[:, 0] / squares[:, 1]).sqrt().max().item()
        rows.append({"part": "check", "case": case, "T": CHECK_T, "ranks": wire.ranks, "error": float(f"{error:.2g}")})
        if wire.rank == 0:
            print(rows[-1], flush=True)
    return rows


def ring(wire, mesh, sizes, lengths, device):
    def cases(kind):
        for T in lengths:
            layout = distributed.Layout(T, wire.ranks, kind)
            z = inputs(attention, sizes, layout, wire, device, **sizes["attention"])
            yield T, lambda *z, layout=layout: distributed.attend(*z, layout, wire), z

    kinds = ("zigzag", "straight") if wire.ranks > 1 else ("zigzag",)  # one rank has everything in one order
    return [row for kind in kinds for row in rows_of("ring", kind, cases(kind), wire, device)]


def passed(wire, mesh, sizes, lengths, device):
    def cases():
        for T in lengths:
            layout = distributed.Layout(T, wire.ranks)
            z = inputs(ssd, sizes, layout, wire, device, **sizes["ssd"])
            yield T, lambda *z, layout=layout: distributed.run(ssd, *z, layout=layout, wire=wire)[0], z

    return rows_of("passed", "SSD in turn", cases(), wire, device)


def context(wire, mesh, sizes, lengths, device):
    """torch's own: sharded buffers within `context_parallel`, and scaled_dot_product_attention as it is."""
    from torch.distributed.tensor.experimental import context_parallel

    def run(q, k, v):
        whole = torch.zeros(1, 2 * wire.ranks, device=device)  # it asks for something to cut; q, k, v are cut already
        with context_parallel(mesh["sequence"], buffers=[whole], buffer_seq_dims=[1]):
            q, k, v = (x.transpose(1, 2) for x in (q, k, v))
            k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
            return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)

    def cases():
        for T in lengths:
            layout = distributed.Layout(T, wire.ranks, "zigzag")
            yield T, run, inputs(attention, sizes, layout, wire, device, **sizes["attention"])

    if wire.ranks == 1:
        return []
    try:
        return rows_of("context", "torch", cases(), wire, device)
    except NotImplementedError as error:  # on every rank alike
        return [{"part": "context", "case": "torch", "T": lengths[0], "ranks": wire.ranks, "why": str(error)[:200]}]


def ddp(wire, mesh, sizes, lengths, device):
    """Seconds of a step by the log of `train`, whose first half is left out."""
    rows = []
    for name, (pattern, D, Y, more) in MODELS.items():
        if device.type == "cpu" and name != "2.9 million":
            continue
        B, T = sizes["rows"] * wire.ranks, sizes["T"]
        torch.manual_seed(0)
        lm = LM(pattern, D, Y, options=more)
        ids = torch.randint(Y, (B, T), generator=torch.Generator().manual_seed(1))
        config = Config(steps=12, B=B, warmup=2, log_every=1, quiet=True, ranks="ddp", device=device.type,
                        dtype="bfloat16" if device.type == "cuda" else "float32")  # fmt: skip
        log = train(lm, lambda step, ids=ids: (ids, ids), config)
        seconds = statistics.median(b["seconds"] - a["seconds"] for a, b in zip(log[5:], log[6:], strict=False))
        rows.append({"part": "ddp", "case": name, "T": T, "ranks": wire.ranks, "B": B, "both_s": round(seconds, 5),
                     "parameters": sum(p.numel() for p in lm.parameters()),
                     "tokens_per_s": round(B * T / seconds)})  # fmt: skip
    return rows


def write(path, rows, device, ranks):
    """The rows of this number of ranks take the place of those that were there."""
    kept = json.loads(path.read_text(encoding="utf8"))["rows"] if path.exists() else []
    parts = {row["part"] for row in rows}
    kept = [row for row in kept if row["ranks"] != ranks or row["part"] not in parts]
    gpu = device.type == "cuda"
    record = {
        "device": f"{torch.cuda.device_count()} x {torch.cuda.get_device_name(device)}" if gpu
        else f"CPU ({platform.machine()}), {os.cpu_count()} cores, shared with other work; gloo, one thread a rank",
        "torch": torch.__version__, "date": datetime.date.today().isoformat(),
        "rows": sorted(kept + rows, key=lambda r: (r["part"], r["case"], r["T"], r["ranks"])),
    }  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf8", newline="\n")


if __name__ == "__main__":
    main()
