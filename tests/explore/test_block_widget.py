"""Mamba's block, whose boxes open: every number is the layer's, the published model's, or postx.cost's."""

import inspect
import json
import re
from dataclasses import asdict
from pathlib import Path

import node
import pytest
import torch

from postx import cost
from postx.mixers import mamba
from postx.widgets import block

SCRIPTS = "postx.js", "widgets/block.js"
BOXES = block.boxes()
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def page():
    return node.run(SCRIPTS, "postx.block.numbers(boxes)", boxes=[asdict(box) for box in BOXES])


def test_the_size_is_the_published_one():
    published = json.loads((ROOT / "tests/models/published_sizes.json").read_text())["state-spaces/mamba-130m-hf"]
    wanted = {"vocab_size": block.VOCABULARY, "hidden_size": block.D, "num_hidden_layers": block.L}
    wanted |= {"state_size": block.N, "time_step_rank": block.RANK}
    assert published["config"] == {"model_type": "mamba"} | wanted
    assert block.model_weights() == published["total"]


def test_the_boxes_hold_every_weight_and_every_flop_of_the_layer(page):
    layer = mamba.Layer(block.D)
    assert page["all"]["weights"] == sum(p.numel() for p in layer.parameters())
    assert page["all"]["flops"] == cost.mamba_block(1, D=block.D).flops
    assert sum(box["share"]["weights"] for box in page["each"]) == pytest.approx(1)


def test_what_is_kept_is_what_the_layer_hands_on(page):
    _, (h, inputs) = mamba.Layer(block.D)(torch.zeros(1, 5, block.D))
    kept = {box.title: box.kept for box in BOXES if box.kept}
    assert kept == {"convolution of 4, SiLU": inputs.numel(), "selective scan": h.numel()}
    assert page["all"]["held"] == 2 * inputs.numel() + 4 * h.numel()
    for box, has in zip(BOXES, page["each"], strict=True):
        assert has["moved"] == 2 * box.weights + 2 * box.kept * box.item
        assert has["intensity"] == pytest.approx(box.flops / max(1, has["moved"]))


@pytest.mark.parametrize("box", BOXES, ids=lambda box: box.title)
def test_its_code_is_a_line_of_the_layer(box):
    assert re.sub(r"\s+", "", box.code) in re.sub(r"\s+", "", inspect.getsource(mamba.Layer))


def test_widths_meet_from_box_to_box():
    """What a box takes has been given under that name, as wide, by a box above it, or is x."""
    given = {"x": block.D}
    for box in BOXES:
        assert all(given[name] == wide for name, wide in box.into), box.title
        given |= dict(box.out)
    assert given["out"] == block.D


def test_what_is_said(page):
    boxes = [asdict(box) for box in BOXES]
    ask = "[false, true].map((w) => boxes.map((box, i) => postx.block.lines(box, each[i], w)))"
    reading, writing = node.run(SCRIPTS, ask, boxes=boxes, each=page["each"])
    assert reading[0] == [
        ["takes", "x [T, 768]"], ["gives", "u [T, 1536], gate [T, 1536]"], ["weights", "2,359,296 (63% of the block)"],
        ["FLOPs per token", "4,718,592 (62%)"],
    ]  # fmt: skip
    assert dict(writing[4])["keeps"] == "24,576 numbers, 98 kB, at any length"
    assert dict(writing[4])["moves per token"] == "249 kB (3% of the block)"
    assert dict(writing[5])["moves per token"] == "none"
    ask = "[false, true].map((w) => postx.block.summary(all, { L: 24, model: 129135360 }, w))"
    sums = node.run(SCRIPTS, ask, all=page["all"])
    assert "129,135,360 weights" in sums[0]
    assert "moves 7.8 MB for each token, 215 kB of it" in sums[1]
    assert "keep 2.6 MB for each text" in sums[1]
