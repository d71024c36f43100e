"""The decay recurrence on a GPU: S <- diag(a) S + k v', one program a head and block of values, token by token.

A program keeps [K, BLOCK] numbers of S in registers, as a tile [BLOCK / 4, K, 4]: Triton lays the last axis along
4 threads and K along 8 more, so that sums over keys and sums over values each cross few threads.

The forward pass keeps the state before every `CHUNK` tokens. The backward pass, from the last chunk to the first,
rebuilds the states before each token of a chunk into a scratch of its own, then walks back. What is summed over all
values (the gradients of q, k, a, u) comes out once for each block of values, to be added up outside: no atomics, so
that two runs agree to the last bit. Tensors are contiguous but for `a`, which has strides (0 where it broadcasts).
Where chunks are faster (`choice`), `gpu_chunked` and `gpu_keys` take over: not in float64, nor for a few tokens.
"""

import triton
import triton.language as tl

FOUR = tl.constexpr(4)


@triton.jit
def values_of(block, BLOCK: tl.constexpr):
    """The values of a block as [BLOCK / 4, 1, 4]."""
    j = tl.arange(0, BLOCK // FOUR)[:, None, None] * FOUR + tl.arange(0, FOUR)[None, None, :]
    return block * BLOCK + j


@triton.jit
def place_of(i, BLOCK_K: tl.constexpr, BLOCK: tl.constexpr):
    """Where each number of a tile lies in the scratch: in the tile's own order, one after the other."""
    jb, jr = tl.arange(0, BLOCK // FOUR)[:, None, None], tl.arange(0, FOUR)[None, None, :]
    return (jb * BLOCK_K + i) * FOUR + jr


@triton.jit
def over_keys(x):
    """[BLOCK / 4, K, 4] summed to [BLOCK / 4, 1, 4]."""
    return tl.sum(x, 1, keep_dims=True)


@triton.jit
def over_values(x):
    """[BLOCK / 4, K, 4] summed to [1, K, 1]: first what one thread holds."""
    return tl.sum(tl.sum(x, 0, keep_dims=True), 2, keep_dims=True)


@triton.jit
def keys_at(x, row, i, K, kind: tl.constexpr):
    """Row `row` of x [rows, K] as [1, BLOCK_K, 1], zero past K."""
    return tl.load(x + row * K + i, mask=i < K, other=0).to(kind)


@triton.jit
def length_of(lengths, b, T, RAGGED: tl.constexpr):
    """How many tokens of row b are real."""
    L = T
    if RAGGED:
        L = tl.load(lengths + b).to(tl.int32)
    return L


@triton.jit(do_not_specialize=["T"])
def forward(
    q, k, v, a, u, S, lengths, y, last, kept,
    T, H, K, V, Gq, Gk, Ga, a_B, a_T, a_H, a_K, chunks,
    BEFORE: tl.constexpr, BONUS: tl.constexpr, RAGGED: tl.constexpr, KEEP: tl.constexpr,
    BLOCK_K: tl.constexpr, BLOCK: tl.constexpr, CHUNK: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """y [B,T,H,V], last [B,H,K,V] and, with KEEP, kept [B,H,chunks,K,V]."""
    kind: tl.constexpr = S.dtype.element_ty
    head = tl.program_id(0).to(tl.int64)
    b, h = head // H, head % H
    i = tl.arange(0, BLOCK_K)[None, :, None]
    j = values_of(tl.program_id(1), BLOCK)
    inside = (i < K) & (j < V)
    tile = i * V + j
    X = tl.load(S + head * K * V + tile, mask=inside, other=0)
    first, hq, hk, ha = b * T, h * Gq // H, h * Gk // H, h * Ga // H
    a += b * a_B + ha * a_H + i * a_K
    if BONUS:
        bonus = keys_at(u, h, i, K, kind)
    L = length_of(lengths, b, T, RAGGED)
    for c in range(0, tl.cdiv(L, CHUNK)):
        if KEEP:
            tl.store(kept + (head * chunks + c) * K * V + tile, X, mask=inside)
        for t in tl.range(c * CHUNK, min(c * CHUNK + CHUNK, L), num_stages=STAGES):
            at = first + t
            qt = keys_at(q, at * Gq + hq, i, K, kind)
            kt = keys_at(k, at * Gk + hk, i, K, kind)
            vt = tl.load(v + (at * H + h) * V + j, mask=j < V, other=0).to(kind)
            fade = tl.load(a + (at - first) * a_T, mask=i < K, other=0)
            written = kt * vt
            if BEFORE:
                read = X
                if BONUS:
                    read = X + bonus * written
                X = fade * X + written
            else:
                X = fade * X + written
                read = X
            yt = over_keys(qt * read)
            tl.store(y + (at * H + h) * V + j, yt.to(y.dtype.element_ty), mask=j < V)
    tl.store(last + head * K * V + tile, X, mask=inside)


@triton.jit(do_not_specialize=["T"])
def backward(
    q, k, v, a, u, kept, lengths, dy, dlast, scratch, dq, dk, dv, da, dS, du,
    T, H, K, V, Gq, Gk, Ga, a_B, a_T, a_H, a_K, chunks, A_KEYS,
    BEFORE: tl.constexpr, BONUS: tl.constexpr, RAGGED: tl.constexpr,
    CONSTANT: tl.constexpr, PER_KEY: tl.constexpr, LEARN: tl.constexpr,
    BLOCK_K: tl.constexpr, BLOCK: tl.constexpr, CHUNK: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """dv [B,T,H,V], dS [B,H,K,V]; for each block of values dq and dk [blocks,B,T,H,K] and du [blocks,B,H,K].

    With LEARN also da: [blocks,B,T,H,A_KEYS], or [blocks,B,H,A_KEYS] where a is CONSTANT; A_KEYS is K if PER_KEY
    else 1.
    """
    kind: tl.constexpr = dS.dtype.element_ty
    head, heads = tl.program_id(0).to(tl.int64), tl.num_programs(0)
    block = tl.program_id(1)
    b, h = head // H, head % H
    i = tl.arange(0, BLOCK_K)[None, :, None]
    j = values_of(block, BLOCK)
    inside = (i < K) & (j < V)
    tile = i * V + j
    scratch += (head * tl.num_programs(1) + block) * CHUNK * BLOCK_K * BLOCK + place_of(i, BLOCK_K, BLOCK)
    first, hq, hk, ha = b * T, h * Gq // H, h * Gk // H, h * Ga // H
    a += b * a_B + ha * a_H + i * a_K
    rows = block.to(tl.int64) * heads * T  # the first row of this block's part of dq, dk and da
    G = tl.load(dlast + head * K * V + tile, mask=inside, other=0)
    sum_a, sum_u = tl.zeros([1, BLOCK_K, 1], kind), tl.zeros([1, BLOCK_K, 1], kind)
    if BONUS:
        bonus = keys_at(u, h, i, K, kind)
    L = length_of(lengths, b, T, RAGGED)
    count = tl.cdiv(L, CHUNK)
    for n in range(0, count):
        c = count - 1 - n
        start = c * CHUNK
        tokens = min(CHUNK, L - start)
        X = tl.load(kept + (head * chunks + c) * K * V + tile, mask=inside, other=0)
        for m in tl.range(0, tokens, num_stages=STAGES):
            at = first + start + m
            tl.store(scratch + m * BLOCK_K * BLOCK, X)
            kt = keys_at(k, at * Gk + hk, i, K, kind)
            vt = tl.load(v + (at * H + h) * V + j, mask=j < V, other=0).to(kind)
            X = tl.load(a + (at - first) * a_T, mask=i < K, other=0) * X + kt * vt
        tl.debug_barrier()  # what one thread wrote another may read
        for back in tl.range(0, tokens, num_stages=STAGES):
            m = tokens - 1 - back
            at = first + start + m
            old = tl.load(scratch + m * BLOCK_K * BLOCK)
            qt = keys_at(q, at * Gq + hq, i, K, kind)
            kt = keys_at(k, at * Gk + hk, i, K, kind)
            vt = tl.load(v + (at * H + h) * V + j, mask=j < V, other=0).to(kind)
            gt = tl.load(dy + (at * H + h) * V + j, mask=j < V, other=0).to(kind)
            fade = tl.load(a + (at - first) * a_T, mask=i < K, other=0)
            if BEFORE:
                dqt = over_values(old * gt)
            else:
                dqt = over_values(X * gt)
                G += qt * gt
            dkt = over_values(G * vt)
            dvt = over_keys(G * kt)
            if LEARN:
                dat = over_values(G * old)
            G = fade * G
            if BEFORE:
                G += qt * gt
                if BONUS:
                    both = over_values(vt * gt)  # [1, 1, 1]
                    dqt += bonus * kt * both
                    dkt += bonus * qt * both
                    sum_u += qt * kt * both
                    dvt += over_keys(qt * bonus * kt) * gt
            tl.store(dq + (rows + at * H + h) * K + i, dqt, mask=i < K)
            tl.store(dk + (rows + at * H + h) * K + i, dkt, mask=i < K)
            tl.store(dv + (at * H + h) * V + j, dvt.to(dv.dtype.element_ty), mask=j < V)
            if LEARN:
                if CONSTANT:
                    sum_a += dat
                else:
                    store_decay(da, rows + at * H + h, dat, i, K, A_KEYS, PER_KEY)
            X = old
        tl.debug_barrier()  # before the scratch is written again
    tl.store(dS + head * K * V + tile, G, mask=inside)
    summed = block.to(tl.int64) * heads + head
    if BONUS:
        tl.store(du + summed * K + i, sum_u, mask=i < K)
    if LEARN and CONSTANT:
        store_decay(da, summed, sum_a, i, K, A_KEYS, PER_KEY)


@triton.jit
def store_decay(da, row, x, i, K, A_KEYS, PER_KEY: tl.constexpr):
    """x [1, BLOCK_K, 1] into row `row` of da [rows, A_KEYS], summed where the keys share one decay."""
    if PER_KEY:
        tl.store(da + row * A_KEYS + i, x, mask=i < K)
    else:
        total = tl.sum(x, 1, keep_dims=True)
        tl.store(da + row * A_KEYS + tl.zeros_like(total).to(tl.int32), total)
