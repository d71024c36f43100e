"""A byte model that only counts: interpolated modified Kneser-Ney, the baseline that a trained model must beat.

    p_n(w | h) = (c(hw) - D(c(hw))) / c(h.)  +  (D_1 N_1(h.) + D_2 N_2(h.) + D_3 N_3+(h.)) / c(h.)  p_{n-1}(w | h')

h is the n - 1 bytes before w, h' drops its oldest. N_j(h.) is the number of bytes seen j times after h. At the
highest order c counts occurrences; below it, c(hw) counts the different bytes that stood before hw. The last step
down is the uniform 1/256, so no byte has probability 0. A context never seen leaves all to the next lower order.

With n_j the number of n-grams of count j and Y = n_1 / (n_1 + 2 n_2), the discounts of each order are D(0) = 0,

    D_1 = 1 - 2 Y n_2 / n_1        D_2 = 2 - 3 Y n_3 / n_2        D_3 = 3 - 4 Y n_4 / n_3   (for counts of 3 and more)

Chen and Goodman 1999, "An empirical study of smoothing techniques for language modeling" (Computer Speech and
Language 13), on Kneser and Ney 1995. Deviations: an order with so few n-grams that one of n_1..n_4 is 0 (single
bytes, mostly) takes D_j = j / 2, and every D_j is kept within 0 and j. Before a text stand endless zeros, the last of
which is counted as a byte of the training text.

N-grams are numbered, not stored: with the number of h known, (h, w) is the integer 256 h + w, and one sort for each
order numbers all of them.
"""

from typing import NamedTuple

import numpy as np

ORDERS = tuple(range(1, 33))  # on Python's manual the best is inside; past 10 each gains under 0.003 bits


class Table(NamedTuple):
    """One order with one kind of counts: what each n-gram has of its own, and what each context passes down."""

    own: np.ndarray  # (c(hw) - D) / c(h.) of each n-gram
    passed: np.ndarray  # of each context; 1 where nothing followed it
    discounts: np.ndarray  # 0, D_1, D_2, D_3


class KneserNey:
    """The n-grams of a text up to the highest of `orders`: one model for each of these orders.

    Texts are bytes or arrays of uint8. Raises ValueError for a text without a byte, and for orders below 1.
    """

    def __init__(self, train, orders=ORDERS):
        self.orders = tuple(sorted(set(orders)))
        if not self.orders or self.orders[0] < 1:
            raise ValueError(f"orders: expected numbers from 1 up, got {tuple(orders)}")
        stream = _stream("train", train)
        self.codes, self.occurring, self.preceded = [], [], []  # by order, from 1
        # context[n]: of every byte, the number of the n bytes before it; contexts[n]: how many numbers there are
        context, contexts, shorter = [np.zeros_like(stream)], [1], None
        for n in range(self.orders[-1]):
            codes, first, number, count = np.unique(
                context[n] * 256 + stream, return_index=True, return_inverse=True, return_counts=True
            )
            if n:  # each n-gram type is one more byte that stood before the shorter one it ends with
                types = np.bincount(shorter[first], minlength=len(self.codes[-1]))
                self.preceded.append(_table(self.codes[-1], types, contexts[n - 1]))
            self.codes.append(codes)
            self.occurring.append(_table(codes, count, contexts[n]))
            shorter = number
            context.append(_after(number))
            contexts.append(len(codes))

    def bits(self, text) -> dict[int, float]:
        """Bits per byte of the text, by order: each byte is told from all bytes before it in the text."""
        return {n: -float(np.log2(p[1:]).mean()) for n, p in self._probabilities(_stream("text", text))}

    def distribution(self, context, order: int) -> np.ndarray:
        """p(w | context) of all 256 bytes w, by the model of that order. Raises ValueError for an order not counted."""
        if order not in self.orders:
            raise ValueError(f"order: expected one of {self.orders}, got {order}")
        stream = np.concatenate([_stream("context", context, least=0), [0]])
        contexts = (at[-1:].repeat(256) for at in self._contexts(stream))
        return dict(self._interpolate(contexts, np.arange(256)))[order]

    def _probabilities(self, stream):
        return self._interpolate(self._contexts(stream), stream)

    def _contexts(self, stream):
        """For each order the number of the context of every byte, -1 where the training text has no such context."""
        context = np.zeros_like(stream)
        for codes in self.codes:
            yield context
            context = _after(_find(codes, context, stream))

    def _interpolate(self, contexts, stream):
        """(order, probability of each byte) for every order wanted, from the lowest up."""
        p = np.full(len(stream), 1 / 256)
        for n, context in enumerate(contexts, 1):
            number = _find(self.codes[n - 1], context, stream)
            if n in self.orders:
                yield n, _mix(self.occurring[n - 1], context, number, p)
            if n <= len(self.preceded):
                p = _mix(self.preceded[n - 1], context, number, p)


def baseline(text, orders=ORDERS) -> dict:
    """Count text.train, choose the order on text.validation, and only then look at text.test.

    Returns order, validation (bits per byte by order) and test (bits per byte of the chosen order). Raises
    ValueError for fewer than six orders: a choice among few would be a weak opponent.
    """
    if len(set(orders)) < 6:
        raise ValueError(f"orders: expected at least six to choose from, got {tuple(orders)}")
    model = KneserNey(text.train, orders)
    validation = model.bits(text.validation)
    order = min(validation, key=validation.get)
    return {"order": order, "validation": validation, "test": model.bits(text.test)[order]}


def discounts(counts) -> np.ndarray:
    """0, D_1, D_2 and D_3 from the counts of all n-grams of one order (module docstring)."""
    n = np.bincount(np.minimum(counts, 5), minlength=6).astype(float)
    if not n[1:5].all():
        return np.arange(4) / 2
    Y = n[1] / (n[1] + 2 * n[2])
    D = [j - (j + 1) * Y * n[j + 1] / n[j] for j in (1, 2, 3)]
    return np.array([0, *np.clip(D, 0, [1, 2, 3])])


def _table(codes, count, contexts):
    D = discounts(count)
    of, taken = codes >> 8, D[np.minimum(count, 3)]
    total = np.bincount(of, count, contexts)
    passed = np.ones(contexts)
    np.divide(np.bincount(of, taken, contexts), total, out=passed, where=total > 0)
    return Table((count - taken) / total[of], passed, D)


def _mix(table, context, number, lower):
    own = np.where(number >= 0, table.own[number], 0.0)
    return own + np.where(context >= 0, table.passed[context], 1.0) * lower


def _find(codes, context, stream):
    """The number of each n-gram, -1 for those (and those of contexts) that are not among the codes."""
    wanted = context * 256 + stream
    place = np.minimum(np.searchsorted(codes, wanted), len(codes) - 1)
    return np.where((codes[place] == wanted) & (context >= 0), place, -1)


def _after(number):
    """From the n-gram that ends at each byte to the one before it; before the first byte of a stream, 0, all are 0."""
    return np.concatenate([number[:1], number[:-1]])


def _stream(name, text, least=1):
    """A zero and the text, as integers."""
    data = np.frombuffer(text, np.uint8) if isinstance(text, bytes | bytearray) else np.asarray(text)
    if data.dtype != np.uint8 or data.ndim != 1 or len(data) < least:
        raise ValueError(f"{name}: expected bytes or a row of uint8, got {data.dtype} of shape {data.shape}")
    return np.concatenate([[0], data.astype(np.int64)])
