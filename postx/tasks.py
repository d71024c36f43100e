"""Six questions about memory, asked of random tokens: `task(B, T, ..., seed=0) -> (ids_BT, targets_BT)`.

The logits at t are asked for `targets_BT[:, t]`; where nothing is asked the target is -100, which torch's
cross-entropy passes over. Everything is drawn on the CPU by numpy (the same numbers on every machine) without a
loop over B; for a GPU, copy the result. A seed is an integer, or a tuple such as (0, step): training draws
batch `step` anew from (seed, step), so that a run can be resumed anywhere.

Vocabulary: 0 BLANK, 1 ASK, 2 GO, 3 END are shared marks. From 4 on come the task's own alphabets, in the order
in which its signature names their sizes; no two alphabets share a token. `alphabets(keys=64, values=64)` gives
the ranges, `vocabulary(...)` the number of tokens, and `draw` writes a row as two lines of text.
"""

import itertools
import math
from numbers import Integral

import numpy as np
import torch

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


def recall(B, T, *, pairs, keys=64, values=64, fillers=64, questions=None, gap=0, power=0.01, seed=0):
    """Multi-query associative recall: a table of key-value pairs, then keys again; say the value of each.

    The `pairs` keys of a row are distinct; their values are drawn freely. Each of `questions` keys (all, unless
    told) is asked once, on one of the even places that follow the table and `gap` fillers: place i = 1, 2, ... is
    taken with weight i^(power - 1), without replacement. Near 0 the questions crowd behind the table, 1 spreads
    them evenly. Every other token is a filler, from an alphabet that holds no key and no value.

    Arora et al. 2023, "Zoology" (arXiv 2312.04927), section 3 and appendix; power = 0.01 is theirs. Deviation: their
    code may fill with any token, keys included, so that some questions have two answers or are no questions.
    Alphabets: keys, values, fillers.

    >>> ids, targets = recall(1, 24, pairs=4, keys=26, values=10, fillers=9, power=1.0, seed=1)
    >>> print(draw(ids[0], targets[0], keys=26, values=10, fillers=9))
    reads   u4l9s1h3u.s...h.l.......
    answers --------4-1---3-9-------
    """
    alphabet = alphabets(keys=keys, values=values, fillers=fillers)
    questions = pairs if questions is None else questions
    _within("pairs", pairs, 1, keys, "distinct keys")
    _within("questions", questions, 1, pairs, "pairs")
    _within("gap", gap, 0)
    _within("T", T, 1)
    if not 0 < power < float("inf"):
        raise ValueError(f"power: expected a number above 0, got {power}")
    places = (T - 2 * pairs - gap + 1) // 2
    need = 2 * pairs + gap + 2 * questions - 1
    _room(B, T, need, f"{pairs} pairs, a gap of {gap} and {questions} questions")
    rng = np.random.default_rng(seed)
    ids = _letters(rng, alphabet["fillers"], (B, T))
    ids[:, 0 : 2 * pairs : 2] = key = _distinct(rng, B, keys, pairs) + alphabet["keys"].start
    ids[:, 1 : 2 * pairs : 2] = value = _letters(rng, alphabet["values"], (B, pairs))
    # The largest of log-weight plus Gumbel noise are a draw without replacement (Efraimidis and Spirakis 2006).
    score = (power - 1) * np.log(np.arange(1, places + 1)) + rng.gumbel(size=(B, places))
    place = np.argpartition(-score, questions - 1, axis=1)[:, :questions]
    at, asked = 2 * pairs + gap + 2 * place, _distinct(rng, B, pairs, questions)
    np.put_along_axis(ids, at, np.take_along_axis(key, asked, 1), 1)
    targets = np.full((B, T), UNASKED)
    np.put_along_axis(targets, at, np.take_along_axis(value, asked, 1), 1)
    return torch.from_numpy(ids), torch.from_numpy(targets)


def selective_copying(B, T, *, tokens=16, symbols=16, fillers=1, seed=0):
    """Repeat, in order, the few symbols that stood at random places among fillers.

    The last `tokens` positions read GO, and are asked for the symbols. A filter that is constant over time cannot
    do it: the distances differ in every row. Gu and Dao 2023, "Mamba" (arXiv 2312.00752), section 4.1.1 (there
    T = 4,096 of noise and 16 tokens of 16 symbols). Alphabets: symbols, fillers.

    >>> ids, targets = selective_copying(1, 24, tokens=4, symbols=26, seed=1)
    >>> print(draw(ids[0], targets[0], symbols=26, fillers=1))
    reads   ........yg....i....w>>>>
    answers --------------------ygiw
    """
    alphabet = alphabets(symbols=symbols, fillers=fillers)
    _within("tokens", tokens, 1)
    _room(B, T, 2 * tokens, f"{tokens} tokens and their copies")
    rng = np.random.default_rng(seed)
    ids = _letters(rng, alphabet["fillers"], (B, T))
    at = np.sort(_distinct(rng, B, T - tokens, tokens), axis=1)
    symbol = _letters(rng, alphabet["symbols"], (B, tokens))
    np.put_along_axis(ids, at, symbol, 1)
    ids[:, T - tokens :] = GO
    targets = np.full((B, T), UNASKED)
    targets[:, T - tokens :] = symbol
    return torch.from_numpy(ids), torch.from_numpy(targets)


def induction(B, T, *, symbols=16, distance=None, seed=0):
    """What came after ASK the last time? Random symbols, ASK once among them, and ASK again at the very end.

    `distance` fixes how many positions lie between the two ASKs; without it, it is drawn evenly from 2 to T - 1.
    Train at one T and ask at a longer one to see whether the answer depends on the length. Gu and Dao 2023,
    "Mamba", section 4.1.2 (trained at T = 256, tested to 1,048,576), after Olsson et al. 2022. Alphabet: symbols.

    >>> ids, targets = induction(1, 24, symbols=26, seed=1)
    >>> print(draw(ids[0], targets[0], symbols=26))
    reads   mnty?dvygiwlhvgkqocawtv?
    answers -----------------------d
    """
    alphabet = alphabets(symbols=symbols)["symbols"]
    _room(B, T, 3, "ASK, a symbol and ASK")
    rng = np.random.default_rng(seed)
    ids = _letters(rng, alphabet, (B, T))
    if distance is None:
        at = T - 1 - rng.integers(2, T, (B, 1))
    else:
        _within("distance", distance, 2, T - 1, "positions before the last")
        at = np.full((B, 1), T - 1 - distance)
    np.put_along_axis(ids, at, ASK, 1)
    ids[:, -1] = ASK
    targets = np.full((B, T), UNASKED)
    targets[:, -1:] = np.take_along_axis(ids, at + 1, 1)
    return torch.from_numpy(ids), torch.from_numpy(targets)


def copying(B, T, *, tokens=None, symbols=26, seed=0):
    """Say a random string again, from its first symbol to its last, reading back what was said.

    `tokens` is the length of the string, T // 2 unless told, or a pair (lowest, highest) from which every row draws
    its own. The row is the string, GO, the string but for its last symbol, then blanks. Jelassi et al. 2024,
    "Repeat After Me" (arXiv 2402.01032), section 3. Alphabet: symbols.

    >>> ids, targets = copying(1, 24, tokens=(5, 12), seed=1)
    >>> print(draw(ids[0], targets[0], symbols=26))
    reads   ntyadvyg>ntyadvy........
    answers --------ntyadvyg--------
    """
    alphabet = alphabets(symbols=symbols)["symbols"]
    _within("T", T, 1)
    tokens = T // 2 if tokens is None else tokens
    pair = isinstance(tokens, tuple | list)
    if pair and len(tokens) != 2:
        raise ValueError(f"tokens: expected a length, or the lowest and the highest, got {tokens!r}")
    lowest, highest = tokens if pair else (tokens, tokens)
    _within("tokens", highest, 0)
    _within("tokens", lowest, 1, highest, "the highest length")
    _room(B, T, 2 * highest, f"{highest} tokens and their copies")
    rng = np.random.default_rng(seed)
    n = rng.integers(lowest, highest + 1, (B, 1))
    string = _letters(rng, alphabet, (B, highest))
    t = np.arange(T)
    again = np.take_along_axis(string, np.clip(t - n, 0, highest - 1), 1)  # what is asked of the logits at t
    targets = np.where((t >= n) & (t < 2 * n), again, UNASKED)
    ids = np.full((B, T), BLANK)
    ids[:, :highest] = np.where(t[:highest] < n, string, BLANK)
    ids[:, 1:] = np.where((t[1:] > n) & (t[1:] < 2 * n), again[:, :-1], ids[:, 1:])
    np.put_along_axis(ids, n, GO, 1)
    return torch.from_numpy(ids), torch.from_numpy(targets)


def phone_book(B, T, *, pairs, letters=26, digits=10, name=2, number=4, question="last", seed=0):
    """Find one name in a book of names and numbers, and say its number.

    An entry is `name` letters, `number` digits, END. The question is ASK and a name of the book; asked "last" it
    follows the book, asked "first" it precedes it, and a model that reads once knows what to keep. Then GO, and the
    digits, each read back before the next is asked; blanks to the end. Both orders have the same length and, at
    one seed, the same book and question. Names are distinct; so is no number. Jelassi et al. 2024, section 4.2
    (question last); Arora et al. 2024, "Just read twice" (arXiv 2407.05483) on the order. Alphabets: letters, digits.

    >>> for question in ("first", "last"):
    ...     ids, targets = phone_book(1, 32, pairs=3, question=question, seed=1)
    ...     print(draw(ids[0], targets[0], letters=26, digits=10))
    reads   ?tqtq8923|mg8428|nh2465|>892....
    answers ------------------------8923----
    reads   tq8923|mg8428|nh2465|?tq>892....
    answers ------------------------8923----
    """
    alphabet = alphabets(letters=letters, digits=digits)
    for key, size in (("name", name), ("number", number)):
        _within(key, size, 1)
    if name * math.log2(letters) >= 63:
        raise ValueError(f"name: names are drawn as numbers of 63 bits, got {letters} letters to the {name}")
    _within("pairs", pairs, 1, letters**name, f"names of {name} letters")
    if question not in ("first", "last"):
        raise ValueError(f"question: expected 'first' or 'last', got {question!r}")
    book, answer = pairs * (name + number + 1), name + 2
    _room(B, T, book + answer + number - 1, f"{pairs} entries, the question and the answer")
    rng = np.random.default_rng(seed)
    spelled = _distinct(rng, B, letters**name, pairs)[..., None] // letters ** np.arange(name)[::-1] % letters
    entries = np.full((B, pairs, name + number + 1), END)
    entries[..., :name] = spelled + alphabet["letters"].start
    entries[..., name:-1] = _letters(rng, alphabet["digits"], (B, pairs, number))
    wanted = np.take_along_axis(entries, rng.integers(0, pairs, (B, 1, 1)), 1)[:, 0]
    asked = np.concatenate([np.full((B, 1), ASK), wanted[:, :name]], 1)
    parts = [entries.reshape(B, book), asked]
    parts = parts if question == "last" else parts[::-1]
    go = book + answer - 1
    ids = np.full((B, T), BLANK)
    ids[:, : go + number] = np.concatenate([*parts, np.full((B, 1), GO), wanted[:, name:-2]], 1)
    targets = np.full((B, T), UNASKED)
    targets[:, go : go + number] = wanted[:, name:-1]
    return torch.from_numpy(ids), torch.from_numpy(targets)


def parity(B, T, *, every=True, seed=0):
    """Is the number of ones so far odd? Asked at every position, or with every=False at the last one only.

    A linear recurrence whose eigenvalues lie in [0, 1] cannot count it at every length; one that reaches -1 can.
    Grazzi et al. 2024, "Unlocking state-tracking in linear RNNs through negative eigenvalues" (arXiv 2411.12537).
    Alphabet: two bits, 4 for zero and 5 for one, which are also the answers.

    >>> ids, targets = parity(1, 24, seed=1)
    >>> print(draw(ids[0], targets[0], bits=2))
    reads   011100110010010011001111
    answers 010111011100011101110101
    """
    _room(B, T, 1, "one bit")
    bits = np.random.default_rng(seed).integers(0, 2, (B, T))
    targets = MARKS + np.cumsum(bits, 1) % 2
    if not every:
        targets[:, :-1] = UNASKED
    return torch.from_numpy(MARKS + bits), torch.from_numpy(targets)


TASKS = {f.__name__: f for f in (recall, selective_copying, induction, copying, phone_book, parity)}


def _letters(rng, tokens: range, shape):
    """Tokens of an alphabet, drawn evenly and freely."""
    return rng.integers(tokens.start, tokens.stop, shape)


def _distinct(rng, B, n, k):
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


def _within(name, value, low, high=None, what=""):
    if not _whole(value) or value < low or (high is not None and value > high):
        upper = "" if high is None else f" to {high} ({what})"
        raise ValueError(f"{name}: expected a number from {low}{upper or ' up'}, got {value!r}")


def _room(B, T, need, what):
    _within("B", B, 1)
    _within("T", T, 1)
    if need > T:
        raise ValueError(f"T: {what} need T >= {need}, got {T}")
