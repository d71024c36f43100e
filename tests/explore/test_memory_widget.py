"""A memory one paints on: what the page writes and reads is what the package's mixers write and read."""

import itertools
import math
import random

import node
import numpy as np
import pytest
import torch

from postx.mixers import deltanet, gla, retnet
from postx.widgets import memory

SCRIPTS = "postx.js", "widgets/memory.js"
REPLAY = """cases.map(({ writes, setting }) => {
    const { replay, read, key, stranger } = postx.memory;
    const S = replay(writes.map(([name, v]) => [name, v ?? stranger(name)]), setting);
    const asked = (name) => [name, read(S, key(name, setting.rows, setting.alike))];
    return { S, y: Object.fromEntries(["A", "B", "C", "0"].map(asked)) }; })"""
ASKED = ("A", "B", "C", "0")
WIDER = """cases.map(({ writes, setting }) => {
    const { replay, read, recognized, key, pixels } = postx.memory;
    const y = read(replay(writes, setting), key("A", setting.rows, 0));
    return { y, found: recognized(writes, presets.map(pixels), "A", y, setting.side) }; })"""


def drawn(name):
    return memory.pixels(memory.PRESETS[name])


def cases():
    """(writes, rows, likeness, rule): a few scripts and random sequences of drawings, rewrites and strangers."""
    dice = random.Random(1)
    scripts = [[], [("A", drawn("heart"))], [("A", drawn("heart")), ("B", drawn("face")), ("A", drawn("letter"))]]
    for rule, rows in itertools.product(memory.RULES, memory.ROWS[:3]):
        for alike in (0, 0.35, 1):
            yield from ((script, rows, alike, rule) for script in scripts)
            writes = []
            for _ in range(10):
                name = dice.choice(["A", "B", "C", "0", "1", "2", "3"])
                dots = torch.tensor([dice.choice([-1.0, 1.0]) for _ in range(64)], dtype=torch.float64)
                writes.append((name, dots if name in "ABC" else memory.stranger(name)))
            yield writes, rows, alike, rule


@pytest.fixture(scope="module")
def pages():
    made = list(cases())
    told = [
        {
            # The page makes the strangers itself.
            "writes": [[name, v.tolist() if name in "ABC" else None] for name, v in writes],
            "setting": {"rows": rows, "alike": alike, "rule": rule, "fade": memory.FADE},
        }
        for writes, rows, alike, rule in made
    ]
    return list(zip(made, node.run(SCRIPTS, REPLAY, cases=told), strict=True))


def mixers_table(writes, rows, alike, rule):
    """The same writes, all at once: keys and values as one text, through a form of the mixer that is not `step`."""
    if not writes:
        return torch.zeros(rows, 64, dtype=torch.float64)
    k = torch.stack([memory.key(name, rows, alike) for name, _ in writes])[None, :, None]
    v = torch.stack([v for _, v in writes])[None, :, None]
    if rule == "delta":
        return deltanet.chunked(k, k, v, torch.ones(k.shape[:3], dtype=torch.float64))[1][0, 0]
    if rule == "fade":
        g_H = torch.tensor([math.log(memory.FADE)], dtype=torch.float64)
        return retnet.parallel(k, k, v, g_H=g_H)[1][0, 0]
    return gla.chunked(k, k, v, torch.zeros_like(k))[1][0, 0]


@pytest.mark.parametrize("rule", memory.RULES)
def test_the_page_writes_what_the_mixer_writes(pages, rule):
    mine = [(case, page) for case, page in pages if case[3] == rule]
    assert len(mine) == 36
    for (writes, rows, alike, _), page in mine:
        S = memory.replay(writes, rows, alike, rule)
        assert abs(S.numpy() - np.array(page["S"])).max() < 1e-9
        assert (S - mixers_table(writes, rows, alike, rule)).abs().max() < 1e-9
        for name in ASKED:
            y = S.T @ memory.key(name, rows, alike)
            assert abs(y.numpy() - np.array(page["y"][name])).max() < 1e-9


@pytest.mark.parametrize("rows", memory.ROWS)
@pytest.mark.parametrize("alike", [0, 0.35, 1])
def test_keys_have_length_one_and_the_likeness_that_is_asked_for(rows, alike):
    k = torch.stack([memory.key(name, rows, alike) for name in "ABC"])
    assert (k @ k.T - torch.eye(3, dtype=torch.float64) * (1 - alike) - alike).abs().max() < 1e-12
    others = torch.stack([memory.key(str(i), rows, alike) for i in range(64)])
    assert (others.square().sum(1) - 1).abs().max() < 1e-12
    assert len({tuple(k.tolist()) for k in others}) == 64


def test_what_the_sentences_say():
    heart, face = drawn("heart"), drawn("face")
    writes = [("A", heart), ("B", face)]

    def read(name, rule, alike=0.5, more=()):
        S = memory.replay([*writes, *more], 16, alike, rule)
        return S.T @ memory.key(name, 16, alike)

    assert (read("A", "add") - heart - 0.5 * face).abs().max() < 1e-12
    assert (read("A", "add", alike=0) - heart).abs().max() < 1e-12
    assert (read("A", "fade", alike=0) - 0.8 * heart).abs().max() < 1e-12
    assert (read("B", "delta") - face).abs().max() < 1e-12
    assert (read("A", "delta") - heart - 0.5 * (face - 0.5 * heart)).abs().max() < 1e-12
    again = [("A", drawn("letter"))]
    assert (read("A", "delta", more=again) - drawn("letter")).abs().max() < 1e-12
    assert (read("A", "add", alike=0, more=again) - heart - drawn("letter")).abs().max() < 1e-12


def test_strangers_leak_by_the_law_of_random_keys():
    """n of them, in K rows, move a read by the root of n / K of a picture (eq-table-interference)."""
    heart = drawn("heart")
    for n, rows in ((16, 64), (64, 64), (64, 256)):
        writes = [("A", heart), *((str(i), memory.stranger(i)) for i in range(n))]
        off = (memory.replay(writes, rows, 0, "add").T @ memory.key("A", rows, 0) - heart).norm() / 8
        assert off == pytest.approx(math.sqrt(n / rows), rel=0.25)


def test_a_heart_in_the_noise_is_named_right_if_it_has_enough_pixels():
    """eq-table-interference is of the vector; which of 512 pictures it is goes by K and V together."""
    made, told = [], []
    for side, n in ((4, 0), (4, 448), (8, 448), (16, 448)):
        writes = [("A", drawn("heart")), *((str(i), None) for i in range(n))]
        made.append((writes, side))
        setting = {"rows": 64, "alike": 0, "rule": "add", "fade": memory.FADE, "side": side}
        told.append({"writes": [[name, v if v is None else v.tolist()] for name, v in writes], "setting": setting})
    found = []
    pages = node.run(SCRIPTS, WIDER, cases=told, presets=list(memory.PRESETS.values()))
    for (writes, side), page in zip(made, pages, strict=True):
        y = memory.replay(writes, 64, 0, "add", side).T @ memory.key("A", 64, 0)
        assert abs(y.numpy() - np.array(page["y"])).max() < 1e-9
        assert memory.recognized(writes, "A", y, side) == page["found"]
        found.append(page["found"])
        off = (y - memory.scaled(drawn("heart"), side)).norm() / side
        if writes[1:]:
            assert off == pytest.approx(math.sqrt((len(writes) - 1) / 64), rel=0.3)
    assert found == [True, False, False, True]


@pytest.mark.parametrize(
    ("at", "says"),
    [
        ({"rows": 3}, "rows: expected at least 4"),
        ({"alike": 1.5}, "alike: expected 0 to 1"),
        ({"rule": "multiply"}, "rule: expected one of add, fade, delta"),
    ],
)
def test_what_is_wrong_is_named(at, says):
    with pytest.raises(ValueError, match=says):
        memory.replay([], **{"rows": 4, "alike": 0.5, "rule": "add", **at})


def test_the_tool_carries_its_pictures_and_a_still(monkeypatch):
    monkeypatch.setenv("POSTX_STATIC", "1")
    page = memory.memory("delta")._repr_mimebundle_()[0]["text/html"]
    assert 'data-widget="memory"' in page
    assert all(f'"{name}":' in page for name in (*memory.PRESETS, *memory.RULES))
    assert all(len(picture) == 64 for picture in memory.PRESETS.values())
    assert "read with A" in page
