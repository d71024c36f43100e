"""Induction heads: trained on 256 tokens, asked at lengths that double to 65,536.

    python -m experiments.induction --out FILE [--device cuda:0 --shard 0/2 --seconds 540]

What came after ASK the last time (postx.tasks.induction)? Sixteen symbols, ASK twice, the second time at the end of
the row; the loss counts that one answer. Two layers of width 64. Attention is tried with no positions, rotary ones,
ALiBi, and a window of 64 tokens. Hyena's filter ends with its taps: rows that its two layers cannot span are not asked
("stops_at"). Learning rates are swept with the first seed, and the best one is used with three seeds.

At each length 64 rows are asked, fewer at the longest; the row is read in blocks of at most 2,048 tokens through the
state that the model passes on, so memory does not grow with the length but for attention's cache.
"""

import torch

from experiments import results, sweep
from postx import tasks

SYMBOLS, T, LONGEST, BLOCK, SEEDS, RATES, D = 16, 256, 65_536, 2_048, (0, 1, 2), (1e-3, 3.2e-3), 64
LENGTHS = tuple(2**k for k in range(6, 17))
MODELS = {
    "attention, no positions": ("AA", {"A": {"H": 1, "rope": None}}),
    "attention, rotary": ("AA", {"A": {"H": 1}}),
    "attention, ALiBi": ("AA", {"A": {"H": 1, "alibi": True}}),
    "attention, window 64": ("LL", {"L": {"H": 1, "window": 64}}),
    "Mamba": ("MM", {}),
    "Mamba-2": ("SS", {"S": {"K": 32}}),
    "Gated DeltaNet": ("GG", {"G": {"H": 1, "G": 1, "conv": 4}}),
    "RG-LRU": ("RR", {}),
    "Hyena": ("HH", {"H": {"W": T}}),
}
SCANS = "MSG"  # by the Triton kernels on a GPU, token by token


def study(name, *, steps=3000, B=128, longest=LONGEST, seeds=SEEDS, rates=RATES, width=D, form="recurrent"):
    """Both learning rates at the first seed, then the other seeds at the better one."""
    pattern, options = MODELS[name]
    run = {
        "name": name, "pattern": pattern, "D": width, "Y": tasks.vocabulary(symbols=SYMBOLS), "options": options,
        "task": {"name": "induction", "symbols": SYMBOLS, "longest": longest}, "B": B, "T": T, "steps": steps,
        "seed": seeds[0], "precision": "float32",
    }  # fmt: skip
    if pattern[0] in SCANS:
        run["form"] = form
    lr = (yield from sweep.tune(run, rates, "score", most=0))["run"]["lr"]
    yield [run | {"lr": lr, "seed": seed} for seed in seeds]


def data(run):
    """Fresh rows for every step, [steps, B, T]."""
    rows = run["steps"] * run["B"]
    ids, targets = tasks.induction(rows, run["T"], symbols=SYMBOLS, seed=run["seed"])
    return [x.to(torch.int16).view(-1, run["B"], run["T"]) for x in (ids, targets)]


def score(lm, run):
    """Accuracy at each length; "score" is the mean over all that were asked. `stops_at`: the longest it can read."""
    found, stops = {}, reach(run)
    for length in LENGTHS:
        if length > run["task"]["longest"]:
            break
        if stops is not None and length > stops:
            found[str(length)] = None
            continue
        found[str(length)] = at_length(lm, length, rows=64 if length <= 16_384 else 2**20 // length)
    asked = [x for x in found.values() if x is not None]
    trained = found[str(run["T"])]
    return found | {"score": trained, "mean": sum(asked) / len(asked), "stops_at": stops}


def reach(run):
    """The longest row that a filter of fixed length still spans from end to end; None without such an end."""
    taps = run["options"].get("H", {}).get("W")
    return taps * len(run["pattern"]) if taps else None


def at_length(lm, length, *, rows, block=BLOCK):
    """The share of rows whose last token is answered right, read in blocks through the state."""
    ids, targets = tasks.induction(rows, length, symbols=SYMBOLS, seed=(10**6, length))
    device = next(lm.parameters()).device
    right, at_once = 0, max(1, min(rows, 2**18 // length))
    for some, wanted in zip(ids.split(at_once), targets[:, -1].split(at_once), strict=True):
        S = None
        for piece in some.to(device).split(block, 1):
            logits, S = lm(piece, S)
        right += (logits[:, -1].argmax(-1).cpu() == wanted).sum().item()
    return right / rows


def table(path=results.RESULTS / "induction.jsonl"):
    """Rows for the book: `experiments.results.table`."""
    return results.table(path)


def main():
    args = sweep.arguments(__doc__, steps=3000, form="recurrent", longest=LONGEST)
    options = {"steps": args.steps, "form": args.form, "longest": args.longest}
    if args.small:
        options |= {"steps": 20, "B": 8, "longest": 512, "seeds": (0,), "rates": (3.2e-3,), "width": 16}
    studies = {name: study(name, **options) for name in MODELS}
    sweep.sweep(studies, data=data, score=score, args=args)
    if not args.list:
        lengths = [
            str(n) for n in LENGTHS if n in (256, 512, 1024, 4096, 16_384, 65_536) and n <= options["longest"]
        ]
        print(results.show(table(args.out), lengths))


if __name__ == "__main__":
    main()
