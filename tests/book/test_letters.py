"""A letter of a formula is explained where it means an axis of the notation page, and nowhere else."""

import json
import re
from importlib.metadata import distribution

import browser
import node
import pytest
from conftest import missing
from docutils import nodes
from docutils.utils import new_document

from _ext import letters, pages
from postx.shapes import LETTERS

# What is explained in each chapter. A letter that comes or goes was looked at: does the chapter mean by it what the
# notation page says? In state_space_models K is a filter, in ssd_duality N the width of a key, in sub_four_bit H a
# Hessian.
EXPLAINED = {
    "attention_cost": "BGHKLNRTVW",
    "state_space_models": "DNT",
    "selective_ssm": "DNTY",
    "ssd_duality": "T",
    "linear_attention": "CT",
    "delta_rule": "KV",
    "rnn_comeback": "CKV",
    "long_convolutions": "T",
    "hybrids": "BE",
    "liquid_networks": "T",
    "diffusion": "BDLT",
    "beyond_one_machine": "DGKL",
    "the_race": "BGKT",
    "whole_machine": "BT",
}


def tree(*paragraphs):
    """Paragraphs of words and $formulas$, and blocks that are a formula alone."""
    document = new_document("test")
    for text in paragraphs:
        pieces = text.split("$")
        if len(pieces) == 3 and not (pieces[0] or pieces[2]) and len(pieces[1]) > 1:
            document += nodes.math_block(pieces[1], pieces[1])
            continue
        paragraph = nodes.paragraph()
        for i, piece in enumerate(pieces):
            paragraph += nodes.math(piece, piece) if i % 2 else nodes.Text(piece)
        document += paragraph
    return document


INTRODUCED = "A key of $K$ numbers, a value of $V$ numbers, and a text of $T$ tokens."


@pytest.mark.parametrize(
    ("paragraphs", "known"),
    [
        ((INTRODUCED, "$2\\,(K + V) T$"), "KTV"),
        ((INTRODUCED, "$2 K V$", "$(Q K^\\top) V$"), "T"),  # the same letters are matrices here
        ((INTRODUCED, "$2 K V$", "$q \\cdot k / \\sqrt{K}$"), "KTV"),  # a number, even among vectors
        ((INTRODUCED, "$K_j + V(n)$"), "KT"),  # a function
        (("A filter of $K$ taps.", "$2 K$"), ""),  # introduced as something else
        (("$2 K V$",), ""),  # not introduced
        (("A key $k$ of $N$ numbers: the state is small.", "$2 N$"), ""),  # two meanings in one sentence
        (("A state of $N$ numbers a channel.", "$D N$"), "N"),
        (("A state of $N$ numbers a channel, a width $D$.", "$D N$", "$D(R) = 1$"), "N"),
        (("A mask of $M$ slots, the source position.", "$2 M$"), ""),  # a letter that nobody explains
    ],
)
def test_what_is_explained(paragraphs, known):
    document = tree(*paragraphs)
    assert "".join(sorted(letters.known(document))) == known
    letters.mark(document)
    marked = [f.astext() for f in letters.formulas(document) if "px-sizes" in f["classes"]]
    assert all(letters.about_sizes(latex) for latex in marked)
    assert bool(marked) == bool(known)


def test_a_bare_letter_has_no_index_and_no_accent():
    latex = r"18\,TDF + \hat W + \mathbb E + K_c + C_{\max} + L^2 + 2^{R} + \text{O} + \sum_{n=1}^{N} n"
    assert "".join(sorted(letters.bare(latex))) == "DFLT"
    assert letters.called("T(T+1)/2 + O(n) + D(R)") == {"O", "D"}


def test_every_letter_that_may_be_explained_is_one_of_the_notation_page():
    assert set(letters.WORDS) <= set(LETTERS)
    assert set(letters.OTHER) <= set(letters.WORDS)


def test_the_chapters_explain_what_was_looked_at():
    if not browser.HTML.exists():
        missing("no built book: run `make book`")
    found = {}
    for name, path in pages.files().items():
        if pages.NUMBER.match(path.stem):
            page = (browser.HTML / "chapters" / f"{path.stem}.html").read_text(encoding="utf8")
            store = re.search(r'<script type="application/json" id="px-terms">(.*?)</script>', page)
            if sizes := json.loads(store[1])["sizes"] if store else []:
                found[name] = "".join(sizes)
    assert found == EXPLAINED


def test_a_glyph_of_mathjax_is_read():
    asked = ["mjx-c1D43E TEX-I", "mjx-c1D43E", "mjx-c4B", "mjx-c1D40A TEX-B", "TEX-I mjx-c1D447", "mjx-c1D45B", ""]
    assert node.run(("terms.js",), "asked.map(postxTerms.letter)", asked=asked) == ["K", "K", "", "", "T", "n", ""]


MATHJAX = distribution("sphinx-mathjax-offline").locate_file("sphinx-mathjax-offline/static/mathjax/tex-chtml.js")
STORE = {"terms": {}, "names": ["S_BHKV"], "sizes": ["K", "T"], "notation": "#notation",
         "letters": {"K": "key width", "T": "time", "B": "batch", "H": "head", "V": "value"}}  # fmt: skip
FORMULAS = {
    "one": r'<span class="math px-sizes">\(K\)</span>',
    "sum": r'<div class="math px-sizes">\[\begin{aligned} 2\,T K^2 &= \frac{T (K + 1)}{K} \end{aligned}\]</div>',
    "index": r'<span class="math px-sizes">\(K_j + 2^{K} + \sum_{i=1}^{K} i + \mathbf{K} + \text{K} + K^T + V\)</span>',
    "other": r'<span class="math">\(Q K^\top\)</span>',
}


@pytest.fixture
def opened(chrome, tmp_path):
    formulas = "".join(f'<div id="{name}">{formula}</div>' for name, formula in FORMULAS.items())
    config = "window.MathJax = { options: { enableMenu: false } };"
    files = "".join(f'<script defer src="{p.as_uri()}"></script>' for p in (MATHJAX, browser.ROOT / "_static/terms.js"))
    style = f'<link rel="stylesheet" href="{(browser.ROOT / "_static/terms.css").as_uri()}">'
    told = f'<script type="application/json" id="px-terms">{json.dumps(STORE)}</script>'
    path = tmp_path / "letters.html"
    path.write_text(f'<!doctype html><html lang="en"><meta charset="utf-8"><title>x</title><script>{config}</script>'
                    f'{files}{style}<body>{formulas}<p><code class="literal"><span class="pre">S_BHKV</span></code></p>'
                    f"{told}</body></html>", encoding="utf8")  # fmt: skip
    context = chrome.new_context(viewport={"width": 700, "height": 700})
    page, faults = context.new_page(), []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.goto(path.as_uri())
    page.wait_for_selector("mjx-mi.px-axes")
    yield page
    context.close()
    assert faults == []


def test_a_letter_of_a_formula_is_tapped(opened):
    box = opened.locator("#px-line")
    counts = {name: opened.locator(f"#{name} mjx-mi.px-axes").count() for name in FORMULAS}
    assert counts == {"one": 1, "sum": 5, "index": 0, "other": 0}
    opened.locator("#one mjx-mi").click()
    assert box.inner_text().split() == ["K", "key", "width", "Notation"]
    opened.keyboard.press("Escape")
    opened.locator("#sum mjx-mi").first.click()
    assert box.inner_text().split()[:2] == ["T", "time"]
    opened.keyboard.press("Escape")
    for name in ("index", "other"):
        for letter in opened.locator(f"#{name} mjx-mi").all():
            letter.click(force=True)
            assert not box.is_visible(), name


def test_the_keyboard_meets_each_letter_once(opened):
    buttons = opened.get_by_role("button", name=re.compile("^What is"))
    assert buttons.all_text_contents() == ["What is K?", "What is T?"]
    hidden = opened.eval_on_selector_all("mjx-math *", "all => all.filter(e => e.tabIndex >= 0).length")
    assert hidden == 0, "MathJax hides what it draws from a screen reader: nothing in it takes the focus"
    opened.keyboard.press("Tab")
    assert opened.evaluate("document.activeElement.textContent") == "What is K?"
    assert buttons.first.bounding_box()["width"] > 30
    opened.keyboard.press("Enter")
    assert opened.locator("#px-line p").text_content() == "key width"
    opened.keyboard.press("Escape")
    assert opened.evaluate("document.activeElement.textContent") == "What is K?"


def test_a_tensor_in_the_text_opens_its_letters(opened):
    opened.locator("code .pre").click()
    assert opened.locator("#px-line p").text_content() == "B: batch\nH: head\nK: key width\nV: value"
