"""The page of the planner against Python: the same numbers to 1e-9, the same sentences, and a page that answers.

Needs Chromium, as test_browser does, and no built book: the figure stands on a page of its own, opened from disk.
"""

import json
import math
import os
import random

import browser
import pytest

from postx import planner
from postx.planner import facts, formulas, page, rows

STATIC = browser.ROOT / "_static"
SCRIPTS = [STATIC / "postx.js", *sorted((STATIC / "widgets").glob("planner*.js"))]
LETTERS = "ALKMSRG7WC"
CHOICES = {"context": 65536, "batch": 16, "weight_bits": 4, "cache_bits": 16, "state_bits": 32}


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """A page with the planner and nothing else, on disk."""
    before = os.environ.get("POSTX_STATIC")
    os.environ["POSTX_STATIC"] = "1"
    figure = page.show()._repr_mimebundle_()[0]["text/html"]
    os.environ.pop("POSTX_STATIC") if before is None else os.environ.update(POSTX_STATIC=before)
    styles = "".join(f'<link rel="stylesheet" href="{(STATIC / name).as_uri()}">'
                     for name in ("postx.css", "widgets/planner.css"))  # fmt: skip
    scripts = "".join(f'<script{" defer" * i} src="{path.as_uri()}"></script>' for i, path in enumerate(SCRIPTS))
    path = tmp_path_factory.mktemp("planner") / "planner.html"
    path.write_text(f'<!doctype html><html lang="en" data-theme="light"><meta charset="utf-8"><title>t</title>{styles}'
                    f"{scripts}<body><main>{figure}</main>", encoding="utf8")  # fmt: skip
    return path.as_uri()


@pytest.fixture
def opened(chrome, address):
    pages = []

    def open_page(state="", width=1280):
        found, faults = browser.watch(chrome.new_context(viewport={"width": width, "height": 800}), address)
        pages.append((found, faults))
        found.goto(address + state)
        found.wait_for_selector(".px-plan table")
        return found

    yield open_page
    for found, _ in pages:
        found.context.close()
    assert [fault for _, faults in pages for fault in faults] == []


def ceilings(device="RTX 4090"):
    told = facts.device(device)
    return {name: told[name] for name in ("flops", "bandwidth", "memory", "price")} | {"share": facts.SHARE}


ASK = """asked => {
  const data = JSON.parse(document.querySelector("figure script").textContent);
  const P = postx.planner, evaluate = P.compile(data);
  return asked.map(({ model, D, layers, window, choices, device }) => {
    const told = data.models.find((each) => each.name === model) ?? { D };
    const row = P.row(data, told, layers ?? told.layers, window);
    const found = evaluate({ ...row, ...choices, ...device });
    return { row, found, told: P.told(data, found, choices), binds: P.binds(found) };
  }); }"""


def held(opened, asked):
    """What the page finds is what Python finds, for each of the questions."""
    answers = opened().evaluate(ASK, asked)
    for ask, answer in zip(asked, answers, strict=True):
        if "model" in ask:
            row = planner.row(ask["model"], layers=ask.get("layers"), window=ask.get("window"))
        else:
            row = rows.own(ask["layers"], ask["D"], ask.get("window"))
        assert answer["row"] == pytest.approx(row.numbers(), rel=1e-12), ask
        found = formulas.evaluate(row.numbers(), ask["choices"], ask["device"])
        assert set(found) == set(answer["found"])
        for name, value in found.items():
            got = answer["found"][name]
            assert got == value or math.isclose(got, value, rel_tol=1e-9), (name, got, value, ask)
        plan = planner.Plan(row, ask["choices"], {}, found)
        assert answer["binds"] == plan.binds
        assert answer["told"] == plan.sentences(), ask


def test_a_grid_of_models_and_choices(opened):
    grid = [CHOICES | {"context": context, "batch": batch, "weight_bits": bits, "cache_bits": cache}
            for context in (1024, 65536, 10 * 2**20)
            for batch, bits, cache in ((1, 16, 16), (16, 4, 8), (1024, 4.9, 4))]  # fmt: skip
    devices = [ceilings("Phone"), ceilings("RTX 4090"), ceilings("8 x H200")]
    held(opened, [{"model": name, "choices": choices, "device": device}
                  for name in rows.catalogue() for choices in grid for device in devices])  # fmt: skip


def test_random_patterns_and_edits(opened):
    draw = random.Random(0)
    asked = []
    for _ in range(150):
        choices = {"context": draw.randint(1, 10**7), "batch": draw.randint(1, 2000)}
        choices |= {f"{what}_bits": draw.uniform(1, 32) for what in ("weight", "cache", "state")}
        more = {"choices": choices, "device": ceilings(draw.choice(("Phone", "H100", "RTX 3090")))}
        more["window"] = draw.choice((None, 512, 4096))
        one = lambda: "".join(draw.choices(LETTERS, k=draw.randint(1, 2)))  # noqa: E731
        places = [one() for _ in range(draw.randint(1, 90))]
        places += ["F"] * draw.randint(0, 3)
        layers = "".join(f"({name})" if len(name) > 1 else name for name in places)
        asked.append({"D": draw.choice(page.WIDTHS), "layers": layers, **more})
        name = draw.choice(rows.catalogue())
        own = page.blocks.places(rows.of(name).layers)
        new = [draw.choice(LETTERS) if draw.random() < 0.3 and key not in page.blocks.MLPS else key for key in own]
        layers = "".join(f"({name})" if len(name) > 1 else name for name in new)
        asked.append({"model": name, "layers": layers, **more})
    held(opened, asked)


@pytest.mark.parametrize("recall", [False, True])
@pytest.mark.parametrize(
    ("device", "context", "users"), [("RTX 4090", 65536, 16), ("8 x H200", 2**20, 1), ("Phone", 8192, 1)]
)
def test_the_question_turned_round(opened, device, context, users, recall):
    choices = CHOICES | {"context": context, "batch": users}
    got = opened().evaluate(
        """([asked, device, recall]) => {
        const data = JSON.parse(document.querySelector("figure script").textContent);
        return postx.planner.survivors(data, postx.planner.compile(data), asked, device, recall)
          .map(({ model, bits, reasons }) => [model.name, bits, reasons]); }""",
        [choices, ceilings(device), recall],
    )
    memory = facts.device(device)["memory"]
    want = planner.survivors(memory=memory, context=context, users=users, recall=recall, device=device)
    assert got == [[v.name, v.weight_bits, list(v.reasons)] for v in want]


def test_numbers_in_words_are_the_same(opened):
    draw = random.Random(1)
    numbers = [0, 1.125, 0.5, 999.5, 99950, 0.0995, *(10 ** draw.uniform(-5, 14) for _ in range(300))]
    got = opened().evaluate(
        """numbers => { const P = postx.planner;
        const { units } = JSON.parse(document.querySelector("figure script").textContent);
        return numbers.map(x => [P.three(x), P.money(x), ...Object.values(units).map(u => P.say(u, x))]); }""",
        numbers,
    )
    three, money, say = planner.words.three, planner.words.money, planner.words.say
    assert got == [[three(x), money(x), *(say(x, kind) for kind in planner.words.UNITS)] for x in numbers]


def test_the_page_shows_what_python_finds(opened):
    found = opened("#model=Jamba&device=A100%2C+80+GB&context=65536&batch=16&weight_bits=4")
    plan = planner.plan("Jamba", device="A100", context=65536, batch=16, weight_bits=4)
    assert found.eval_on_selector_all(".pl-told li", "all => all.map(e => e.textContent)") == plan.sentences()
    answer = found.inner_text(".pl-answer")
    assert f"{planner.words.three(plan.found['tokens_a_second'])}" in answer
    assert planner.words.money(plan.found["written_cost"]) in answer
    assert found.inner_text(".pl-quality").count("not published") == 1  # a measured speed
    dots = opened("#device=RTX+4090%2C+24+GB")
    assert dots.eval_on_selector_all(".pl-dot", "all => all.length") == 3  # with that of the legend
    assert "measured: 54.3, 50.9" in dots.inner_html(".pl-speed")
    assert "2 published measurements" in dots.get_attribute(".pl-speed svg", "aria-label")


def test_the_address_holds_the_state(opened):
    first = opened()
    assert first.evaluate("location.hash") == ""
    first.select_option("[name=model]", "own")
    first.fill("[name=layers]", "SSA(AS)L")
    first.select_option("[name=window]", "512")
    first.select_option("[name=device]", "RTX 3090, 24 GB")
    first.locator("[name=context]").press("End")
    first.check("[name=recall]")
    first.fill("[name=price]", "1.5")
    first.wait_for_function("location.hash.includes('price')")
    state = first.evaluate("location.hash")
    assert state == "#model=own&device=RTX+3090%2C+24+GB&context=10485760&price=1.5&layers=SSA(AS)L&window=512&recall=1"
    again = opened(state)
    look = "() => document.querySelector('.px-plan').innerText"
    assert again.evaluate(look) == first.evaluate(look)
    assert again.input_value("[name=layers]") == "SSA(AS)L"
    again.evaluate("location.hash = '#model=Mamba-2.8b&context=5000'")
    again.wait_for_function("document.querySelector('.pl-said').textContent === '4,096'")
    assert again.input_value("[name=device]") == "H100, 80 GB"
    assert not again.is_checked("[name=recall]")
    odd = opened("#model=nobody&context=-3&price=x&layers=QQ")
    assert odd.input_value("[name=model]") == "Llama-3-8B"
    assert odd.inner_text(".pl-wrong") .startswith("Layers of this address: Llama-3-8B has 32 layers, not 2.")
    assert odd.input_value("[name=layers]") == "A" * 32


def test_layers_answer_mouse_and_keyboard(opened):
    found = opened()
    cells = found.locator(".pl-strip button")
    assert cells.count() == 32
    assert found.eval_on_selector_all(".pl-strip button", "all => all.filter(e => e.tabIndex === 0).length") == 1
    cells.first.focus()
    for key in ("ArrowRight", "ArrowRight", "Enter"):
        found.keyboard.press(key)
    assert found.input_value("[name=layers]") == "AAS" + "A" * 29
    assert found.evaluate("document.activeElement.getAttribute('aria-label')") == "layer 3, Mamba-2"
    found.keyboard.press("End")
    assert found.evaluate("document.activeElement.getAttribute('aria-label')") == "layer 32, attention"
    cells.nth(0).click()
    want = planner.plan("Llama-3-8B", layers="SAS" + "A" * 29)
    assert found.eval_on_selector_all(".pl-told li", "all => all.map(e => e.textContent)") == want.sentences()
    assert "not published" in found.inner_text(".pl-quality")
    found.fill("[name=layers]", "AAQ")
    assert "Llama-3-8B has 32 layers, not 3" in found.inner_text(".pl-wrong")
    found.select_option("[name=model]", "Nemotron-H-8B")
    alone = found.locator(".pl-strip button[aria-disabled]")
    before = found.input_value("[name=layers]")
    alone.first.dispatch_event("click")
    assert found.input_value("[name=layers]") == before
    found.locator(".pl-answer button").click()
    assert found.evaluate("document.activeElement.name") == "recall"
    found.locator(".pl-models [data-model='Mamba-2.8b']").click()
    assert found.input_value("[name=model]") == "Mamba-2.8b"


def test_nothing_is_wider_than_a_phone(opened):
    for state in ("", "#model=DeepSeek-V3&context=10485760&batch=1024&recall=1", "#model=own"):
        found = opened(state, width=390)
        assert found.evaluate("document.documentElement.scrollWidth") <= 390, state
        small = found.eval_on_selector_all(
            ".px-plan :is(select, .pl-strip button, input)", "all => all.filter(e => e.checkVisibility())"
            ".map(e => e.getBoundingClientRect()).filter(r => r.height < 20 || r.width < 20).length")  # fmt: skip
        assert small == 0, state
        assert found.evaluate(browser.SMALL, browser.LEAST) == [], state


def test_without_scripts_the_still_picture_and_its_words_are_there(chrome, address):
    context = chrome.new_context(java_script_enabled=False)
    found = context.new_page()
    found.goto(address)
    assert found.locator("figure > svg").count() == 1
    label = found.get_attribute("figure > svg", "aria-label")
    assert label == page.ALT
    for name in page.STILL:
        plan = planner.plan(name, context=65536, batch=16, weight_bits=4)
        assert planner.words.say(plan.found["total_bytes"], "bytes") in page.ALT
    context.close()


def test_the_payload_is_small_and_json():
    told = json.dumps(page.payload())
    assert len(told) < 60_000
    assert sum(path.stat().st_size for path in SCRIPTS[1:]) < 33_000


def test_a_reader_is_told_what_the_letters_and_figures_are(opened):
    found = opened("#model=Jamba")
    told = found.inner_text(".pl-legend")
    assert "A: attention" in told
    assert "M: Mamba" in told
    assert found.inner_text("[data-model='Mamba-2-370m']") == "Mamba-2-370m"
    row = found.locator(".pl-models tr", has_text="Mamba-2-370m")
    assert row.locator("[data-what=knowledge]").inner_text() == "perplexity, Pile: 8.21"
    wide = "all => all.filter(e => e.scrollWidth > e.clientWidth).length"
    assert found.eval_on_selector_all(".pl-answer strong", wide) == 0, "no answer runs into the next column"
