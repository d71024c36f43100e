"""Words that a phone would make too small have a size that its style sheet raises; on a desk nothing changes."""

from pathlib import Path

import pytest

from postx.explore import words
from postx.explore.svg import Stage, frames

CSS = (Path(__file__).resolve().parents[2] / "_static" / "postx.css").read_text(encoding="utf8")


@pytest.fixture
def stage():
    from matplotlib.figure import Figure

    fig = Figure(figsize=(6, 3))
    big, small = fig.text(0.1, 0.1, "large", size=12), fig.text(0.5, 0.5, "small", size=8)
    math = fig.text(0.1, 0.8, "$x^2$", size=8)
    return Stage(fig), big, small, math


def test_only_words_below_the_least_size_are_raised(stage):
    made, _, small, _ = stage
    moves = [lambda: small.set_text("small"), lambda: small.set_text("tiny")]
    found = frames(made, moves, 0)
    (_, looks, _), = found.changing
    assert all("font-size:max(8px,var(--px-least,0px))" in look for look in looks)
    assert found.svg.count("max(") == 1, "in large words and in mathematics sizes stay"
    wide = 6 * 72
    assert f'style="--px-small:{words.least(wide)}px"' in found.svg
    assert words.least(wide) * words.PHONE / wide == pytest.approx(words.LEAST, abs=0.02)
    assert words.least(wide) * words.PHONE / wide >= words.LEAST


def test_the_style_sheet_raises_them_on_phones_only():
    assert CSS.count("--px-least: var(--px-small)") == 1
    phone = CSS[CSS.index("@media (max-width: 600px)"):]
    assert "--px-least: var(--px-small)" in phone
