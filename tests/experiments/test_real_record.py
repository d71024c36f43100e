"""The record of the real models: complete, of one text, and what chapter 12's table and the pages' heads say of it."""

import hashlib
import json
import math
import statistics

import pytest

from experiments import real_models, real_speed, real_tables
from experiments.real_inside import NAMES
from experiments.runner.results import RESULTS, read

ROWS = {row["key"]: row for row in read(RESULTS / "real_models.jsonl")}
ASKED = {key: row for key, row in ROWS.items() if "windows" in (row["metrics"] or {})}


def test_every_run_is_recorded_once():
    lines = (RESULTS / "real_models.jsonl").read_text(encoding="utf8").splitlines()
    assert len(lines) == len(ROWS)
    assert set(ROWS) == {real_models.key(run) for run in real_models.runs()}


def test_all_runs_read_the_frozen_text():
    prose = hashlib.sha256(real_models.PROSE.read_text(encoding="utf8").encode()).hexdigest()
    assert {row["run"]["sha256"] for row in ROWS.values()} == {prose}
    assert {row["run"]["asked"] for row in ROWS.values()} == {8192}
    places = [str(i) for i in range(real_models.ASKED)]
    whole = {key for key, row in ROWS.items() if "lost" in row["metrics"] and key not in ASKED}
    assert {ROWS[key]["date"] for key in whole} == {"2026-11-29"}  # before windows were kept
    assert len(ASKED) > len(whole)
    assert all(list(row["metrics"]["windows"]) == places for row in ASKED.values())


def test_losses_are_means_of_paired_differences():
    full = ROWS["weights|full|16"]["metrics"]["windows"]
    for key, row in ASKED.items():
        m = row["metrics"]
        lost = [m["windows"][i] - full[i] for i in full]
        assert m["lost"] == pytest.approx(statistics.fmean(lost), abs=1e-6), key
        assert m["lost_error"] == pytest.approx(statistics.stdev(lost) / 4, abs=1e-6), key
        assert m["bits"] == pytest.approx(statistics.fmean(m["windows"].values()), abs=1e-6), key


def table():
    return {row.sentence: row for row in real_tables.table()}


def test_every_sentence_of_the_table_stands_here():
    """Otherwise the table would ask a real model for what the chapter does not say."""
    assert {row.here for row in table().values() if row.twin} == {"holds"}


def test_the_table_of_the_page_begins_with_what_changes_a_decision():
    rows = real_tables.table()
    assert tuple(row.sentence for row in rows[:3]) == real_tables.DECIDE
    assert all(row.verdict == "does not" for row in rows[:3])
    lines = real_tables.markdown(rows).splitlines()
    assert len(lines) == 2 + len(rows)
    assert {line.count("|") for line in lines} == {7}


def windows(method, bits=2):
    return [*ROWS[f"weights|{method}|{bits}"]["metrics"]["windows"].values()]


@pytest.mark.parametrize(("sentence", "over", "under"), [
    ("GPTQ instead of RTN lowers the loss", "nearest, row", "gptq, row"),
    ("A rotation before GPTQ changes nothing", "gptq, row", "turn, gptq, row"),
    ("E8P on top of both lowers the loss again", "turn, gptq, row", "lattice (E8P)"),
])  # fmt: skip
def test_a_difference_of_the_table_is_that_of_the_records(sentence, over, under):
    gaps = [a - b for a, b in zip(windows(over), windows(under), strict=True)]
    value, error = statistics.fmean(gaps), statistics.stdev(gaps) / 4
    row = table()[sentence]
    assert row.real == pytest.approx((value, error), abs=1e-9)
    same = abs(value) + 2 * error < 0.05
    assert (row.verdict == "holds") == (same if "changes nothing" in sentence else value > 2 * error)


def test_verdicts_follow_from_two_errors():
    n = real_tables.Number
    assert [real_tables.more(n(x, 0.1)) for x in (0.3, 0.15, -0.3)] == ["holds", "open", "does not"]
    assert [real_tables.less(n(x, 0.1), 1) for x in (0.7, 0.85, 1.3)] == ["holds", "open", "does not"]
    assert [real_tables.level(n(x, 0.01)) for x in (0.02, -0.02, 0.04, 0.1)] == ["holds", "holds", "open", "does not"]
    assert real_tables.level(n(0.0, 0.1)) == "open"  # a wide error is no sameness
    inside = [real_tables.within(n(x, 0.1), 1, 2) for x in (1.5, 1.15, 0.7, 2.3)]
    assert inside == ["holds", "open", "does not", "does not"]
    assert real_tables.more(n(0.1, math.nan)) == "holds"


def test_heads_do_what_they_are_called():
    tokens, heads = real_tables.heads()
    assert set(heads) == {"first token", "token before", "all", "same name", "after the name"}
    for head in heads.values():
        assert all(row[t + 1 :] == [0] * (len(tokens) - t - 1) for t, row in enumerate(head.p))
        assert all(abs(sum(row) - 1) < 0.02 for row in head.p)
    for name in NAMES:
        first = tokens.index(name)
        second = tokens.index(name, first + 1)
        best = {why: max(range(second + 1), key=heads[why].p[second].__getitem__) for why in heads}
        assert best["same name"] == first
        assert best["after the name"] == first + 1
    assert heads["after the name"].repeated > 100 * real_tables.one("attention")["repeated_median"]
    assert 0.45 < real_tables.one("attention")["mean_on_first_token"] < 0.55  # "half", says chapter 1


def test_a_turn_helps_inputs_of_4_bits_in_every_kind_of_layer():
    layers = real_tables.one("outliers")["layers"]
    for kind in ("mix.0.q", "mix.0.k", "mix.0.v", "mix.0.out", "mlp.gate", "mlp.up", "mlp.out"):
        rows = [row["rounded"] for name, row in layers.items() if name.endswith(kind)]
        plain, turned = (statistics.median(row[way]["A4"] for row in rows) for way in ("plain", "turned"))
        assert len(rows) == 30
        assert turned < plain / 2
    top = {name: row for name, row in layers.items() if row["largest"] > 100}
    assert len(top) == 4
    assert {row["token"] for row in top.values()} == {0}


def test_the_numbers_in_chapter_12_are_those_of_the_record():
    book = json.loads((RESULTS.parents[1] / "chapters" / "12_sub_four_bit.ipynb").read_text(encoding="utf8"))
    said = {cell["id"]: "".join(cell["source"]) for cell in book["cells"]}

    def lost(key, row="metrics"):
        return f"{ROWS[key][row]['lost']:.2f}"

    rows, groups = "weights|gptq, row|2", "weights|gptq, 128|2"
    assert f"from {lost(rows)} bits a byte to {lost('weights|turn, gptq, row|2')}" in said["c46"]
    assert f"from {lost(groups)} to {lost('weights|turn, gptq, 128|2')}" in said["c46"]
    assert f"already loses {lost('weights|nearest, row|3')}" in said["c46"]
    full = "weights|full range, row|"
    assert f"the full range, worse at 2 bits, loses {lost(full + '3')}" in said["c46"]
    assert lost(full + "2") > lost("weights|nearest, row|2")
    assert table()["In 4 bits every method loses less than 0.015"].verdict == "does not"
    four = [lost(f"weights|{name}|4") for name in ("nearest, row", "nearest, 128", "turn, gptq, 128")]
    assert "In 4 bits rows lose {} and groups {}. With rotation and GPTQ groups lose {},".format(*four) in said["c46"]
    growth = {row.sentence: row for row in real_tables.table()}["From 3 to 2 bits every loss grows three times"]
    wall = "".join(said.values())
    assert "here at least three times, in SmolLM2 two" in wall
    assert growth.twin.value - 2 * growth.twin.error > 3
    assert 2 <= growth.real.value < 2.5
    best = ROWS["weights|turn, gptq, 128|4"]["metrics"]["lost"]
    assert min(ROWS[f"weights|{name}|4"]["metrics"]["lost"] for name in ("nf4", "nvfp4", "mxfp4")) > 2 * best
    assert "NF4, NVFP4 and MXFP4 more than twice that" in said["c46"]
    assert f"gave {lost(rows, 'earlier')} for rows, {lost(groups, 'earlier')} for groups" in said["c46"]
    assert f"SmolLM2 loses {ROWS['activations|plain|8|8']['metrics']['lost']:.3f}" in said["c46b"]
    assert f"it loses {lost('activations|plain|4|4')}, turned {lost('activations|turned|4|4')}" in said["c46b"]
    found = real_tables.one("outliers")
    top = found["largest"]
    assert f"up to {top['value']:,.0f}; the median input there is {top['median']:.2f}" in said["c46b"]
    first = [row["token"] for name, row in found["layers"].items() if name.endswith("mlp.out")].count(0)
    assert first == 8
    assert "In eight layers" in said["c46b"]


def test_what_the_page_says_of_speed():
    lines = {row["run"]["kind"]: row for row in read(RESULTS / "real_speed.jsonl")}
    assert set(lines) == set(real_speed.KINDS)
    assert all(row["metrics"]["repeats"] == 9 and row["load_average"] < 1 for row in lines.values())
    speed = {kind: row["metrics"] for kind, row in lines.items()}
    four, whole, peer = (speed[kind] for kind in ("4 bits, writer", "float32, writer", "llama.cpp"))
    assert four["tokens_a_second"] / whole["tokens_a_second"] == pytest.approx(1.9, abs=0.05)
    assert four["least"] > whole["most"]
    assert four["least"] < peer["most"]  # "about as fast": their ranges overlap
    assert all(speed[f"{bits} bits, writer"]["most"] < four["least"] for bits in (3, 2))
    assert all(speed[f"{bits} bits, writer"]["weight_bytes"] < four["weight_bytes"] for bits in (3, 2))
    alone = [m for kind, m in speed.items() if "writer" not in kind and kind != "llama.cpp"]
    assert max(m["most"] for m in alone) < 25
