"""Evaluate the conclusions of evidence/findings.toml on the records of experiments/results/: no Sphinx, no torch.

A finding has one test or more, each of a kind of this closed list:

    ordering    value of `more` minus value of `less`, paired: its 95% interval lies above 0
    ratio       value of `more` over value of `less`: its 95% interval lies within `low` to `high`
    interval    value of `of`: its 95% interval lies within `low` to `high`
    slope       of log(value of `of`) over log(`along`), one a pair: its 95% interval lies within `low` to `high`
    timing      [median, least, most] of `more` over those of `less`: slower by `low` at least, ranges apart

`value` is a dotted path into a record; with `unfold` each entry of a dict in it is a record first, as "entry" and
"it". `where`, and the sides, are filters {path: value, or list of values}. Pairs are the values of `pair` (run.seed
if nothing is said): three or more. Layers, or windows of one text, are pairs as well; they say nothing of other seeds.
With `rate`, a side's rate is the one with the best mean `score` (`best` says whether "most" or "least" is best) over
the records of `tuned`, and must lie inside those tried. `same` names paths that must be equal on both sides,
`parameters` the relative difference that is allowed.
"""

import json
import math
import re
import statistics
import tomllib
from pathlib import Path

from _ext import evidence
from _ext.evidence import EvidenceError

SEEN = "Seen, cause not tested."
# Student's t for 95%, by degrees of freedom; the last serves for more.
STUDENT = [math.nan, 12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228]
KINDS = {"ordering": "more less", "ratio": "more less low high", "interval": "of low high",
         "slope": "of along low high", "timing": "more less low"}  # fmt: skip
OPTIONS = {"kind", "file", "value", "unfold", "where", "pair", "rate", "score", "best", "tuned", "same", "parameters"}
FILTERS = {"more", "less", "of", "where", "tuned"}
RESULTS = Path("experiments/results")
FEWEST = {"pairs": 3, "repeats": 5}
_MARK = re.compile(r"\{finding\}`([\w-]+)`")


def read(root: Path) -> tuple[list[dict], list[dict]]:
    """The findings and the filters of stale records, fields checked."""
    path = root / "evidence" / "findings.toml"
    if not path.exists():
        raise EvidenceError("evidence/findings.toml is missing")
    try:
        data = tomllib.loads(path.read_text(encoding="utf8"))
    except tomllib.TOMLDecodeError as error:
        raise EvidenceError(f"evidence/findings.toml: {error}") from error
    if set(data) - {"finding", "stale"}:
        raise EvidenceError("evidence/findings.toml: expected [[finding]] and [[stale]] tables")
    seen = set()
    for row in data.get("finding", []):
        where = f"findings.toml, finding {row.get('id', '?')!r}"
        evidence.fields(where, row, {"id": str, "sentence": str, "refuted_by": str, "test": list}, {"control": str})
        if row["id"] in seen:
            raise EvidenceError(f"{where}: the id is used twice")
        seen.add(row["id"])
        for test in row["test"]:
            needed = {"kind", "file", "value", *KINDS.get(test.get("kind"), "kind").split()}
            if test.get("kind") not in KINDS or needed - set(test) or set(test) - needed - OPTIONS:
                raise EvidenceError(f"{where}: a test of kind {test.get('kind')!r} needs {', '.join(sorted(needed))}")
            if nested := [f"{side} = {test[side]}" for side in FILTERS & set(test) if _tables(test[side])]:
                raise EvidenceError(f'{where}: quote the path, as in {{"run.name" = "a"}}: {nested[0]}')
    return data.get("finding", []), data.get("stale", [])


def marks(root: Path) -> dict[str, set[str]]:
    """Id of every finding that a page marks, to the names of the pages."""
    found: dict[str, set[str]] = {}
    for page, text in evidence.pages(root).items():
        for name in _MARK.findall(text):
            found.setdefault(name, set()).add(page)
    return found


def orphans(root: Path) -> list[str]:
    """One sentence for every finding that no page marks, mark without a finding, and record that is not there."""
    known, marked = {row["id"]: row for row in read(root)[0]}, marks(root)
    lost = [f"finding {name!r} is marked on no page" for name in known if name not in marked]
    lost += [f"{', '.join(sorted(on))} marks finding {n!r}, which is not in findings.toml"
             for n, on in marked.items() if n not in known]  # fmt: skip
    files = {(name, test["file"]) for name, row in known.items() for test in row["test"]}
    return lost + [f"finding {name!r} rests on {file}, which is not in experiments/results/"
                   for name, file in sorted(files) if not (root / RESULTS / file).exists()]  # fmt: skip


def records(path: Path) -> list[dict]:
    """Lines of JSON, the last of each key; or the rows of one JSON file, each with what is said above them."""
    text = path.read_text(encoding="utf8")
    if path.suffix == ".jsonl":
        rows = list({row["key"]: row for row in map(json.loads, text.splitlines())}.values())
        about = next((row for row in rows if row.get("kind") == "about"), {})
        return [{k: v for k, v in about.items() if k not in row} | row for row in rows]
    whole = json.loads(text)
    return [{k: v for k, v in whole.items() if k != "rows"} | row for row in whole["rows"]]


def at(record: dict, path: str):
    """The value at a dotted path, or None."""
    for part in path.split("."):
        if isinstance(record, list):
            record = record[int(part)]
        else:
            record = record.get(part) if isinstance(record, dict) else None
    return record


def _tables(wanted):
    """Whether TOML read an unquoted dotted path as tables in tables."""
    return not isinstance(wanted, dict) or any(isinstance(value, dict) for value in wanted.values())


def _paths(record, start=""):
    """The dotted paths to all plain values of a record."""
    for key, value in record.items():
        yield from _paths(value, f"{start}{key}.") if isinstance(value, dict) else [(start + key, value)]


def _differ(rows):
    """The paths at which records differ, but for what was measured."""
    measured = ("key", "metrics", "seconds", "loss")
    flat = [dict(_paths({key: row[key] for key in row if key not in measured})) for row in rows]
    return sorted(path for path in set().union(*flat) if any(row.get(path) != flat[0].get(path) for row in flat))


def _fits(record, wanted):
    return all(at(record, p) in (v if isinstance(v, list) else [v]) for p, v in wanted.items())


def _side(rows, test, side, where):
    """The records of one side by pair, at its best rate where rates were tried."""
    rows = [r for r in rows if _fits(r, test[side])]
    chosen = [r for r in rows if _fits(r, test.get("where", {}))]
    if rate := test.get("rate"):
        scores = {}
        for r in (r for r in rows if _fits(r, test.get("tuned", test.get("where", {})))):
            scores.setdefault(at(r, rate), []).append(at(r, test.get("score", test["value"])))
        worst = -math.inf if (sign := 1 if test.get("best", "most") == "most" else -1) > 0 else math.inf
        means = {r: statistics.fmean(worst if s is None else s for s in v) for r, v in scores.items()}
        best = max(means, key=lambda r: sign * means[r], default=None)
        if best is None or not min(means) < best < max(means):
            raise EvidenceError(f"{where}: the best {rate} of {test[side]}, {best}, is not inside {sorted(means)}")
        chosen = [r for r in chosen if at(r, rate) == best]
    found = {}
    for r in chosen:
        if (value := at(r, test["value"])) is not None:
            found.setdefault(at(r, test.get("pair", "run.seed")), []).append((value, r))
    if chosen and not found:
        there = [path for path, value in _paths(chosen[0]) if isinstance(value, (int, float))]
        raise EvidenceError(f"{where}: no record of {test[side]} has {test['value']}; there are {', '.join(there)}")
    if doubled := [p for p, v in found.items() if len(v) > 1 and test["kind"] != "slope"]:
        by = ", ".join(_differ([r for _, r in found[doubled[0]]]))
        raise EvidenceError(f"{where}: {test[side]} has several records for {doubled}: filter them by {by}")
    return found


def _interval(values):
    """(low, high) of the mean, 95% by Student's t."""
    mean, n = statistics.fmean(values), len(values)
    reach = STUDENT[min(n, len(STUDENT)) - 1] * statistics.stdev(values) / math.sqrt(n)
    return mean - reach, mean + reach


def _equal(test, sides, pairs, where):
    for p in pairs:
        a, b = (side[p][0][1] for side in sides)
        for path in test.get("same", []):
            if at(a, path) != at(b, path):
                raise EvidenceError(f"{where}: {path} differs: {at(a, path)} and {at(b, path)}")
        sizes = a.get("parameters"), b.get("parameters")
        if (most := test.get("parameters")) is not None and abs(sizes[0] / sizes[1] - 1) > most:
            raise EvidenceError(f"{where}: {sizes} parameters differ by more than {most}")


def evaluate(root: Path, row: dict, stale: list[dict]) -> list[tuple[str, float, float, int]]:
    """(kind, low, high, pairs) of every test of a finding; EvidenceError where it does not hold."""
    return [_evaluate(root, row["id"], test, stale) for test in row["test"]]


def _evaluate(root, name, test, stale):
    kind, where = test["kind"], f"finding {name!r}, {test['kind']} of {test['value']}"
    path = root / RESULTS / test["file"]
    if not path.exists():
        raise EvidenceError(f"{where}: {test['file']} is not in experiments/results/")
    rows = records(path)
    if inner := test.get("unfold"):
        rows = [r | {"entry": name, "it": it} for r in rows for name, it in (at(r, inner) or {}).items()]
    names = [side for side in ("more", "less", "of") if side in test]
    sides = [_side(rows, test, side, where) for side in names]
    for r in (r for side in sides for pair in side.values() for _, r in pair):
        if any(s["file"] == test["file"] and _fits(r, s["where"]) for s in stale):
            raise EvidenceError(f"{where}: rests on a stale record, {r.get('key', r)}")
    pairs = sorted(set(sides[0]).intersection(*sides), key=str)
    if kind == "timing":
        return _timing(test, sides, pairs, where)
    if len(pairs) < FEWEST["pairs"]:
        have = "; ".join(f"{test[side]} has {sorted(found, key=str)}" for side, found in zip(names, sides, strict=True))
        pair = test.get("pair", "run.seed")
        raise EvidenceError(f"{where}: {len(pairs)} pairs of {pair}, 3 or more are needed: {have}")
    if len(sides) == 2:
        _equal(test, sides, pairs, where)
    if kind == "slope":
        values = [statistics.linear_regression(*zip(*[(math.log(at(r, test["along"])), math.log(v))
                  for v, r in sides[0][p]], strict=True)).slope for p in pairs]  # fmt: skip
    elif kind == "interval":
        values = [sides[0][p][0][0] for p in pairs]
    else:
        both = [tuple(side[p][0][0] for side in sides) for p in pairs]
        values = [a - b if kind == "ordering" else a / b for a, b in both]
    low, high = _interval(values)
    least, most = (0, math.inf) if kind == "ordering" else (test["low"], test["high"])
    if not (least < low if kind == "ordering" else least <= low) or not high <= most:
        raise EvidenceError(f"{where}: [{low:.4g}, {high:.4g}] is not within {least} to {most}")
    return kind, low, high, len(pairs)


def _timing(test, sides, pairs, where):
    """The least and the largest ratio of medians; every record says how often it was timed, where and when."""
    ratios = []
    for p in pairs:
        (slow, a), (fast, b) = (side[p][0] for side in sides)
        if any(r.get("repeats", 0) < FEWEST["repeats"] or not (r.get("device") and r.get("date")) for r in (a, b)):
            raise EvidenceError(f"{where}: a record lacks five repeats, device or date")
        if not slow[1] > fast[2]:
            raise EvidenceError(f"{where}: the ranges {slow[1:]} and {fast[1:]} overlap")
        ratios.append(slow[0] / fast[0])
    if not ratios or min(ratios) < test["low"]:
        raise EvidenceError(f"{where}: slower by {min(ratios, default=0):.3g}, {test['low']} was promised")
    return "timing", min(ratios), max(ratios), len(pairs)
