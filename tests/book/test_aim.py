"""A guess in the picture: both marks stand on the figure's own axis, put there by hand, by keys or as a number."""

import json
import math
import os
import re
from html import escape

import browser
import node
import numpy as np
import pytest
from playwright.sync_api import expect
from sphinx.application import Sphinx
from test_guess import ALL

from _ext import guess
from postx.explore import Log, explore

STATIC = browser.ROOT / "_static"
SCRIPTS = ("postx.js", "handles.js", "live.js", "aim.js", "guess.js")
PAGE = """# Page

```{{raw}} html
{figure}
```

```{{guess}} 64 tokens
:ask: where they cross
:axis: x
At 64.
```

```{{guess}} 300 steps
:ask: how many steps
:axis: y
After 300 steps.
```

```{{guess}} 5 s
:ask: how long
After 5 s.
```
"""


def draw(fig):
    x = 2.0 ** np.arange(3, 13)
    ax = fig.subplots()
    ax.set(xscale="log", xlim=(8, 4096), ylim=(0, 1000))
    (line,) = ax.plot(x, x)

    def update(n):
        line.set_ydata(np.minimum(x, n))
        return f"Up to {n}."

    return update


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    before = os.environ.get("POSTX_STATIC")
    os.environ["POSTX_STATIC"] = "1"
    made = explore(draw, alt="A line that bends at {n} tokens.", n=Log(8, 512, start=32, axis="x"))
    figure = made._repr_mimebundle_()[0]["text/html"]
    os.environ.pop("POSTX_STATIC") if before is None else os.environ.update(POSTX_STATIC=before)
    book = tmp_path_factory.mktemp("aims")
    (book / "index.md").write_text(PAGE.format(figure=figure))
    overrides = {"extensions": ["myst_parser", "sphinx_design", "_ext.guess"]}
    Sphinx(book, None, book / "out", book / "trees", "html", overrides, status=None, warning=None).build()
    path = book / "out" / "index.html"
    files = "".join(f'<script src="{(STATIC / name).as_uri()}"></script>' for name in SCRIPTS)
    files += "".join(f'<link rel="stylesheet" href="{(STATIC / f"{n}.css").as_uri()}">' for n in ("postx", "guess"))
    text = re.sub(r"<script src=.*?</script>", "", path.read_text(encoding="utf8"))
    path.write_text(text.replace("</head>", f"{files}</head>"), encoding="utf8")
    return path, made


@pytest.fixture
def opened(chrome, page):
    contexts, faults = [], []

    def open_page(**options):
        contexts.append(chrome.new_context(viewport={"width": 760, "height": 900}, **options))
        contexts[-1].set_default_timeout(8000)
        found = contexts[-1].new_page()
        found.on("pageerror", lambda error: faults.append(str(error)))
        found.goto(page[0].as_uri())
        return found

    yield open_page
    for context in contexts:
        context.close()
    assert faults == []


def pixel(made, number, axis):
    """Where matplotlib draws a number, in points of the picture."""
    ax = made._fig.axes[0]
    px, py = ax.transData.transform((number, 1) if axis == "x" else (8, number)) * 72 / made._fig.dpi
    return float(px) if axis == "x" else float(72 * made.size[1] - py)


def stands(found, kind, axis, number=0):
    """Where a mark stands, and its words."""
    path = found.locator(f".px-aimed .{kind} path").nth(number).get_attribute("d")
    at = re.match(r"M([\d.]+) ([\d.]+)", path)[1 if axis == "x" else 2]
    return float(at), found.locator(f".px-aimed .{kind} text").nth(number).text_content()


BOXES = "all => all.map(e => { const { x, y, width, height } = e.getBBox(); return { x, y, width, height }; })"


def type_in(found, number, text):
    found.locator(".px-guess input[type=text]").nth(number).fill(text)
    found.locator(".px-guess input[type=text]").nth(number).press("Enter")


def test_a_number_and_the_truth_stand_on_the_axis_of_the_figure(opened, page):
    found, made = opened(reduced_motion="reduce"), page[1]
    expect(found.locator(".px-aimed path")).to_have_count(0)
    type_in(found, 0, "512")
    assert stands(found, "px-you", "x") == (pytest.approx(pixel(made, 512, "x"), abs=0.05), "you: 512")
    assert stands(found, "px-here", "x") == (pytest.approx(pixel(made, 64, "x"), abs=0.05), "here: 64")
    expect(found.locator(".px-said-guess").first).to_have_text("You: 512 tokens. Here: 64 tokens; 8.0 times too high.")
    type_in(found, 1, "310")
    assert stands(found, "px-you", "y", 1) == (pytest.approx(pixel(made, 310, "y"), abs=0.05), "you: 310")
    assert stands(found, "px-here", "y", 1) == (pytest.approx(pixel(made, 300, "y"), abs=0.05), "here: 300")
    type_in(found, 2, "5")
    expect(found.locator(".px-scale:visible"), "only a question without an axis has a line of its own").to_have_count(1)
    expect(found.locator(".px-guesses span")).to_have_text("Your guesses on this page: 3 of 3; 2 right, 0 close.")
    found.locator("figure input[type=range]").press("End")
    assert stands(found, "px-here", "x")[1] == "here: 64", "the slider of the figure leaves the marks"
    found.reload()
    assert stands(found, "px-you", "x")[1] == "you: 512"
    found.get_by_role("button", name="Forget them").click()
    expect(found.locator(".px-aimed path")).to_have_count(0)


def test_the_words_of_two_marks_do_not_lie_on_each_other(opened):
    found = opened(reduced_motion="reduce")
    for near in ("64", "70", "3000", "1"):
        type_in(found, 0, near)
        type_in(found, 1, str(int(near) * 5))
        boxes = found.eval_on_selector_all(".px-aimed text", BOXES)
        for one, other in (boxes[:2], boxes[2:]):
            apart = one["y"] + one["height"] <= other["y"] or other["y"] + other["height"] <= one["y"]
            beside = one["x"] + one["width"] <= other["x"] or other["x"] + other["width"] <= one["x"]
            assert apart or beside, (near, boxes)


def test_the_truth_comes_after_the_guess(opened):
    found = opened()
    browser.stop_time(found)
    type_in(found, 0, "512")
    expect(found.locator(".px-aimed .px-you")).to_have_count(1)
    expect(found.locator(".px-aimed .px-here")).to_have_count(0)
    found.clock.run_for(1000)
    expect(found.locator(".px-aimed .px-here")).to_have_count(1)


def test_a_tap_puts_the_guess(opened, page):
    found, made = opened(reduced_motion="reduce", has_touch=True), page[1]
    button = found.get_by_role("button", name="Point in the picture")
    expect(button).to_have_count(2)
    button.first.click()
    box = found.locator("figure svg").first.bounding_box()
    scale = box["width"] / (72 * made.size[0])
    found.touchscreen.tap(box["x"] + scale * pixel(made, 128, "x"), box["y"] + 0.4 * box["height"])
    expect(found.locator(".px-guess input[type=text]").first).to_have_value("130")
    assert stands(found, "px-you", "x")[1] == "you: 130"
    expect(found.locator(".px-aimed .px-here"), "nothing is told before it is compared").to_have_count(0)
    expect(found.locator("figure output"), "the slider of the figure was not meant").to_have_text("Up to 32.")
    found.get_by_role("button", name="Compare").first.click()
    assert stands(found, "px-here", "x")[1] == "here: 64"
    expect(found.locator(".px-aim")).to_have_count(0)
    expect(button.first).to_have_attribute("aria-pressed", "false")


def test_keys_put_the_guess(opened):
    found = opened(reduced_motion="reduce")
    found.get_by_role("button", name="Point in the picture").nth(1).press("Enter")
    along = found.get_by_role("slider", name="Along the axis: how many steps")
    assert along.evaluate("e => e === document.activeElement")
    expect(along).to_have_attribute("aria-valuetext", "500 steps")
    for _ in range(40):
        found.keyboard.press("ArrowLeft")
    expect(along).to_have_attribute("aria-valuetext", "300 steps")
    found.keyboard.press("Escape")
    expect(found.locator(".px-aimed path"), "left without comparing: no mark stays").to_have_count(0)
    found.keyboard.press("Enter")
    found.keyboard.press("Home")
    for _ in range(60):
        found.keyboard.press("ArrowRight")
    found.keyboard.press("Enter")
    expect(found.locator(".px-said-guess").nth(1)).to_have_text("You: 300 steps. Here: 300 steps; right.")


def test_what_lies_beyond_the_axis_stands_at_its_end():
    scale, box = [1, 0, 100], [100, 10, 200, 50]  # from 10 to 1,000
    asked = "[1, 10, 50, 1e9].map((n) => postxAim.mark(scale, box, 'x', n))"
    told = node.run(SCRIPTS[3:4], asked, scale=scale, box=box)
    assert [(each["at"], each["arrow"]) for each in told] == [
        (100, "← "), (100, ""), (pytest.approx(100 * math.log10(50)), ""), (300, " →")]  # fmt: skip
    up = node.run(SCRIPTS[3:4], "[-5, 9e3].map((n) => postxAim.mark([0, 60, -0.05], box, 'y', n))", box=box)
    assert [(each["at"], each["arrow"]) for each in up] == [(60, "↓ "), (10, " ↑")]


def test_a_place_gives_its_number_back():
    for scale in ([1, 12.5, 80.25], [0, 300.5, -0.21]):
        numbers = node.run(SCRIPTS[3:4], "[2, 75, 990].map((n) => postxAim.number(scale, postxAim.place(scale, n)))",
                           scale=scale)  # fmt: skip
        assert numbers == [2, 75, 990]


AXES = [[1, 0, 100], None, [100, 10, 200, 50]]


def box(answer, axis, axes=AXES):
    asked = escape(json.dumps({"ask": "how many", "answer": answer, "written": str(answer)}))
    figure = f'<figure class="px-fig" role="group" data-axes="{json.dumps(axes)}">' if axes else ""
    question = f'<div class="px-guess" data-guess="{asked}" data-axis="{axis}" hidden>'
    return f'<figure class="px-fig" role="group">{figure}{question}'


def test_a_question_that_cannot_stand_in_its_picture_is_named():
    assert guess.unplaced(box(50, "x")) == []
    assert guess.unplaced(box(5000, "x")) == ["how many: 5000 is not on the x axis of the figure before it"]
    assert guess.unplaced(box(50, "y")) == ["how many: the figure before it has no fixed y axis"]
    assert guess.unplaced(box(50, "x", None)) == ["how many: the figure before it has no fixed x axis"]


def test_the_book_asks_in_pictures():
    placed = [(name, argument) for name, argument, _, axis, _ in ALL if axis]
    assert len(placed) >= 3
    assert len({name for name, _ in placed}) >= 3
