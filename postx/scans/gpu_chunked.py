"""The decay recurrence on a GPU in chunks of tokens, with tensor cores: no decay, or one number a head.

Cut time into chunks of C tokens. S is the table before a chunk, c_i = g_1 + ... + g_i the log-decay from its start to
behind token i, and D_ij = exp(c_i - c_j) for j <= i, else 0: what is left at i of what was written at j. Then

    S <- e^(c_C) S + K' (e^(c_C - c) * V)                           `walk`, from chunk to chunk
    Y  = e^c * (Q S) + ((Q K') * D) V                               `outputs`, every chunk on its own

Let G be the gradient of the table behind a chunk. It walks backwards by the same map, and each gradient is the same
product with the roles exchanged; where a token's past was read it is now its future, so D is transposed:

    G <- e^(c_C) G + Q' (e^c * dY)                                  `walk`, REVERSE
    dV = e^(c_C - c) * (K G)   + ((K Q') * D') dY                   `outputs`, REVERSE
    dK = e^(c_C - c) * (V G')  + ((V dY') * D') Q                   `outputs`, REVERSE
    dQ = e^c * (dY S')         + ((dY V') * D) K                    `outputs`

Heads that share q and k add their dQ and dK up: the sum over them is taken of (dY V') * D, before the product. For
the decays, y_i holds e^(c_i), what j writes holds e^(-c_j), and the table behind the chunk holds e^(c_C). So with
M = (Q K') * D * (dY V'), and sums over rows, columns and everything (`decays`)

    dc_i = rows(M)_i - columns(M)_i + e^(c_i) (Q S)_i dy_i - e^(c_C - c_i) (K G)_i v_i,   dg_j = sum over i >= j of dc_i
    dc_C has  <G, S behind> = e^(c_C) <G, S> + sum over i of  e^(c_C - c_i) (K G)_i v_i   more

A token past its row's end counts as q = k = v = dy = g = 0. No factor exceeds 1. The difference of two running sums
would lose the digits of a short stretch behind a long or a steep one, so each sum is kept as a whole number and a
rest (`running`), whose whole parts are subtracted exactly. Tables travel between the passes in the operands' dtype,
and are added up in at least float32 inside each.
"""

import triton
import triton.language as tl

from postx.scans.gpu_affine import LOG2E
from postx.scans.gpu_decay import length_of


@triton.jit
def rows_of(x, start, c, stride, columns, L, width, op: tl.constexpr):
    """x [.., start + c, columns] as [len(c), len(columns)], 0 past token L and past `width`.

    Only the chunk's start needs 64 bits; the offsets within it stay the same for all chunks, in few registers.
    """
    mask = (c < L - start)[:, None] & (columns < width)[None, :]
    return tl.load(x + start * stride + (c[:, None] * stride + columns[None, :]), mask=mask, other=0).to(op)


@triton.jit
def head_of(h, groups, heads, stride):
    """How far into a tensor of `groups` heads the one is that head h of `heads` uses."""
    return (h * groups // heads).to(tl.int64) * stride


@triton.jit
def product(x, y, to, PRECISION: tl.constexpr):
    """to + x y. PRECISION is of float32 alone: "tf32x3" takes each number as two, three products in all."""
    return tl.dot(x, y, acc=to, input_precision=PRECISION, out_dtype=to.dtype)


@triton.jit
def steps(g, start, c, stride, L, kind: tl.constexpr):
    """Each token's g log2(e) as (whole number, rest).

    A decay below 2^-160 (2^-1100 in float64) is 0 in its dtype however small it is, -inf included.
    """
    least: tl.constexpr = -1100.0 if kind == tl.float64 else -160.0
    x = tl.load(g + start * stride + c * stride, mask=c < L - start, other=0).to(kind) * LOG2E
    x = tl.maximum(x, least, propagate_nan=tl.PropagateNan.ALL)
    whole = tl.floor(x + 0.5)
    return whole, x - whole


@triton.jit
def summed(whole, rest):
    """The running sums of both, what is left of each to the chunk's end, and 2 to the power of all."""
    all_whole, all_rest = tl.sum(whole, 0), tl.sum(rest, 0)
    whole, rest = tl.cumsum(whole, 0), tl.cumsum(rest, 0)
    return whole, rest, all_whole - whole, all_rest - rest, tl.exp2(all_whole + all_rest)


@triton.jit
def running(g, start, c, stride, L, kind: tl.constexpr):
    """`summed` of a chunk's log-decays."""
    whole, rest = steps(g, start, c, stride, L, kind)
    return summed(whole, rest)


@triton.jit
def pairs(whole, rest, REVERSE: tl.constexpr):
    """D, or its transpose where REVERSE."""
    if REVERSE:
        D = tl.exp2((whole[None, :] - whole[:, None]) + (rest[None, :] - rest[:, None]))
    else:
        D = tl.exp2((whole[:, None] - whole[None, :]) + (rest[:, None] - rest[None, :]))
    return causal(D, REVERSE)


@triton.jit
def causal(x, REVERSE: tl.constexpr):
    i = tl.arange(0, x.shape[0])
    return tl.where(i[:, None] <= i[None, :] if REVERSE else i[:, None] >= i[None, :], x, 0)


@triton.jit(do_not_specialize=["T", "h0", "chunks", "span"])
def walk(
    x, w, g, first, lengths, tables, last, kept,
    T, H, K, V, G_x, G_g, h0, heads, chunks, segments, span,
    x_B, x_T, x_H, w_B, w_T, w_H, g_B, g_T, g_H,
    REVERSE: tl.constexpr, DECAY: tl.constexpr, RAGGED: tl.constexpr, PRECISION: tl.constexpr, KEEP: tl.constexpr,
    CHUNK: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """tables [B,heads,chunks,K,V]: S before every chunk, or G behind it where REVERSE; last [B,heads,segments,K,V].

    Of all H heads only `heads`, from h0 on. x is k and w is v, or q and dy where REVERSE. A segment of `span` chunks
    starts from its own `first`. Without KEEP it starts from nothing, and what comes out is `last` and, in
    kept [B,heads,segments], how much of what enters is left behind it.
    """
    kind: tl.constexpr = last.dtype.element_ty
    op: tl.constexpr = tables.dtype.element_ty
    program = tl.program_id(0)
    segment, head = program % segments, program // segments
    b, h = (head // heads).to(tl.int64), h0 + head % heads
    i = tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K)
    j = tl.program_id(2) * BLOCK_V + tl.arange(0, BLOCK_V)
    tile = i.to(tl.int64)[:, None] * V + j[None, :]
    inside = (i < K)[:, None] & (j < V)[None, :]
    X, left = tl.zeros([BLOCK_K, BLOCK_V], kind), tl.full([], 1, kind)
    if KEEP:
        X = tl.load(first + program.to(tl.int64) * K * V + tile, mask=inside, other=0).to(kind)
    x += b * x_B + head_of(h, G_x, H, x_H)
    w += b * w_B + head_of(h, H, H, w_H)
    g += b * g_B + head_of(h, G_g, H, g_H)
    tables += head.to(tl.int64) * chunks * K * V + tile
    L = length_of(lengths, b, T, RAGGED)
    count = min(span, chunks - segment * span)
    for m in tl.range(0, count, num_stages=STAGES):
        n = (segment * span + (count - 1 - m if REVERSE else m)).to(tl.int64)
        start, c = n * CHUNK, tl.arange(0, CHUNK)
        if KEEP:
            tl.store(tables + n * K * V, X.to(op), mask=inside)
        xt = rows_of(x, start, c, x_T, i, L, K, op)
        wt = rows_of(w, start, c, w_T, j, L, V, op)
        if DECAY:
            whole, rest, whole_left, rest_left, keep = running(g, start, c, g_T, L, kind)
            fade = tl.exp2(whole + rest if REVERSE else whole_left + rest_left)
            wt = (wt * fade[:, None]).to(op)
            X *= keep
            left *= keep
        X = product(tl.trans(xt), wt, X, PRECISION)
    tl.store(last + program.to(tl.int64) * K * V + tile, X, mask=inside)
    if not KEEP:
        tl.store(kept + program, left)


@triton.jit
def carry(
    first, ends, kept, entering, last, numbers, segments,
    REVERSE: tl.constexpr, LAST: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """What enters every segment, [B,heads,segments,K,V]; with LAST what leaves the last, [B,heads,K,V]."""
    head = tl.program_id(0).to(tl.int64)
    i = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = i < numbers
    X = tl.load(first + head * numbers + i, mask=inside, other=0)
    for m in range(0, segments):
        at = head * segments + (segments - 1 - m if REVERSE else m)
        tl.store(entering + at * numbers + i, X, mask=inside)
        X = tl.load(kept + at) * X + tl.load(ends + at * numbers + i, mask=inside, other=0)
    if LAST:
        tl.store(last + head * numbers + i, X, mask=inside)


@triton.jit(do_not_specialize=["T", "h0", "chunks", "wide", "past"])
def outputs(
    q, k, v, g, tables, lengths, y,
    T, H, I, J, G_q, G_k, G_v, G_g, h0, heads, chunks, wide, past, by_i, by_j,
    q_B, q_T, q_H, k_B, k_T, k_H, v_B, v_T, v_H, g_B, g_T, g_H,
    REVERSE: tl.constexpr, DECAY: tl.constexpr, RAGGED: tl.constexpr, PRECISION: tl.constexpr, KIND: tl.constexpr,
    SHARE: tl.constexpr, ONE: tl.constexpr, CHUNK: tl.constexpr, BLOCK_I: tl.constexpr, BLOCK_J: tl.constexpr,
):  # fmt: skip
    """y [B,T,wide,J], where SHARE heads that have v in common are added up. q and k are I wide, v is J wide.

    y begins `past` such sums behind the first of all H heads.
    A table is read by the strides by_i and by_j. ONE says that I fits one block. Programs that read the same tokens
    stand side by side.
    """
    op: tl.constexpr = tables.dtype.element_ty
    program, sets = tl.program_id(0), heads // SHARE
    h, n = h0 + program % sets * SHARE, (program // sets % chunks).to(tl.int64)
    b = (program // sets // chunks).to(tl.int64)
    start, c = n * CHUNK, tl.arange(0, CHUNK)
    j = tl.program_id(1) * BLOCK_J + tl.arange(0, BLOCK_J)
    L = length_of(lengths, b, T, RAGGED)
    by_head = tl.full([], 1, tl.int64) * chunks * I * J
    tables += (b * heads + h - h0) * by_head + n * I * J
    A_all, out_all = tl.zeros([CHUNK, CHUNK], KIND), tl.zeros([CHUNK, BLOCK_J], KIND)
    for s in range(0, SHARE):
        A, out = tl.zeros([CHUNK, CHUNK], KIND), tl.zeros([CHUNK, BLOCK_J], KIND)
        for first in range(0, BLOCK_I if ONE else I, BLOCK_I):
            i = first + tl.arange(0, BLOCK_I)
            qt = rows_of(q + b * q_B + head_of(h + s, G_q, H, q_H), start, c, q_T, i, L, I, op)
            kt = rows_of(k + b * k_B + head_of(h + s, G_k, H, k_H), start, c, k_T, i, L, I, op)
            inside = (i < I)[:, None] & (j < J)[None, :]
            S = tl.load(tables + s * by_head + i[:, None] * by_i + j[None, :] * by_j, mask=inside, other=0)
            A = product(qt, tl.trans(kt), A, PRECISION)
            out = product(qt, S, out, PRECISION)
        if DECAY:
            gh = g + b * g_B + head_of(h + s, G_g, H, g_H)
            whole, rest, whole_left, rest_left, _ = running(gh, start, c, g_T, L, KIND)
            out *= tl.exp2(whole_left + rest_left if REVERSE else whole + rest)[:, None]
            A *= pairs(whole, rest, REVERSE)
        else:
            A = causal(A, REVERSE)
        A_all += A
        out_all += out
    vt = rows_of(v + b * v_B + head_of(h, G_v, H, v_H), start, c, v_T, j, L, J, op)
    out_all = product(A_all.to(op), vt, out_all, PRECISION)
    y += ((b * T + start) * wide + h // SHARE - past) * J
    at, inside = c[:, None] * wide * J + j[None, :], (c < T - start)[:, None] & (j < J)[None, :]
    tl.store(y + at, out_all.to(y.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["T", "h0", "chunks"])
def decays(
    q, k, v, g, tables, adjoints, lengths, dy, dg,
    T, H, K, V, G_q, G_k, G_g, h0, heads, chunks,
    q_B, q_T, q_H, k_B, k_T, k_H, v_B, v_T, v_H, g_B, g_T, g_H, dy_B, dy_T, dy_H,
    RAGGED: tl.constexpr, PRECISION: tl.constexpr,
    CHUNK: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    """dg [B,T,H]."""
    kind: tl.constexpr = dg.dtype.element_ty
    op: tl.constexpr = tables.dtype.element_ty
    program = tl.program_id(0)
    h, n = h0 + program % heads, (program // heads % chunks).to(tl.int64)
    b = (program // heads // chunks).to(tl.int64)
    start, c = n * CHUNK, tl.arange(0, CHUNK)
    L = length_of(lengths, b, T, RAGGED)
    q += b * q_B + head_of(h, G_q, H, q_H)
    k += b * k_B + head_of(h, G_k, H, k_H)
    v += b * v_B + head_of(h, H, H, v_H)
    dy += b * dy_B + head_of(h, H, H, dy_H)
    table = ((b * heads + h - h0) * chunks + n) * K * V
    QK, dA = tl.zeros([CHUNK, CHUNK], kind), tl.zeros([CHUNK, CHUNK], kind)
    read, written, both = tl.zeros([CHUNK], kind), tl.zeros([CHUNK], kind), tl.zeros([BLOCK_K], kind)
    for start_k in range(0, K, BLOCK_K):
        i = start_k + tl.arange(0, BLOCK_K)
        qt, kt = rows_of(q, start, c, q_T, i, L, K, op), rows_of(k, start, c, k_T, i, L, K, op)
        QK = product(qt, tl.trans(kt), QK, PRECISION)
        for start_v in range(0, V, BLOCK_V):
            j = start_v + tl.arange(0, BLOCK_V)
            vt, gt = rows_of(v, start, c, v_T, j, L, V, op), rows_of(dy, start, c, dy_T, j, L, V, op)
            if start_k == 0:
                dA = product(gt, tl.trans(vt), dA, PRECISION)
            inside = (i < K)[:, None] & (j < V)[None, :]
            S = tl.load(tables + table + i[:, None] * V + j[None, :], mask=inside, other=0)
            G = tl.load(adjoints + table + i[:, None] * V + j[None, :], mask=inside, other=0)
            both += tl.sum(S.to(kind) * G.to(kind), 1)
            read += tl.sum(product(qt, S, tl.zeros([CHUNK, BLOCK_V], kind), PRECISION) * gt.to(kind), 1)
            written += tl.sum(product(kt, G, tl.zeros([CHUNK, BLOCK_V], kind), PRECISION) * vt.to(kind), 1)
    whole, rest, whole_left, rest_left, keep = running(g + b * g_B + head_of(h, G_g, H, g_H), start, c, g_T, L, kind)
    M = QK * dA * pairs(whole, rest, False)
    written *= tl.exp2(whole_left + rest_left)
    dc = tl.exp2(whole + rest) * read - written + tl.sum(M, 1) - tl.sum(M, 0)
    dgt = tl.cumsum(dc, 0, reverse=True) + (keep * tl.sum(both, 0) + tl.sum(written, 0))
    tl.store(dg + (b * T + start + c) * H + h, tl.where(c < L - start, dgt, 0), mask=c < T - start)
