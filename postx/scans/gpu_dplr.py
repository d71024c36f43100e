"""The general delta recurrence on a GPU in chunks of tokens, forward: a decay for each key, and free b and c.

    S <- diag(e^g) S + b (c'S) + k v'        y = S'q        (c stands for -beta c: what is put back, not taken out)

Let S begin a chunk. Of what token j < i wrote, E_ij = exp(g_(j+1) + ... + g_(i-1)) is left before token i, key by key,
and D_ij = e^(g_i) E_ij behind it. The pairs are sums over keys of three factors,

    QK_ij = q_i' D_ij k_j for j <= i (D_ii = 1)        CK_ij = c_i' E_ij k_j for j < i

and QB, CB likewise with b. (Where y reads the old state, E stands for D, and the diagonals are 0.) What the tokens put
back is R = c~ S + CK V + CB R, where q~ = D_i0 q and c~ = E_i0 c are seen from the chunk's start, and k^ = E_(C+1)j k
and b^ from its end. CB is strictly lower triangular, so M = (I - CB)^-1 exists; with W = M c~, Lq = QB M, Lk = M CK

    Y = Q^ S + Ay V              Q^ = q~ + Lq c~            Ay = QK + Lq CK                                   `outputs`
    S <- f * S + X S + K^'V      K^ = k^ + Lk'b^            X = b^'W,  f = exp(g_1 + ... + g_C)               `walk`

Q^, K^, X and Ay need no state (`inside`). The way back is in `gpu_dplr_back`; where b is k, `gpu_dplr_own` makes the
pairs and their gradients.

E_ij depends on two tokens and a key, so no matrix product makes the pairs as they stand, and splitting E_ij into
e^(G_i) e^(-G_j) takes a factor above 1. So the chunk is halved, and its halves again, down to single tokens. Two tokens
part at one level alone, at a middle m with j < m <= i, and E_ij = e^(g_m + ... + g_(i-1)) e^(g_(j+1) + ... + g_(m-1)):
both factors are at most 1. At each level a token is in a right half and needs the first, or in a left one and needs the
second: one factor F a token, and one product of F * c with F * k for all pairs that part there (`pairs`). F is 2^(L g)
with zeros and ones L (`ones`), a product too: each exponent is a sum of its own terms, so that none loses the small
beside the large. Half precision takes g as a sum of two numbers (`scaled`). M is built by doubling, as in
`gpu_delta_chunked`.
"""

import triton
import triton.language as tl

from postx.scans.gpu_chunked import LOG2E, head_of, product, rows_of
from postx.scans.gpu_decay import length_of


@triton.jit
def decays_of(g, start, c, i, g_T, g_K, L, K, kind: tl.constexpr, op: tl.constexpr):
    """(g log2(e) [len(c), len(i)], that in dtype `op`, and the rest in `op`); 0 past token L.

    A decay below 2^-160 (2^-1100 in float64) is 0 in its dtype however small it is, -inf included.
    """
    least: tl.constexpr = -1100.0 if kind == tl.float64 else -160.0
    mask = (c < L - start)[:, None] & (i < K)[None, :]
    x = tl.load(g + start * g_T + (c[:, None] * g_T + i[None, :] * g_K), mask=mask, other=0).to(kind) * LOG2E
    x = tl.maximum(x, least, propagate_nan=tl.PropagateNan.ALL)
    high = x.to(op)
    return x, high, (x - high.to(kind)).to(op)


@triton.jit
def ones(table, CHUNK: tl.constexpr, LEVELS: tl.constexpr):
    """table [LEVELS + 1, 2, CHUNK, CHUNK]: L of each level, and that with the own decay of the tokens in right halves.

    The last is L of the chunk's start.
    """
    i, j = tl.arange(0, CHUNK)[:, None], tl.arange(0, CHUNK)[None, :]
    table += i * CHUNK + j
    for level in tl.static_range(0, LEVELS):
        right = ((i >> level) & 1) == 1
        L = ((i ^ j) < 2**level) & (i != j) & (right == (j < i))
        tl.store(table + 2 * level * CHUNK * CHUNK, L.to(table.dtype.element_ty))
        tl.store(table + (2 * level + 1) * CHUNK * CHUNK, (L | right & (i == j)).to(table.dtype.element_ty))
    tl.store(table + 2 * LEVELS * CHUNK * CHUNK, (j < i).to(table.dtype.element_ty))
    tl.store(table + (2 * LEVELS + 1) * CHUNK * CHUNK, (j <= i).to(table.dtype.element_ty))


@triton.jit
def zeros_and_ones(table, level, OWN: tl.constexpr, CHUNK: tl.constexpr):
    """One of `ones`, with the own decay where OWN."""
    i, j = tl.arange(0, CHUNK)[:, None], tl.arange(0, CHUNK)[None, :]
    return tl.load(table + (2 * level + OWN) * CHUNK * CHUNK + i * CHUNK + j)


@triton.jit
def scaled(L, high, low, kind: tl.constexpr, PRECISION: tl.constexpr):
    """2^(L g): L is zeros and ones [C, C], g = high + low [C, K]."""
    x = product(L, high, tl.zeros([high.shape[0], high.shape[1]], kind), PRECISION)
    if high.dtype != kind:
        x = product(L, low, x, PRECISION)
    return tl.exp2(x)


@triton.jit
def parted(x, y, near, to, PRECISION: tl.constexpr):
    """x y' where `near`, else `to`: from wide halves to narrow, a level's pairs replace what the last left there."""
    return tl.where(near, product(x, tl.trans(y), tl.zeros([x.shape[0], x.shape[0]], to.dtype), PRECISION), to)


@triton.jit
def rates(beta, start, at, beta_T, L, kind: tl.constexpr):
    """-beta of a chunk as a column, 0 past token L."""
    return -tl.load(beta + (start + at) * beta_T, mask=at < L - start, other=0).to(kind)[:, None]


@triton.jit
def inverted(CB, CHUNK: tl.constexpr, LEVELS: tl.constexpr, SOLVE: tl.constexpr):
    """(I - CB)^-1, where CB has only what lies below the diagonal."""
    i, j = tl.arange(0, CHUNK)[:, None], tl.arange(0, CHUNK)[None, :]
    X = tl.where(i == j, 1.0, tl.where((i ^ j) == 1, CB, 0)).to(CB.dtype)
    for level in tl.range(1, LEVELS, num_stages=1):
        half = product(tl.where((i ^ j) >> level == 1, CB, 0), X, tl.zeros([CHUNK, CHUNK], CB.dtype), SOLVE)
        X += product(X, half, tl.zeros([CHUNK, CHUNK], CB.dtype), SOLVE)
    return X


@triton.jit(do_not_specialize=["T", "chunks"])
def pairs(
    x, k, b, g, beta, lengths, table, XK, XB,
    T, H, K, G_x, G_k, G_b, G_g, G_beta, chunks, ZERO,
    x_B, x_T, x_H, k_B, k_T, k_H, b_B, b_T, b_H, g_B, g_T, g_H, beta_B, beta_T, beta_H, g_K,
    PUT: tl.constexpr, AFTER: tl.constexpr, RAGGED: tl.constexpr, PRECISION: tl.constexpr,
    CHUNK: tl.constexpr, BLOCK_K: tl.constexpr, LEVELS: tl.constexpr,
):  # fmt: skip
    """QK and QB of every chunk [B,H,chunks,CHUNK,CHUNK] where x is q, CK and CB where PUT and x is c.

    What a level needs is loaded there again (`level * ZERO` keeps the compiler from doing so before the loop): it would
    not fit into registers.
    """
    kind: tl.constexpr = tl.float64 if table.dtype.element_ty == tl.float64 else tl.float32
    op: tl.constexpr = table.dtype.element_ty
    program = tl.program_id(0)
    h, n = program % H, (program // H % chunks).to(tl.int64)
    row = (program // H // chunks).to(tl.int64)
    start, at, i = n * CHUNK, tl.arange(0, CHUNK), tl.arange(0, BLOCK_K)
    L = length_of(lengths, row, T, RAGGED)
    x += row * x_B + head_of(h, G_x, H, x_H)
    k += row * k_B + head_of(h, G_k, H, k_H)
    b += row * b_B + head_of(h, G_b, H, b_H)
    _, high, low = decays_of(g + row * g_B + head_of(h, G_g, H, g_H), start, at, i, g_T, g_K, L, K, kind, op)
    up, to = at[:, None], at[None, :]
    XKt, XBt = tl.zeros([CHUNK, CHUNK], kind), tl.zeros([CHUNK, CHUNK], kind)
    for step in tl.range(0, LEVELS, num_stages=1):
        level = LEVELS - 1 - step
        near, again = (up ^ to) < (2 << level), level * ZERO
        F = scaled(zeros_and_ones(table, level, AFTER, CHUNK), high, low, kind, PRECISION)
        xs = (rows_of(x + again, start, at, x_T, i, L, K, kind) * F).to(op)
        ys = (rows_of(k + again, start, at, k_T, i, L, K, kind) * F).to(op)
        XKt = parted(xs, ys, near, XKt, PRECISION)
        ys = (rows_of(b + again, start, at, b_T, i, L, K, kind) * F).to(op)
        XBt = parted(xs, ys, near, XBt, PRECISION)
    if AFTER:
        xt, yt = rows_of(x, start, at, x_T, i, L, K, kind), rows_of(k, start, at, k_T, i, L, K, kind)
        XKt = tl.where(up == to, tl.sum(xt * yt, 1)[:, None], XKt)
        yt = rows_of(b, start, at, b_T, i, L, K, kind)
        XBt = tl.where(up == to, tl.sum(xt * yt, 1)[:, None], XBt)
    rate = tl.full([CHUNK, 1], 1, kind)
    if PUT:
        rate = rates(beta + row * beta_B + head_of(h, G_beta, H, beta_H), start, at, beta_T, L, kind)
    kept = up >= to if AFTER else up > to
    XKt, XBt = tl.where(kept, XKt, 0) * rate, tl.where(kept, XBt, 0) * rate
    place = ((row * H + h) * chunks + n) * CHUNK * CHUNK + up * CHUNK + to
    tl.store(XK + place, XKt.to(XK.dtype.element_ty))
    tl.store(XB + place, XBt.to(XB.dtype.element_ty))


@triton.jit(do_not_specialize=["T", "chunks"])
def inside(
    q, k, b, c, g, beta, lengths, table, QK, QB, CK, CB, reads, writes, moves, keeps, own, inverse,
    T, H, K, G_q, G_k, G_b, G_c, G_g, G_beta, chunks,
    q_B, q_T, q_H, k_B, k_T, k_H, b_B, b_T, b_H, c_B, c_T, c_H, g_B, g_T, g_H, beta_B, beta_T, beta_H, g_K,
    AFTER: tl.constexpr, RAGGED: tl.constexpr, KEEP: tl.constexpr, PRECISION: tl.constexpr,
    SOLVE: tl.constexpr, CHUNK: tl.constexpr, BLOCK_K: tl.constexpr, LEVELS: tl.constexpr,
):  # fmt: skip
    """Of every chunk [B,H,chunks,..]: Q^ and K^ [CHUNK,BLOCK_K], X [BLOCK_K,BLOCK_K], f [BLOCK_K], Ay [CHUNK,CHUNK].

    With KEEP also `inverse`, M [CHUNK,CHUNK].
    """
    kind: tl.constexpr = keeps.dtype.element_ty
    op: tl.constexpr = reads.dtype.element_ty
    program = tl.program_id(0)
    h, n = program % H, (program // H % chunks).to(tl.int64)
    row = (program // H // chunks).to(tl.int64)
    start, at, i = n * CHUNK, tl.arange(0, CHUNK), tl.arange(0, BLOCK_K)
    L, chunk = length_of(lengths, row, T, RAGGED), (row * H + h) * chunks + n
    square = chunk * CHUNK * CHUNK + at[:, None] * CHUNK + at[None, :]
    tile = chunk * CHUNK * BLOCK_K + at[:, None] * BLOCK_K + i[None, :]
    M = inverted(tl.load(CB + square), CHUNK, LEVELS, SOLVE)
    if KEEP:
        tl.store(inverse + square, M.to(op))
    CKt = tl.load(CK + square).to(kind)
    Lk = product(M, CKt, tl.zeros([CHUNK, CHUNK], kind), SOLVE)
    Lq = product(tl.load(QB + square).to(kind), M, tl.zeros([CHUNK, CHUNK], kind), SOLVE)
    tl.store(own + square, product(Lq, CKt, tl.load(QK + square).to(kind), SOLVE).to(op))
    gt, high, low = decays_of(g + row * g_B + head_of(h, G_g, H, g_H), start, at, i, g_T, g_K, L, K, kind, op)
    tl.store(keeps + chunk * BLOCK_K + i, tl.exp2(tl.sum(gt, 0)))
    rate = rates(beta + row * beta_B + head_of(h, G_beta, H, beta_H), start, at, beta_T, L, kind)
    F = scaled(zeros_and_ones(table, LEVELS, False, CHUNK), high, low, kind, PRECISION)
    cs = (rows_of(c + row * c_B + head_of(h, G_c, H, c_H), start, at, c_T, i, L, K, kind) * F * rate).to(op)
    if AFTER:
        F = scaled(zeros_and_ones(table, LEVELS, True, CHUNK), high, low, kind, PRECISION)
    qs = rows_of(q + row * q_B + head_of(h, G_q, H, q_H), start, at, q_T, i, L, K, kind) * F
    tl.store(reads + tile, product(Lq.to(op), cs, qs, PRECISION).to(op))
    F = scaled(tl.trans(zeros_and_ones(table, LEVELS, False, CHUNK)), high, low, kind, PRECISION)
    be = (rows_of(b + row * b_B + head_of(h, G_b, H, b_H), start, at, b_T, i, L, K, kind) * F).to(op)
    ke = rows_of(k + row * k_B + head_of(h, G_k, H, k_H), start, at, k_T, i, L, K, kind) * F
    tl.store(writes + tile, product(tl.trans(Lk.to(op)), be, ke, PRECISION).to(op))
    W = product(M.to(op), cs, tl.zeros([CHUNK, BLOCK_K], kind), PRECISION)
    X = product(tl.trans(be), W.to(op), tl.zeros([BLOCK_K, BLOCK_K], kind), PRECISION)
    tl.store(moves + chunk * BLOCK_K * BLOCK_K + i[:, None] * BLOCK_K + i[None, :], X.to(op))


@triton.jit(do_not_specialize=["T", "chunks"])
def walk(
    x, w, moves, keeps, first, lengths, tables, last,
    T, H, K, V, chunks, w_B, w_T, w_H,
    REVERSE: tl.constexpr, RAGGED: tl.constexpr, PRECISION: tl.constexpr,
    CHUNK: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """tables [B,H,chunks,BLOCK_K,V], S before every chunk, and last [B,H,K,V], S behind them all.

    x is K^ and w is v [B,T,H,V]; where REVERSE they are Q^ and dy, time runs backwards, X is transposed, and what walks
    is the table's gradient G, so that `tables` has G behind every chunk.
    """
    kind: tl.constexpr = keeps.dtype.element_ty
    op: tl.constexpr = tables.dtype.element_ty
    head = tl.program_id(0).to(tl.int64)
    row, h = head // H, head % H
    i, j = tl.arange(0, BLOCK_K), tl.program_id(1) * BLOCK_V + tl.arange(0, BLOCK_V)
    tile, real = i[:, None] * V + j[None, :], (i < K)[:, None] & (j < V)[None, :]
    S = tl.load(first + head * K * V + tile, mask=real, other=0).to(kind)
    w += row * w_B + h * w_H
    L, at = length_of(lengths, row, T, RAGGED), tl.arange(0, CHUNK)
    rows, square = at[:, None] * BLOCK_K + i[None, :], i[:, None] * BLOCK_K + i[None, :]
    for m in tl.range(0, chunks, num_stages=STAGES):
        n = (chunks - 1 - m if REVERSE else m) + tl.zeros([], tl.int64)
        chunk = head * chunks + n
        xt = tl.load(x + chunk * CHUNK * BLOCK_K + rows)
        wt = rows_of(w, n * CHUNK, at, w_T, j, L, V, op)
        X = tl.load(moves + chunk * BLOCK_K * BLOCK_K + square)
        keep = tl.load(keeps + chunk * BLOCK_K + i)
        table = S.to(op)
        tl.store(tables + chunk * BLOCK_K * V + tile, table, mask=(j < V)[None, :])
        new = product(tl.trans(xt), wt, tl.zeros([BLOCK_K, BLOCK_V], kind), PRECISION)
        S = product(tl.trans(X) if REVERSE else X, table, S * keep[:, None] + new, PRECISION)
    tl.store(last + head * K * V + tile, S, mask=real)


@triton.jit(do_not_specialize=["T", "chunks"])
def outputs(
    reads, own, tables, v, lengths, y, T, H, V, chunks, v_B, v_T, v_H,
    RAGGED: tl.constexpr, PRECISION: tl.constexpr, CHUNK: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    """y [B,T,H,V]."""
    kind: tl.constexpr = tl.float64 if reads.dtype.element_ty == tl.float64 else tl.float32
    op: tl.constexpr = reads.dtype.element_ty
    program = tl.program_id(0)
    h, n = program % H, (program // H % chunks).to(tl.int64)
    row = (program // H // chunks).to(tl.int64)
    at, i, j = tl.arange(0, CHUNK), tl.arange(0, BLOCK_K), tl.program_id(1) * BLOCK_V + tl.arange(0, BLOCK_V)
    L, chunk = length_of(lengths, row, T, RAGGED), (row * H + h) * chunks + n
    Q = tl.load(reads + chunk * CHUNK * BLOCK_K + at[:, None] * BLOCK_K + i[None, :])
    S = tl.load(tables + chunk * BLOCK_K * V + i[:, None] * V + j[None, :], mask=(j < V)[None, :], other=0)
    out = product(Q, S, tl.zeros([CHUNK, BLOCK_V], kind), PRECISION)
    A = tl.load(own + chunk * CHUNK * CHUNK + at[:, None] * CHUNK + at[None, :])
    vt = rows_of(v + row * v_B + h * v_H, n * CHUNK, at, v_T, j, L, V, op)
    out = product(A, vt, out, PRECISION)
    start = n * CHUNK
    y += (row * T + start) * H * V + h * V
    mask = (at < T - start)[:, None] & (j < V)[None, :]
    tl.store(y + at[:, None] * H * V + j[None, :], out.to(y.dtype.element_ty), mask=mask)
