"""Every built page in a real browser: over http and from disk, light and dark, on a phone and on a desk.

Needs Chromium ($POSTX_CHROMIUM, or one on the path). Without it the tests are skipped, unless POSTX_BROWSER=1
says that there must be one.
"""

import re

import browser
import figures
import pytest
from access import axe

SIZES = {"phone": {"width": 390, "height": 844}, "desk": {"width": 1440, "height": 900}}
PAGES = browser.pages() or ["(no built book)"]
CHAPTER = "chapters/01_attention_cost.html"
MIN_ALT = 15  # characters: "a plot" says nothing

# The displayed picture of a figure: what a reader sees of it, as text. Hidden frames do not count.
PICTURE = """figure => [...figure.querySelectorAll('svg, img, .px-widget table')].filter(e => e.checkVisibility())
                 .map(e => e.innerHTML + (e.src ?? '')).join('')"""


@pytest.fixture(scope="module")
def bases():
    server = browser.serve()
    yield {"http": f"http://127.0.0.1:{server.server_port}/", "file": browser.HTML.as_uri() + "/"}
    server.shutdown()


@pytest.fixture(scope="module")
def contexts(reader):
    """One browser context for each colour scheme and window size, shared by all pages."""
    made = {
        (scheme, size): reader.new_context(color_scheme=scheme, viewport=viewport, service_workers="block")
        for scheme in ("light", "dark")
        for size, viewport in SIZES.items()
    }
    yield made
    for context in made.values():
        context.close()


@pytest.fixture
def opened(contexts, bases):
    """Open a page in one of the contexts; at the end of the test its faults must be none."""
    open_pages = []

    def open_page(name, via="http", scheme="light", size="desk"):
        page, faults = browser.watch(contexts[scheme, size], bases[via])
        open_pages.append((page, faults, f"{name} via {via}, {scheme}, {size}"))
        page.goto(bases[via] + name)
        browser.typeset(page)
        return page

    yield open_page
    for page, _, _ in open_pages:
        page.close()
    bad = [f"{where}: {fault}" for _, faults, where in open_pages for fault in faults]
    assert not bad, "\n".join(bad)


# A page takes seconds to typeset, so it is loaded twice: over http in light at a desk, from disk in dark on a phone.
# Then its window gets the other size, as when a phone is turned: every scheme is seen at every size, and `whole` asks
# what must hold in all four. A class for each scheme, as xdist gives each class to one worker.
@pytest.mark.parametrize("name", PAGES)
class TestLight:
    def test_desk_then_phone(self, opened, name):
        page = opened(name, "http", "light", "desk")
        whole(page, "light", {})
        lines_are_seen(page)
        resize(page, SIZES["phone"])
        whole(page, "light", {"rules": {"color-contrast": {"enabled": False}}})
        faults = browser.phone_faults(page)
        resize(page, browser.NARROW)
        wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        faults += [f"{wide} px wider than a window of 320: {page.evaluate(WIDE)}"] if wide > 0 else []
        assert not faults, "\n".join(faults)


@pytest.mark.parametrize("name", PAGES)
class TestDark:
    def test_phone_then_desk_and_sliders(self, opened, name):
        page = opened(name, "file", "dark", "phone")  # from disk: stricter
        whole(page, "dark")
        faults = browser.phone_faults(page, walk=False)  # TestLight walks on the phone: no scheme moves a word
        resize(page, SIZES["desk"])
        whole(page, "dark", {"runOnly": ["color-contrast"]})  # all else does not depend on colours
        lines_are_seen(page)
        sliders_answer_the_keyboard(page)
        faults += page.evaluate(figures.FRAMES)
        assert not faults, "\n".join(faults)


def resize(page, size):
    """Another window, and what wide.js makes of it."""
    page.set_viewport_size(size)
    browser.drawn(page)


def lines_are_seen(page):
    """Once for each scheme: lines and heat map of a figure are scaled together, and to walk along them takes long."""
    faults = page.evaluate(figures.FAINT)
    assert not faults, "\n".join(faults)


def whole(page, scheme, axe_options=None):
    """Nothing from elsewhere, no console error, mathematics typeset, nothing too wide, no fault of access."""
    assert page.evaluate("document.documentElement.dataset.theme") == scheme
    math = page.evaluate("""() => ({
        sources: document.querySelectorAll('span.math, div.math').length,
        typeset: document.querySelectorAll('span.math mjx-container, div.math mjx-container').length,
        errors: [...document.querySelectorAll('mjx-merror, [data-mjx-error]')].map(e => e.textContent)})""")
    assert math["errors"] == []
    assert math["typeset"] == math["sources"]
    wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    assert wide <= 0, f"{wide} pixels wider than the window: {page.evaluate(WIDE)}"
    mute = [
        source for text, source in page.evaluate(PICTURES) if len(text) < MIN_ALT or len(text.split()) < 3
    ]
    assert not mute, "alt text of a few words is missing:\n" + "\n".join(mute)
    faults = browser.page_faults(page, "search.html" in page.url) + page.evaluate(browser.PALE)
    assert not faults, "\n".join(faults)
    if axe_options is not None:
        faults = axe(page, axe_options)
        assert not faults, "\n".join(faults)


PICTURES = """() => [...document.querySelectorAll('main img, main figure svg')]
    .filter(e => !e.closest('[aria-hidden=true]') && !e.parentElement.closest('[role=img]'))
    .map(e => [(e.getAttribute('alt') ?? e.getAttribute('aria-label') ?? '').trim(), e.outerHTML.slice(0, 99)])"""
WIDE = """() => [...document.querySelectorAll('main *')]
    .filter(e => e.getBoundingClientRect().right > document.documentElement.clientWidth + 1)
    .slice(0, 5).map(e => e.outerHTML.slice(0, 120))"""


def sliders_answer_the_keyboard(page):
    """Every slider changes the picture as the page opens, with the others at their start."""
    page.evaluate(
        "document.querySelectorAll('details, .toggle-hidden').forEach(e => { e.open = true; "
        "e.classList.remove('toggle-hidden') })"
    )
    for figure in page.query_selector_all("figure.px-fig"):
        sliders = figure.query_selector_all("input[type=range]")
        for slider in sliders:
            label = slider.evaluate(
                "s => s.labels?.[0]?.textContent ?? s.getAttribute('aria-label') ?? ''"
            ).strip()
            assert label, "a slider has no label"
            assert figure.evaluate(PICTURE), f"slider {label!r} has no picture"
            assert moves(figure, slider), f"slider {label!r} changes nothing along its range"
            figure.evaluate(RESET)
        for row in figure.query_selector_all("[role=radiogroup]"):
            label = row.get_attribute("aria-label")
            assert label, "a row of buttons has no label"
            assert options(figure, row), f"no button of {label!r} changes anything"
            figure.evaluate(RESET)


RESET = """figure => figure.querySelectorAll('.px-row input').forEach(e => {
    if (e.type === 'radio') e.checked = e.defaultChecked; else e.value = e.defaultValue;
    e.dispatchEvent(new Event('input')); })"""


def options(figure, row):
    """Whether one of the buttons shows another picture than the first, by arrow keys alone."""
    buttons = row.query_selector_all("input")
    buttons[0].check()
    seen = {figure.evaluate(PICTURE)}
    for button in buttons[:-1]:
        button.press("ArrowDown")
        seen.add(figure.evaluate(PICTURE))
    return len(seen) > 1


def moves(figure, slider):
    """Whether the picture changes somewhere along the slider's range, by arrow keys alone."""
    slider.press("Home")
    seen = {figure.evaluate(PICTURE)}
    for _ in range(slider.evaluate("s => Math.round((s.max - s.min) / (s.step || 1))")):
        slider.press("ArrowRight")
        seen.add(figure.evaluate(PICTURE))
        if len(seen) > 1:
            return True
    return False


def test_sliders_answer_while_the_page_is_still_loading(contexts, bases):
    """A script of the theme that does not arrive holds back DOMContentLoaded; no slider may wait for it."""
    page, held = contexts["light", "phone"].new_page(), []
    page.add_init_script("addEventListener('DOMContentLoaded', () => { window.pageIsReady = true; })")
    page.route("**/bootstrap.js*", lambda route: held.append(route))
    page.goto(bases["http"] + CHAPTER, wait_until="commit")
    page.wait_for_selector("footer.prev-next-footer", state="attached")  # all of the text is there
    dead = page.eval_on_selector_all("figure.px-fig input[type=range]", "all => all.filter(e => e.disabled).length")
    figure = page.query_selector("figure.px-fig:has(input)")
    sliders = figure.query_selector_all("input[type=range]")
    answers = any(moves(figure, slider) for slider in sliders)
    assert held, "nothing was held back, so this test shows nothing"
    assert not page.evaluate("window.pageIsReady"), "the page was ready: this test shows nothing"
    held[0].continue_()
    page.close()
    assert dead == 0
    assert answers


def test_a_slider_that_the_browser_put_back_gets_its_picture(opened):
    """Going back to a page, some browsers restore what stood in it: without an event of the slider, before pageshow."""
    page = opened(CHAPTER)
    figure = page.query_selector("figure.px-fig:has(input[type=range])")  # buttons do not go to their end
    slider = figure.query_selector("input[type=range]")
    slider.press("End")
    shown = figure.evaluate(PICTURE)
    slider.press("Home")
    page.wait_for_function(f"([figure, shown]) => ({PICTURE})(figure) !== shown", arg=[figure, shown])
    slider.evaluate("s => { s.value = s.max; dispatchEvent(new Event('pageshow')); }")
    page.wait_for_function(f"([figure, shown]) => ({PICTURE})(figure) === shown", arg=[figure, shown])


@pytest.mark.parametrize("name", ["chapters/references.html", "chapters/evidence.html"])
def test_no_braces_dollars_or_carets_are_left_of_tex(opened, name):
    words = opened(name).evaluate("""() => {
        const main = document.querySelector('article.bd-article').cloneNode(true);
        main.querySelectorAll('code, pre, .math, script, style').forEach(e => e.remove());
        return main.textContent; }""")
    raw = re.findall(r"[^\n.]{0,30}(?:[{}$\\]|\w\^)[^\n.]{0,30}", words)
    assert not raw, "\n".join(raw)


def test_a_button_of_the_bar_leaves_the_claims_of_its_status(opened):
    page = opened("chapters/evidence.html")
    left = {}
    for button in page.query_selector_all(".px-tally label"):
        button.click()
        count, status = button.inner_text().split(maxsplit=1)
        rows = page.eval_on_selector_all(".px-claims tbody tr", "all => all.filter(e => e.checkVisibility()).length")
        assert rows == int(count), status
        left[status] = rows
    assert left.pop("all") == sum(left.values()) > max(left.values())


def test_the_evidence_begins_with_what_is_said_and_folds_what_holds_it(opened):
    page = opened("chapters/evidence.html")
    parts = page.eval_on_selector_all(".bd-article h2", "all => all.map(e => e.firstChild.textContent.trim())")
    assert parts == ["Claims", "Findings", "Coverage", "Equations", "Agreement"]
    for table in (".px-equations", ".px-agreement"):
        assert page.locator(f"details:not([open]) {table}").count() == 1, f"{table} is not folded"
    assert page.evaluate("document.querySelector('.px-tally').getBoundingClientRect().top") < SIZES["desk"]["height"]


def test_print_cuts_nothing_and_opens_answers(opened):
    page = opened(CHAPTER)
    page.emulate_media(media="print")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    faults = page.evaluate("""() => [
      ...[...document.querySelectorAll('.bd-article pre')].filter(e => e.scrollWidth > e.clientWidth + 1)
        .map(e => `cut: ${e.textContent.slice(0, 50)}`),
      ...[...document.querySelectorAll('.bd-article details:not(.hide)')].filter(e => !e.open)
        .map(e => `closed: ${e.textContent.slice(0, 50)}`),
      ...[...document.querySelectorAll('details.hide > summary, .bd-article button')].filter(e => e.checkVisibility())
        .map(e => `a bar: ${e.textContent.slice(0, 50)}`),
      ...[...document.querySelectorAll('.cell, .cell pre, .cell div')].filter(e => !e.closest('figure, mjx-container'))
        .filter(e => getComputedStyle(e).breakInside === 'avoid' || /auto|scroll/.test(getComputedStyle(e).overflow))
        .map(e => `does not break: ${e.textContent.slice(0, 50)}`),
      ...[...document.querySelectorAll('.px-fig > svg')].filter(e => e.getBoundingClientRect().height > 8.1 * 96 / 2.54)
        .map(e => `so tall that half a page is left empty before it: ${e.ariaLabel.slice(0, 50)}`)]""")
    titles = page.eval_on_selector_all("h1", "all => all.filter(e => e.checkVisibility()).map(e => e.textContent)")
    # A slider is printed with its ends, which differ from where it stands; an address stands under its number.
    same = page.evaluate("""() => [...document.querySelectorAll('.px-ends')].flatMap(row => [...row.children]
      .filter(end => end.querySelector('svg').innerHTML === row.closest('figure').querySelector('svg').innerHTML)
      .map(end => end.textContent))""")
    ends = page.locator(".px-ends svg").count()
    notes = page.locator(".px-notes li").all_text_contents()
    numbers = page.eval_on_selector_all(".bd-article a[href^='http'] + sup", "all => all.map(e => +e.textContent)")
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    left = page.locator(".bd-article details[open], .px-ends, .px-notes, .bd-article a[href^='http'] + sup").count()
    page.emulate_media(media="screen")
    assert not faults, "\n".join(faults)
    assert same == []
    assert ends >= page.locator(".px-controls:has(input[type=range])").count() > 0
    assert sorted(set(numbers)) == list(range(1, len(notes) + 1))
    assert left == 0
    assert len(titles) == 1
    assert titles[0].startswith("1. ")


def test_search_shows_prose(opened):
    page = opened("search.html?q=softmax")
    page.wait_for_function("document.querySelectorAll('#search-results p.context').length >= 5", timeout=20_000)
    page.wait_for_load_state("networkidle")  # an excerpt comes with the page that it is from
    excerpts = page.eval_on_selector_all("#search-results p.context", "all => all.map(e => e.textContent)")
    bad = [text for text in excerpts if re.search(r"[\\{}]|\w=\w|\bimport |^\W*Contents", text)]
    assert not bad, "\n".join(bad)


@pytest.mark.parametrize("via", ["http", "file"])
def test_search_finds_a_word(opened, via):
    page = opened("search.html?q=evidence", via)
    page.wait_for_selector("#search-results ul.search li a", timeout=10_000)
    hits = page.eval_on_selector_all("#search-results ul.search li a", "links => links.map(a => a.href)")
    assert any("chapters/evidence.html" in hit for hit in hits), hits
