"""The selective scan on the CPU: h <- exp(delta A) h + delta B u, y = sum_n C h, all real, 16 channels at a time.

Time is cut into tiles of `TIME` tokens, so that what a tile needs stays in the first cache. Within a tile the states
n are taken one after the other: h_n and A_n then stand in a register while the tokens pass by. N exponentials for
each token and channel are the price of the scan; `lanes.exp2` is what makes them cheap.

Backward needs the state before every tile, which forward keeps (N D / TIME numbers a token), and rebuilds the states
and factors inside one tile at a time. B and C are shared by all channels, so their gradients are sums over channels:
each worker adds them up lane by lane, and adds the lanes once per tile.

Arrays are contiguous. D is a multiple of LANES (the caller pads with zeros), and A_ND holds A log2(e).
"""

import numpy as np

from postx.scans.lanes import LANES, exp2, fma, load, mul, number, store, total
from postx.scans.runtime import jit, numba, serial

TIME = 64
LN2 = 0.6931471805599453

# A tile is a flat array with these entries for each token, LANES numbers each. Forward has three of them: the step
# dt, x = dt u, and the output. Backward has dt, x, dy, the gradients of x and dt, and of one n the past h and factor.
DT, X, OUT, FORWARD = range(0, 4 * LANES, LANES)
DT, X, DY, DX, DDT, PAST, FACTOR, BACKWARD = range(0, 8 * LANES, LANES)


@serial
def _forward_state(h, at_h, A, at_A, Bm, Cm, at_n, N, tile, i, tokens):
    """One state n of 16 channels through one tile; its part of the output is added to the tile."""
    hn, An = load(h, at_h), load(A, at_A)
    for t in range(tokens):
        n = at_n + t * N
        hn = fma(exp2(mul(load(tile, i + DT), An)), hn, mul(load(tile, i + X), number(Bm, n)))
        store(tile, i + OUT, fma(hn, number(Cm, n), load(tile, i + OUT)))
        i += FORWARD
    store(h, at_h, hn)


@jit
def forward(u, delta, A_ND, Bm, Cm, h0, lengths, wide, keep):
    """Returns y [B,T,D], the last state [B,N,D] and, if `keep`, the state before each tile [B,tiles,N,D].

    A thread takes `wide` times 16 channels at once: longer runs of memory, but fewer tasks to share out.
    """
    B, T, D = u.shape
    N, blocks = A_ND.shape[0], D // LANES
    y, last = np.zeros_like(u), h0.copy()
    kept = np.empty((B, (T + TIME - 1) // TIME if keep else 0, N, D), u.dtype)
    tasks = (blocks + wide - 1) // wide
    for task in numba.prange(B * tasks):
        b, first = task // tasks, task % tasks * wide * LANES
        width = min(wide * LANES, D - first)
        tile = np.empty(wide * TIME * FORWARD, u.dtype)
        for start in range(0, lengths[b], TIME):
            tokens, at = min(TIME, lengths[b] - start), (b * T + start) * D + first
            if keep:
                kept[b, start // TIME, :, first : first + width] = last[b, :, first : first + width]
            tile[:] = 0
            for t in range(tokens):
                for channel in range(0, width, LANES):
                    i, j = (channel // LANES * TIME + t) * FORWARD, at + t * D + channel
                    store(tile, i + DT, load(delta, j))
                    store(tile, i + X, mul(load(delta, j), load(u, j)))
            for channel in range(0, width, LANES):
                i, at_n = channel // LANES * TIME * FORWARD, (b * T + start) * N
                for n in range(N):
                    at_A = n * D + first + channel
                    _forward_state(
                        last, b * N * D + at_A, A_ND, at_A, Bm, Cm, at_n + n, N, tile, i, tokens
                    )
            for t in range(tokens):
                for channel in range(0, width, LANES):
                    i = (channel // LANES * TIME + t) * FORWARD
                    store(y, at + t * D + channel, load(tile, i + OUT))
    return y, last, kept


@serial
def _backward_state(kept, at_kept, dh, dA, at_h, A, at_A, Bm, Cm, at_n, N, tile, sums, at_sum, tokens):
    """One state n of 16 channels: forward through the tile to rebuild it, then back."""
    hn, An = load(kept, at_kept), load(A, at_A)
    for t in range(tokens):
        i = t * BACKWARD
        factor = exp2(mul(load(tile, i + DT), An))
        store(tile, i + PAST, hn)
        store(tile, i + FACTOR, factor)
        hn = fma(factor, hn, mul(load(tile, i + X), number(Bm, at_n + t * N)))
    dhn, dAn = load(dh, at_h), load(dA, at_h)
    for t in range(tokens - 1, -1, -1):
        i, n, s = t * BACKWARD, at_n + t * N, at_sum + t * 2 * LANES
        dy, past = load(tile, i + DY), load(tile, i + PAST)
        dhn = fma(dy, number(Cm, n), dhn)
        store(sums, s, fma(dy, hn, load(sums, s)))
        store(sums, s + LANES, fma(dhn, load(tile, i + X), load(sums, s + LANES)))
        store(tile, i + DX, fma(dhn, number(Bm, n), load(tile, i + DX)))
        dhn = mul(dhn, load(tile, i + FACTOR))
        through = mul(dhn, past)  # the gradient of delta A
        store(tile, i + DDT, fma(through, An, load(tile, i + DDT)))
        dAn = fma(through, load(tile, i + DT), dAn)
        hn = past
    store(dh, at_h, dhn)
    store(dA, at_h, dAn)


@jit
def backward(u, delta, A_ND, Bm, Cm, kept, lengths, dy, dlast, workers):
    """Gradients of u, delta [B,T,D], of A per row [B,N,D], of B and C per worker [workers,B,T,N], of h0 [B,N,D]."""
    B, T, D = u.shape
    N, blocks = A_ND.shape[0], D // LANES
    du, ddelta = np.zeros_like(u), np.zeros_like(u)
    dh, dA = dlast.copy(), np.zeros_like(dlast)
    dB, dC = np.zeros((workers, B, T, N), u.dtype), np.zeros((workers, B, T, N), u.dtype)
    for worker in numba.prange(workers):
        first, after = B * blocks * worker // workers, B * blocks * (worker + 1) // workers
        tile = np.empty(TIME * BACKWARD, u.dtype)
        sums = np.empty((N, TIME, 2, LANES), u.dtype)  # the gradients of C and B, by lane
        for b in range(first // blocks, (after + blocks - 1) // blocks):
            low, high = max(first - b * blocks, 0), min(after - b * blocks, blocks)
            for start in range((lengths[b] - 1) // TIME * TIME, -1, -TIME):
                tokens, at_n = min(TIME, lengths[b] - start), (b * T + start) * N
                sums[:] = 0
                for channel in range(low * LANES, high * LANES, LANES):
                    at = (b * T + start) * D + channel
                    tile[:] = 0
                    for t in range(tokens):
                        i, j = t * BACKWARD, at + t * D
                        store(tile, i + DT, load(delta, j))
                        store(tile, i + X, mul(load(delta, j), load(u, j)))
                        store(tile, i + DY, load(dy, j))
                    for n in range(N):
                        at_A, at_tile = n * D + channel, (b * kept.shape[1] + start // TIME) * N * D
                        _backward_state(
                            kept, at_tile + at_A, dh, dA, b * N * D + at_A, A_ND, at_A, Bm, Cm, at_n + n, N,
                            tile, sums, n * TIME * 2 * LANES, tokens,
                        )  # fmt: skip
                    for t in range(tokens):
                        i, j = t * BACKWARD, at + t * D
                        dx = load(tile, i + DX)
                        store(du, j, mul(dx, load(delta, j)))
                        store(ddelta, j, fma(dx, load(u, j), mul(load(tile, i + DDT), LN2)))
                for n in range(N):
                    for t in range(tokens):
                        s = (n * TIME + t) * 2 * LANES
                        dC[worker, b, start + t, n] = total(load(sums, s))
                        dB[worker, b, start + t, n] = total(load(sums, s + LANES))
    return du, ddelta, dA, dB, dC, dh
