"""The fused solver of `mixers.ltc` on a CPU, forward and backward: a row is a task, synapses the inner loop.

Forward keeps the state after every token. Backward runs a token's unfolds again from the state before it and walks them
in reverse, so memory is T D and not T D^2 unfolds.
"""

import numpy as np
import torch
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from postx.scans.runtime import inline, jit, numba


@inline
def _unfold(h, drive, total, s, capacity, weight, level, slope, threshold, sigma, low, new):
    """One fused step: `new` and its denominators `low`; sigma is kept for the way back."""
    D = len(h)
    for d in range(D):
        low[d] = total[d]
        new[d] = drive[d]
    for k in range(D):
        for d in range(D):
            opened = 1 / (1 + np.exp(slope[k, d] * (threshold[k, d] - h[k])))
            sigma[k, d] = opened
            low[d] += weight[k, d] * opened
            new[d] += weight[k, d] * level[k, d] * opened
    for d in range(D):
        low[d] = capacity[d] + s * low[d]
        new[d] = (capacity[d] * h[d] + s * new[d]) / low[d]


@jit
def forward(drive, total, dt, capacity, weight, level, slope, threshold, h0, unfolds):
    """The state after every token [B,T,D]."""
    B, T, D = drive.shape
    y = np.empty_like(drive)
    for row in numba.prange(B):
        h, new, low = h0[row].copy(), np.empty(D, drive.dtype), np.empty(D, drive.dtype)
        sigma = np.empty((D, D), drive.dtype)
        for t in range(T):
            s = dt[row, t] / unfolds
            for _ in range(unfolds):
                _unfold(h, drive[row, t], total[row, t], s, capacity, weight, level, slope, threshold, sigma, low, new)
                h[:] = new
            y[row, t] = h
    return y


@jit
def backward(drive, total, dt, capacity, weight, level, slope, threshold, h0, unfolds, y, dy, dlast):
    """Gradients of drive, total, dt, and for each row of capacity, of the four tables of synapses, and of h0."""
    B, T, D = drive.shape
    ddrive, dtotal, ddt = np.zeros_like(drive), np.zeros_like(drive), np.zeros_like(dt)
    dcapacity, tables, dh0 = np.zeros((B, D), drive.dtype), np.zeros((B, 4, D, D), drive.dtype), dlast.copy()
    for row in numba.prange(B):
        hs, lows = np.empty((unfolds + 1, D), drive.dtype), np.empty((unfolds, D), drive.dtype)
        sigmas, dh = np.empty((unfolds, D, D), drive.dtype), np.empty(D, drive.dtype)
        g = dh0[row]
        for t in range(T - 1, -1, -1):
            s, ds = dt[row, t] / unfolds, 0.0
            hs[0] = y[row, t - 1] if t > 0 else h0[row]
            for i in range(unfolds):
                _unfold(hs[i], drive[row, t], total[row, t], s, capacity, weight, level, slope, threshold,
                        sigmas[i], lows[i], hs[i + 1])  # fmt: skip
            for d in range(D):
                g[d] += dy[row, t, d]
            for i in range(unfolds - 1, -1, -1):
                for d in range(D):
                    top, h, new = g[d] / lows[i, d], hs[i, d], hs[i + 1, d]
                    ddrive[row, t, d] += top * s
                    dtotal[row, t, d] -= top * s * new
                    dcapacity[row, d] += top * (h - new)
                    ds += top * (drive[row, t, d] - new * total[row, t, d])
                for k in range(D):
                    back = g[k] * 0
                    for d in range(D):
                        opened, top = sigmas[i, k, d], g[d] / lows[i, d]
                        pull = top * (level[k, d] - hs[i + 1, d])
                        ds += pull * weight[k, d] * opened
                        dz = pull * s * weight[k, d] * opened * (1 - opened)
                        tables[row, 0, k, d] += pull * s * opened
                        tables[row, 1, k, d] += top * s * weight[k, d] * opened
                        tables[row, 2, k, d] += dz * (hs[i, k] - threshold[k, d])
                        tables[row, 3, k, d] -= dz * slope[k, d]
                        back += dz * slope[k, d]
                    dh[k] = back
                for d in range(D):
                    g[d] = g[d] * capacity[d] / lows[i, d] + dh[d]
            ddt[row, t] = ds / unfolds
    return ddrive, dtotal, ddt, dcapacity, tables, dh0


class Fused(Function):
    """(drive, total, dt, capacity, weight, level, slope, threshold, h_BD, unfolds) -> (y_BTD, h_BD)."""

    @staticmethod
    def forward(ctx, *inputs):
        *tensors, unfolds = inputs
        y = torch.from_numpy(forward(*(x.detach().contiguous().numpy() for x in tensors), unfolds))
        ctx.save_for_backward(*tensors, y)
        ctx.unfolds = unfolds
        return y, y[:, -1].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx, dy, dlast):
        *tensors, y = (x.detach().contiguous().numpy() for x in ctx.saved_tensors)
        grads = backward(*tensors, ctx.unfolds, y, *(x.contiguous().numpy() for x in (dy, dlast)))
        ddrive, dtotal, ddt, dcapacity, tables, dh0 = map(torch.from_numpy, grads)
        return ddrive, dtotal, ddt, dcapacity.sum(0), *tables.sum(0), dh0, None
