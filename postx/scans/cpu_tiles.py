"""Tiles of tokens side by side in the first cache, and the innermost loop of the table recurrences on a CPU.

`cpu_decay` says how a table is kept without its decay. A walk through time has positions: position p is token p, or
token L - 1 - p where it is reversed, and what is one position late belongs to the token before in the walk.
"""

import numpy as np

from postx.scans.lanes import LANES, add, exp2, fma, load, load2, mul, number, prefetch, store, zeros
from postx.scans.runtime import serial

ROWS, WIDE = 4, 2 * LANES
TOGETHER = 65536  # numbers in the tables that a task takes through time side by side: they share the second cache
REACH = 16.0
LOG2E = 1.4426950408889634


@serial
def exp(x, rows, sign, other, opposite):
    """x <- e^(sign x) and other <- e^(opposite x), in the first rows."""
    for i in range(0, rows * x.shape[1], LANES):
        v = mul(load(x, i), LOG2E)
        store(other, i, exp2(mul(v, opposite)))
        store(x, i, exp2(mul(v, sign)))


@serial
def factors(g, row, h, start, tokens, L, behind, reverse, x, read, write, keep, cuts):
    """The factors of a tile, read = e^x and write = e^-x, [.., n] for the n numbers of head h of g.

    At position cuts[c] of the tile the table is multiplied by keep[c]. x [n] comes from the tile before, and goes on
    to the next. Returns how many cuts there are; the first is at 0.
    """
    n, count, row = x.shape[0], 0, row if g.shape[0] > 1 else 0
    for t in range(tokens):
        beyond, m = 0, start + t - behind
        if 0 <= m < L:
            m = 0 if g.shape[1] == 1 else L - 1 - m if reverse else m
            at = ((row * g.shape[1] + m) * g.shape[2] + h) * n
            for i in range(n):
                x[i] += number(g, at + i)
                beyond += x[i] * x[i] > REACH * REACH  # a count: a search for the largest would not be vectorised
        if t == 0 or beyond:
            for i in range(n):
                keep[count, i] = x[i]
                x[i] = 0
            cuts[count] = t
            count += 1
        for i in range(n):
            read[t, i] = x[i]
    cuts[count] = tokens
    exp(read, tokens, 1, write, -1)
    exp(keep, count, 1, keep, 1)
    return count


@serial
def place(x, row, head, start, t, L, reverse):
    """Where head `head` of x begins at position start + t of the walk through row `row`; -1 where there is no token."""
    m = start + t
    if not 0 <= m < L:
        return -1
    return ((row * x.shape[1] + (L - 1 - m if reverse else m)) * x.shape[2] + head) * x.shape[3]


@serial
def span(start, tokens, L):
    """Which of `tokens` positions from `start` on have a token: the first, and the one behind the last."""
    return min(max(0, -start), tokens), max(min(tokens, L - start), 0)


@serial
def copy(x, row, head, start, tokens, L, reverse, first, width, factor, tile):
    """tile[t] <- `width` numbers from `first` on of x at position start + t, times the factor; 0 without a token."""
    n, stride, whole = factor.shape[1], tile.shape[1], width // LANES * LANES
    low, high = span(start, tokens, L)
    at, step = place(x, row, head, start, low, L, reverse) + first, x.shape[2] * x.shape[3] * (-1 if reverse else 1)
    for t in range(tokens):
        if t < low or t >= high:
            for i in range(width):
                tile[t, i] = 0
    for t in range(low, high):
        to = t * stride
        if n == 1:
            f = number(factor, t)
            for i in range(0, whole, LANES):
                store(tile, to + i, mul(load(x, at + i), f))
        else:
            for i in range(0, whole, LANES):
                store(tile, to + i, mul(load(x, at + i), load(factor, t * n + i)))
        for i in range(whole, width):
            tile[t, i] = number(x, at + i) * factor[t, i if n > 1 else 0]
        at += step


@serial
def give(tile, factor, y, row, head, start, tokens, L, reverse, first, width, fresh):
    """y <- the tile's outputs times the factor, or what is there already plus these."""
    n, stride, whole, flat = factor.shape[1], tile.shape[1], width // LANES * LANES, y.reshape(-1)
    low, high = span(start, tokens, L)
    at, step = place(y, row, head, start, low, L, reverse) + first, y.shape[2] * y.shape[3] * (-1 if reverse else 1)
    for t in range(low, high):
        for i in range(0, whole, LANES):
            out = load(tile, t * stride + i)
            if n > 1:
                out = mul(out, load(factor, t * n + i))
            store(y, at + i, out if fresh else add(out, load(y, at + i)))
        for i in range(whole, width):
            out = tile[t, i] * factor[t, i if n > 1 else 0]
            flat[at + i] = out if fresh else flat[at + i] + out
        at += step


@serial
def fetch(x, row, h0, h1, H, start, first, last, L, reverse):
    """Ask for what heads h0 to h1 will read at positions start + first to start + last: memory is far away."""
    first_head, after = h0 * x.shape[2] // H, (h1 - 1) * x.shape[2] // H + 1
    low, high = span(start + first, last - first, L)
    at, step = place(x, row, first_head, start + first, low, L, reverse), x.shape[2] * x.shape[3]
    for _ in range(low, high):
        for i in range(at, at + (after - first_head) * x.shape[3], LANES):
            prefetch(x, i)
        at += -step if reverse else step


@serial
def block(S, s, rows, lanes, tq, tk, tv, ty, i, j, begin, end):
    """ROWS keys from i and WIDE values from j, through positions begin to end; the outputs are added to ty."""
    stride, Vp = tq.shape[1], tv.shape[1]
    by = load2(lanes, j)
    S0, S1 = mul(mul(load2(S, s), by), number(rows, i)), mul(mul(load2(S, s + Vp), by), number(rows, i + 1))
    S2, S3 = load2(S, s + 2 * Vp), load2(S, s + 3 * Vp)
    S2, S3 = mul(mul(S2, by), number(rows, i + 2)), mul(mul(S3, by), number(rows, i + 3))
    for t in range(begin, end):
        r, at = t * stride + i, t * Vp + j
        v = load2(tv, at)
        S0, S1 = fma(v, number(tk, r), S0), fma(v, number(tk, r + 1), S1)
        S2, S3 = fma(v, number(tk, r + 2), S2), fma(v, number(tk, r + 3), S3)
        y = fma(S1, number(tq, r + 1), fma(S0, number(tq, r), load2(ty, at)))
        store(ty, at, fma(S3, number(tq, r + 3), fma(S2, number(tq, r + 2), y)))
    store(S, s, S0)
    store(S, s + Vp, S1)
    store(S, s + 2 * Vp, S2)
    store(S, s + 3 * Vp, S3)


@serial
def filled(shape, value, like):
    out = zeros(shape[0] * shape[1], like)
    for i in range(out.shape[0]):
        out[i] = value
    return out.reshape(shape)


def together(groups, share, size, threads):
    """How many heads a task takes, with tables of `size`, of `groups` times `share`; those of a group stay together.

    There are as many tasks for a row as threads, or a multiple of that, where there are enough groups.
    """
    parts = min(groups, -(-max(1, groups * share * size // TOGETHER) // threads) * threads)
    return -(-groups // parts) * share


def outputs(like, T, lengths, *shape):
    """An array for the outputs: of zeros where tokens are missing, else as it comes."""
    return (np.empty if (lengths == T).all() else np.zeros)(shape, like.dtype)
