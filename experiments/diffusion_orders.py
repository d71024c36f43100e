"""One masked denoiser, several orders: how likely it finds unseen text in each, and what it writes in each.

    python -m experiments.diffusion_orders --out experiments/results/diffusion_orders.jsonl [--rows 24]

Kind "reading": ROWS stretches of SPAN bytes, evenly spread over the validation text. For each order one exact
likelihood, by the chain rule in that order (SPAN calls), in bits a byte; then the mean over all orders, which is the
bound, estimated with its standard error. Kind "writing": 8 texts of LONG bytes, one byte a call, from left to right,
in random order within blocks, or in random order, in bits a byte under the kept hybrid from byte 64 on. Minutes on a
CPU.
"""

import argparse
import datetime
import itertools
import json
import math
import platform
from pathlib import Path

import numpy as np
import torch

from experiments.diffusion_quality import causal_bits, diversity
from postx import text
from postx.diffusion import blank, masked, times
from postx.models import checkpoints

Y, SPAN, DRAWS, LONG, SKIP = 256, 64, 64, 160, 64


def routes():
    """Orders of SPAN places, by name."""
    shuffled = [torch.randperm(SPAN, generator=torch.Generator().manual_seed(s)).tolist() for s in (0, 1)]
    apart = [i for start in (0, 4, 2, 6, 1, 3, 5, 7) for i in range(start, SPAN, 8)]
    return {"left to right": list(range(SPAN)), "right to left": list(range(SPAN))[::-1],
            "a random order": shuffled[0], "another random order": shuffled[1],
            "every eighth byte, then between": apart}  # fmt: skip


@torch.no_grad()
def orders(net, ids_BT):
    """One record for each order, and the mean over all."""
    per = ids_BT.numel() * math.log(2)
    for name, order in routes().items():
        bits = masked.in_order(net, ids_BT, Y, order).double().sum().item() / per
        yield {"kind": "reading", "name": name, "bits": round(bits, 4)}
    random = torch.Generator().manual_seed(0)
    draws = []
    for _ in range(DRAWS):  # times come in order: shuffled, so that no stretch always has the same one
        t_B = times(len(ids_BT), generator=random)[torch.randperm(len(ids_BT), generator=random)]
        draws.append(masked.nelbo_by_count(net, ids_BT, Y, t_B=t_B, generator=random).double().sum().item())
    mean, error = np.mean(draws) / per, np.std(draws, ddof=1) / math.sqrt(DRAWS) / per
    found = {"bits": round(float(mean), 4), "bits_error": round(float(error), 4)}
    yield {"kind": "reading", "name": "mean over all orders", **found}


@torch.no_grad()
def writing(net, judge, rows=8, long=LONG):
    """One record for each way to write a byte a call."""
    for name, block in (("left to right", 1), ("random in blocks of 16", 16), ("random", None)):
        given, random = blank(rows, long), torch.Generator().manual_seed(0)
        ids_BT = masked.remask(net, given, Y, steps=long, rule="random", block=block, generator=random).ids_BT
        bits = round(causal_bits(judge, ids_BT, given=SKIP), 4)
        yield {"kind": "writing", "name": name, "bits": bits, **diversity(ids_BT)}
    yield {"kind": "writing", "name": "unseen text", "bits": round(causal_bits(judge, unseen(64, long), given=SKIP), 4)}


def unseen(rows, width):
    """Stretches of the validation text, evenly spread."""
    data = text.load().validation
    at = np.linspace(0, len(data) - width - 1, rows).astype(int)[:, None] + np.arange(width)
    return torch.from_numpy(data[at].astype(np.int64))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=24)
    args = parser.parse_args()
    about = {"rows": args.rows, "T": SPAN, "long": LONG, "network": checkpoints.record("masked")["key"],
             "torch": torch.__version__, "device": f"CPU ({platform.machine()})",
             "date": datetime.date.today().isoformat()}  # fmt: skip
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with args.out.open("w", encoding="utf8") as file:
        net = checkpoints.load("masked")
        read, written = orders(net, unseen(args.rows, SPAN)), writing(net, checkpoints.load("hybrid"))
        for found in itertools.chain(read, written):
            file.write(json.dumps({"key": f"{found['kind']}: {found['name']}", **found, **about}) + "\n")
            print(found, flush=True)


if __name__ == "__main__":
    main()
