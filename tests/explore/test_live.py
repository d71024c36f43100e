"""Figures that are a formula: Python, the page's JavaScript and the formula shown are one expression."""

import json
import re
from html import unescape

import formulas
import node
import numpy as np
import pytest
import sympy as sp
from matplotlib.figure import Figure

from postx.explore import Choice, Int, Log, Real, axes, explore
from postx.explore.live import Live

ALT = "A line over its length at a width of {K}, option {c}."
SCRIPTS = ("postx.js", "handles.js", "live.js")
n, K, c = sp.symbols("n K c", positive=True)


def draw(fig):
    ax = fig.subplots()
    ax.set(xscale="log", yscale="log", xlim=(16, 4096), ylim=(1, 1e7))
    (line,), (dot,), (flat,) = ax.plot([16, 4096], [20, 20]), ax.plot([100], [100], "o"), ax.plot([16, 4096], [9, 9])
    rule, word = ax.axvline(100), ax.text(100, 100, "word")
    curve = sp.Piecewise((sp.exp(-n / 50) * K, n < 64), (sp.Min(n, c) ** 2 + sp.log(n, 2) / 3, True))
    return Live(
        {line: curve, dot: (2 * K, 4 * K**2), rule: (K, None), flat: (None, c + K), word: (2 * K, sp.floor(K) + 1)},
        over=(n, 16, 4096),
        say=[(K > 64, "Wide, {K}: {meet:,.0f} tokens, {share:.1%}."), (True, "Narrow, {K} and {c}: {meet:.3g}.")],
        meet=2 * K, share=1 / K, shows={"f(n)": line, "n^*": "meet"},
    )  # fmt: skip


def made(monkeypatch, **sliders):
    monkeypatch.setenv("POSTX_STATIC", "1")
    sliders = sliders or {"K": Real(16, 512, start=64, log=True, axis="x"), "c": Choice(100, 200.5, 300)}
    figure = explore(draw, alt=ALT, **sliders)
    html = figure._repr_mimebundle_()[0]["text/html"]
    data = json.loads(re.search(r'<script type="application/json">(.*?)</script>', html)[1])
    code = re.search(r"parentElement,(\{.*\})\)</script>", html)[1]
    return figure, html, data, code


def test_the_page_computes_what_python_computes(monkeypatch):
    figure, html, data, _ = made(monkeypatch)
    grid = node.run(SCRIPTS, "postx.live.curve(data.over)", data=data)
    assert grid == pytest.approx(figure._update.grid, rel=1e-12)
    assert formulas.disagreements(figure, html) == []


def test_another_formula_on_the_page_is_found(monkeypatch):
    figure, html, *_ = made(monkeypatch)
    bent = html.replace("values:[(u,a,b)=>2*a,", "values:[(u,a,b)=>2*a*(1+1e-11),")
    assert bent != html
    (found,) = formulas.disagreements(figure, bent)
    assert found.startswith("2*a at (16.0, 100)")


def test_the_formula_shown_is_the_one_that_moves(monkeypatch):
    figure, html, _, _ = made(monkeypatch)
    lines = [unescape(one) for one in re.findall(r"\\\[(.*?)\\\]", html)]
    curve = figure._update.moves[next(iter(figure._update.moves))][1]
    assert lines == [f"f(n) = {sp.latex(curve)}", "n^* = 2 K"]


def test_python_moves_curves_dots_rules_and_words(monkeypatch):
    figure, *_ = made(monkeypatch)
    assert figure.move(K=100.0, c=300) == "Wide, 100: 200 tokens, 1.0%."
    line, dot, rule, flat, word = figure._update.moves
    x, y = line.get_data()
    assert x[[0, -1]] == pytest.approx([16, 4096])
    assert y[0] == pytest.approx(100 * np.exp(-16 / 50))
    assert y[-1] == pytest.approx(300**2 + 4)
    assert [list(v) for v in dot.get_data()] == [[200], [40_000]]
    assert list(rule.get_xdata()) == [100, 100]
    assert list(rule.get_ydata()) == [0, 1]
    assert list(flat.get_data()[1]) == [400, 400]
    assert word.get_position() == (200, 101)
    assert figure.move(K=16.0) == "Narrow, 16 and 300: 32."


def test_every_stop_is_written_alike(monkeypatch):
    sliders = {"K": Real(0.5, 4, start=1.5, stops=301), "c": Int(100, 2000, step=100, unit="tokens")}
    figure, _, data, _ = made(monkeypatch, **sliders)
    texts = node.run(SCRIPTS, "data.sliders.map((s) => postx.live.stops(s, postx.live.numbers(s.values)))", data=data)
    assert texts == [[slider.text(value) for value in slider.values] for slider in figure.sliders.values()]
    odd = made(monkeypatch, K=Real(1, 2), c=Log(1, 8, fmt=lambda v: f"<{v}>"))[2]["sliders"][1]
    assert odd == {"values": [1, 2, 4, 8], "texts": ["<1>", "<2>", "<4>", "<8>"]}


def test_numbers_are_written_as_python_writes_them():
    rng = np.random.default_rng(0)
    values = [0.0, 0.5, 1.5, 2.5, 0.125, 0.375, -0.5, -2.5, 1e-5, 0.0001, 999.5, 2.675, 1.005, 9.995, 1e6, 1234567.5]
    values += [*rng.normal(size=200) * 10.0 ** rng.integers(-8, 12, 200), *rng.integers(-(10**7), 10**7, 100) / 8]
    values = [float(v) for v in values if abs(v) < 1e20]
    specs = [".0f", ",.0f", ".2f", ",.1f", ".4f", ".1g", ".3g", ".6g", ".0%", ".1%"]
    told = node.run(SCRIPTS, "specs.map((s) => values.map((v) => postx.live.format(v, s)))", specs=specs, values=values)
    assert told == [[f"{value:{spec}}" for value in values] for spec in specs]


def test_a_path_is_torn_where_a_point_is_nowhere():
    points = "[[0, 1], [2, NaN], [3, 4], [5, Infinity], [1e9, -7]]"
    assert node.run(SCRIPTS, f"postx.live.line({points})") == "M0.00 1.00M3.00 4.00L5.00 9000.00L9000.00 -7.00"


def bare(moves, **more):
    def build(fig):
        ax = fig.subplots()
        (line,) = ax.plot([1, 2], [1, 2])
        return Live(moves(line, ax), **more)

    return explore(build, alt="A line that moves with K.", K=Int(1, 4))


@pytest.mark.parametrize(
    ("kind", "message", "build"),
    [
        (ValueError, "needs over=", lambda: bare(lambda line, ax: {line: K})),
        (ValueError, "over must be", lambda: bare(lambda line, ax: {line: K}, over=(n, 4, 1))),
        (ValueError, "m in K.*m is no slider|m in .* is no slider",
         lambda: bare(lambda line, ax: {line: (K * sp.Symbol("m"), 1)})),
        (TypeError, "not a Rectangle", lambda: bare(lambda line, ax: {ax.bar([1], [1])[0]: (K, K)})),
        (ValueError, "name a slider, or a value", lambda: bare(lambda line, ax: {line: (None, K)}, say="{q}")),
        (ValueError, "name a slider, or a value", lambda: bare(lambda line, ax: {line: (None, K)}, say="{q:d}", q=K)),
        (ValueError, "JavaScript has no word", lambda: bare(lambda line, ax: {line: (None, sp.gamma(K))})),
    ],
)  # fmt: skip
def test_what_a_page_could_not_do_is_refused(kind, message, build):
    with pytest.raises(kind, match=message):
        build()


def test_an_axis_that_is_neither_linear_nor_log_is_refused():
    ax = Figure().subplots()
    ax.set_yscale("symlog")
    with pytest.raises(ValueError, match="linear and log axes, got symlog"):
        axes.axis(ax, 1)
