"""Selective copying on complete models: S4D, Hyena, Mamba, Mamba-2, attention, and two more; three seeds.

    python -m experiments.copying --out FILE [--device cuda:0 --shard 0/2 --seconds 300]

Eight symbols of sixteen stand at random places among blanks in a row of 128 tokens, the last 8 of which ask for them
in order (postx.tasks.selective_copying). Two layers of width 64; each model's learning rate is swept with one seed,
extended until the best is interior, then used with three seeds. Accuracy is the share of symbols right on unseen rows
of 128 tokens, and of 256 and 512, which were not trained; "plain" has the symbols at the front, one after the other.
`experiments/selective_copying.py` is the small sweep of chapter 3, on one layer's parts; this one takes whole models.
"""

import torch

from experiments.runner import results, sweep
from postx import tasks

SYMBOLS, TOKENS, T, LONGER, SEEDS, RATES, D, STD = 16, 8, 128, (256, 512), (0, 1, 2), (1e-3, 3.2e-3, 1e-2), 64, 0.1
MODELS = {
    "S4D": ("II", {}),
    "Hyena": ("HH", {"H": {"W": T}}),
    "Mamba": ("MM", {}),
    "Mamba-2": ("SS", {"S": {"K": 32}}),
    "attention": ("AA", {"A": {"H": 1}}),
    "Gated DeltaNet": ("GG", {"G": {"H": 1, "G": 1, "conv_size": 4}}),
    "RG-LRU": ("RR", {}),
}
SCANS = "MSG"  # by the Triton kernels on a GPU, token by token


def study(name, *, steps=2000, B=64, seeds=SEEDS, rates=RATES, width=D, form="recurrent"):
    """The learning rate with one seed, then the other seeds at the best."""
    pattern, options = MODELS[name]
    run = {
        "name": name, "pattern": pattern, "D": width, "Y": tasks.vocabulary(symbols=SYMBOLS, fillers=1),
        "options": options, "task": {"name": "selective_copying", "symbols": SYMBOLS, "tokens": TOKENS},
        "B": B, "T": T, "steps": steps, "seed": seeds[0], "precision": "float32", "std": STD,
    }  # fmt: skip
    if pattern[0] in SCANS:
        run["form"] = form
    lr = (yield from sweep.tune(run, rates, "score"))["run"]["lr"]
    yield [run | {"lr": lr, "seed": seed} for seed in seeds]


def data(run):
    """Fresh rows for every step, [steps, B, T]."""
    rows = run["steps"] * run["B"]
    found = tasks.selective_copying(rows, run["T"], tokens=TOKENS, symbols=SYMBOLS, seed=run["seed"])
    return [x.to(torch.int16).view(-1, run["B"], run["T"]) for x in found]


def score(lm, run):
    """Accuracy at each length ("score" is that trained on), and on rows whose symbols stand at the front."""
    found, rows = {}, 4 * run["B"]
    for length in (run["T"], *LONGER):
        ids, targets = tasks.selective_copying(
            rows, length, tokens=TOKENS, symbols=SYMBOLS, seed=(10**6, length)
        )
        found[str(length)] = sweep.accuracy(lm, ids, targets, max(1, 2**14 // length))
    return found | {"plain": sweep.accuracy(lm, *plain(rows, run["T"]), 64), "score": found[str(run["T"])]}


def plain(rows, length):
    """The task without selection: the symbols first, then blanks."""
    ids, targets = tasks.selective_copying(rows, length, tokens=TOKENS, symbols=SYMBOLS, seed=(10**6, 0))
    blank = tasks.alphabets(symbols=SYMBOLS, fillers=1)["fillers"].start
    ids[:, : length - TOKENS] = blank
    ids[:, :TOKENS] = targets[:, length - TOKENS :]
    return ids, targets


def table(path=results.RESULTS / "copying.jsonl"):
    """Rows for the book: `experiments.runner.results.table`."""
    return results.table(path)


def main():
    args = sweep.arguments(__doc__, steps=2000, form="recurrent")
    options = {"steps": args.steps, "form": args.form}
    if args.small:
        options |= {"steps": 20, "B": 4, "seeds": (0,), "rates": (3.2e-3,), "width": 16}
    sweep.sweep({name: study(name, **options) for name in MODELS}, data=data, score=score, args=args)
    if not args.list:
        print(results.show(table(args.out), ["128", "256", "512", "plain"]))


if __name__ == "__main__":
    main()
