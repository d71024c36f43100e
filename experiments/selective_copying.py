"""Selective copying: five layers, three learning rates each, then three seeds at the best rate of each layer.

    python experiments/selective_copying.py [FILE]     default: experiments/results/selective_copying.json

The task, the network and the training loop are those of chapter 3: the cells tagged "experiment" are run from the
notebook's own source. Lines of 64 tokens with 4 data tokens, 1,000 steps of 32 lines, two layers of width 32.
Accuracy is the share of data tokens repeated right on unseen lines, also on lines shorter and longer than those
trained on. "plain": the data tokens always stand at the front. About ten minutes on two cores. Chapter 3 shows the
file.
"""

import datetime
import json
import platform
import sys
from functools import partial
from pathlib import Path

import nbformat
import torch
from torch.nn.functional import softplus

from postx.mixers import mamba, s4d
from postx.scans import set_threads

ROOT = Path(__file__).resolve().parent.parent
CHAPTER = ROOT / "chapters" / "03_selective_ssm.ipynb"
STEPS, RATES, SEEDS, LENGTHS, TOKENS, DATA = 1000, (3e-3, 1e-2, 3e-2), (0, 1, 2), (32, 64, 128, 256), 64, 4


def page():
    """What the chapter's tagged cells define: copying, Rung, train, accuracy."""
    scope = {"torch": torch, "mamba": mamba, "softplus": softplus}
    for cell in nbformat.read(CHAPTER, as_version=4).cells:
        if "experiment" in cell.metadata.get("tags", []):
            exec(cell.source, scope)
    return scope


def layers(Rung):
    """Name, layer, and what differs in the task."""
    return {
        "fixed": (partial(Rung, selects=()), {}),
        "Delta": (partial(Rung, selects=("Delta",)), {}),
        "Delta, B, C": (partial(Rung, selects=("Delta", "B", "C")), {}),
        "Mamba block": (mamba.Layer, {}),
        "S4D": (partial(s4d.Layer, N=8), {}),
        "S4D, plain": (partial(s4d.Layer, N=8), {"scattered": False}),
    }


def main(path):
    set_threads(1)
    scope, rows = page(), []

    def run(name, layer, task, rate, seed):
        net, _ = scope["train"](layer, steps=STEPS, T=TOKENS, n=DATA, rate=rate, seed=seed, **task)
        scores = {str(T): round(scope["accuracy"](net, T, DATA, **task), 4) for T in LENGTHS}
        rows.append({"layer": name, "rate": rate, "seed": seed, "accuracy": scores})
        print(rows[-1], flush=True)
        return scores[str(TOKENS)]

    for name, (layer, task) in layers(scope["Rung"]).items():
        best = max(RATES, key=lambda rate: run(name, layer, task, rate, SEEDS[0]))  # noqa: B023
        for seed in SEEDS[1:]:
            run(name, layer, task, best, seed)
    record = {
        "what": __doc__.splitlines()[0],
        "steps": STEPS,
        "batch": 32,
        "width": 32,
        "layers": 2,
        "tokens": TOKENS,
        "data_tokens": DATA,
        "device": f"CPU ({platform.machine()}), 1 thread",
        "torch": torch.__version__,
        "date": datetime.date.today().isoformat(),
        "rows": rows,
    }
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf8")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if sys.argv[1:] else ROOT / "experiments" / "results" / "selective_copying.json")
