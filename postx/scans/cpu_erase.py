"""The delta recurrence on the CPU with one decay a head or none: S <- e^g S - k (beta k'S) + k v', tile by tile.

The table is kept without its decay, as in `cpu_decay`, and passes through a tile's tokens in registers in the same way
once it is known what each token erases. Walk through positions p; of the token one position late let a be its decay,
k its key and beta its rate; r_p is what position p finds in the table:

    S <- a S + k u'    with u = v - beta r_(p-1)        r_p = S' k_p

Within a tile that begins at S, r_p = e^(x_p) (S'k_p + sum over j <= p of (k_p'k_(j, late)) e^(-x_j) u_j): the products
with S and those of the keys are matrix products, and the rest is a triangle, solved row by row (the WY or UT transform:
Bischof and Van Loan 1987; Yang et al. 2024, arXiv 2406.06484, section 3.2). The outputs are S'q of the late token.

Reversed, with G the gradient of the table behind a token, the same walk finds the gradient of what each token writes:

    G <- a G - k (beta du_(p-1))' + q_p dy_p'           du_p = G' k_p
"""

import numpy as np

from postx.scans.cpu_tiles import (
    ROWS,
    WIDE,
    block,
    copy,
    factors,
    fetch,
    filled,
    give,
    outputs,
    place,
    together,
)
from postx.scans.lanes import LANES, fma, load2, mul, number, store, zeros
from postx.scans.runtime import jit, numba, serial

TIME = WIDE  # so that the products of a tile's keys are one register wide

@serial
def _products(x, at, stride, n, w, j, out, to):
    """out [.., WIDE] <- four rows of x, n numbers each, times WIDE columns of w from j on."""
    wide, step = w.shape[1], out.shape[1]
    v = load2(w, j)
    y0, y1 = mul(v, number(x, at)), mul(v, number(x, at + stride))
    y2, y3 = mul(v, number(x, at + 2 * stride)), mul(v, number(x, at + 3 * stride))
    for i in range(1, n):
        v, a = load2(w, i * wide + j), at + i
        y0, y1 = fma(v, number(x, a), y0), fma(v, number(x, a + stride), y1)
        y2, y3 = fma(v, number(x, a + 2 * stride), y2), fma(v, number(x, a + 3 * stride), y3)
    store(out, to, y0)
    store(out, to + step, y1)
    store(out, to + 2 * step, y2)
    store(out, to + 3 * step, y3)


@serial
def _block2(S, s, keep, tk, tu, tq, tv, i, j, begin, end):
    """`cpu_tiles.block` with two rows written a position, k u' and q v', and none read."""
    stride, Vp = tq.shape[1], tv.shape[1]
    S0, S1 = mul(load2(S, s), keep), mul(load2(S, s + Vp), keep)
    S2, S3 = mul(load2(S, s + 2 * Vp), keep), mul(load2(S, s + 3 * Vp), keep)
    for t in range(begin, end):
        r, at = t * stride + i, t * Vp + j
        u, v = load2(tu, at), load2(tv, at)
        S0, S1 = fma(u, number(tk, r), S0), fma(u, number(tk, r + 1), S1)
        S2, S3 = fma(u, number(tk, r + 2), S2), fma(u, number(tk, r + 3), S3)
        S0, S1 = fma(v, number(tq, r), S0), fma(v, number(tq, r + 1), S1)
        S2, S3 = fma(v, number(tq, r + 2), S2), fma(v, number(tq, r + 3), S3)
    store(S, s, S0)
    store(S, s + Vp, S1)
    store(S, s + 2 * Vp, S2)
    store(S, s + 3 * Vp, S3)


@serial
def _turn(tile, rows, n, out):
    """out[i, t] <- tile[t, i]."""
    for t in range(rows):
        for i in range(n):
            out[i, t] = tile[t, i]


@serial
def _find(R, pairs, extra, read, keep, rates, tv, tu, given, found, begin, end, reverse):
    """What positions begin to end find, row by row in R, which holds S'k; tu gets u, and `found` is the last one's.

    pairs [TIME, TIME] are k_p'k_(j, late) e^(-x_j); in the reversed walk `extra` are k_p'q_j e^(-x_j), `given` is dy.
    """
    Vp = tu.shape[1]
    for p in range(begin, end):
        f, rate = read[p, 0], -rates[p]
        for j in range(p * Vp, (p + 1) * Vp, WIDE):
            u, r = mul(load2(found, j - p * Vp), rate), mul(load2(R, j), keep)
            if reverse:
                for i in range(begin, p + 1):
                    r = fma(load2(given, j + (i - p) * Vp), number(extra, p * TIME + i), r)
            else:
                u = fma(load2(tv, j), 1, u)
            store(tu, j, u)
            for i in range(begin, p + 1):
                r = fma(load2(tu, j + (i - p) * Vp), number(pairs, p * TIME + i), r)
            r = mul(r, f)
            store(R, j, r)
            store(found, j - p * Vp, r)


@serial
def _task(q, k, v, beta, g, S, row, h0, h1, L, reverse, out, written):
    """Heads h0 to h1. out gets y, or du where `reverse` (then v is dy); `written` gets u, if it has room."""
    H, K, V = S.shape[1:]
    heads, late = h1 - h0, 0 if reverse else 1
    Kp, Vp = (K + ROWS - 1) // ROWS * ROWS, (V + WIDE - 1) // WIDE * WIDE
    stride = Kp + LANES
    table, x = zeros(heads * Kp * Vp, v).reshape(heads, Kp, Vp), zeros(heads, v).reshape(heads, 1)
    found = zeros(heads * Vp, v).reshape(heads, Vp)
    keys, tk, tq = filled((TIME + ROWS, stride), 0, v), filled((TIME, stride), 0, v), filled((TIME, stride), 0, v)
    tv, tu, ty = filled((TIME, Vp), 0, v), filled((TIME, Vp), 0, v), filled((TIME, Vp), 0, v)
    outs = ty.reshape(-1)
    R, rates = filled((TIME + ROWS, Vp), 0, v), zeros(TIME, v)
    turned, pairs, extra = filled((K, TIME), 0, v), filled((TIME, TIME), 0, v), filled((TIME, TIME), 0, v)
    read, write, keep = filled((TIME, 1), 1, v), filled((TIME, 1), 1, v), filled((TIME, 1), 1, v)
    one, rows, lanes = filled((TIME + 1, 1), 1, v), zeros(Kp, v), filled((1, Vp), 1, v).ravel()
    cuts = np.empty(TIME + 1, np.int64)
    for s in range(heads):
        for i in range(K):
            for j in range(V):
                table[s, i, j] = S[row, h0 + s, i, j]
    for start in range(0, L + 1, TIME):
        tokens = min(TIME, L + 1 - start)
        for s in range(heads):
            h = h0 + s
            hg, hq, hk, hb = h * g.shape[2] // H, h * q.shape[2] // H, h * k.shape[2] // H, h * beta.shape[2] // H
            count = factors(g, row, hg, start, tokens, L, 1, reverse, x[s], read, write, keep, cuts)
            copy(k, row, hk, start - 1, tokens + 1, L, reverse, 0, K, one, keys)  # row t + 1 is position t's
            copy(k, row, hk, start - 1, tokens, L, reverse, 0, K, write, tk)
            copy(q, row, hq, start - late, tokens, L, reverse, 0, K, write if reverse else read, tq)
            copy(v, row, h, start - late, tokens, L, reverse, 0, V, one, tv)
            for t in range(tokens):
                at = place(beta, row, hb, start - 1, t, L, reverse)
                rates[t] = 0 if at < 0 else number(beta, at)
            for part in (q, k, v, out):
                fetch(part, row, h0, h1, H, start + TIME, s * TIME // heads, (s + 1) * TIME // heads, L, reverse)
            _turn(tk, tokens, K, turned)
            for p in range(0, tokens, ROWS):
                _products(keys, (p + 1) * stride, stride, K, turned, 0, pairs, p * TIME)
            if reverse:
                _turn(tq, tokens, K, turned)
                for p in range(0, tokens, ROWS):
                    _products(keys, (p + 1) * stride, stride, K, turned, 0, extra, p * TIME)
            for i in range(ty.size):
                outs[i] = 0
            for c in range(count):
                begin, end, kept = cuts[c], cuts[c + 1], keep[c, 0]
                for j in range(0, Vp, WIDE):
                    for p in range(begin, end, ROWS):
                        _products(keys, (p + 1) * stride, stride, K, table[s], j, R, p * Vp + j)
                _find(R, pairs, extra, read, kept, rates, tv, tu, tv, found[s], begin, end, reverse)
                rows[:] = kept
                for j in range(0, Vp, WIDE):
                    for i in range(0, Kp, ROWS):
                        at = (s * Kp + i) * Vp + j
                        if reverse:
                            _block2(table, at, kept, tk, tu, tq, tv, i, j, begin, end)
                        else:
                            block(table, at, rows, lanes, tq, tk, tu, ty, i, j, begin, end)
            give(R if reverse else ty, one, out, row, h, start - late, tokens, L, reverse, 0, V, True)
            if written.shape[0] > 0:
                give(tu, one, written, row, h, start - 1, tokens, L, reverse, 0, V, True)
    for s in range(heads):
        rows[0] = np.exp(x[s, 0])
        for i in range(K):
            for j in range(V):
                S[row, h0 + s, i, j] = table[s, i, j] * rows[0]


@jit
def _walk(q, k, v, beta, g, S, lengths, reverse, size, out, written):
    H = S.shape[1]
    parts = (H + size - 1) // size
    for task in numba.prange(v.shape[0] * parts):
        row, h0 = task // parts, task % parts * size
        _task(q, k, v, beta, g, S, row, h0, min(H, h0 + size), lengths[row], reverse, out, written)


def walk(q, k, v, beta, g, S, lengths, threads, *, reverse=False, keep=False):
    """Returns y [B,T,H,V], the last state, and u [B,T,H,V] if `keep`; or du, the first state's gradient, and nothing.

    g is the log-decay [B|1,T|1,G,1] and beta [B,T,G,1]; reversed, v is dy and S the gradient of the last state.
    """
    (B, T, H, V), S = v.shape, S.copy()
    out, written = (outputs(v, T, lengths, n, T, H, V) for n in (B, B if keep else 0))
    size = together(H, 1, S.shape[2] * V, threads)
    _walk(q, k, v, beta, g, S, lengths, reverse, size, out, written)
    return out, S, written
