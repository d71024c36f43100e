"""Less, not more: no chapter grows past what it had, so every addition names its cut."""

import re

import nbformat
import pytest

from _ext import pages
from postx import fieldmap

# Words of prose when this was written. Lower a number when its chapter gets shorter.
MOST = {
    "attention_cost": 3992, "state_space_models": 3785, "selective_ssm": 3541, "ssd_duality": 4045,
    "linear_attention": 3413, "delta_rule": 2664, "rnn_comeback": 2065, "long_convolutions": 3996,
    "recall_lab": 4839, "hybrids": 3549, "quantization_error": 3438, "sub_four_bit": 4439, "liquid_networks":
    3671, "diffusion": 4081, "beyond_one_machine": 2216, "the_race": 4242, "whole_machine": 1967,
}  # fmt: skip
CORE = 23_945  # of the core path together, the last chapter's 1,967 with it
NO_PROSE = re.compile(r"^(`{3,})\{?(?:python|code|math)\b.*?^\1|\$\$.*?\$\$|^[`:]{3,}.*?$|^:\w+:.*?$", re.M | re.S)


def words(text):
    """Words of Markdown: code, displayed formulas and the lines of directives are none."""
    return len(NO_PROSE.sub("", text).split())


def test_what_counts_as_a_word():
    text = "Two words, $x$ and\n\n$$ a b c $$\n\n```{math}\n:label: eq-a\na b c\n```\n\n```python\nx = 1\n```\n"
    text += "````{exercise} Derive\n:label: ex\nGo on.\n````"
    assert words(text) == 6


@pytest.mark.parametrize("name", [name for name, path in pages.files().items() if path.suffix == ".ipynb"])
def test_a_chapter_does_not_grow(name):
    cells = nbformat.read(pages.find(name), as_version=4).cells
    found = words("\n".join(cell.source for cell in cells if cell.cell_type == "markdown"))
    assert name in MOST, f"{name}: {found} words; a new chapter names its limit here"
    assert found <= MOST[name], f"{name}: {found} words, {MOST[name]} allowed: what can go?"


def test_the_core_path_does_not_grow():
    assert sum(MOST[name] for name in fieldmap.CORE) <= CORE, "what can go from a chapter of the core path?"
