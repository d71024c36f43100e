"""The delta recurrence on a GPU: S <- diag(a) S - b (beta c' S) + k v', in the same tiles as `gpu_decay`.

Going back, e = c' S is made again from the rebuilt state. `OWN` says that b is k: then k (v - beta e)' is written at
once, and what b would learn goes to k. beta is [B,T,heads]; what is summed over values comes out once for each
block of values.
"""

import triton
import triton.language as tl

from postx.scans.gpu_decay import (
    keys_at,
    length_of,
    over_keys,
    over_values,
    place_of,
    store_decay,
    values_of,
)


@triton.jit
def write(X, fade, kt, bt, vt, erased, OWN: tl.constexpr):
    """diag(a) X - b erased' + k v'."""
    return fade * X + kt * (vt - erased) if OWN else fade * X + (kt * vt - bt * erased)


@triton.jit(do_not_specialize=["T"])
def forward(
    q, k, v, a, b, c, beta, S, lengths, y, last, kept,
    T, H, K, V, Gq, Gk, Ga, Gb, Gc, Gbeta, a_B, a_T, a_H, a_K, beta_B, beta_T, beta_H, chunks,
    BEFORE: tl.constexpr, OWN: tl.constexpr, RAGGED: tl.constexpr, KEEP: tl.constexpr,
    BLOCK_K: tl.constexpr, BLOCK: tl.constexpr, CHUNK: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """y [B,T,H,V], last [B,H,K,V] and, with KEEP, kept [B,H,chunks,K,V]."""
    kind: tl.constexpr = S.dtype.element_ty
    head = tl.program_id(0).to(tl.int64)
    row, h = head // H, head % H
    i = tl.arange(0, BLOCK_K)[None, :, None]
    j = values_of(tl.program_id(1), BLOCK)
    inside = (i < K) & (j < V)
    tile = i * V + j
    X = tl.load(S + head * K * V + tile, mask=inside, other=0)
    first, hq, hk, ha = row * T, h * Gq // H, h * Gk // H, h * Ga // H
    hb, hc = h * Gb // H, h * Gc // H
    a += row * a_B + ha * a_H + i * a_K
    beta += row * beta_B + (h * Gbeta // H) * beta_H
    L = length_of(lengths, row, T, RAGGED)
    for n in range(0, tl.cdiv(L, CHUNK)):
        if KEEP:
            tl.store(kept + (head * chunks + n) * K * V + tile, X, mask=inside)
        for t in tl.range(n * CHUNK, min(n * CHUNK + CHUNK, L), num_stages=STAGES):
            at = first + t
            qt = keys_at(q, at * Gq + hq, i, K, kind)
            kt = keys_at(k, at * Gk + hk, i, K, kind)
            ct = keys_at(c, at * Gc + hc, i, K, kind)
            bt = kt
            if not OWN:
                bt = keys_at(b, at * Gb + hb, i, K, kind)
            vt = tl.load(v + (at * H + h) * V + j, mask=j < V, other=0).to(kind)
            fade = tl.load(a + (at - first) * a_T, mask=i < K, other=0)
            rate = tl.load(beta + (at - first) * beta_T).to(kind)
            if BEFORE:
                yt = over_keys(qt * X)
            X = write(X, fade, kt, bt, vt, rate * over_keys(ct * X), OWN)
            if not BEFORE:
                yt = over_keys(qt * X)
            tl.store(y + (at * H + h) * V + j, yt.to(y.dtype.element_ty), mask=j < V)
    tl.store(last + head * K * V + tile, X, mask=inside)


@triton.jit(do_not_specialize=["T"])
def backward(
    q, k, v, a, b, c, beta, kept, lengths, dy, dlast, scratch, dq, dk, dv, da, db, dc, dbeta, dS,
    T, H, K, V, Gq, Gk, Ga, Gb, Gc, Gbeta, a_B, a_T, a_H, a_K, beta_B, beta_T, beta_H, chunks, A_KEYS,
    BEFORE: tl.constexpr, OWN: tl.constexpr, RAGGED: tl.constexpr,
    CONSTANT: tl.constexpr, PER_KEY: tl.constexpr, LEARN: tl.constexpr,
    BLOCK_K: tl.constexpr, BLOCK: tl.constexpr, CHUNK: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """dv [B,T,H,V], dS [B,H,K,V]; for each block of values dq, dk, db, dc [blocks,B,T,H,K], dbeta [blocks,B,T,H].

    db is left alone with OWN. With LEARN also da, as in `gpu_decay.backward`.
    """
    kind: tl.constexpr = dS.dtype.element_ty
    head, heads = tl.program_id(0).to(tl.int64), tl.num_programs(0)
    block = tl.program_id(1)
    row, h = head // H, head % H
    i = tl.arange(0, BLOCK_K)[None, :, None]
    j = values_of(block, BLOCK)
    inside = (i < K) & (j < V)
    tile = i * V + j
    scratch += (head * tl.num_programs(1) + block) * CHUNK * BLOCK_K * BLOCK + place_of(i, BLOCK_K, BLOCK)
    first, hq, hk, ha = row * T, h * Gq // H, h * Gk // H, h * Ga // H
    hb, hc = h * Gb // H, h * Gc // H
    a += row * a_B + ha * a_H + i * a_K
    beta += row * beta_B + (h * Gbeta // H) * beta_H
    rows = block.to(tl.int64) * heads * T  # the first row of this block's part of what comes out in parts
    G = tl.load(dlast + head * K * V + tile, mask=inside, other=0)
    sum_a = tl.zeros([1, BLOCK_K, 1], kind)
    L = length_of(lengths, row, T, RAGGED)
    count = tl.cdiv(L, CHUNK)
    for back in range(0, count):
        n = count - 1 - back
        start = n * CHUNK
        tokens = min(CHUNK, L - start)
        X = tl.load(kept + (head * chunks + n) * K * V + tile, mask=inside, other=0)
        for m in tl.range(0, tokens, num_stages=STAGES):
            at = first + start + m
            tl.store(scratch + m * BLOCK_K * BLOCK, X)
            kt = keys_at(k, at * Gk + hk, i, K, kind)
            ct = keys_at(c, at * Gc + hc, i, K, kind)
            bt = kt
            if not OWN:
                bt = keys_at(b, at * Gb + hb, i, K, kind)
            vt = tl.load(v + (at * H + h) * V + j, mask=j < V, other=0).to(kind)
            fade = tl.load(a + (at - first) * a_T, mask=i < K, other=0)
            rate = tl.load(beta + (at - first) * beta_T).to(kind)
            X = write(X, fade, kt, bt, vt, rate * over_keys(ct * X), OWN)
        tl.debug_barrier()  # what one thread wrote another may read
        for behind in tl.range(0, tokens, num_stages=STAGES):
            m = tokens - 1 - behind
            at = first + start + m
            old = tl.load(scratch + m * BLOCK_K * BLOCK)
            qt = keys_at(q, at * Gq + hq, i, K, kind)
            kt = keys_at(k, at * Gk + hk, i, K, kind)
            ct = keys_at(c, at * Gc + hc, i, K, kind)
            vt = tl.load(v + (at * H + h) * V + j, mask=j < V, other=0).to(kind)
            gt = tl.load(dy + (at * H + h) * V + j, mask=j < V, other=0).to(kind)
            fade = tl.load(a + (at - first) * a_T, mask=i < K, other=0)
            rate = tl.load(beta + (at - first) * beta_T).to(kind)
            if BEFORE:
                dqt = over_values(old * gt)
            else:
                dqt = over_values(X * gt)
                G += qt * gt
            held = over_keys(ct * old)  # e, [BLOCK / 4, 1, 4]
            dvt = over_keys(G * kt)
            if OWN:
                dkt = over_values(G * (vt - rate * held))
                lost = -dvt
            else:
                bt = keys_at(b, at * Gb + hb, i, K, kind)
                dkt = over_values(G * vt)
                lost = -over_keys(G * bt)
                dbt = -over_values(G * (rate * held))
                tl.store(db + (rows + at * H + h) * K + i, dbt, mask=i < K)
            dct = over_values(old * (rate * lost))
            dratet = over_values(lost * held)  # [1, 1, 1]
            if LEARN:
                dat = over_values(G * old)
            G = fade * G + ct * (rate * lost)
            if BEFORE:
                G += qt * gt
            tl.store(dq + (rows + at * H + h) * K + i, dqt, mask=i < K)
            tl.store(dk + (rows + at * H + h) * K + i, dkt, mask=i < K)
            tl.store(dc + (rows + at * H + h) * K + i, dct, mask=i < K)
            tl.store(dbeta + (rows + at * H + h) + tl.zeros_like(dratet).to(tl.int32), dratet)
            tl.store(dv + (at * H + h) * V + j, dvt.to(dv.dtype.element_ty), mask=j < V)
            if LEARN:
                if CONSTANT:
                    sum_a += dat
                else:
                    store_decay(da, rows + at * H + h, dat, i, K, A_KEYS, PER_KEY)
            X = old
        tl.debug_barrier()  # before the scratch is written again
    tl.store(dS + head * K * V + tile, G, mask=inside)
    if LEARN and CONSTANT:
        store_decay(da, block.to(tl.int64) * heads + head, sum_a, i, K, A_KEYS, PER_KEY)
