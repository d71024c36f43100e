"""Recall against state size: fourteen mixers, three widths, three seeds, the short convolution switched on nine.

    python -m experiments.recall --out FILE [--device cuda:0 --shard 0/2 --seconds 540] [--large 1]

Multi-query associative recall (postx.tasks.recall): a table of key-value pairs, then every key again in random order
among fillers, most of them soon. Two layers, trained on rows of 64 tokens with 2, 4, 8 and 16 pairs in equal parts;
accuracy on unseen rows is measured for each number of pairs, and for 32 pairs in 128 tokens, which was not trained.
For each mixer the learning rate is swept at width 32 (factor 3.2, extended until the best is interior) with one seed,
then used at widths 16, 32 and 64 with three seeds: about 12 runs a variant, 270 in all. Weights start five times wider
than an LM's usually do (deviation 0.1): at these widths that is what gets short trainings off the plateau on which
a model names any value of the table.

--large asks at the size of the published study: 4,096 keys and nearly as many values, 4 to 128 pairs in rows of 512
tokens, and, without training on them, 256, 512 and 1,024 pairs in rows of up to 4,096. Attention and three tables stand
there with and without the link to the token before, at width 64, where their rates are swept.

Tables have one head throughout, so that their states grow as D^2; Mamba-2's key is 16 wide instead of 128, which
puts its state among the others'. The rest is each layer's default. Where a mixer keeps a short convolution in its
published form (Mamba, Mamba-2, RG-LRU) it has one here; "+ conv" and "- conv" switch it.
"""

import torch

from experiments.runner import results, sweep
from postx import tasks

SIZES = {"keys": 64, "values": 32, "fillers": 16}
T, PAIRS, LONGER, POWER, STD = 64, (2, 4, 8, 16), ((128, 32),), 0.01, 0.1
LARGE = {"keys": 4096, "values": 4000, "fillers": 96, "pairs": [4, 16, 64, 128],
         "longer": [[1024, 256], [2048, 512], [4096, 1024]]}  # fmt: skip
LARGE_STUDY = {"T": 512, "B": 32, "steps": 1500, "widths": (64,), "form": None}  # in chunks, as each layer picks
LARGE_NAMES = ("attention + conv", "Mamba-2", "Gated DeltaNet + conv", "linear attention + conv",
               "attention", "Mamba-2 - conv", "Gated DeltaNet", "linear attention")  # fmt: skip
RATES, WIDTHS, SEEDS, TUNED = (3.2e-3, 1e-2, 3.2e-2), (16, 32, 64), (0, 1, 2), 32
HEADS = {"H": 1}  # with two, attention learns the task two or three times later
SCANS = (
    "NTWDGMS67"  # on short rows these go token by token on a GPU too: one launch instead of hundreds
)
MIXERS = {
    "attention": ("A", HEADS),
    "attention + conv": ("A", HEADS | {"conv_size": 4}),
    "local attention": ("L", HEADS | {"window": 16}),
    "linear attention": ("N", HEADS),
    "linear attention + conv": ("N", HEADS | {"conv_size": 4}),
    "RetNet": ("T", HEADS),
    "RetNet + conv": ("T", HEADS | {"conv_size": 4}),
    "GLA": ("W", HEADS),
    "GLA + conv": ("W", HEADS | {"conv_size": 4}),
    "DeltaNet": ("D", HEADS),
    "DeltaNet + conv": ("D", HEADS | {"conv_size": 4}),
    "Gated DeltaNet": ("G", HEADS | {"G": 1}),
    "Gated DeltaNet + conv": ("G", HEADS | {"G": 1, "conv_size": 4}),
    "KDA": ("kda", HEADS),
    "KDA - conv": ("kda", HEADS | {"conv_size": 0}),
    "Mamba": ("M", {}),
    "Mamba - conv": ("M", {"conv_size": 1}),
    "Mamba-2": ("S", {"K": 16}),
    "Mamba-2 - conv": ("S", {"K": 16, "conv_size": 1}),
    "RWKV-7": ("7", HEADS),
    "Hyena": ("H", {"W": T}),
    "S4D": ("I", {}),
    "RG-LRU": ("R", {}),
}


def study(name, *, widths=WIDTHS, seeds=SEEDS, rates=RATES, steps=2000, B=128, T=T, form="recurrent", task=None):
    """The learning rate at one width, then widths and seeds at the best one."""
    letter, options = MIXERS[name]
    task = {"name": "recall", "power": POWER, **(task or {"pairs": list(PAIRS), **SIZES})}
    run = {
        "name": name, "pattern": 2 * (letter if len(letter) == 1 else [letter]), "D": TUNED,
        "Y": tasks.vocabulary(**alphabets(task)), "options": {letter: options}, "task": task, "B": B, "T": T,
        "steps": steps, "seed": seeds[0], "precision": "float32", "std": STD,
    }  # fmt: skip
    if letter in SCANS and form:
        run["form"] = form
    if TUNED not in widths:
        run["D"] = widths[0]
    lr = (yield from sweep.tune(run, rates, "score"))["run"]["lr"]
    yield [run | {"lr": lr, "D": D, "seed": seed} for D in widths for seed in seeds]


def alphabets(task):
    """The sizes of a task's three alphabets."""
    return {name: task[name] for name in SIZES}


def data(run):
    """All training rows: as many of each number of pairs, shuffled; [steps, B, T]."""
    sizes = alphabets(run["task"])
    rows, pairs = run["steps"] * run["B"], run["task"]["pairs"]
    parts = []
    for i, n in enumerate(pairs):
        many = len(range(i, rows, len(pairs)))
        parts.append(tasks.recall(many, run["T"], pairs=n, power=POWER, seed=(run["seed"], i), **sizes))
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(run["seed"]))
    return [
        torch.cat(x)[order].to(torch.int16).view(-1, run["B"], run["T"]) for x in zip(*parts, strict=True)
    ]


def score(lm, run, at_once=64):
    """Accuracy for each number of pairs, longer rows than it was trained on included, and their mean as "score".

    Very long rows are fewer, and taken fewer at a time: an answer is as good there, and logits are large.
    """
    found, task = {}, run["task"]
    for T_, n in [*((run["T"], n) for n in task["pairs"]), *task.get("longer", LONGER)]:
        fewer = max(1, T_ // (2 * run["T"]))
        ids, targets = tasks.recall(8 * run["B"] // fewer, T_, pairs=n, power=POWER, seed=(10**6, n), **alphabets(task))
        found[str(n)] = sweep.accuracy(lm, ids, targets, max(1, at_once // fewer))
    return found | {"score": sum(found.values()) / len(found)}


def table(path=results.RESULTS / "recall.jsonl"):
    """Rows for the book: `experiments.runner.results.table`."""
    return results.table(path)


def main():
    args = sweep.arguments(__doc__, steps=2000, form="recurrent", large=0)
    options = LARGE_STUDY | {"task": LARGE} if args.large else {"steps": args.steps, "form": args.form}
    if args.small:
        options |= {"widths": (16,), "seeds": (0,), "rates": (1e-2,), "steps": 20, "B": 8}
    studies = {name: study(name, **options) for name in (LARGE_NAMES if args.large else MIXERS)}
    sweep.sweep(studies, data=data, score=score, args=args)
    if not args.list:
        pairs = [*LARGE["pairs"], *(n for _, n in LARGE["longer"])] if args.large else [*PAIRS, LONGER[0][1]]
        print(results.show(table(args.out), [str(n) for n in pairs]))


if __name__ == "__main__":
    main()
