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

from postx.scans.lanes import LANES, add, exp2, fma, load, mul, number, store, total
from postx.scans.runtime import jit, numba, serial

TIME = 64
SHORTEST = 2048  # tokens; a piece of time must be worth a second scan
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
def _forward(u, delta, A_ND, Bm, Cm, h, rows, starts, stops, wide, y, kept, spent):
    """Piece p is tokens starts[p] to stops[p] of row rows[p], from the state h[p] on, which is changed in place.

    A thread takes `wide` times 16 channels at once: longer runs of memory, but fewer tasks to share out. `kept` gets
    the state before each tile and spent[p] the sum of delta, where these have room.
    """
    T, D = u.shape[1:]
    N, blocks = A_ND.shape[0], D // LANES
    tasks = (blocks + wide - 1) // wide
    for task in numba.prange(rows.shape[0] * tasks):
        p, first = task // tasks, task % tasks * wide * LANES
        b, width = rows[p], min(wide * LANES, D - first)
        tile = np.empty(wide * TIME * FORWARD, u.dtype)
        for start in range(starts[p], stops[p], TIME):
            tokens, at = min(TIME, stops[p] - start), (b * T + start) * D + first
            if kept.shape[0] > 0:
                kept[b, start // TIME, :, first : first + width] = h[p, :, first : first + width]
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
                    _forward_state(h, p * N * D + at_A, A_ND, at_A, Bm, Cm, at_n + n, N, tile, i, tokens)
                if spent.shape[0] > 0:  # first over the tile, so that few terms meet a large sum
                    steps = load(tile, i + DT)
                    for t in range(1, tokens):
                        steps = add(steps, load(tile, i + t * FORWARD + DT))
                    at_D = p * D + first + channel
                    store(spent, at_D, add(steps, load(spent, at_D)))
            for t in range(tokens):
                for channel in range(0, width, LANES):
                    i = (channel // LANES * TIME + t) * FORWARD
                    store(y, at + t * D + channel, load(tile, i + OUT))


def forward(u, delta, A_ND, Bm, Cm, h0, lengths, keep, threads):
    """Returns y [B,T,D], the last state [B,N,D] and, if `keep`, the state before each tile [B,tiles,N,D].

    Where there are fewer blocks of 16 channels than threads, and T is long, time is cut as well, in `threads` + 1
    pieces. Each but the last is scanned from zero at first; a state then fades over a piece by exp(A sum delta), so
    a piece's true first state follows from the one before. Each but the first is scanned again from that state.
    """
    B, T, D = u.shape
    blocks = D // LANES
    y, last = np.zeros_like(u), h0.copy()
    kept = np.empty((B if keep else 0, (T + TIME - 1) // TIME, *h0.shape[1:]), u.dtype)
    wide, no_sums = max(1, min(8, B * blocks // threads)), np.empty((0, D), u.dtype)
    inputs, every = (u, delta, A_ND, Bm, Cm), np.arange(B)
    pieces = threads // (B * blocks) + 1 if B * blocks else 1
    size = max(SHORTEST, -(-int(lengths.max(initial=0)) // pieces) + TIME - 1) // TIME * TIME
    if pieces == 1 or size >= T:
        _forward(*inputs, last, every, np.zeros_like(lengths), lengths, wide, y, kept, no_sums)
        return y, last, kept
    cuts = np.minimum(np.arange(0, T + size, size)[:, None], lengths)  # [pieces + 1, B]
    count = len(cuts) - 1
    h, spent = np.zeros((count, *h0.shape), u.dtype), np.zeros((count, B, D), u.dtype)
    h[0] = h0
    for part in (slice(0, -1), slice(1, None)):
        state, starts, stops = h[part].copy(), cuts[:-1][part].ravel(), cuts[1:][part].ravel()
        first, rows = part.start == 0, np.tile(every, count - 1)
        sums = spent[part].reshape(-1, D) if first else no_sums
        _forward(*inputs, state.reshape(-1, *h0.shape[1:]), rows, starts, stops, wide, y, kept, sums)
        for p in range(count - 1) if first else ():
            h[p + 1] = state[p] if p == 0 else np.exp2(A_ND * spent[p][:, None]) * h[p] + state[p]
    return y, state[-1], kept


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
