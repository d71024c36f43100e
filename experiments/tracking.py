"""Rewriting and parity: what an update that reads before it writes buys, and what a step that may turn its state buys.

    python -m experiments.tracking --out FILE [--only NAME ...] [--shard 0/2] [--seconds N] [--small]

Two tasks (postx.tasks). `rewriting`: 24 pairs with 8 keys, so that two values of three are old when a key is asked;
rows with 8 pairs, where none is old, are asked too and are the control: a model that fails there does not know the
lookup. `parity`: the number of ones so far, at every token of rows of 64, then to 1,024. The same models do both:
beta in (0, 1) and (0, 2) is the one difference within each pair, attention and an additive table stand beside them.
Two layers of width 64, each with a short convolution where the layer has one; weights start with deviation 0.1. The
rate is swept with the first seed, its grid widened until the best is inside, then three seeds.
"""

import torch

from experiments.runner import sweep
from postx import tasks

D, STD, SEEDS, RATES = 64, 0.1, (0, 1, 2), (1e-3, 3.2e-3, 1e-2)
SIZES = {"keys": 64, "values": 64}
TASKS = {
    "rewriting": {"T": 64, "writes": 24, "held": 8},
    "parity": {"T": 64, "longer": [128, 256, 512, 1024]},
}
ONE, CONV = {"H": 1}, {"conv_size": 4}
TURNS = {"negative_eigenvalues": True}
MODELS = {
    "attention": ("A", ONE | CONV),
    "linear attention": ("N", ONE | CONV),
    "GLA": ("W", ONE | CONV),
    "Mamba-2": ("S", {"K": 32}),
    "Mamba-3": ("mamba3", {"K": 32}),
    "DeltaNet": ("D", ONE | CONV),
    "DeltaNet, beta to 2": ("D", ONE | CONV | TURNS),
    "Gated DeltaNet": ("G", ONE | CONV | {"G": 1}),
    "Gated DeltaNet, beta to 2": ("G", ONE | CONV | {"G": 1} | TURNS),
    "KDA": ("kda", ONE | CONV),
    "KDA, beta to 2": ("kda", ONE | CONV | TURNS),
    "RWKV-7": ("7", ONE),
}


def study(name, task, *, steps=1500, B=64, seeds=SEEDS, rates=RATES, width=D):
    """The learning rates at the first seed, then the other seeds at the best one."""
    letter, options = MODELS[name]
    sizes = SIZES if task == "rewriting" else {"bits": 2}
    run = {
        "name": name, "pattern": [letter] * 2, "D": width, "Y": tasks.vocabulary(**sizes), "options": {letter: options},
        "task": {"name": task, **TASKS[task]}, "B": B, "T": TASKS[task]["T"], "steps": steps, "seed": seeds[0],
        "precision": "float32", "std": STD,
    }  # fmt: skip
    lr = (yield from sweep.tune(run, rates, "score"))["run"]["lr"]
    yield [run | {"lr": lr, "seed": seed} for seed in seeds]


def rows(task, n, T, seed, **more):
    """(ids, targets) of n rows."""
    if task["name"] == "parity":
        return tasks.parity(n, T, seed=seed)
    return tasks.rewriting(n, T, **{"writes": task["writes"], "held": task["held"], **SIZES} | more, seed=seed)


def data(run):
    """Fresh rows for every step, [steps, B, T]; of `rewriting` every second row writes each key once."""
    n = run["steps"] * run["B"]
    if run["task"]["name"] == "parity":
        found = rows(run["task"], n, run["T"], (run["seed"], 0))
    else:
        parts = [rows(run["task"], n // 2, run["T"], (run["seed"], 0)),
                 rows(run["task"], n - n // 2, run["T"], (run["seed"], 1), writes=run["task"]["held"])]  # fmt: skip
        order = torch.randperm(n, generator=torch.Generator().manual_seed(run["seed"]))
        found = [torch.cat(x)[order] for x in zip(*parts, strict=True)]
    return [x.to(torch.int16).view(run["steps"], run["B"], run["T"]) for x in found]


def score(lm, run):
    """Accuracy: `rewritten` and `once`; or parity at each length, of the last quarter of its tokens."""
    task = run["task"]
    if task["name"] == "rewriting":
        found = {
            name: sweep.accuracy(lm, *rows(task, 8 * run["B"], run["T"], (10**6, i), **more), 64)
            for i, (name, more) in enumerate((("rewritten", {}), ("once", {"writes": task["held"]})))
        }
        return found | {"score": found["rewritten"]}
    found = {}
    for T in (run["T"], *task["longer"]):
        ids, targets = rows(task, 4 * run["B"], T, (10**6, T))
        targets[:, : 3 * T // 4] = tasks.UNASKED
        found[str(T)] = sweep.accuracy(lm, ids, targets, 64)
    return found | {"score": sum(found.values()) / len(found)}


def main():
    args = sweep.arguments(__doc__)
    options = {"seeds": (0,), "rates": (3.2e-3,), "steps": 20, "B": 8, "width": 16} if args.small else {}
    studies = {f"{task}: {name}": study(name, task, **options) for task in TASKS for name in MODELS}
    sweep.sweep(studies, data=data, score=score, args=args)


if __name__ == "__main__":
    main()
