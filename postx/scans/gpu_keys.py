"""The decay recurrence on a GPU in chunks of tokens, with tensor cores: one decay for each key.

With the letters of `gpu_chunked`, c_i is now a row of numbers, one a key. Let p_i = c_i where the new table is read
(u is 1 then), or c_(i-1) where the old one is (BEFORE), plus the token itself with the bonus u. Then

    S <- e^(c_C) * S + (e^(c_C - c) * K)' V                         `walk`, from chunk to chunk
    Y  = (e^p * Q) S + A V                                          `outputs`, every chunk on its own
    A_ij = sum over keys of  q_i k_j e^(p_i - c_j)  for j < i,      A_ii = q_i (u * k_i)

e^p and e^-c cannot be multiplied into q and k once and for all: e^-c overflows. But let s = 1, 2, 4, ... C/2 be the
highest bit in which the numbers of two tokens j < i differ: they lie in the two halves of one block of 2 s tokens, and
meet at its middle m. So log2(C) levels, each with one factor a token, hold all pairs:

    f_i = e^(decays from m to i) if bit s of i is set, else e^(decays from behind i to m)       no factor exceeds 1
    z_i = f_i * (q_i if bit s of i is set, else k_i)                A_ij = z_i' z_j  at the level of the pair

Every exponent is the sum of the log-decays of its own stretch of tokens. A level's are had at once as R g, with R
a matrix of zeros and ones (`gpu_keys_ops.spans`) and g as one or two numbers of the operands' dtype, summed in float32.
No two sums are ever subtracted, so that no steep or long stretch takes the digits of another.

Back, with G the gradient of the table behind the chunk, dA = causal (dY V'), and B = dA + dA' without its diagonal:

    G <- e^(c_C) * G + (e^p * Q)' dY                                `walk`, REVERSE
    dV = (e^(c_C - c) * K) G + A' dY                                `outputs`, REVERSE
    x_i = sum of B_ij z_j over the pairs of a level:  the gradient of z_i, so f_i x_i goes to dq_i or to dk_i
    dQ has  e^p * (dY S') + dA_ii u k_i,   dK has  e^(c_C - c) * (V G') + dA_ii u q_i  more,   du = sum of dA_ii q_i k_i

The decays learn by the same stretches (`gradients`): where R g is an exponent of a factor, its gradient is the factor's
times the factor, n_i = z_i x_i, and what reaches g is R' n. The other exponents are p (n = q e^p dY S'), c_C - c
(n = k e^(c_C - c) V G'), and c_C, of which every token gets e^(c_C) <G, S>, a sum over values. The known short way,
q dq - k dk summed from behind, takes pairs away that it has added before; this one adds each pair once.

A token past its row's end counts as q = k = v = dy = g = 0. Tables travel between the passes in the operands' dtype.
Source: Yang et al. 2024 (GLA), sec. 4, whose two sizes of sub-blocks the levels replace.
"""

import triton
import triton.language as tl

from postx.scans.gpu_chunked import LOG2E, head_of, product, rows_of
from postx.scans.gpu_decay import length_of


@triton.jit
def log_decays(g, start, c, i, by_T, by_K, L, K, kind: tl.constexpr):
    """g [tokens, keys]. One below -111 (-762 in float64) makes 0 of anything in its dtype, -inf too."""
    least: tl.constexpr = -762.0 if kind == tl.float64 else -111.0
    mask = (c < L - start)[:, None] & (i < K)[None, :]
    x = tl.load(g + start * by_T + (c[:, None] * by_T + i[None, :] * by_K), mask=mask, other=0).to(kind)
    return tl.maximum(x, least, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def either(q, k, start, c, level, q_T, k_T, i, L, K, op: tl.constexpr):
    """[tokens, keys]: q where a token's number has the level's bit set, else k. Read anew, not kept in registers."""
    rows = tl.where((c >> level) % 2 == 1, q + (start + c) * q_T, k + (start + c) * k_T)
    mask = (c < L - start)[:, None] & (i < K)[None, :]
    return tl.load(rows[:, None] + i[None, :], mask=mask, other=0).to(op)


@triton.jit
def matrix(spans, n, CHUNK: tl.constexpr):
    """The n-th of the matrices that `gpu_keys_ops.spans` lists."""
    c = tl.arange(0, CHUNK)
    return tl.load(spans + n * CHUNK * CHUNK + (c[:, None] * CHUNK + c[None, :]))


@triton.jit
def faded(R, g, op: tl.constexpr, EXACT: tl.constexpr, PRECISION: tl.constexpr):
    """exp of R g. EXACT says that g are numbers of dtype op; else they are taken as two, and in float32 as they are."""
    high = g.to(op)
    e = product(R, high, tl.zeros([R.shape[0], g.shape[1]], g.dtype), PRECISION)
    if not EXACT:
        e = product(R, (g - high.to(g.dtype)).to(op), e, PRECISION)
    return tl.exp2(e * LOG2E)


@triton.jit
def all_faded(g):
    return tl.exp2(tl.sum(g, 0) * LOG2E)


@triton.jit(do_not_specialize=["T", "h0", "chunks"])
def walk(
    x, w, g, first, lengths, spans, tables, last,
    T, H, K, V, G_x, G_g, h0, heads, chunks,
    x_B, x_T, x_H, w_B, w_T, w_H, g_B, g_T, g_H, g_K,
    REVERSE: tl.constexpr, RAGGED: tl.constexpr, EXACT: tl.constexpr, PRECISION: tl.constexpr,
    CHUNK: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """tables [B,heads,chunks,K,V]: S before every chunk, or G behind it where REVERSE; first and last [B,H,K,V].

    Of all H heads only `heads`, from h0 on. x is k and w is v, or q and dy where REVERSE.
    """
    kind: tl.constexpr = last.dtype.element_ty
    op: tl.constexpr = tables.dtype.element_ty
    program = tl.program_id(0)
    b, h = (program // heads).to(tl.int64), h0 + program % heads
    i = tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K)
    j = tl.program_id(2) * BLOCK_V + tl.arange(0, BLOCK_V)
    inside = (i < K)[:, None] & (j < V)[None, :]
    tile = i[:, None] * V + j[None, :]
    at = (b * H + h) * K * V + tile
    X = tl.load(first + at, mask=inside, other=0).to(kind)
    x += b * x_B + head_of(h, G_x, H, x_H)
    w += b * w_B + head_of(h, H, H, w_H)
    g += b * g_B + head_of(h, G_g, H, g_H)
    tables += program.to(tl.int64) * chunks * K * V + tile
    L = length_of(lengths, b, T, RAGGED)
    c = tl.arange(0, CHUNK)
    span = matrix(spans, 0 if REVERSE else 1, CHUNK)
    for m in tl.range(0, chunks, num_stages=STAGES):
        n = tl.zeros([], tl.int64) + (chunks - 1 - m if REVERSE else m)
        start = n * CHUNK
        tl.store(tables + n * K * V, X.to(op), mask=inside)
        xt = rows_of(x, start, c, x_T, i, L, K, op)
        wt = rows_of(w, start, c, w_T, j, L, V, op)
        gt = log_decays(g, start, c, i, g_T, g_K, L, K, kind)
        xt = (xt * faded(span, gt, op, EXACT, PRECISION)).to(op)
        X = product(tl.trans(xt), wt, X * all_faded(gt)[:, None], PRECISION)
    tl.store(last + at, X, mask=inside)


@triton.jit(do_not_specialize=["T", "h0", "chunks"])
def outputs(
    q, k, v, g, u, tables, lengths, spans, y,
    T, H, K, V, G_q, G_k, G_g, h0, heads, chunks,
    q_B, q_T, q_H, k_B, k_T, k_H, v_B, v_T, v_H, g_B, g_T, g_H, g_K,
    REVERSE: tl.constexpr, BEFORE: tl.constexpr, BONUS: tl.constexpr, RAGGED: tl.constexpr, EXACT: tl.constexpr,
    PRECISION: tl.constexpr, KIND: tl.constexpr, ONE: tl.constexpr, LEVELS: tl.constexpr, AHEAD: tl.constexpr,
    CHUNK: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    """y [B,T,H,V], or dv where REVERSE: then v is dy, and the tables are G. ONE says that K fits one block."""
    op: tl.constexpr = tables.dtype.element_ty
    program = tl.program_id(0)
    h, n = h0 + program % heads, (program // heads % chunks).to(tl.int64)
    b = (program // heads // chunks).to(tl.int64)
    start, c = n * CHUNK, tl.arange(0, CHUNK)
    row, column = c[:, None], c[None, :]
    j = tl.program_id(1) * BLOCK_V + tl.arange(0, BLOCK_V)
    L = length_of(lengths, b, T, RAGGED)
    q += b * q_B + head_of(h, G_q, H, q_H)
    k += b * k_B + head_of(h, G_k, H, k_H)
    v += b * v_B + head_of(h, H, H, v_H)
    g += b * g_B + head_of(h, G_g, H, g_H)
    tables += ((b * heads + h - h0) * chunks + n) * K * V
    A, out = tl.zeros([CHUNK, CHUNK], KIND), tl.zeros([CHUNK, BLOCK_V], KIND)
    own = tl.zeros([CHUNK], KIND)
    for first in range(0, BLOCK_K if ONE else K, BLOCK_K):
        i = first + tl.arange(0, BLOCK_K)
        qt, kt = rows_of(q, start, c, q_T, i, L, K, op), rows_of(k, start, c, k_T, i, L, K, op)
        gt = log_decays(g, start, c, i, g_T, g_K, L, K, KIND)
        inside = (i < K)[:, None] & (j < V)[None, :]
        S = tl.load(tables + i[:, None] * V + j[None, :], mask=inside, other=0)
        f = faded(matrix(spans, 1 if REVERSE else 0, CHUNK), gt, op, EXACT, PRECISION)
        out = product((f * (kt if REVERSE else qt)).to(op), S, out, PRECISION)
        if BONUS:
            ut = tl.load(u + h * K + i, mask=i < K, other=0).to(KIND)
            own += tl.sum(qt.to(KIND) * kt.to(KIND) * ut[None, :], 1)
        elif not BEFORE:
            own += tl.sum(qt.to(KIND) * kt.to(KIND), 1)
        for level in tl.range(0, LEVELS, num_stages=AHEAD):
            f = faded(matrix(spans, 2 + 2 * level, CHUNK), gt, op, EXACT, PRECISION)
            z = (f * either(q, k, start, c, level, q_T, k_T, i, L, K, op)).to(op)
            pairs = product(z, tl.trans(z), tl.zeros([CHUNK, CHUNK], KIND), PRECISION)
            A += tl.where(column >> level == row >> level ^ 1, pairs, 0)
    A = tl.where(row < column if REVERSE else row > column, A, 0) + tl.where(row == column, own[:, None], 0)
    vt = rows_of(v, start, c, v_T, j, L, V, op)
    out = product(A.to(op), vt, out, PRECISION)
    y += ((b * T + start) * H + h) * V
    at, real = c[:, None] * H * V + j[None, :], (c < T - start)[:, None] & (j < V)[None, :]
    tl.store(y + at, out.to(y.dtype.element_ty), mask=real)


@triton.jit(do_not_specialize=["T", "h0", "chunks"])
def gradients(
    q, k, v, g, u, tables, adjoints, lengths, spans, dy, dq, dk, dg, du,
    T, H, K, V, G_q, G_k, G_g, h0, heads, chunks,
    q_B, q_T, q_H, k_B, k_T, k_H, v_B, v_T, v_H, g_B, g_T, g_H, g_K, dy_B, dy_T, dy_H,
    BEFORE: tl.constexpr, BONUS: tl.constexpr, LEARN: tl.constexpr, CONSTANT: tl.constexpr, RAGGED: tl.constexpr,
    EXACT: tl.constexpr, PRECISION: tl.constexpr, KIND: tl.constexpr, LEVELS: tl.constexpr, AHEAD: tl.constexpr,
    CHUNK: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    """dq and dk [B,T,H,K]; with LEARN dg as well, with BONUS du [B,chunks,H,K]. CONSTANT dg are du's shape."""
    op: tl.constexpr = tables.dtype.element_ty
    program = tl.program_id(0)
    h, n = h0 + program % heads, (program // heads % chunks).to(tl.int64)
    b = (program // heads // chunks).to(tl.int64)
    start, c = n * CHUNK, tl.arange(0, CHUNK)
    row, column = c[:, None], c[None, :]
    i = tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K)
    L = length_of(lengths, b, T, RAGGED)
    q += b * q_B + head_of(h, G_q, H, q_H)
    k += b * k_B + head_of(h, G_k, H, k_H)
    v += b * v_B + head_of(h, H, H, v_H)
    dy += b * dy_B + head_of(h, H, H, dy_H)
    table = ((b * heads + h - h0) * chunks + n) * K * V
    dA = tl.zeros([CHUNK, CHUNK], KIND)
    dqt, dkt = tl.zeros([CHUNK, BLOCK_K], KIND), tl.zeros([CHUNK, BLOCK_K], KIND)
    both = tl.zeros([BLOCK_K], KIND)
    for first in range(0, V, BLOCK_V):
        j = first + tl.arange(0, BLOCK_V)
        vt, dyt = rows_of(v, start, c, v_T, j, L, V, op), rows_of(dy, start, c, dy_T, j, L, V, op)
        inside = (i < K)[:, None] & (j < V)[None, :]
        S = tl.load(tables + table + i[:, None] * V + j[None, :], mask=inside, other=0)
        G = tl.load(adjoints + table + i[:, None] * V + j[None, :], mask=inside, other=0)
        dA = product(dyt, tl.trans(vt), dA, PRECISION)
        dqt = product(dyt, tl.trans(S), dqt, PRECISION)
        dkt = product(vt, tl.trans(G), dkt, PRECISION)
        if LEARN:
            both += tl.sum(S.to(KIND) * G.to(KIND), 1)
    own = tl.sum(tl.where(row == column, dA, 0), 1)[:, None]
    dA = tl.where(row > column, dA, 0)
    B = (dA + tl.trans(dA)).to(op)
    qt = rows_of(q, start, c, q_T, i, L, K, op)
    kt = rows_of(k, start, c, k_T, i, L, K, op)
    gt = log_decays(g + b * g_B + head_of(h, G_g, H, g_H), start, c, i, g_T, g_K, L, K, KIND)
    R, W = matrix(spans, 0, CHUNK), matrix(spans, 1, CHUNK)
    dqt *= faded(R, gt, op, EXACT, PRECISION)
    dkt *= faded(W, gt, op, EXACT, PRECISION)
    dgt = tl.zeros([CHUNK, BLOCK_K], KIND)
    if LEARN:
        dgt += (all_faded(gt) * both)[None, :]
        dgt = product(tl.trans(R), (qt * dqt).to(op), dgt, PRECISION)
        dgt = product(tl.trans(W), (kt * dkt).to(op), dgt, PRECISION)
    at, real = i[None, :] + c[:, None] * H * K, (c < T - start)[:, None] & (i < K)[None, :]
    summed = ((b * chunks + n) * H + h) * K + i
    if BONUS:
        ut = tl.load(u + h * K + i, mask=i < K, other=0).to(KIND)[None, :]
        tl.store(du + summed, tl.sum(own * qt * kt, 0), mask=i < K)
        dqt += own * ut * kt
        dkt += own * ut * qt
    elif not BEFORE:
        dqt += own * kt
        dkt += own * qt
    for level in tl.range(0, LEVELS, num_stages=AHEAD):
        R = matrix(spans, 2 + 2 * level, CHUNK)
        reads = (row >> level) % 2 == 1
        f = faded(R, gt, op, EXACT, PRECISION)
        z = (f * either(q, k, start, c, level, q_T, k_T, i, L, K, op)).to(op)
        x = product(B * matrix(spans, 3 + 2 * level, CHUNK), z, tl.zeros([CHUNK, BLOCK_K], KIND), PRECISION)
        if LEARN:
            dgt = product(tl.trans(R), (z * x).to(op), dgt, PRECISION)
        dqt += tl.where(reads, f * x, 0)
        dkt += tl.where(reads, 0, f * x)
    out = ((b * T + start) * H + h) * K
    tl.store(dq + out + at, dqt.to(dq.dtype.element_ty), mask=real)
    tl.store(dk + out + at, dkt.to(dk.dtype.element_ty), mask=real)
    if LEARN:
        dgt = tl.where((c < L - start)[:, None], dgt, 0)
        if CONSTANT:
            tl.store(dg + summed, tl.sum(dgt, 0), mask=i < K)
        else:
            tl.store(dg + out + at, dgt.to(dg.dtype.element_ty), mask=real)
