"""The delta recurrence on a GPU in chunks of tokens, with tensor cores: S <- e^g S - k (beta k'S) + k v'.

g is one number a head. Within a chunk that begins at S, let c_i and D be as in `gpu_chunked`, and let a minus stand for
the token before: c-_i = c_i - g_i, and D-_ij = exp(c-_i - c_j) for j < i, else 0. What token i writes under its key,
u_i = v_i less what it erases, depends on what the earlier ones wrote: one triangular system, whose inverse M needs no
state (`solve`):

    M = (I + N)^-1, N = beta * (K K') * D-            U = M (V - p * (K S)), p = beta e^(c-)
    Y = e^c * (Q S) + ((Q K') * D) U                  S <- e^(c_C) S + K' (e^(c_C - c) * U)          `forward`

(the WY or UT transform: Bischof and Van Loan 1987; Yang et al. 2024, arXiv 2406.06484). Backwards, with G the gradient
of the table behind the chunk, dR that of V - p * (K S), and dN = -dR U' from M's derivative -M dN M:

    dU = ((Q K') * D)' dY + e^(c_C - c) * (K G)       dV = dR = M' dU
    G <- e^(c_C) G + Q' (e^c * dY) - K' (p * dR)                                                     `backward`

and then each chunk on its own (`gradients`), with A* = (dY U') * D and P = -(dR U') * D- the gradients of the pairs:

    dQ = e^c * (dY S') + A* K
    dK = e^(c_C - c) * (U G') + A*' Q - p * (dR S') + (beta * P) K + (beta * P)' K
    dbeta = rows(P * (K K')) - e^(c-) * (dR S')'k

The decays learn as in `gpu_chunked`; with F = beta * P * (K K') what hangs on c-_i is rows(F)_i - p_i (dR S')_i'k_i,
which counts for c_(i-1), and -columns(F)_j counts for c_j.

M is built by doubling: the inverse X of the diagonal blocks of size s gives that of size 2 s as X - X N X, with N cut
to the squares between neighbours. This holds where keys repeat, as the powers of N would not.
"""

import triton
import triton.language as tl

from postx.scans.gpu_chunked import head_of, pairs, product, rows_of, steps, summed
from postx.scans.gpu_decay import length_of


@triton.jit
def fading(g, start, c, stride, L, kind: tl.constexpr, DECAY: tl.constexpr, CHUNK: tl.constexpr):
    """Of a chunk: each token's own log-decay (whole number, rest), and `summed` of them; zeros without DECAY."""
    own_whole, own_rest = tl.zeros([CHUNK], kind), tl.zeros([CHUNK], kind)
    if DECAY:
        own_whole, own_rest = steps(g, start, c, stride, L, kind)
    whole, rest, whole_left, rest_left, keep = summed(own_whole, own_rest)
    return own_whole, own_rest, whole, rest, whole_left, rest_left, keep


@triton.jit
def strict(own_whole, own_rest, whole, rest):
    """D-."""
    i = tl.arange(0, whole.shape[0])
    D = tl.exp2(((whole - own_whole)[:, None] - whole[None, :]) + ((rest - own_rest)[:, None] - rest[None, :]))
    return tl.where(i[:, None] > i[None, :], D, 0)


@triton.jit(do_not_specialize=["T", "chunks"])
def solve(
    k, g, beta, lengths, inverse,
    T, H, K, G_k, G_g, G_beta, chunks, k_B, k_T, k_H, g_B, g_T, g_H, beta_B, beta_T, beta_H,
    DECAY: tl.constexpr, RAGGED: tl.constexpr, PRECISION: tl.constexpr, SOLVE: tl.constexpr, KIND: tl.constexpr,
    CHUNK: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """inverse [B,H,chunks,CHUNK,CHUNK]: M of every chunk. SOLVE is the precision of the doubling's products."""
    op: tl.constexpr = inverse.dtype.element_ty
    program = tl.program_id(0)
    h, n = program % H, (program // H % chunks).to(tl.int64)
    b = (program // H // chunks).to(tl.int64)
    start, c = n * CHUNK, tl.arange(0, CHUNK)
    L = length_of(lengths, b, T, RAGGED)
    kt = rows_of(k + b * k_B + head_of(h, G_k, H, k_H), start, c, k_T, tl.arange(0, BLOCK_K), L, K, op)
    beta += b * beta_B + head_of(h, G_beta, H, beta_H)
    rate = tl.load(beta + (start + c) * beta_T, mask=c < L - start, other=0).to(KIND)
    g += b * g_B + head_of(h, G_g, H, g_H)
    own_whole, own_rest, whole, rest, _, _, _ = fading(g, start, c, g_T, L, KIND, DECAY, CHUNK)
    N = product(kt, tl.trans(kt), tl.zeros([CHUNK, CHUNK], KIND), PRECISION) * rate[:, None]
    N *= strict(own_whole, own_rest, whole, rest)
    i, j = tl.arange(0, CHUNK)[:, None], tl.arange(0, CHUNK)[None, :]
    X = tl.where(i == j, 1.0, tl.where(i // 2 == j // 2, -N, 0)).to(KIND)
    for level in tl.static_range(1, 8):
        if 2**level < CHUNK:
            side = 2**level
            inside = (i // (2 * side) == j // (2 * side)) & (i // side != j // side)
            half = product(tl.where(inside, N, 0), X, tl.zeros([CHUNK, CHUNK], KIND), SOLVE)
            X -= product(X, half, tl.zeros([CHUNK, CHUNK], KIND), SOLVE)
    tl.store(inverse + ((b * H + h) * chunks + n) * CHUNK * CHUNK + i * CHUNK + j, X.to(op))


@triton.jit(do_not_specialize=["T", "chunks"])
def forward(
    q, k, v, g, beta, inverse, first, lengths, y, last, tables, written,
    T, H, K, V, G_q, G_k, G_g, G_beta, chunks,
    q_B, q_T, q_H, k_B, k_T, k_H, v_B, v_T, v_H, g_B, g_T, g_H, beta_B, beta_T, beta_H,
    DECAY: tl.constexpr, RAGGED: tl.constexpr, PRECISION: tl.constexpr, KEEP: tl.constexpr, READ: tl.constexpr,
    CHUNK: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """With READ y [B,T,H,V] and last [B,H,K,V]; with KEEP the table before every chunk, and written [B,T,H,V], U."""
    kind: tl.constexpr = first.dtype.element_ty
    op: tl.constexpr = inverse.dtype.element_ty
    head = tl.program_id(0)
    b, h = (head // H).to(tl.int64), head % H
    i, j = tl.arange(0, BLOCK_K), tl.program_id(1) * BLOCK_V + tl.arange(0, BLOCK_V)
    tile, inside = i[:, None] * V + j[None, :], (i < K)[:, None] & (j < V)[None, :]
    S = tl.load(first + head.to(tl.int64) * K * V + tile, mask=inside, other=0)
    q += b * q_B + head_of(h, G_q, H, q_H)
    k += b * k_B + head_of(h, G_k, H, k_H)
    v += b * v_B + head_of(h, H, H, v_H)
    g += b * g_B + head_of(h, G_g, H, g_H)
    beta += b * beta_B + head_of(h, G_beta, H, beta_H)
    inverse += head.to(tl.int64) * chunks * CHUNK * CHUNK
    L, c = length_of(lengths, b, T, RAGGED), tl.arange(0, CHUNK)
    square, at = c[:, None] * CHUNK + c[None, :], c[:, None] * H * V + j[None, :]
    for m in tl.range(0, chunks, num_stages=STAGES):
        n = m + tl.zeros([], tl.int64)
        start = n * CHUNK
        kt = rows_of(k, start, c, k_T, i, L, K, op)
        vt = rows_of(v, start, c, v_T, j, L, V, op)
        M = tl.load(inverse + n * CHUNK * CHUNK + square)
        rate = tl.load(beta + (start + c) * beta_T, mask=c < L - start, other=0).to(kind)
        own_whole, own_rest, whole, rest, whole_left, rest_left, keep = fading(g, start, c, g_T, L, kind, DECAY, CHUNK)
        table = S.to(op)
        held = product(kt, table, tl.zeros([CHUNK, BLOCK_V], kind), PRECISION)
        held *= (rate * tl.exp2((whole - own_whole) + (rest - own_rest)))[:, None]
        U = product(M, (vt - held).to(op), tl.zeros([CHUNK, BLOCK_V], kind), PRECISION)
        real, past = (c < T - start)[:, None] & (j < V)[None, :], (b * T + start) * H * V + h * V
        if READ:
            qt = rows_of(q, start, c, q_T, i, L, K, op)
            A = product(qt, tl.trans(kt), tl.zeros([CHUNK, CHUNK], kind), PRECISION) * pairs(whole, rest, False)
            out = product(qt, table, tl.zeros([CHUNK, BLOCK_V], kind), PRECISION) * tl.exp2(whole + rest)[:, None]
            out = product(A.to(op), U.to(op), out, PRECISION)
            tl.store(y + past + at, out.to(y.dtype.element_ty), mask=real)
        if KEEP:
            tl.store(tables + (head * chunks + n) * K * V + tile, table, mask=inside)
            tl.store(written + past + at, U.to(op), mask=real)
        U *= tl.exp2(whole_left + rest_left)[:, None]
        S = product(tl.trans(kt), U.to(op), S * keep, PRECISION)
    if READ:
        tl.store(last + head.to(tl.int64) * K * V + tile, S, mask=inside)


@triton.jit(do_not_specialize=["T", "chunks"])
def backward(
    q, k, dy, g, beta, inverse, dlast, lengths, dv, dS, adjoints,
    T, H, K, V, G_q, G_k, G_g, G_beta, chunks,
    q_B, q_T, q_H, k_B, k_T, k_H, dy_B, dy_T, dy_H, g_B, g_T, g_H, beta_B, beta_T, beta_H,
    DECAY: tl.constexpr, RAGGED: tl.constexpr, PRECISION: tl.constexpr,
    CHUNK: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """dv [B,T,H,V], dS [B,H,K,V] and adjoints [B,H,chunks,K,V], the gradient of the table behind every chunk."""
    kind: tl.constexpr = dlast.dtype.element_ty
    op: tl.constexpr = inverse.dtype.element_ty
    head = tl.program_id(0)
    b, h = (head // H).to(tl.int64), head % H
    i, j = tl.arange(0, BLOCK_K), tl.program_id(1) * BLOCK_V + tl.arange(0, BLOCK_V)
    tile, inside = i[:, None] * V + j[None, :], (i < K)[:, None] & (j < V)[None, :]
    G = tl.load(dlast + head.to(tl.int64) * K * V + tile, mask=inside, other=0)
    q += b * q_B + head_of(h, G_q, H, q_H)
    k += b * k_B + head_of(h, G_k, H, k_H)
    dy += b * dy_B + head_of(h, H, H, dy_H)
    g += b * g_B + head_of(h, G_g, H, g_H)
    beta += b * beta_B + head_of(h, G_beta, H, beta_H)
    inverse += head.to(tl.int64) * chunks * CHUNK * CHUNK
    L, c = length_of(lengths, b, T, RAGGED), tl.arange(0, CHUNK)
    square, at = c[:, None] * CHUNK + c[None, :], c[:, None] * H * V + j[None, :]
    for m in tl.range(0, chunks, num_stages=STAGES):
        n = chunks - 1 - m + tl.zeros([], tl.int64)
        start = n * CHUNK
        qt, kt = rows_of(q, start, c, q_T, i, L, K, op), rows_of(k, start, c, k_T, i, L, K, op)
        gt = rows_of(dy, start, c, dy_T, j, L, V, op)
        M = tl.load(inverse + n * CHUNK * CHUNK + square)
        rate = tl.load(beta + (start + c) * beta_T, mask=c < L - start, other=0).to(kind)
        own_whole, own_rest, whole, rest, whole_left, rest_left, keep = fading(g, start, c, g_T, L, kind, DECAY, CHUNK)
        table = G.to(op)
        tl.store(adjoints + (head * chunks + n) * K * V + tile, table, mask=inside)
        A = product(kt, tl.trans(qt), tl.zeros([CHUNK, CHUNK], kind), PRECISION) * pairs(whole, rest, True)
        dU = product(kt, table, tl.zeros([CHUNK, BLOCK_V], kind), PRECISION) * tl.exp2(whole_left + rest_left)[:, None]
        dU = product(A.to(op), gt, dU, PRECISION)
        dR = product(tl.trans(M), dU.to(op), tl.zeros([CHUNK, BLOCK_V], kind), PRECISION)
        real, past = (c < T - start)[:, None] & (j < V)[None, :], (b * T + start) * H * V + h * V
        tl.store(dv + past + at, dR.to(dv.dtype.element_ty), mask=real)
        G = product(tl.trans(qt), (gt * tl.exp2(whole + rest)[:, None]).to(op), G * keep, PRECISION)
        dR *= -(rate * tl.exp2((whole - own_whole) + (rest - own_rest)))[:, None]
        G = product(tl.trans(kt), dR.to(op), G, PRECISION)
    tl.store(dS + head.to(tl.int64) * K * V + tile, G, mask=inside)


@triton.jit(do_not_specialize=["T", "chunks"])
def gradients(
    q, k, g, beta, tables, adjoints, written, lengths, dy, dv, dq, dk, dg, dbeta,
    T, H, K, V, G_q, G_k, G_g, G_beta, chunks,
    q_B, q_T, q_H, k_B, k_T, k_H, dy_B, dy_T, dy_H, g_B, g_T, g_H, beta_B, beta_T, beta_H,
    DECAY: tl.constexpr, RAGGED: tl.constexpr, PRECISION: tl.constexpr,
    CHUNK: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    """dq and dk [B,T,H,K], dg (with DECAY) and dbeta [B,T,H], of each head alone."""
    kind: tl.constexpr = dbeta.dtype.element_ty
    op: tl.constexpr = tables.dtype.element_ty
    program = tl.program_id(0)
    h, n = program % H, (program // H % chunks).to(tl.int64)
    b = (program // H // chunks).to(tl.int64)
    start, c, i = n * CHUNK, tl.arange(0, CHUNK), tl.arange(0, BLOCK_K)
    L = length_of(lengths, b, T, RAGGED)
    g += b * g_B + head_of(h, G_g, H, g_H)
    beta += b * beta_B + head_of(h, G_beta, H, beta_H)
    rate = tl.load(beta + (start + c) * beta_T, mask=c < L - start, other=0).to(kind)
    own_whole, own_rest, whole, rest, whole_left, rest_left, keep = fading(g, start, c, g_T, L, kind, DECAY, CHUNK)
    seen, left = tl.exp2(whole + rest)[:, None], tl.exp2(whole_left + rest_left)[:, None]
    sooner = tl.exp2((whole - own_whole) + (rest - own_rest))[:, None]  # e^(c-)
    table, past = ((b * H + h) * chunks + n) * K * V, b * T * H * V + h * V
    dA, P = tl.zeros([CHUNK, CHUNK], kind), tl.zeros([CHUNK, CHUNK], kind)
    dqt, dkt = tl.zeros([CHUNK, BLOCK_K], kind), tl.zeros([CHUNK, BLOCK_K], kind)
    taken, both = tl.zeros([CHUNK, BLOCK_K], kind), tl.zeros([BLOCK_K], kind)
    for first in range(0, V, BLOCK_V):
        j = first + tl.arange(0, BLOCK_V)
        gt = rows_of(dy + b * dy_B + head_of(h, H, H, dy_H), start, c, dy_T, j, L, V, op)
        ut, rt = rows_of(written + past, start, c, H * V, j, L, V, op), rows_of(dv + past, start, c, H * V, j, L, V, op)
        tile, inside = i[:, None] * V + j[None, :], (i < K)[:, None] & (j < V)[None, :]
        S = tl.load(tables + table + tile, mask=inside, other=0)
        G = tl.load(adjoints + table + tile, mask=inside, other=0)
        dA = product(gt, tl.trans(ut), dA, PRECISION)
        P = product(rt, tl.trans(ut), P, PRECISION)
        dqt = product(gt, tl.trans(S), dqt, PRECISION)
        dkt = product(ut, tl.trans(G), dkt, PRECISION)
        taken = product(rt, tl.trans(S), taken, PRECISION)
        if DECAY:
            both += tl.sum(S.to(kind) * G.to(kind), 1)
    qt = rows_of(q + b * q_B + head_of(h, G_q, H, q_H), start, c, q_T, i, L, K, op)
    kt = rows_of(k + b * k_B + head_of(h, G_k, H, k_H), start, c, k_T, i, L, K, op)
    dqt *= seen
    dkt *= left
    taken *= sooner
    dA *= pairs(whole, rest, False)
    P *= -strict(own_whole, own_rest, whole, rest)
    F = P * product(kt, tl.trans(kt), tl.zeros([CHUNK, CHUNK], kind), PRECISION)
    lost = tl.sum(F, 1) - tl.sum(kt * taken, 1)  # the gradient of beta, and of c- where it is times beta
    at = (b * T + start + c) * H + h
    tl.store(dbeta + at, tl.where(c < L - start, lost, 0), mask=c < T - start)
    if DECAY:
        A = dA * product(qt, tl.trans(kt), tl.zeros([CHUNK, CHUNK], kind), PRECISION)
        held = tl.sum(kt * dkt, 1)
        lost *= rate
        dc = tl.sum(qt * dqt, 1) - held + tl.sum(A, 1) - tl.sum(A, 0) - tl.sum(F * rate[:, None], 0) + lost
        dgt = tl.cumsum(dc, 0, reverse=True) - lost + (keep * tl.sum(both, 0) + tl.sum(held, 0))
        tl.store(dg + at, tl.where(c < L - start, dgt, 0), mask=c < T - start)
    dqt = product(dA.to(op), kt, dqt, PRECISION)
    dkt = product(tl.trans(dA.to(op)), qt, dkt - rate[:, None] * taken, PRECISION)
    P = (P * rate[:, None]).to(op)
    dkt = product(P, kt, dkt, PRECISION)
    dkt = product(tl.trans(P), kt, dkt, PRECISION)
    rows, some = c[:, None] * H * K + i[None, :], (c < T - start)[:, None] & (i < K)[None, :]
    past = (b * T + start) * H * K + h * K
    tl.store(dq + past + rows, dqt.to(dq.dtype.element_ty), mask=some)
    tl.store(dk + past + rows, dkt.to(dk.dtype.element_ty), mask=some)
