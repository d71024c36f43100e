"""The delta recurrence on the CPU: S <- diag(a) S - b (beta c' S) + k v', one thread a head, one pass over S a token.

What the next token will erase (c' S) is gathered while this token writes, so S goes through the processor once a
token. Number the states X_0 (before the first token) to X_L. Token n - 1 wrote X_n, token n reads X_n with c, and q
reads X_n for token n - 1 ("after") or for token n ("before"). Where there is no such token, zeros stand for it.

The backward pass walks from X_L to X_0, again in one pass a state. It keeps a copy every `BLOCK` states and rebuilds
the ones in between: beside one row of V numbers a token, its memory is T / BLOCK tables a thread. Arrays are
contiguous and [B,H,T,...] here, so that a head walks through memory in order (twice as fast as striding over the
other heads). Axes of size 1 in `a` and `beta` broadcast; reader head h uses head h // (H / G) of every argument.
"""

import numpy as np

from postx.scans.runtime import inline, jit, numba, serial

BLOCK = 32


@inline
def _head(x, row, h, H):
    """All tokens of the head that h reads."""
    return x[row if x.shape[0] > 1 else 0, h * x.shape[1] // H]


@inline
def _token(x, t):
    """One token's entries; a constant has only one."""
    return x[t if x.shape[0] > 1 else 0]


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
    y[:] = 0
    e[:] = 0
    step = 1 if a.shape[0] > 1 else 0
    for i in range(S.shape[0]):
        ai, bi, ki, qi, ci = a[i * step], b[i], k[i], q[i], c[i]
        for j in range(S.shape[1]):
            s = ai * S[i, j] - bi * r[j] + ki * v[j]
            S[i, j] = s
            y[j] += qi * s
            e[j] += ci * s


@serial
def _one_head(q, k, v, a, b, c, beta, L, before, S, y, reads, kept):
    """One head from X_0 to X_L, in place in S, which `kept` gets a copy of every BLOCK states.

    Where `reads` has rows they get beta c' X_n of every token; where `kept` has none nothing is kept.
    """
    K, V = S.shape
    ones, zeros, none = np.ones(K, S.dtype), np.zeros(K, S.dtype), np.zeros(V, S.dtype)
    r, e, yt = np.zeros(V, S.dtype), np.zeros(V, S.dtype), np.zeros(V, S.dtype)
    at, bt, kt, vt = ones, zeros, zeros, none
    for n in range(L + 1):
        if n > 0:
            at, bt, kt, vt = _token(a, n - 1), b[n - 1], k[n - 1], v[n - 1]
        reader = n if before else n - 1
        read = 0 <= reader < L
        qt = q[reader] if read else zeros
        ct = c[n] if n < L else zeros
        _write_and_read(S, at, bt, kt, r, vt, qt, ct, yt, e)
        if read:
            y[reader] = yt
        if n < L:
            strength = _token(beta, n)
            for j in range(V):
                r[j] = strength * e[j]
        if n < reads.shape[0]:
            reads[n] = e
        if n < kept.shape[0] * BLOCK and n % BLOCK == 0:
            kept[n // BLOCK] = S


@jit
def forward(q, k, v, a, b, c, beta, S0, lengths, before):
    """Returns y [B,H,T,V] and the last state [B,H,K,V]."""
    B, H = v.shape[:2]
    y = np.zeros_like(v)
    last = S0.copy()
    for head in numba.prange(B * H):
        row, h = head // H, head % H
        no_reads, no_states = np.empty((0, 1), v.dtype), np.empty((0, 1, 1), v.dtype)
        _one_head(
            _head(q, row, h, H), _head(k, row, h, H), v[row, h], _head(a, row, h, H), _head(b, row, h, H),
            _head(c, row, h, H), _head(beta, row, h, H), lengths[row], before, last[row, h], y[row, h],
            no_reads, no_states,
        )  # fmt: skip
    return y, last


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
    dr[:] = 0
    dv[:] = 0
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
def _one_head_backward(q, k, v, a, b, c, beta, L, before, S, G, dy, dq, dk, dv, da, db, dc, dbeta):
    """The gradients of one head, and in place in G that of X_0. S is X_0, and is spent."""
    K, V = S.shape
    blocks = L // BLOCK + 1
    reads, kept = np.empty((L, V), S.dtype), np.empty((blocks, K, V), S.dtype)
    _one_head(q, k, v, a, b, c, beta, L, before, S, np.empty((L, V), S.dtype), reads, kept)
    states = np.empty((BLOCK, K, V), S.dtype)
    ones, zeros, none = np.ones(K, S.dtype), np.zeros(K, S.dtype), np.zeros(V, S.dtype)
    r, dr, de, spare = np.zeros(V, S.dtype), np.zeros(V, S.dtype), np.zeros(V, S.dtype), np.zeros((3, K), S.dtype)
    for block in range(blocks - 1, -1, -1):
        start, stop = block * BLOCK, min(L + 1, (block + 1) * BLOCK)
        states[0] = kept[block]
        for n in range(start, stop - 1):
            states[n - start + 1] = states[n - start]
            strength = _token(beta, n)
            for j in range(V):
                r[j] = strength * reads[n, j]
            _write(states[n - start + 1], _token(a, n), b[n], k[n], r, v[n])
        for n in range(stop - 1, -1 if start == 0 else start - 1, -1):
            after, reader = n < L, n if before else n - 1
            read = 0 <= reader < L
            at, ct, dat, dct = ones, zeros, spare[0], spare[1]
            if after:
                at, ct, dat, dct = _token(a, n), c[n], da[n], dc[n]
            qt, dyt, dqt = zeros, none, spare[2]
            if read:
                qt, dyt, dqt = q[reader], dy[reader], dq[reader]
            _pull(G, states[n - start], at, ct, qt, de, dyt, dat, dct, dqt)
            if n > 0:
                strength = _token(beta, n - 1)
                for j in range(V):
                    r[j] = strength * reads[n - 1, j]
                _credit(G, b[n - 1], k[n - 1], r, v[n - 1], db[n - 1], dk[n - 1], dr, dv[n - 1])
                for j in range(V):
                    dbeta[n - 1] += dr[j] * reads[n - 1, j]
                    de[j] = strength * dr[j]


@jit
def backward(q, k, v, a, b, c, beta, S0, lengths, before, dy, dlast):
    """Gradients of q, k, a, b, c, beta for every head (to be summed over heads that share one), of v and of S0."""
    B, H, T, V = v.shape
    K, Ka = q.shape[3], a.shape[3]
    dq, dk, db, dc = (np.zeros((B, H, T, K), v.dtype), np.zeros((B, H, T, K), v.dtype),
                      np.zeros((B, H, T, K), v.dtype), np.zeros((B, H, T, K), v.dtype))  # fmt: skip
    dv, da, dbeta = np.zeros_like(v), np.zeros((B, H, T, Ka), v.dtype), np.zeros((B, H, T), v.dtype)
    dS0 = dlast.copy()
    for head in numba.prange(B * H):
        row, h = head // H, head % H
        _one_head_backward(
            _head(q, row, h, H), _head(k, row, h, H), v[row, h], _head(a, row, h, H), _head(b, row, h, H),
            _head(c, row, h, H), _head(beta, row, h, H), lengths[row], before, S0[row, h].copy(), dS0[row, h],
            dy[row, h], dq[row, h], dk[row, h], dv[row, h], da[row, h], db[row, h], dc[row, h], dbeta[row, h],
        )  # fmt: skip
    return dq, dk, dv, da, db, dc, dbeta, dS0
