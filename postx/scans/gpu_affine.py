"""The affine recurrence on a GPU: h <- exp(g) h + b for each channel on its own, every h an output.

One channel is a chain of T dependent steps, and B D channels are too few to keep a GPU's memory busy. So time is cut
into segments. What a segment of tokens does to the number that enters it is one more affine map, h -> P h + H with
P the product of its decays and H what it ends at from nothing:

    1. `summarize`: P and H of every segment, all at once             reads g and b
    2. `carry`:     the number that enters each segment, in order     reads B D numbers a segment
    3. `walk`:      every h, from the number that enters              reads g and b, writes y

The gradient G_t of h_t runs through the same map from the end: with c_t = exp(g_t) G_t handed to the token before,

    G_t = dy_t + c_(t+1)        db_t = G_t        dg_t = c_t h_(t-1)

so c <- exp(g) (c + dy), and the same three passes serve, REVERSE, from the last segment to the first; the saved
outputs are the h. A token past its row's end has g = 0 and b = 0. No product is divided by and no atomics are used.
"""

import triton
import triton.language as tl

from postx.scans.gpu_decay import length_of

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def place(T, D, BLOCK: tl.constexpr):
    """(row, segment, channels, inside) of a program."""
    d = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    return tl.program_id(2).to(tl.int64), tl.program_id(1), d, d < D


@triton.jit
def token(x, offset, mask, kind: tl.constexpr):
    return tl.load(x + offset, mask=mask, other=0).to(kind)


@triton.jit(do_not_specialize=["T"])
def summarize(
    g, b, lengths, products, ends, T, D, g_B, g_T, b_B, b_T, segments,
    RAGGED: tl.constexpr, REVERSE: tl.constexpr, BLOCK: tl.constexpr, SEGMENT: tl.constexpr, AHEAD: tl.constexpr,
):  # fmt: skip
    """P and H of every segment, [B,segments,D]; b is dy where REVERSE."""
    kind: tl.constexpr = products.dtype.element_ty
    row, segment, d, inside = place(T, D, BLOCK)
    L = length_of(lengths, row, T, RAGGED)
    g += row * g_B
    b += row * b_B
    P, H = tl.full([BLOCK], 1, kind), tl.zeros([BLOCK], kind)
    for m in tl.range(0, SEGMENT, AHEAD):
        for ahead in tl.static_range(AHEAD):  # unrolled, so that the loads of several tokens are under way at once
            n = m + ahead
            t = (segment * SEGMENT + (SEGMENT - 1 - n if REVERSE else n)).to(tl.int64)
            real = inside & (t < L)
            a = tl.exp2(token(g, t * g_T + d, real, kind) * LOG2E)
            new = token(b, t * b_T + d, real, kind)
            H = a * (H + new) if REVERSE else a * H + new
            P *= a
    at = (row * segments + segment) * D + d
    tl.store(products + at, P, mask=inside)
    tl.store(ends + at, H, mask=inside)


@triton.jit
def carry(products, ends, first, entering, last, D, segments, REVERSE: tl.constexpr, BLOCK: tl.constexpr):
    """What enters every segment, [B,segments,D], and what leaves the last one, [B,D]."""
    row = tl.program_id(1).to(tl.int64)
    d = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = d < D
    h = tl.load(first + row * D + d, mask=inside, other=0)
    for m in tl.range(0, segments, num_stages=4):
        segment = segments - 1 - m if REVERSE else m
        at = (row * segments + segment) * D + d
        P = tl.load(products + at, mask=inside, other=0)
        H = tl.load(ends + at, mask=inside, other=0)
        tl.store(entering + at, h, mask=inside)
        h = P * h + H
    tl.store(last + row * D + d, h, mask=inside)


@triton.jit(do_not_specialize=["T"])
def walk(
    g, b, lengths, entering, y, T, D, g_B, g_T, b_B, b_T, segments,
    RAGGED: tl.constexpr, BLOCK: tl.constexpr, SEGMENT: tl.constexpr, AHEAD: tl.constexpr,
):  # fmt: skip
    """y [B,T,D]."""
    kind: tl.constexpr = entering.dtype.element_ty
    row, segment, d, inside = place(T, D, BLOCK)
    L = length_of(lengths, row, T, RAGGED)
    g += row * g_B
    b += row * b_B
    y += row * T * D
    h = tl.load(entering + (row * segments + segment) * D + d, mask=inside, other=0)
    for m in tl.range(0, SEGMENT, AHEAD):
        fades, writes = (), ()
        for ahead in tl.static_range(AHEAD):  # every load of these tokens before the first store
            t = (segment * SEGMENT + m + ahead).to(tl.int64)
            real = inside & (t < L)
            fades = fades + (token(g, t * g_T + d, real, kind),)
            writes = writes + (token(b, t * b_T + d, real, kind),)
        for ahead in tl.static_range(AHEAD):
            t = (segment * SEGMENT + m + ahead).to(tl.int64)
            h = tl.exp2(fades[ahead] * LOG2E) * h + writes[ahead]
            tl.store(y + t * D + d, h.to(y.dtype.element_ty), mask=inside & (t < T))


@triton.jit(do_not_specialize=["T"])
def backward(
    g, y, first, dy, lengths, entering, dg, db, T, D, g_B, g_T, dy_B, dy_T, segments,
    RAGGED: tl.constexpr, BLOCK: tl.constexpr, SEGMENT: tl.constexpr, AHEAD: tl.constexpr,
):  # fmt: skip
    """dg and db [B,T,D], 0 past each row's end."""
    kind: tl.constexpr = entering.dtype.element_ty
    row, segment, d, inside = place(T, D, BLOCK)
    L = length_of(lengths, row, T, RAGGED)
    g += row * g_B
    dy += row * dy_B
    whole = row * T * D + d
    h0 = tl.load(first + row * D + d, mask=inside, other=0)
    c = tl.load(entering + (row * segments + segment) * D + d, mask=inside, other=0)
    for m in tl.range(0, SEGMENT, AHEAD):
        fades, grads, before = (), (), ()
        for ahead in tl.static_range(AHEAD):
            t = (segment * SEGMENT + SEGMENT - 1 - m - ahead).to(tl.int64)
            real = inside & (t < L)
            fades = fades + (token(g, t * g_T + d, real, kind),)
            grads = grads + (token(dy, t * dy_T + d, real, kind),)
            before = before + (token(y, whole + (t - 1) * D, real & (t > 0), kind),)
        for ahead in tl.static_range(AHEAD):
            t = (segment * SEGMENT + SEGMENT - 1 - m - ahead).to(tl.int64)
            real = t < L
            G = tl.where(real, grads[ahead] + c, 0)
            h = tl.where(t > 0, before[ahead], h0)
            c = tl.where(real, tl.exp2(fades[ahead] * LOG2E) * G, c)
            tl.store(db + whole + t * D, G.to(db.dtype.element_ty), mask=inside & (t < T))
            tl.store(dg + whole + t * D, tl.where(real, c * h, 0).to(dg.dtype.element_ty), mask=inside & (t < T))
