"""Recall against the size of a table: trained with several feature maps, and not trained at all.

    python -m experiments.rows [FILE]     default: experiments/results/rows.jsonl; runs that stand there are kept

The task, the network and the training are those of the chapter on linear attention: 16 of 32 names, 8 colors, one
layer of width 32, 200 steps of 32 texts. Two learning rates at the first seed, then two more seeds at the better one.
"""

import datetime
import json
import platform
import sys
from pathlib import Path

import nbformat
import torch
from torch import nn
from torch.nn import functional as F

from _ext.pages import find
from postx.mixers import attention, linear
from postx.scans import set_threads
from postx.scans.decay_chunked import decay_chunked

RESULTS = Path(__file__).resolve().parent / "results" / "rows.jsonl"
RATES, SEEDS = (1e-2, 3e-2), (0, 1, 2)
CASES = [(mixer, K) for mixer in ("linear", "identity") for K in (4, 8, 16, 32)]
CASES += [("Taylor", 4), ("Taylor", 8), ("softmax", 4), *(("untrained", K) for K in (4, 8, 16, 32))]


def page():
    """What the chapter's tagged cells define: taylor, with_features, mixers, texts, Recall, accuracy, untrained."""
    scope = {"torch": torch, "nn": nn, "F": F, "attention": attention, "linear": linear}
    scope["decay_chunked"] = decay_chunked
    for cell in nbformat.read(find("linear_attention"), as_version=4).cells:
        if "experiment" in cell.metadata.get("tags", []):
            exec(cell.source, scope)
    return scope


def numbers(mixer, K, V=32, pairs=16):
    """How many numbers the memory of this mixer has after the text's pairs."""
    rows = 1 + K + K * (K + 1) // 2 if mixer == "Taylor" else K
    if mixer == "softmax":
        return pairs * (K + V)
    return rows * (V + (mixer in ("linear", "Taylor")))  # the normalizer is one more column


def main(path):
    set_threads(1)
    scope, rows = page(), [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def run(mixer, K, rate, seed):
        for row in rows:
            if (row["mixer"], row["K"], row["rate"], row["seed"]) == (mixer, K, rate, seed):
                return row
        if mixer == "untrained":
            score = scope["untrained"](K, torch.Generator().manual_seed(seed))
        else:
            score = scope["accuracy"](mixer, K, rate, seed=seed)
        row = {"key": f"{mixer} {K} {rate} {seed}", "mixer": mixer, "K": K, "numbers": numbers(mixer, K)}
        row |= {"rate": rate, "seed": seed}
        row |= {"accuracy": round(score, 4), "device": f"CPU ({platform.machine()})", "torch": torch.__version__}
        row["date"] = datetime.date.today().isoformat()
        rows.append(row)
        with path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(mixer, K, rate, seed, row["accuracy"], flush=True)
        return row

    for mixer, K in CASES:
        rates = (None,) if mixer == "untrained" else RATES
        best = max((run(mixer, K, rate, SEEDS[0]) for rate in rates), key=lambda row: row["accuracy"])
        for seed in SEEDS[1:]:
            run(mixer, K, best["rate"], seed)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else RESULTS)
