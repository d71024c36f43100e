"""The matrix a text makes: the page's numbers are the package's, for any text and any setting of the knobs."""

import inspect
import random
import re

import node
import numpy as np
import pytest
import torch

from _ext import pages
from postx import mixers
from postx.widgets import diagram, matrix, words

DATA = {"fillers": sorted(words.FILLERS), "K": words.K}
SCRIPTS = "postx.js", "widgets/matrix.js"
COMPUTE = "cases.map(([name, said, at]) => postx.matrix.compute(name, said, at, data))"
SPLIT = "texts.map((text) => postx.matrix.split(text, 12))"
TEXTS = (
    words.TEXT, "", "  one  ", "Don't stop; don’t — STOP!", "naïve Ωmega Straße 42,5 %", "ein Satz 日本語 و كلمة",
    " ".join(f"w{i}" for i in range(15)), "<b>bold</b> & \"quoted\" a_b\tc\nd",
)  # fmt: skip


def cases():
    """Some random texts with random knobs for each mixer, the ends of every knob, and a text of one word."""
    dice, some = random.Random(0), ["the", "door", "is", "open", "closed", "and", "Ω", "zebra", "7", "don't", "of"]
    for name, one in matrix.MENU.items():
        ends = [{key: getattr(knob, end) for key, knob in one.knobs.items()} for end in ("least", "most", "start")]
        for at in ends:
            yield name, words.split(words.TEXT)[0], at
        yield name, ["alone"], ends[2]
        for _ in range(12):
            said = dice.choices(some, k=dice.randint(2, 12))
            at = {k: knob.least + knob.step * dice.randint(0, round((knob.most - knob.least) / knob.step))
                  for k, knob in one.knobs.items()}  # fmt: skip
            yield name, said, {k: min(v, one.knobs[k].most) for k, v in at.items()}


@pytest.fixture(scope="module")
def both():
    made = list(cases())
    pages = node.run(SCRIPTS, COMPUTE, cases=made, data=DATA)
    return [(*case, np.array(page)) for case, page in zip(made, pages, strict=True)]


@pytest.mark.parametrize("name", matrix.MENU)
def test_the_page_computes_what_the_mixer_does_to_unit_values(both, name):
    mine = [(said, at, page) for one, said, at, page in both if one == name]
    assert len(mine) == 16
    worst = max(abs(matrix.matrix_of(name, said, **at) - page).max() for said, at, page in mine)
    assert worst < 1e-9


@pytest.mark.parametrize("name", matrix.MENU)
def test_m_times_v_is_what_every_form_of_the_mixer_gives(name):
    """M is the whole of the mixer: for other values, by the form that compares all pairs, where there is one."""
    said = words.split(words.TEXT)[0]
    z, w = matrix._inputs(name, said, **{key: knob.start for key, knob in matrix.MENU[name].knobs.items()})
    mixer = mixers.load(matrix.MENU[name].mixer)
    M = torch.tensor(matrix.matrix_of(name, said))
    z = list(z)
    other = torch.randn(len(said), 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    if name == "hyena":  # channels first: three texts of one channel, with the same gates
        z = [other.T[..., None], z[1][:3]]
    else:
        z[2] = torch.einsum("btgi,iv->btgv", z[2], other)
    for form in set(mixers.forms(mixer)) - {"recurrent"}:
        y, _ = getattr(mixer, form)(*z, **w)
        y = y[..., 0].T if name == "hyena" else y[0, :, 0]
        assert (y - M @ other).abs().max() < 1e-9, form


def test_no_word_hears_a_later_one(both):
    assert all(np.all(page[np.triu_indices(len(page), 1)] == 0) for *_, page in both)


@pytest.mark.parametrize("name", ["softmax", "linear"])
def test_rows_of_shares_sum_to_one(both, name):
    assert max(abs(page.sum(1) - 1).max() for one, _, _, page in both if one == name) < 1e-12


def test_a_text_is_cut_into_the_same_words():
    for text, cut in zip(TEXTS, node.run(SCRIPTS, SPLIT, texts=TEXTS), strict=True):
        assert words.split(text) == (cut["words"], cut["left"]), text


def test_the_numbers_of_the_answer_in_the_chapter_on_the_delta_rule():
    said, answer = words.split(words.TEXT)[0], pages.find("delta_rule").read_text(encoding="utf8")

    def taken(name, **knobs):
        return [f"{x:.2f}".replace("-", "−") for x in matrix.matrix_of(name, said, **knobs)[-1, [3, 8]]]

    assert "Retention takes {} and {}:".format(*taken("retention")) in answer
    assert "= 1$ it is {} and {}, because".format(*taken("delta", beta=1)) in answer
    assert "turned around: {} and {}.".format(*taken("delta", beta=2)) in answer


def test_what_the_sentences_say():
    """The last "is" and what followed the two before it, "open" (3) and "closed" (8), of the opening text."""
    said = words.split(words.TEXT)[0]
    M = {name: matrix.matrix_of(name, said) for name in matrix.MENU}
    last = {name: abs(m[-1]) for name, m in M.items()}
    assert min(last["softmax"][[3, 8]]) > 5 * np.delete(last["softmax"], [3, 8]).max()
    assert last["linear"].max() < 3 * last["linear"].min()
    age = np.subtract.outer(np.arange(12), np.arange(12))
    kept = np.tril(0.85**age * matrix.matrix_of("retention", said, keep=1))
    assert abs(M["retention"] - kept).max() < 1e-12
    assert last["delta"][3] < 0.1 < 0.9 < last["delta"][8]
    assert matrix.matrix_of("delta", said, beta=0.5)[-1, 3] > 0.2
    assert abs(M["gated_delta"][-1, :4]).max() < abs(M["delta"][-1, :4]).max()
    fillers = [i for i, word in enumerate(said) if word in words.FILLERS]
    content = [i for i in range(12) if i not in fillers]
    for name in ("ssd", "hyena"):
        assert abs(M[name][:, fillers]).max() < abs(M[name][:, content]).max() / 3, name
    even = matrix.matrix_of("ssd", said, keep=0.8, filler=1)
    assert abs(even - matrix.matrix_of("retention", said, keep=0.8)).max() < 1e-12


@pytest.mark.parametrize("name", diagram.LAYERS)
def test_a_diagram_is_of_the_layer_that_the_package_has(name):
    block, mixer = diagram.LAYERS[name], mixers.load(name)
    enter = {letter.rstrip("12") for letter in block.letters} - {"gate"}
    takes = [re.sub(r"_[A-Z]+$", "", p) for p in inspect.signature(mixer.step).parameters]
    takes = set(takes) - {"S", "inplace", "window", "scale", "rope", "slopes", "skip"}
    fixed = {"retnet": {"g"}}.get(name, set())  # rates that are no letters of the text
    assert enter == {{"response": "h"}.get(letter, letter) for letter in takes} - fixed
    layer = mixer.Layer(64)
    # SSD's gate is a part of its one projection.
    gated = name == "ssd" or getattr(layer, "gate", None) is not None
    assert ("gate" in block.letters) == ("×" in block.after) == gated
    assert any("norm" in text for text in block.after) == hasattr(layer, "norm")
    turned = any(text.startswith("turned") for text, _ in block.before)
    assert turned == (getattr(layer, "rope", None) is not None)


@pytest.mark.parametrize("name", diagram.LAYERS)
def test_the_parts_of_a_diagram_lie_within_it_and_apart(name):
    height, lines, boxes = diagram.parts(name)
    corners = [(box.x, box.y, box.x + box.width, box.y + box.height) for box in boxes]
    assert all(0 <= a <= c <= diagram.WIDTH and 0 <= b <= d <= height for a, b, c, d in corners)
    for i, one in enumerate(corners):
        for other in corners[:i]:
            assert one[0] >= other[2] or other[0] >= one[2] or one[1] >= other[3] or other[1] >= one[3], (one, other)
    assert all(line[0] == line[2] or line[1] == line[3] for line in lines)
    text = diagram.svg(name)
    assert text.count("<rect") == len(boxes)
    assert text.count("<path") == len(lines)


@pytest.mark.parametrize(
    ("name", "said", "at", "says"),
    [
        ("mamba", ["a"], {}, "not in the menu"),
        ("delta", ["a"], {"keep": 1}, "delta has the knobs beta"),
        ("delta", ["a"], {"beta": 2.5}, "expected 0 to 2"),
        ("delta", [], {}, "1 to 12 words, got 0"),
        ("delta", ["a"] * 13, {}, "got 13"),
    ],
)
def test_what_is_wrong_is_named(name, said, at, says):
    with pytest.raises(ValueError, match=says):
        matrix.matrix_of(name, said, **at)


def test_a_diagram_that_is_not_there_is_named():
    with pytest.raises(ValueError, match="no diagram of 's4d'"):
        diagram.svg("s4d")


def test_the_tool_carries_its_words_and_a_still_of_its_text(monkeypatch):
    monkeypatch.setenv("POSTX_STATIC", "1")
    page = matrix.matrix("ssd", "who knows who asks")._repr_mimebundle_()[0]["text/html"]
    assert 'data-widget="matrix"' in page
    assert page.count(">asks</text>") >= 1
    assert all(f'"{key}":' in page for key in matrix.MENU)
    assert "<svg" in page.split("</figure>")[0]
