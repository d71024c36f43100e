"""Two kernels of `gpu_dplr` and `gpu_dplr_back` again, with one F a level for all that is read and written there.

q reads behind its own decay, and D_ij = e^(g_i) E_ij for j < i; so with q' = e^(g) q (q' = q where y reads the old
state) q is one more reader like c, and q', c, k and b share F (`pairs`). Where b is k (OWN), dQK and dQB, dCK and dCB
are only ever used as sums, which `gpu_dplr_back.squares` then makes (in dQB and dCB), and at each level (`keys`)

    dq' += F * (dQ (F * k))      dc += F * (dC (F * k))      dk += F * (dQ'(F * q') + dC'(F * c))

F's exponent learns from the three products of a token with what is added to its gradient, together: one product with
L' a level. dq = e^g * dq' (and dQ's diagonal), and g itself learns q' * dq'.
"""

import triton
import triton.language as tl

from postx.scans.gpu_chunked import head_of, product, rows_of
from postx.scans.gpu_decay import length_of
from postx.scans.gpu_dplr import decays_of, rates, scaled, zeros_and_ones
from postx.scans.gpu_dplr_back import both, cut


@triton.jit
def apart(x, y, part, to, PRECISION: tl.constexpr):
    """to + x y' where `part`."""
    return to + tl.where(part, product(x, tl.trans(y), tl.zeros([x.shape[0], x.shape[0]], to.dtype), PRECISION), 0)


@triton.jit(do_not_specialize=["T", "chunks"])
def pairs(
    q, k, b, c, g, beta, lengths, table, QK, QB, CK, CB,
    T, H, K, G_q, G_k, G_b, G_c, G_g, G_beta, chunks, ZERO,
    q_B, q_T, q_H, k_B, k_T, k_H, b_B, b_T, b_H, c_B, c_T, c_H, g_B, g_T, g_H, beta_B, beta_T, beta_H, g_K,
    AFTER: tl.constexpr, OWN: tl.constexpr, RAGGED: tl.constexpr, PRECISION: tl.constexpr,
    CHUNK: tl.constexpr, BLOCK: tl.constexpr, LEVELS: tl.constexpr,
):  # fmt: skip
    """QK, CK and CB of every chunk [B,H,chunks,CHUNK,CHUNK], and QB unless OWN: then it is QK."""
    kind: tl.constexpr = CB.dtype.element_ty
    op: tl.constexpr = table.dtype.element_ty
    program = tl.program_id(0)
    h, n = program % H, (program // H % chunks).to(tl.int64)
    row = (program // H // chunks).to(tl.int64)
    start, at = n * CHUNK, tl.arange(0, CHUNK)
    L = length_of(lengths, row, T, RAGGED)
    q += row * q_B + head_of(h, G_q, H, q_H)
    k += row * k_B + head_of(h, G_k, H, k_H)
    b += row * b_B + head_of(h, G_b, H, b_H)
    c += row * c_B + head_of(h, G_c, H, c_H)
    g += row * g_B + head_of(h, G_g, H, g_H)
    up, to = at[:, None], at[None, :]
    QKt, QBt = tl.zeros([CHUNK, CHUNK], kind), tl.zeros([CHUNK, CHUNK], kind)
    CKt, CBt = tl.zeros([CHUNK, CHUNK], kind), tl.zeros([CHUNK, CHUNK], kind)
    own_k, own_b = tl.zeros([CHUNK], kind), tl.zeros([CHUNK], kind)
    for first in tl.range(0, K, BLOCK, num_stages=1):
        i = first + tl.arange(0, BLOCK)
        gt, high, low = decays_of(g, start, at, i, g_T, g_K, L, K, kind, op)
        fade = tl.exp2(gt)
        if AFTER:
            qt = rows_of(q, start, at, q_T, i, L, K, kind)
            own_k += tl.sum(qt * rows_of(k, start, at, k_T, i, L, K, kind), 1)
            if not OWN:
                own_b += tl.sum(qt * rows_of(b, start, at, b_T, i, L, K, kind), 1)
        for level in tl.range(0, LEVELS, num_stages=1):
            part, again = (up ^ to) >> level == 1, level * ZERO
            F = scaled(zeros_and_ones(table, level, False, CHUNK), high, low, kind, PRECISION)
            ks = (rows_of(k + again, start, at, k_T, i, L, K, kind) * F).to(op)
            cs = (rows_of(c + again, start, at, c_T, i, L, K, kind) * F).to(op)
            qt = rows_of(q + again, start, at, q_T, i, L, K, kind) * F
            qs = ((qt * fade) if AFTER else qt).to(op)
            QKt = apart(qs, ks, part, QKt, PRECISION)
            CKt = apart(cs, ks, part, CKt, PRECISION)
            if not OWN:
                bs = (rows_of(b + again, start, at, b_T, i, L, K, kind) * F).to(op)
                QBt = apart(qs, bs, part, QBt, PRECISION)
                CBt = apart(cs, bs, part, CBt, PRECISION)
    rate = rates(beta + row * beta_B + head_of(h, G_beta, H, beta_H), start, at, beta_T, L, kind)
    place = ((row * H + h) * chunks + n) * CHUNK * CHUNK + up * CHUNK + to
    below = up > to
    QKt = tl.where(below, QKt, tl.where(up == to, own_k[:, None], 0))
    CKt = tl.where(below, CKt, 0) * rate
    tl.store(QK + place, QKt.to(QK.dtype.element_ty))
    tl.store(CK + place, CKt.to(CK.dtype.element_ty))
    if OWN:
        CBt = CKt
    else:
        QBt = tl.where(below, QBt, tl.where(up == to, own_b[:, None], 0))
        CBt = tl.where(below, CBt, 0) * rate
        tl.store(QB + place, QBt.to(QB.dtype.element_ty))
    tl.store(CB + place, CBt)


@triton.jit
def reader(q, q_T, g, g_T, g_K, start, at, i, L, K, AFTER: tl.constexpr, kind: tl.constexpr, op: tl.constexpr):
    """q'."""
    qt = rows_of(q, start, at, q_T, i, L, K, kind)
    if AFTER:
        gt, _, _ = decays_of(g, start, at, i, g_T, g_K, L, K, kind, op)
        qt *= tl.exp2(gt)
    return qt


@triton.jit
def reads(
    q, q_T, k, k_T, b, b_T, c, c_T, g, g_T, g_K, rate, dQK, dQB, dCK, dCB, dq, dc, dgt,
    table, high, low, start, at, i, L, K, ZERO,
    AFTER: tl.constexpr, OWN: tl.constexpr, LEARN: tl.constexpr, LEVELS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """(dq', dc / rate, dgt), with what the pairs of all levels add to the readers' gradients and to F's."""
    kind: tl.constexpr = dq.dtype
    op: tl.constexpr = high.dtype
    up, to = at[:, None], at[None, :]
    zero = tl.zeros([high.shape[0], high.shape[1]], kind)
    for level in tl.range(0, LEVELS, num_stages=1):
        part, again = ((up ^ to) >> level == 1) & (up > to), level * ZERO
        ones = zeros_and_ones(table, level, False, at.shape[0])
        F = scaled(ones, high, low, kind, PRECISION)
        ks = (rows_of(k + again, start, at, k_T, i, L, K, kind) * F).to(op)
        if OWN:
            new = F * product(cut(dQB + again, part), ks, zero, PRECISION)
        else:
            bs = (rows_of(b + again, start, at, b_T, i, L, K, kind) * F).to(op)
            new = F * both(cut(dQK + again, part), ks, cut(dQB + again, part), bs, kind, PRECISION)
        dq += new
        E = reader(q + again, q_T, g + again, g_T, g_K, start, at, i, L, K, AFTER, kind, op) * new
        if OWN:
            new = F * product(cut(dCB + again, part), ks, zero, PRECISION)
        else:
            new = F * both(cut(dCK + again, part), ks, cut(dCB + again, part), bs, kind, PRECISION)
        dc += new
        E += rows_of(c + again, start, at, c_T, i, L, K, kind) * rate * new
        if LEARN:
            dgt = product(tl.trans(ones), E.to(op), dgt, PRECISION)
    return dq, dc, dgt


@triton.jit
def writes(
    q, q_T, k, k_T, b, b_T, c, c_T, g, g_T, g_K, rate, dQK, dQB, dCK, dCB, dk, db, dgt,
    table, high, low, start, at, i, L, K, ZERO,
    AFTER: tl.constexpr, OWN: tl.constexpr, LEARN: tl.constexpr, LEVELS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """(dk, db, dgt), with what the pairs of all levels add to the writers' gradients and to F's. OWN: db as it is."""
    kind: tl.constexpr = dk.dtype
    op: tl.constexpr = high.dtype
    up, to = at[:, None], at[None, :]
    for level in tl.range(0, LEVELS, num_stages=1):
        part, again = ((up ^ to) >> level == 1) & (up > to), level * ZERO
        ones = zeros_and_ones(table, level, False, at.shape[0])
        F = scaled(ones, high, low, kind, PRECISION)
        qs = (reader(q + again, q_T, g + again, g_T, g_K, start, at, i, L, K, AFTER, kind, op) * F).to(op)
        cs = (rows_of(c + again, start, at, c_T, i, L, K, kind) * rate * F).to(op)
        if not OWN:
            QB, CB = cut(dQB + again, part), cut(dCB + again, part)
            new = F * both(tl.trans(QB), qs, tl.trans(CB), cs, kind, PRECISION)
            db += new
            E = rows_of(b + again, start, at, b_T, i, L, K, kind) * new
        QK, CK = cut(dQK + again, part), cut(dCK + again, part)
        new = F * both(tl.trans(QK), qs, tl.trans(CK), cs, kind, PRECISION)
        dk += new
        new *= rows_of(k + again, start, at, k_T, i, L, K, kind)
        E = new if OWN else E + new
        if LEARN:
            dgt = product(tl.trans(ones), E.to(op), dgt, PRECISION)
    return dk, db, dgt


@triton.jit(do_not_specialize=["T", "chunks"])
def keys(
    q, k, b, c, g, beta, lengths, table, dQK, dQB, dCK, dCB, dreads, dwrites, dback,
    dput, dkeeps, dq, dk, db, dc, dg, dbeta,
    T, H, K, G_q, G_k, G_b, G_c, G_g, G_beta, chunks, WIDTH, ZERO,
    q_B, q_T, q_H, k_B, k_T, k_H, b_B, b_T, b_H, c_B, c_T, c_H, g_B, g_T, g_H, beta_B, beta_T, beta_H, g_K,
    AFTER: tl.constexpr, OWN: tl.constexpr, LEARN: tl.constexpr, RAGGED: tl.constexpr,
    PRECISION: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr, LEVELS: tl.constexpr,
):  # fmt: skip
    """As `gpu_dplr_back.keys`. With OWN, dQB and dCB stand for the sums, and dQK and dCK are not read.
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
    g += row * g_B + head_of(h, G_g, H, g_H)
    rate = rates(beta + row * beta_B + head_of(h, G_beta, H, beta_H), start, at, beta_T, L, kind)
    _, high, low = decays_of(g, start, at, i, g_T, g_K, L, K, kind, op)
    up, to = at[:, None], at[None, :]
    rows, square = chunk * CHUNK * WIDTH + up * WIDTH + i[None, :], chunk * CHUNK * CHUNK + up * CHUNK + to
    dQB, dCB = dQB + square, dCB + square
    if OWN:
        dQK, dCK = dQB, dCB
    else:
        dQK, dCK = dQK + square, dCK + square
    place = ((row * T + start) * H + h) * K + up * H * K + i[None, :]
    mask, none = (at < T - start)[:, None] & (i < K)[None, :], tl.zeros([CHUNK, BLOCK], kind)
    # the readers: from the chunk's start, at the levels, and q its own token
    ones, again = zeros_and_ones(table, LEVELS, False, CHUNK), LEVELS * ZERO
    F = scaled(ones, high, low, kind, PRECISION)
    dqt, dct = tl.load(dreads + rows).to(kind) * F, tl.load(dback + rows).to(kind) * F
    E = reader(q, q_T, g, g_T, g_K, start, at, i, L, K, AFTER, kind, op) * dqt
    E += rows_of(c, start, at, c_T, i, L, K, kind) * rate * dct
    dgt = product(tl.trans(ones), E.to(op), none, PRECISION)
    dqt, dct, dgt = reads(q, q_T, k, k_T, b, b_T, c, c_T, g, g_T, g_K, rate, dQK, dQB, dCK, dCB, dqt, dct, dgt, table,
                          high, low, start, at, i, L, K, ZERO, AFTER, OWN, LEARN, LEVELS, PRECISION)  # fmt: skip
    tl.store(dc + place, (rate * dct).to(dc.dtype.element_ty), mask=mask)
    lost = -tl.sum(rows_of(c + again, start, at, c_T, i, L, K, kind) * dct, 1)
    dbeta += block.to(tl.int64) * (tl.num_programs(0) // (H * chunks)) * T * H
    tl.store(dbeta + (row * T + start + at) * H + h, lost, mask=at < T - start)
    if AFTER:
        gt, _, _ = decays_of(g + again, start, at, i, g_T, g_K, L, K, kind, op)
        dqt *= tl.exp2(gt)
        dgt += rows_of(q + again, start, at, q_T, i, L, K, kind) * dqt
        own = tl.sum(cut(dQK + again, up == to), 1)[:, None]
        dqt += own * rows_of(k + again, start, at, k_T, i, L, K, kind)
        if not OWN:
            own = tl.sum(cut(dQB + again, up == to), 1)[:, None]
            dqt += own * rows_of(b + again, start, at, b_T, i, L, K, kind)
    tl.store(dq + place, dqt.to(dq.dtype.element_ty), mask=mask)
    # the writers: to the chunk's end, at the levels, and where q reads its own token
    ones = zeros_and_ones(table + again, LEVELS, False, CHUNK)
    F = scaled(tl.trans(ones), high, low, kind, PRECISION)
    dkt, dbt = tl.load(dwrites + rows).to(kind) * F, tl.load(dput + rows).to(kind) * F
    if OWN:
        dkt += dbt
        dbt = none
        E = rows_of(k + again, start, at, k_T, i, L, K, kind) * dkt
    else:
        E = rows_of(k + again, start, at, k_T, i, L, K, kind) * dkt
        E += rows_of(b + again, start, at, b_T, i, L, K, kind) * dbt
    dgt = product(ones, E.to(op), dgt, PRECISION)
    dkt, dbt, dgt = writes(q, q_T, k, k_T, b, b_T, c, c_T, g, g_T, g_K, rate, dQK, dQB, dCK, dCB, dkt, dbt, dgt, table,
                           high, low, start, at, i, L, K, ZERO, AFTER, OWN, LEARN, LEVELS, PRECISION)  # fmt: skip
    again += ZERO
    if AFTER:
        qt = rows_of(q + again, start, at, q_T, i, L, K, kind)
        dkt += tl.sum(cut(dQK + again, up == to), 1)[:, None] * qt
        if not OWN:
            dbt += tl.sum(cut(dQB + again, up == to), 1)[:, None] * qt
    tl.store(dk + place, dkt.to(dk.dtype.element_ty), mask=mask)
    if not OWN:
        tl.store(db + place, dbt.to(db.dtype.element_ty), mask=mask)
    if LEARN:
        dgt += tl.load(dkeeps + chunk * WIDTH + i)[None, :]
        dgt = tl.where((at < L - start)[:, None], dgt, 0)
        tl.store(dg + place, dgt.to(dg.dtype.element_ty), mask=mask)
