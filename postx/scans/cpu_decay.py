"""The decay recurrence on the CPU: S <- diag(a) S + k v', one thread a head, the state in the cache all along.

Arrays are contiguous. An axis of size 1 in `a` broadcasts (a decay constant over time, or shared by the keys);
reader head h uses head h // (H / G) of q, k and a. The backward pass keeps a copy of the state every `BLOCK`
tokens and rebuilds the ones in between, so its memory grows with T / BLOCK, not with T.
"""

import numpy as np

from postx.scans.runtime import inline, jit, numba

BLOCK = 64


@inline
def _decay_at(a, b, t, h, H):
    """The decay factors of one token: an array of 1 or K entries."""
    return a[b if a.shape[0] > 1 else 0, t if a.shape[1] > 1 else 0, h * a.shape[2] // H]


@inline
def _update(S, a, k, v):
    for i in range(S.shape[0]):
        keep = a[i if a.shape[0] > 1 else 0]
        ki = k[i]
        for j in range(S.shape[1]):
            S[i, j] = keep * S[i, j] + ki * v[j]


@jit
def forward(q, k, v, a, S0, u, lengths, before):
    """Returns y [B,T,H,V] and the last state [B,H,K,V]; `u` [H,K] is read only where `before` is True."""
    B, T, H, V = v.shape
    K = q.shape[3]
    y = np.zeros_like(v)
    last = S0.copy()
    for row in numba.prange(B * H):
        b, h = row // H, row % H
        S = last[b, h]
        hq, hk = h * q.shape[2] // H, h * k.shape[2] // H
        for t in range(lengths[b]):
            at, qt, kt, vt, yt = _decay_at(a, b, t, h, H), q[b, t, hq], k[b, t, hk], v[b, t, h], y[b, t, h]
            if before:
                for i in range(K):
                    qi, keep, ki = qt[i], at[i if at.shape[0] > 1 else 0], kt[i]
                    own = qi * u[h, i] * ki
                    for j in range(V):
                        yt[j] += qi * S[i, j] + own * vt[j]
                        S[i, j] = keep * S[i, j] + ki * vt[j]
            else:
                for i in range(K):
                    qi, keep, ki = qt[i], at[i if at.shape[0] > 1 else 0], kt[i]
                    for j in range(V):
                        S[i, j] = keep * S[i, j] + ki * vt[j]
                        yt[j] += qi * S[i, j]
    return y, last


@jit
def backward(q, k, v, a, S0, u, lengths, before, dy, dlast):
    """Gradients of q, k, a for every head (to be summed over heads that share one), of v, of S0 and of u per row."""
    B, T, H, V = v.shape
    K, Ka = q.shape[3], a.shape[3]
    dq, dk = np.zeros((B, T, H, K), v.dtype), np.zeros((B, T, H, K), v.dtype)
    dv, da = np.zeros_like(v), np.zeros((B, T, H, Ka), v.dtype)
    du, dS0 = np.zeros((B, H, K), v.dtype), dlast.copy()
    for row in numba.prange(B * H):
        b, h = row // H, row % H
        L = lengths[b]
        blocks = (L + BLOCK - 1) // BLOCK
        hq, hk = h * q.shape[2] // H, h * k.shape[2] // H
        kept = np.empty((blocks, K, V), v.dtype)
        S = S0[b, h].copy()
        for t in range(L):
            if t % BLOCK == 0:
                kept[t // BLOCK] = S
            _update(S, _decay_at(a, b, t, h, H), k[b, t, hk], v[b, t, h])
        states = np.empty((BLOCK, K, V), v.dtype)  # states[i] is S before token start + i
        dS = dS0[b, h]
        for block in range(blocks - 1, -1, -1):
            start, stop = block * BLOCK, min(L, (block + 1) * BLOCK)
            states[0] = kept[block]
            for t in range(start, stop - 1):
                states[t - start + 1] = states[t - start]
                _update(states[t - start + 1], _decay_at(a, b, t, h, H), k[b, t, hk], v[b, t, h])
            for t in range(stop - 1, start - 1, -1):
                old, at = states[t - start], _decay_at(a, b, t, h, H)
                qt, kt, vt, gt = q[b, t, hq], k[b, t, hk], v[b, t, h], dy[b, t, h]
                dvt = dv[b, t, h]
                vg = v.dtype.type(0)
                for j in range(V):
                    vg += vt[j] * gt[j]
                for i in range(K):
                    qi, ki, keep = qt[i], kt[i], at[i if Ka > 1 else 0]
                    dqi, dki, dai = v.dtype.type(0), v.dtype.type(0), v.dtype.type(0)
                    if before:
                        ui = u[h, i]
                        for j in range(V):
                            dqi += old[i, j] * gt[j]
                            dki += dS[i, j] * vt[j]
                            dai += dS[i, j] * old[i, j]
                            dvt[j] += ki * dS[i, j] + qi * ui * ki * gt[j]
                            dS[i, j] = keep * dS[i, j] + qi * gt[j]
                        dqi += ui * ki * vg
                        dki += ui * qi * vg
                        du[b, h, i] += qi * ki * vg
                    else:
                        for j in range(V):
                            d = dS[i, j] + qi * gt[j]
                            dqi += (keep * old[i, j] + ki * vt[j]) * gt[j]
                            dki += d * vt[j]
                            dai += d * old[i, j]
                            dvt[j] += ki * d
                            dS[i, j] = keep * d
                    dq[b, t, h, i], dk[b, t, h, i] = dqi, dki
                    da[b, t, h, i if Ka > 1 else 0] += dai
    return dq, dk, dv, da, dS0, du
