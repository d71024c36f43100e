"""The log-space recurrence on the CPU: a decayed running softmax per channel, (numerator, denominator, maximum).

Channels are taken in blocks that are contiguous in memory. Backward replays the block's states, which are three
numbers a channel.
"""

import math

import numpy as np

from postx.scans.runtime import jit, numba

BLOCK = 16  # channels a task takes: one cache line of float32


@jit
def forward(s, v, g, u, num0, den0, top0, lengths, bonus):
    """Returns y [B,T,D] and the last (num, den, top), each [B,D]; `u` is read only where `bonus` is True."""
    B, T, D = s.shape
    y = np.zeros_like(v)
    num, den, top = num0.copy(), den0.copy(), top0.copy()
    tasks = (D + BLOCK - 1) // BLOCK
    for task in numba.prange(B * tasks):
        b, first = task // tasks, task % tasks * BLOCK
        for t in range(lengths[b]):
            for d in range(first, min(D, first + BLOCK)):
                x, w = s[b, t, d], v[b, t, d]
                if bonus:
                    peak = max(top[b, d], u[d] + x)
                    old, own = math.exp(top[b, d] - peak), math.exp(u[d] + x - peak)
                    y[b, t, d] = (old * num[b, d] + own * w) / (old * den[b, d] + own)
                new = max(top[b, d] + g[d], x)
                keep, add = math.exp(top[b, d] + g[d] - new), math.exp(x - new)
                num[b, d], den[b, d] = keep * num[b, d] + add * w, keep * den[b, d] + add
                top[b, d] = new
                if not bonus:
                    y[b, t, d] = num[b, d] / den[b, d]
    return y, num, den, top


@jit
def backward(s, v, g, u, num0, den0, top0, lengths, bonus, dy, dnum_last, dden_last):
    """Gradients of s and v [B,T,D], of g and u per row [B,D], of num0 and den0. The maximum carries none."""
    B, T, D = s.shape
    ds, dv = np.zeros_like(v), np.zeros_like(v)
    dg, du = np.zeros_like(num0), np.zeros_like(num0)
    dnum, dden = dnum_last.copy(), dden_last.copy()
    for row in numba.prange(B * D):
        b, d = row // D, row % D
        L = lengths[b]
        states = np.empty((3, L + 1), v.dtype)
        states[0, 0], states[1, 0], states[2, 0] = num0[b, d], den0[b, d], top0[b, d]
        for t in range(L):
            num, den, top, x = states[0, t], states[1, t], states[2, t], s[b, t, d]
            new = max(top + g[d], x)
            keep, add = math.exp(top + g[d] - new), math.exp(x - new)
            states[0, t + 1], states[1, t + 1] = keep * num + add * v[b, t, d], keep * den + add
            states[2, t + 1] = new
        n, m = dnum[b, d], dden[b, d]
        for t in range(L - 1, -1, -1):
            num, den, top, new = states[0, t], states[1, t], states[2, t], states[2, t + 1]
            x, w, grad = s[b, t, d], v[b, t, d], dy[b, t, d]
            if not bonus:  # y reads the new state
                n += grad / states[1, t + 1]
                m -= grad * states[0, t + 1] / states[1, t + 1] ** 2
            keep, add = math.exp(top + g[d] - new), math.exp(x - new)
            ds[b, t, d] = add * (w * n + m)
            dv[b, t, d] = add * n
            dg[b, d] += keep * (num * n + den * m)
            n, m = keep * n, keep * m
            if bonus:  # y read the old state and the token itself
                peak = max(top, u[d] + x)
                old, own = math.exp(top - peak), math.exp(u[d] + x - peak)
                below = old * den + own
                out = (old * num + own * w) / below
                dn, dm = grad / below, -grad * out / below
                n += old * dn
                m += old * dm
                token = own * (w * dn + dm)
                ds[b, t, d] += token
                du[b, d] += token
                dv[b, t, d] += own * dn
        dnum[b, d], dden[b, d] = n, m
    return ds, dv, dg, du, dnum, dden
