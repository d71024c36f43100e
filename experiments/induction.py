"""Induction heads: trained on 256 tokens, asked at lengths that double to 65,536.

    python -m experiments.induction --out FILE [--device cuda:0 --shard 0/2 --seconds 540]

What came after ASK the last time (postx.tasks.induction)? Sixteen symbols, ASK twice, the second time at the end of
the row; the loss counts that one answer. In half of the training rows ASK and its answer stand at up to seven more
places, which are asked too: with one question a row, attention does not find the task in the time there is. Two
layers of width 64, whose weights start with deviation 0.1. Attention is tried with no positions, rotary ones, ALiBi,
and a window of 64 tokens, each with the short convolution that the others have (that the token before is known is
then not what is tested), and once without it. Hyena's filter ends with its taps: rows that its two layers cannot span
are not asked ("stops_at"). Learning rates are swept with the first seed, and the best one is used with three seeds.

At each length 64 rows are asked, fewer at the longest; the row is read in blocks of at most 2,048 tokens through the
state that the model passes on, so memory does not grow with the length but for attention's cache.
"""

import torch

from experiments.runner import results, sweep
from postx import tasks

SYMBOLS, T, LONGEST, BLOCK, SEEDS, RATES = 16, 256, 65_536, 2_048, (0, 1, 2), (1e-3, 3.2e-3, 1e-2)
D, STD, MORE = 64, 0.1, 7
LENGTHS = tuple(2**k for k in range(6, 17))
MODELS = {
    "attention, no positions": ("AA", {"A": {"H": 1, "rope": None, "conv_size": 4}}),
    "attention, rotary": ("AA", {"A": {"H": 1, "conv_size": 4}}),
    "attention, ALiBi": ("AA", {"A": {"H": 4, "alibi": True, "conv_size": 4}}),
    "attention, window 64": ("LL", {"L": {"H": 1, "window": 64, "conv_size": 4}}),
    "attention, rotary - conv": ("AA", {"A": {"H": 1}}),
    "Mamba": ("MM", {}),
    "Mamba-2": ("SS", {"S": {"K": 32}}),
    "Gated DeltaNet": ("GG", {"G": {"H": 1, "G": 1, "conv_size": 4}}),
    "RG-LRU": ("RR", {}),
    "Hyena": ("HH", {"H": {"W": T}}),
}
SCANS = "MSG"  # by the Triton kernels on a GPU, token by token
MATRIX = "AL"  # a block of rows against the whole cache at once: few launches also at 65,536 tokens


def study(name, *, steps=1500, B=64, longest=LONGEST, seeds=SEEDS, rates=RATES, width=D, form="recurrent"):
    """The learning rates at the first seed, then the other seeds at the best one."""
    pattern, options = MODELS[name]
    run = {
        "name": name, "pattern": pattern, "D": width, "Y": tasks.vocabulary(symbols=SYMBOLS), "options": options,
        "task": {"name": "induction", "symbols": SYMBOLS, "longest": longest, "more": MORE}, "B": B, "T": T,
        "steps": steps, "seed": seeds[0], "precision": "float32", "std": STD,
    }  # fmt: skip
    if pattern[0] in SCANS:
        run["form"] = form
    if pattern[0] in MATRIX:
        run["form"] = "parallel"
    lr = (yield from sweep.tune(run, rates, "score", most=0))["run"]["lr"]
    yield [run | {"lr": lr, "seed": seed} for seed in seeds]


def data(run):
    """Fresh rows for every step, [steps, B, T]."""
    rows = run["steps"] * run["B"]
    ids, targets = tasks.induction(rows, run["T"], symbols=SYMBOLS, seed=run["seed"])
    asked_again(ids[::2], targets[::2], run["task"]["more"], run["seed"])
    return [x.to(torch.int16).view(-1, run["B"], run["T"]) for x in (ids, targets)]


def asked_again(ids, targets, more, seed):
    """Put ASK and its answer at up to `more` further places of each row, two by two after the first, in place."""
    first, answer = (ids == tasks.ASK).int().argmax(1), targets[:, -1]
    rng = torch.Generator().manual_seed(seed)
    steps = torch.rand(len(ids), ids.shape[1] // 2, generator=rng).argsort(1)[:, :more]
    at = first[:, None] + 2 + 2 * steps
    row, which = torch.nonzero(at < ids.shape[1] - 2, as_tuple=True)
    place = at[row, which]
    ids[row, place], targets[row, place] = tasks.ASK, answer[row]
    ids[row, place + 1] = answer[row]


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
    """Rows for the book: `experiments.runner.results.table`."""
    return results.table(path)


def main():
    args = sweep.arguments(__doc__, steps=1500, form="recurrent", longest=LONGEST)
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
