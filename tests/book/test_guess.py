"""The guess before the answer: what a chapter asks is what its answer says, and what the book computes."""

import math
import re

import nbformat
import node
import numpy as np
import pytest
from docutils.utils import unescape
from page import Page

from _ext import guess, pages
from postx.models import published

ASKED = re.compile(r"^```\{guess\} ([^\n]+)\n(?::ask: ([^\n]+)\n)?(?::axis: ([xy])\n)?(.*?)^```$", re.M | re.S)
SCRIPTS = ("guess.js",)


def asked():
    for name, path in pages.files().items():
        if path.suffix == ".ipynb":
            for cell in nbformat.read(path, as_version=4).cells:
                if cell.cell_type == "markdown":
                    yield from ((name, *found.groups()) for found in ASKED.finditer(cell.source))


ALL = list(asked())


def test_there_are_questions_in_many_chapters():
    assert len(ALL) >= 15
    assert len({name for name, *_ in ALL}) >= 8


@pytest.mark.parametrize(("name", "argument", "ask", "axis", "answer"), ALL, ids=[f"{a[0]}-{a[1]}" for a in ALL])
def test_the_answer_says_the_number(name, argument, ask, axis, answer):
    _, written, _ = guess.read(argument)
    assert guess.says(unescape(answer), written)
    assert ask, "a field says what number is wanted"
    assert len(ask) < 60


# What can be computed here is computed, with the rounding that the answer's digits stand for.
def half_life():
    return math.log(2) / (0.5 / 1024)


COMPUTED = {
    ("state_space_models", "1,420 tokens"): half_life,
    ("state_space_models", "2"): lambda: next(s / 16 for s in range(1, 65) if abs(1 - s / 16) >= 1),
    ("selective_ssm", "0.7"): lambda: math.log(2),
    ("linear_attention", "22 tokens"): lambda: max(
        Page("linear_attention", np=np).function("horizon")(1 - 2.0**-p, 64) or 0 for p in range(2, 11)
    ),
    ("long_convolutions", "23 places"): lambda: 12 + 12 - 1,
    ("liquid_networks", "0.05 s"): lambda: 1 / 21,
    ("diffusion", "295 steps"): lambda: 989e12 / 3.35e12,
    ("beyond_one_machine", "202 devices"): lambda: 1e6 * 64 / 8 * 50e9 / (2 * published.H100.flops),
    ("the_race", "7,200 tokens"): lambda: 7.505e9 * 2 / 16 / (32 * 2 * 8 * 128 * 2),
}


@pytest.mark.parametrize("key", COMPUTED, ids=[f"{page}-{argument}" for page, argument in COMPUTED])
def test_the_number_is_what_comes_out(key):
    assert key in {(name, argument) for name, argument, *_ in ALL}, "no such question: take it out here"
    number, written, _ = guess.read(key[1])
    plain = written.replace(",", "")
    last = -len(plain.partition(".")[2]) or len(plain) - len(plain.rstrip("0"))
    near = 4 if "just below" in next(a for n, arg, *_, a in ALL if (n, arg) == key) else 0.5 * 10**last
    assert COMPUTED[key]() == pytest.approx(number, abs=near)


@pytest.mark.parametrize("argument", ["", "many", "0 tokens", "-3 bits", "1.2.3 s"])
def test_an_argument_that_is_no_number_is_refused(argument):
    with pytest.raises(ValueError, match="needs a number above 0"):
        guess.read(argument)


def test_a_number_is_read_with_its_unit_and_found_in_an_answer():
    assert guess.read("49,152 tokens") == (49152.0, "49,152", "tokens")
    assert guess.read("12.5%") == (12.5, "12.5", "%")
    assert guess.says("It is $49{,}152$ there.", "49,152")
    assert not guess.says("It is 149,152 there.", "49,152")
    assert not guess.says("Version 2.5 of it", "2")


def test_the_page_reads_numbers_as_people_write_them():
    texts = ["16k", "49,152", " 1.5M", "10^5", "2^10", "6e3", "0,7", "3*10^4", "12 %", "x", "", "~5"]
    told = node.run(SCRIPTS, "texts.map(postxGuess.parse)", texts=texts)
    assert told[:9] == [16000, 49152, 1.5e6, 1e5, 1024, 6000, 0.7, 3e4, 12]
    assert told[9:] == ["NaN"] * 3


def test_the_page_says_how_far_a_guess_was():
    question = {"answer": 49152, "written": "49,152", "unit": "tokens"}
    said = node.run(SCRIPTS, "[16e3, 45e3, 90e3, 3e6].map((g) => postxGuess.say(g, question))", question=question)
    assert said == [
        "You: 16,000 tokens. Here: 49,152 tokens; 3.1 times too low.",
        "You: 45,000 tokens. Here: 49,152 tokens; right.",
        "You: 90,000 tokens. Here: 49,152 tokens; close.",
        "You: 3,000,000 tokens. Here: 49,152 tokens; 61 times too high.",
    ]
    assert node.run(SCRIPTS, "postxGuess.tally([0, 1, 2], 4)") == "Your guesses on this page: 3 of 4; 1 right, 1 close."
    assert node.run(SCRIPTS, "postxGuess.tally([], 4)") == "Your guesses on this page: 0 of 4."


def test_both_marks_stand_on_the_scale():
    for one, other in ((16e3, 49152), (1, 1), (0.05, 0.05), (1e-3, 7e6), (99, 101)):
        scale = node.run(SCRIPTS, f"postxGuess.scale({one}, {other})")
        assert scale["low"] < scale["high"]
        assert all(0.01 < at < 0.99 for at in scale["at"]), scale
