"""The decay recurrence on the CPU, S <- diag(a) S + k v', y = S' q: two multiply-adds an entry of S and token.

A decay within the loop would be a third operation. So S is kept divided by its own decay: with x_t = g_1 + ... + g_t,
S~_t = e^-x_t S_t only adds up, where k is written as e^-x k and q reads as e^x q. x starts anew with each tile of TIME
tokens, and within it before it leaves -REACH..REACH: there the table is multiplied by e^x, which may be 0 (g = -inf).
So no factor exceeds e^REACH, and no digit is lost: S~ has those of S.

Tokens pass by in either direction; reversed, the same loop makes gradients. With G the gradient of S after a token,

    dv = G' k, where G <- a (G + q dy')      the recurrence itself from the end: k reads what q and dy write
    dq = S dy                                the recurrence of S', whose keys are v and whose queries are dy
    dk = G v                                 that of G'

In the last two a decay for each key is one for each number of a row (`across`). The decays learn from what they
multiply: <G, S> before a token less that behind it is known from the products of its inputs with their gradients, so
dg is a running sum of these, from the last token on (`learn`). So that its roundings do not add up over all of time,
it starts anew at each tile from <G, S> itself: of the last two walks one leaves its tables there, and the other meets
them (`room`). Forward keeps no state.

The rows of a tile are copied side by side with their factors, where they stay in the first cache; then each block of
ROWS keys by WIDE values passes through the tile's tokens without leaving the registers. K is filled up to a multiple
of ROWS and V to one of WIDE, with zeros, in these copies only. Head h uses head h // (H / G) of what has G heads.
"""

import numpy as np

from postx.scans.cpu_tiles import (
    ROWS,
    WIDE,
    block,
    copy,
    exp,
    factors,
    fetch,
    filled,
    give,
    outputs,
    place,
    together,
)
from postx.scans.lanes import LANES, fma, load, mul, number, store, total, zeros
from postx.scans.runtime import jit, numba, serial

TIME = 64


@serial
def _tile(table, s, n, keep, count, cuts, on_rows, rows, lanes, tq, tk, tv, ty):
    """The table of head s, [heads,Kp,Vp], through a tile, cut by cut."""
    Kp, Vp = table.shape[1:]
    for c in range(count):
        if on_rows:
            for i in range(Kp if n == 1 else n):
                rows[i] = keep[c, 0 if n == 1 else i]
        else:
            for j in range(n):
                lanes[j] = keep[c, j]
        for j in range(0, Vp, WIDE):
            for i in range(0, Kp, ROWS):
                block(table, (s * Kp + i) * Vp + j, rows, lanes, tq, tk, tv, ty, i, j, cuts[c], cuts[c + 1])


@serial
def _keep(table, x, scale, first, width, kept, met, reverse):
    """kept [K,V] <- the table, whose decay is x; reversed, met [V] <- its products with what was kept, over K."""
    (K, V), Vp, n, whole = kept.shape, table.shape[1], x.shape[0], width // LANES * LANES
    for i in range(n):
        scale[0, i] = x[i]
    exp(scale, 1, 1, scale, 1)
    if reverse:
        met[first : first + width] = 0
    for i in range(K):
        at, to = i * Vp, i * V + first
        if reverse:
            for j in range(0, whole, LANES):
                store(met, first + j, fma(load(table, at + j), load(kept, to + j), load(met, first + j)))
            for j in range(whole, width):
                met[first + j] += table[i, j] * kept[i, first + j]
        else:
            for j in range(0, whole, LANES):
                if n > 1:
                    store(kept, to + j, mul(load(table, at + j), load(scale, j)))
                else:
                    store(kept, to + j, mul(load(table, at + j), number(scale, 0)))
            for j in range(whole, width):
                kept[i, first + j] = table[i, j] * scale[0, j if n > 1 else 0]
    if reverse:
        for j in range(width):
            met[first + j] *= scale[0, j if n > 1 else 0]


@serial
def _task(q, k, v, g, S, row, h0, h1, first, width, L, before, reverse, across, y, kept, met):
    """Heads h0 to h1, which are added up where they share a head of y, and `width` values from `first` on."""
    H, K, n = S.shape[1], S.shape[2], g.shape[3]
    heads, share, on_rows = h1 - h0, H // y.shape[2], n == 1 or not across
    Kp, Vp = (K + ROWS - 1) // ROWS * ROWS, (width + WIDE - 1) // WIDE * WIDE
    size = 1 if n == 1 else (n + LANES - 1) // LANES * LANES
    table, x = zeros(heads * Kp * Vp, v).reshape(heads, Kp, Vp), zeros(heads * n, v).reshape(heads, n)
    tq, tk = filled((TIME, Kp + LANES), 0, v), filled((TIME, Kp + LANES), 0, v)
    tv, ty = filled((TIME, Vp), 0, v), filled((TIME, Vp), 0, v)
    outs = ty.reshape(-1)
    read, write, keep = filled((TIME, size), 1, v), filled((TIME, size), 1, v), filled((TIME, size), 1, v)
    one, cuts = filled((TIME, 1), 1, v), np.empty(TIME + 1, np.int64)
    rows, lanes = filled((1, Kp), 1, v).ravel(), filled((1, Vp), 1, v).ravel()
    for s in range(heads):
        for i in range(K):
            for j in range(width):
                table[s, i, j] = S[row, h0 + s, i, first + j]
    # Who writes, and whose decay comes first, at the position at which a token reads: that token, or the one before.
    late, behind = int(before), int(before or reverse)
    # Either way a tile begins behind the last token of the same TIME, so that the tables of both can be multiplied.
    lead = 1 + L % TIME if reverse else late or TIME
    for tile in range(lead - TIME, L + behind, TIME):
        start = max(tile, 0)
        tokens = min(tile + TIME, L + behind) - start
        ended = (L + 1 - start if reverse else start - late) // TIME
        for s in range(heads):
            h = h0 + s
            if kept.shape[0] > 0 and start > 0 and 0 < ended * TIME < L:
                _keep(table[s], x[s], keep, first, width, kept[row, ended - 1, h], met[row, ended - 1, h], reverse)
            hg, hq, hk, hv = h * g.shape[2] // H, h * q.shape[2] // H, h * k.shape[2] // H, h * v.shape[2] // H
            count = factors(g, row, hg, start, tokens, L, behind, reverse, x[s], read, write, keep, cuts)
            copy(q, row, hq, start, tokens, L, reverse, 0, K, read if on_rows else one, tq)
            copy(k, row, hk, start - late, tokens, L, reverse, 0, K, write if on_rows else one, tk)
            copy(v, row, hv, start - late, tokens, L, reverse, first, width, one if on_rows else write, tv)
            for i in range(ty.size):
                outs[i] = 0
            for part in (q, k, v, y):
                fetch(part, row, h0, h1, H, tile + TIME, s * TIME // heads, (s + 1) * TIME // heads, L, reverse)
            _tile(table, s, n, keep, count, cuts, on_rows, rows, lanes, tq, tk, tv, ty)
            factor, fresh = one if on_rows else read, h % share == 0
            give(ty, factor, y, row, h // share, start, tokens, L, reverse, first, width, fresh)
    for s in range(heads):
        for i in range(n):
            keep[0, i] = x[s, i]
        exp(keep, 1, 1, keep, 1)
        for i in range(K):
            for j in range(width):
                S[row, h0 + s, i, first + j] = table[s, i, j] * keep[0, 0 if n == 1 else i if on_rows else j]


@jit
def _scan(q, k, v, g, S, lengths, before, reverse, across, size, width, y, kept, met):
    H, V = S.shape[1], v.shape[3]
    parts, blocks = (H + size - 1) // size, (V + width - 1) // width
    for task in numba.prange(v.shape[0] * parts * blocks):  # in a function of its own: prange's compiler is slow
        row, h0, first = task // blocks // parts, task // blocks % parts * size, task % blocks * width
        h1, some = min(H, h0 + size), min(width, V - first)
        _task(q, k, v, g, S, row, h0, h1, first, some, lengths[row], before, reverse, across, y, kept, met)


def scan(q, k, v, g, S, lengths, threads, *, before=False, reverse=False, across=False, heads=None, tables=None):
    """Returns y [B,T,heads,V], which adds up what heads of S [B,H,K,V] share, and the last state.

    g is the log-decay [B|1,T|1,G,1], or [..,K], or [..,V] where `across`. With `before` a token reads before it writes.
    `tables` are `room` for the states between tiles: a walk fills them, and one that is reversed multiplies by them.
    """
    (B, T, _, V), H = v.shape, S.shape[1]
    groups = H if heads is None else heads
    y, S = outputs(v, T, lengths, B, T, groups, V), S.copy()
    size = together(groups, H // groups, S.shape[2] * V, threads)
    blocks = -(-threads // max(1, B * (H // size)))  # where rows and heads do not make a task for each, values do
    width = V if across and g.shape[3] > 1 else max(1, -(-V // (WIDE * blocks))) * WIDE
    kept, met = room(v, S, 0) if tables is None else tables
    _scan(q, k, v, g, S, lengths, before, reverse, across, size, width, y, kept, met)
    return y, S


def room(v, S, T):
    """For walks through T tokens: states [B,tiles,H,K,V] behind every TIME tokens but the last, sums [B,tiles,H,V].

    Once a walk has filled the states, a reversed one makes the sums: over K, of S times its gradient.
    """
    (B, H, K, V), tiles = S.shape, max(0, T - 1) // TIME
    B = B if tiles else 0
    return np.empty((B, tiles, H, K, V), v.dtype), np.zeros((B, tiles, H, V), v.dtype)


@serial
def _gain(x, dx, row, h, H, t, L, sign, running):
    """running [n] += sign times the products of x and dx at token t, or their sum where n is 1."""
    i, j = place(x, row, h * x.shape[2] // H, 0, t, L, False), place(dx, row, h * dx.shape[2] // H, 0, t, L, False)
    width = x.shape[3]
    whole = width // LANES * LANES
    if running.shape[0] > 1:
        for c in range(0, whole, LANES):
            store(running, c, fma(mul(load(x, i + c), sign), load(dx, j + c), load(running, c)))
    elif whole:
        part = mul(load(x, i), load(dx, j))
        for c in range(LANES, whole, LANES):
            part = fma(load(x, i + c), load(dx, j + c), part)
        running[0] += sign * total(part)
    for c in range(whole, width):
        running[c if running.shape[0] > 1 else 0] += sign * number(x, i + c) * number(dx, j + c)


@serial
def _mend(dg, running, known, first, last):
    """Makes the sum what is known behind the token before `first`, and spreads the difference over those to `last`.

    The difference a token takes the place of what was known.
    """
    n = running.shape[0]
    for i in range(n):
        running[i], known[i] = known[i], (running[i] - known[i]) / (last - first)
    for t in range(first, last):
        for i in range(n):
            found = dg[t, i]
            dg[t, i] = found - known[i] * (last - t - 0.5) if found != 0 else found


@jit
def _learn(a, da, b, db, g, running, known, more, lengths, before, least, size, dg):
    H, n = dg.shape[2:]
    parts = (H + size - 1) // size
    for task in numba.prange(dg.shape[0] * parts):
        row, h0 = task // parts, task % parts * size
        rg, L = row if g.shape[0] > 1 else 0, lengths[row]
        for t in range(L - 1, -1, -1):
            for h in range(h0, min(H, h0 + size)):
                sums, rates = running[row, h], g[rg, t if g.shape[1] > 1 else 0, h * g.shape[2] // H]
                if not before:
                    _gain(a, da, row, h, H, t, L, 1, sums)
                if (t + 1) % TIME == 0 and t + 1 < L:
                    _mend(dg[row, :, h], sums, known[row, t // TIME, h], t + 1, min(L, t + 1 + TIME))
                _gain(b, db, row, h, H, t, L, -1, sums)
                for i in range(n):
                    dg[row, t, h, i] = sums[i] if rates[i] > least else 0
                if before:
                    _gain(a, da, row, h, H, t, L, 1, sums)
                if more.shape[0] > 0:
                    sums[0] += more[row, t, h]


def learn(a, da, b, db, g, last, known, lengths, before, threads, more=None):
    """The gradients [B,T,H,n] of log-decays g, where `last` [B,H,n] is <G, S> behind the last token: of n keys, or 1.

    a and da are what is read and its gradient: y and dy, or q and dq; b and db what is written: v and dv, or k and dk;
    `more` [B,T,H] is what else <G, S> gains before a token. Below -104 (-746 in float64) e^g is 0, and so is its
    gradient. The sum's roundings are of the size of <G, S>, so large beside the gradient of a decay that leaves
    little. They add up for no longer than a tile: `known` [B,tiles,H,n] is <G, S> behind each, summed from `room`'s.
    """
    dg, running = np.zeros((*a.shape[:2], *last.shape[1:]), last.dtype), last.copy()
    least, size = -104.0 if dg.itemsize == 4 else -746.0, -(-dg.shape[2] // threads)
    more = np.empty((0, 0, 0), dg.dtype) if more is None else more
    _learn(a, da, b, db, g, running, known, more, lengths, before, least, size, dg)
    return dg
