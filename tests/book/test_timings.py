"""Orders of times: recorded, compared by the pages, and refused where outputs contradict them."""

import ast
import re
from pathlib import Path

import nbformat
import pytest

from _ext import findings, notebooks
from experiments import timings
from experiments.runner.results import read

ROOT = Path(__file__).resolve().parents[2]


def test_every_order_is_recorded_with_its_spread_and_is_a_finding():
    records = read(timings.FILE)
    assert {(r["name"], r["program"]) for r in records} == {(n, p) for n, both in timings.ORDERS.items() for p in both}
    for r in records:
        assert r["repeats"] >= 5
        assert r["ms"][1] <= r["ms"][0] <= r["ms"][2]
    tests = [test for row in findings.read(ROOT)[0] for test in row["test"] if test["file"] == timings.FILE.name]
    assert {(t["where"]["name"], t["more"]["program"], t["less"]["program"]) for t in tests} == {
        (name, *both) for name, both in timings.ORDERS.items()
    }


def test_a_page_compares_each_with_its_machine_and_its_outputs_agree():
    said = {}
    for path in notebooks.chapters():
        for cell in nbformat.read(path, as_version=4).cells:
            for name in re.findall(r'timings\.agree\("(\w+)"', cell.source if cell.cell_type == "code" else ""):
                assert notebooks.TIMING in cell.metadata.tags, f"{path.name}: a time is no output to be compared"
                said[name] = "".join(o.get("text", "") for o in cell.outputs)
    assert set(said) == set(timings.ORDERS)
    for name, words in said.items():
        assert timings.AGREES in words, f"{name}: run `make notebooks`"


CLOCK = re.compile(r"\b(seconds|took|timings|benchmark\w*|\w*_ms)\b")


def test_what_is_printed_and_not_compared_is_a_time_or_asserted_to_be_in_a_band():
    """nbval only runs such a cell, so a score that it prints could otherwise be anything."""
    loose, bands = [], 0
    for path in notebooks.chapters():
        for cell in nbformat.read(path, as_version=4).cells:
            if notebooks.TIMING not in cell.metadata.get("tags", []) or CLOCK.search(cell.source):
                continue
            prints = any(isinstance(node, ast.Name) and node.id == "print" for node in ast.walk(ast.parse(cell.source)))
            asserts = [node for node in ast.walk(ast.parse(cell.source)) if isinstance(node, ast.Assert)]
            if prints and not asserts:
                loose.append(f"{path.name}: {cell.id}")
            bands += prints
    assert loose == []
    assert bands >= 8


BOUND = re.compile(r"\b(?:above|at most|below|less than|more than|under|within) (?:\d+(?:\.\d+)?e-?\d+|0\.\d+)")


def printed_bounds(source):
    """What a cell prints in place of the number that came: "below 1e-12", or whether a comparison holds."""
    try:
        tree = ast.parse(source)
    except SyntaxError:  # a magic of IPython
        return []
    prints = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func) == "print"]
    nodes = [node for call in prints for argument in call.args for node in ast.walk(argument)]
    words = [node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    truths = [node.value for node in nodes if isinstance(node, ast.FormattedValue)]
    return [found[0] for text in words if (found := BOUND.search(text))] + [
        ast.unparse(node) for node in truths if isinstance(node, ast.Compare)
    ]


def test_what_is_measured_is_printed_and_the_bound_is_a_check():
    assert printed_bounds('print(f"largest difference below 1e-12: {gap < 1e-12}")') == ["below 1e-12", "gap < 1e-12"]
    assert printed_bounds("print(f\"off by {'less than 1e-12' if small else gap}\")") == ["less than 1e-12"]
    assert printed_bounds('print(f"off by {gap:.0e}, equal to 1e-12, {\'yes\' if a < b else \'no\'}")') == []
    found = {
        (path.stem, cell.id): bounds
        for path in notebooks.chapters()
        for cell in nbformat.read(path, as_version=4).cells
        if cell.cell_type == "code" and (bounds := printed_bounds(cell.source))
    }
    assert found == {}, "print the number and assert the bound; the tag nbval-ignore-output leaves it out"


def test_agreement_is_of_the_order():
    a, b = timings.ORDERS["ssd"]
    assert timings.agree("ssd", 2.0, 1.0).splitlines()[2] == "On this machine, the same order: 2 times."
    assert timings.agree("ssd", 1.0, 2.0).splitlines()[2].startswith(timings.DISAGREES)
    assert f"{a} 10 times as long as {b}" in timings.agree("ssd", 2.0, 1.0)
    with pytest.raises(KeyError):
        timings.agree("none", 1.0, 2.0)


def test_outputs_that_contradict_the_record_are_not_written(tmp_path):
    assert notebooks.DISAGREES == timings.DISAGREES
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(f"print('{timings.DISAGREES}: 1 times.')")])
    path = tmp_path / "01_page.ipynb"
    path.write_text(notebooks.text_of(notebooks.normalize(nb)), encoding="utf8")
    refused = f"01_page.ipynb is not written: {timings.DISAGREES}"
    with pytest.raises(notebooks.Contradiction, match=refused):
        notebooks.execute(path)
    nb.cells[0].outputs = [nbformat.v4.new_output("stream", text=f"{timings.DISAGREES}: 1 times.\n")]
    path.write_text(notebooks.text_of(notebooks.normalize(nb)), encoding="utf8")
    assert any(timings.DISAGREES in fault for fault in notebooks.faults(path))
