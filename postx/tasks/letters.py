"""The tokens of every task: the marks, the alphabets behind them, a row as text, and how rows are drawn."""

import itertools
from numbers import Integral

import numpy as np

BLANK, ASK, GO, END = range(4)
MARKS, UNASKED = 4, -100
FACES = {"fillers": "."} | dict.fromkeys(("values", "digits", "bits"), "0123456789")


def alphabets(**sizes: int) -> dict[str, range]:
    """The tokens of each alphabet, one after the other behind the four marks.

    >>> alphabets(keys=3, values=2)
    {'keys': range(4, 7), 'values': range(7, 9)}
    """
    for name, size in sizes.items():
        if not _whole(size) or size < 1:
            raise ValueError(f"{name}: expected an alphabet of at least one token, got {size!r}")
    if sum(sizes.values()) >= 2**62:
        raise ValueError(f"{', '.join(sizes)}: expected fewer tokens than 2^62, which are drawn as 64-bit numbers")
    ends = list(itertools.accumulate(sizes.values(), initial=MARKS))
    return {name: range(lo, hi) for name, lo, hi in zip(sizes, ends, ends[1:], strict=False)}


def vocabulary(**sizes: int) -> int:
    """The number of tokens, marks included: what a model's Y must be at least."""
    return MARKS + sum(len(tokens) for tokens in alphabets(**sizes).values())


def draw(ids_T, targets_T, **sizes: int) -> str:
    """One row as text, the answers under the tokens whose logits are asked for them.

    Values, digits and bits show as digits, keys, symbols and letters as letters, fillers and blanks as dots; ? is
    ASK, > is GO, | is END; - means that nothing is asked. An alphabet longer than its faces starts them again.
    """
    faces = dict(zip(range(MARKS), ".?>|", strict=True)) | {UNASKED: "-"}
    for name, tokens in alphabets(**sizes).items():
        pattern = FACES.get(name, "abcdefghijklmnopqrstuvwxyz")
        faces |= {token: pattern[i % len(pattern)] for i, token in enumerate(tokens)}
    rows = (("reads", ids_T), ("answers", targets_T))
    return "\n".join(f"{name:8}" + "".join(faces[int(token)] for token in row) for name, row in rows)


def drawn(rng, tokens: range, shape):
    """Tokens of an alphabet, drawn evenly and freely."""
    return rng.integers(tokens.start, tokens.stop, shape)


def distinct(rng, B, n, k):
    """[B, k] numbers below n, distinct in each row and in random order (Floyd's sampling: a loop over k, not B)."""
    chosen = np.empty((B, k), np.int64)
    for j in range(k):
        top = n - k + j
        new = rng.integers(0, top + 1, B)
        taken = (chosen[:, :j] == new[:, None]).any(1)
        chosen[:, j] = np.where(taken, top, new)
    return rng.permuted(chosen, axis=1)


def _whole(value):
    return isinstance(value, Integral) and not isinstance(value, bool)


def within(name, value, low, high=None, what=""):
    if not _whole(value) or value < low or (high is not None and value > high):
        upper = "" if high is None else f" to {high} ({what})"
        raise ValueError(f"{name}: expected a number from {low}{upper or ' up'}, got {value!r}")


def room(B, T, need, what):
    within("B", B, 1)
    within("T", T, 1)
    if need > T:
        raise ValueError(f"T: {what} need T >= {need}, got {T}")
