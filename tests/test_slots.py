"""The stream of pairs, four slots, and the settings of the machines that read the same stream."""

import math

import pytest
import torch

from postx import slots
from postx.mixers import deltanet, retnet, ssd
from postx.slots import Pair

KEYS = torch.zeros(56, 8, dtype=torch.float64)
for row, code in zip(KEYS, slots.CODES, strict=True):
    row[list(code)] = 3**-0.5


@pytest.mark.parametrize("n", slots.LENGTHS)
def test_a_stream_has_its_marks_its_people_and_its_rewrites(n):
    for seed in range(1, 40):
        pairs = slots.stream(n, seed)
        held, marked = {}, [pair for pair in pairs if pair.marked]
        assert (len(pairs), len(marked)) == (n, 5 * n // 8)
        assert len(slots.truth(pairs)) == n // 4 + 2
        assert not {p.who for p in marked} & {p.who for p in pairs if not p.marked}
        for pair in marked:
            assert held.get(pair.who) != pair.what  # a person does not take up what they hold
            held[pair.who] = pair.what
        assert held == slots.truth(pairs)


def test_the_seed_makes_the_stream():
    assert slots.stream(16, 7) == slots.stream(16, 7)
    assert len({tuple(slots.stream(8, seed)) for seed in range(1, 2001)}) == 2000
    shapes = [pair.what for seed in range(1, 500) for pair in slots.stream(16, seed)]
    counts = torch.bincount(torch.tensor(shapes), minlength=8) / len(shapes)
    assert (counts - 1 / 8).abs().max() < 0.01


def test_what_is_no_stream_is_named():
    with pytest.raises(ValueError, match="n: expected one of 8, 16, 32, 64, 128, got 9"):
        slots.stream(9, 1)
    for seed in (0, 10_000, 1.0):
        with pytest.raises(ValueError, match="seed: expected a whole number from 1 to 9999"):
            slots.stream(8, seed)
    with pytest.raises(ValueError, match="choices: expected one for each of 8 pairs, got 1"):
        slots.recall(slots.stream(8, 1), [0])


def test_a_slot_answers_with_what_was_written_last():
    pairs = [Pair(3, 1, True), Pair(5, 2, True), Pair(3, 4, True), Pair(9, 0, False)]
    assert slots.truth(pairs) == {3: 4, 5: 2}
    assert slots.recall(pairs, [0, 1, 0, None]) == {3: 4, 5: 2}
    assert slots.recall(pairs, [0, 1, None, None]) == {3: 1, 5: 2}  # the old shape
    assert slots.recall(pairs, [2, 1, 0, None]) == {3: 4, 5: 2}  # twice in the slots: the newer one counts
    assert slots.recall(pairs, [0, 1, 0, 0]) == {3: None, 5: 2}  # the filler threw it out
    assert slots.score(pairs, {3: 1, 5: 2}) == 1


def test_the_rule_fills_four_slots_and_keeps_them():
    pairs = slots.stream(8, 1)
    assert slots.score(pairs, slots.recall(pairs, slots.by_rule(pairs))) == 4  # four people, four slots
    pairs = slots.stream(64, 1)
    held = slots.recall(pairs, slots.by_rule(pairs))
    assert [what is not None for what in held.values()] == [True] * 4 + [False] * 14
    assert slots.score(pairs, held) == 4


@pytest.mark.parametrize("n", [8, 16, 32])
def test_the_cache_is_right_at_every_length(n):
    for seed in (1, 2):
        pairs = slots.stream(n, seed)
        assert slots.answers(pairs)["cache"] == slots.truth(pairs)


def test_addition_ties_where_a_name_was_rewritten():
    pairs = [Pair(3, 1, True), Pair(3, 4, True)]
    said = {machine: found[3] for machine, found in slots.answers(pairs).items()}
    assert said == {"cache": 4, "linear": None, "decay": 4, "delta": 4, "gate": 4}


def test_each_setting_is_the_best_of_its_grid_on_other_streams():
    streams = [slots.stream(32, seed) for seed in range(9001, 9401)]
    k = torch.stack([KEYS[[p.who for p in pairs]] for pairs in streams])[:, :, None]
    v = torch.eye(8, dtype=torch.float64)[[[p.what for p in pairs] for pairs in streams]][:, :, None]
    mark = torch.tensor([[float(p.marked) for p in pairs] for pairs in streams], dtype=torch.float64)[..., None]

    def rate(S_BHKV):
        right = 0
        for S, pairs in zip(S_BHKV[:, 0], streams, strict=True):
            asked = slots.truth(pairs)
            best, what = (KEYS[list(asked)] @ S).topk(2)
            said = what[:, 0].masked_fill(best[:, 0] - best[:, 1] <= slots.AHEAD, -1)
            right += (said == torch.tensor(list(asked.values()))).sum().item()
        return right

    def best(grid, state):
        scores = {x: rate(state(x)) for x in grid}
        top = max(scores, key=scores.get)
        assert top not in (grid[0], grid[-1])
        return top

    fades = (0.7, 0.8, 0.85, 0.9, 0.95, 0.98, 1.0)
    one = torch.ones_like(mark)
    log = lambda x: torch.tensor([math.log(x)], dtype=torch.float64)  # noqa: E731
    assert best(fades, lambda x: retnet.recurrent(k, k, v, g_H=log(x))[1]) == slots.DECAY
    assert best(fades, lambda x: ssd.recurrent(k, k, v * mark[..., None], math.log(x) * mark)[1]) == slots.GATE
    assert best((0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0), lambda x: deltanet.recurrent(k, k, v, x * one)[1]) == slots.BETA
