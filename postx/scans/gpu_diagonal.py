"""The diagonal recurrence on a GPU: h <- exp(delta A) h + delta B u, y = sum_n C h, all real.

A program owns a row, a block of channels and a segment of tokens, with its N numbers a channel in registers, as a tile
[BLOCK / 8, N, 8]: Triton lays the last axis along 8 threads and N along 4 more, so that sums over states and sums over
channels each cross few threads. What costs is waiting for memory, so the inputs of GROUP tokens are read before the
first of them is computed.

Where rows and channels are too few to fill a GPU, time is cut into segments. A segment multiplies what enters it by
exp(A sum of delta) and adds what it ends at from nothing (`summarize`); `gpu_affine.carry` then knows what enters
each. The gradient G of the state walks the same way from the end, so `summarize` serves both:

    G <- exp(delta A) (G + C dy)

The forward pass keeps the state before every chunk of GROUP * GROUPS tokens. The backward pass takes the chunks from
the last to the first: it walks a chunk once for the state before each group (into a scratch of its own), then for each
group from the last once more for the states before its tokens, which stay in registers, and back. With G after
`+ C dy` and h the state behind the token:

    dC = h dy        dB = delta u G        du = delta sum_n B G
    ddelta = u sum_n B G + sum_n A exp(delta A) G h_before

The gradients of B and C come out once for each block of channels, to be added up outside (no atomics). WIDE says that
B or C is [D, N], constant over time; else it is [B, T, N]. Tensors are contiguous but for delta, whose strides over B
and T may be 0.
"""

import triton
import triton.language as tl

from postx.scans.gpu_affine import LOG2E, length_of

EIGHT, LN2, LEAST = tl.constexpr(8), tl.constexpr(0.6931471805599453), tl.constexpr(-1e30)


@triton.jit
def place(A, D, N, BLOCK: tl.constexpr, BLOCK_N: tl.constexpr):
    """(channels [BLOCK / 8, 1, 8], states [1, N, 1], A log2(e) of this block of channels).

    A token past its row's end has delta = 0; so that its decay is 1, an A of -inf is a large number.
    """
    d = tl.arange(0, BLOCK // EIGHT)[:, None, None] * EIGHT + tl.arange(0, EIGHT)[None, None, :]
    d += tl.program_id(0) * BLOCK
    n = tl.arange(0, BLOCK_N)[None, :, None]
    rate = tl.load(A + d * N + n, mask=(d < D) & (n < N), other=0) * LOG2E
    return d, n, tl.maximum(rate, LEAST, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def over_channels(x):
    """[BLOCK / 8, N, 8] summed to [1, N, 1]: first what one thread holds."""
    return tl.sum(tl.sum(x, 0, keep_dims=True), 2, keep_dims=True)


@triton.jit
def over_states(x):
    """[BLOCK / 8, N, 8] summed to [BLOCK / 8, 1, 8]."""
    return tl.sum(x, 1, keep_dims=True)


@triton.jit
def constant(x, d, n, D, N, kind: tl.constexpr):
    """B or C [D, N] of this block."""
    return tl.load(x + d * N + n, mask=(d < D) & (n < N), other=0).to(kind)


@triton.jit
def channels(x, start, stride, L, d, D, kind: tl.constexpr, GROUP: tl.constexpr):
    """Of x [T, D] the next GROUP tokens, each [BLOCK / 8, 1, 8]; 0 past token L."""
    found = ()
    for i in tl.static_range(GROUP):
        t = start + i
        found = found + (tl.load(x + t.to(tl.int64) * stride + d, mask=(d < D) & (t < L), other=0).to(kind),)
    return found


@triton.jit
def states(x, wide, start, L, n, N, kind: tl.constexpr, GROUP: tl.constexpr, WIDE: tl.constexpr):
    """Of B or C the next GROUP tokens, each [1, N, 1]; `wide` for each where WIDE."""
    found = ()
    for i in tl.static_range(GROUP):
        if WIDE:
            found = found + (wide,)
        else:
            t = start + i
            found = found + (tl.load(x + t.to(tl.int64) * N + n, mask=(n < N) & (t < L), other=0).to(kind),)
    return found


@triton.jit(do_not_specialize=["T", "span"])
def summarize(
    u, delta, A, B, lengths, products, ends, T, D, N, delta_B, delta_T, segments, span,
    REVERSE: tl.constexpr, WIDE: tl.constexpr, RAGGED: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK: tl.constexpr, GROUP: tl.constexpr, GROUPS: tl.constexpr,
):  # fmt: skip
    """What every segment multiplies by and what it ends at from nothing, [B,segments,D,N]. REVERSE: u is dy, B is C."""
    kind: tl.constexpr = ends.dtype.element_ty
    segment, row = tl.program_id(1), tl.program_id(2).to(tl.int64)
    d, n, rate = place(A, D, N, BLOCK, BLOCK_N)
    L = length_of(lengths, row, T, RAGGED)
    u += row * T * D
    delta += row * delta_B
    write = tl.zeros([BLOCK // EIGHT, BLOCK_N, EIGHT], kind)
    if WIDE:
        write = constant(B, d, n, D, N, kind)
    else:
        B += row * T * N
    h, total = tl.zeros([BLOCK // EIGHT, BLOCK_N, EIGHT], kind), tl.zeros([BLOCK // EIGHT, 1, EIGHT], kind)
    for m in range(0, span, GROUP):
        start = segment * span + (span - GROUP - m if REVERSE else m)
        us = channels(u, start, D, L, d, D, kind, GROUP)
        steps = channels(delta, start, delta_T, L, d, D, kind, GROUP)
        writes = states(B, write, start, L, n, N, kind, GROUP, WIDE)
        for i in tl.static_range(GROUP - 1 if REVERSE else 0, -1 if REVERSE else GROUP, -1 if REVERSE else 1):
            fade = tl.exp2(steps[i] * rate)
            h = fade * (h + writes[i] * us[i]) if REVERSE else fade * h + writes[i] * (steps[i] * us[i])
            total += steps[i]
    tile, inside = ((row * segments + segment) * D + d) * N + n, (d < D) & (n < N)
    tl.store(ends + tile, h, mask=inside)
    tl.store(products + tile, tl.exp2(total * rate), mask=inside)


@triton.jit(do_not_specialize=["T", "span"])
def forward(
    u, delta, A, B, C, entering, lengths, y, last, kept,
    T, D, N, delta_B, delta_T, segments, span, chunks,
    WIDE_B: tl.constexpr, WIDE_C: tl.constexpr, RAGGED: tl.constexpr, KEEP: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK: tl.constexpr, GROUP: tl.constexpr, GROUPS: tl.constexpr,
):  # fmt: skip
    """y [B,T,D], last [B,D,N] and, with KEEP, kept [B,chunks,D,N]."""
    kind: tl.constexpr = entering.dtype.element_ty
    segment, row = tl.program_id(1), tl.program_id(2).to(tl.int64)
    d, n, rate = place(A, D, N, BLOCK, BLOCK_N)
    tile, inside = d * N + n, (d < D) & (n < N)
    L = length_of(lengths, row, T, RAGGED)
    u += row * T * D
    y += row * T * D
    delta += row * delta_B
    kept += row * chunks * D * N
    h = tl.load(entering + (row * segments + segment) * D * N + tile, mask=inside, other=0)
    write, read = tl.zeros_like(h), tl.zeros_like(h)
    if WIDE_B:
        write = constant(B, d, n, D, N, kind)
    else:
        B += row * T * N
    if WIDE_C:
        read = constant(C, d, n, D, N, kind)
    else:
        C += row * T * N
    first = segment * span
    for m in range(0, min(span, L - first), GROUP):
        start = first + m
        if KEEP and start % (GROUP * GROUPS) == 0:
            chunk = (start // (GROUP * GROUPS)).to(tl.int64)
            tl.store(kept + chunk * D * N + tile, h, mask=inside)
        us = channels(u, start, D, L, d, D, kind, GROUP)
        steps = channels(delta, start, delta_T, L, d, D, kind, GROUP)
        writes = states(B, write, start, L, n, N, kind, GROUP, WIDE_B)
        reads = states(C, read, start, L, n, N, kind, GROUP, WIDE_C)
        for i in tl.static_range(GROUP):
            h = tl.exp2(steps[i] * rate) * h + writes[i] * (steps[i] * us[i])
            at = (start + i).to(tl.int64) * D + d
            tl.store(y + at, over_states(reads[i] * h).to(y.dtype.element_ty), mask=(d < D) & (start + i < L))
    if segment == segments - 1:
        tl.store(last + row * D * N + tile, h, mask=inside)


@triton.jit(do_not_specialize=["T", "span", "groups"])  # a loop of known length would be unrolled, out of registers
def backward(
    u, delta, A, B, C, kept, lengths, dy, entering, scratch, du, ddelta, dA, dB, dC, dS,
    T, D, N, delta_B, delta_T, segments, span, chunks, groups,
    WIDE_B: tl.constexpr, WIDE_C: tl.constexpr, RAGGED: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK: tl.constexpr, GROUP: tl.constexpr, GROUPS: tl.constexpr,
):  # fmt: skip
    """du, ddelta [B,T,D], dA [B,segments,D,N], dS [B,D,N]; dB and dC [blocks,B,T,N], or as dA where WIDE."""
    kind: tl.constexpr = entering.dtype.element_ty
    CHUNK: tl.constexpr = GROUP * GROUPS
    segment, row, rows = tl.program_id(1), tl.program_id(2).to(tl.int64), tl.num_programs(2)
    d, n, rate = place(A, D, N, BLOCK, BLOCK_N)
    tile, inside = d * N + n, (d < D) & (n < N)
    L = length_of(lengths, row, T, RAGGED)
    jb, jr = tl.arange(0, BLOCK // EIGHT)[:, None, None], tl.arange(0, EIGHT)[None, None, :]
    program = (row * segments + segment) * tl.num_programs(0) + tl.program_id(0)
    scratch += program * GROUPS * BLOCK_N * BLOCK + (jb * BLOCK_N + tl.arange(0, BLOCK_N)[None, :, None]) * EIGHT + jr
    part = (tl.program_id(0).to(tl.int64) * rows + row) * T * N  # this block's part of dB and dC
    u += row * T * D
    dy += row * T * D
    du += row * T * D
    ddelta += row * T * D
    delta += row * delta_B
    kept += row * chunks * D * N
    own = (row * segments + segment) * D * N + tile
    G = tl.load(entering + own, mask=inside, other=0)
    write, read = tl.zeros_like(G), tl.zeros_like(G)
    if WIDE_B:
        write = constant(B, d, n, D, N, kind)
    else:
        B += row * T * N
    if WIDE_C:
        read = constant(C, d, n, D, N, kind)
    else:
        C += row * T * N
    sum_A, sum_B, sum_C = tl.zeros_like(G), tl.zeros_like(G), tl.zeros_like(G)
    first = segment * span
    count = tl.cdiv(min(span, L - first), CHUNK)
    for back in range(0, count):
        chunk = (first // CHUNK + count - 1 - back).to(tl.int64)
        h = tl.load(kept + chunk * D * N + tile, mask=inside, other=0)
        for k in range(0, groups - 1):
            tl.store(scratch + k * BLOCK_N * BLOCK, h)
            start = chunk * CHUNK + k * GROUP
            us = channels(u, start, D, L, d, D, kind, GROUP)
            steps = channels(delta, start, delta_T, L, d, D, kind, GROUP)
            writes = states(B, write, start, L, n, N, kind, GROUP, WIDE_B)
            for i in tl.static_range(GROUP):
                h = tl.exp2(steps[i] * rate) * h + writes[i] * (steps[i] * us[i])
        tl.store(scratch + (GROUPS - 1) * BLOCK_N * BLOCK, h)
        tl.debug_barrier()  # what one thread wrote another may read
        for back_k in range(0, groups):
            k = GROUPS - 1 - back_k
            start = chunk * CHUNK + k * GROUP
            us = channels(u, start, D, L, d, D, kind, GROUP)
            gs = channels(dy, start, D, L, d, D, kind, GROUP)
            steps = channels(delta, start, delta_T, L, d, D, kind, GROUP)
            writes = states(B, write, start, L, n, N, kind, GROUP, WIDE_B)
            reads = states(C, read, start, L, n, N, kind, GROUP, WIDE_C)
            h = tl.load(scratch + k * BLOCK_N * BLOCK)
            hs, fades = (h,), ()
            for i in tl.static_range(GROUP):
                fades = fades + (tl.exp2(steps[i] * rate),)
                h = fades[i] * h + writes[i] * (steps[i] * us[i])
                hs = hs + (h,)
            for i in tl.static_range(GROUP - 1, -1, -1):
                t = start + i
                G += reads[i] * gs[i]
                faded = fades[i] * G
                learnt = faded * hs[i]  # the gradient of delta A
                written = over_states(G * writes[i])  # the gradient of delta u
                dstep = over_states(learnt * rate) * LN2 + written * us[i]
                sum_A += learnt * steps[i]
                into_B, into_C = G * (steps[i] * us[i]), gs[i] * hs[i + 1]
                if WIDE_B:
                    sum_B += into_B
                else:
                    tl.store(dB + part + t * N + n, over_channels(into_B), mask=(n < N) & (t < L))
                if WIDE_C:
                    sum_C += into_C
                else:
                    tl.store(dC + part + t * N + n, over_channels(into_C), mask=(n < N) & (t < L))
                at, real = t * D + d, (d < D) & (t < L)
                tl.store(du + at, (written * steps[i]).to(du.dtype.element_ty), mask=real)
                tl.store(ddelta + at, dstep.to(ddelta.dtype.element_ty), mask=real)
                G = faded
        tl.debug_barrier()  # before the scratch is written again
    tl.store(dA + own, sum_A, mask=inside)
    if WIDE_B:
        tl.store(dB + own, sum_B, mask=inside)
    if WIDE_C:
        tl.store(dC + own, sum_C, mask=inside)
    if segment == 0:
        tl.store(dS + row * D * N + tile, G, mask=inside)
