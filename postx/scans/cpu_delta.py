"""The delta recurrence on the CPU: S <- diag(a) S - b (beta c' S) + k v', one thread a head, one pass over S a token.

It serves what `cpu_erase` does not: a decay for each key, b or c of its own, or reading before the update.

Columns of S know nothing of each other, so WIDE values of a head are walked through time by themselves; what is left
of them is filled up with zeros. Such a table has K rows of WIDE numbers, which stay in the first cache, and two more:
what the next token will read of it (c' S, gathered while this token writes, so that S goes through the processor
once a token), and what its last writer had read of the table before.

Number the tables X_0 (before the first token) to X_L. Token n - 1 wrote X_n, token n reads X_n with c, and q reads
X_n for token n - 1 ("after") or for token n ("before"). Outside of 0..L-1 a token has a = 1 and zeros.

Tokens of one head lie far apart in memory, so the entries of `BLOCK` tokens are first copied side by side. The
backward pass walks from X_L to X_0, also in one pass a table. It keeps a copy every `BLOCK` tables and rebuilds the
ones in between: its memory is T / BLOCK tables a thread. Arrays are contiguous, `a` is [B|1,T|1,G,K|1] and `beta`
[B|1,T|1,G,1]; reader head h uses head h // (H / G) of every argument. `own` says that b is k: then v - beta c' S is
written as one row, and no gradient of b is made.
"""

import numpy as np

from postx.scans.lanes import LANES, dot, fma, load4, mul, number, room, store, total, totals, zeros
from postx.scans.runtime import jit, numba, serial

BLOCK = 16
WIDE = 4 * LANES
# What a token brings, K numbers each, and the gradients of the first five.
Q, KEY, B, C, A, BETA, PARTS = range(7)


@serial
def _copy_part(x, row, h, H, first, L, outside, tile, part):
    """tile[i, part] <- what head h reads of token first + i in x, or `outside` where there is no such token."""
    row, h = row if x.shape[0] > 1 else 0, h * x.shape[2] // H
    for i in range(BLOCK + 1):
        t, target = first + i, tile[i, part]
        if 0 <= t < L and x.shape[3] == target.shape[0]:
            source = x[row, t if x.shape[1] > 1 else 0, h]
            for j in range(target.shape[0]):
                target[j] = source[j]
        else:
            every = x[row, t if x.shape[1] > 1 else 0, h, 0] if 0 <= t < L else outside
            for j in range(target.shape[0]):
                target[j] = every


@serial
def _copy_values(x, row, h, first, L, column, tile):
    """The same of the values from `column` on."""
    width = min(WIDE, x.shape[3] - column)
    for i in range(BLOCK + 1):
        t, target = first + i, tile[i]
        if 0 <= t < L:
            source = x[row, t, h]
            for j in range(width):
                target[j] = source[column + j]
        else:
            for j in range(WIDE):
                target[j] = 0


@serial
def _copy_tokens(q, k, v, a, b, c, beta, row, h, column, first, L, tile, values):
    for part, x, outside in ((Q, q, 0), (KEY, k, 0), (B, b, 0), (C, c, 0), (A, a, 1), (BETA, beta, 0)):
        _copy_part(x, row, h, v.shape[2], first, L, outside, tile, part)
    _copy_values(v, row, h, first, L, column, values)


@serial
def _step(old, i, new, j, K, tile, values, writer, reader, own, y, at_y):
    """The table at new[j] <- diag(a) S - b r' + k v' of that at old[i]; y = S' q for the reader's q."""
    erased = load4(old, i + K * WIDE)
    r, u = mul(erased, number(tile, (writer * PARTS + BETA) * K)), load4(values, writer * WIDE)
    if own:
        u = fma(r, -1, u)
    at = writer * PARTS * K
    q, c = (reader * PARTS + Q) * K, ((writer + 1) * PARTS + C) * K
    read, found = mul(u, 0), mul(u, 0)
    for n in range(K):
        s = fma(u, number(tile, at + KEY * K + n), mul(load4(old, i), number(tile, at + A * K + n)))
        if not own:
            s = fma(r, -number(tile, at + B * K + n), s)
        store(new, j, s)
        read, found = fma(s, number(tile, q + n), read), fma(s, number(tile, c + n), found)
        i += WIDE
        j += WIDE
    store(new, j, found)
    store(new, j + WIDE, erased)
    store(y, at_y, read)


@serial
def _one_block(q, k, v, a, b, c, beta, row, h, column, L, before, own, S, y, kept):
    """WIDE values of one head from X_0 to X_L, in place in S. If it has room, `kept` gets every BLOCK-th table."""
    K, size = q.shape[3], S.shape[0]
    tile, values = np.empty((BLOCK + 1, PARTS, K), v.dtype), zeros((BLOCK + 1) * WIDE, v).reshape(-1, WIDE)
    read = zeros(WIDE, v)
    for start in range(0, L + 1, BLOCK):
        first = start - 1  # the token that wrote the block's first table
        _copy_tokens(q, k, v, a, b, c, beta, row, h, column, first, L, tile, values)
        for n in range(start, min(start + BLOCK, L + 1)):
            reader = n if before else n - 1
            _step(S, 0, S, 0, K, tile, values, n - start, reader - first, own, read, 0)
            if 0 <= reader < L:
                for j in range(min(WIDE, v.shape[3] - column)):
                    y[row, reader, h, column + j] = read[j]
            at = start // BLOCK * size
            if n == start and at < kept.shape[0]:
                for j in range(0, size, WIDE):
                    store(kept, at + j, load4(S, j))


@serial
def _table(x, row, h, column, S, back):
    """Values from `column` on of a state [B,H,K,V] into the rows of S, or back."""
    for i in range(x.shape[2]):
        for j in range(min(WIDE, x.shape[3] - column)):
            if back:
                x[row, h, i, column + j] = S[i * WIDE + j]
            else:
                S[i * WIDE + j] = x[row, h, i, column + j]


@serial
def _forward_block(q, k, v, a, b, c, beta, state, row, h, column, L, before, own, y):
    S, kept = zeros((q.shape[3] + 2) * WIDE, v), zeros(0, v)
    _table(state, row, h, column, S, False)
    _one_block(q, k, v, a, b, c, beta, row, h, column, L, before, own, S, y, kept)
    _table(state, row, h, column, S, True)


@jit
def _forward(q, k, v, a, b, c, beta, state, lengths, before, own, y):
    H, blocks = v.shape[2], (v.shape[3] + WIDE - 1) // WIDE
    for task in numba.prange(v.shape[0] * H * blocks):
        row, h, column = task // blocks // H, task // blocks % H, task % blocks * WIDE
        _forward_block(q, k, v, a, b, c, beta, state, row, h, column, lengths[row], before, own, y)


def forward(q, k, v, a, b, c, beta, S0, lengths, before, own):
    """Returns y [B,T,H,V] and the last state [B,H,K,V]."""
    y, S = np.zeros_like(v), S0.copy()
    _forward(q, k, v, a, b, c, beta, S, lengths, before, own, y)
    return y, S


@serial
def _back_step(G, X, x, K, tile, values, dys, writer, reader, own, de, sums, dv):
    """From the gradient G of X_(n+1) to that of X_n, at X[x], and to what its readers and its writer learn.

    Token n passes it on and read it with c, q read it:  G <- diag(a) G + c de' + q dy'.  Lane by lane `sums` gets
    da = G X (with the G from before), dc = X de, dq = X dy, dk = G u and -db = G r. Then de becomes that of the
    writer, dv = G' k its values' gradient, and its beta's is returned.
    """
    erased, dy = load4(X, x + (K + 1) * WIDE), load4(dys, reader * WIDE)
    beta = number(tile, (writer * PARTS + BETA) * K)
    r, u, dread = mul(erased, beta), load4(values, writer * WIDE), load4(de, 0)
    if own:
        u = fma(r, -1, u)
    wrote, passed, q = writer * PARTS * K, (writer + 1) * PARTS * K, (reader * PARTS + Q) * K
    du, dr = mul(u, 0), mul(u, 0)
    part = sums.shape[0] // BETA
    for n in range(K):
        s, g = load4(X, x + n * WIDE), load4(G, n * WIDE)
        store(sums, A * part + n * LANES, dot(g, s))
        store(sums, C * part + n * LANES, dot(s, dread))
        store(sums, Q * part + n * LANES, dot(s, dy))
        g = fma(dread, number(tile, passed + C * K + n), mul(g, number(tile, passed + A * K + n)))
        g = fma(dy, number(tile, q + n), g)
        store(G, n * WIDE, g)
        store(sums, KEY * part + n * LANES, dot(g, u))
        du = fma(g, number(tile, wrote + KEY * K + n), du)
        if not own:
            store(sums, B * part + n * LANES, dot(g, r))
            dr = fma(g, number(tile, wrote + B * K + n), dr)
    store(dv, 0, du)
    dr = mul(du if own else dr, -1)
    store(de, 0, mul(dr, beta))
    return total(mul(dr, erased))


@serial
def _add(sums, part, sign, out):
    """out += the sums of one part, or their sum where out has a single entry. Their lanes are spent."""
    K, start = out.shape[0], part * (sums.shape[0] // BETA)
    for i in range(0, sums.shape[0] // BETA // LANES, LANES):
        store(sums, start + i, totals(sums, start + i * LANES))
    if K == 1:
        for i in range(sums.shape[0] // BETA // LANES):
            out[0] += sign * sums[start + i]
    else:
        for i in range(K):
            out[i] += sign * sums[start + i]


@serial
def _backward_block(
    q, k, v, a, b, c, beta, S0, dS0, row, h, column, L, before, own, y, dy, dq, dk, dv, da, db, dc, dbeta
):
    """Adds the gradients from WIDE values of one head, and turns its part of dS0 from that of X_L into that of X_0."""
    K, blocks = q.shape[3], L // BLOCK + 1
    size = (K + 2) * WIDE
    S, G, kept, tables = zeros(size, v), zeros(K * WIDE, v), room(blocks * size, v), room(BLOCK * size, v)
    tile, values = np.empty((BLOCK + 1, PARTS, K), v.dtype), zeros((BLOCK + 1) * WIDE, v).reshape(-1, WIDE)
    dys, de, read = zeros((BLOCK + 1) * WIDE, v).reshape(-1, WIDE), zeros(WIDE, v), zeros(WIDE, v)
    sums = zeros(BETA * ((K + LANES - 1) // LANES) * LANES * LANES, v)
    _table(S0, row, h, column, S, False)
    _table(dS0, row, h, column, G, False)
    _one_block(q, k, v, a, b, c, beta, row, h, column, L, before, own, S, y, kept)
    for block in range(blocks - 1, -1, -1):
        start, stop = block * BLOCK, min(L + 1, (block + 1) * BLOCK)
        first = start - 1
        _copy_tokens(q, k, v, a, b, c, beta, row, h, column, first, L, tile, values)
        _copy_values(dy, row, h, first, L, column, dys)
        for i in range(0, size, WIDE):
            store(tables, i, load4(kept, block * size + i))
        for i in range(1, stop - start):
            _step(tables, (i - 1) * size, tables, i * size, K, tile, values, i, 0, own, read, 0)
        for n in range(stop - 1, start - 1, -1):
            reader = n if before else n - 1
            more = _back_step(
                G,
                tables,
                (n - start) * size,
                K,
                tile,
                values,
                dys,
                n - start,
                reader - first,
                own,
                de,
                sums,
                read,
            )
            if n < L:
                _add(sums, A, 1, da[row, n, h])
                _add(sums, C, 1, dc[row, n, h])
            if 0 <= reader < L:
                _add(sums, Q, 1, dq[row, reader, h])
            if n > 0:
                _add(sums, KEY, 1, dk[row, n - 1, h])
                if not own:
                    _add(sums, B, -1, db[row, n - 1, h])
                dbeta[row, n - 1, h, 0] += more
                for j in range(min(WIDE, v.shape[3] - column)):
                    dv[row, n - 1, h, column + j] = read[j]
    _table(dS0, row, h, column, G, True)


@jit
def _backward(q, k, v, a, b, c, beta, S0, dS0, lengths, before, own, y, dy, dq, dk, dv, da, db, dc, dbeta):
    H = v.shape[2]
    for head in numba.prange(v.shape[0] * H):
        row, h = head // H, head % H
        for column in range(0, v.shape[3], WIDE):
            _backward_block(
                q, k, v, a, b, c, beta, S0, dS0, row, h, column, lengths[row], before, own, y, dy,
                dq, dk, dv, da, db, dc, dbeta,
            )  # fmt: skip


def backward(q, k, v, a, b, c, beta, S0, lengths, before, own, dy, dlast):
    """Gradients of q, k, v, a, b, c, beta for every head (to be summed over heads that share one), and of S0."""
    # Allocated out here: numba would compile a parallel loop for each.
    heads = v.shape[:3]
    dq, dk, dc = (np.zeros((*heads, q.shape[3]), v.dtype) for _ in range(3))
    db = np.zeros((1, 1, 1, 1) if own else dq.shape, v.dtype)
    dv, da, dbeta = np.zeros_like(v), np.zeros((*heads, a.shape[3]), v.dtype), np.zeros((*heads, 1), v.dtype)
    y, dS0 = np.empty_like(v), dlast.copy()
    _backward(q, k, v, a, b, c, beta, S0, dS0, lengths, before, own, y, dy, dq, dk, dv, da, db, dc, dbeta)
    return dq, dk, dv, da, db, dc, dbeta, dS0
