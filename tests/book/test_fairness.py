"""The rule of fairness on the notation page: what it promises of findings, counts, columns, bits and words."""

import re
from pathlib import Path

import pytest
import torch

from _ext import evidence, findings
from postx import cost
from postx.mixers import attention, mamba
from postx.widgets import bill

ROOT = Path(__file__).resolve().parents[2]
TEXTS = evidence.pages(ROOT)
RULE = TEXTS["notation"].split("## Comparing fairly")[1].split("\n## ")[0]
TRAINED = [(row["id"], test) for row in findings.read(ROOT)[0] for test in row["test"]
           if test["kind"] in ("ordering", "ratio") and "rate" in test]  # fmt: skip


@pytest.mark.parametrize(("name", "test"), TRAINED, ids=[name for name, _ in TRAINED])
def test_models_that_a_finding_orders_are_of_one_size_and_budget(name, test):
    assert test["parameters"] <= 0.3
    assert {"run.steps", "run.B", "run.T"} <= set(test["same"])
    assert test["tuned"]


def test_two_mamba_blocks_weigh_one_transformer_block():
    D = 4096
    with torch.device("meta"):
        one, two = (sum(p.numel() for p in layer.parameters()) for layer in (attention.Layer(D), mamba.Layer(D)))
    mlp = 2 * D * 4 * D
    assert one + mlp == pytest.approx(12 * D**2, rel=0.01)
    assert 2 * two == pytest.approx(one + mlp, rel=0.05)


def test_a_mask_leaves_half_on_both_sides():
    """The softmax's pairs, and those within chunks of a recurrence, are counted alike."""
    T, K, V = 4096, 64, 64
    softmax = cost.attention_scores(T) * 2 * (K + V)
    assert softmax == T * (T + 1) // 2 * 2 * (K + V)
    page = TEXTS["ssd_duality"]
    said = re.search(r"By the count above, chunks of 64 would be level at ([\d,]+) tokens", page)
    count = re.search(r"share their scores: \$(.*?) = ([\d{},]+)\$", page)
    value = eval(count[1].replace(r"\cdot", "*").replace("4 (", "4 * ("))  # the page's own arithmetic
    assert value == int(re.sub(r"\D", "", count[2])) == int(re.sub(r"\D", "", said[1]))


def test_reading_and_writing_are_columns_of_their_own():
    assert {row.split(":")[0] for row in bill.ROWS[0]} == {"prompt", "a token"}
    head = re.search(r"reading:\s+writing:", (ROOT / "chapters" / "01_attention_cost.ipynb").read_text())
    assert head, "the table of tricks says which columns are of reading"
    assert re.search(r'" +reading writing 16 +state', (ROOT / "chapters" / "16_the_race.ipynb").read_text())


def test_two_chapters_give_one_state_one_size():
    """Jamba's 28 Mamba layers in 32 bits: chapter 10 in MiB, chapter 16 in MB."""
    hybrids, race = ((ROOT / "chapters" / name).read_text() for name in ("10_hybrids.ipynb", "16_the_race.ipynb"))
    mebibytes = float(re.search(r"28 Mamba layers together: ([\d.]+) MiB in 32 bits", hybrids)[1])
    megabytes = float(re.search(r"weights +MB \+.*?Jamba\s+51\.6B\s+([\d.]+) \+", race, re.S)[1])
    assert mebibytes * 2**20 / 1e6 == pytest.approx(megabytes, abs=0.1)


WORDS = re.findall(r"^\| \*(\w+)\* \| (.+?) \| \[(\w+)\]", RULE, re.M)


def test_the_table_of_words_is_read():
    assert len(WORDS) == len([line for line in RULE.splitlines() if line.startswith("| *")]) >= 6


@pytest.mark.parametrize(("ours", "theirs", "page"), WORDS, ids=[w[0] for w in WORDS])
def test_a_private_word_stands_beside_the_fields(ours, theirs, page):
    text = TEXTS[page].lower()
    for word in (ours, *theirs.split(", ")):
        assert word.lower() in text, f"{page} does not say {word!r}"
