"""You are the state: what the page computes is what the package's mixers compute, and the game can be played.

The first part runs the script in node, the second the built landing page in Chromium (see test_browser.py).
"""

import json
import re
import shutil
import subprocess

import browser
import numpy as np
import pytest
from test_browser import axe

from postx import fieldmap, slots

SCRIPT = browser.ROOT / "_static" / "widgets" / "state-machines.js"
GAMES = [(8, 1), (8, 357), (16, 4711), (32, 9999)]
INTRO = "chapters/intro.html"
DATA = slots.data(357)


def in_node(expression, given):
    """The value of a JavaScript expression of `state`, the functions of the script, and of `given`."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("no node on this machine")
    told = f"const window = {{ postx: {{}} }}; {SCRIPT.read_text()}; const state = window.postx.state;"
    told += f"const given = {json.dumps(given)}; console.log(JSON.stringify({expression}));"
    return json.loads(subprocess.run([node, "-e", told], check=True, capture_output=True, text=True).stdout)


def listed(pairs):
    return [[pair.who, pair.what, pair.marked] for pair in pairs]


def test_a_seed_makes_the_same_stream_in_page_and_package():
    games = [[n, seed] for n in slots.LENGTHS for seed in (*range(1, 60), 9999)]
    made = in_node(f"given.map(([n, seed]) => state.stream(n, seed, {len(slots.NAMES)}))", games)
    assert made == [listed(slots.stream(n, seed)) for n, seed in games]


@pytest.mark.parametrize(("n", "seed"), GAMES)
def test_the_page_reads_what_the_mixers_read(n, seed):
    pairs = slots.stream(n, seed)
    given = {"pairs": listed(pairs), "set": DATA}
    page = in_node("state.readings(given.pairs, given.set)", given)
    said = in_node("state.answers(given.pairs, given.set)", given)
    package = slots.readings(pairs)
    assert page.keys() == package.keys() == {"cache", "linear", "decay", "delta", "gate"}
    for machine, y_BV in package.items():
        np.testing.assert_allclose(page[machine], y_BV.numpy(), rtol=0, atol=1e-12, err_msg=machine)
    assert said == {machine: list(found.values()) for machine, found in slots.answers(pairs).items()}


@pytest.mark.parametrize(("n", "seed"), GAMES)
def test_four_slots_answer_alike(n, seed):
    pairs = slots.stream(n, seed)
    played = [slots.by_rule(pairs), [t % 5 if t % 5 < 4 else None for t in range(n)], [None] * n]
    given = {"pairs": listed(pairs), "played": played}
    held = in_node("given.played.map((choices) => state.recall(given.pairs, choices))", given)
    assert held == [list(slots.recall(pairs, choices).values()) for choices in played]
    assert in_node("state.byRule(given.pairs)", given) == played[0]


@pytest.fixture
def opened(reader):
    """Open the landing page from disk, with an address's end; at the end of the test its faults must be none."""
    contexts, all_faults = [], []

    def open_page(address="", width=390, height=844, **kw):
        contexts.append(reader.new_context(viewport={"width": width, "height": height}, **kw))
        page, faults = browser.watch(contexts[-1], browser.HTML.as_uri() + "/")
        all_faults.append(faults)
        page.goto(f"{(browser.HTML / INTRO).as_uri()}{address}")
        page.wait_for_load_state("load")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert sum(all_faults, []) == []


CUT = """all => all.filter(e => e.clientWidth > 0 && getComputedStyle(e).display !== 'inline')
    .filter(e => e.scrollWidth > e.clientWidth + 1).map(e => e.outerHTML.slice(0, 80))"""


OUTSIDE = """all => all.filter(e => { const a = e.getBoundingClientRect(), b = e.closest('svg').getBoundingClientRect();
    return a.left < b.left || a.right > b.right || a.top < b.top || a.bottom > b.bottom; }).map(e => e.textContent)"""


def play(page, choices):
    """The whole game by the keyboard alone, from wherever the focus is inside it."""
    for choice in choices:
        page.keyboard.press("0" if choice is None else str(choice + 1))
    page.wait_for_selector(".px-result .px-plot svg")


def card(page):
    return page.inner_text(".px-state output")


@pytest.mark.parametrize(("n", "seed"), [(8, 357), (16, 4711)])
def test_a_game_by_keyboard_gives_the_scores_of_the_package(opened, n, seed):
    page, pairs = opened(f"#seed={seed}&n={n}"), slots.stream(n, seed)
    choices = [t % 5 if t % 5 < 4 else None for t in range(n)]
    page.locator(".px-slots button").first.focus()
    play(page, choices)
    mine, asked = slots.recall(pairs, choices), len(slots.truth(pairs))
    assert f"You: {slots.score(pairs, mine)} of {asked}" in card(page)
    scores = page.eval_on_selector_all(".px-result tbody td:last-child", "all => all.map(e => +e.textContent)")
    said = slots.answers(pairs)
    assert scores == [slots.score(pairs, found) for found in (mine, *(said[m["id"]] for m in DATA["machines"]))]
    heard = page.eval_on_selector_all(".px-result tbody [role=img]", "all => all.map(e => e.ariaLabel)")
    for words, found in zip(heard, (mine, *said.values()), strict=True):
        for who, what in found.items():
            right = slots.truth(pairs)[who] == what
            told = "no answer" if what is None else slots.SHAPES[what] + ("" if right else ", wrong")
            assert f"{slots.NAMES[who]} {told}" in words.split("; ")


def test_a_key_takes_the_slot_of_its_number(opened):
    page, (first, second, *_) = opened("#seed=1&n=8"), slots.stream(8, 1)
    page.get_by_role("button", name="Slot 2: empty").focus()
    page.keyboard.press("Control+1")  # the browser's own
    page.keyboard.press("3")
    page.keyboard.press("Enter")
    held = [button.get_attribute("aria-label").split(".")[0] for button in page.locator(".px-slots button").all()[:4]]
    second, first = (f"{slots.NAMES[pair.who]}, {slots.SHAPES[pair.what]}" for pair in (second, first))
    assert held == ["Slot 1: empty", f"Slot 2: {second}", f"Slot 3: {first}", "Slot 4: empty"]


def test_the_address_replays_the_stream(opened):
    page = opened("#seed=4711&n=16")
    seen = []
    page.locator(".px-state").focus()
    for _ in range(16):
        seen.append(card(page))
        page.keyboard.press(" ")
    for t, (words, pair) in enumerate(zip(seen, slots.stream(16, 4711), strict=True)):
        assert f"Pair {t + 1} of 16" in words
        assert slots.NAMES[pair.who] in words
        assert slots.SHAPES[pair.what] in words
        assert ("will be asked" in words) == pair.marked
    assert "You: 0 of 6" in card(page)


def test_another_stream_is_in_the_address_and_its_link_can_be_copied(opened):
    page = opened()
    page.get_by_role("button", name="Another").click()
    page.get_by_label("32", exact=True).check()
    page.wait_for_url(f"**/*#seed={page.inner_text('.px-bar b')}&n=32")
    first = card(page)
    page.evaluate("() => { navigator.clipboard.writeText = () => Promise.reject(new Error('not allowed')); }")
    page.get_by_role("button", name="Copy link").click()
    link = page.get_by_label("Copy this").input_value()
    assert link == page.url
    again = opened(link[link.index("#") :])
    assert card(again) == first
    again.evaluate("location.hash = 'seed=4711&n=16'")  # a link pasted into the open page
    again.wait_for_function("document.querySelector('.px-bar b').textContent === '4711'")
    assert "Pair 1 of 16" in card(again)


@pytest.mark.parametrize("address", ["#seed=0&n=8", "#seed=7&n=9", "#seed=x"])
def test_an_address_of_no_stream_is_answered(opened, address):
    page = opened(address)
    assert "names no stream" in page.inner_text(".px-state [role=status]")
    assert "Pair 1 of 8" in card(page)


@pytest.mark.parametrize(("width", "height"), [(390, 844), (1440, 900)])
def test_the_game_is_on_the_first_screen(opened, width, height):
    page = opened(width=width, height=height)
    bottom = page.locator(".px-slots").evaluate("e => e.getBoundingClientRect().bottom + scrollY")
    assert bottom < height
    assert page.locator(".px-slots button").last.inner_text().endswith("Let it go")


def test_no_pair_moves_the_slots(opened):
    page = opened("#seed=1&n=64")
    page.locator(".px-state").focus()
    tops = set()
    for _ in range(64):
        tops.add(page.locator(".px-slots").evaluate("e => e.getBoundingClientRect().top"))
        page.keyboard.press("0")
    assert len(tops) == 1


@pytest.mark.parametrize(("scheme", "widths"), [("light", (1440, 390, 320)), ("dark", (320, 390, 1440))])
def test_a_finished_game_is_no_wider_than_the_page_and_has_no_fault_of_access(opened, scheme, widths):
    """Played once at the first width; then the window gets the others."""
    page = opened("#seed=357&n=64", width=widths[0], color_scheme=scheme)
    page.locator(".px-state").focus()
    play(page, slots.by_rule(slots.stream(64, 357)))
    for width in widths:
        page.set_viewport_size({"width": width, "height": 844})
        browser.drawn(page)
        assert page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") <= 0
        assert page.eval_on_selector_all(".px-state :not(svg, svg *)", CUT) == []
        assert page.eval_on_selector_all(".px-plot text", OUTSIDE) == []
        assert axe(page, {}) == []
        assert page.evaluate(browser.PALE) == []
        assert page.evaluate(browser.SMALL, browser.LEAST * min(1, width / 390)) == []


def test_its_scripts_are_on_its_page_only(reader):
    def loaded(name):
        page = (browser.HTML / name).read_text(encoding="utf8")
        bundles = re.findall(r'rel="stylesheet"[^>]* href="([^"?]+)', page)  # their first lines name their files
        heads = [(browser.HTML / "chapters" / path).read_text("utf8").partition("\n")[0] for path in bundles]
        return re.findall(r"_static/widgets/(state[-.\w]*)[? ]", "".join(heads) + page)

    assert loaded(INTRO) == ["state.css", "state-machines.js", "state.js"]
    assert loaded("chapters/notation.html") == []


def test_without_scripts_there_is_the_end_of_a_game(opened):
    page = opened(java_script_enabled=False)
    figure = page.locator("figure[data-widget=state]")
    assert figure.locator("> svg").is_visible()
    assert figure.locator("> svg").get_attribute("aria-label") == slots.alt(slots.stream(8, 357))
    assert "end of a game" in figure.locator("figcaption").inner_text()


def test_the_map_leads_to_chapters_by_mouse_and_keyboard(opened):
    page = opened(width=1440, height=900)
    links = page.locator("figure.px-fig svg[role=group] a")
    stops = [link for link in links.all() if link.get_attribute("tabindex") != "-1"]
    assert len(stops) == len({link.get_attribute("href") for link in links.all()})  # one for each chapter
    page.locator("svg[role=group] a[aria-label$=': Selective state spaces']").focus()
    page.keyboard.press("Enter")
    page.wait_for_url(f"**/{fieldmap.page('selective_ssm')}")
    page.go_back()
    page.get_by_text("Mamba-2", exact=True).first.click()
    page.wait_for_url(f"**/{fieldmap.page('ssd_duality')}")
