"""How few attention layers: 0, 1, 2, 4 or all 8 of eight, and where the one stands; recall, text loss, KV bytes.

    python -m experiments.hybrids --out FILE [--text FILE.npz] [--small] [--shard 0/2] [--seconds N]
    python -m experiments.hybrids --out FILE --summary 1    a table of what FILE holds, by family and attention layers

Three families: SSD and Gated DeltaNet with causal attention, RG-LRU with local attention (as Griffin pairs them).
All patterns have an MLP after every mixer, whose width makes the parameters equal to 5%, and attention has the short
convolution that the other layers have, so that what is compared is memory and not who finds the token before.
Recall, at width 64: multi-query associative recall; training mixes 8 to 32 pairs in 128 tokens, and the most are too
many for these states; each number is asked on its own afterwards; two learning rates, the better one with another
seed. Text, at width 128: bytes, bits per byte on unseen topics and modules; one learning rate, two seeds. Eight
attention layers are the same model for both families with causal attention.
"""

import torch

from experiments.runner import corpus
from experiments.runner.equal import config, kv_bytes, spread
from experiments.runner.sweep import arguments, best, read, sweep
from postx import tasks
from postx.train import measure

DEPTH = 8
CONTEXT = 32_768  # tokens for which the bytes of keys and values are stated
SIZES = {  # of each task; states are 512 numbers a layer on recall (RG-LRU: 64), 4,096 on text (RG-LRU: 128)
    "recall": {"D": 64, "T": 128, "target": 300_000, "B": 64, "steps": 1000, "std": 0.1},
    "text": {"D": 128, "T": 256, "target": 1_600_000, "B": 32, "steps": 640, "std": 0.02},
}
TABLES = {
    "recall": {
        "A": {"H": 2, "conv_size": 4}, "L": {"H": 2, "window": 32, "conv_size": 4},
        "S": {"K": 4, "V": 32}, "G": {"H": 2, "G": 2, "K": 16, "V": 16, "conv_size": 4}, "R": {},
    },
    "text": {
        "A": {"H": 2, "conv_size": 4}, "L": {"H": 2, "window": 128, "conv_size": 4},
        "S": {"K": 16, "V": 64}, "G": {"H": 4, "G": 4, "K": 32, "V": 32, "conv_size": 4}, "R": {},
    },
}  # fmt: skip
FAMILIES = {"ssd": ("S", "A"), "gated_deltanet": ("G", "A"), "rglru": ("R", "L")}
PLACES = [(0, "spread"), (1, "first"), (1, "middle"), (1, "last"), (2, "spread"), (4, "spread"), (8, "spread")]
ALPHABETS = {"keys": 64, "values": 64, "fillers": 16}
PAIRS = (8, 16, 32)
RATES, SEEDS = {"recall": (3.2e-3, 1e-2), "text": (2e-3,)}, (0, 1)
STORED = 512  # recall batches drawn for a run; later steps see them again


def patterns(depth=DEPTH):
    """{pattern: [(family, attention layers, where), ...]}: every point of the figure, each pattern once."""
    found = {}
    for family, (mixer, attention) in FAMILIES.items():
        for n, where in PLACES:
            n = depth if n == DEPTH else n
            if n < depth or where == "spread" and n == depth:
                points = found.setdefault(spread(mixer, attention, depth, n, where), [])
                if (family, n, where) not in points:
                    points.append((family, n, where))
    return found


def runs(small=False):
    """{study: its first run}; a study is one pattern on one task."""
    depth = 4 if small else DEPTH
    asked = {"name": "recall", "pairs": PAIRS, **ALPHABETS}
    if small:
        asked |= {"pairs": (4, 8), "keys": 16, "values": 16, "fillers": 8}
    found = {}
    for task in (asked, {"name": "text"}):
        name, size, table = task["name"], dict(SIZES[task["name"]]), TABLES[task["name"]]
        if small:
            size |= {"D": 32, "T": 64, "target": 40_000, "B": 8, "steps": 12}
            table = table | {"L": {"H": 4, "window": 16}, "S": {"K": 8, "V": 16}, "G": {"G": 4, "K": 8, "V": 8}}
        Y = 256 if name == "text" else tasks.vocabulary(**{key: asked[key] for key in ALPHABETS})
        target = size.pop("target")
        for pattern, points in patterns(depth).items():
            if small and not {(n, where) for _, n, where in points} & {(0, "spread"), (1, "middle"), (depth, "spread")}:
                continue
            found[f"{name}-{pattern}"] = {
                **config(pattern, size["D"], Y, target, table), **size, "name": f"{name}-{pattern}", "points": points,
                "kv_bytes": kv_bytes(pattern, CONTEXT, size["D"], table), "context": CONTEXT, "task": task,
                "precision": "bf16" if name == "text" else "float32", "seed": SEEDS[0],
            }  # fmt: skip
    return found


def study(run, rates=None, seeds=SEEDS):
    """The rates at the first seed (the better one counts), then the better rate at the other seeds."""
    metric = "accuracy" if run["task"]["name"] == "recall" else "score"
    rates = rates or RATES[run["task"]["name"]]
    found = yield [run | {"lr": lr} for lr in rates]
    chosen = best(found, metric)["run"]
    yield [chosen | {"seed": seed} for seed in seeds[1:]]


def main():
    args = arguments(__doc__, text="", summary=0)
    if args.summary:
        return summary(read(args.out, *args.have))
    text, about = corpus.load(args.text or None, 4_000 if args.small else None)
    found = runs(args.small)
    for run in found.values():
        if run["task"]["name"] == "text":
            run["task"] = about
        if torch.device(args.device).type == "cpu":
            run["precision"] = "float32"
    first = {"rates": (2e-3,), "seeds": SEEDS[:1]} if args.small else {}
    sweep({name: study(run, **first) for name, run in found.items()}, data=lambda run: data(run, text),
          score=lambda lm, run: score(lm, run, text), args=args)  # fmt: skip


def data(run, text):
    """The batches of a run: text windows, or recall with the numbers of pairs in turn."""
    if run["task"]["name"] == "text":
        return corpus.batches(text, run)
    drawn = [_recall(run, run["task"]["pairs"][step % len(run["task"]["pairs"])], run["B"], (run["seed"], step))
             for step in range(min(run["steps"], STORED))]  # fmt: skip
    return tuple(torch.stack(x).int() for x in zip(*drawn, strict=True))


def _recall(run, pairs, B, seed):
    return tasks.recall(B, run["T"], pairs=pairs, **{key: run["task"][key] for key in ALPHABETS}, seed=seed)


def score(lm, run, text):
    """Accuracy by number of pairs on rows that no training saw, or bits per byte on the validation and test texts."""
    if run["task"]["name"] == "text":
        found = {f"{split}_bits": corpus.bits(lm, text, split, run["T"]) for split in ("validation", "test")}
        return found | {"score": -found["validation_bits"]}
    right = {}
    for pairs in run["task"]["pairs"]:
        rows = [_recall(run, pairs, 64, (10**6, i)) for i in range(1 if run["B"] < 32 else 4)]
        right[str(pairs)] = measure(lm, rows)["accuracy"]
    return {"accuracy": sum(right.values()) / len(right), "by_pairs": right}


def summary(records):
    """One line a point: what the figure shows."""
    rows = {}
    for record in records:
        run, metrics = record["run"], record["metrics"]
        if metrics is None:
            continue
        for family, n, where in run["points"]:
            row = rows.setdefault((family, n, where), {"kv": run["kv_bytes"]})
            row.setdefault(run["task"]["name"], []).append((metrics, record["state_floats"]))
    for (family, n, where), row in sorted(rows.items()):
        recall = [(m["by_pairs"], s) for m, s in row.get("recall", [])]
        top = max(recall, key=lambda r: sum(r[0].values()), default=({}, 0))
        shown = " ".join(f"{pairs}:{share:.3f}" for pairs, share in top[0].items())
        bits = min((m["validation_bits"] for m, _ in row.get("text", [])), default=float("nan"))
        print(f"{family:15} {n} {where:7} KV {row['kv']:>11,} B  state {top[1]:>9,}  recall {shown}  bits {bits:.4f}")
    return rows


if __name__ == "__main__":
    main()
