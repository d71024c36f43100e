"""The fused solver of `liquid` on a CPU, forward and backward: a row of the batch is a task, neurons the inner loop.

Forward keeps the state after every token. Backward runs a token's unfolds again from the state before it and walks them
in reverse, so memory is T D and not T D unfolds.
"""

import numpy as np
import torch
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from postx.scans.runtime import inline, jit, numba


@inline
def _gates(h, u, r, sigma):
    """sigma <- sigmoid(u + R'h)."""
    D = len(h)
    for d in range(D):
        sigma[d] = u[d]
    for k in range(D):
        for d in range(D):
            sigma[d] += h[k] * r[k, d]
    for d in range(D):
        sigma[d] = 1 / (1 + np.exp(-sigma[d]))


@jit
def forward(u, dt, r, delta, A, peak, h0, unfolds):
    """The state after every token [B,T,D]."""
    B, T, D = u.shape
    y = np.empty_like(u)
    for row in numba.prange(B):
        h, sigma = h0[row].copy(), np.empty(D, u.dtype)
        for t in range(T):
            s = dt[row, t] / unfolds
            for _ in range(unfolds):
                _gates(h, u[row, t], r, sigma)
                for d in range(D):
                    f = peak[d] * sigma[d]
                    h[d] = (h[d] + s * f * A[d]) / (1 + s * (delta[d] + f))
            y[row, t] = h
    return y


@jit
def backward(u, dt, r, delta, A, peak, h0, unfolds, y, dy, dlast):
    """Gradients of u, dt, and for each row of r, delta, A, peak and h0, from the outputs y of `forward`."""
    B, T, D = u.shape
    du, ddt, dr = np.zeros_like(u), np.zeros_like(dt), np.zeros((B, D, D), u.dtype)
    small, dh0 = np.zeros((B, 3, D), u.dtype), dlast.copy()  # delta, A, peak
    for row in numba.prange(B):
        hs, sigmas = np.empty((unfolds + 1, D), u.dtype), np.empty((unfolds, D), u.dtype)
        g, dz = dh0[row], np.empty(D, u.dtype)
        for t in range(T - 1, -1, -1):
            s, ds = dt[row, t] / unfolds, 0.0
            hs[0] = y[row, t - 1] if t > 0 else h0[row]
            for i in range(unfolds):
                _gates(hs[i], u[row, t], r, sigmas[i])
                for d in range(D):
                    f = peak[d] * sigmas[i, d]
                    hs[i + 1, d] = (hs[i, d] + s * f * A[d]) / (1 + s * (delta[d] + f))
            for d in range(D):
                g[d] += dy[row, t, d]
            for i in range(unfolds - 1, -1, -1):
                for d in range(D):
                    sigma = sigmas[i, d]
                    f = peak[d] * sigma
                    top = g[d] / (1 + s * (delta[d] + f))  # gradient of the numerator
                    low = -top * hs[i + 1, d]  # and of the denominator
                    df = s * (top * A[d] + low)
                    ds += top * f * A[d] + low * (delta[d] + f)
                    small[row, 0, d] += low * s
                    small[row, 1, d] += top * s * f
                    small[row, 2, d] += df * sigma
                    dz[d] = df * f * (1 - sigma)
                    du[row, t, d] += dz[d]
                    g[d] = top
                for k in range(D):
                    total = g[k] * 0
                    for d in range(D):
                        total += r[k, d] * dz[d]
                        dr[row, k, d] += hs[i, k] * dz[d]
                    g[k] += total
            ddt[row, t] = ds / unfolds
    return du, ddt, dr, small, dh0


class Fused(Function):
    """(u_BTD, dt_BT, r_DD, delta_D, A_D, peak_D, h_BD, unfolds) -> (y_BTD, h_BD)."""

    @staticmethod
    def forward(ctx, u, dt, r, delta, A, peak, h, unfolds):
        inputs = [x.detach().contiguous().numpy() for x in (u, dt, r, delta, A, peak, h)]
        y = torch.from_numpy(forward(*inputs, unfolds))
        ctx.save_for_backward(u, dt, r, delta, A, peak, h, y)
        ctx.unfolds = unfolds
        return y, y[:, -1].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx, dy, dlast):
        *inputs, y = (x.detach().contiguous().numpy() for x in ctx.saved_tensors)
        grads = backward(*inputs, ctx.unfolds, y, *(x.contiguous().numpy() for x in (dy, dlast)))
        du, ddt, dr, small, dh = map(torch.from_numpy, grads)
        ddelta, dA, dpeak = small.sum(0)
        return du, ddt, dr.sum(0), ddelta, dA, dpeak, dh, None
