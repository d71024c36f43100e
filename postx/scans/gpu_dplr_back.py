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
factors and dQK and the others cut to the pairs that part there,

    dq- += F * (dQK (F * k) + dQB (F * b))              dc += F * (dCK (F * k) + dCB (F * b))
    dk  += F * (dQK'(F * q-) + dCK'(F * c))             db += F * (dQB'(F * q-) + dCB'(F * c))

An exponent L g of F learns E = q- * dq- + c * dc + k * dk + b * db of that level, so dg += L'E: each sum is of its own
terms again. The same holds for the factors from the chunk's start and to its end; f adds f * df to the dg of all its
tokens, and q- = e^g * q adds q- * dq- to the token's own. What stands above the diagonal of a square's gradient may be
anything: it never reaches what is below.
"""

import triton
import triton.language as tl

from postx.scans.gpu_chunked import head_of, product, rows_of
from postx.scans.gpu_decay import length_of
from postx.scans.gpu_dplr import decays_of, halves, put_back, scaled


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
    b, c, g, beta, lengths, kept, dreads, dwrites, dmoves, down, dsquares, dback, dput,
    T, H, K, G_b, G_c, G_g, G_beta, chunks,
    b_B, b_T, b_H, c_B, c_T, c_H, g_B, g_T, g_H, beta_B, beta_T, beta_H, g_K,
    RAGGED: tl.constexpr, PRECISION: tl.constexpr, CHUNK: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Of every chunk dsquares [3,CHUNK,CHUNK], dQB, dCK and dCB, and dc~ and db^ [CHUNK,BLOCK_K]."""
    kind: tl.constexpr = tl.float64 if kept.dtype.element_ty == tl.float64 else tl.float32
    op: tl.constexpr = kept.dtype.element_ty
    program = tl.program_id(0)
    h, n = program % H, (program // H % chunks).to(tl.int64)
    row = (program // H // chunks).to(tl.int64)
    start, at, i = n * CHUNK, tl.arange(0, CHUNK), tl.arange(0, BLOCK_K)
    L, chunk = length_of(lengths, row, T, RAGGED), (row * H + h) * chunks + n
    bt = rows_of(b + row * b_B + head_of(h, G_b, H, b_H), start, at, b_T, i, L, K, kind)
    beta += row * beta_B + head_of(h, G_beta, H, beta_H)
    ct = put_back(c + row * c_B + head_of(h, G_c, H, c_H), beta, start, at, i, c_T, beta_T, L, K, kind)
    _, high, low = decays_of(g + row * g_B + head_of(h, G_g, H, g_H), start, at, i, g_T, g_K, L, K, kind, op)
    cs = (ct * scaled(at[None, :] < at[:, None], high, low, kind, PRECISION)).to(op)
    be = (bt * scaled(at[None, :] > at[:, None], high, low, kind, PRECISION)).to(op)
    square, rows = at[:, None] * CHUNK + at[None, :], at[:, None] * BLOCK_K + i[None, :]
    kept += chunk * 3 * CHUNK * CHUNK + square
    M, QB, CK = tl.load(kept), tl.load(kept + CHUNK * CHUNK), tl.load(kept + 2 * CHUNK * CHUNK)
    small, wide = tl.zeros([CHUNK, CHUNK], kind), tl.zeros([CHUNK, BLOCK_K], kind)
    dX = tl.load(dmoves + chunk * BLOCK_K * BLOCK_K + i[:, None] * BLOCK_K + i[None, :])
    dW = product(be, dX, wide, PRECISION).to(op)
    W = product(M, cs, wide, PRECISION).to(op)
    db = product(W, tl.trans(dX), wide, PRECISION)
    dK = tl.load(dwrites + chunk * CHUNK * BLOCK_K + rows)
    dLk = product(be, tl.trans(dK), small, PRECISION).to(op)
    Lk = product(M, CK, small, PRECISION).to(op)
    db = product(Lk, dK, db, PRECISION)
    tl.store(dput + chunk * CHUNK * BLOCK_K + rows, db.to(op))
    dQ = tl.load(dreads + chunk * CHUNK * BLOCK_K + rows)
    dA = tl.load(down + chunk * CHUNK * CHUNK + square)
    dLq = product(dQ, tl.trans(cs), small, PRECISION)
    dLq = product(dA, tl.trans(CK), dLq, PRECISION).to(op)
    Lq = product(QB, M, small, PRECISION).to(op)
    dc = product(tl.trans(M), dW, wide, PRECISION)
    dc = product(tl.trans(Lq), dQ, dc, PRECISION)
    tl.store(dback + chunk * CHUNK * BLOCK_K + rows, dc.to(op))
    dsquares += chunk * 3 * CHUNK * CHUNK + square
    tl.store(dsquares, product(dLq, tl.trans(M), small, PRECISION).to(op))
    dCK = product(tl.trans(Lq), dA, small, PRECISION)
    tl.store(dsquares + CHUNK * CHUNK, product(tl.trans(M), dLk, dCK, PRECISION).to(op))
    dM = product(dW, tl.trans(cs), small, PRECISION)
    dM = product(tl.trans(QB), dLq, dM, PRECISION)
    dM = product(dLk, tl.trans(CK), dM, PRECISION).to(op)
    dM = product(tl.trans(M), dM, small, PRECISION).to(op)
    tl.store(dsquares + 2 * CHUNK * CHUNK, product(dM, tl.trans(M), small, PRECISION).to(op))


@triton.jit
def below(x):
    """(x below its diagonal, and that as a column)."""
    i, j = tl.arange(0, x.shape[0])[:, None], tl.arange(0, x.shape[0])[None, :]
    return tl.where(i > j, x, 0), tl.sum(tl.where(i == j, x, 0), 1)[:, None]


@triton.jit
def gradients_of(down, dsquares, CHUNK: tl.constexpr):
    """dQK, dQB, dCK and dCB below the diagonal, and the diagonals of the first two."""
    qk, own_k = below(tl.load(down))
    qb, own_b = below(tl.load(dsquares))
    ck, _ = below(tl.load(dsquares + CHUNK * CHUNK))
    cb, _ = below(tl.load(dsquares + 2 * CHUNK * CHUNK))
    return qk, qb, ck, cb, own_k, own_b


@triton.jit
def cut(x, part):
    return tl.where(part, x, 0)


@triton.jit(do_not_specialize=["T", "chunks"])
def keys(
    q, k, b, c, g, beta, lengths, down, dsquares, dreads, dwrites, dback, dput, dkeeps, dq, dk, db, dc, dg, dbeta,
    T, H, K, G_q, G_k, G_b, G_c, G_g, G_beta, chunks, WIDTH,
    q_B, q_T, q_H, k_B, k_T, k_H, b_B, b_T, b_H, c_B, c_T, c_H, g_B, g_T, g_H, beta_B, beta_T, beta_H, g_K,
    AFTER: tl.constexpr, OWN: tl.constexpr, LEARN: tl.constexpr, RAGGED: tl.constexpr, PRECISION: tl.constexpr,
    CHUNK: tl.constexpr, BLOCK: tl.constexpr, LEVELS: tl.constexpr,
):  # fmt: skip
    """dq, dk, db, dc, dg [B,T,H,K] of each head alone, and of each block of keys dbeta [blocks,B,T,H].

    With OWN, what b learns goes to k, and db is left alone; dg is left alone without LEARN.
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
    beta += row * beta_B + head_of(h, G_beta, H, beta_H)
    gt, high, low = decays_of(g + row * g_B + head_of(h, G_g, H, g_H), start, at, i, g_T, g_K, L, K, kind, op)
    up, to = at[:, None], at[None, :]
    square, rows = up * CHUNK + to, chunk * CHUNK * WIDTH + up * WIDTH + i[None, :]
    dsquares += chunk * 3 * CHUNK * CHUNK + square
    down += chunk * CHUNK * CHUNK + square
    place = ((row * T + start) * H + h) * K + up * H * K + i[None, :]
    mask = (at < T - start)[:, None] & (i < K)[None, :]
    none = tl.zeros([CHUNK, BLOCK], kind)
    # The readers, q and c. Two loops, one after the other, keep in registers what one would not.
    qt = rows_of(q, start, at, q_T, i, L, K, kind)
    ct = put_back(c, beta, start, at, i, c_T, beta_T, L, K, kind)
    kt, bt = rows_of(k, start, at, k_T, i, L, K, op), rows_of(b, start, at, b_T, i, L, K, op)
    qk, qb, ck, cb, own_k, own_b = gradients_of(down, dsquares, CHUNK)
    if AFTER:
        qt *= tl.exp2(gt)  # q-
    F = scaled(to < up, high, low, kind, PRECISION)
    dqt, dct = tl.load(dreads + rows).to(kind) * F, tl.load(dback + rows).to(kind) * F
    dgt = product((to > up).to(op), (qt * dqt + ct * dct).to(op), none, PRECISION)
    for level in tl.range(0, LEVELS, num_stages=1):
        ones, apart = halves(level, CHUNK)
        F = scaled(ones, high, low, kind, PRECISION)
        part = apart >> level == 1
        ks, bs = (kt * F).to(op), (bt * F).to(op)
        x = F * product(cut(qb, part), bs, product(cut(qk, part), ks, none, PRECISION), PRECISION)
        dqt += x
        E = qt * x
        x = F * product(cut(cb, part), bs, product(cut(ck, part), ks, none, PRECISION), PRECISION)
        dct += x
        E += ct * x
        if LEARN:
            dgt = product(tl.trans(ones.to(op)), E.to(op), dgt, PRECISION)
    if AFTER:
        dgt += qt * dqt
        dqt *= tl.exp2(gt)
        dqt += own_k * kt + own_b * bt
    tl.store(dq + place, dqt.to(dq.dtype.element_ty), mask=mask)
    rate = tl.load(beta + (start + at) * beta_T, mask=at < L - start, other=0).to(kind)
    tl.store(dc + place, (-rate[:, None] * dct).to(dc.dtype.element_ty), mask=mask)
    dbeta += block.to(tl.int64) * (tl.num_programs(0) // (H * chunks)) * T * H
    lost = -tl.sum(rows_of(c, start, at, c_T, i, L, K, kind) * dct, 1)
    tl.store(dbeta + (row * T + start + at) * H + h, lost, mask=at < T - start)
    # The writers, k and b.
    qt = rows_of(q, start, at, q_T, i, L, K, kind)
    ct = put_back(c, beta, start, at, i, c_T, beta_T, L, K, kind)
    kt, bt = rows_of(k, start, at, k_T, i, L, K, kind), rows_of(b, start, at, b_T, i, L, K, kind)
    qk, qb, ck, cb, own_k, own_b = gradients_of(down, dsquares, CHUNK)
    F = scaled(to > up, high, low, kind, PRECISION)
    dkt, dbt = tl.load(dwrites + rows).to(kind) * F, tl.load(dput + rows).to(kind) * F
    dgt = product((to < up).to(op), (kt * dkt + bt * dbt).to(op), dgt, PRECISION)
    if AFTER:
        dkt += own_k * qt
        dbt += own_b * qt
        qt *= tl.exp2(gt)
    for level in tl.range(0, LEVELS, num_stages=1):
        ones, apart = halves(level, CHUNK)
        F = scaled(ones, high, low, kind, PRECISION)
        part = apart >> level == 1
        qs, cs = (qt * F).to(op), (ct * F).to(op)
        x = product(tl.trans(cut(qk, part)), qs, none, PRECISION)
        x = F * product(tl.trans(cut(ck, part)), cs, x, PRECISION)
        dkt += x
        E = kt * x
        x = product(tl.trans(cut(qb, part)), qs, none, PRECISION)
        x = F * product(tl.trans(cut(cb, part)), cs, x, PRECISION)
        dbt += x
        E += bt * x
        if LEARN:
            dgt = product(tl.trans(ones.to(op)), E.to(op), dgt, PRECISION)
    if OWN:
        dkt += dbt
    else:
        tl.store(db + place, dbt.to(db.dtype.element_ty), mask=mask)
    tl.store(dk + place, dkt.to(dk.dtype.element_ty), mask=mask)
    if LEARN:
        dgt += tl.load(dkeeps + chunk * WIDTH + i)[None, :]
        dgt = tl.where((at < L - start)[:, None], dgt, 0)
        tl.store(dg + place, dgt.to(dg.dtype.element_ty), mask=mask)
