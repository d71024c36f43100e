"""The delta recurrence on the CPU: S <- diag(a) S - b (beta c' S) + k v', one thread a head, one pass over S a token.

What the next token will erase (c' S) is gathered while this token writes, so S goes through the processor once a
token. Number the states X_0 (before the first token) to X_L. Token n - 1 wrote X_n, token n reads X_n with c, and q
reads X_n for token n - 1 ("after") or for token n ("before"). Outside of 0..L-1 a token has a = 1 and zeros.

Tokens of one head lie far apart in memory, so the entries of `BLOCK` tokens are first copied side by side. The
backward pass walks from X_L to X_0, also in one pass a state. It keeps a copy every `BLOCK` states and rebuilds the
ones in between: beside one row of V numbers a token, its memory is T / BLOCK tables a thread. Arrays are contiguous,
`a` is [B|1,T|1,G,K|1] and `beta` [B|1,T|1,G,1]; reader head h uses head h // (H / G) of every argument. `own` says
that b is k: then v - beta c' S is written as one row, and no gradient of b is made.
"""

import numpy as np

from postx.scans.runtime import jit, numba, serial

BLOCK = 32


@serial
def _gather(x, row, h, H, first, L, outside, tile):
    """tile[i] <- what head h reads of token first + i in x, or `outside` where there is no such token."""
    row, h = row if x.shape[0] > 1 else 0, h * x.shape[2] // H
    for i in range(tile.shape[0]):
        t = first + i
        if 0 <= t < L:
            source = x[row, t if x.shape[1] > 1 else 0, h]
            for j in range(tile.shape[1]):
                tile[i, j] = source[j]
        else:
            for j in range(tile.shape[1]):
                tile[i, j] = outside


@serial
def _copy(to, S):
    for i in range(S.shape[0]):
        for j in range(S.shape[1]):
            to[i, j] = S[i, j]


@serial
def _write(S, a, b, k, r, v):
    """S <- diag(a) S - b r' + k v'."""
    step = 1 if a.shape[0] > 1 else 0
    for i in range(S.shape[0]):
        ai, bi, ki = a[i * step], b[i], k[i]
        for j in range(S.shape[1]):
            S[i, j] = ai * S[i, j] - bi * r[j] + ki * v[j]


@serial
def _write_and_read(S, a, b, k, r, v, q, c, y, e):
    """The same, and on the way y = S' q and e = S' c."""
    for j in range(y.shape[0]):
        y[j] = 0
        e[j] = 0
    step = 1 if a.shape[0] > 1 else 0
    for i in range(S.shape[0]):
        ai, bi, ki, qi, ci = a[i * step], b[i], k[i], q[i], c[i]
        for j in range(S.shape[1]):
            s = ai * S[i, j] - bi * r[j] + ki * v[j]
            S[i, j] = s
            y[j] += qi * s
            e[j] += ci * s


@serial
def _write_own_and_read(S, a, k, u, q, c, y, e):
    """The same where b is k and u = v - r."""
    for j in range(y.shape[0]):
        y[j] = 0
        e[j] = 0
    step = 1 if a.shape[0] > 1 else 0
    for i in range(S.shape[0]):
        ai, ki, qi, ci = a[i * step], k[i], q[i], c[i]
        for j in range(S.shape[1]):
            s = ai * S[i, j] + ki * u[j]
            S[i, j] = s
            y[j] += qi * s
            e[j] += ci * s


@serial
def _one_head(q, k, v, a, b, c, beta, row, h, L, before, own, S, y, reads, kept):
    """One head from X_0 to X_L, in place in S. If they have rows, `reads` gets c' X_n, `kept` every BLOCK-th X_n."""
    H, (K, V), kind, N = v.shape[2], S.shape, S.dtype, BLOCK + 1
    qs, ks, bs, cs = np.empty((N, K), kind), np.empty((N, K), kind), np.empty((N, K), kind), np.empty((N, K), kind)
    vs, as_, betas = np.empty((N, V), kind), np.empty((N, a.shape[3]), kind), np.empty((N, 1), kind)
    r, e, yt = np.zeros(V, kind), np.zeros(V, kind), np.zeros(V, kind)
    for start in range(0, L + 1, BLOCK):
        first = start - 1  # the token that wrote the block's first state
        _gather(q, row, h, H, first, L, 0, qs)
        _gather(k, row, h, H, first, L, 0, ks)
        _gather(v, row, h, H, first, L, 0, vs)
        _gather(a, row, h, H, first, L, 1, as_)
        _gather(c, row, h, H, first, L, 0, cs)
        _gather(beta, row, h, H, first, L, 0, betas)
        if not own:
            _gather(b, row, h, H, first, L, 0, bs)
        for n in range(start, min(start + BLOCK, L + 1)):
            w = n - start
            reader = n if before else n - 1
            qt = qs[reader - first]
            if own:
                for j in range(V):
                    r[j] = vs[w, j] - betas[w, 0] * e[j]
                _write_own_and_read(S, as_[w], ks[w], r, qt, cs[w + 1], yt, e)
            else:
                for j in range(V):
                    r[j] = betas[w, 0] * e[j]
                _write_and_read(S, as_[w], bs[w], ks[w], r, vs[w], qt, cs[w + 1], yt, e)
            if 0 <= reader < L:
                for j in range(V):
                    y[row, reader, h, j] = yt[j]
            if n < reads.shape[0]:
                for j in range(V):
                    reads[n, j] = e[j]
            if n == start and start < kept.shape[0] * BLOCK:
                _copy(kept[start // BLOCK], S)


@jit
def _forward(q, k, v, a, b, c, beta, S, lengths, before, own, y, no_reads, no_states):
    H = v.shape[2]
    for head in numba.prange(v.shape[0] * H):
        row, h = head // H, head % H
        _one_head(
            q, k, v, a, b, c, beta, row, h, lengths[row], before, own, S[row, h], y, no_reads, no_states
        )


def forward(q, k, v, a, b, c, beta, S0, lengths, before, own):
    """Returns y [B,T,H,V] and the last state [B,H,K,V]."""
    y, S = np.zeros_like(v), S0.copy()
    no_reads, no_states = np.empty((0, 1), v.dtype), np.empty((0, 1, 1), v.dtype)
    _forward(q, k, v, a, b, c, beta, S, lengths, before, own, y, no_reads, no_states)
    return y, S


@serial
def _pull(G, X, a, c, q, de, dy, da, dc, dq):
    """What X passes on: its gradient becomes G <- diag(a) G + c de' + q dy'; and what its readers learn from it."""
    step = 1 if a.shape[0] > 1 else 0
    zero = X.dtype.type(0)
    for i in range(X.shape[0]):
        ai, ci, qi = a[i * step], c[i], q[i]
        sum_a, sum_c, sum_q = zero, zero, zero
        for j in range(X.shape[1]):
            x, g = X[i, j], G[i, j]
            sum_a += g * x
            sum_c += de[j] * x
            sum_q += dy[j] * x
            G[i, j] = ai * g + ci * de[j] + qi * dy[j]
        da[i * step] += sum_a
        dc[i], dq[i] = sum_c, sum_q


@serial
def _credit(G, b, k, r, v, db, dk, dr, dv):
    """What the token that wrote a state with gradient G learns: dk = G v, db = -G r, dv = G' k, dr = -G' b."""
    zero = G.dtype.type(0)
    for j in range(dv.shape[0]):
        dr[j] = 0
        dv[j] = 0
    for i in range(G.shape[0]):
        bi, ki = b[i], k[i]
        sum_b, sum_k = zero, zero
        for j in range(G.shape[1]):
            g = G[i, j]
            sum_b += g * r[j]
            sum_k += g * v[j]
            dr[j] -= bi * g
            dv[j] += ki * g
        db[i], dk[i] = -sum_b, sum_k


@serial
def _credit_own(G, k, u, dk, dv):
    """The same where b is k and u = v - r: dk = G u, dv = G' k = -dr."""
    zero = G.dtype.type(0)
    for j in range(dv.shape[0]):
        dv[j] = 0
    for i in range(G.shape[0]):
        ki = k[i]
        sum_k = zero
        for j in range(G.shape[1]):
            g = G[i, j]
            sum_k += g * u[j]
            dv[j] += ki * g
        dk[i] = sum_k


@serial
def _one_head_backward(q, k, v, a, b, c, beta, row, h, L, before, own, S, y, G, dy, dq, dk, dv, da, db, dc, dbeta):
    """The gradients of one head, and in place in G that of X_0. S is X_0, and is spent; so is y."""
    H, (K, V), kind, N = v.shape[2], S.shape, S.dtype, BLOCK + 1
    blocks = L // BLOCK + 1
    reads, kept = np.empty((L, V), kind), np.empty((blocks, K, V), kind)
    _one_head(q, k, v, a, b, c, beta, row, h, L, before, own, S, y, reads, kept)
    states = np.empty((BLOCK, K, V), kind)
    qs, ks, bs, cs = np.empty((N, K), kind), np.empty((N, K), kind), np.empty((N, K), kind), np.empty((N, K), kind)
    vs, dys, rs = np.empty((N, V), kind), np.empty((N, V), kind), np.zeros((N, V), kind)
    as_, betas = np.empty((N, a.shape[3]), kind), np.empty((N, 1), kind)
    dr, de = np.zeros(V, kind), np.zeros(V, kind)
    no_a, no_c, no_q = np.zeros(K, kind), np.zeros(K, kind), np.zeros(K, kind)
    for block in range(blocks - 1, -1, -1):
        start, stop = block * BLOCK, min(L + 1, (block + 1) * BLOCK)
        first = start - 1
        _gather(q, row, h, H, first, L, 0, qs)
        _gather(k, row, h, H, first, L, 0, ks)
        _gather(v, row, h, H, first, L, 0, vs)
        _gather(a, row, h, H, first, L, 1, as_)
        _gather(b, row, h, H, first, L, 0, bs)
        _gather(c, row, h, H, first, L, 0, cs)
        _gather(beta, row, h, H, first, L, 0, betas)
        _gather(dy, row, h, H, first, L, 0, dys)
        for i in range(N):
            if 0 <= first + i < L:
                for j in range(V):
                    rs[i, j] = betas[i, 0] * reads[first + i, j]
        _copy(states[0], kept[block])
        for i in range(1, stop - start):
            _copy(states[i], states[i - 1])
            _write(states[i], as_[i], bs[i], ks[i], rs[i], vs[i])
        for n in range(stop - 1, start - 1, -1):
            w = n - start
            reader = n if before else n - 1
            dat, dct, dqt = no_a, no_c, no_q
            if n < L:
                dat, dct = da[row, n, h], dc[row, n, h]
            if 0 <= reader < L:
                dqt = dq[row, reader, h]
            i = reader - first
            _pull(G, states[w], as_[w + 1], cs[w + 1], qs[i], de, dys[i], dat, dct, dqt)
            if n > 0:
                dvt = dv[row, n - 1, h]
                if own:
                    for j in range(V):
                        vs[w, j] -= rs[w, j]
                    _credit_own(G, ks[w], vs[w], dk[row, n - 1, h], dvt)
                    for j in range(V):
                        dr[j] = -dvt[j]
                else:
                    _credit(G, bs[w], ks[w], rs[w], vs[w], db[row, n - 1, h], dk[row, n - 1, h], dr, dvt)
                for j in range(V):
                    dbeta[row, n - 1, h, 0] += dr[j] * reads[n - 1, j]
                    de[j] = betas[w, 0] * dr[j]


@jit
def _backward(q, k, v, a, b, c, beta, S, lengths, before, own, y, G, dy, dq, dk, dv, da, db, dc, dbeta):
    H = v.shape[2]
    for head in numba.prange(v.shape[0] * H):
        row, h = head // H, head % H
        _one_head_backward(
            q, k, v, a, b, c, beta, row, h, lengths[row], before, own, S[row, h], y, G[row, h], dy,
            dq, dk, dv, da, db, dc, dbeta,
        )  # fmt: skip


def backward(q, k, v, a, b, c, beta, S0, lengths, before, own, dy, dlast):
    """Gradients of q, k, v, a, b, c, beta for every head (to be summed over heads that share one), and of S0."""
    # Allocated out here: numba would compile a parallel loop for each.
    heads = v.shape[:3]
    dq, dk, dc = (np.zeros((*heads, q.shape[3]), v.dtype) for _ in range(3))
    db = np.zeros((1, 1, 1, 1) if own else dq.shape, v.dtype)
    dv, da, dbeta = np.zeros_like(v), np.zeros((*heads, a.shape[3]), v.dtype), np.zeros((*heads, 1), v.dtype)
    S, y, dS0 = S0.copy(), np.empty_like(v), dlast.copy()
    _backward(q, k, v, a, b, c, beta, S, lengths, before, own, y, dS0, dy, dq, dk, dv, da, db, dc, dbeta)
    return dq, dk, dv, da, db, dc, dbeta, dS0
