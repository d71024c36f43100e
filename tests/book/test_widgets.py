"""The tools of the pages in a browser, from disk: every control by keyboard, on a phone and on a desk, light and dark.

Each stands alone on a page that is made here, so that no built book is needed; what a whole page must be is in
test_browser.py. Needs Chromium, as that does.
"""

import re

import browser
import pytest
from axe_playwright_python.sync_playwright import Axe

from postx.widgets import block, matrix, memory

SIZES = {"phone": 390, "desk": 1440}
PAGE = """<!doctype html><html lang="en" data-theme="{scheme}"><head><meta charset="utf-8"><title>A tool</title>
<meta name="viewport" content="width=device-width"><link rel="stylesheet" href="{static}/postx.css">
<link rel="stylesheet" href="{static}/widgets/{name}.css"><style>* {{ box-sizing: border-box }} body {{ margin: 1rem }}
html[data-theme=dark] {{ --pst-color-background: #14181e; --pst-color-text-base: #ced6dd;
  --pst-color-text-muted: #9ca4af }}
body {{ background: var(--pst-color-background, #fff); color: var(--pst-color-text-base, #222832) }}</style>
<script src="{static}/postx.js"></script><script defer src="{static}/widgets/{name}.js"></script></head>
<body><main><h1>A tool</h1>{figure}</main></body></html>"""


@pytest.fixture(scope="module")
def figures():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("POSTX_STATIC", "1")
        made = {"matrix": matrix.matrix("delta"), "memory": memory.memory("add"), "block": block.block()}
        return {name: one._repr_mimebundle_()[0]["text/html"] for name, one in made.items()}


@pytest.fixture
def opened(chrome, figures, tmp_path):
    """open_page(name) shows the tool alone; at the end of the test there must have been no fault."""
    contexts, faults = [], []

    def open_page(name, size="desk", scheme="light", scripts=True, figure=None):
        path = tmp_path / f"{name}.html"
        static = (browser.ROOT / "_static").as_uri()
        path.write_text(PAGE.format(scheme=scheme, static=static, name=name, figure=figure or figures[name]))
        viewport = {"width": SIZES[size], "height": 900}
        contexts.append(chrome.new_context(viewport=viewport, color_scheme=scheme, java_script_enabled=scripts))
        page, seen = browser.watch(contexts[-1], path.as_uri())
        faults.append(seen)
        page.goto(path.as_uri())
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert sum(faults, []) == []


FITS = """() => [...document.querySelectorAll('svg.px-block')].flatMap(svg => {
    const boxes = [...svg.querySelectorAll('rect')].map(e => e.getBBox());
    return [...svg.querySelectorAll('text')].filter(e => { const t = e.getBBox();
      return !boxes.some(b => b.x <= t.x && t.x + t.width <= b.x + b.width && b.y <= t.y + 3
        && t.y + t.height - 3 <= b.y + b.height); }).map(e => e.textContent) })"""
WIDE = "document.documentElement.scrollWidth - document.documentElement.clientWidth"


@pytest.mark.parametrize("name", ["matrix", "memory", "block"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_cut_too_pale_or_unnamed(opened, name, size, scheme):
    page = opened(name, size, scheme)
    for radio in page.query_selector_all("fieldset:first-of-type input"):
        radio.check()
        assert page.evaluate(WIDE) <= 0
        assert page.evaluate(FITS) == []
        assert page.evaluate(browser.PALE) == []
        assert page.evaluate(browser.SMALL, browser.LEAST) == []
        axe = Axe().run(page, options={"preload": False, "resultTypes": ["violations"]}).response["violations"]
        assert [(v["id"], [n["html"] for n in v["nodes"]]) for v in axe] == []


@pytest.mark.parametrize("name", ["matrix", "memory", "block"])
def test_without_scripts_the_still_picture_stands(opened, name):
    page = opened(name, scripts=False)
    assert page.locator("figure > svg").is_visible()
    assert len(page.locator("figure > svg").get_attribute("aria-label")) > 60


@pytest.mark.parametrize("name", ["matrix", "memory", "block"])
def test_two_on_one_page_do_not_share_their_choices(opened, figures, name):
    page = opened(name, figure=figures[name] * 2)
    first, second = page.query_selector_all("figure")
    for figure in (first, second):
        figure.query_selector_all("fieldset input")[1].check()
    checked = "figure => figure.querySelectorAll('fieldset input:checked').length"
    groups = "figure => new Set([...figure.querySelectorAll('fieldset input')].map(e => e.name)).size"
    assert first.evaluate(checked) == second.evaluate(checked) == first.evaluate(groups)


def cells(page):
    """The table as a screen reader has it: a list of rows of texts."""
    return page.evaluate("""() => [...document.querySelectorAll('.pm tr')].map(row =>
        [...row.cells].map(e => e.textContent))""")


class TestMatrix:
    def test_a_text_makes_its_table(self, opened):
        page = opened("matrix")
        before = cells(page)
        page.get_by_label("Your text").fill("who asks whom who asks")
        table = cells(page)
        said = ["who", "asks", "whom", "who", "asks"]
        assert table[0][1:] == [row[0] for row in table[1:]] == said
        M = matrix.matrix_of("delta", said)
        for t, row in enumerate(table[1:]):
            shown = [float(x.replace("−", "-")) for x in row[1 : t + 2]]
            assert max(abs(x - y) for x, y in zip(shown, M[t], strict=False)) < 0.00501
            assert row[t + 2 :] == ["later"] * (4 - t)
        assert table != before

    def test_what_is_left_out_is_said_and_a_text_of_no_words_keeps_the_last(self, opened):
        page = opened("matrix")
        box, note = page.get_by_label("Your text"), page.locator(".pm-note")
        box.fill(" ".join(f"w{i}" for i in range(15)))
        assert note.text_content() == "3 words beyond 12 left out."
        assert len(cells(page)) == 13
        box.fill("  !? ")
        assert "Type a word" in note.text_content()
        assert len(cells(page)) == 13
        box.fill("<i>x</i> & y")
        assert note.text_content() == ""
        assert cells(page)[0][1:] == ["i", "x", "i", "y"]

    def test_every_choice_and_slider_answers_the_keyboard(self, opened):
        page, seen = opened("matrix"), []
        page.locator("fieldset input").first.focus()
        page.keyboard.press("Space")
        for one in matrix.MENU.values():
            look = page.locator(".pm tbody").inner_html()
            assert look not in seen, f"{one.title} looks as another"
            seen.append(look)
            assert page.locator(".pm-because").text_content() == one.because
            assert re.sub(r"<.*?>", "", one.entry) == page.locator(".pm-entry").text_content()
            for slider in page.locator(".pm input[type=range]").all():
                before = page.locator(".pm tbody").inner_html(), slider.get_attribute("aria-valuetext")
                slider.press("ArrowLeft")
                after = page.locator(".pm tbody").inner_html(), slider.get_attribute("aria-valuetext")
                assert before[0] != after[0]
                assert before[1] != after[1]
                assert slider.evaluate("s => s.nextElementSibling.textContent") == after[1]
                assert slider.evaluate("s => s.labels[0].textContent.trim().length") > 5
            page.locator("fieldset input:checked").press("ArrowRight")

    def test_a_number_is_read_by_arrow_keys_and_by_hovering(self, opened):
        page = opened("matrix")
        says = page.locator(".pm output")
        assert says.text_content().startswith("“is” (12) takes most of “closed” (9): 0.9")
        page.locator("input[type=range]").last.focus()
        page.keyboard.press("Tab")  # one stop for the whole table
        page.keyboard.press("End")
        assert says.text_content().endswith("of “is” (12).")
        for _ in range(3):
            page.keyboard.press("ArrowLeft")
        assert says.text_content().startswith("“is” (12) takes 0.9")
        assert says.text_content().endswith("of “closed” (9).")
        page.keyboard.press("ArrowUp")
        page.keyboard.press("ArrowUp")
        page.keyboard.press("ArrowRight")
        assert says.text_content().endswith("of “the” (10).")
        page.keyboard.press("ArrowRight")
        assert says.text_content().endswith("comes later.")
        assert page.evaluate("document.activeElement.matches('td')")
        assert page.locator("[tabindex='0']").count() == 1
        page.locator(".pm tbody tr").nth(6).locator("td").nth(2).hover()
        assert says.text_content().startswith("“door” (7) takes 0.9")
        assert says.text_content().endswith("of “is” (3).")
        page.keyboard.press("Tab")
        assert not page.evaluate("document.activeElement.matches('td')")


class TestMemory:
    def error(self, page):
        return float(re.search(r"off by ([\d.]+)", page.locator("output").text_content()).group(1))

    def shown(self, page):
        """What is read, as the page's values from -1 to 1."""
        return page.eval_on_selector_all(".pw-read rect", "all => all.map(e => 2 * e.getAttribute('fill-opacity') - 1)")

    def test_the_three_rules_by_keyboard(self, opened):
        page = opened("memory")
        errors = {}
        page.locator("fieldset input").first.focus()
        for rule in memory.RULES:
            assert page.locator(".pw-because").text_content() == memory.RULES[rule][1]
            writes = [(name, memory.pixels(memory.PRESETS[drawn])) for name, drawn in memory.START]
            y = memory.replay(writes, 4, 0.5, rule).T @ memory.key("A", 4, 0.5)
            assert max(abs(a - b) for a, b in zip(self.shown(page), y.clamp(-1, 1).tolist(), strict=True)) < 1e-9
            errors[rule] = self.error(page)
            assert errors[rule] == pytest.approx(((y - writes[0][1]).norm() / 8).item(), abs=0.00501)
            page.keyboard.press("ArrowRight")
        assert len(set(errors.values())) == 3

    def test_a_picture_is_drawn_written_and_read_by_keyboard(self, opened):
        page = opened("memory")
        for name in ("empty it", "clear"):
            page.get_by_role("button", name=name).press("Enter")
        assert "Nothing was written under A" in page.locator("output").text_content()
        assert set(self.shown(page)) == {0}
        page.locator(".pw-paper [tabindex='0']").focus()
        for key in ("Right", "Space", "Down", "Space", "Left", "Left", "Up", "Up", "Enter", "Space"):
            page.keyboard.press(key if key in ("Space", "Enter") else f"Arrow{key}")
        inked = page.eval_on_selector_all("[aria-selected=true]", "all => all.map(e => e.getAttribute('aria-label'))")
        assert inked == ["row 1, column 2", "row 2, column 2"]  # and the corner not: once with, once without ink
        page.get_by_role("button", name="C", exact=True).press("Enter")
        page.get_by_label("C", exact=True).check()
        assert self.error(page) == 0
        ink = [1.0 if i in (1, 9) else -1.0 for i in range(64)]
        assert max(abs(a - b) for a, b in zip(self.shown(page), ink, strict=True)) < 1e-9

    def test_likeness_and_rows_and_strangers(self, opened):
        page = opened("memory")
        slider = page.get_by_label("likeness of the keys")
        slider.press("Home")
        assert self.error(page) == 0
        slider.press("ArrowRight")
        assert self.error(page) == pytest.approx(0.05, abs=0.00501)
        assert slider.get_attribute("aria-valuetext") == "0.05"
        slider.press("Home")
        errors = []
        page.get_by_label("256", exact=True).check()
        for _ in range(3):
            page.get_by_role("button", name="write 8 strangers").press("Enter")
            errors.append(self.error(page))
        assert errors == sorted(errors)
        page.get_by_label("16", exact=True).check()
        assert self.error(page) > 3 * errors[-1]
        assert "26 pairs in 16 rows" in page.locator("output").text_content()
        assert "16 rows" in page.locator("canvas").get_attribute("aria-label")

    def test_a_stroke_of_the_pointer_paints(self, opened):
        page = opened("memory", "phone")
        page.get_by_role("button", name="clear").click()
        places = [page.get_by_label(f"row 2, column {c}").bounding_box() for c in (2, 3, 4)]
        at = [(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2) for box in places]
        page.mouse.move(*at[0])
        page.mouse.down()
        for x, y in at[1:]:
            page.mouse.move(x, y)
        page.mouse.up()
        page.mouse.move(at[0][0], at[0][1] + 60)
        assert page.locator("[aria-selected=true]").count() == 3
        page.mouse.move(*at[0])
        page.mouse.down()  # begins on ink: takes it away
        page.mouse.up()
        assert page.locator("[aria-selected=true]").count() == 2

    def test_the_table_is_drawn_a_tile_a_row(self, opened):
        page = opened("memory")
        pixel = """([x, y]) => document.querySelector('canvas').getContext('2d').getImageData(x, y, 1, 1).data[3]"""
        S = memory.replay([(n, memory.pixels(memory.PRESETS[d])) for n, d in memory.START], 4, 0.5, "add")
        most = S.abs().max()
        for row, column in ((0, 0), (1, 9), (2, 20), (3, 63)):
            x, y = row % 2 * 9 + column % 8, row // 2 * 9 + column // 8
            want = 255 * (1 + S[row, column] / most) / 2
            assert page.evaluate(pixel, [x, y]) == pytest.approx(want.item(), abs=1.5)


class TestBlock:
    def shown(self, page):
        return page.locator(".pk dl").inner_text(), page.locator(".pk output").text_content()

    def test_every_box_opens_by_keyboard_in_both_views(self, opened):
        page, seen = opened("block"), set()
        boxes = page.locator(".pk button")
        boxes.first.focus()
        for view in ("reading a text", "writing one token"):
            page.get_by_label(view).check()
            boxes.first.press("Enter")
            for i in range(boxes.count()):
                assert boxes.nth(i).get_attribute("aria-pressed") == "true"
                assert page.locator(".pk code").text_content() == block.boxes()[i].code
                seen.add(self.shown(page))
                boxes.nth(i).press("ArrowDown")
        assert len(seen) == 2 * boxes.count() == 14
        page.keyboard.press("ArrowUp")
        assert boxes.nth(5).evaluate("e => e === document.activeElement")

    def test_a_box_under_the_pointer_does_not_look_open(self, opened):
        page = opened("block")
        boxes = page.locator(".pk button")
        boxes.nth(1).click()
        boxes.nth(6).hover()
        ring = [boxes.nth(i).evaluate("e => getComputedStyle(e).boxShadow") for i in range(boxes.count())]
        assert [i for i, shadow in enumerate(ring) if shadow != "none"] == [1]

    def test_boxes_hold_their_words_and_what_stands_below_does_not_move(self, opened):
        for size in SIZES:
            page = opened("block", size)
            heights = set()
            for view in ("reading a text", "writing one token"):
                page.get_by_label(view).check()
                for box in page.locator(".pk button").all():
                    box.click()
                    assert box.evaluate("e => e.scrollWidth <= e.clientWidth && e.scrollHeight <= e.clientHeight")
                    heights.add(round(page.locator(".pk").bounding_box()["height"]))
            assert len(heights) == 1
