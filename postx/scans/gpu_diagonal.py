"""The diagonal recurrence on a GPU: h <- exp(delta A) h + delta B u, y = sum_n C h, all real.

One program a row and block of channels, token by token, with its N numbers a channel in registers, as a tile
[BLOCK / 8, N, 8]: Triton lays the last axis along 8 threads and N along 4 more, so that sums over states and sums
over channels each cross few threads.

The states before every `CHUNK` tokens are kept, and rebuilt going back, as in `gpu_decay`. Gradients of B and C come
out once for each block of channels, to be added up outside (no atomics). WIDE says that B or C is [D, N], constant
over time; else it is [B, T, N]. Tensors are contiguous but for delta, whose strides over B and T may be 0.
"""

import triton
import triton.language as tl

from postx.scans.gpu_decay import length_of

EIGHT = tl.constexpr(8)
LOG2E, LN2 = tl.constexpr(1.4426950408889634), tl.constexpr(0.6931471805599453)


@triton.jit
def channels_of(block, BLOCK: tl.constexpr):
    """The channels of a block as [BLOCK / 8, 1, 8]."""
    d = tl.arange(0, BLOCK // EIGHT)[:, None, None] * EIGHT + tl.arange(0, EIGHT)[None, None, :]
    return block * BLOCK + d


@triton.jit
def over_channels(x):
    """[BLOCK / 8, N, 8] summed to [1, N, 1]: first what one thread holds."""
    return tl.sum(tl.sum(x, 0, keep_dims=True), 2, keep_dims=True)


@triton.jit
def over_states(x):
    """[BLOCK / 8, N, 8] summed to [BLOCK / 8, 1, 8]."""
    return tl.sum(x, 1, keep_dims=True)


@triton.jit
def factors_at(x, row, d, n, D, N, kind: tl.constexpr, WIDE: tl.constexpr):
    """B or C: [BLOCK / 8, N, 8] of x [D, N], or [1, N, 1] of row `row` of x [rows, N]."""
    if WIDE:
        found = tl.load(x + d * N + n, mask=(d < D) & (n < N), other=0).to(kind)
    else:
        found = tl.load(x + row * N + n, mask=n < N, other=0).to(kind)
    return found


@triton.jit(do_not_specialize=["T"])
def forward(
    u, delta, A, B, C, S, lengths, y, last, kept,
    T, D, N, delta_B, delta_T, chunks,
    WIDE_B: tl.constexpr, WIDE_C: tl.constexpr, RAGGED: tl.constexpr, KEEP: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK: tl.constexpr, CHUNK: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """y [B,T,D], last [B,D,N] and, with KEEP, kept [B,chunks,D,N]."""
    kind: tl.constexpr = S.dtype.element_ty
    row = tl.program_id(0).to(tl.int64)
    n = tl.arange(0, BLOCK_N)[None, :, None]
    d = channels_of(tl.program_id(1), BLOCK)
    inside = (d < D) & (n < N)
    tile = d * N + n
    h = tl.load(S + row * D * N + tile, mask=inside, other=0)
    rate = tl.load(A + tile, mask=inside, other=0) * LOG2E
    first, L = row * T, length_of(lengths, row, T, RAGGED)
    delta += row * delta_B + d
    for c in range(0, tl.cdiv(L, CHUNK)):
        if KEEP:
            tl.store(kept + (row * chunks + c) * D * N + tile, h, mask=inside)
        for t in tl.range(c * CHUNK, min(c * CHUNK + CHUNK, L), num_stages=STAGES):
            at = first + t
            ut = tl.load(u + at * D + d, mask=d < D, other=0).to(kind)
            step = tl.load(delta + (at - first) * delta_T, mask=d < D, other=0).to(kind)
            Bt = factors_at(B, at, d, n, D, N, kind, WIDE_B)
            Ct = factors_at(C, at, d, n, D, N, kind, WIDE_C)
            h = tl.exp2(step * rate) * h + Bt * (step * ut)
            yt = over_states(Ct * h)
            tl.store(y + at * D + d, yt.to(y.dtype.element_ty), mask=d < D)
    tl.store(last + row * D * N + tile, h, mask=inside)


@triton.jit(do_not_specialize=["T"])
def backward(
    u, delta, A, B, C, kept, lengths, dy, dlast, scratch, du, ddelta, dA, dB, dC, dS,
    T, D, N, delta_B, delta_T, chunks,
    WIDE_B: tl.constexpr, WIDE_C: tl.constexpr, RAGGED: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK: tl.constexpr, CHUNK: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """du, ddelta [B,T,D], dA, dS [B,D,N]; dB and dC [blocks,B,T,N], or [B,D,N] where WIDE."""
    kind: tl.constexpr = dS.dtype.element_ty
    row, rows = tl.program_id(0).to(tl.int64), tl.num_programs(0)
    block = tl.program_id(1)
    n = tl.arange(0, BLOCK_N)[None, :, None]
    d = channels_of(block, BLOCK)
    inside = (d < D) & (n < N)
    tile = d * N + n
    jb, jr = tl.arange(0, BLOCK // EIGHT)[:, None, None], tl.arange(0, EIGHT)[None, None, :]
    scratch += (row * tl.num_programs(1) + block) * CHUNK * BLOCK_N * BLOCK + (jb * BLOCK_N + n) * EIGHT + jr
    rate = tl.load(A + tile, mask=inside, other=0) * LOG2E
    first, L = row * T, length_of(lengths, row, T, RAGGED)
    delta += row * delta_B + d
    part = block.to(tl.int64) * rows * T  # the first row of this block's part of dB and dC
    G = tl.load(dlast + row * D * N + tile, mask=inside, other=0)
    sum_A = tl.zeros([BLOCK // EIGHT, BLOCK_N, EIGHT], kind)
    if WIDE_B:
        sum_B = tl.zeros([BLOCK // EIGHT, BLOCK_N, EIGHT], kind)
    if WIDE_C:
        sum_C = tl.zeros([BLOCK // EIGHT, BLOCK_N, EIGHT], kind)
    count = tl.cdiv(L, CHUNK)
    for back in range(0, count):
        c = count - 1 - back
        start = c * CHUNK
        tokens = min(CHUNK, L - start)
        h = tl.load(kept + (row * chunks + c) * D * N + tile, mask=inside, other=0)
        for m in tl.range(0, tokens, num_stages=STAGES):
            at = first + start + m
            tl.store(scratch + m * BLOCK_N * BLOCK, h)
            ut = tl.load(u + at * D + d, mask=d < D, other=0).to(kind)
            step = tl.load(delta + (at - first) * delta_T, mask=d < D, other=0).to(kind)
            Bt = factors_at(B, at, d, n, D, N, kind, WIDE_B)
            h = tl.exp2(step * rate) * h + Bt * (step * ut)
        tl.debug_barrier()  # what one thread wrote another may read
        for behind in tl.range(0, tokens, num_stages=STAGES):
            m = tokens - 1 - behind
            at = first + start + m
            old = tl.load(scratch + m * BLOCK_N * BLOCK)
            ut = tl.load(u + at * D + d, mask=d < D, other=0).to(kind)
            step = tl.load(delta + (at - first) * delta_T, mask=d < D, other=0).to(kind)
            gt = tl.load(dy + at * D + d, mask=d < D, other=0).to(kind)
            Bt = factors_at(B, at, d, n, D, N, kind, WIDE_B)
            Ct = factors_at(C, at, d, n, D, N, kind, WIDE_C)
            G += Ct * gt
            fade = tl.exp2(step * rate)
            learnt = G * fade * old  # the gradient of delta A
            written = over_states(G * Bt)  # the gradient of delta u
            dstep = over_states(learnt * rate) * LN2 + written * ut
            if WIDE_C:
                sum_C += gt * h
            else:
                tl.store(dC + (part + at) * N + n, over_channels(gt * h), mask=n < N)
            if WIDE_B:
                sum_B += G * (step * ut)
            else:
                tl.store(dB + (part + at) * N + n, over_channels(G * (step * ut)), mask=n < N)
            tl.store(du + at * D + d, (written * step).to(du.dtype.element_ty), mask=d < D)
            tl.store(ddelta + at * D + d, dstep.to(ddelta.dtype.element_ty), mask=d < D)
            sum_A += learnt * step
            G = fade * G
            h = old
        tl.debug_barrier()  # before the scratch is written again
    tl.store(dS + row * D * N + tile, G, mask=inside)
    tl.store(dA + row * D * N + tile, sum_A, mask=inside)
    if WIDE_B:
        tl.store(dB + row * D * N + tile, sum_B, mask=inside)
    if WIDE_C:
        tl.store(dC + row * D * N + tile, sum_C, mask=inside)
