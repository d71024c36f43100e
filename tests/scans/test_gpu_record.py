"""What was recorded on a GPU: `auto` takes the fastest form, and no kernel pays for its speed with digits."""

import json
from collections import defaultdict
from pathlib import Path

import pytest

RECORD = json.loads((Path(__file__).resolve().parents[2] / "benchmarks" / "results" / "gpu.json").read_text())
CASES = defaultdict(dict)
for row in RECORD["rows"]:
    CASES[row["case"]][row["who"]] = row
OURS = {case: {who: row for who, row in rows.items() if who.startswith("postx")} for case, rows in CASES.items()}
TIMED = [case for case, rows in OURS.items() if "forward_ms" in rows["postx"]]


def test_the_record_times_most_of_the_cases():
    assert len(TIMED) >= 11


def test_the_record_says_what_it_was_made_on():
    assert RECORD["device"] == "NVIDIA H200"
    assert {"torch", "triton"} <= RECORD["versions"].keys()


@pytest.mark.parametrize("case", TIMED)
@pytest.mark.parametrize("way", ["forward_ms", "both_ms"])
def test_auto_takes_the_fastest_form(case, way):
    """Within 10%."""
    assert OURS[case]["postx"][way] <= 1.1 * min(row[way] for row in OURS[case].values() if way in row)


@pytest.mark.parametrize("case", OURS)
def test_what_auto_takes_is_right_on_the_gpu(case):
    """Rounding of the operands, and no more: 2^-8 for bfloat16, some of them in a row."""
    assert OURS[case]["postx"]["error"] <= (1e-5 if "float32" in case else 2e-2)
