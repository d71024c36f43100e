"""The decay recurrence on the CPU: S <- diag(a) S + k v', one thread a head.

Time is cut into tiles of `TIME` tokens. A tile's q, k, a and v are copied side by side, where they stay in the first
cache; then each block of ROWS keys by WIDE values of the state passes through the tile's tokens without leaving
the registers. K is filled up to a multiple of ROWS and V to one of WIDE, with zeros, in these copies only.

An axis of size 1 in `a` broadcasts (a decay constant over time, or shared by the keys); reader head h uses head
h // (H / G) of q, k and a. Backward rebuilds the state before each tile, then works tile by tile from the last.
"""

import numpy as np

from postx.scans.lanes import LANES, add, dot, fma, load, load2, mul, number, room, store, totals, zeros
from postx.scans.runtime import jit, numba, serial

TIME, ROWS, WIDE = 32, 4, 2 * LANES


@serial
def _tile(width, like):
    return zeros(TIME * width, like).reshape(TIME, width)


@serial
def _copy_tile(q, k, v, a, b, h, start, tokens, tq, tk, tv, ta):
    """q, k, v and a of one head and one tile, each [TIME, padded width]; a is spread over the keys."""
    H, K, V = v.shape[2], q.shape[3], v.shape[3]
    hq, hk, ha = h * q.shape[2] // H, h * k.shape[2] // H, h * a.shape[2] // H
    ba, every_token, every_key = min(b, a.shape[0] - 1), a.shape[1] > 1, a.shape[3] > 1
    for t in range(tokens):
        at = start + t
        for i in range(K):
            tq[t, i] = q[b, at, hq, i]
        for i in range(K):
            tk[t, i] = k[b, at, hk, i]
        for j in range(V):
            tv[t, j] = v[b, at, h, j]
        at = at if every_token else 0
        for i in range(K):
            ta[t, i] = a[ba, at, ha, i if every_key else 0]


@serial
def _forward_block(S, s, tq, tk, ta, tv, ty, i, j, tokens, before):
    """ROWS keys from i, WIDE values from j, through one tile: the state in S at s, the output added to ty."""
    stride, Vp = tq.shape[1], tv.shape[1]
    S0, S1, S2, S3 = load2(S, s), load2(S, s + Vp), load2(S, s + 2 * Vp), load2(S, s + 3 * Vp)
    for t in range(tokens):
        r, c = t * stride + i, t * Vp + j
        v, y = load2(tv, c), load2(ty, c)
        q0, q1, q2, q3 = number(tq, r), number(tq, r + 1), number(tq, r + 2), number(tq, r + 3)
        if before:
            y = fma(S0, q0, fma(S1, q1, fma(S2, q2, fma(S3, q3, y))))
        S0 = fma(S0, number(ta, r), mul(v, number(tk, r)))
        S1 = fma(S1, number(ta, r + 1), mul(v, number(tk, r + 1)))
        S2 = fma(S2, number(ta, r + 2), mul(v, number(tk, r + 2)))
        S3 = fma(S3, number(ta, r + 3), mul(v, number(tk, r + 3)))
        if not before:
            y = fma(S0, q0, fma(S1, q1, fma(S2, q2, fma(S3, q3, y))))
        store(ty, c, y)
    store(S, s, S0)
    store(S, s + Vp, S1)
    store(S, s + 2 * Vp, S2)
    store(S, s + 3 * Vp, S3)


@serial
def _forward_tile(S, tq, tk, ta, tv, ty, tokens, before):
    for i in range(0, S.shape[2], ROWS):
        for j in range(0, S.shape[3], WIDE):
            _forward_block(S, i * S.shape[3] + j, tq, tk, ta, tv, ty, i, j, tokens, before)


@serial
def _copy(source, b, h, target, c, d):
    """The part of one [K, V] state that two arrays share, number by number: slices take seconds to compile."""
    for i in range(min(source.shape[2], target.shape[2])):
        for j in range(min(source.shape[3], target.shape[3])):
            target[c, d, i, j] = source[b, h, i, j]


@serial
def _own_weight(tq, tk, u, h, t):
    """sum_i q u k: with the bonus, the weight of a token's own value."""
    weight = tq.dtype.type(0)
    for i in range(u.shape[1]):
        weight += tq[t, i] * u[h, i] * tk[t, i]
    return weight


@serial
def _forward_row(q, k, v, a, S0, u, length, before, b, h, y, last):
    K, V = q.shape[3], v.shape[3]
    Kp, Vp = (K + ROWS - 1) // ROWS * ROWS, (V + WIDE - 1) // WIDE * WIDE
    S, tv, ty = zeros(Kp * Vp, v).reshape(1, 1, Kp, Vp), _tile(Vp, v), _tile(Vp, v)
    tq, tk, ta = _tile(Kp + LANES, v), _tile(Kp + LANES, v), _tile(Kp + LANES, v)
    _copy(S0, b, h, S, 0, 0)
    for start in range(0, length, TIME):
        tokens = min(TIME, length - start)
        _copy_tile(q, k, v, a, b, h, start, tokens, tq, tk, tv, ta)
        ty.fill(0)
        _forward_tile(S, tq, tk, ta, tv, ty, tokens, before)
        for t in range(tokens):
            own = _own_weight(tq, tk, u, h, t) if before else v.dtype.type(0)
            for j in range(V):
                y[b, start + t, h, j] = ty[t, j] + own * tv[t, j]
    _copy(S, 0, 0, last, b, h)


@jit
def _forward(q, k, v, a, S0, u, lengths, before, y, last):
    H = v.shape[2]
    for row in numba.prange(v.shape[0] * H):  # the work stands in a function of its own: prange's compiler is slow
        _forward_row(q, k, v, a, S0, u, lengths[row // H], before, row // H, row % H, y, last)


def forward(q, k, v, a, S0, u, lengths, before):
    """Returns y [B,T,H,V] and the last state [B,H,K,V]; `u` [H,K] is read only where `before` is True."""
    # Allocated out here: numba would compile a parallel loop for each, and numpy asks for large pages of memory.
    y, last = np.zeros_like(v), np.empty_like(S0)
    _forward(q, k, v, a, S0, u, lengths, before, y, last)
    return y, last


@serial
def _backward_block(S, s0, dS, s, tq, tk, ta, tv, tg, tdv, past, sums, i, j, tokens, before):
    """One key i, WIDE values from j: forward through the tile to rebuild the state, then back.

    The gradients of q_i, k_i and a_i are added to `sums`, TIME tokens each, by lane; those of the values to tdv.
    """
    stride, Vp = tq.shape[1], tv.shape[1]
    new = load2(S, s0)
    for t in range(tokens):
        store(past, t * WIDE, new)
        r = t * stride + i
        new = fma(new, number(ta, r), mul(load2(tv, t * Vp + j), number(tk, r)))
    D = load2(dS, s)  # the gradient of the state after the token
    for t in range(tokens - 1, -1, -1):
        c, r, m = t * Vp + j, t * stride + i, t * LANES
        v, grad, old, q = load2(tv, c), load2(tg, c), load2(past, t * WIDE), number(tq, r)
        store(sums, m, add(load(sums, m), dot(old if before else new, grad)))
        if not before:
            D = fma(grad, q, D)
        store(sums, m + TIME * LANES, add(load(sums, m + TIME * LANES), dot(D, v)))
        store(sums, m + 2 * TIME * LANES, add(load(sums, m + 2 * TIME * LANES), dot(D, old)))
        store(tdv, c, fma(D, number(tk, r), load2(tdv, c)))
        D = mul(D, number(ta, r))
        if before:
            D = fma(grad, q, D)
        new = old
    store(dS, s, D)


@serial
def _write_grads(tile, part, out, b, start, tokens, h):
    """out[b, start + t, h] <- the tile's column t, or its sum where out has a single entry."""
    for t in range(tokens):
        row = out[b, start + t, h]
        if row.shape[0] == tile.shape[1]:
            for i in range(row.shape[0]):
                row[i] = tile[part, i, t]
        else:
            for i in range(tile.shape[1]):
                row[0] += tile[part, i, t]


@serial
def _backward_row(q, k, v, a, S0, u, L, before, dy, dlast, b, h, dq, dk, dv, da, dS0, du):
    K, V = q.shape[3], v.shape[3]
    Kp, Vp = (K + ROWS - 1) // ROWS * ROWS, (V + WIDE - 1) // WIDE * WIDE
    S, dS = zeros(Kp * Vp, v).reshape(1, 1, Kp, Vp), zeros(Kp * Vp, v).reshape(1, 1, Kp, Vp)
    tq, tk, ta = _tile(Kp + LANES, v), _tile(Kp + LANES, v), _tile(Kp + LANES, v)
    tv, tg, tdv = _tile(Vp, v), _tile(Vp, v), _tile(Vp, v)
    past, sums = room(TIME * WIDE, v), room(3 * TIME * LANES, v)
    grads = np.empty((3, K, TIME), v.dtype)  # of q, k and a; token by token only when they leave
    tiles = (L + TIME - 1) // TIME
    kept = room(tiles * Kp * Vp, v).reshape(1, tiles, Kp, Vp)
    _copy(S0, b, h, S, 0, 0)
    _copy(dlast, b, h, dS, 0, 0)
    for start in range(0, L, TIME):
        _copy(S, 0, 0, kept, 0, start // TIME)
        if start + TIME < L:
            _copy_tile(q, k, v, a, b, h, start, TIME, tq, tk, tv, ta)
            _forward_tile(S, tq, tk, ta, tv, tdv, TIME, before)
    for start in range((L - 1) // TIME * TIME, -1, -TIME):
        tokens = min(TIME, L - start)
        _copy_tile(q, k, v, a, b, h, start, tokens, tq, tk, tv, ta)
        for t in range(tokens):
            for j in range(V):
                tg[t, j] = dy[b, start + t, h, j]
        tdv.fill(0)
        for i in range(K):
            for m in range(sums.shape[0]):
                sums[m] = 0
            for j in range(0, Vp, WIDE):
                s = i * Vp + j
                at_kept = start // TIME * Kp * Vp + s
                _backward_block(
                    kept, at_kept, dS, s, tq, tk, ta, tv, tg, tdv, past, sums, i, j, tokens, before
                )  # fmt: skip
            for part in range(3):
                for t in range(0, TIME, LANES):
                    found = totals(sums, (part * TIME + t) * LANES)
                    store(grads, (part * K + i) * TIME + t, found)
        _write_grads(grads, 0, dq, b, start, tokens, h)
        _write_grads(grads, 1, dk, b, start, tokens, h)
        _write_grads(grads, 2, da, b, start, tokens, h)
        for t in range(tokens):
            own, vg = v.dtype.type(0), v.dtype.type(0)
            if before:  # the token's own value, read through the bonus
                own = _own_weight(tq, tk, u, h, t)
                for j in range(V):
                    vg += tv[t, j] * tg[t, j]
                for i in range(K):
                    dq[b, start + t, h, i] += u[h, i] * tk[t, i] * vg
                    dk[b, start + t, h, i] += u[h, i] * tq[t, i] * vg
                    du[b, h, i] += tq[t, i] * tk[t, i] * vg
            for j in range(V):
                dv[b, start + t, h, j] = tdv[t, j] + own * tg[t, j]
    _copy(dS, 0, 0, dS0, b, h)


@jit
def _backward(q, k, v, a, S0, u, lengths, before, dy, dlast, dq, dk, dv, da, dS0, du):
    H = v.shape[2]
    for row in numba.prange(v.shape[0] * H):
        b, h = row // H, row % H
        _backward_row(q, k, v, a, S0, u, lengths[b], before, dy, dlast, b, h, dq, dk, dv, da, dS0, du)


def backward(q, k, v, a, S0, u, lengths, before, dy, dlast):
    """Gradients of q, k, a for every head (to be summed over heads that share one), of v, of S0 and of u per row."""
    (B, T, H, _), K = v.shape, q.shape[3]
    dq, dk, da = (np.zeros((B, T, H, size), v.dtype) for size in (K, K, a.shape[3]))
    dv, du, dS0 = np.zeros_like(v), np.zeros((B, H, K), v.dtype), np.empty_like(dlast)
    _backward(q, k, v, a, S0, u, lengths, before, dy, dlast, dq, dk, dv, da, dS0, du)
    return dq, dk, dv, da, dS0, du
