"""The gradients of `gpu_dplr`. G is the gradient of the table behind a chunk; the names are those of that file.

    G <- f * G + X'G + Q^'dY                                                                        `walk`, REVERSE

Then each chunk on its own. First the derivatives of Y = Q^ S + Ay V and f * S + X S + K^'V (`values`):

    dV = Ay'dY + K^ G     dAy = dY V'     dQ^ = dY S'     dK^ = V G'     dX = G S'     df = rows(G * S)

then those of what Q^, K^, X and Ay are made of, line by line from the last to the first (`squares`), with M's
derivative M dCB M:

    X = b^'W                dW = b^ dX                      db^ = W dX'
    Q^ = q~ + Lq c~         dLq = dQ^ c~'                   dc~ = Lq'dQ^ + M'dW
    K^ = k^ + Lk'b^         dLk = b^ dK^'                   db^ += Lk dK^
    Ay = QK + Lq CK         dQK = dAy                       dLq += dAy CK'                   dCK = Lq'dAy + M'dLk
    Lq = QB M, Lk = M CK    dQB = dLq M'                    dM = dW c~' + QB'dLq + dLk CK'
    M = (I - CB)^-1         dCB = M'dM M'

and last those of the tokens (`keys`, a block of keys at a time). dq~ = dQ^ and dk^ = dK^; at each level, with F its
factors (for QK and QB those with the readers' own decay) and dQK and the others cut to the pairs that part there,

    dq += F * (dQK (F * k) + dQB (F * b))               dc += F * (dCK (F * k) + dCB (F * b))       `read_by`
    dk += F * (dQK'(F * q) + dCK'(F * c))               db += F * (dQB'(F * q) + dCB'(F * c))       `written_by`

F = exp(L g), and its exponent learns from each of the four lines E, the token times what is added to its gradient: so
dg += L'E, and each sum is of its own terms again. The same holds for the factors from the chunk's start and to its end;
f adds f * df to the dg of all its tokens. What stands above the diagonal of a square's gradient may be anything: it
never reaches what is below.
"""

import triton
import triton.language as tl

from postx.scans.gpu_chunked import head_of, product, rows_of
from postx.scans.gpu_decay import length_of
from postx.scans.gpu_dplr import decays_of, rates, scaled, zeros_and_ones


@triton.jit(do_not_specialize=["T", "chunks"])
def values(
    v, dy, writes, own, keeps, tables, adjoints, lengths, dv, dreads, dwrites, dmoves, dkeeps, down,
    T, H, V, chunks, v_B, v_T, v_H, dy_B, dy_T, dy_H,
    RAGGED: tl.constexpr, PRECISION: tl.constexpr, CHUNK: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    """dv [B,T,H,V], and of every chunk dQ^, dK^, dX, f * df and dAy."""
    kind: tl.constexpr = keeps.dtype.element_ty
    op: tl.constexpr = tables.dtype.element_ty
    program = tl.program_id(0)
    h, n = program % H, (program // H % chunks).to(tl.int64)
    row = (program // H // chunks).to(tl.int64)
    start, at, i = n * CHUNK, tl.arange(0, CHUNK), tl.arange(0, BLOCK_K)
    L, chunk = length_of(lengths, row, T, RAGGED), (row * H + h) * chunks + n
    square, rows = at[:, None] * CHUNK + at[None, :], at[:, None] * BLOCK_K + i[None, :]
    A = tl.load(own + chunk * CHUNK * CHUNK + square)
    W = tl.load(writes + chunk * CHUNK * BLOCK_K + rows)
    dA, both = tl.zeros([CHUNK, CHUNK], kind), tl.zeros([BLOCK_K], kind)
    dQ, dK = tl.zeros([CHUNK, BLOCK_K], kind), tl.zeros([CHUNK, BLOCK_K], kind)
    dX = tl.zeros([BLOCK_K, BLOCK_K], kind)
    for first in range(0, V, BLOCK_V):
        j = first + tl.arange(0, BLOCK_V)
        vt = rows_of(v + row * v_B + h * v_H, start, at, v_T, j, L, V, op)
        gt = rows_of(dy + row * dy_B + h * dy_H, start, at, dy_T, j, L, V, op)
        tile = chunk * BLOCK_K * V + i[:, None] * V + j[None, :]
        S = tl.load(tables + tile, mask=(j < V)[None, :], other=0)
        G = tl.load(adjoints + tile, mask=(j < V)[None, :], other=0)
        dvt = product(W, G, tl.zeros([CHUNK, BLOCK_V], kind), PRECISION)
        dvt = product(tl.trans(A), gt, dvt, PRECISION)
        mask = (at < T - start)[:, None] & (j < V)[None, :]
        place = (row * T + start) * H * V + h * V + at[:, None] * H * V + j[None, :]
        tl.store(dv + place, dvt.to(dv.dtype.element_ty), mask=mask)
        dA = product(gt, tl.trans(vt), dA, PRECISION)
        dQ = product(gt, tl.trans(S), dQ, PRECISION)
        dK = product(vt, tl.trans(G), dK, PRECISION)
        dX = product(G, tl.trans(S), dX, PRECISION)
        both += tl.sum(S.to(kind) * G.to(kind), 1)
    tl.store(down + chunk * CHUNK * CHUNK + square, dA.to(op))
    tl.store(dreads + chunk * CHUNK * BLOCK_K + rows, dQ.to(op))
    tl.store(dwrites + chunk * CHUNK * BLOCK_K + rows, dK.to(op))
    tl.store(dmoves + chunk * BLOCK_K * BLOCK_K + i[:, None] * BLOCK_K + i[None, :], dX.to(op))
    tl.store(dkeeps + chunk * BLOCK_K + i, both * tl.load(keeps + chunk * BLOCK_K + i))


@triton.jit(do_not_specialize=["T", "chunks"])
def squares(
    b, c, g, beta, lengths, table, inverse, QB, CK, dreads, dwrites, dmoves, down, dQB, dCK, dCB, dback, dput,
    T, H, K, G_b, G_c, G_g, G_beta, chunks,
    b_B, b_T, b_H, c_B, c_T, c_H, g_B, g_T, g_H, beta_B, beta_T, beta_H, g_K,
    RAGGED: tl.constexpr, PRECISION: tl.constexpr, CHUNK: tl.constexpr, BLOCK_K: tl.constexpr, LEVELS: tl.constexpr,
    OWN: tl.constexpr,
):  # fmt: skip
    """Of every chunk dQB, dCK and dCB [CHUNK,CHUNK], and dc~ and db^ [CHUNK,BLOCK_K].

    OWN, b is k: dQB gets dQK + dQB, dCB gets dCK + dCB, and dCK is left alone.
    """
    kind: tl.constexpr = tl.float64 if inverse.dtype.element_ty == tl.float64 else tl.float32
    op: tl.constexpr = inverse.dtype.element_ty
    program = tl.program_id(0)
    h, n = program % H, (program // H % chunks).to(tl.int64)
    row = (program // H // chunks).to(tl.int64)
    start, at, i = n * CHUNK, tl.arange(0, CHUNK), tl.arange(0, BLOCK_K)
    L, chunk = length_of(lengths, row, T, RAGGED), (row * H + h) * chunks + n
    bt = rows_of(b + row * b_B + head_of(h, G_b, H, b_H), start, at, b_T, i, L, K, kind)
    rate = rates(beta + row * beta_B + head_of(h, G_beta, H, beta_H), start, at, beta_T, L, kind)
    ct = rate * rows_of(c + row * c_B + head_of(h, G_c, H, c_H), start, at, c_T, i, L, K, kind)
    _, high, low = decays_of(g + row * g_B + head_of(h, G_g, H, g_H), start, at, i, g_T, g_K, L, K, kind, op)
    start_ones = zeros_and_ones(table, LEVELS, False, CHUNK)
    cs = (ct * scaled(start_ones, high, low, kind, PRECISION)).to(op)
    be = (bt * scaled(tl.trans(start_ones), high, low, kind, PRECISION)).to(op)
    square, rows = chunk * CHUNK * CHUNK + at[:, None] * CHUNK + at[None, :], at[:, None] * BLOCK_K + i[None, :]
    M, QBt, CKt = tl.load(inverse + square), tl.load(QB + square), tl.load(CK + square)
    small, wide = tl.zeros([CHUNK, CHUNK], kind), tl.zeros([CHUNK, BLOCK_K], kind)
    dX = tl.load(dmoves + chunk * BLOCK_K * BLOCK_K + i[:, None] * BLOCK_K + i[None, :])
    dW = product(be, dX, wide, PRECISION).to(op)
    W = product(M, cs, wide, PRECISION).to(op)
    db = product(W, tl.trans(dX), wide, PRECISION)
    dK = tl.load(dwrites + chunk * CHUNK * BLOCK_K + rows)
    dLk = product(be, tl.trans(dK), small, PRECISION).to(op)
    Lk = product(M, CKt, small, PRECISION).to(op)
    db = product(Lk, dK, db, PRECISION)
    tl.store(dput + chunk * CHUNK * BLOCK_K + rows, db.to(op))
    dQ = tl.load(dreads + chunk * CHUNK * BLOCK_K + rows)
    dA = tl.load(down + square)
    dLq = product(dQ, tl.trans(cs), small, PRECISION)
    dLq = product(dA, tl.trans(CKt), dLq, PRECISION).to(op)
    Lq = product(QBt, M, small, PRECISION).to(op)
    dc = product(tl.trans(M), dW, wide, PRECISION)
    dc = product(tl.trans(Lq), dQ, dc, PRECISION)
    tl.store(dback + chunk * CHUNK * BLOCK_K + rows, dc.to(op))
    tl.store(dQB + square, product(dLq, tl.trans(M), dA.to(kind) if OWN else small, PRECISION).to(op))
    dCKt = product(tl.trans(Lq), dA, small, PRECISION)
    dCKt = product(tl.trans(M), dLk, dCKt, PRECISION)
    if not OWN:
        tl.store(dCK + square, dCKt.to(op))
        dCKt = small
    dM = product(dW, tl.trans(cs), small, PRECISION)
    dM = product(tl.trans(QBt), dLq, dM, PRECISION)
    dM = product(dLk, tl.trans(CKt), dM, PRECISION).to(op)
    dM = product(tl.trans(M), dM, small, PRECISION).to(op)
    tl.store(dCB + square, product(dM, tl.trans(M), dCKt, PRECISION).to(op))


@triton.jit
def cut(x, part):
    """What x points to, where `part`."""
    return tl.where(part, tl.load(x), 0)


@triton.jit
def both(x, xs, y, ys, kind: tl.constexpr, PRECISION: tl.constexpr):
    """x xs + y ys."""
    return product(y, ys, product(x, xs, tl.zeros([xs.shape[0], xs.shape[1]], kind), PRECISION), PRECISION)


@triton.jit
def read_by(
    x, x_T, k, k_T, b, b_T, dXK, dXB, rate, dx, dgt, table, high, low, start, at, i, L, K, ZERO,
    AFTER: tl.constexpr, LEARN: tl.constexpr, LEVELS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """(dx, dgt), with what a reader x, q or rate * c, adds to them at all levels."""
    kind: tl.constexpr = dx.dtype
    op: tl.constexpr = high.dtype
    up, to = at[:, None], at[None, :]
    for level in tl.range(0, LEVELS, num_stages=1):
        part, again = ((up ^ to) >> level == 1) & (up > to), level * ZERO
        ones = zeros_and_ones(table, level, AFTER, at.shape[0])
        F = scaled(ones, high, low, kind, PRECISION)
        ks = (rows_of(k + again, start, at, k_T, i, L, K, kind) * F).to(op)
        bs = (rows_of(b + again, start, at, b_T, i, L, K, kind) * F).to(op)
        new = F * both(cut(dXK + again, part), ks, cut(dXB + again, part), bs, kind, PRECISION)
        dx += new
        if LEARN:
            E = rows_of(x + again, start, at, x_T, i, L, K, kind) * rate * new
            dgt = product(tl.trans(ones), E.to(op), dgt, PRECISION)
    return dx, dgt


@triton.jit
def written_by(
    y, y_T, q, q_T, c, c_T, dQY, dCY, rate, dy, dgt, table, high, low, start, at, i, L, K, ZERO,
    AFTER: tl.constexpr, LEARN: tl.constexpr, LEVELS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """(dy, dgt), with what a writer y, k or b, adds to them at all levels."""
    kind: tl.constexpr = dy.dtype
    op: tl.constexpr = high.dtype
    up, to = at[:, None], at[None, :]
    for level in tl.range(0, LEVELS, num_stages=1):
        part, again = ((up ^ to) >> level == 1) & (up > to), level * ZERO
        F = scaled(zeros_and_ones(table, level, AFTER, at.shape[0]), high, low, kind, PRECISION)
        qs = (rows_of(q + again, start, at, q_T, i, L, K, kind) * F).to(op)
        ones = zeros_and_ones(table, level, False, at.shape[0])
        if AFTER:
            F = scaled(ones, high, low, kind, PRECISION)
        cs = (rows_of(c + again, start, at, c_T, i, L, K, kind) * F * rate).to(op)
        new = F * both(tl.trans(cut(dQY + again, part)), qs, tl.trans(cut(dCY + again, part)), cs, kind, PRECISION)
        dy += new
        if LEARN:
            E = rows_of(y + again, start, at, y_T, i, L, K, kind) * new
            dgt = product(tl.trans(ones), E.to(op), dgt, PRECISION)
    return dy, dgt


@triton.jit(do_not_specialize=["T", "chunks"])
def keys(
    q, k, b, c, g, beta, lengths, table, dQK, dQB, dCK, dCB, dreads, dwrites, dback,
    dput, dkeeps, dq, dk, db, dc, dg, dbeta,
    T, H, K, G_q, G_k, G_b, G_c, G_g, G_beta, chunks, WIDTH, ZERO,
    q_B, q_T, q_H, k_B, k_T, k_H, b_B, b_T, b_H, c_B, c_T, c_H, g_B, g_T, g_H, beta_B, beta_T, beta_H, g_K,
    AFTER: tl.constexpr, LEARN: tl.constexpr, RAGGED: tl.constexpr, PRECISION: tl.constexpr,
    CHUNK: tl.constexpr, BLOCK: tl.constexpr, LEVELS: tl.constexpr,
):  # fmt: skip
    """dq, dk, db, dc, dg [B,T,H,K] of each head alone, and of each block of keys dbeta [blocks,B,T,H].

    dg is left alone without LEARN.
    """
    kind: tl.constexpr = dbeta.dtype.element_ty
    op: tl.constexpr = dreads.dtype.element_ty
    program, block = tl.program_id(0), tl.program_id(1)
    h, n = program % H, (program // H % chunks).to(tl.int64)
    row = (program // H // chunks).to(tl.int64)
    start, at, i = n * CHUNK, tl.arange(0, CHUNK), block * BLOCK + tl.arange(0, BLOCK)
    L, chunk = length_of(lengths, row, T, RAGGED), (row * H + h) * chunks + n
    q += row * q_B + head_of(h, G_q, H, q_H)
    k += row * k_B + head_of(h, G_k, H, k_H)
    b += row * b_B + head_of(h, G_b, H, b_H)
    c += row * c_B + head_of(h, G_c, H, c_H)
    rate = rates(beta + row * beta_B + head_of(h, G_beta, H, beta_H), start, at, beta_T, L, kind)
    _, high, low = decays_of(g + row * g_B + head_of(h, G_g, H, g_H), start, at, i, g_T, g_K, L, K, kind, op)
    up, to = at[:, None], at[None, :]
    rows, square = chunk * CHUNK * WIDTH + up * WIDTH + i[None, :], chunk * CHUNK * CHUNK + up * CHUNK + to
    dQK, dQB, dCK, dCB = dQK + square, dQB + square, dCK + square, dCB + square
    place = ((row * T + start) * H + h) * K + up * H * K + i[None, :]
    mask, none = (at < T - start)[:, None] & (i < K)[None, :], tl.zeros([CHUNK, BLOCK], kind)
    # q
    own_k, own_b = tl.zeros([CHUNK, 1], kind), tl.zeros([CHUNK, 1], kind)  # dQK and dQB of a token with itself
    if AFTER:
        own_k += tl.sum(cut(dQK, up == to), 1)[:, None]
        own_b += tl.sum(cut(dQB, up == to), 1)[:, None]
    ones = zeros_and_ones(table, LEVELS, AFTER, CHUNK)
    dx = tl.load(dreads + rows).to(kind) * scaled(ones, high, low, kind, PRECISION)
    E = rows_of(q, start, at, q_T, i, L, K, kind) * dx
    dgt = product(tl.trans(ones), E.to(op), none, PRECISION)
    dx, dgt = read_by(q, q_T, k, k_T, b, b_T, dQK, dQB, 1.0, dx, dgt, table, high, low, start, at, i, L, K, ZERO,
                      AFTER, LEARN, LEVELS, PRECISION)  # fmt: skip
    dx += own_k * rows_of(k, start, at, k_T, i, L, K, kind) + own_b * rows_of(b, start, at, b_T, i, L, K, kind)
    tl.store(dq + place, dx.to(dq.dtype.element_ty), mask=mask)
    # c
    ones = zeros_and_ones(table, LEVELS, False, CHUNK)
    dx = tl.load(dback + rows).to(kind) * scaled(ones, high, low, kind, PRECISION)
    E = rows_of(c, start, at, c_T, i, L, K, kind) * rate * dx
    dgt = product(tl.trans(ones), E.to(op), dgt, PRECISION)
    dx, dgt = read_by(c, c_T, k, k_T, b, b_T, dCK, dCB, rate, dx, dgt, table, high, low, start, at, i, L, K, ZERO,
                      False, LEARN, LEVELS, PRECISION)  # fmt: skip
    tl.store(dc + place, (rate * dx).to(dc.dtype.element_ty), mask=mask)
    lost = -tl.sum(rows_of(c, start, at, c_T, i, L, K, kind) * dx, 1)
    dbeta += block.to(tl.int64) * (tl.num_programs(0) // (H * chunks)) * T * H
    tl.store(dbeta + (row * T + start + at) * H + h, lost, mask=at < T - start)
    # b
    F = scaled(tl.trans(ones), high, low, kind, PRECISION)
    dy = tl.load(dput + rows).to(kind) * F
    dgt = product(ones, (rows_of(b, start, at, b_T, i, L, K, kind) * dy).to(op), dgt, PRECISION)
    dy, dgt = written_by(b, b_T, q, q_T, c, c_T, dQB, dCB, rate, dy, dgt, table, high, low, start, at, i, L, K, ZERO,
                         AFTER, LEARN, LEVELS, PRECISION)  # fmt: skip
    dy += own_b * rows_of(q, start, at, q_T, i, L, K, kind)
    tl.store(db + place, dy.to(db.dtype.element_ty), mask=mask)
    # k
    F = scaled(tl.trans(ones), high, low, kind, PRECISION)
    dx = tl.load(dwrites + rows).to(kind) * F
    dgt = product(ones, (rows_of(k, start, at, k_T, i, L, K, kind) * dx).to(op), dgt, PRECISION)
    dx, dgt = written_by(k, k_T, q, q_T, c, c_T, dQK, dCK, rate, dx, dgt, table, high, low, start, at, i, L, K, ZERO,
                         AFTER, LEARN, LEVELS, PRECISION)  # fmt: skip
    dx += own_k * rows_of(q, start, at, q_T, i, L, K, kind)
    tl.store(dk + place, dx.to(dk.dtype.element_ty), mask=mask)
    if LEARN:
        dgt += tl.load(dkeeps + chunk * WIDTH + i)[None, :]
        dgt = tl.where((at < L - start)[:, None], dgt, 0)
        tl.store(dg + place, dgt.to(dg.dtype.element_ty), mask=mask)
