"""The pictures of the chapters, by the code that draws them: one is early, a family has its color, words are words."""

import ast
import re

import nbformat
import pytest

from _ext import pages
from postx import fieldmap, mixers
from postx.style import FAMILY

CHAPTERS = {name: path for name, path in pages.files().items() if path.suffix == ".ipynb"}
DRAWS = re.compile(r"^\s*(?:show|explore|matrix|memory|block|walk\.walk)\(", re.M)  # widgets of the chapters draw, too


def cells(name):
    return nbformat.read(CHAPTERS[name], as_version=4).cells


def trees():
    """Every code cell that Python can read: (chapter, cell, tree)."""
    for name in CHAPTERS:
        for cell in cells(name):
            if cell.cell_type == "code":
                try:
                    yield name, cell.id, ast.parse(cell.source)
                except SyntaxError:  # a magic of IPython
                    continue


def before_the_first_section(page):
    """Whether a picture stands above the first heading of level two."""
    for cell in page:
        if cell.cell_type == "code" and DRAWS.search(cell.source):
            return True
        if cell.cell_type == "markdown" and re.search(r"^## ", cell.source, re.M):
            return False
    return False


def test_what_is_a_picture_before_the_first_section():
    text, figure = nbformat.v4.new_markdown_cell, nbformat.v4.new_code_cell('show(fig, alt="A line.")')
    assert before_the_first_section([text("# Title\n\n### Not yet"), figure, text("## Section")])
    assert not before_the_first_section([text("# Title"), text("So.\n\n## Section"), figure])


@pytest.mark.parametrize("name", CHAPTERS)
def test_a_chapter_opens_with_a_picture(name):
    assert before_the_first_section(cells(name))


def plain(name):
    return re.sub(r"[^a-z0-9]", "", (name or "").lower())


OWN = {plain(work): lane.family for lane in fieldmap.LANES for work in lane.works}
OWN |= {plain(name): mixers.load(name).FAMILY for name in mixers.names()} | {family: family for family in FAMILY}
OWN |= {"samba": "hybrid", "attentionconv": "attention", "localattention": "attention"}


def word(node):
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None


def strange_colors(tree):
    """What is given the color of a family that is not its own: in dicts {name: family}, and (family, [names])."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Dict):
            given = {word(key): word(value) for key, value in zip(node.keys, node.values, strict=True)}
            if len(set(given.values())) > 1 and set(given.values()) <= set(FAMILY):
                found += [(name, family) for name, family in given.items()
                          if OWN.get(plain(name), "none") != family and len(name or "") > 1]  # fmt: skip
        if isinstance(node, ast.Tuple) and len(node.elts) == 2 and word(node.elts[0]) in FAMILY:
            family, names = word(node.elts[0]), map(word, getattr(node.elts[1], "elts", []))
            found += [(name, family) for name in names if OWN.get(plain(name), family) != family]
    return found


def test_a_family_has_its_own_color_and_nothing_else_has_it():
    assert strange_colors(ast.parse('groups = [("neutral", ["GLA"]), ("ssm", ["Mamba-2", "some setting"])]')) == [
        ("GLA", "neutral")
    ]
    assert strange_colors(ast.parse('{"read": "linear", "write": "ssm", "Mamba": "ssm"}')) == [
        ("read", "linear"), ("write", "ssm"),
    ]  # fmt: skip
    found = {(name, cell): strange for name, cell, tree in trees() if (strange := strange_colors(tree))}
    assert found == {}, "series that are no family have colors of their own: style.SERIES"


MATHEMATICS = re.compile(r"\$[^$]*[\\^_][^$]*\$")


def mathematics(tree):
    """Words that matplotlib sets as mathematics, by a TeX mark between two dollars."""
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            words = "".join(word(part) or "{}" for part in node.values)
        else:
            words = word(node) or ""
        if MATHEMATICS.search(words):
            yield words


def test_words_of_pictures_are_words():
    assert list(mathematics(ast.parse('ax.text(0, 0, f"$h_{t}$ [D]")'))) == ["$h_{}$ [D]"]
    assert list(mathematics(ast.parse("""say = f"${one} and ${two}", "a b_c" """))) == []
    found = {(name, cell): words for name, cell, tree in trees() if (words := list(mathematics(tree)))}
    assert found == {}, "write exp(ΔA) and h₁: the small letters of mathematics do not grow on a phone"
