"""Read the experiments' lines of JSON: no torch, so that a page can do it quickly."""

import json
import math
import statistics
from pathlib import Path

RESULTS = Path(__file__).resolve().parents[1] / "results"


def read(*paths):
    """The records of these files, the last one of each key. A file that does not exist holds none."""
    records = {}
    for path in map(Path, paths):
        if path.exists():
            for line in path.read_text(encoding="utf8").splitlines():
                record = json.loads(line)
                records[record["key"]] = record
    return list(records.values())


def best_rate(records):
    """{lr: mean score}, and the best learning rate with whether it lies inside those tried.

    A run that diverged or failed has no score and counts as worse than any.
    """
    scores = {}
    for record in records:
        value = -math.inf if record["metrics"] is None else record["metrics"]["score"]
        scores.setdefault(record["run"]["lr"], []).append(value)
    means = {lr: statistics.fmean(values) for lr, values in sorted(scores.items())}
    best = max(means, key=means.get)
    return means, best, min(means) < best < max(means)


def mean_and_deviation(values):
    """(mean, standard deviation over seeds: n - 1 in the denominator, 0.0 for one); not numbers if one is not."""
    values = list(values)
    if not all(math.isfinite(x) for x in values):
        return math.nan, math.nan
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def table(path, *metrics):
    """One row for each name and D: the runs at the learning rate that won for the name, summarised over seeds.

    Rows are dicts: name, D, lr, lr_interior, seeds, parameters, state_floats, diverged, and for each metric
    (name, mean), (name, deviation) as "mean" and "deviation" dicts. Sorted by state_floats. A name without a run of
    the first seed, 0, at which rates are tried, has no row: its rates stand in another file (`--have`).
    """
    records = [r for r in read(path) if "error" not in r]
    rows = []
    for name in dict.fromkeys(r["run"]["name"] for r in records):
        mine = [r for r in records if r["run"]["name"] == name]
        tuned_at = _tuning_size(mine)
        tried = [r for r in mine if r["run"]["D"] == tuned_at and r["run"]["seed"] == 0]
        if not tried:
            continue
        _, lr, interior = best_rate(tried)
        for D in sorted({r["run"]["D"] for r in mine}):
            chosen = [r for r in mine if r["run"]["D"] == D and r["run"]["lr"] == lr]
            good = [r for r in chosen if r["metrics"] is not None]
            if not good:
                continue
            keys = metrics or [k for k, x in good[0]["metrics"].items() if not isinstance(x, list | dict)]
            values = {k: mean_and_deviation(_flat(r["metrics"][k]) for r in good) for k in keys}
            rows.append({
                "name": name, "D": D, "lr": lr, "lr_interior": interior, "seeds": len(good),
                "diverged": len(chosen) - len(good), "parameters": good[0]["parameters"],
                "state_floats": good[0]["state_floats"],
                "mean": {k: v[0] for k, v in values.items()}, "deviation": {k: v[1] for k, v in values.items()},
            })  # fmt: skip
    return sorted(rows, key=lambda row: (row["state_floats"], row["name"]))


def _tuning_size(records):
    """The size at which most learning rates were tried."""
    rates = {}
    for r in records:
        rates.setdefault(r["run"]["D"], set()).add(r["run"]["lr"])
    return max(rates, key=lambda D: len(rates[D]))


def _flat(value):
    """A metric that could not be measured (None: the model stops there) is not a number."""
    return math.nan if value is None else value


def show(rows, metrics):
    """The rows as lines of text, state floats beside every accuracy."""
    head = f"{'name':26}{'D':>5}{'state':>10}{'params':>10}{'lr':>9}{'seeds':>6}  "
    lines = [head + " ".join(f"{metric:>13}" for metric in metrics)]
    for row in rows:
        lr = f"{row['lr']:.0e}" + ("" if row["lr_interior"] else "*")
        line = f"{row['name']:26}{row['D']:5}{row['state_floats']:10}{row['parameters']:10}{lr:>9}{row['seeds']:6}  "
        lines.append(line + " ".join(f"{row['mean'][m]:6.3f} ±{row['deviation'][m]:5.3f}" for m in metrics))
    return "\n".join([*lines, "* the best learning rate was the last of those tried"])
