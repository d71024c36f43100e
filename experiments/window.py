"""What the window over Hyena's filters allows: small recall with a filter from a network, and with springs.

    python -m experiments.window [FILE]     default: experiments/results/window.jsonl; runs that stand there are kept

The task, the network and the training are those of the chapter on long convolutions: texts of 24 symbols, two marks,
400 steps of 32 texts, one layer of width 32. Filters from a network have one of three windows (fading to 0; with the
published floor of 0.05; none) and start at one of three frequencies. Two learning rates at the first seed, then two
more seeds at the better one. Accuracy is that of unseen texts, in all and by the distance from symbol to question.
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
from postx.mixers import attention, hyena, s4d
from postx.parts import conv
from postx.scans import set_threads

RESULTS = Path(__file__).resolve().parent / "results" / "window.jsonl"
WINDOWS, FREQUENCIES, RATES, SEEDS = ("to zero", "floor", "none"), (1, 3, 10), (1e-2, 2e-2), (0, 1, 2)
MARKS, STEPS, D = 2, 400, 32


def page():
    """What the chapter's tagged cells define: texts, Filter, mix, Model."""
    scope = {"torch": torch, "nn": nn, "F": F, "attention": attention, "s4d": s4d, "conv": conv}
    for cell in nbformat.read(find("long_convolutions"), as_version=4).cells:
        if "experiment" in cell.metadata.get("tags", []):
            exec(cell.source, scope)
    return scope


class FromNetwork(nn.Module):
    """A filter from a network, [D, T], under one of the windows."""

    def __init__(self, T, window, frequency):
        super().__init__()
        self.filters = hyena.Filters(1, D, T, frequency=frequency, floor=0.05 if window == "floor" else 0.0)
        if window == "none":
            self.filters.window_DW.fill_(1.0)

    def forward(self):
        return self.filters()[0]


def train(scope, filter_of, rate, seed):
    """(accuracy, accuracy by distance) of one model after its training."""
    texts, T = scope["texts"], scope["LENGTH"] + MARKS
    torch.manual_seed(seed)
    model, g = scope["Model"]("H3", MARKS, D), torch.Generator().manual_seed(seed)
    if filter_of is not None:
        model.filter = FromNetwork(T, *filter_of)
    adam = torch.optim.Adam(model.parameters(), fused=True)
    pace = torch.optim.lr_scheduler.OneCycleLR(adam, rate, total_steps=STEPS)
    for _ in range(STEPS):
        text, answer = texts(32, MARKS, g)
        F.cross_entropy(model(text)[:, -MARKS:].flatten(0, 1), answer.flatten()).backward()
        adam.step(), pace.step(), adam.zero_grad()
    text, answer = texts(2048, MARKS, torch.Generator().manual_seed(999))
    with torch.no_grad():
        right = model(text)[:, -MARKS:].argmax(-1) == answer
    asked = text[:, -MARKS:, None] == text[:, None, : scope["LENGTH"]]  # where the mark of each question stands
    symbol = asked.float().argmax(-1) + 1
    distance = scope["LENGTH"] + torch.arange(MARKS) - symbol
    by = {int(d): round(right[distance == d].float().mean().item(), 4) for d in distance.unique()}
    return right.float().mean().item(), by


def main(path):
    set_threads(1)
    scope, rows = page(), [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def run(name, filter_of, rate, seed):
        for row in rows:
            if (row["name"], row["rate"], row["seed"]) == (name, rate, seed):
                return row
        score, by = train(scope, filter_of, rate, seed)
        row = {"key": f"{name} {rate} {seed}", "name": name, "rate": rate, "seed": seed}
        row |= {"accuracy": round(score, 4), "by_distance": by}
        row |= dict(zip(("window", "frequency"), filter_of or ("", None), strict=True))
        row |= {"device": f"CPU ({platform.machine()})", "torch": torch.__version__}
        row["date"] = datetime.date.today().isoformat()
        rows.append(row)
        with path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(name, rate, seed, row["accuracy"], flush=True)
        return row

    cases = [("springs", None)]
    cases += [(f"{window}, {frequency}", (window, frequency)) for window in WINDOWS for frequency in FREQUENCIES]
    for name, filter_of in cases:
        best = max((run(name, filter_of, rate, SEEDS[0]) for rate in RATES), key=lambda row: row["accuracy"])
        for seed in SEEDS[1:]:
            run(name, filter_of, best["rate"], seed)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else RESULTS)
