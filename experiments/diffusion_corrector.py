"""Does hiding shown bytes again help the kept masked model to write? In 40, 80 and 160 steps, whole and in blocks.

    python -m experiments.diffusion_corrector --out experiments/results/diffusion_corrector.jsonl [--seconds 170]

ROWS texts of LONG bytes for each of three seeds, in bits a byte under the kept hybrid from byte SKIP on, with the
diversity beside it (a judge is pleased by repetition), and real text once. Samplers: `masked.ancestral` alone and with
a corrector, `Cap(0.1)` of `postx.diffusion.remasking`, a strength that nobody tuned, on the whole text or block by
block: the blocks before are given, those after are masks, each block has its share of the calls. Each seed's first
noise is the same for all samplers. About 20 minutes on one idle thread of a CPU; a run goes on where it stopped.
"""

import argparse
import datetime
import itertools
import json
import platform
import time
from pathlib import Path

import torch

from experiments.diffusion_orders import unseen
from experiments.diffusion_quality import causal_bits, diversity
from experiments.runner.results import read
from postx import scans
from postx.diffusion import OPEN, blank, masked
from postx.diffusion.remasking import Cap
from postx.models import checkpoints

Y, ROWS, LONG, SKIP, BLOCK = 256, 8, 160, 64, 32
CALLS, SEEDS = (40, 80, 160), (0, 1, 2)  # 160: a step for each byte
SAMPLERS = {  # name: (corrector, block)
    "no corrector": (None, None),
    "corrector": (Cap(0.1), None),
    "blocks of 32": (None, BLOCK),
    "blocks of 32, corrector": (Cap(0.1), BLOCK),
}


def write(net, *, rows=ROWS, long=LONG, calls, block=None, corrector=None, seed=0):
    """Texts, and the calls that each took on average: the whole text at once, or blocks from left to right."""
    rng, ids, spent = torch.Generator().manual_seed(seed), blank(rows, 0), 0.0
    for end in range(block or long, long + 1, block or long):
        def padded(seen, end=end):
            rest = seen.new_full((len(seen), long - end), Y)
            return net(torch.cat([seen, rest], 1))[:, :end]

        given = torch.cat([ids, blank(rows, end - ids.shape[1])], 1)
        steps = calls * (block or long) // long
        found = masked.ancestral(padded, given, Y, steps=steps, corrector=corrector, generator=rng)
        ids, spent = found.ids_BT, spent + float(found.nfe_B.double().mean())
    assert not (ids == OPEN).any()
    return ids, round(spent, 2)


def plan():
    """(run, corrector, block), all seeds of a number of calls, so that a stopped record is whole in what it holds."""
    for calls, blocks, seed in itertools.product(CALLS, (False, True), SEEDS):
        for name, (corrector, block) in SAMPLERS.items():
            if blocks == bool(block):
                yield {"sampler": name, "calls": calls, "seed": seed}, corrector, block


@torch.no_grad()
def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=1e9)
    args = parser.parse_args()
    torch.set_num_threads(1)
    scans.set_threads(1)
    begun, have = time.monotonic(), {r["key"] for r in read(args.out)}
    net, judge = checkpoints.load("masked"), checkpoints.load("hybrid")
    about = {"rows": ROWS, "T": LONG, "skip": SKIP, "network": checkpoints.record("masked")["key"],
             "torch": torch.__version__, "device": f"CPU ({platform.machine()})",
             "date": datetime.date.today().isoformat()}  # fmt: skip

    def keep(run, ids, spent):
        key = ", ".join(f"{name} {value}" for name, value in run.items())
        metrics = {"bits": round(causal_bits(judge, ids, given=SKIP), 4), **diversity(ids), "nfe": spent}
        with args.out.open("a", encoding="utf8") as file:
            file.write(json.dumps({"key": key, "run": run, "metrics": metrics, **about}) + "\n")
        print(key, metrics, flush=True)

    real = {"sampler": "unseen text", "calls": 0, "seed": 0}
    runs = [(real, None, None), *plan()]
    for run, corrector, block in runs:
        if ", ".join(f"{name} {value}" for name, value in run.items()) in have:
            continue
        if time.monotonic() - begun > args.seconds:
            return
        if run is real:
            keep(run, unseen(64, LONG), 0)
        else:
            keep(run, *write(net, calls=run["calls"], block=block, corrector=corrector, seed=run["seed"]))


if __name__ == "__main__":
    main()
