"""The chapters' figures that are a formula: the page's script, Python and the formula shown are one expression."""

import re

import formulas
import nbformat
import pytest

from _ext import pages


def cells(name):
    return [c.source for c in nbformat.read(pages.find(name), as_version=4).cells if c.cell_type == "code"]


def figures():
    for name, path in pages.files().items():
        if path.suffix == ".ipynb":
            yield from ((name, source) for source in cells(name) if "return Live(" in source)


ALL = list(figures())


@pytest.fixture
def built(monkeypatch):
    def build(name, source):
        """The figure of one cell, run behind the imports of its page, and its HTML."""
        monkeypatch.setenv("POSTX_STATIC", "1")
        monkeypatch.chdir(pages.find(name).parent)
        made, scope = [], {}
        above = cells(name)[: cells(name).index(source)]
        exec("\n".join(line for cell in above for line in re.findall(r"^(?:from|import) .*", cell, re.M)), scope)
        explore = scope["explore"]
        scope["explore"] = lambda *args, **more: made.append(explore(*args, **more))
        exec(source, scope)
        (figure,) = made
        return figure, figure._repr_mimebundle_()[0]["text/html"]

    return build


def test_chapters_have_such_figures():
    assert len(ALL) >= 5


@pytest.mark.parametrize(("name", "source"), ALL, ids=[f"{name}-{i}" for i, (name, _) in enumerate(ALL)])
def test_the_page_computes_what_python_computes(built, name, source):
    figure, html = built(name, source)
    assert formulas.disagreements(figure, html) == []
    stops = [len(slider.values) for slider in figure.sliders.values()]
    assert max(stops) > 60, "a formula needs no coarse slider"
    assert len(figure._update.latex()) == html.count("\\[")
