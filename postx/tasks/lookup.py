"""What is asked of a table: the value of a key, of a key that was written again, the number of a name."""

import math

import numpy as np
import torch

from postx.tasks.letters import ASK, BLANK, END, GO, UNASKED, alphabets, distinct, drawn, room, within


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
    within("pairs", pairs, 1, keys, "distinct keys")
    within("questions", questions, 1, pairs, "pairs")
    within("gap", gap, 0)
    within("T", T, 1)
    if not 0 < power < float("inf"):
        raise ValueError(f"power: expected a number above 0, got {power}")
    places = (T - 2 * pairs - gap + 1) // 2
    need = 2 * pairs + gap + 2 * questions - 1
    room(B, T, need, f"{pairs} pairs, a gap of {gap} and {questions} questions")
    rng = np.random.default_rng(seed)
    ids = drawn(rng, alphabet["fillers"], (B, T))
    ids[:, 0 : 2 * pairs : 2] = key = distinct(rng, B, keys, pairs) + alphabet["keys"].start
    ids[:, 1 : 2 * pairs : 2] = value = drawn(rng, alphabet["values"], (B, pairs))
    # The largest of log-weight plus Gumbel noise are a draw without replacement (Efraimidis and Spirakis 2006).
    score = (power - 1) * np.log(np.arange(1, places + 1)) + rng.gumbel(size=(B, places))
    place = np.argpartition(-score, questions - 1, axis=1)[:, :questions]
    at, asked = 2 * pairs + gap + 2 * place, distinct(rng, B, pairs, questions)
    np.put_along_axis(ids, at, np.take_along_axis(key, asked, 1), 1)
    targets = np.full((B, T), UNASKED)
    np.put_along_axis(targets, at, np.take_along_axis(value, asked, 1), 1)
    return torch.from_numpy(ids), torch.from_numpy(targets)


def rewriting(B, T, *, writes, held, keys=64, values=64, seed=0):
    """Pairs whose keys come again with another value; then every key is asked once: say the last value of each.

    A row has `held` distinct keys and `writes` pairs; each key is written at least once, and the others are spread
    freely, so that a key's value is old in writes - held of the cases. What only adds answers with a sum of old and
    new. The questions stand behind the pairs, one token each, in random order; blanks to the end. After Schlag et al.
    2021, "Linear Transformers are secretly fast weight programmers" (arXiv 2102.11174), section 4.2; deviation: there
    one key of the row is asked. Alphabets: keys, values.

    >>> ids, targets = rewriting(1, 24, writes=8, held=3, keys=26, values=10, seed=1)
    >>> print(draw(ids[0], targets[0], keys=26, values=10))
    reads   g0t0k8t7g8t5k8k3kgt.....
    answers ----------------385-----
    """
    alphabet = alphabets(keys=keys, values=values)
    within("held", held, 1, keys, "distinct keys")
    within("writes", writes, held)
    within("T", T, 1)
    room(B, T, 2 * writes + held, f"{writes} writes and {held} questions")
    rng = np.random.default_rng(seed)
    which = rng.permuted(np.concatenate([np.tile(np.arange(held), (B, 1)),
                                         rng.integers(0, held, (B, writes - held))], 1), axis=1)  # fmt: skip
    key = distinct(rng, B, keys, held) + alphabet["keys"].start
    value = drawn(rng, alphabet["values"], (B, writes))
    last = np.zeros((B, held), np.int64)
    for i in range(writes):  # of two writes of one key the later one stays
        np.put_along_axis(last, which[:, i : i + 1], value[:, i : i + 1], 1)
    asked, start = distinct(rng, B, held, held), 2 * writes
    ids, targets = np.full((B, T), BLANK), np.full((B, T), UNASKED)
    ids[:, 0:start:2], ids[:, 1:start:2] = np.take_along_axis(key, which, 1), value
    ids[:, start : start + held] = np.take_along_axis(key, asked, 1)
    targets[:, start : start + held] = np.take_along_axis(last, asked, 1)
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
        within(key, size, 1)
    if name * math.log2(letters) >= 63:
        raise ValueError(f"name: names are drawn as numbers of 63 bits, got {letters} letters to the {name}")
    within("pairs", pairs, 1, letters**name, f"names of {name} letters")
    if question not in ("first", "last"):
        raise ValueError(f"question: expected 'first' or 'last', got {question!r}")
    book, answer = pairs * (name + number + 1), name + 2
    room(B, T, book + answer + number - 1, f"{pairs} entries, the question and the answer")
    rng = np.random.default_rng(seed)
    spelled = distinct(rng, B, letters**name, pairs)[..., None] // letters ** np.arange(name)[::-1] % letters
    entries = np.full((B, pairs, name + number + 1), END)
    entries[..., :name] = spelled + alphabet["letters"].start
    entries[..., name:-1] = drawn(rng, alphabet["digits"], (B, pairs, number))
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
