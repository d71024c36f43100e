"""Every task is solved here by a slow reader that follows its rule, token by token."""

import doctest
import sys

import numpy as np
import pytest
import torch

from postx import tasks
from postx.tasks import ASK, BLANK, END, GO, UNASKED, alphabets, letters, lookup, order

SMALL = {
    "recall": {"T": 40, "pairs": 6, "keys": 9, "values": 3, "fillers": 4},
    "rewriting": {"T": 40, "writes": 14, "held": 5, "keys": 9, "values": 30},
    "selective_copying": {"T": 40, "tokens": 7, "symbols": 5, "fillers": 3},
    "induction": {"T": 40, "symbols": 7},
    "copying": {"T": 40, "tokens": (3, 20), "symbols": 6},
    "phone_book": {"T": 44, "pairs": 5, "letters": 3, "digits": 4, "name": 2, "number": 3},
    "parity": {"T": 40},
}


def batch(name, B=200, **more):
    return getattr(tasks, name)(B, **(SMALL[name] | more))


def asked(row):
    return [t for t, target in enumerate(row) if target != UNASKED]


def test_the_drawn_examples_are_what_is_drawn():
    found = [doctest.testmod(part, extraglobs={"draw": tasks.draw}) for part in (letters, lookup, order)]
    assert sum(part.failed for part in found) == 0
    assert sum(part.attempted for part in found) >= 2 * len(tasks.TASKS)


def test_alphabets_lie_behind_the_marks_and_do_not_meet():
    ranges = alphabets(a=3, b=1, c=20)
    assert [token for r in ranges.values() for token in r] == list(range(4, 28))
    assert tasks.vocabulary(a=3, b=1, c=20) == 28
    assert {BLANK, ASK, GO, END} == set(range(4))


@pytest.mark.parametrize("name", tasks.TASKS)
def test_shapes_seeds_and_targets(name):
    ids, targets = batch(name)
    assert ids.shape == targets.shape == (200, SMALL[name]["T"])
    assert ids.dtype == targets.dtype == torch.int64
    again, other, pair = (batch(name, seed=s) for s in (0, 1, (0, 1)))
    assert torch.equal(ids, again[0])
    assert torch.equal(targets, again[1])
    assert not torch.equal(ids, other[0])
    assert not torch.equal(other[0], pair[0])
    assert ((targets != UNASKED).sum(1) > 0).all()
    assert (ids >= 0).all()
    assert (targets[targets != UNASKED] >= tasks.MARKS).all()


def recall_by_reading(ids, targets, pairs, sizes):
    book, is_key = {}, alphabets(**sizes)["keys"]
    for t in range(0, 2 * pairs, 2):
        assert ids[t] not in book
        book[ids[t]] = ids[t + 1]
    found = []
    for t in range(2 * pairs, len(ids)):
        if ids[t] in is_key:
            assert targets[t] == book.pop(ids[t])  # popped: a key is asked once
            found.append(t)
    assert found == asked(targets)
    return found


@pytest.mark.parametrize("questions", [None, 2])
@pytest.mark.parametrize("gap", [0, 5])
def test_recall(gap, questions):
    sizes = {"keys": 9, "values": 3, "fillers": 4}
    ids, targets = (x.numpy() for x in batch("recall", gap=gap, questions=questions))
    alphabet = alphabets(**sizes)
    for row, target in zip(ids, targets, strict=True):
        places = recall_by_reading(row, target, 6, sizes)
        assert len(places) == (questions or 6)
        assert min(places) >= 12 + gap
        rest = set(range(12, 40)) - set(places)
        assert {int(row[t]) for t in rest} <= set(alphabet["fillers"])
        assert {int(x) for x in row[1:12:2]} <= set(alphabet["values"])


def test_every_pair_and_every_place_is_asked_alike():
    ids, targets = (x.numpy() for x in tasks.recall(4000, 40, pairs=4, questions=1, power=1.0))
    at = (targets != UNASKED).argmax(1)
    places = np.bincount((at - 8) // 2, minlength=16)
    assert places.min() > 180  # 250 expected, standard deviation 15
    assert places.max() < 320
    which = (ids[:, :8:2] == np.take_along_axis(ids, at[:, None], 1)).argmax(1)
    assert np.abs(np.bincount(which, minlength=4) - 1000).max() < 130


def test_power_crowds_the_questions_behind_the_table():
    """The share on the first place is 1 / sum i^(a-1), for one question of 16 places."""
    for power in (0.01, 0.5, 1.0):
        _, targets = tasks.recall(8000, 40, pairs=4, questions=1, power=power)
        share = (targets[:, 8] != UNASKED).float().mean().item()
        weight = np.arange(1, 17) ** (power - 1)
        assert abs(share - 1 / weight.sum()) < 0.02


def test_recall_fills_the_smallest_room():
    ids, targets = tasks.recall(50, 4 * 8 - 1, pairs=8, keys=8)
    assert ((targets != UNASKED).sum(1) == 8).all()
    assert (ids[:, :16:2].sort(1).values == torch.arange(4, 12)).all()


def test_rewriting():
    old = 0
    for ids, targets in zip(*(x.tolist() for x in batch("rewriting")), strict=True):
        book, first = {}, {}
        for key, value in zip(ids[0:28:2], ids[1:28:2], strict=True):
            first.setdefault(key, value)
            book[key] = value
        assert len(book) == 5
        assert sorted(ids[28:33]) == sorted(book)
        assert targets[28:33] == [book[key] for key in ids[28:33]]
        assert asked(targets) == list(range(28, 33))
        assert set(ids[33:]) == {BLANK}
        old += sum(first[key] != book[key] for key in book)
    assert old > 0.7 * 5 * 200  # most keys hold something else than at first


def test_selective_copying():
    alphabet = alphabets(symbols=5, fillers=3)
    for ids, targets in zip(*batch("selective_copying"), strict=True):
        read = [x for x in ids.tolist()[:-7] if x in alphabet["symbols"]]
        assert len(read) == 7
        assert all(x in alphabet["fillers"] for x in ids.tolist()[:-7] if x not in alphabet["symbols"])
        assert ids.tolist()[-7:] == [GO] * 7
        assert targets.tolist() == [UNASKED] * 33 + read


def test_induction():
    seen = set()
    for ids, targets in zip(*(x.tolist() for x in batch("induction")), strict=True):
        first = ids.index(ASK)
        assert [t for t, x in enumerate(ids) if x == ASK] == [first, 39]
        assert ids[first + 1] in alphabets(symbols=7)["symbols"]
        assert targets == [UNASKED] * 39 + [ids[first + 1]]
        seen.add(39 - first)
    assert min(seen) == 2
    assert max(seen) == 39
    ids, _ = batch("induction", distance=11)
    assert (ids[:, 28] == ASK).all()


def test_copying():
    lengths = set()
    for ids, targets in zip(*(x.tolist() for x in batch("copying")), strict=True):
        n = ids.index(GO)
        lengths.add(n)
        assert all(x in alphabets(symbols=6)["symbols"] for x in ids[:n])
        assert targets == [UNASKED] * n + ids[:n] + [UNASKED] * (40 - 2 * n)
        assert ids == (ids[:n] + [GO] + ids[: n - 1] + [BLANK] * 40)[:40]
    assert lengths == set(range(3, 21))
    ids, _ = tasks.copying(3, 12)
    assert (ids[:, 6] == GO).all()


@pytest.mark.parametrize("question", ["first", "last"])
def test_phone_book(question):
    for ids, targets in zip(*(x.tolist() for x in batch("phone_book", question=question)), strict=True):
        ask, go = ids.index(ASK), ids.index(GO)
        name = ids[ask + 1 : ask + 3]
        book = ids[3:go] if question == "first" else ids[:ask]
        assert ask == (0 if question == "first" else 30)
        entries = [book[i : i + 6] for i in range(0, 30, 6)]
        assert all(e[5] == END for e in entries)
        assert len({tuple(e[:2]) for e in entries}) == 5
        number = dict((tuple(e[:2]), e[2:5]) for e in entries)[tuple(name)]
        assert targets == [UNASKED] * go + number + [UNASKED] * (44 - go - 3)
        assert ids[go:] == [GO, *number[:-1]] + [BLANK] * (44 - go - 3)


def test_the_two_orders_ask_the_same():
    first, last = (batch("phone_book", question=q) for q in ("first", "last"))
    assert torch.equal(first[1], last[1])
    assert torch.equal(first[0][:, 3:33], last[0][:, :30])
    assert torch.equal(first[0][:, :3], last[0][:, 30:33])


def test_parity():
    for ids, targets in zip(*(x.tolist() for x in batch("parity", B=20)), strict=True):
        ones = 0
        for x, y in zip(ids, targets, strict=True):
            ones += x == 5
            assert y == 4 + ones % 2
    _, every = batch("parity")
    _, last = batch("parity", every=False)
    assert torch.equal(every[:, -1], last[:, -1])
    assert (last[:, :-1] == UNASKED).all()


@pytest.mark.parametrize(
    ("name", "more", "message"),
    [
        ("recall", {"T": 22}, "T: 6 pairs, a gap of 0 and 6 questions need T >= 23, got 22"),
        ("recall", {"pairs": 10}, "pairs: expected a number from 1 to 9"),
        ("recall", {"questions": 7}, "questions: expected a number from 1 to 6"),
        ("recall", {"gap": -1}, "gap: expected a number from 0 up, got -1"),
        ("recall", {"power": 0.0}, "power: expected a number above 0"),
        ("recall", {"fillers": 0}, "fillers: expected an alphabet of at least one token"),
        ("rewriting", {"T": 32}, "T: 14 writes and 5 questions need T >= 33, got 32"),
        ("rewriting", {"held": 10}, "held: expected a number from 1 to 9"),
        ("rewriting", {"writes": 4}, "writes: expected a number from 5 up, got 4"),
        ("selective_copying", {"T": 13}, "T: 7 tokens and their copies need T >= 14, got 13"),
        ("induction", {"T": 2}, "need T >= 3, got 2"),
        ("induction", {"distance": 40}, "distance: expected a number from 2 to 39"),
        ("copying", {"tokens": 21}, "need T >= 42, got 40"),
        ("copying", {"tokens": (5, 4)}, "tokens: expected a number from 1 to 4"),
        ("phone_book", {"T": 35}, "need T >= 36, got 35"),
        ("phone_book", {"pairs": 10}, "pairs: expected a number from 1 to 9"),
        ("phone_book", {"question": "middle"}, "question: expected 'first' or 'last', got 'middle'"),
        ("parity", {"B": 0}, "B: expected a number from 1 up, got 0"),
    ],
)
def test_impossible_sizes(name, more, message):
    with pytest.raises(ValueError, match="(?s)" + message.replace("(", r"\(")):
        batch(name, **more)


def test_the_smallest_room_is_room():
    assert batch("recall", T=23)[0].shape == (200, 23)
    assert batch("phone_book", T=36)[0].shape == (200, 36)
    assert batch("selective_copying", T=14)[0].shape == (200, 14)


def test_thousands_of_rows_take_no_loop_over_rows():
    def calls(B):
        events = []
        sys.setprofile(lambda frame, event, argument: events.append(event))
        tasks.recall(B, 64, pairs=8)
        sys.setprofile(None)
        return len(events)

    calls(2)  # the first imports what it needs
    assert calls(2048) < 2 * calls(2)
