"""Kneser-Ney against the same formula in dictionaries, and against what a probability must be."""

import math
import random
from collections import Counter, defaultdict

import numpy as np
import pytest

from postx import ngram, text
from postx.ngram import KneserNey, baseline, discounts

SAMPLE = b"the cat sat on the mat; the dog sat on the cat. a cat and a dog and a mat sat there then. " * 3
SAMPLE += bytes(random.Random(0).choices(b"abcdef ", weights=(9, 5, 3, 2, 1, 1, 6), k=800))


class Slow:
    """p(w | h) word for word as in the module's formula, over dictionaries of byte strings."""

    def __init__(self, data, order):
        self.order, stream = order, bytes(order + 1) + data
        self.levels = {}
        for n in range(1, order + 1):
            ends = range(order, len(stream))  # the last of the zeros is counted
            if n == order:
                counts = Counter(stream[i - n + 1 : i + 1] for i in ends)
            else:
                longer = {(bytes(n) + stream)[i : i + n + 1] for i in ends}
                counts = Counter(gram[1:] for gram in longer)
            of = defaultdict(dict)
            for gram, count in counts.items():
                of[gram[:-1]][gram[-1]] = count
            n1, n2, n3, n4 = (sum(c == j for c in counts.values()) for j in (1, 2, 3, 4))
            if n1 and n2 and n3 and n4:
                Y = n1 / (n1 + 2 * n2)
                D = [0, 1 - 2 * Y * n2 / n1, 2 - 3 * Y * n3 / n2, 3 - 4 * Y * n4 / n3]
                D = [min(max(d, 0), j) for j, d in enumerate(D)]
            else:
                D = [0, 0.5, 1, 1.5]
            self.levels[n] = of, D

    def p(self, w, history, n=None):
        n = self.order if n is None else n
        if n == 0:
            return 1 / 256
        of, D = self.levels[n]
        after = of.get(history[len(history) - n + 1 :])
        lower = self.p(w, history, n - 1)
        if after is None:
            return lower
        total, count = sum(after.values()), after.get(w, 0)
        passed = sum(D[min(c, 3)] for c in after.values())
        return (count - D[min(count, 3)]) / total + passed / total * lower


@pytest.mark.parametrize("order", [1, 2, 3, 5])
def test_equal_to_the_formula_in_dictionaries(order):
    slow, fast = Slow(SAMPLE, order), KneserNey(SAMPLE, (order,))
    other = b"the cat and zebra \xff\0\0 sat on the dog's mat"
    for history in (b"", b"t", b"the c", b"zz", b" sat on th", b"\0", other):
        padded = bytes(order) + history
        want = [slow.p(w, padded) for w in range(256)]
        assert np.abs(fast.distribution(history, order) - want).max() < 1e-14
    padded = bytes(order) + other
    want = -sum(math.log2(slow.p(padded[i], padded[:i])) for i in range(order, len(padded))) / len(other)
    assert fast.bits(other)[order] == pytest.approx(want, rel=1e-12)


def test_probabilities_sum_to_one_and_none_is_zero():
    model = KneserNey(text.load().validation, range(1, 9))
    for history in (b"", b"\0", b"The ", b"returns the nu", b"\xff\xfe\xfd", b"self, x) -> None\n"):
        for order in model.orders:
            p = model.distribution(history, order)
            assert abs(p.sum() - 1) < 1e-12
            assert p.min() > 0
    assert bytes([model.distribution(b"implementatio", 8).argmax()]) == b"n"


def test_orders_together_are_orders_alone():
    together = KneserNey(SAMPLE, (1, 2, 4, 6)).bits(SAMPLE[:200])
    assert together == {n: KneserNey(SAMPLE, (n,)).bits(SAMPLE[:200])[n] for n in (1, 2, 4, 6)}


def test_discounts():
    counts = np.repeat([1, 2, 3, 4, 9], [40, 20, 10, 5, 7])
    Y = 40 / 80
    assert discounts(counts) == pytest.approx([0, 1 - 2 * Y / 2, 2 - 3 * Y / 2, 3 - 4 * Y / 2])
    assert discounts(np.array([7, 8, 9])).tolist() == [0, 0.5, 1, 1.5]
    assert discounts(np.repeat([1, 2, 3, 4], [1, 1, 90, 1]))[2] == 0  # the estimate is far below 0


def test_a_coin_costs_one_bit():
    """Nothing can be learned from coin throws, and little is lost by trying."""
    throws = np.random.default_rng(0).integers(48, 50, 60_000).astype(np.uint8)
    bits = KneserNey(throws[:50_000], (1, 2, 4, 8)).bits(throws[50_000:])
    assert all(0.999 < bit < 1.02 for bit in bits.values())


def test_a_loop_costs_nothing():
    bits = KneserNey(b"abcd" * 2000, (1, 3)).bits(b"abcd" * 500)
    assert bits[1] == pytest.approx(2, abs=0.01)
    assert bits[3] < 0.02


def test_the_baseline_on_pythons_manual():
    """Bands, for the text differs between versions of Python."""
    found = baseline(text.load(), range(1, 13))
    bits = found["validation"]
    assert list(bits) == list(range(1, 13))
    assert bits[found["order"]] == min(bits.values())
    assert found["order"] >= 6
    assert 1.7 < found["test"] < 2.3
    assert 4.3 < bits[1] < 5.2
    assert all(bits[n] > bits[n + 1] for n in range(1, 6))
    assert max(ngram.ORDERS) >= 32


def test_bad_requests():
    with pytest.raises(ValueError, match="orders: expected at least six to choose from"):
        baseline(text.load(), (1, 2, 3, 4, 5, 5))
    with pytest.raises(ValueError, match="orders: expected numbers from 1 up"):
        KneserNey(b"abc", (0, 1))
    with pytest.raises(ValueError, match="orders: expected numbers from 1 up"):
        KneserNey(b"abc", ())
    with pytest.raises(ValueError, match="train: expected bytes or a row of uint8"):
        KneserNey(b"")
    with pytest.raises(ValueError, match="text: expected bytes or a row of uint8, got float64"):
        KneserNey(b"abc", (1,)).bits(np.zeros(3))
    with pytest.raises(ValueError, match=r"order: expected one of \(1, 2\), got 3"):
        KneserNey(b"abc", (1, 2)).distribution(b"a", 3)
