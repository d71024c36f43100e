"""A sliding dot product on the CPU: y_t = sum_j w_j x_{t+j} for each channel, x being W - 1 longer than y.

Channels stand side by side in memory and the inner loop runs over them. A task takes a block of tokens and a
block of channels, so that the taps and the inputs it reads stay in the nearest cache.
"""

import numpy as np

from postx.scans.runtime import inline, jit, numba

TOKENS, CHANNELS = 64, 64


@inline
def _add_product(out, a, b):
    for d in range(out.shape[0]):
        out[d] += a[d] * b[d]


@jit
def forward(x, w):
    """x [B, W-1+T, D] and w [W, D] give y [B,T,D]."""
    B, M, D = x.shape
    W = w.shape[0]
    T = M - W + 1
    y = np.zeros((B, T, D), x.dtype)
    pieces, blocks = (T + TOKENS - 1) // TOKENS, (D + CHANNELS - 1) // CHANNELS
    for task in numba.prange(B * pieces * blocks):
        b, piece, lo = task // (pieces * blocks), task // blocks % pieces, task % blocks * CHANNELS
        hi = min(D, lo + CHANNELS)
        for t in range(piece * TOKENS, min(T, (piece + 1) * TOKENS)):
            for j in range(W):
                _add_product(y[b, t, lo:hi], w[j, lo:hi], x[b, t + j, lo:hi])
    return y


@jit
def backward(x, w, dy):
    """Gradients of x and w."""
    B, M, D = x.shape
    W = w.shape[0]
    T = M - W + 1
    dx, dw = np.zeros_like(x), np.zeros_like(w)
    pieces, blocks = (M + TOKENS - 1) // TOKENS, (D + CHANNELS - 1) // CHANNELS
    for task in numba.prange(B * pieces * blocks):
        b, piece, lo = task // (pieces * blocks), task // blocks % pieces, task % blocks * CHANNELS
        hi = min(D, lo + CHANNELS)
        for m in range(piece * TOKENS, min(M, (piece + 1) * TOKENS)):
            for j in range(max(0, m - T + 1), min(W, m + 1)):
                _add_product(dx[b, m, lo:hi], w[j, lo:hi], dy[b, m - j, lo:hi])
    for task in numba.prange(W * blocks):
        j, lo = task // blocks, task % blocks * CHANNELS
        hi = min(D, lo + CHANNELS)
        for b in range(B):
            for t in range(T):
                _add_product(dw[j, lo:hi], x[b, t + j, lo:hi], dy[b, t, lo:hi])
    return dx, dw
