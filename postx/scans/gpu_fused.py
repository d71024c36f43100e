"""The decay recurrence on a GPU in one pass: `gpu_chunked`'s walk and outputs at once, the table stays on the chip.

With the letters of `gpu_chunked`, a program holds one table X [I, J], or a block of its columns, and goes from chunk to
chunk of tokens:

    Y  = e^c * (Q X) + ((Q K') * D) V              X <- e^(c_C) X + K' (e^(c_C - c) * V)

from the first chunk to the last, or REVERSE: from the last to the first, with D transposed and with e^c and e^(c_C - c)
exchanged. One map gives the outputs and the gradients, by the roles that q, k, v and dy play in it:

    Y  of (q, k, v)  from S           dQ of (dy, v, k)  from S'
    dV of (k, q, dy) from G, REVERSE  dK of (v, dy, q)  from G', REVERSE

where S is the first table and G the gradient of the last; the X that comes out is the last table, and the gradient of
the first. Each token is read once, and nothing but results is written. Where heads are few, time is cut into segments,
each from its own X (`gpu_chunked.walk` and `carry` find them).
"""

import triton
import triton.language as tl

from postx.scans.gpu_chunked import causal, head_of, pairs, product, rows_of, running
from postx.scans.gpu_decay import length_of


@triton.jit(do_not_specialize=["T", "chunks", "span"])
def fused(
    q, k, v, g, first, lengths, y, last,
    T, H, I, J, G_q, G_k, G_v, G_g, chunks, segments, span, by_i, by_j,
    q_B, q_T, q_H, k_B, k_T, k_H, v_B, v_T, v_H, g_B, g_T, g_H,
    REVERSE: tl.constexpr, DECAY: tl.constexpr, RAGGED: tl.constexpr, PRECISION: tl.constexpr, LAST: tl.constexpr,
    CHUNK: tl.constexpr, BLOCK_I: tl.constexpr, BLOCK_J: tl.constexpr, STAGES: tl.constexpr,
    OP: tl.constexpr,
):  # fmt: skip
    """y [B,T,H,J] and, with LAST, last [B,H,segments,table]; a table is read and written by the strides by_i, by_j."""
    kind: tl.constexpr = first.dtype.element_ty
    program = tl.program_id(0)
    segment, head = program % segments, program // segments
    b, h = (head // H).to(tl.int64), head % H
    i = tl.arange(0, BLOCK_I)
    j = tl.program_id(1) * BLOCK_J + tl.arange(0, BLOCK_J)
    inside = (i < I)[:, None] & (j < J)[None, :]
    tile = program.to(tl.int64) * I * J + i[:, None] * by_i + j[None, :] * by_j
    X = tl.load(first + tile, mask=inside, other=0)
    q += b * q_B + head_of(h, G_q, H, q_H)
    k += b * k_B + head_of(h, G_k, H, k_H)
    v += b * v_B + head_of(h, G_v, H, v_H)
    g += b * g_B + head_of(h, G_g, H, g_H)
    y += (b * T * H + h) * J
    L = length_of(lengths, b, T, RAGGED)
    count = min(span, chunks - segment * span)
    for m in tl.range(0, count, num_stages=STAGES):
        n = (segment * span + (count - 1 - m if REVERSE else m)).to(tl.int64)
        start, c = n * CHUNK, tl.arange(0, CHUNK)
        qt, kt = rows_of(q, start, c, q_T, i, L, I, OP), rows_of(k, start, c, k_T, i, L, I, OP)
        vt = rows_of(v, start, c, v_T, j, L, J, OP)
        A = product(qt, tl.trans(kt), tl.zeros([CHUNK, CHUNK], kind), PRECISION)
        out = product(qt, X.to(OP), tl.zeros([CHUNK, BLOCK_J], kind), PRECISION)
        written = vt
        if DECAY:
            whole, rest, whole_left, rest_left, keep = running(g, start, c, g_T, L, kind)
            seen, left = tl.exp2(whole + rest)[:, None], tl.exp2(whole_left + rest_left)[:, None]
            A *= pairs(whole, rest, REVERSE)
            out *= left if REVERSE else seen
            written = (vt * (seen if REVERSE else left)).to(OP)
            X *= keep
        else:
            A = causal(A, REVERSE)
        out = product(A.to(OP), vt, out, PRECISION)
        X = product(tl.trans(kt), written, X, PRECISION)
        at, real = c[:, None] * H * J + j[None, :], (c < T - start)[:, None] & (j < J)[None, :]
        tl.store(y + start * H * J + at, out.to(y.dtype.element_ty), mask=real)
    if LAST:
        tl.store(last + tile, X, mask=inside)
