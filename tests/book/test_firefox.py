"""Some built pages in Firefox: they load without a fault, fit a phone, and their sliders answer.

Needs Firefox ($POSTX_FIREFOX, or one on the path) and a built book. Chromium looks at every page (test_browser.py).
"""

import browser
import firefox
import pytest
from test_browser import PICTURE

from _ext import pages

ARROW = "\ue014"  # the right one, as WebDriver calls it
NAMES = ("intro", "attention_cost", "recall_lab", "planner", "playground", "evidence")
TYPESET = """async () => { await window.MathJax?.startup?.promise;
    await new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)));
    return { sources: document.querySelectorAll('span.math, div.math').length,
             typeset: document.querySelectorAll('span.math mjx-container, div.math mjx-container').length,
             wide: document.documentElement.scrollWidth - document.documentElement.clientWidth }; }"""
# Sliders of figures that change nothing between their ends, wherever the others of the figure stand.
DEAD = f"""() => {{
    const picture = {PICTURE};
    const told = () => new Event('input', {{ bubbles: true }});
    const put = (slider, value) => {{ slider.value = value; slider.dispatchEvent(told()); }};
    document.querySelectorAll('details').forEach(e => {{ e.open = true; }});
    const sliders = figure => [...figure.querySelectorAll('.px-row input[type=range]')];
    return [...document.querySelectorAll('figure.px-fig')].flatMap(figure => sliders(figure).filter(slider => {{
      const seen = new Set();
      for (const others of ['min', 'max']) {{
        sliders(figure).filter(e => e !== slider).forEach(e => put(e, e[others]));
        for (const end of [slider.min, slider.max]) {{ put(slider, end); seen.add(picture(figure)); }}
      }}
      return seen.size < 3 && sliders(figure).length > 1 || seen.size < 2;
    }}).map(slider => slider.labels?.[0]?.textContent)); }}"""


@pytest.fixture(scope="module")
def opened():
    path = firefox.find()
    if path is None:
        pytest.skip("no Firefox on this machine: set POSTX_FIREFOX or install one")
    if not browser.HTML.exists():
        pytest.skip("no built book: run `make book`")
    server = browser.serve()
    with firefox.Firefox(path) as fox:

        def open_page(name, width, height=900):
            fox.errors.clear()
            fox.open(f"http://127.0.0.1:{server.server_port}/{pages.docname(name)}.html", width, height)
            found = fox.evaluate(TYPESET)
            assert found["typeset"] == found["sources"]
            assert found["wide"] <= 0
            return fox

        yield open_page
    server.shutdown()


@pytest.mark.parametrize("name", NAMES)
def test_a_page_loads_and_its_sliders_answer(opened, name):
    fox = opened(name, 1440)
    assert fox.evaluate(browser.ICONLESS) == []
    assert fox.evaluate(DEAD) == []
    assert fox.errors == []


@pytest.mark.parametrize("name", NAMES)
def test_a_page_fits_a_phone(opened, name):
    fox = opened(name, 390)
    assert fox.evaluate(browser.CUT) + fox.evaluate(browser.COVERED) == []
    assert fox.evaluate(browser.SMALL, browser.LEAST) == []
    assert fox.errors == []


def test_a_slider_answers_the_keyboard(opened):
    fox = opened("attention_cost", 1440)
    slider = "document.querySelector('figure.px-fig input[type=range]')"
    state = f"[({PICTURE})({slider}.closest('figure')), {slider}.value]"
    before = fox.evaluate(f"() => {{ {slider}.focus(); return {state}; }}")
    fox.press(ARROW)
    after = fox.evaluate(f"() => {state}")
    assert before[0] != after[0]
    assert before[1] != after[1]
