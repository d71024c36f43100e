"""The cells of a drawn page: checks are folded under the code they belong to, and nothing of a notebook is lost."""

import doctest

import nbformat
import pytest
from docutils import nodes
from docutils.utils import new_document

from _ext import cells, notebooks


def test_examples_of_the_docstring():
    assert doctest.testmod(cells).failed == 0


@pytest.mark.parametrize(
    ("source", "code", "checks", "count"),
    [
        ("x = 1\nassert x", "x = 1", "assert x", 1),
        ("assert a\nassert (\n    b\n)  # both", "", "assert a\nassert (\n    b\n)  # both", 2),
        ("x = 1\n\nfor n in x:\n    assert n\n\ny = 2", "x = 1\n\ny = 2", "for n in x:\n    assert n", 1),
        ("with f():\n    if a:\n        assert b\n    else:\n        assert c\nx", "x",
         "with f():\n    if a:\n        assert b\n    else:\n        assert c", 2),
        ("for n in x:\n    y = n\n    assert y", "for n in x:\n    y = n\n    assert y", "", 0),
        ("def f(x):\n    assert x\n    return x", "def f(x):\n    assert x\n    return x", "", 0),
        ("x = 1; assert x", "x = 1; assert x", "", 0),
        ("%timeit 1\nassert x", "%timeit 1\nassert x", "", 0),
        ("# what holds\nassert x\n# what follows\ny = 1", "# what follows\ny = 1", "# what holds\nassert x", 1),
        ("x = 1\n\n\ndef f():\n    pass\n\n\nassert x\n\n\ndef g():\n    pass",
         "x = 1\n\n\ndef f():\n    pass\n\n\ndef g():\n    pass", "assert x", 1),
    ],
)  # fmt: skip
def test_split(source, code, checks, count):
    assert cells.split(source) == (code, checks, count)


@pytest.mark.parametrize("path", notebooks.chapters(), ids=lambda p: p.stem)
def test_every_line_of_a_chapter_is_shown_once(path):
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "code":
            code, checks, _ = cells.split(cell.source)
            shown = sorted(line for line in (code + "\n" + checks).split("\n") if line.strip())
            assert shown == sorted(line for line in cell.source.split("\n") if line.strip())
            assert not any(line.startswith("assert ") for line in code.split("\n"))


def page(source, **attributes):
    document = new_document("page")
    cell = nodes.container("", nb_element="cell_code", **attributes)
    cell += nodes.container("", nodes.literal_block(source, source, language="ipython3"), nb_element=cells.CODE)
    document += cell
    return document, cell


def test_checks_are_folded_under_their_code():
    document, cell = page("x = 1\nassert x\nassert x == 1")
    cells.fold_checks(None, document)
    code, head, checks, tail = cell[0].children
    assert (code.astext(), checks.astext()) == ("x = 1", "assert x\nassert x == 1")
    assert code["language"] == checks["language"] == "ipython3"
    assert "2 checks" in head.astext()
    assert tail.astext() == "</details>"


def test_a_cell_of_checks_alone_shows_one_line():
    document, cell = page("assert x")
    cells.fold_checks(None, document)
    head, checks, _ = cell[0].children
    assert "1 check," in head.astext()
    assert "<details" in head.astext()
    assert "open" not in head.astext()


@pytest.mark.parametrize(
    ("mime", "name"), [("image/png", "this figure"), ("text/plain", "these numbers"), (None, "the set-up")]
)
def test_the_bar_of_folded_code_says_what_it_hides(mime, name):
    document, cell = page("x = 1", hide_mode="input", prompt_show="Show code cell {type}")
    if mime:
        cell += nodes.container("", nodes.container("", mime_type=mime), nb_element=cells.OUTPUT)
    cells.name_bars(None, document)
    assert cell["prompt_show"] == cell["prompt_hide"] == f"Code of {name}"
    cell["hide_mode"] = "input+output"
    cells.name_bars(None, document)
    assert cell["prompt_show"] == "The {type} of this cell"


def test_the_table_of_tests_that_ends_a_chapter_is_folded_under_its_heading():
    row = nodes.row("", nodes.entry())
    body = nodes.tgroup("", nodes.thead("", row.deepcopy()), nodes.tbody("", row.deepcopy(), row.deepcopy()), cols=1)
    title, table = nodes.title(text="Which tests hold this page"), nodes.table("", body, classes=["px-own-tests"])
    section = nodes.section("", title, nodes.paragraph(text="Every one."), table, nodes.paragraph(text="And more."))
    document = new_document("page")
    document += section
    cells.fold_tests(None, document)
    assert [type(child).__name__ for child in section] == ["title", "raw", "paragraph", "table", "paragraph", "raw"]
    assert "2 equations" in section[1].astext()
