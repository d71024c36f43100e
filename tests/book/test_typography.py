"""Formulas keep what touches them on their line, TeX in a list of works is set as formulas, names of colors last."""

import json
import re
from types import SimpleNamespace

import pytest
from docutils import nodes
from docutils.utils import new_document
from pybtex.database import Entry

from _ext import notebooks, typography


def paragraph(*parts):
    children = [nodes.math(part[1:-1], part[1:-1]) if part.startswith("$") else nodes.Text(part) for part in parts]
    document = new_document("page")
    document += nodes.paragraph("", "", *children)
    typography.hold_together(None, document)
    return [child.astext() for child in document[0] if child.astext()]


@pytest.mark.parametrize(
    ("parts", "tied"),
    [
        (["the state ", "$N$", ", times what"], ["the state ", "N,", " times what"]),
        (["all (", "$N$", "): yes"], ["all ", "(N):", " yes"]),
        (["the ", "$n$", "-th row"], ["the ", "n-th", " row"]),
        (["one ", "$n$", " two"], ["one ", "n", " two"]),
        (["$n$", "."], ["n."]),
        (["$n$", "-" + "very" * 4 + " long"], ["n", "-" + "very" * 4 + " long"]),
    ],
)
def test_what_touches_a_formula_stays_with_it(parts, tied):
    assert paragraph(*parts) == tied


@pytest.mark.parametrize("title", ["Needs {$O(n^2)$} Memory", r"{{In $\mathcal{O}(n)$ and $\alpha_{i}$}}", "No maths"])
def test_tex_of_a_title_becomes_formulas(title):
    from pybtex.richtext import Text

    entry = Entry("misc", fields={"title": title, "url": "https://a.b/$x$"})
    domain = SimpleNamespace(
        bibdata=SimpleNamespace(data=SimpleNamespace(entries={"a": entry})), data={"has_equations": {}}
    )
    env = SimpleNamespace(get_domain=lambda name: domain)
    typography.mark_maths(None, env, [])
    typography.mark_maths(None, env, [])  # the second build finds the marks of the first
    assert entry.fields["url"] == "https://a.b/$x$"
    document = new_document("page")
    document += nodes.paragraph(text=str(Text.from_latex(entry.fields["title"])))
    typography.set_maths(SimpleNamespace(env=env), document, "references")
    want = {"Needs": ["O(n^2)"], "{{In ": [r"\mathcal{O}(n)", r"\alpha_{i}"]}.get(title[:5], [])
    assert [math.astext() for math in document.findall(nodes.math)] == want
    words = [text for text in document.findall(nodes.Text) if not isinstance(text.parent, nodes.math)]
    assert not set("${}") & set("".join(words))
    assert domain.data["has_equations"] == ({"references": True} if want else {})


# Ink is black on a light page and white on a dark one, and a strong color is the darker one on the first only.
TURNED = re.compile(r"\b(?:[Bb]lack:|in black|[Ww]hite:|darker|darkest|darken\w*|brightest)")


def told():
    """What a reader is told of the colors of a figure: captions, what tools say, and the pages without cells."""
    for path in notebooks.chapters():
        for cell in json.loads(path.read_text(encoding="utf8"))["cells"]:
            yield path.stem, "\n".join(re.findall(r'caption=(?:f?".*"\s*)+', "".join(cell["source"])))
    for path in [*notebooks.ROOT.glob("chapters/*.md"), *notebooks.ROOT.glob("_static/widgets/**/*.js")]:
        yield path.stem, path.read_text(encoding="utf8")


def test_no_color_is_named_that_the_dark_page_turns():
    assert [(name, found) for name, text in told() for found in TURNED.findall(text)] == []
