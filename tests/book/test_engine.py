"""The page's engine in a real browser, on pages made here: handles, formulas, guesses, terms."""

import io
import json
import re

import browser
import matplotlib.pyplot as plt
import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import expect
from sphinx.application import Sphinx

from postx.explore import Choice, Int, Real, compact, explore
from postx.explore.live import Live

STATIC = browser.ROOT / "_static"
ENGINE = ("postx.js", "handles.js", "live.js")
X = np.linspace(0, 9, 30)


@pytest.fixture
def shown(chrome, tmp_path):
    """Open a file, or HTML with the figures' scripts, from disk; no script may fail."""
    contexts, faults = [], []

    def show(source, scripts=(), before="", **options):
        if isinstance(source, str):
            files = "".join(f'<script src="{(STATIC / name).as_uri()}"></script>' for name in ENGINE)
            style = f'<link rel="stylesheet" href="{(STATIC / "postx.css").as_uri()}">'
            head = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>x</title>{style}{files}'
            path = tmp_path / f"page{len(contexts)}.html"
            path.write_text(f'{head}<body style="height:3000px">{source}</body></html>', encoding="utf8")
        else:
            path = source
        contexts.append(chrome.new_context(viewport={"width": 760, "height": 700}, **options))
        page = contexts[-1].new_page()
        page.on("pageerror", lambda error: faults.append(str(error)))
        if before:
            page.add_init_script(before)
        for script in scripts:
            page.add_init_script(path=STATIC / script)
        page.goto(path.as_uri())
        return page

    yield show
    for context in contexts:
        context.close()
    assert faults == []


def draw(fig):
    ax = fig.subplots()
    ax.set(xlim=(0, 9), ylim=(0, 9))
    (line,) = ax.plot(X, X)
    word = ax.text(1, 8, "word")

    def update(t, shape="flat"):
        line.set_ydata(np.full_like(X, t) if shape == "flat" else X * t / 9)
        word.set_text(f"{shape} {t}")
        return f"At {t} it is {shape}."

    return update


def figure(monkeypatch, draw=draw, **more):
    monkeypatch.setenv("POSTX_STATIC", "1")
    made = explore(draw, alt="A line that is moved by hand.", **more)
    return made, made._repr_mimebundle_()[0]["text/html"]


def says(page, words):
    """The readout of the first figure: at once, or where the machine is busy as soon as the page has drawn."""
    expect(page.locator(".px-readout").first).to_have_text(words)


def test_options_are_radio_buttons(monkeypatch, shown):
    _, html = figure(monkeypatch, t=Int(1, 8, start=3), shape=Choice("flat", "steep", "third"))
    page = shown(html + figure(monkeypatch, t=Int(1, 7), shape=Choice("flat", "steep"))[1])
    group = page.get_by_role("radiogroup", name="shape").first
    expect(group.get_by_role("radio")).to_have_count(3)
    group.get_by_role("radio", name="flat").press("ArrowDown")
    says(page, "At 3 it is steep.")
    assert "steep 3" in page.text_content("svg")
    group.get_by_text("third").click()
    says(page, "At 3 it is third.")
    page.locator("input[type=range]").first.press("End")
    says(page, "At 8 it is third.")
    chosen = page.locator("input[type=radio]:checked")
    expect(chosen, "two figures do not share their buttons").to_have_count(2)


def test_without_scripts_the_values_stand_there_and_no_dead_handle(monkeypatch, shown):
    _, html = figure(monkeypatch, t=Int(1, 8, start=3, play=True), shape=Choice("flat", "steep", start="steep"))
    page = shown(html, java_script_enabled=False)
    seen = page.inner_text(".px-controls").split()
    assert seen == ["t", "3", "shape", "steep"]
    expect(page.locator("input:visible, button:visible")).to_have_count(0)


def test_a_reload_keeps_where_buttons_stood(monkeypatch, shown):
    page = shown(figure(monkeypatch, t=Int(1, 8), shape=Choice("flat", "steep"))[1])
    page.evaluate("document.querySelectorAll('input[type=radio]')[1].checked = true")
    page.evaluate("dispatchEvent(new Event('pageshow'))")
    says(page, "At 1 it is steep.")


def test_alt_with_an_arrow_goes_from_figure_to_figure(monkeypatch, shown):
    slider, buttons = {"t": Int(1, 8)}, {"shape": Choice("flat", "steep", start="steep"), "t": Int(1, 3)}
    figures = [figure(monkeypatch, **handles)[1] for handles in (slider, buttons, {"t": Int(1, 4)})]
    page = shown("<p><input id=word></p>".join(figures), scripts=["book.js"])
    at = "[...document.querySelectorAll('figure')].indexOf(document.activeElement.closest('figure'))"

    def go(key):
        page.keyboard.press(key)
        return page.evaluate(at)

    assert [go("Alt+ArrowDown") for _ in range(4)] == [0, 1, 2, 2], "the last one has no next"
    assert page.locator("figure").nth(2).evaluate("e => e.getBoundingClientRect().bottom - innerHeight") <= 1
    assert go("Alt+ArrowUp") == 1
    assert page.evaluate("document.activeElement.value") == "1", "of buttons it is the one that is chosen"
    assert go("Alt+ArrowUp") == 0
    assert page.evaluate("document.activeElement.value") == "0", "a slider does not move by it"
    assert go("ArrowDown") == 0
    page.locator("#word").last.focus()
    assert go("Alt+ArrowDown") == -1, "where one writes, the keys are the text's"


def test_time_plays_to_its_end_and_pauses(monkeypatch, shown):
    page = shown(figure(monkeypatch, t=Int(1, 8, start=6, play=True))[1])
    browser.stop_time(page)
    page.get_by_role("button", name="Play: t").press("Enter")
    pause = page.get_by_role("button", name="Pause: t")
    expect(pause).to_have_text("❚❚")
    page.clock.run_for(1000)
    says(page, "At 8 it is flat.")
    expect(page.get_by_role("button", name="Play: t")).to_have_text("▶")
    page.get_by_role("button", name="Play: t").click()  # from the end it begins again
    says(page, "At 1 it is flat.")
    page.clock.run_for(1000)
    says(page, "At 2 it is flat.")
    pause.click()
    page.clock.run_for(5000)
    says(page, "At 2 it is flat.")


def test_who_wants_less_motion_gets_a_step_for_a_press(monkeypatch, shown):
    page = shown(figure(monkeypatch, t=Int(1, 8, start=3, play=True))[1], reduced_motion="reduce")
    browser.stop_time(page)
    page.get_by_role("button", name="Next: t").click()
    says(page, "At 4 it is flat.")
    page.clock.run_for(5000)
    says(page, "At 4 it is flat.")


def field(page):
    return page.locator(".px-field").bounding_box()


def test_a_plot_is_dragged_along_its_axis(monkeypatch, shown):
    page = shown(figure(monkeypatch, t=Int(0, 9, start=3, axis="x"))[1])
    box = field(page)
    page.mouse.move(box["x"] + 0.3 * box["width"], box["y"] + 20)
    page.mouse.down()
    for share, stop in ((0.68, 6), (0.2, 2), (1.2, 9), (-0.1, 0), (0.54, 5)):
        page.mouse.move(box["x"] + share * box["width"], box["y"] + 40)
        says(page, f"At {stop} it is flat.")
    expect(page.locator(".px-grip text")).to_be_visible()
    expect(page.locator(".px-grip text")).to_have_text("5")
    page.mouse.up()
    page.mouse.move(box["x"] + 5, box["y"] + 40)
    says(page, "At 5 it is flat.")
    expect(page.locator(".px-grip text")).not_to_be_visible()
    page.locator("input").press("ArrowRight")
    middle = page.locator(".px-grip circle").bounding_box()
    assert middle["x"] + middle["width"] / 2 == pytest.approx(box["x"] + 6 / 9 * box["width"], abs=1.5)


def test_a_finger_drags_sideways_and_scrolls_up_and_down(monkeypatch, shown):
    page = shown(figure(monkeypatch, t=Int(0, 9, start=8, axis="x"))[1], has_touch=True)
    box, session = field(page), page.context.new_cdp_session(page)
    x, y = box["x"] + 0.33 * box["width"], box["y"] + 0.8 * box["height"]

    def stroke(dx, dy):
        session.send("Input.dispatchTouchEvent", {"type": "touchStart", "touchPoints": [{"x": x, "y": y}]})
        for step in range(1, 11):
            at = {"x": x + dx * step / 10, "y": y + dy * step / 10}
            session.send("Input.dispatchTouchEvent", {"type": "touchMove", "touchPoints": [at]})
        session.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})

    stroke(0.5 * box["width"], 10)
    says(page, "At 7 it is flat.")
    assert page.evaluate("scrollY") == 0
    page.touchscreen.tap(x, y)
    says(page, "At 3 it is flat.")
    page.locator("input").press("End")
    stroke(0, -150)  # last, because a page glides on after the finger has left it
    page.wait_for_function("scrollY > 50")
    page.wait_for_timeout(300)  # what must not follow would be there by now
    says(page, "At 9 it is flat.")


def test_the_picture_before_stays_as_a_ghost_without_words(monkeypatch, shown):
    page = shown(figure(monkeypatch, t=Int(1, 8, start=3), ghost=True)[1])
    expect(page.locator(".px-ghost")).to_have_count(0)
    before = page.locator("[data-slot] path").first.get_attribute("d")
    browser.stop_time(page)  # a pause would begin a new move
    page.locator("input").press("ArrowRight")
    page.locator("input").press("ArrowRight")
    ghost = page.locator(".px-ghost path").first
    assert ghost.get_attribute("d") == before, "of the move's beginning, not of its last step"
    expect(page.locator(".px-ghost text")).to_have_count(0)
    assert page.eval_on_selector(".px-ghost", "e => getComputedStyle(e).opacity") == "0.25"


def test_markers_on_a_line_are_painted_as_each_by_itself(monkeypatch, shown):
    """Half transparent ones that lie on each other, and squares, pixel for pixel."""
    x, y = np.random.default_rng(0).normal(size=(2, 60))

    def cloud(fig):
        ax = fig.subplots()
        dots = [ax.plot(x, y + i, mark, color=c, ms=9, alpha=0.5)[0] for i, (mark, c) in enumerate(("or", "sb"))]
        return lambda t: plt.setp(dots, xdata=x * t / 3) and None

    seen, counts = [], []
    for few in (8, 10**6):
        monkeypatch.setattr(compact, "FEW", few)
        page = shown(figure(monkeypatch, cloud, t=Int(1, 3))[1])
        page.locator("input").press("End")
        counts.append(page.locator("svg use").count())
        seen.append(np.asarray(Image.open(io.BytesIO(page.locator("svg").first.screenshot()))).astype(int))
    assert counts[1] == counts[0] + 2 * len(x)
    assert np.abs(seen[0] - seen[1]).max() <= 8  # of 255: an edge may fall between two pixels in another way
    assert seen[0].min() < 100


@pytest.mark.parametrize(("part", "least", "most"), [("output", 0.78, 57), ("input", 0.82, 54)])
@pytest.mark.parametrize("letters", [40, 50, 56, 60, 80])
def test_what_a_cell_shows_shrinks_only_where_that_makes_it_fit(shown, part, least, most, letters):
    """A column of 400 pixels holds 45 letters of its size, and `most` of the smallest."""
    style = "pre { font: 14.6px 'DejaVu Sans Mono', monospace; padding: 4px; overflow: auto; margin: 0 }"
    text = "m" * letters + "\nend"
    page = shown(f'<style>{style}</style><div class="bd-article" style="width:404px"><div class="cell">'
                 f'<div class="cell_{part}"><pre>{text}</pre></div></div></div>'
                 f'<script src="{(STATIC / "wide.js").as_uri()}"></script>')  # fmt: skip
    browser.drawn(page)
    box = page.locator("pre")
    size = box.evaluate("e => parseFloat(getComputedStyle(e).fontSize)")
    assert (box.evaluate("e => e.scrollWidth - e.clientWidth") > 1) == (letters > most)
    assert (size < 14.6) == (45 < letters <= most)
    assert size > least * 14.6
    assert box.evaluate("e => e.classList.contains('px-more')") == (letters > most)
    page.locator("div").first.evaluate("e => { e.style.width = '740px' }")
    browser.drawn(page)
    assert box.evaluate("e => parseFloat(getComputedStyle(e).fontSize)") == 14.6


@pytest.mark.parametrize(
    ("text", "breaks"),
    [("sixteen words " * 8 + "end.  And on", True), ("a  1 " + "m " * 40, False),
     ("def f(x):\n    return x + 1  # one more " + "word " * 20, True)],
)
def test_sentences_that_a_cell_prints_break_and_columns_scroll(shown, text, breaks):
    style = "pre { font: 14.6px 'DejaVu Sans Mono', monospace; padding: 4px; overflow: auto; margin: 0 }"
    page = shown(f'<style>{style}</style><div class="bd-article cell cell_output" style="width:404px"><pre>{text}</pre>'
                 f'</div><script src="{(STATIC / "wide.js").as_uri()}"></script>')  # fmt: skip
    browser.drawn(page)
    assert page.locator("pre").evaluate("e => e.scrollWidth - e.clientWidth <= 1") == breaks
    assert page.locator("pre").evaluate("e => !e.classList.contains('px-more')") == breaks


@pytest.mark.parametrize(("size", "text", "read"), [
    (10.5, "$h_t$", True), (9, "$h_t$", False), (10.5, "$e^{x_t}$", False), (10.5, "word", True), (8, "word", True),
])  # fmt: skip
def test_the_small_parts_of_a_formula_are_read_on_a_phone(monkeypatch, shown, size, text, read):
    def draw(fig):
        word = fig.text(0.2, 0.5, text, size=size)
        return lambda t: word.set_x(t / 10)

    page = shown(figure(monkeypatch, draw, t=Int(1, 2))[1] + "<style>body { margin: 0 16px }</style>")
    page.set_viewport_size({"width": 390, "height": 844})
    assert (page.evaluate(browser.SMALL, browser.LEAST) == []) == read


def test_a_formula_says_one_text(monkeypatch, shown):
    def draw(fig):
        import sympy as sp

        B = sp.symbols("B", positive=True)
        (dot,) = fig.subplots().plot([1], [1], "o")
        return Live({dot: (B, B)}, say="{B} texts, 11 texts.")

    page = shown(figure(monkeypatch, draw, B=Int(1, 9, label="texts at once"))[1])
    for key, words in (("End", "9 texts, 11 texts."), ("Home", "1 text, 11 texts.")):
        page.locator("input").press(key)
        says(page, words)


def formula(fig):
    import sympy as sp

    x, k, d = sp.symbols("x k d", positive=True)
    ax = fig.subplots()
    ax.set(xscale="log", xlim=(0.1, 100), ylim=(-0.1, 5))
    (line,), (dot,), word = ax.plot([1, 2], [1, 2]), ax.plot([1], [1], "o"), ax.text(1, 1, "word")
    (flat,), rule = ax.plot([0.1, 100], [1, 1]), ax.axvline(1)
    curve = (1 - sp.exp(-k * x)) / k + d
    return Live({line: curve, dot: (k, curve.subs(x, k)), word: (k, d), flat: (None, d), rule: (k, None)},
                over=(x, 0.1, 100), say="{k} and {d} make {sum:,.2f}.", sum=k + d)  # fmt: skip


def test_a_formula_moves_what_python_moves_to_the_same_place(monkeypatch, shown):
    made, html = figure(
        monkeypatch, formula, k=Real(0.5, 50, log=True, axis="x"), d=Choice(0, 1, 2.5, start=1)
    )
    page = shown(html)
    handle = page.locator("input[type=range]")
    stops = made.sliders["k"].values
    for place, d in ((0, 0), (137, 2), (len(stops) - 1, 1)):
        page.locator("input[type=radio]").nth(d).check()
        handle.evaluate("(e, at) => { e.value = at; e.dispatchEvent(new Event('input')); }", place)
        readout = made.move(k=stops[place], d=made.sliders["d"].values[d])
        says(page, readout)
        for number, artist in enumerate(made._update.moves):
            where = page.evaluate(DRAWN, number)
            drawn = np.array(where["points"])
            xy = artist.get_xydata() if hasattr(artist, "get_xydata") else [artist.get_position()]
            pixels = artist.get_transform().transform(xy) * 72 / made._fig.dpi
            pixels[:, 1] = made.size[1] * 72 - pixels[:, 1]
            if "from" in where:  # a word: compare how far it went
                start = artist.get_transform().transform([where["from"]]) * 72 / made._fig.dpi
                pixels = np.array([pixels[0] - [start[0, 0], made.size[1] * 72 - start[0, 1]]])
            assert drawn == pytest.approx(np.clip(pixels, -9e3, 9e3), abs=0.02), (place, d, number)


DRAWN = """number => {
  const { figure, data } = postx.live.all[0];
  const move = data.moves[number];
  const group = figure.querySelector(`[data-slot="${move.slot}"]`);
  const dot = group.querySelector("use");
  const gone = group.transform.baseVal[0]?.matrix;
  if (move.from) return { from: move.from, points: [[gone.e, gone.f]] };
  if (dot) return { points: [["x", "y"].map((key) => Number(dot.getAttribute(key)))] };
  const path = group.querySelector("path").getAttribute("d");
  return { points: path.slice(1).split(/[ML]/).map((pair) => pair.split(" ").map(Number)) };
}"""


def test_the_functions_of_the_page_are_those_of_python(monkeypatch, shown):
    made, html = figure(monkeypatch, formula, k=Real(0.5, 50, log=True), d=Choice(0, 1, 2.5))
    ours = shown(html).evaluate("""() => { const { code, data, sliders } = postx.live.all[0];
      const grid = postx.live.curve(data.over), at = (i) => grid.map((u) => code.moves[0][1](u, sliders[0][i], 2.5));
      return { sliders, values: [0, 200, 400].map(at) }; }""")
    assert ours["sliders"] == [list(slider.values) for slider in made.sliders.values()]
    for row, place in zip(ours["values"], (0, 200, 400), strict=True):
        made.move(k=ours["sliders"][0][place], d=2.5)
        assert row == pytest.approx(next(iter(made._update.moves)).get_ydata(), rel=1e-12)


ASKS = """# Page

```{guess} 49,152 tokens
:ask: where they cross
At 49,152.
```

```{guess} 0.5 s
:ask: how long
After 0.5 s.
```
"""


@pytest.fixture(scope="module")
def asking(tmp_path_factory):
    book = tmp_path_factory.mktemp("asks")
    (book / "index.md").write_text(ASKS)
    overrides = {"extensions": ["myst_parser", "sphinx_design", "_ext.guess"]}
    Sphinx(book, None, book / "out", book / "trees", "html", overrides, status=None, warning=None).build()
    made = book / "out" / "index.html"
    made.write_text(re.sub(r"<script src=.*?</script>", "", made.read_text(encoding="utf8")), encoding="utf8")
    return made


def answer(page, number, text):
    page.locator(".px-guess input").nth(number).fill(text)
    page.locator(".px-guess input").nth(number).press("Enter")


@pytest.mark.parametrize("storage", [True, False])
def test_a_guess_opens_the_answer_and_is_kept(asking, shown, storage):
    block = "Object.defineProperty(window, 'localStorage', { get: () => { throw Error('no storage'); } })"
    page = shown(asking, ["guess.js"], "" if storage else block)
    said, tally = page.locator(".px-said-guess"), page.locator(".px-guesses span")
    expect(tally).to_have_text("Your guesses on this page: 0 of 2.")
    expect(page.locator("details[open]")).to_have_count(0)
    expect(page.get_by_label("where they cross")).to_have_count(1)
    answer(page, 0, "many")
    expect(said.first).to_have_text("A number above 0, please, such as 16k or 0.5.")
    answer(page, 0, "16k")
    expect(said.first).to_have_text("You: 16,000 tokens. Here: 49,152 tokens; 3.1 times too low.")
    assert page.locator("details").first.get_attribute("open") is not None
    expect(page.locator(".px-scale").first).to_be_visible()
    answer(page, 1, "0.52")
    expect(tally).to_have_text("Your guesses on this page: 2 of 2; 1 right, 0 close.")
    page.reload()
    assert tally.inner_text() == ("Your guesses on this page: 2 of 2; 1 right, 0 close." if storage
                                  else "Your guesses on this page: 0 of 2.")  # fmt: skip
    if storage:
        expect(said.first).to_have_text("You: 16,000 tokens. Here: 49,152 tokens; 3.1 times too low.")
        expect(page.locator("details[open]")).to_have_count(0)
        page.get_by_role("button", name="Forget them").click()
        expect(tally).to_have_text("Your guesses on this page: 0 of 2.")
        page.reload()
        expect(tally).to_have_text("Your guesses on this page: 0 of 2.")


def test_without_scripts_it_is_a_folded_answer(asking, shown):
    page = shown(asking, java_script_enabled=False)
    expect(page.locator(".px-guess:visible")).to_have_count(0)
    assert page.locator("details summary").all_inner_texts() == ["Answer", "Answer"]
    page.locator("summary").first.click()
    expect(page.get_by_text("At 49,152.")).to_be_visible()


WORDS = {
    "terms": {"term-gate": ["gate", "A door."]},
    "names": ["S_BHKV"],
    "letters": {"B": "batch", "H": "head", "K": "key", "V": "value"},
    "notation": "notation.html",
}
TERMS = f"""<!doctype html><html lang="en"><meta charset="utf-8"><title>x</title><body>
<p>A <a class="px-term" href="#term-gate">gate</a> and <a href="#else">another link</a>.</p>
<pre class="highlight"><span class="n">S_BHKV</span> <span class="n">S_BHKV</span> <span class="n">x</span></pre>
<script type="application/json" id="px-terms">{json.dumps(WORDS)}</script></body></html>"""


def test_a_term_and_a_tensor_open_their_lines(shown, tmp_path):
    (tmp_path / "terms.html").write_text(TERMS)
    page = shown(tmp_path / "terms.html", ["terms.js"])
    box = page.locator("#px-line")
    page.get_by_role("link", name="gate").click()
    expect(box).to_be_visible()
    assert box.inner_text().split() == ["gate", "A", "door.", "Glossary"]
    page.keyboard.press("Escape")
    expect(box).not_to_be_visible()
    assert page.evaluate("document.activeElement.textContent") == "gate"
    page.keyboard.press("Enter")
    expect(box).to_be_visible()
    page.mouse.click(600, 500)
    expect(box).not_to_be_visible()
    assert page.locator("[role=button]").count() == 1, "a keyboard stops once at a name"
    page.get_by_role("button", name="S_BHKV").press("Enter")
    assert box.locator("p").text_content() == "B: batch\nH: head\nK: key\nV: value"
    page.keyboard.press("Escape")
    page.locator("span.n").nth(1).click()
    expect(box).to_be_visible()
    page.keyboard.press("Escape")
    page.get_by_role("link", name="another link").click()
    expect(box).not_to_be_visible()
    assert re.search("#else$", page.url)
