"""The ceilings under the scorecard's floors: the record has them, and what is measured is work over the least time."""

import json

import pytest

from experiments import ceilings


def test_the_record_says_what_was_measured_and_on_what():
    found = json.loads(ceilings.FILE.read_text(encoding="utf8"))
    assert 1e9 < found["bandwidth"] < 1e12
    assert 1e9 < found["flops"] < 1e13
    assert found["threads"] == 1
    assert found["clock"] == "process_time"
    assert {"device", "torch", "date", "repeats"} <= set(found)


def test_a_ceiling_is_the_work_over_the_least_time(monkeypatch):
    monkeypatch.setattr(ceilings, "REPEATS", 2)
    monkeypatch.setattr(ceilings, "WIDTH", 64)
    monkeypatch.setattr(ceilings, "NUMBERS", 2**16)
    monkeypatch.setattr(ceilings, "least", lambda run: run() is not None and 0.5)
    found = ceilings.measured()
    assert found == pytest.approx({"flops": 2 * 64**3 / 0.5, "bandwidth": 4 * 2**16 / 0.5})
