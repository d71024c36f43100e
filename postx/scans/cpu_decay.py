"""The decay recurrence on the CPU: S <- diag(a) S + k v', one thread a head.

Time is cut into tiles of `TIME` tokens. A tile's q, k, a and v are copied side by side, where they stay in the first
cache; then each block of ROWS keys by WIDE values of the state passes through the tile's tokens without leaving
the registers. K is filled up to a multiple of ROWS and V to one of WIDE, with zeros, in these copies only.

An axis of size 1 in `a` broadcasts (a decay constant over time, or shared by the keys); reader head h uses head
h // (H / G) of q, k and a. Backward rebuilds the state before each tile, then works tile by tile from the last.
"""

import numpy as np

from postx.scans.lanes import LANES, fma, load, mul, number, store, total
from postx.scans.runtime import jit, numba, serial

TIME, ROWS, WIDE = 32, 4, 2 * LANES


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
    Kp, Vp, L = tq.shape[1], tv.shape[1], LANES
    S0, S1, S2, S3 = load(S, s), load(S, s + Vp), load(S, s + 2 * Vp), load(S, s + 3 * Vp)
    R0, R1, R2, R3 = load(S, s + L), load(S, s + Vp + L), load(S, s + 2 * Vp + L), load(S, s + 3 * Vp + L)
    for t in range(tokens):
        r, c = t * Kp + i, t * Vp + j
        v, y, w, z = load(tv, c), load(ty, c), load(tv, c + L), load(ty, c + L)
        q0, q1, q2, q3 = number(tq, r), number(tq, r + 1), number(tq, r + 2), number(tq, r + 3)
        if before:
            y = fma(S0, q0, fma(S1, q1, fma(S2, q2, fma(S3, q3, y))))
            z = fma(R0, q0, fma(R1, q1, fma(R2, q2, fma(R3, q3, z))))
        k, a = number(tk, r), number(ta, r)
        S0, R0 = fma(S0, a, mul(v, k)), fma(R0, a, mul(w, k))
        k, a = number(tk, r + 1), number(ta, r + 1)
        S1, R1 = fma(S1, a, mul(v, k)), fma(R1, a, mul(w, k))
        k, a = number(tk, r + 2), number(ta, r + 2)
        S2, R2 = fma(S2, a, mul(v, k)), fma(R2, a, mul(w, k))
        k, a = number(tk, r + 3), number(ta, r + 3)
        S3, R3 = fma(S3, a, mul(v, k)), fma(R3, a, mul(w, k))
        if not before:
            y = fma(S0, q0, fma(S1, q1, fma(S2, q2, fma(S3, q3, y))))
            z = fma(R0, q0, fma(R1, q1, fma(R2, q2, fma(R3, q3, z))))
        store(ty, c, y)
        store(ty, c + L, z)
    store(S, s, S0)
    store(S, s + Vp, S1)
    store(S, s + 2 * Vp, S2)
    store(S, s + 3 * Vp, S3)
    store(S, s + L, R0)
    store(S, s + Vp + L, R1)
    store(S, s + 2 * Vp + L, R2)
    store(S, s + 3 * Vp + L, R3)


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
    S, tv, ty = (
        np.zeros((1, 1, Kp, Vp), v.dtype),
        np.zeros((TIME, Vp), v.dtype),
        np.zeros((TIME, Vp), v.dtype),
    )
    tq, tk, ta = np.zeros((TIME, Kp), v.dtype), np.zeros((TIME, Kp), v.dtype), np.zeros((TIME, Kp), v.dtype)
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
def forward(q, k, v, a, S0, u, lengths, before):
    """Returns y [B,T,H,V] and the last state [B,H,K,V]; `u` [H,K] is read only where `before` is True."""
    B, H = v.shape[0], v.shape[2]
    y, last = np.zeros_like(v), np.empty_like(S0)
    for row in numba.prange(B * H):  # the work stands in a function of its own: prange's compiler is slow
        _forward_row(q, k, v, a, S0, u, lengths[row // H], before, row // H, row % H, y, last)
    return y, last


@serial
def _backward_block(S, s0, dS, s, tq, tk, ta, tv, tg, tdv, past, sums, i, j, tokens, before):
    """One key i, WIDE values from j: forward through the tile to rebuild the state, then back.

    sums[t] collects, by lane, the gradients of q_i, k_i and a_i; tdv those of the values.
    """
    Kp, Vp, L = tq.shape[1], tv.shape[1], LANES
    new, new2 = load(S, s0), load(S, s0 + L)
    for t in range(tokens):
        store(past, 2 * t * L, new)
        store(past, 2 * t * L + L, new2)
        r, c = t * Kp + i, t * Vp + j
        a, k = number(ta, r), number(tk, r)
        new, new2 = fma(new, a, mul(load(tv, c), k)), fma(new2, a, mul(load(tv, c + L), k))
    D, D2 = load(dS, s), load(dS, s + L)  # the gradient of the state after the token
    for t in range(tokens - 1, -1, -1):
        c, r, m = t * Vp + j, t * Kp + i, 3 * t * L
        grad, grad2, old, old2 = (
            load(tg, c),
            load(tg, c + L),
            load(past, 2 * t * L),
            load(past, 2 * t * L + L),
        )
        q, k, a = number(tq, r), number(tk, r), number(ta, r)
        if before:
            store(sums, m, fma(old2, grad2, fma(old, grad, load(sums, m))))
        else:
            store(sums, m, fma(new2, grad2, fma(new, grad, load(sums, m))))
            D, D2 = fma(q, grad, D), fma(q, grad2, D2)
        store(sums, m + L, fma(D2, load(tv, c + L), fma(D, load(tv, c), load(sums, m + L))))
        store(sums, m + 2 * L, fma(D2, old2, fma(D, old, load(sums, m + 2 * L))))
        store(tdv, c, fma(D, k, load(tdv, c)))
        store(tdv, c + L, fma(D2, k, load(tdv, c + L)))
        D, D2 = mul(D, a), mul(D2, a)
        if before:
            D, D2 = fma(q, grad, D), fma(q, grad2, D2)
        new, new2 = old, old2
    store(dS, s, D)
    store(dS, s + L, D2)


@serial
def _backward_row(q, k, v, a, S0, u, L, before, dy, dlast, b, h, dq, dk, dv, da, dS0, du):
    K, V, Ka = q.shape[3], v.shape[3], a.shape[3]
    Kp, Vp = (K + ROWS - 1) // ROWS * ROWS, (V + WIDE - 1) // WIDE * WIDE
    S, dS = np.zeros((1, 1, Kp, Vp), v.dtype), np.zeros((1, 1, Kp, Vp), v.dtype)
    tq, tk, ta = np.zeros((TIME, Kp), v.dtype), np.zeros((TIME, Kp), v.dtype), np.zeros((TIME, Kp), v.dtype)
    tv, tg, tdv = np.zeros((TIME, Vp), v.dtype), np.zeros((TIME, Vp), v.dtype), np.zeros((TIME, Vp), v.dtype)
    past, sums = np.empty((TIME, 2, LANES), v.dtype), np.empty((TIME, 3, LANES), v.dtype)
    kept = np.empty((1, (L + TIME - 1) // TIME, Kp, Vp), v.dtype)
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
            sums.fill(0)
            for j in range(0, Vp, WIDE):
                s = i * Vp + j
                at_kept = start // TIME * Kp * Vp + s
                _backward_block(
                    kept, at_kept, dS, s, tq, tk, ta, tv, tg, tdv, past, sums, i, j, tokens, before
                )  # fmt: skip
            for t in range(tokens):
                dq[b, start + t, h, i] = total(load(sums, 3 * LANES * t))
                dk[b, start + t, h, i] = total(load(sums, 3 * LANES * t + LANES))
                da[b, start + t, h, i if Ka > 1 else 0] += total(load(sums, 3 * LANES * t + 2 * LANES))
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
def backward(q, k, v, a, S0, u, lengths, before, dy, dlast):
    """Gradients of q, k, a for every head (to be summed over heads that share one), of v, of S0 and of u per row."""
    (B, T, H, _), K = v.shape, q.shape[3]
    dq, dk = np.zeros((B, T, H, K), v.dtype), np.zeros((B, T, H, K), v.dtype)
    dv, da = np.zeros_like(v), np.zeros((B, T, H, a.shape[3]), v.dtype)
    du, dS0 = np.zeros((B, H, K), v.dtype), np.empty_like(dlast)
    for row in numba.prange(B * H):
        b, h = row // H, row % H
        _backward_row(q, k, v, a, S0, u, lengths[b], before, dy, dlast, b, h, dq, dk, dv, da, dS0, du)
    return dq, dk, dv, da, dS0, du
