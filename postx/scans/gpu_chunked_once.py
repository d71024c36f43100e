"""All gradients of `gpu_chunked` in one kernel instead of four: tables, tokens and pairs are read once.

With the letters of that file, A = sum over heads of (dY V') * D, and

    dQ = sum of (e^c * dY) S' + A K          dK = sum of (e^(c_C - c) * V) G' + A' Q
    dV = e^(c_C - c) * (K G) + ((Q K') * D)' dY

The decays learn from A, from Q S and from that K G. What is added up over heads stays in the products' accumulators,
so e^c * dY and e^(c_C - c) * V are rounded as `walk` rounds them.
"""

import triton
import triton.language as tl

from postx.scans.gpu_chunked import causal, head_of, pairs, product, rows_of, running
from postx.scans.gpu_decay import length_of


@triton.jit(do_not_specialize=["T", "h0", "chunks", "wide_q", "past_q", "wide_k", "past_k"])
def gradients(
    q, k, v, g, tables, adjoints, lengths, dy, dq, dk, dv, dg,
    T, H, K, V, G_q, G_k, G_g, h0, heads, chunks, wide_q, past_q, wide_k, past_k,
    q_B, q_T, q_H, k_B, k_T, k_H, v_B, v_T, v_H, g_B, g_T, g_H, dy_B, dy_T, dy_H,
    DECAY: tl.constexpr, LEARN: tl.constexpr, RAGGED: tl.constexpr, PRECISION: tl.constexpr, KIND: tl.constexpr,
    SHARE: tl.constexpr, ONE: tl.constexpr, CHUNK: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    """dq, dk [B,T,wide,K] (SHARE heads added up, `past` such sums left out), dv [B,T,H,V] and with LEARN dg [B,T,H]."""
    op: tl.constexpr = tables.dtype.element_ty
    program, sets = tl.program_id(0), heads // SHARE
    h, n = h0 + program % sets * SHARE, (program // sets % chunks).to(tl.int64)
    b = (program // sets // chunks).to(tl.int64)
    start, c, i = n * CHUNK, tl.arange(0, CHUNK), tl.arange(0, BLOCK_K)
    L = length_of(lengths, b, T, RAGGED)
    q += b * q_B + head_of(h, G_q, H, q_H)
    k += b * k_B + head_of(h, G_k, H, k_H)
    qt, kt = rows_of(q, start, c, q_T, i, L, K, op), rows_of(k, start, c, k_T, i, L, K, op)
    QK = product(qt, tl.trans(kt), tl.zeros([CHUNK, CHUNK], KIND), PRECISION)
    A_all = tl.zeros([CHUNK, CHUNK], KIND)
    dqt, dkt = tl.zeros([CHUNK, BLOCK_K], KIND), tl.zeros([CHUNK, BLOCK_K], KIND)
    for s in range(0, SHARE):
        head = (h + s).to(tl.int64)
        table = ((b * heads + head - h0) * chunks + n) * K * V
        P = causal(QK, False)
        if DECAY:
            gh = g + b * g_B + head_of(h + s, G_g, H, g_H)
            whole, rest, whole_left, rest_left, keep = running(gh, start, c, g_T, L, KIND)
            seen, left = tl.exp2(whole + rest), tl.exp2(whole_left + rest_left)
            P *= pairs(whole, rest, False)
        dA, read, written = tl.zeros([CHUNK, CHUNK], KIND), tl.zeros([CHUNK], KIND), tl.zeros([CHUNK], KIND)
        both = tl.zeros([BLOCK_K], KIND)
        for first in range(0, BLOCK_V if ONE else V, BLOCK_V):
            j = first + tl.arange(0, BLOCK_V)
            vt = rows_of(v + b * v_B + head * v_H, start, c, v_T, j, L, V, op)
            gt = rows_of(dy + b * dy_B + head * dy_H, start, c, dy_T, j, L, V, op)
            inside = (i < K)[:, None] & (j < V)[None, :]
            S = tl.load(tables + table + i[:, None] * V + j[None, :], mask=inside, other=0)
            G = tl.load(adjoints + table + i[:, None] * V + j[None, :], mask=inside, other=0)
            dA = product(gt, tl.trans(vt), dA, PRECISION)
            out = product(kt, G, tl.zeros([CHUNK, BLOCK_V], KIND), PRECISION)
            ys, vs = gt, vt
            if DECAY:
                ys, vs = (gt * seen[:, None]).to(op), (vt * left[:, None]).to(op)
                out *= left[:, None]
            if LEARN:
                QS = product(qt, S, tl.zeros([CHUNK, BLOCK_V], KIND), PRECISION)
                read += tl.sum(QS * gt.to(KIND), 1)
                written += tl.sum(out * vt.to(KIND), 1)
                both += tl.sum(S.to(KIND) * G.to(KIND), 1)
            dqt = product(ys, tl.trans(S), dqt, PRECISION)
            dkt = product(vs, tl.trans(G), dkt, PRECISION)
            out = product(tl.trans(P.to(op)), gt, out, PRECISION)
            at = ((b * T + start) * H + head) * V + c[:, None] * H * V + j[None, :]
            tl.store(dv + at, out.to(dv.dtype.element_ty), mask=(c < T - start)[:, None] & (j < V)[None, :])
        if LEARN:
            M = P * dA
            dc = seen * read - written + tl.sum(M, 1) - tl.sum(M, 0)
            dgt = tl.cumsum(dc, 0, reverse=True) + (keep * tl.sum(both, 0) + tl.sum(written, 0))
            tl.store(dg + (b * T + start + c) * H + head, tl.where(c < L - start, dgt, 0), mask=c < T - start)
        dA = causal(dA, False)
        if DECAY:
            dA *= pairs(whole, rest, False)
        A_all += dA
    A = A_all.to(op)
    mask = (c < T - start)[:, None] & (i < K)[None, :]
    at = ((b * T + start) * wide_q + h // SHARE - past_q) * K + c[:, None] * wide_q * K + i[None, :]
    tl.store(dq + at, product(A, kt, dqt, PRECISION).to(dq.dtype.element_ty), mask=mask)
    at = ((b * T + start) * wide_k + h // SHARE - past_k) * K + c[:, None] * wide_k * K + i[None, :]
    tl.store(dk + at, product(tl.trans(A), qt, dkt, PRECISION).to(dk.dtype.element_ty), mask=mask)
