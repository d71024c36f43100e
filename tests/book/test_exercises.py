"""Exercises as sheets of their own: all of them, and no solution."""

import nbformat
import pytest

from _ext import exercises, pages

CHAPTERS = [path for path in pages.files().values() if path.suffix == ".ipynb"]


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda p: p.stem)
def test_a_sheet_has_every_exercise_and_no_solution(path):
    text = path.read_text(encoding="utf8")
    found = exercises.asked(path)
    assert [f":label: {label}" in text for label, _, _ in found] == [True] * text.count("{exercise}")
    made = exercises.sheet(path)
    nbformat.validate(made)
    told = "\n".join(cell.source for cell in made.cells)
    assert "solution" not in told
    assert ":label:" not in told
    assert [cell.cell_type for cell in made.cells[2:]] == ["markdown", "code"] * len(found)
    assert made.cells[1].source.startswith(("import", "from"))
    assert all(kind and words for _, kind, words in found)
