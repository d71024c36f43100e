"""The diagonal recurrence on the CPU, real or complex: h <- exp(delta A) h + delta B u, y = Re(sum_n C h).

Nothing of size [B,T,D,N] is ever written. Arrays are contiguous; `delta`, `B` and `C` may have size 1 on their
batch, time and channel axes. Backward keeps the state every `BLOCK` tokens and rebuilds the rest.
"""

import numpy as np

from postx.scans.runtime import inline, jit, numba

BLOCK = 64


@inline
def _row(x, b, t, d):
    return x[b if x.shape[0] > 1 else 0, t if x.shape[1] > 1 else 0, d if x.shape[2] > 1 else 0]


@inline
def _exp(factor, dt, A):
    for n in range(A.shape[0]):
        factor[n] = np.exp(dt * A[n])


@jit
def forward(u, delta, A, Bm, Cm, h0, lengths):
    """Returns y [B,T,D] and the last state [B,D,N]."""
    B, T, D = u.shape
    N = A.shape[1]
    y = np.zeros_like(u)
    last = h0.copy()
    for row in numba.prange(B * D):
        b, d = row // D, row % D
        h = last[b, d]
        factor = np.empty(N, A.dtype)
        _exp(factor, _row(delta, b, 0, d), A[d])
        for t in range(lengths[b]):
            dt = _row(delta, b, t, d)
            if delta.shape[1] > 1:
                _exp(factor, dt, A[d])
            Bt, Ct = _row(Bm, b, t, d), _row(Cm, b, t, d)
            x = dt * u[b, t, d]
            total = u.dtype.type(0)
            for n in range(N):
                h[n] = factor[n] * h[n] + x * Bt[n]
                total += (Ct[n] * h[n]).real
            y[b, t, d] = total
    return y, last


@jit
def backward(u, delta, A, Bm, Cm, h0, lengths, dy, dlast, workers):
    """Gradients of u, delta [B,T,D], A per row [B,D,N], B and C per worker [workers,B,T|1,D|1,N], and h0.

    Channels share B and C where these have no channel axis, so each worker adds into an array of its own.
    """
    B, T, D = u.shape
    N, varies = A.shape[1], delta.shape[1] > 1
    du, ddelta = np.zeros_like(u), np.zeros_like(u)
    dA, dh0 = np.zeros_like(h0), dlast.copy()
    dB = np.zeros((workers, B, Bm.shape[1], Bm.shape[2], N), h0.dtype)
    dC = np.zeros((workers, B, Cm.shape[1], Cm.shape[2], N), h0.dtype)
    for worker in numba.prange(workers):
        states, factors = np.empty((BLOCK + 1, N), h0.dtype), np.empty((BLOCK, N), A.dtype)
        for row in range(B * D * worker // workers, B * D * (worker + 1) // workers):
            b, d = row // D, row % D
            L = lengths[b]
            blocks = (L + BLOCK - 1) // BLOCK
            kept = np.empty((blocks, N), h0.dtype)
            h = h0[b, d].copy()
            _exp(factors[0], _row(delta, b, 0, d), A[d])
            for t in range(L):
                if t % BLOCK == 0:
                    kept[t // BLOCK] = h
                dt, Bt = _row(delta, b, t, d), _row(Bm, b, t, d)
                if varies:
                    _exp(factors[0], dt, A[d])
                for n in range(N):
                    h[n] = factors[0, n] * h[n] + dt * u[b, t, d] * Bt[n]
            dh = dh0[b, d]
            for block in range(blocks - 1, -1, -1):
                start, stop = block * BLOCK, min(L, (block + 1) * BLOCK)
                states[0] = kept[block]
                for t in range(start, stop):
                    dt, Bt = _row(delta, b, t, d), _row(Bm, b, t, d)
                    factor = factors[t - start if varies else 0]
                    if varies:
                        _exp(factor, dt, A[d])
                    for n in range(N):
                        states[t - start + 1, n] = factor[n] * states[t - start, n] + dt * u[b, t, d] * Bt[n]
                for t in range(stop - 1, start - 1, -1):
                    dt, Bt, Ct, ut = _row(delta, b, t, d), _row(Bm, b, t, d), _row(Cm, b, t, d), u[b, t, d]
                    dBt = dB[worker, b, t if Bm.shape[1] > 1 else 0, d if Bm.shape[2] > 1 else 0]
                    dCt = dC[worker, b, t if Cm.shape[1] > 1 else 0, d if Cm.shape[2] > 1 else 0]
                    g, factor = dy[b, t, d], factors[t - start if varies else 0]
                    sum_u, sum_delta = u.dtype.type(0), u.dtype.type(0)
                    for n in range(N):
                        dCt[n] += g * np.conj(states[t - start + 1, n])
                        dh[n] += g * np.conj(Ct[n])
                        through = dh[n] * np.conj(
                            factor[n] * states[t - start, n]
                        )  # d/d(delta A), conjugated as torch does
                        dA[b, d, n] += dt * through
                        written = (dh[n] * np.conj(Bt[n])).real
                        sum_delta += (through * np.conj(A[d, n])).real + written * ut
                        sum_u += written * dt
                        dBt[n] += dh[n] * (dt * ut)
                        dh[n] = dh[n] * np.conj(factor[n])
                    du[b, t, d], ddelta[b, t, d] = sum_u, sum_delta
    return du, ddelta, dA, dB, dC, dh0
