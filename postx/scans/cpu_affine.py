"""The affine recurrence on the CPU: h <- a h + b for each channel on its own, every h an output.

Channels stand side by side in memory, so the inner loop runs over them, a vector register at a time; a task takes
`BLOCK` of them through all tokens. Backward needs no state of its own: the outputs are the states.
"""

import numpy as np

from postx.scans.runtime import jit, numba

BLOCK = 64


@jit
def forward(a, b, h0, lengths):
    """Returns h [B,T,D], 0 past each row's length, and the last h [B,D]."""
    B, T, D = b.shape
    y, last = np.zeros_like(b), h0.copy()
    tasks = (D + BLOCK - 1) // BLOCK
    for task in numba.prange(B * tasks):
        row, lo = task // tasks, task % tasks * BLOCK
        hi = min(D, lo + BLOCK)
        h = last[row, lo:hi]
        for t in range(lengths[row]):
            at, bt, yt = a[row, t, lo:hi], b[row, t, lo:hi], y[row, t, lo:hi]
            for d in range(hi - lo):
                h[d] = at[d] * h[d] + bt[d]
                yt[d] = h[d]
    return y, last


@jit
def backward(a, y, h0, lengths, dy, dlast):
    """Gradients of a and b [B,T,D] and of h0 [B,D], from the outputs y of `forward`."""
    B, T, D = y.shape
    da, db, dh0 = np.zeros_like(y), np.zeros_like(y), dlast.copy()
    tasks = (D + BLOCK - 1) // BLOCK
    for task in numba.prange(B * tasks):
        row, lo = task // tasks, task % tasks * BLOCK
        hi = min(D, lo + BLOCK)
        dh = dh0[row, lo:hi]
        for t in range(lengths[row] - 1, -1, -1):
            before = y[row, t - 1, lo:hi] if t > 0 else h0[row, lo:hi]
            at, dyt, dat, dbt = a[row, t, lo:hi], dy[row, t, lo:hi], da[row, t, lo:hi], db[row, t, lo:hi]
            for d in range(hi - lo):
                g = dh[d] + dyt[d]
                dbt[d] = g
                dat[d] = g * before[d]
                dh[d] = g * at[d]
    return da, db, dh0
