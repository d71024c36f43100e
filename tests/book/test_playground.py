"""The built page with a model in it, in a real browser: over http and from disk, by keyboard, on a phone.

POSTX_LONG=1 also lets three models read past the length they were trained on, and a hole be filled: a minute each.
"""

import json
import os

import browser
import pytest
import torch
from test_browser import axe

from _ext import pages, playground_page
from experiments import remember
from postx import export, tasks
from postx.models import checkpoints
from postx.models.quantized import linears
from postx.quant import uniform

PAGE, CHAPTER = "chapters/playground.html", f"chapters/{pages.find('whole_machine').stem}.html"
LONG = pytest.mark.skipif(os.environ.get("POSTX_LONG") != "1", reason="a minute each: POSTX_LONG=1 runs them")
SAID = "document.querySelector('.pp-said').textContent"
LOGITS = """async ([id, ids]) => {
  const m = {};
  Object.values(window.postx.parts).forEach((part) => part(m));
  const { told, body } = await window.postx.playground.weights(id);
  const net = m.network(told, m.open(m.fromBase64(body)));
  return ids.map((byte) => Array.from(net.step(byte))); }"""


@pytest.fixture(scope="module")
def bases():
    server = browser.serve()
    yield {"http": f"http://127.0.0.1:{server.server_port}/", "file": browser.HTML.as_uri() + "/"}
    server.shutdown()


@pytest.fixture
def opened(reader, bases):
    """opened(via, scheme, width) -> (page, the weights that it has asked for); at the end no fault may be left."""
    made, all_faults = [], []

    def open_page(via="http", scheme="light", width=1440, where=PAGE):
        context = reader.new_context(color_scheme=scheme, viewport={"width": width, "height": 844})
        page, faults = browser.watch(context, bases[via])
        asked = []
        page.on("request", lambda request: "weights_" in request.url and asked.append(request.url))
        page.goto(bases[via] + where)
        page.wait_for_selector(".pp-main")
        made.append(context)
        all_faults.append(faults)
        return page, asked

    yield open_page
    for context in made:
        context.close()
    assert sum(all_faults, []) == []


@pytest.fixture(scope="module")
def hybrid():
    """The hybrid at 4 bits, as the package makes it."""
    lm = checkpoints.load("hybrid")
    with torch.no_grad():
        for layer in linears(lm).values():
            layer.weight.copy_(uniform.quantize(layer.weight, 4, grid="midrise", clip="search").dequantize())
    return lm


def load(page):
    page.click(".pp-main")
    page.wait_for_function(f"{SAID}.includes('bits a byte')", timeout=120_000)


def bits(lm, text):
    ids = torch.tensor([[0, *text.encode()]])
    with torch.no_grad():
        logits = lm(ids[:, :-1], form="parallel")[0][0]
    return float(torch.nn.functional.cross_entropy(logits, ids[0, 1:]) / 0.6931471805599453)


@pytest.mark.parametrize("via", ["http", "file"])
def test_nothing_is_loaded_before_a_click_and_the_page_says_what_python_says(opened, hybrid, via):
    page, asked = opened(via)
    page.wait_for_load_state("load")
    page.fill(".pp-desk textarea", "Return the é of a file.\n")
    page.wait_for_timeout(200)
    assert asked == []
    assert "MB" in page.inner_text(".pp-main")
    load(page)
    assert [url.split("/")[-1].split("?")[0] for url in asked] == ["weights_hybrid_4.js"]
    want = bits(hybrid, "Return the é of a file.\n")
    assert f"25 bytes read: {want:.2f} bits a byte" in page.evaluate(SAID)
    ids = [0, *b"Return the \xc3\xa9 of a fi\xff"]
    got = torch.tensor(page.evaluate(LOGITS, ["hybrid_4", ids]))
    with torch.no_grad():
        reference = hybrid(torch.tensor([ids]), form="parallel")[0][0]
    assert float((got - reference).abs().max()) <= 1e-4 * float(reference.abs().max())


def test_by_keyboard_alone(opened):
    page, _ = opened("file", "dark", 390)
    page.focus(".pp-main")
    page.keyboard.press("Enter")
    page.wait_for_function(f"{SAID}.includes('bits a byte')", timeout=120_000)
    assert page.evaluate("document.activeElement.matches('.pp-main')")  # it kept the focus while it loaded
    page.keyboard.press("Enter")  # and does nothing twice
    page.focus(".pp-desk textarea")
    page.keyboard.press("Control+A")
    page.keyboard.type("def file_name(xq")
    page.wait_for_function(f"{SAID}.startsWith('16 bytes')", timeout=60_000)
    page.keyboard.press("Home")
    page.wait_for_function("!document.querySelector('.pp-here')")  # the cursor is before the first byte
    page.focus(".pp-hard summary")
    page.keyboard.press("Enter")
    page.wait_for_selector(".pp-hard tbody tr")  # it is filled when it has opened
    rows = page.eval_on_selector_all(".pp-hard tbody tr", "rows => rows.map(row => row.innerText.split('\\t'))")
    assert len(rows) == 10
    assert {"x", "q"} & {row[0] for row in rows[:3]}
    assert [float(row[2]) for row in rows] == sorted((float(row[2]) for row in rows), reverse=True)
    page.focus(".pp-desk textarea")
    page.keyboard.press("End")
    before = page.input_value(".pp-desk textarea")
    page.click("text=Write 1 byte")
    page.wait_for_function(f"{SAID}.startsWith('17 bytes')", timeout=60_000)
    assert page.input_value(".pp-desk textarea").startswith(before)
    page.focus("text=Start again")
    page.keyboard.press("Enter")
    page.wait_for_function(f"{SAID}.startsWith('{len(playground_page.START)} bytes')", timeout=60_000)
    assert page.evaluate("document.activeElement.textContent") == "Start again"
    box = page.evaluate("(({ value, selectionStart }) => [value, selectionStart])(document.querySelector('textarea'))")
    assert box == [playground_page.START, len(playground_page.START)]


def test_pictures_are_drawn_one_a_frame_as_they_were_last_asked_for(opened):
    page, _ = opened()
    drawn = page.evaluate("""() => new Promise((done) => {
      const all = [];
      const one = (view, what) => window.postx.playground.later(view, () => {
        all.push([what, document.timeline.currentTime]);
        if (all.length === 3) done(all);
      });
      [["a", "old"], ["b", "b"], ["a", "new"], ["c", "c"]].forEach(([view, what]) => one(view, what)); })""")
    assert [what for what, _ in drawn] == ["new", "b", "c"]
    assert len({frame for _, frame in drawn}) == 3


def test_three_models_are_asked_what_they_were_told(opened):
    page, asked = opened("file", "dark", 390)
    rows = ".pp-remember tbody tr"
    said = "document.querySelector('.pp-remember').closest('.pp-piece').querySelector('.pp-said').textContent"
    page.focus("text=Ask three models")
    page.keyboard.press("Enter")
    page.wait_for_selector(rows)
    parts = ("input", "select", "label + label select")
    box, between, wanted = (page.locator(f".pp-piece {part}").first for part in parts)
    data = "window.postx.data(document.querySelector('figure[data-widget=playground]')).remember"
    models = page.evaluate(f"{data}.models")
    assert len(asked) == len(models) == 3
    assert sum(model["bytes"] for model in models) < 200_000
    letters = tasks.alphabets(**remember.ALPHABETS)
    for told, gap, key in ((playground_page.TOLD, 100, "a"), ("z3 b0 y3", 0, "y")):
        box.fill(told)
        between.select_option(str(gap))
        wanted.select_option(key)
        page.wait_for_function(f"{said}.startsWith('{key} was')")
        pairs = [(letters["keys"][ord(letter) - 97], letters["values"][int(digit)]) for letter, digit in told.split()]
        ids = page.evaluate(f"""([told, gap]) => {{ const [page, remember] = [window.postx.playground, {data}];
          return page.tokens(page.pairs(told, remember.most), gap, remember.tokens); }}""", [told, gap])
        assert ids[: 2 * len(pairs)] == [token for pair in pairs for token in pair]
        assert len(ids) == 2 * len(pairs) + gap
        assert set(ids[2 * len(pairs) :]) <= set(letters["fillers"])
        shown = page.eval_on_selector_all(rows, "rows => rows.map(row => [...row.cells].map(cell => cell.textContent))")
        at = [word[0] for word in told.split()].index(key)
        for model, (name, answer, chance, share) in zip(models, shown, strict=True):
            lm = checkpoints.load(model["id"].removesuffix("_16"), playground_page.RECALL)
            with torch.no_grad():
                logits_QY = lm(torch.tensor([[*ids, letter] for letter, _ in pairs]))[0][:, -1]
            best, p = logits_QY.argmax(-1).tolist(), float(logits_QY[at].softmax(-1)[pairs[at][1]])
            right = [id_ == digit for id_, (_, digit) in zip(best, pairs, strict=True)]
            assert name == model["name"]
            assert answer == f"{best[at] - letters['values'].start} {'✓' if right[at] else '✗'}"
            assert share == f"{sum(right)} of {len(pairs)}"
            assert chance == page.evaluate("p => window.postx.playground.percent(p)", p)
            got = torch.tensor(page.evaluate(LOGITS, [model["id"], [*ids, pairs[at][0]]])[-1])
            assert float((got - logits_QY[at]).abs().max()) <= 1e-3 * float(logits_QY[at].abs().max())
    for told, why in (("a7 a3", "a is told twice"), ("a7 kk", "“kk” is not a letter and a digit")):
        box.fill(told)
        box.press("Enter")
        assert page.evaluate(said) == f"These are no pairs: {why}."
    page.click("text=16 pairs")
    page.wait_for_function(f"document.querySelectorAll('{rows}').length === 3")
    assert len(set(box.input_value().split())) == 16
    assert axe(page, {}) == []
    assert page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") <= 0


@pytest.mark.parametrize(("scheme", "width"), [("light", 1440), ("dark", 390)])
def test_a_loaded_page_has_no_fault_of_access_and_is_not_too_wide(opened, scheme, width):
    page, _ = opened("http", scheme, width)
    load(page)
    page.click("text=Write 100")
    page.wait_for_function(f"{SAID}.startsWith('2')", timeout=120_000)
    page.wait_for_timeout(300)
    assert axe(page, {}) == []
    assert page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") <= 0
    assert page.evaluate(browser.PALE) == []
    words = page.evaluate("[...document.querySelectorAll('.pp-desk [role=img]')].map(e => e.ariaLabel)")
    assert len(words) == 3
    assert not [text for text in words if "nothing is read yet" in text]


@pytest.mark.parametrize("width", [1440, 1100, 820, 390])
def test_no_switch_is_left_alone_on_a_line(opened, width):
    page, _ = opened(width=width)
    tops = page.eval_on_selector_all(".pp-desk > .pp-write input", "all => all.map(e => e.getBoundingClientRect().top)")
    assert len(tops) == 2, "temperature and seed"
    assert tops[0] == tops[1]


def test_cache_grows_and_state_stays(opened):
    page, _ = opened()
    load(page)
    meters = ".pp-meter output"
    first = page.eval_on_selector_all(meters, "all => all.map(e => e.textContent)")
    page.click("text=Write 100")
    page.wait_for_function(f"{SAID}.startsWith('2')", timeout=120_000)
    cache, state = page.eval_on_selector_all(meters, "all => all.map(e => parseInt(e.textContent))")
    grown = 100 * 2 * 2 * 192 * 4 / 1024  # bytes, keys and values, blocks of attention, width, bytes of a number
    assert cache - int(first[0].split()[0]) == pytest.approx(grown, abs=1)
    assert f"{state} KiB" == first[1]


def test_a_text_that_is_full_is_said_to_be(opened):
    page, _ = opened()
    load(page)
    page.fill(".pp-desk textarea", "x" * 3000)
    page.wait_for_function(f"{SAID}.startsWith('3000 bytes')", timeout=120_000)
    page.click("text=Write 100")
    assert page.evaluate(SAID) == "The text is full: 3,000 bytes."


def test_what_came_is_named_though_another_was_chosen_meanwhile(opened):
    page, _ = opened()
    page.evaluate("""() => {
      const { reader } = window.postx.playground;
      window.postx.playground.reader = async (id, on) => {
        const made = await reader(id, on);
        await new Promise((done) => (window.arrive ??= {})[id] = done);
        return made;
      };
    }""")
    page.click(".pp-main")
    page.check("text=Gated DeltaNet")
    page.wait_for_function("!!window.arrive?.hybrid_4")
    page.evaluate("window.arrive.hybrid_4()")
    page.wait_for_function(f"{SAID}.includes('bits a byte')", timeout=120_000)
    line = page.text_content(".pp-desk .pp-curve")
    assert "hybrid" in line
    assert "trained on 512 bytes" in line
    assert page.inner_text(".pp-main").startswith("Load Gated DeltaNet")
    page.click(".pp-main")
    page.check("text=ternary")
    page.click(".pp-main")
    page.wait_for_function("!!(window.arrive.ternary_trits && window.arrive.gated_deltanet_4)")
    page.evaluate("window.arrive.ternary_trits()")
    page.wait_for_function("document.querySelector('.pp-desk .pp-curve').textContent.includes('ternary')")
    page.evaluate("window.arrive.gated_deltanet_4()")  # asked for first, and too late
    page.wait_for_timeout(300)
    assert page.inner_text(".pp-main") == "ternary, 1.6 bits: loaded"
    assert "ternary" in page.text_content(".pp-desk .pp-curve")


def test_a_set_piece_keeps_the_focus_and_can_be_had_again(opened):
    page, asked = opened("http", "dark", 390)
    page.evaluate("() => { window.postx.playground.reader = async () => { throw new Error('offline'); }; }")
    button = "document.activeElement"
    said = f"{button}.parentElement.querySelector('.pp-said').textContent"
    for piece in ("Ask three models", "Let three models", "Let both write", "Fill the hole"):
        page.focus(f"text={piece}")
        for _ in range(2):  # it may be tried again
            page.keyboard.press("Enter")
            page.wait_for_function(f"{said} === 'Nothing was loaded: offline.'")
            assert page.evaluate(f"{button}.textContent").startswith(piece)
            page.wait_for_function(f"!{button}.hasAttribute('aria-disabled')")
            page.evaluate(f"{said} = ''")
    assert asked == []


def test_without_scripts_the_picture_stays(reader, bases):
    context = reader.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(bases["http"] + PAGE)
    label = page.get_attribute("figure[data-widget=playground] svg", "aria-label")
    context.close()
    assert "attention climbs" in label


def test_the_page_says_what_was_recorded_of_names():
    gains = json.loads((browser.ROOT / "benchmarks/results/playground.json").read_text())["names"]["bits_gained"]
    words = " ".join((browser.ROOT / "chapters/playground.md").read_text(encoding="utf8").split())
    assert f"saved at most {max(gains.values())} bits a letter" in words


def test_the_page_says_who_remembers():
    """The table is what was recorded of the kept models, whose answers are measured again where that is quick."""
    known = {model: checkpoints.record(model, playground_page.RECALL) for model in playground_page.REMEMBER}
    page = (browser.ROOT / "chapters/playground.md").read_text(encoding="utf8")
    for pairs in map(str, remember.PAIRS):
        cells = []
        for record in known.values():
            low, high = (round(100 * end(record["right"][pairs].values())) for end in (min, max))
            cells.append(f"{low} to {high}" if low < high else f"{low}")
        assert f"| {pairs} | {' | '.join(cells)} |" in page
    for model, record in known.items():
        lm = checkpoints.load(model, playground_page.RECALL)
        assert remember.share(lm, 16, 0) == pytest.approx(record["right"]["16"]["0"], abs=0.02)
        gap = [share for row in record["right"].values() for share in row.values()]
        assert max(record["right"]["16"].values()) < 0.5 if model == "recall_ssd" else min(gap) > 0.95
    tables = [block["H"] * block["K"] * block["V"] for block in export.describe(lm)["blocks"]]
    assert tables == [512, 512]
    sizes = [record["parameters"] for record in known.values()]
    assert max(abs(size / remember.PARAMETERS - 1) for size in sizes) < 0.05
    assert sum(path.stat().st_size for path in playground_page.RECALL.iterdir()) < 150_000


def test_their_training_can_be_repeated(monkeypatch):
    monkeypatch.setattr(remember, "NEAR", 1)
    (one, _), (again, _) = (remember.train("SA", steps=3) for _ in range(2))
    assert all(torch.equal(x, y) for x, y in zip(one.parameters(), again.parameters(), strict=True))


@LONG
def test_past_the_trained_length_attention_climbs(opened):
    page, asked = opened("file")
    page.click("text=Let three models read")
    said = "document.querySelector('.pp-piece .pp-said').textContent"
    page.wait_for_function(said, timeout=300_000)
    means = [float(part.split()[-1]) for part in page.evaluate(said).rstrip(".").split(": ")[1].split(", ")]
    assert len(asked) == 3
    assert means[0] > 2 * max(means[1:])


@LONG
def test_a_hole_is_filled(opened):
    page, _ = opened("file")
    page.click("text=Fill the hole")
    last = "[...document.querySelectorAll('.pp-said')].at(-1).textContent"
    page.wait_for_function(f"{last}.startsWith('Filled')", timeout=300_000)
    assert "▁" not in page.inner_text(".pp-piece:last-of-type .pp-out")


@pytest.mark.parametrize(("via", "scheme", "width"), [("http", "light", 1440), ("file", "dark", 390)])
def test_the_machine_of_the_last_chapter(opened, via, scheme, width):
    """Its page has it alone, in the chapter's own codes, and shows which experts answer.

    The codes are the build's: GPTQ made again with another number of threads differs in the last bits of its sums, and
    by the last block in a quarter of its codes.
    """
    page, asked = opened(via, scheme, width, CHAPTER)
    assert asked == []
    load(page)
    assert [url.split("/")[-1].split("?")[0] for url in asked] == ["weights_whole_machine_4.js"]
    lm = checkpoints.load("whole_machine_4", playground_page.prepare(browser.ROOT))
    ids = [0, *b"def read(\xff"]
    got = torch.tensor(page.evaluate(LOGITS, ["whole_machine_4", ids]))
    with torch.no_grad():
        want = lm(torch.tensor([ids]), form="parallel")[0][0]
    assert float((got - want).abs().max()) <= 1e-4 * float(want.abs().max())
    page.wait_for_selector(".pp-experts tbody tr")
    assert page.locator(".pp-experts tbody tr").count() == len(lm.blocks)
    count = "all => all.map(e => e.querySelectorAll('.pp-answers').length)"
    for row in page.eval_on_selector_all(".pp-experts tbody tr", count):
        assert row == 2
    assert page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") <= 0
    assert axe(page, {}) == []
