"""What is asked of an order: what stood where, what came after, how many came."""

import numpy as np
import torch

from postx.tasks.letters import ASK, BLANK, GO, MARKS, UNASKED, alphabets, distinct, drawn, room, within


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
    within("tokens", tokens, 1)
    room(B, T, 2 * tokens, f"{tokens} tokens and their copies")
    rng = np.random.default_rng(seed)
    ids = drawn(rng, alphabet["fillers"], (B, T))
    at = np.sort(distinct(rng, B, T - tokens, tokens), axis=1)
    symbol = drawn(rng, alphabet["symbols"], (B, tokens))
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
    room(B, T, 3, "ASK, a symbol and ASK")
    rng = np.random.default_rng(seed)
    ids = drawn(rng, alphabet, (B, T))
    if distance is None:
        at = T - 1 - rng.integers(2, T, (B, 1))
    else:
        within("distance", distance, 2, T - 1, "positions before the last")
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
    within("T", T, 1)
    tokens = T // 2 if tokens is None else tokens
    pair = isinstance(tokens, tuple | list)
    if pair and len(tokens) != 2:
        raise ValueError(f"tokens: expected a length, or the lowest and the highest, got {tokens!r}")
    lowest, highest = tokens if pair else (tokens, tokens)
    within("tokens", highest, 0)
    within("tokens", lowest, 1, highest, "the highest length")
    room(B, T, 2 * highest, f"{highest} tokens and their copies")
    rng = np.random.default_rng(seed)
    n = rng.integers(lowest, highest + 1, (B, 1))
    string = drawn(rng, alphabet, (B, highest))
    t = np.arange(T)
    again = np.take_along_axis(string, np.clip(t - n, 0, highest - 1), 1)  # what is asked of the logits at t
    targets = np.where((t >= n) & (t < 2 * n), again, UNASKED)
    ids = np.full((B, T), BLANK)
    ids[:, :highest] = np.where(t[:highest] < n, string, BLANK)
    ids[:, 1:] = np.where((t[1:] > n) & (t[1:] < 2 * n), again[:, :-1], ids[:, 1:])
    np.put_along_axis(ids, n, GO, 1)
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
    room(B, T, 1, "one bit")
    bits = np.random.default_rng(seed).integers(0, 2, (B, T))
    targets = MARKS + np.cumsum(bits, 1) % 2
    if not every:
        targets[:, :-1] = UNASKED
    return torch.from_numpy(MARKS + bits), torch.from_numpy(targets)
