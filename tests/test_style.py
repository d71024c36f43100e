import itertools
import re
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from postx import style

# Machado, Oliveira and Fernandes (2009), severity 1, on linear RGB.
DEUTAN = [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
PROTAN = [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)
EYES = {"normal": np.eye(3), "deutan": np.array(DEUTAN), "protan": np.array(PROTAN)}
DARK_PAGE = "#14181e"  # --pst-color-background of pydata-sphinx-theme 0.17 in dark mode


def linear(color):
    c = np.array(matplotlib.colors.to_rgb(color))
    return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)


def lab(rgb):
    t = XYZ @ np.clip(rgb, 0, 1) / XYZ.sum(1)
    f = np.where(t > 0.008856, np.cbrt(t), 7.787 * t + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def contrast(one, other):
    low, high = sorted(float(XYZ[1] @ linear(color)) + 0.05 for color in (one, other))
    return high / low


def test_contrast_formula_on_known_pairs():
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)


def test_one_color_per_family():
    assert set(style.FAMILY) == {
        "attention", "ssm", "linear", "conv", "hybrid", "liquid", "diffusion", "quant", "neutral",
    }  # fmt: skip


@pytest.mark.parametrize("page", ["#ffffff", "#121212", DARK_PAGE])
@pytest.mark.parametrize("family", style.FAMILY)
def test_colors_read_on_both_pages(family, page):
    assert contrast(style.FAMILY[family], page) >= 3


@pytest.mark.parametrize(("eye", "apart"), [("normal", 30), ("deutan", 20), ("protan", 20)])
def test_families_are_told_apart(eye, apart):
    seen = {name: lab(EYES[eye] @ linear(color)) for name, color in style.FAMILY.items()}
    near = {(a, b): np.linalg.norm(seen[a] - seen[b]) for a, b in itertools.combinations(seen, 2)}
    assert min(near.values()) >= apart, min(near, key=near.get)


@pytest.mark.parametrize("page", ["#ffffff", "#121212", DARK_PAGE])
@pytest.mark.parametrize("color", style.SERIES)
def test_series_read_on_both_pages(color, page):
    assert contrast(color, page) >= 3


@pytest.mark.parametrize(("eye", "apart", "from_families"), [("normal", 30, 20), ("deutan", 20, 0), ("protan", 20, 0)])
def test_series_are_told_apart_and_are_no_family(eye, apart, from_families):
    seen = [lab(EYES[eye] @ linear(color)) for color in style.SERIES]
    families = [lab(EYES[eye] @ linear(color)) for color in style.FAMILY.values()]
    assert min(np.linalg.norm(a - b) for a, b in itertools.combinations(seen, 2)) >= apart
    assert min(np.linalg.norm(a - b) for a in seen for b in families) >= from_families


CSS = (Path(__file__).parent.parent / "_static" / "postx.css").read_text(encoding="utf8")


@pytest.mark.parametrize(
    ("selector", "pages"),
    [("figure.px-fig,\n.px-lane", ["#ffffff"]),
     ('html[data-theme="dark"] :is(figure.px-fig, .px-lane)', ["#121212", DARK_PAGE])],
)
def test_words_read_on_their_page(selector, pages):
    """Every color of a family or series has a shade for words in each mode, of 4.5:1."""
    block = re.search(rf"^ *{re.escape(selector)} {{\n((?: *--px-[a-z]+: #[0-9a-f]{{6}};\n)+)", CSS, re.M)
    shades = dict(re.findall(r"(--px-[a-z]+): (#[0-9a-f]{6});", block[1]))
    assert sorted(shades) == sorted(style.SHADES.values())
    pale = {name: shade for name, shade in shades.items() if min(contrast(shade, page) for page in pages) < 4.5}
    assert not pale


def test_use_sets_the_style():
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        style.use()
        assert matplotlib.rcParams["axes.spines.top"] is False
        assert matplotlib.rcParams["axes.prop_cycle"].by_key()["color"][0] == style.FAMILY["attention"]


@pytest.mark.parametrize(
    ("number", "text"), [(1, "1"), (512, "512"), (4096, "4k"), (2**20, "1M"), (3 * 2**30, "3G"), (1536, "1.5k")]
)
def test_binary(number, text):
    assert style.binary(number) == text


@pytest.mark.parametrize(
    ("number", "text"),
    [(0.05, "0.05"), (1, "1"), (512, "512"), (4096, "4.1k"), (1e6, "1M"), (1e12, "1T"), (1e18, "10¹⁸"), (1e-6, "10⁻⁶"),
     (3e20, "3·10²⁰"), (0, "0"), (-2000, "-2k")],
)  # fmt: skip
def test_decimal(number, text):
    assert style.decimal(number) == text


@pytest.mark.parametrize(("number", "text"), [(1.6e-7, "2·10⁻⁷"), (1.4e-12, "10⁻¹²"), (9.7e-6, "10⁻⁵"), (0, "0")])
def test_decimal_with_one_digit(number, text):
    assert style.decimal(number, 1) == text


def axes():
    fig = Figure()
    FigureCanvasAgg(fig)
    return fig.subplots()


def test_log_ticks_are_fixed_and_readable():
    ax = axes()
    style.log2_ticks(ax.xaxis, 512, 2**20, every=3)
    style.log10_ticks(ax.yaxis, 0.05, 2e6, every=2)
    assert ax.get_xlim() == (512, 2**20)
    assert ax.get_yscale() == "log"
    assert list(ax.get_xticks()) == [512, 4096, 32768, 262144]
    assert [t.get_text() for t in ax.get_xticklabels()] == ["512", "4k", "32k", "256k"]
    assert [t.get_text() for t in ax.get_yticklabels()] == ["0.1", "10", "1k", "100k"]
    assert len(ax.xaxis.get_minor_ticks()) == 0


@pytest.mark.parametrize("bad", [dict(low=0, high=8), dict(low=8, high=2), dict(low=1, high=8, every=0)])
def test_log_ticks_refuse(bad):
    with pytest.raises(ValueError, match="low|every"):
        style.log2_ticks(axes().xaxis, **bad)


@pytest.mark.parametrize(("side", "dx", "dy"), [("right", 4, 0), ("left", -4, 0), ("above", 0, 4), ("below", 0, -4)])
def test_label_stands_beside_its_point_and_moves_with_it(side, dx, dy):
    ax = axes()
    ax.set(xlim=(0, 10), ylim=(0, 10))
    text = style.label(ax, 2, 3, "SSM", side=side)
    for point in [(2, 3), (7, 5)]:
        text.set_position(point)
        gap = (text.get_transform().transform(point) - ax.transData.transform(point)) * 72 / ax.figure.dpi
        assert gap == pytest.approx((dx, dy))


def test_label_refuses_an_unknown_side():
    with pytest.raises(ValueError, match="side must be one of right"):
        style.label(axes(), 0, 0, "x", side="north")


@pytest.mark.parametrize("page", ["#ffffff", DARK_PAGE])
def test_zero_is_nearly_the_page_and_one_is_the_color(page):
    """On paper of any color, and the larger a share, the farther from the page it looks."""
    paper = np.array(matplotlib.colors.to_rgb(page))

    def seen(share):
        *rgb, alpha = style.from_zero(style.FAMILY["ssm"])(share)
        return lab(linear(tuple(alpha * np.array(rgb) + (1 - alpha) * paper)))

    away = [np.linalg.norm(seen(share) - lab(linear(page))) for share in np.linspace(0, 1, 11)]
    assert away == sorted(away)
    assert 2 < away[0] < 0.2 * away[-1]
    assert np.allclose(seen(1.0), lab(linear(style.FAMILY["ssm"])))
