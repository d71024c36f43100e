"""How few attention layers, in miniature on a CPU: the patterns of `experiments.hybrids` at width 32.

    python -m experiments.hybrids_cpu --out FILE [--shard 0/3] [--seed 0]

Four layers, an MLP after every mixer whose width makes the parameters equal to 5%. What differs from the GPU run:
two families; depth 4, width 32 and states of 128 numbers a layer (RG-LRU: 32), 48 tokens with 4 to 12 pairs, 500
steps (on text 250) at one learning rate. The attention layers have the short convolution that the others have, so
that what is compared is memory and not who finds the token before. Text: bytes of `postx.text`, 128 at a time; bits
per byte on the first 8,192 of each split.
"""

import argparse
import dataclasses
import datetime
import json
import time
from pathlib import Path

import torch

from experiments import corpus
from experiments.equal import config, spread
from postx import scans, tasks
from postx.lm import LM, count
from postx.train import measure

DEPTH, D, TARGET, WINDOW = 4, 32, 40_000, 12
TABLE = {
    "A": {"H": 2, "conv": 4}, "L": {"H": 2, "window": WINDOW, "conv": 4},
    "S": {"K": 2, "V": 16}, "R": {},
}  # fmt: skip
ALPHABETS = {"keys": 16, "values": 16, "fillers": 2}
FAMILIES = {"ssd": ("S", "A"), "rglru": ("R", "L")}  # Gated DeltaNet needs a learning rate of its own
PLACES = [(0, "spread"), (1, "first"), (1, "middle"), (1, "last"), (2, "spread"), (4, "spread")]
PAIRS, STEPS, RATE, SLICE = (4, 8, 12), {"recall": 500, "text": 250}, 1e-2, 8_192


def studies():
    """Every run but for its seed: each pattern once on each task."""
    points = {}
    for family, (mixer, attention) in FAMILIES.items():
        for n, where in PLACES:
            points.setdefault(spread(mixer, attention, DEPTH, n, where), []).append((family, n, where))
    for task, Y, T, B in (("recall", tasks.vocabulary(**ALPHABETS), 48, 32), ("text", 256, 128, 8)):
        for pattern, of in points.items():
            yield {**config(pattern, D, Y, TARGET, TABLE), "task": {"name": task}, "points": of, "T": T, "B": B,
                   "steps": STEPS[task], "lr": RATE}  # fmt: skip


def recall(run, pairs, rows, seed):
    return tasks.recall(rows, run["T"], pairs=pairs, **ALPHABETS, seed=seed)


def train(run, text):
    """The trained model; AdamW, one cycle of the learning rate, gradients clipped at 1."""
    torch.manual_seed(run["seed"])
    lm = LM(*(run[k] for k in ("pattern", "D", "Y")), mlp=run["mlp"], options=run["options"], std=0.1)
    adam = torch.optim.AdamW(lm.parameters(), fused=True)
    pace = torch.optim.lr_scheduler.OneCycleLR(adam, run["lr"], total_steps=run["steps"])
    draw = torch.Generator().manual_seed(run["seed"])
    data = torch.tensor(list(text.train), dtype=torch.int64)
    for step in range(run["steps"]):
        if run["task"]["name"] == "recall":
            batch = recall(run, PAIRS[step % len(PAIRS)], run["B"], (run["seed"], step))
        else:
            at = torch.randint(len(data) - run["T"], (run["B"], 1), generator=draw)
            batch = (data[at + torch.arange(run["T"] + 1)],)
        lm.loss(*batch).backward()
        torch.nn.utils.clip_grad_norm_(lm.parameters(), 1.0)
        adam.step()
        pace.step()
        adam.zero_grad()
    return lm.eval()


def score(lm, run, text):
    if run["task"]["name"] == "text":
        short = dataclasses.replace(text, validation=text.validation[:SLICE], test=text.test[:SLICE])
        return {f"{split}_bits": corpus.bits(lm, short, split, run["T"]) for split in ("validation", "test")}
    right = {str(pairs): measure(lm, [recall(run, pairs, 128, (10**6, 0))])["accuracy"] for pairs in PAIRS}
    return {"accuracy": sum(right.values()) / len(right), "by_pairs": right}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--shard", default="0/1")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    scans.set_threads(1)
    text, about = corpus.load()
    mine, of = map(int, args.shard.split("/"))
    done = {json.loads(line)["key"] for line in args.out.read_text().splitlines()} if args.out.exists() else set()
    for i, run in enumerate(studies()):
        run |= {"seed": args.seed}
        key = f"{run['task']['name']}-{run['pattern']}-{run['seed']}"
        if i % of != mine or key in done:
            continue
        start = time.perf_counter()
        lm = train(run, text)
        found = score(lm, run, text)
        if run["task"]["name"] == "text":
            run["task"] = about
        record = {
            "key": key, "run": run, "metrics": found, "parameters": count(lm).total,
            "state_floats": lm.state_floats(run["T"]), "seconds": round(time.perf_counter() - start, 1),
            "device": "CPU, 1 thread", "torch": torch.__version__, "date": datetime.date.today().isoformat(),
        }  # fmt: skip
        with args.out.open("a", encoding="utf8") as file:
            file.write(json.dumps(record) + "\n")
        print(key, record["seconds"], found, flush=True)


if __name__ == "__main__":
    main()
