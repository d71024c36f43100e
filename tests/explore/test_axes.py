"""A page knows where numbers lie on the first axes of a picture, as far as no slider moves them."""

import json
import re
from html import unescape

import numpy as np
import pytest
from matplotlib.figure import Figure

from postx.explore import Int, explore, show


@pytest.fixture(autouse=True)
def static(monkeypatch):
    monkeypatch.setenv("POSTX_STATIC", "1")


def told(picture):
    html = picture._repr_mimebundle_()[0]["text/html"]
    found = re.search(r'^<figure [^>]*data-axes="([^"]*)"', html)
    return json.loads(unescape(found[1])) if found else None


def moved(update=lambda ax, n: None, **limits):
    def draw(fig):
        ax = fig.subplots()
        ax.plot([1, 10], [1, 100])
        ax.set(**{"xscale": "log", "xlim": (1, 1000), "ylim": (0, 50)} | limits)
        return lambda n: update(ax, n)

    return explore(draw, alt="A line from one corner to the other.", n=Int(1, 3))


def at(axis, number):
    log, a, b = axis
    return a + b * (np.log10(number) if log else number)


def test_numbers_lie_where_matplotlib_draws_them():
    picture = moved()
    x, y, (left, top, width, height) = told(picture)
    ax = picture._fig.axes[0]
    for number, other in ((1, 0), (30, 12.5), (1000, 50)):
        px, py = ax.transData.transform((number, other)) * 72 / picture._fig.dpi
        assert at(x, number) == pytest.approx(px, abs=1e-3)
        assert at(y, other) == pytest.approx(72 * picture.size[1] - py, abs=1e-3)
    assert [at(x, 1), at(x, 1000)] == pytest.approx([left, left + width], abs=0.1)
    assert [at(y, 50), at(y, 0)] == pytest.approx([top, top + height], abs=0.1)


def test_an_axis_that_a_slider_moves_is_not_told():
    x, y, _ = told(moved(lambda ax, n: ax.set_ylim(0, 50 * n) and None))
    assert (x[0], y) == (1, None)
    assert told(moved(lambda ax, n: ax.set(ylim=(0, 50 * n), xlim=(1, 10 * n)) and None)) is None


def test_a_picture_without_sliders_has_axes_and_one_without_axes_none():
    fig = Figure()
    ax = fig.subplots()
    ax.plot([1, 2], [3, 4])
    assert told(show(fig, alt="A line that goes up from left to right."))[0][0] == 0
    for change in (lambda ax: ax.axis("off"), lambda ax: ax.set(xscale="symlog", yscale="symlog")):
        fig = Figure()
        ax = fig.subplots()
        ax.plot([1, 2], [3, 4])
        change(ax)
        assert told(show(fig, alt="A line that goes up from left to right.")) is None
