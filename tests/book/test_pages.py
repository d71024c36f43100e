"""Pages are known by their names, and a chapter can be put between two others."""

import json
import re

import nbformat
import pytest

from _ext import evidence, pages

TOC = """format: jb-book
root: chapters/intro
parts:
  - chapters:
      - file: chapters/01_bill
        title: Bill ★
      - file: chapters/02_table
"""


@pytest.fixture
def book(tmp_path):
    (tmp_path / "chapters").mkdir()
    (tmp_path / "_ext").mkdir()
    (tmp_path / "chapters/intro.md").write_text("[the table](02_table.ipynb) and {doc}`01_bill`\n")
    for name in ("01_bill", "02_table"):
        nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(f"# {name}\n\n[table](02_table.ipynb)")])
        nbformat.write(nb, tmp_path / f"chapters/{name}.ipynb")
    (tmp_path / "_toc.yml").write_text(TOC, encoding="utf8")
    return tmp_path


def test_names_hide_numbers(book):
    assert list(pages.files(book)) == ["bill", "table", "intro"]
    assert pages.docname("table", book) == "chapters/02_table"
    assert pages.name("chapters/02_table") == "table"
    assert list(evidence.pages(book)) == ["bill", "table", "intro"]
    with pytest.raises(KeyError, match="no page 'tables'; there are bill, table, intro"):
        pages.find("tables", book)


def test_a_chapter_between_two_others(book):
    assert pages.insert("ring", "bill", book) == [("02_table", "03_table")]
    assert [path.stem for path in pages.files(book).values()] == ["01_bill", "02_ring", "03_table", "intro"]
    assert (book / "chapters/intro.md").read_text() == "[the table](03_table.ipynb) and {doc}`01_bill`\n"
    assert "(03_table.ipynb)" in nbformat.read(book / "chapters/03_table.ipynb", 4).cells[0].source
    lines = (book / "_toc.yml").read_text(encoding="utf8").splitlines()
    assert [line.split("/")[1] for line in lines if "file" in line] == ["01_bill", "02_ring", "03_table"]
    assert json.loads((book / "_ext/redirects.json").read_text()) == {"02_table": "table"}
    pages.insert("tail", "table", book)
    assert pages.find("tail", book).name == "04_tail.ipynb"
    assert pages.redirects(book) == {"02_table": "table"}
    for bad, after in (("ring", "bill"), ("New", "bill"), ("x", "intro")):
        with pytest.raises(ValueError, match="expected"):
            pages.insert(bad, after, book)


def test_a_link_that_names_a_number_leads_to_the_chapter_of_that_number():
    named = [(page, int(said), int(to)) for page, text in evidence.pages(pages.ROOT).items()
             for said, to in re.findall(r"\[[^\]\n]*hapter (\d+)[^\]\n]*\]\((\d\d)_\w+\.ipynb", text)]  # fmt: skip
    assert len(named) >= 4
    assert [found for found in named if found[1] != found[2]] == []
