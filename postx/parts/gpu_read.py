"""One query a head over a cache on a GPU: the slots are shared out, each share gives a partial softmax, all are merged.

How many slots a row has filled is read by the kernel, so no call waits for the device, and the same launches serve a
cache that fills up: they can be captured in a CUDA graph. A share without a filled slot ends at once. All reader heads
of a group read its keys and values together. Split in this way in flash-decoding (Dao et al. 2023).
"""

import torch
import triton
import triton.language as tl

BLOCK, PROGRAMS = 64, 528  # slots at a time; programs that keep a large GPU busy
LOG2E = 1.4426950408889634


@triton.jit
def partial(
    q, keys, values, position, sums, totals, tops, scale, M, G, K, V, R, span, k_B, k_M, k_G, v_B, v_M, v_G,
    PRECISION: tl.constexpr, ROWS: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """sums [B,G,shares,R,V], totals and tops [B,G,shares,R] of the slots from share * span on; q [B,G,R,K]."""
    program, share = tl.program_id(0).to(tl.int64), tl.program_id(1)
    b, g = program // G, program % G
    r, k, v, m = tl.arange(0, ROWS), tl.arange(0, BLOCK_K), tl.arange(0, BLOCK_V), tl.arange(0, BLOCK)
    query = tl.load(q + (program * R + r)[:, None] * K + k, mask=(r < R)[:, None] & (k < K), other=0)
    first = share * span
    last = tl.minimum(tl.minimum(tl.load(position + b), M).to(tl.int32), first + span)
    top, total = tl.full([ROWS], -float("inf"), tl.float32), tl.zeros([ROWS], tl.float32)
    read = tl.zeros([ROWS, BLOCK_V], tl.float32)
    keys += b * k_B + g * k_G
    values += b * v_B + g * v_G
    for start in range(first, last, BLOCK):
        at = (start + m).to(tl.int64)
        there = at < last
        key = tl.load(keys + at[None, :] * k_M + k[:, None], mask=there[None, :] & (k < K)[:, None], other=0)
        score = tl.dot(query, key.to(query.dtype), input_precision=PRECISION) * scale
        score = tl.where(there[None, :], score, -float("inf"))
        higher = tl.maximum(top, tl.max(score, 1))
        p, left = tl.exp2(score - higher[:, None]), tl.exp2(top - higher)
        value = tl.load(values + at[:, None] * v_M + v[None, :], mask=there[:, None] & (v < V)[None, :], other=0)
        read = tl.dot(p.to(query.dtype), value.to(query.dtype), read * left[:, None], input_precision=PRECISION)
        total, top = total * left + tl.sum(p, 1), higher
    place = (program * tl.num_programs(1) + share) * R + r
    tl.store(sums + place[:, None] * V + v, read, mask=(r < R)[:, None] & (v < V))
    tl.store(totals + place, total, mask=r < R)
    tl.store(tops + place, top, mask=r < R)


def read(q_BHK, k_BMGK, v_BMGV, position_B, scale):
    """softmax(scale * q . k) over the min(position, M) first slots of each row, times v: y_BHV in v's dtype.

    At least one slot of a row is filled. For real numbers but float64; products are taken in q's dtype.
    """
    (B, H, K), (M, G), V = q_BHK.shape, k_BMGK.shape[1:3], v_BMGV.shape[3]
    R, q, shares = H // G, q_BHK.contiguous(), max(1, min(-(-M // 256), -(-PROGRAMS // (B * G))))
    span = -(-M // (shares * BLOCK)) * BLOCK
    sums, (totals, tops) = q.new_empty(B, G, shares, R, V, dtype=torch.float32), q.new_empty(
        2, B, G, shares, R, dtype=torch.float32
    )
    k, v = (x if x.stride(3) == 1 else x.contiguous() for x in (k_BMGK, v_BMGV))
    partial[(B * G, shares)](
        q, k, v, position_B, sums, totals, tops, scale * LOG2E, M, G, K, V, R, span, *k.stride()[:3], *v.stride()[:3],
        PRECISION="ieee" if q.dtype == torch.float32 else None, ROWS=max(16, triton.next_power_of_2(R)),
        BLOCK_K=max(16, triton.next_power_of_2(K)), BLOCK_V=max(16, triton.next_power_of_2(V)), BLOCK=BLOCK,
    )  # fmt: skip
    weight = (tops - tops.amax(2, keepdim=True)).exp2() * (totals > 0)
    y = (sums * weight[..., None]).sum(2) / (totals * weight).sum(2)[..., None]
    return y.flatten(1, 2).to(v_BMGV.dtype)
