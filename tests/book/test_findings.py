"""Every finding holds on its records, is marked on a page, and the evaluator refuses what is no evidence."""

import json
import shutil
from pathlib import Path

import pytest

from _ext import findings
from _ext.evidence import EvidenceError

ROOT = Path(__file__).resolve().parents[2]
FINDINGS, STALE = findings.read(ROOT)


@pytest.mark.parametrize("row", FINDINGS, ids=[row["id"] for row in FINDINGS])
def test_a_finding_holds_on_its_records(row):
    assert len(findings.evaluate(ROOT, row, STALE)) == len(row["test"])


def test_every_finding_is_marked_and_every_mark_has_its_finding():
    assert findings.orphans(ROOT) == []


def test_a_page_has_at_most_six():
    pages = [page for on in findings.marks(ROOT).values() for page in on]
    assert {page: pages.count(page) for page in pages if pages.count(page) > 6} == {}


def run(name, seed, score, lr=0.01, parameters=100, **more):
    what = {"name": name, "seed": seed, "lr": lr} | more
    return {"key": f"{name}{seed}{lr}{more}", "run": what, "metrics": {"score": score}, "parameters": parameters}


def grid(name, scores, **more):
    """Three seeds at the rate 0.01, and worse rates beside it for the first."""
    rows = [run(name, seed, score, **more) for seed, score in enumerate(scores)]
    return [*rows, run(name, 0, 0.0, lr=0.001, **more), run(name, 0, 0.0, lr=0.1, **more)]


A, B = grid("a", (0.9, 0.91, 0.92)), grid("b", (0.8, 0.79, 0.81))
ORDERING = {
    "kind": "ordering", "file": "runs.jsonl", "value": "metrics.score", "more": {"run.name": "a"},
    "less": {"run.name": "b"}, "rate": "run.lr", "tuned": {"run.seed": 0}, "parameters": 0.05, "same": ["run.steps"],
}  # fmt: skip


@pytest.fixture
def evaluate(tmp_path):
    (tmp_path / "experiments" / "results").mkdir(parents=True)

    def of(test, rows, stale=()):
        path = tmp_path / "experiments" / "results" / "runs.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return findings.evaluate(tmp_path, {"id": "it", "test": [test]}, list(stale))[0]

    return of


def test_an_ordering_is_the_paired_interval_of_student(evaluate):
    kind, low, high, pairs = evaluate(ORDERING, A + B)
    differences = (0.1, 0.12, 0.11)  # mean 0.11, deviation 0.01
    assert (kind, pairs) == ("ordering", len(differences))
    assert low == pytest.approx(0.11 - 4.303 * 0.01 / 3**0.5)
    assert high == pytest.approx(0.11 + 4.303 * 0.01 / 3**0.5)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (B + grid("a", (0.7, 0.7, 0.7)), "is not within 0 to inf"),
        (B + grid("a", (0.9, 0.78, 0.82)), "is not within 0 to inf"),  # ahead on average, and not beyond the spread
        (B + A[:2] + A[3:], r"2 pairs.*'a'} has \[0, 1\]; .*'b'} has \[0, 1, 2\]"),
        (B + A[:4], "is not inside"),  # no larger rate was tried
        (B + grid("a", (0.9, 0.91, 0.92), parameters=106), "parameters differ"),
        (B + grid("a", (0.9, 0.91, 0.92), steps=2000), "run.steps differs"),
        (B + A + [run("a", 1, 0.9, other=True)], "several records.* filter them by run.other"),
        (B + [row | {"metrics": {"right": 1}} for row in A], "no record .*; there are .*metrics.right"),
    ],
)
def test_what_is_no_evidence_is_refused(evaluate, rows, message):
    with pytest.raises(EvidenceError, match=message):
        evaluate(ORDERING, rows)


def test_a_run_that_diverged_is_the_worst_and_no_pair(evaluate):
    rows = B + A[:3] + [run("a", 0, 0.0, lr=0.001), run("a", 0, None, lr=0.1) | {"metrics": None}]
    assert evaluate(ORDERING, rows)[0] == "ordering"


def test_a_stale_record_carries_nothing(evaluate):
    with pytest.raises(EvidenceError, match="rests on a stale record"):
        evaluate(ORDERING, A + B, [{"file": "runs.jsonl", "where": {"run.name": ["b"]}}])
    assert evaluate(ORDERING, A + B, [{"file": "other.jsonl", "where": {"run.name": ["b"]}}])


def test_ratio_interval_and_slope(evaluate):
    of = {key: ORDERING[key] for key in ("file", "value", "rate", "tuned")}
    assert evaluate(ORDERING | {"kind": "ratio", "low": 1.1, "high": 1.2}, A + B)[0] == "ratio"
    with pytest.raises(EvidenceError, match="is not within"):
        evaluate(ORDERING | {"kind": "ratio", "low": 1.2, "high": 1.3}, A + B)
    inside = of | {"kind": "interval", "of": {"run.name": "a"}, "low": 0.88, "high": 0.94}
    assert evaluate(inside, A)[1:] == pytest.approx((0.91 - 0.02484, 0.91 + 0.02484, 3), abs=1e-4)
    with pytest.raises(EvidenceError, match="is not within"):
        evaluate(inside | {"low": 0.9}, A)
    square = [run("s", seed, (1 + 0.01 * seed) * x**2, x=x) for seed in range(3) for x in (1, 2, 4)]
    slope = {"kind": "slope", "file": "runs.jsonl", "value": "metrics.score", "along": "run.x", "of": {"run.name": "s"}}
    assert evaluate(slope | {"low": 1.99, "high": 2.01}, square)[1:3] == pytest.approx((2, 2))
    with pytest.raises(EvidenceError, match="is not within"):
        evaluate(slope | {"low": 0.9, "high": 1.1}, square)


def test_times_need_repeats_a_device_and_ranges_apart(evaluate):
    about = {"key": "about", "kind": "about", "repeats": 5, "device": "CPU", "date": "2026-11-29"}
    rows = [about, *({"key": n, "name": n, "T": 1, "ms": ms} for n, ms in (("slow", [9, 8, 11]), ("fast", [3, 2, 4])))]
    test = {"kind": "timing", "file": "runs.jsonl", "value": "ms", "more": {"name": "slow"}, "less": {"name": "fast"},
            "pair": "T", "low": 2.5}  # fmt: skip
    assert evaluate(test, rows) == ("timing", 3, 3, 1)
    for change, rest, message in (
        ({"repeats": 3}, rows[1:], "five repeats"), ({"date": ""}, rows[1:], "date"),
        ({}, [rows[1], rows[2] | {"ms": [3, 2, 8.5]}], "overlap"),
        ({}, [rows[1] | {"ms": [7, 6, 8]}, rows[2]], "promised"),
    ):  # fmt: skip
        with pytest.raises(EvidenceError, match=message):
            evaluate(test, [about | change, *rest])


def test_entries_of_a_dict_are_records(evaluate):
    rows = [{"key": n, "run": {"name": n}, "layers": {k: [0, x] for k, x in zip("pqr", xs, strict=True)}}
            for n, xs in (("a", (1, 2, 4)), ("b", (2, 4, 8)))]  # fmt: skip
    test = {"kind": "ratio", "file": "runs.jsonl", "unfold": "layers", "value": "it.1", "pair": "entry",
            "more": {"run.name": "a"}, "less": {"run.name": "b"}, "low": 0.49, "high": 0.51}  # fmt: skip
    assert evaluate(test, rows) == ("ratio", 0.5, 0.5, 3)


ROW = """[[finding]]
id = "it"
sentence = "s"
refuted_by = "r"
[[finding.test]]
kind = "interval"
file = "runs.jsonl"
value = "metrics.score"
of = {"run.name" = "a"}
low = 0
high = 1
"""


@pytest.fixture
def book(tmp_path):
    for folder in ("chapters", "evidence", "experiments/results"):
        (tmp_path / folder).mkdir(parents=True)
    shutil.copy(ROOT / "evidence" / "claims.toml", tmp_path / "evidence")
    (tmp_path / "experiments" / "results" / "runs.jsonl").write_text(json.dumps(A[0]) + "\n")
    (tmp_path / "evidence" / "findings.toml").write_text(ROW)
    (tmp_path / "chapters" / "page.md").write_text("It is so. {finding}`it`\n")
    return tmp_path


def test_orphans_are_named_both_ways(book):
    assert findings.orphans(book) == []
    (book / "chapters" / "page.md").write_text("It is so. {finding}`other`\n```\n{finding}`it`\n```\n")
    (book / "experiments" / "results" / "runs.jsonl").unlink()
    said = "\n".join(findings.orphans(book))
    assert "finding 'it' is marked on no page" in said
    assert "page marks finding 'other', which is not in findings.toml" in said
    assert "finding 'it' rests on runs.jsonl, which is not in experiments/results/" in said


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('kind = "interval"', 'kind = "eval"', "a test of kind 'eval' needs"),
        ("low = 0\n", "", "a test of kind 'interval' needs"),
        ("low = 0", "low = 0\nlows = 1", "a test of kind 'interval' needs"),
        ('"run.name"', "run.name", "quote the path"),
        ('refuted_by = "r"\n', "", "field 'refuted_by' is missing"),
        ('sentence = "s"', 'sentence = "s"\ncause = "c"', "unknown field 'cause'"),
        ("[[finding.test]]", "[finding.test]", "wrong type"),
        (ROW, ROW + ROW, "the id is used twice"),
        (ROW, "[[claim]]\n", "expected"),
        (ROW, "it", "findings.toml"),
    ],
)
def test_a_bad_row_is_named(book, old, new, message):
    (book / "evidence" / "findings.toml").write_text(ROW.replace(old, new))
    with pytest.raises(EvidenceError, match=message):
        findings.read(book)
