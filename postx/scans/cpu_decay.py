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
dg is a running sum of these, from the last token on (`learn`), and no state is kept for the backward pass.

The rows of a tile are copied side by side with their factors, where they stay in the first cache; then each block of
ROWS keys by WIDE values passes through the tile's tokens without leaving the registers. K is filled up to a multiple
of ROWS and V to one of WIDE, with zeros, in these copies only. Head h uses head h // (H / G) of what has G heads.
"""

import numpy as np

from postx.scans.lanes import LANES, add, exp2, fma, load, load2, mul, number, prefetch, store, total, zeros
from postx.scans.runtime import jit, numba, serial

TIME, ROWS, WIDE = 32, 4, 2 * LANES
TOGETHER = 8  # heads that a task takes through time side by side: longer runs of memory, but more tables in the cache
REACH = 16.0
LOG2E = 1.4426950408889634


@serial
def _exp(x, rows, sign, other, opposite):
    """x <- e^(sign x) and other <- e^(opposite x), in the first rows."""
    for i in range(0, rows * x.shape[1], LANES):
        v = mul(load(x, i), LOG2E)
        store(other, i, exp2(mul(v, opposite)))
        store(x, i, exp2(mul(v, sign)))


@serial
def _factors(g, row, h, start, tokens, L, behind, reverse, x, read, write, keep, cuts):
    """The factors of a tile, read = e^x and write = e^-x, [TIME, n] for the n numbers of head h of g.

    At position cuts[c] of the tile the table is multiplied by keep[c]. x [n] comes from the tile before, and goes on
    to the next. Returns how many cuts there are; the first is at 0.
    """
    n, count, row = x.shape[0], 0, row if g.shape[0] > 1 else 0
    for t in range(tokens):
        lowest = highest = x.dtype.type(0)
        m = start + t - behind
        if 0 <= m < L:
            m = 0 if g.shape[1] == 1 else L - 1 - m if reverse else m
            at = ((row * g.shape[1] + m) * g.shape[2] + h) * n
            for i in range(n):
                x[i] += number(g, at + i)
                lowest, highest = min(lowest, x[i]), max(highest, x[i])
        if t == 0 or lowest < -REACH or highest > REACH:
            for i in range(n):
                keep[count, i] = x[i]
                x[i] = 0
            cuts[count] = t
            count += 1
        for i in range(n):
            read[t, i] = x[i]
    cuts[count] = tokens
    _exp(read, tokens, 1, write, -1)
    _exp(keep, count, 1, keep, 1)
    return count


@serial
def _row(x, row, head, start, t, L, reverse):
    """Where head `head` of x begins at position start + t of the walk through row `row`; -1 where there is no token."""
    m = start + t
    if not 0 <= m < L:
        return -1
    return ((row * x.shape[1] + (L - 1 - m if reverse else m)) * x.shape[2] + head) * x.shape[3]


@serial
def _copy(x, row, head, start, tokens, L, reverse, first, width, factor, tile):
    """tile[t] <- `width` numbers from `first` on of x at position start + t, times the factor; 0 without a token."""
    n, stride, whole = factor.shape[1], tile.shape[1], width // LANES * LANES
    for t in range(tokens):
        at, to = _row(x, row, head, start, t, L, reverse), t * stride
        if at < 0:
            for i in range(width):
                tile[t, i] = 0
        else:
            at, f = at + first, factor[t, 0]
            for i in range(0, whole, LANES):
                store(tile, to + i, mul(load(x, at + i), f) if n == 1 else mul(load(x, at + i), load(factor, t * n + i)))
            for i in range(whole, width):
                tile[t, i] = number(x, at + i) * factor[t, i if n > 1 else 0]


@serial
def _give(tile, factor, y, row, head, start, tokens, L, reverse, first, width, fresh):
    """y <- the tile's outputs times the factor, or what is there already plus these."""
    n, stride, whole = factor.shape[1], tile.shape[1], width // LANES * LANES
    for t in range(min(tokens, L - start)):
        at = _row(y, row, head, start, t, L, reverse) + first
        target = y.ravel()[at : at + width]
        for i in range(0, whole, LANES):
            out = load(tile, t * stride + i)
            if n > 1:
                out = mul(out, load(factor, t * n + i))
            store(y, at + i, out if fresh else add(out, load(y, at + i)))
        for i in range(whole, width):
            out = tile[t, i] * factor[t, i if n > 1 else 0]
            target[i] = out if fresh else target[i] + out


@serial
def _fetch(x, row, h0, h1, H, start, first, last, L, reverse):
    """Ask for what heads h0 to h1 will read at positions start + first to start + last: memory is far away."""
    low, after = h0 * x.shape[2] // H, (h1 - 1) * x.shape[2] // H + 1
    for t in range(first, last):
        at = _row(x, row, low, start, t, L, reverse)
        if at >= 0:
            for i in range(at, at + (after - low) * x.shape[3], LANES):
                prefetch(x, i)


@serial
def _block(S, s, rows, lanes, tq, tk, tv, ty, i, j, begin, end):
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
                _block(table, (s * Kp + i) * Vp + j, rows, lanes, tq, tk, tv, ty, i, j, cuts[c], cuts[c + 1])


@serial
def _full(shape, value, like):
    out = zeros(shape[0] * shape[1], like)
    for i in range(out.shape[0]):
        out[i] = value
    return out.reshape(shape)


@serial
def _task(q, k, v, g, S, row, h0, h1, first, width, L, before, reverse, across, y):
    """Heads h0 to h1, which are added up where they share a head of y, and `width` values from `first` on."""
    H, K, n = S.shape[1], S.shape[2], g.shape[3]
    heads, share, on_rows = h1 - h0, H // y.shape[2], n == 1 or not across
    Kp, Vp = (K + ROWS - 1) // ROWS * ROWS, (width + WIDE - 1) // WIDE * WIDE
    size = 1 if n == 1 else (n + LANES - 1) // LANES * LANES
    table, x = zeros(heads * Kp * Vp, v).reshape(heads, Kp, Vp), zeros(heads * n, v).reshape(heads, n)
    tq, tk = _full((TIME, Kp + LANES), 0, v), _full((TIME, Kp + LANES), 0, v)
    tv, ty = _full((TIME, Vp), 0, v), _full((TIME, Vp), 0, v)
    read, write, keep = _full((TIME, size), 1, v), _full((TIME, size), 1, v), _full((TIME, size), 1, v)
    one, cuts = _full((TIME, 1), 1, v), np.empty(TIME + 1, np.int64)
    rows, lanes = _full((1, Kp), 1, v).ravel(), _full((1, Vp), 1, v).ravel()
    for s in range(heads):
        for i in range(K):
            for j in range(width):
                table[s, i, j] = S[row, h0 + s, i, first + j]
    # Who writes, and whose decay comes first, at the position at which a token reads: that token, or the one before.
    late, behind = int(before), int(before or reverse)
    for start in range(0, L + behind, TIME):
        tokens = min(TIME, L + behind - start)
        for s in range(heads):
            h = h0 + s
            hg, hq, hk, hv = h * g.shape[2] // H, h * q.shape[2] // H, h * k.shape[2] // H, h * v.shape[2] // H
            count = _factors(g, row, hg, start, tokens, L, behind, reverse, x[s], read, write, keep, cuts)
            _copy(q, row, hq, start, tokens, L, reverse, 0, K, read if on_rows else one, tq)
            _copy(k, row, hk, start - late, tokens, L, reverse, 0, K, write if on_rows else one, tk)
            _copy(v, row, hv, start - late, tokens, L, reverse, first, width, one if on_rows else write, tv)
            ty[:] = 0
            for part in (q, k, v, y):
                _fetch(part, row, h0, h1, H, start + TIME, s * TIME // heads, (s + 1) * TIME // heads, L, reverse)
            _tile(table, s, n, keep, count, cuts, on_rows, rows, lanes, tq, tk, tv, ty)
            factor, fresh = one if on_rows else read, h % share == 0
            _give(ty, factor, y, row, h // share, start, tokens, L, reverse, first, width, fresh)
    for s in range(heads):
        for i in range(n):
            keep[0, i] = x[s, i]
        _exp(keep, 1, 1, keep, 1)
        for i in range(K):
            for j in range(width):
                S[row, h0 + s, i, first + j] = table[s, i, j] * keep[0, 0 if n == 1 else i if on_rows else j]


@jit
def _scan(q, k, v, g, S, lengths, before, reverse, across, together, width, y):
    H, V = S.shape[1], v.shape[3]
    parts, blocks = (H + together - 1) // together, (V + width - 1) // width
    for task in numba.prange(v.shape[0] * parts * blocks):  # in a function of its own: prange's compiler is slow
        row, h0, first = task // blocks // parts, task // blocks % parts * together, task % blocks * width
        last = min(H, h0 + together), min(width, V - first)
        _task(q, k, v, g, S, row, h0, last[0], first, last[1], lengths[row], before, reverse, across, y)


def scan(q, k, v, g, S, lengths, threads, *, before=False, reverse=False, across=False, heads=None):
    """Returns y [B,T,heads,V], which adds up what heads of S [B,H,K,V] share, and the last state.

    g is the log-decay [B|1,T|1,G,1], or [..,K], or [..,V] where `across`. With `before` a token reads before it writes.
    """
    (B, T, _, V), H = v.shape, S.shape[1]
    groups = H if heads is None else heads
    y, S = np.zeros((B, T, groups, V), v.dtype), S.copy()
    # As many tasks as threads, or a multiple: first by rows and heads, then by values.
    parts = min(groups, -(-max(1, H // TOGETHER) // threads) * threads)
    together = -(-groups // parts) * (H // groups)
    blocks = -(-threads // max(1, B * parts))
    width = max(1, -(-(-(-V // WIDE)) // blocks)) * WIDE
    if across and g.shape[3] > 1:
        width = V
    _scan(q, k, v, g, S, lengths, before, reverse, across, together, width, y)
    return y, S


@serial
def _gain(x, dx, row, h, H, t, L, sign, running):
    """running [n] += sign times the products of x and dx at token t, or their sum where n is 1."""
    i, j = _row(x, row, h * x.shape[2] // H, 0, t, L, False), _row(dx, row, h * dx.shape[2] // H, 0, t, L, False)
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


@jit
def _learn(a, da, b, db, g, running, lengths, before, least, dg):
    H, n = dg.shape[2:]
    for task in numba.prange(dg.shape[0] * H):
        row, h = task // H, task % H
        sums, rg, hg, L = running[row, h], row if g.shape[0] > 1 else 0, h * g.shape[2] // H, lengths[row]
        for t in range(L - 1, -1, -1):
            if not before:
                _gain(a, da, row, h, H, t, L, 1, sums)
            _gain(b, db, row, h, H, t, L, -1, sums)
            tg = t if g.shape[1] > 1 else 0
            for i in range(n):
                dg[row, t, h, i] = sums[i] if g[rg, tg, hg, i] > least else 0
            if before:
                _gain(a, da, row, h, H, t, L, 1, sums)


def learn(a, da, b, db, g, last, lengths, before):
    """The gradients [B,T,H,n] of log-decays g, where `last` [B,H,n] is <G, S> behind the last token: of n keys, or 1.

    a and da are what is read and its gradient: y and dy, or q and dq; b and db what is written: v and dv, or k and dk.
    Below -104 (-746 in float64) e^g is 0, and so is its gradient.
    """
    dg, running = np.zeros((*a.shape[:2], *last.shape[1:]), last.dtype), last.copy()
    _learn(a, da, b, db, g, running, lengths, before, -104.0 if dg.itemsize == 4 else -746.0, dg)
    return dg
