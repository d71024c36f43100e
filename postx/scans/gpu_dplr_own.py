"""`gpu_dplr.pairs` and `gpu_dplr_back.keys` where b is k: QB is QK and CB is CK, and all share one F a level.

q reads behind its own decay, and D_ij = e^(g_i) E_ij for j < i; so with q' = e^(g) q (q' = q where y reads the old
state) q is one more reader like c, and q', c and k take the same F. dQK and dQB, dCK and dCB are only ever used as the
sums dQ and dC, which `gpu_dplr_back.squares` makes; with those cut to the pairs that part at a level

    dq' += F * (dQ (F * k))      dc += F * (dC (F * k))      dk += F * (dQ'(F * q') + dC'(F * c))

F's exponent learns from the products of a token with what is added to its gradient: those of q' and c are one product
with L', those of k another. dq = e^g * dq' (and dQ's diagonal), and g itself learns q' * dq'.
"""

import triton
import triton.language as tl

from postx.scans.gpu_chunked import head_of, product, rows_of
from postx.scans.gpu_decay import length_of
from postx.scans.gpu_dplr import decays_of, rates, scaled, zeros_and_ones
from postx.scans.gpu_dplr_back import both, cut


@triton.jit
def reader(q, q_T, g, g_T, g_K, start, at, i, L, K, AFTER: tl.constexpr, kind: tl.constexpr, op: tl.constexpr):
    """q'."""
    qt = rows_of(q, start, at, q_T, i, L, K, kind)
    if AFTER:
        gt, _, _ = decays_of(g, start, at, i, g_T, g_K, L, K, kind, op)
        qt *= tl.exp2(gt)
    return qt


@triton.jit
def apart(x, y, part, to, PRECISION: tl.constexpr):
    """to + x y' where `part`."""
    return to + tl.where(part, product(x, tl.trans(y), tl.zeros([x.shape[0], x.shape[0]], to.dtype), PRECISION), 0)


@triton.jit(do_not_specialize=["T", "chunks"])
def pairs(
    q, k, c, g, beta, lengths, table, QK, CK, CB, T, H, K, G_q, G_k, G_c, G_g, G_beta, chunks, ZERO,
    q_B, q_T, q_H, k_B, k_T, k_H, c_B, c_T, c_H, g_B, g_T, g_H, beta_B, beta_T, beta_H, g_K,
    AFTER: tl.constexpr, RAGGED: tl.constexpr, PRECISION: tl.constexpr,
    CHUNK: tl.constexpr, BLOCK: tl.constexpr, LEVELS: tl.constexpr,
):  # fmt: skip
    """QK and CK of every chunk [B,H,chunks,CHUNK,CHUNK], and CB: that is CK in the state's dtype."""
    kind: tl.constexpr = CB.dtype.element_ty
    op: tl.constexpr = table.dtype.element_ty
    program = tl.program_id(0)
    h, n = program % H, (program // H % chunks).to(tl.int64)
    row = (program // H // chunks).to(tl.int64)
    start, at = n * CHUNK, tl.arange(0, CHUNK)
    L = length_of(lengths, row, T, RAGGED)
    q += row * q_B + head_of(h, G_q, H, q_H)
    k += row * k_B + head_of(h, G_k, H, k_H)
    c += row * c_B + head_of(h, G_c, H, c_H)
    g += row * g_B + head_of(h, G_g, H, g_H)
    up, to = at[:, None], at[None, :]
    QKt, CKt, own = tl.zeros([CHUNK, CHUNK], kind), tl.zeros([CHUNK, CHUNK], kind), tl.zeros([CHUNK], kind)
    for first in tl.range(0, K, BLOCK, num_stages=1):
        i = first + tl.arange(0, BLOCK)
        gt, high, low = decays_of(g, start, at, i, g_T, g_K, L, K, kind, op)
        fade = tl.exp2(gt)
        if AFTER:
            qt = rows_of(q, start, at, q_T, i, L, K, kind)
            own += tl.sum(qt * rows_of(k, start, at, k_T, i, L, K, kind), 1)
        for level in tl.range(0, LEVELS, num_stages=1):
            part, again = (up ^ to) >> level == 1, level * ZERO
            F = scaled(zeros_and_ones(table, level, False, CHUNK), high, low, kind, PRECISION)
            ks = (rows_of(k + again, start, at, k_T, i, L, K, kind) * F).to(op)
            cs = (rows_of(c + again, start, at, c_T, i, L, K, kind) * F).to(op)
            qt = rows_of(q + again, start, at, q_T, i, L, K, kind) * F
            qs = ((qt * fade) if AFTER else qt).to(op)
            QKt = apart(qs, ks, part, QKt, PRECISION)
            CKt = apart(cs, ks, part, CKt, PRECISION)
    rate = rates(beta + row * beta_B + head_of(h, G_beta, H, beta_H), start, at, beta_T, L, kind)
    place = ((row * H + h) * chunks + n) * CHUNK * CHUNK + up * CHUNK + to
    QKt = tl.where(up > to, QKt, tl.where(up == to, own[:, None], 0))
    CKt = tl.where(up > to, CKt, 0) * rate
    tl.store(QK + place, QKt.to(QK.dtype.element_ty))
    tl.store(CK + place, CKt.to(CK.dtype.element_ty))
    tl.store(CB + place, CKt)


@triton.jit(do_not_specialize=["T", "chunks"])
def keys(
    q, k, c, g, beta, lengths, table, dQs, dCs, dreads, dwrites, dback, dput, dkeeps, dq, dk, dc, dg, dbeta,
    T, H, K, G_q, G_k, G_c, G_g, G_beta, chunks, WIDTH, ZERO,
    q_B, q_T, q_H, k_B, k_T, k_H, c_B, c_T, c_H, g_B, g_T, g_H, beta_B, beta_T, beta_H, g_K,
    AFTER: tl.constexpr, LEARN: tl.constexpr, RAGGED: tl.constexpr, PRECISION: tl.constexpr,
    CHUNK: tl.constexpr, BLOCK: tl.constexpr, LEVELS: tl.constexpr,
):  # fmt: skip
    """dq, dk, dc, dg [B,T,H,K] of each head alone, and of each block of keys dbeta [blocks,B,T,H]; dQs and dCs: sums.

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
    c += row * c_B + head_of(h, G_c, H, c_H)
    g += row * g_B + head_of(h, G_g, H, g_H)
    rate = rates(beta + row * beta_B + head_of(h, G_beta, H, beta_H), start, at, beta_T, L, kind)
    _, high, low = decays_of(g, start, at, i, g_T, g_K, L, K, kind, op)
    up, to = at[:, None], at[None, :]
    rows, square = chunk * CHUNK * WIDTH + up * WIDTH + i[None, :], chunk * CHUNK * CHUNK + up * CHUNK + to
    dQs, dCs = dQs + square, dCs + square
    place = ((row * T + start) * H + h) * K + up * H * K + i[None, :]
    mask, none = (at < T - start)[:, None] & (i < K)[None, :], tl.zeros([CHUNK, BLOCK], kind)
    # the readers: from the chunk's start, at the levels, and q its own token
    whole, last = zeros_and_ones(table, LEVELS, False, CHUNK), LEVELS * ZERO
    fade = scaled(whole, high, low, kind, PRECISION)
    dqt, dct = tl.load(dreads + rows).to(kind) * fade, tl.load(dback + rows).to(kind) * fade
    learned = reader(q, q_T, g, g_T, g_K, start, at, i, L, K, AFTER, kind, op) * dqt
    learned += rows_of(c, start, at, c_T, i, L, K, kind) * rate * dct
    dgt = product(tl.trans(whole), learned.to(op), none, PRECISION)
    for level in tl.range(0, LEVELS, num_stages=1):
        part, again = ((up ^ to) >> level == 1) & (up > to), level * ZERO
        ones = zeros_and_ones(table, level, False, CHUNK)
        F = scaled(ones, high, low, kind, PRECISION)
        ks = (rows_of(k + again, start, at, k_T, i, L, K, kind) * F).to(op)
        new = F * product(cut(dQs + again, part), ks, none, PRECISION)
        dqt += new
        E = reader(q + again, q_T, g + again, g_T, g_K, start, at, i, L, K, AFTER, kind, op) * new
        new = F * product(cut(dCs + again, part), ks, none, PRECISION)
        dct += new
        E += rows_of(c + again, start, at, c_T, i, L, K, kind) * rate * new
        if LEARN:
            dgt = product(tl.trans(ones), E.to(op), dgt, PRECISION)
    tl.store(dc + place, (rate * dct).to(dc.dtype.element_ty), mask=mask)
    lost = -tl.sum(rows_of(c + last, start, at, c_T, i, L, K, kind) * dct, 1)
    dbeta += block.to(tl.int64) * (tl.num_programs(0) // (H * chunks)) * T * H
    tl.store(dbeta + (row * T + start + at) * H + h, lost, mask=at < T - start)
    if AFTER:
        gt, _, _ = decays_of(g + last, start, at, i, g_T, g_K, L, K, kind, op)
        dqt *= tl.exp2(gt)
        dgt += rows_of(q + last, start, at, q_T, i, L, K, kind) * dqt
        own = tl.sum(cut(dQs + last, up == to), 1)[:, None]
        dqt += own * rows_of(k + last, start, at, k_T, i, L, K, kind)
    tl.store(dq + place, dqt.to(dq.dtype.element_ty), mask=mask)
    # the writers: to the chunk's end, at the levels, and where q reads its own token
    whole = zeros_and_ones(table + last, LEVELS, False, CHUNK)
    fade = scaled(tl.trans(whole), high, low, kind, PRECISION)
    dkt = tl.load(dwrites + rows).to(kind) * fade + tl.load(dput + rows).to(kind) * fade
    learned = rows_of(k + last, start, at, k_T, i, L, K, kind) * dkt
    dgt = product(whole, learned.to(op), dgt, PRECISION)
    for level in tl.range(0, LEVELS, num_stages=1):
        part, again = ((up ^ to) >> level == 1) & (up > to), level * ZERO
        ones = zeros_and_ones(table, level, False, CHUNK)
        F = scaled(ones, high, low, kind, PRECISION)
        qs = (reader(q + again, q_T, g + again, g_T, g_K, start, at, i, L, K, AFTER, kind, op) * F).to(op)
        cs = (rows_of(c + again, start, at, c_T, i, L, K, kind) * rate * F).to(op)
        QK, CK = cut(dQs + again, part), cut(dCs + again, part)
        new = F * both(tl.trans(QK), qs, tl.trans(CK), cs, kind, PRECISION)
        dkt += new
        if LEARN:
            E = rows_of(k + again, start, at, k_T, i, L, K, kind) * new
            dgt = product(tl.trans(ones), E.to(op), dgt, PRECISION)
    last += ZERO
    if AFTER:
        qt = rows_of(q + last, start, at, q_T, i, L, K, kind)
        dkt += tl.sum(cut(dQs + last, up == to), 1)[:, None] * qt
    tl.store(dk + place, dkt.to(dk.dtype.element_ty), mask=mask)
    if LEARN:
        dgt += tl.load(dkeeps + chunk * WIDTH + i)[None, :]
        dgt = tl.where((at < L - start)[:, None], dgt, 0)
        tl.store(dg + place, dgt.to(dg.dtype.element_ty), mask=mask)
