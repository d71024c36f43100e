"""Whether a Live figure's page computes what its Python computes, and writes its sliders' stops alike."""

import itertools
import json
import re

import node
import numpy as np

SCRIPTS = ("postx.js", "handles.js", "live.js")
STOPS = 7  # of each slider, its ends among them
ASK = """(() => {
  const code = %s;
  const sliders = data.sliders.map((s) => postx.live.numbers(s.values));
  const texts = data.sliders.map((s, i) => postx.live.stops(s, sliders[i]));
  const grid = data.over ? postx.live.curve(data.over) : [null];
  const functions = [...code.moves.flat(), ...code.values, code.says].filter(Boolean);
  const at = (f, point, points) => points.map((u) => (data.over ? f(u, ...point) : f(...point)));
  return { sliders, texts, grid, values: points.map((point) =>
    functions.map((f, i) => at(f, point, curves[i] ? us : [NaN]))) };
})()"""


def disagreements(figure, html, rel=1e-12):
    """Words on each function and each slider in which the page differs from Python; empty if it is one formula."""
    data = json.loads(re.search(r'<script type="application/json">(.*?)</script>', html)[1])
    code = re.search(r"parentElement,(\{.*\})\)</script>", html)[1]
    live, sliders = figure._update, list(figure.sliders.values())
    functions = [f for pair in live.places.values() for f in pair if f] + [*live.numbers.values(), live.case]
    picks = [[s.values[i] for i in np.unique(np.linspace(0, len(s.values) - 1, STOPS).astype(int))] for s in sliders]
    points = list(itertools.product(*picks))
    curves = [f.curve for f in functions]
    us = list(map(float, live.grid)) if live.over else []  # at a bend the last bit of a point decides
    ours = node.run(SCRIPTS, ASK % code, data=data, points=points, curves=curves, us=us)
    found = [] if not us or np.allclose(ours["grid"], us, rtol=rel, atol=0) else ["the points of the curves"]
    for slider, numbers, texts in zip(sliders, ours["sliders"], ours["texts"], strict=True):
        if numbers != list(slider.values) or texts != [slider.text(value) for value in slider.values]:
            found.append(f"the stops of {slider}")
    bad = {}
    for point, row in zip(points, ours["values"], strict=True):
        for function, got in zip(functions, row, strict=True):
            given = ([live.grid if function.curve else np.nan] if live.over else []) + [float(v) for v in point]
            want = np.broadcast_to(np.asarray(function(given), float), len(got))
            got = np.array([float(v) for v in got])
            same = np.isclose(got, want, rtol=rel, atol=1e-300, equal_nan=True)
            if not same.all():
                bad.setdefault(function.text, (point, got[~same][0], want[~same][0]))
    return found + [f"{text} at {at}: the page has {got!r}, Python {want!r}" for text, (at, got, want) in bad.items()]
