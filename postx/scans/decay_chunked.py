"""The decay recurrence in chunks of tokens: matrix products within a chunk, the table S from chunk to chunk.

Plain torch: any device, autograd. Every factor is exp of a sum of log-decays g <= 0 over one stretch of tokens,
so none exceeds 1, and each sum is added up over its own stretch. The two shortcuts fail: the difference of two
running sums loses its digits once they are long (and is NaN where g = -inf), and dividing by a running product
overflows.
"""

import math

import torch
from torch.nn.functional import pad

from postx.scans.arguments import decay_arguments
from postx.shapes import check_shared, real, whole

TOGETHER = 4  # chunks computed at once: few enough for a CPU's cache, enough to hide the cost of a call


def decay_chunked(
    q_BTHK, k_BTHK, v_BTHV, g=None, S_BHKV=None, *, read="after", u_HK=None, lengths_B=None, chunk=64
):
    """`scans.decay` from the same arguments, `chunk` tokens at a time.

        y = A v + (keep_read q) S        S <- keep_all S + (keep_write k)' v        A: the pairs within a chunk

    Beyond `scans.decay`, q may have more heads than v: reader h uses table h // (Hq / H), and y has q's heads.
    Per token and head: chunk (2 K + 2 V) + 4 K V FLOPs. Working memory: a few times B H chunk (chunk + K + V)
    numbers for each of the `TOGETHER` chunks at hand; a table [.., chunk, chunk, K] never exists. For the backward
    pass autograd keeps, with K = V = chunk = 64, about 10 numbers for each of q's, and 24 where each key decays on
    its own: 2 K for each doubling. Returns (y_BTHV, S_BHKV).

    Sources: Dao & Gu 2024 (SSD), sec. 6, for one decay a head; Yang et al. 2024 (GLA), sec. 4, for one a key,
    where the sub-blocks of two levels are replaced by doubling. Raises ValueError as `scans.decay` does, and for
    a chunk below 1.
    """
    whole(chunk=chunk)
    q, k, v, g, S, u = decay_arguments(q_BTHK, k_BTHK, v_BTHV, g, S_BHKV, read, u_HK, lengths_B).whole()
    T, heads = v.shape[1], sorted((q.shape[2], v.shape[2]))
    check_shared("q_BTHK", *heads)
    # A token past its row's end writes nothing and forgets nothing.
    k, v, g = (real(x.expand(-1, T, -1, -1), lengths_B) for x in (k, v, g))
    q, k, v, g = (x.transpose(1, 2) for x in (q, k, v, g))
    u = u[None, :, None, None] if read == "before" else None
    spans, outputs = _spans(T, chunk), []
    # split, not slices: the backward pass of a slice fills the whole tensor with zeros, for each of them.
    splits = (x.split([n * size for n, size in spans], 2) for x in (q, k, v, g))
    for tokens, *pieces in zip(spans, *splits, strict=True):
        y, S = _span(*(x.unflatten(2, tokens).contiguous() for x in pieces), S, u, heads[1])
        outputs.append(y.flatten(2, 3))
    return real(torch.cat(outputs, 2).transpose(1, 2), lengths_B).to(v_BTHV.dtype), S


def _spans(T, chunk):
    """[(chunks, tokens in each), ...]: whole chunks, `TOGETHER` at a time, then what is left."""
    whole, rest = divmod(T, chunk)
    spans = [(TOGETHER, chunk)] * (whole // TOGETHER) + [(whole % TOGETHER, chunk), (1, rest)]
    return [(n, size) for n, size in spans if n * size]


def _span(q, k, v, g, S, u, readers):
    """n chunks at once: q, k, v, g [B, heads, n, C, K], the state before them, the bonus or None. Returns (y, S)."""
    tables = v.shape[1]
    pairs = _pairs_per_head if g.shape[-1] == 1 else _pairs_per_key
    A, keep_read, keep_write, keep_all = pairs(q, k, g, u)
    written = (_heads(keep_write, tables) * _heads(k, tables)).mT @ v
    keep_all = _heads(keep_all, tables)
    before = []
    for keep, new in zip(keep_all.unbind(2), written.unbind(2), strict=True):
        before.append(S)
        S = keep * S + new
    S_before = _heads(torch.stack(before, 2), readers)
    q = _heads(q, readers) * _heads(keep_read, readers)
    return _heads(A, readers) @ _heads(v, readers) + q @ S_before, S


def _heads(x, heads):
    """x [B, heads, ...] with each of its heads repeated for the readers that share it; one head broadcasts."""
    return x if x.shape[1] in (1, heads) else x.repeat_interleave(heads // x.shape[1], 1)


def _bonus(q, k, u):
    """What a token reads of itself, [B, heads, n, C, 1]: q'k, or q' diag(u) k."""
    heads = math.lcm(q.shape[1], k.shape[1], 1 if u is None else u.shape[1])
    q, k = _heads(q, heads), _heads(k, heads)
    return ((q if u is None else q * _heads(u, heads)) * k).sum(-1, keepdim=True)


def _pairs_per_head(q, k, g, u):
    """Scores q'k times one decay a pair, by the stable segment sum: row i of column j adds g from j + 1 to i.

    Returns (A [.., C, C], keep_read [.., C, 1], keep_write [.., C, 1], keep_all [.., 1, 1]).
    """
    C, g = g.shape[-2], g[..., 0]
    later = pad(g[..., 1:], (0, 1))
    last = g if u is None else pad(g[..., :-1], (1, 0))  # the last decay before row i's read
    behind = 0 if u is None else 1
    ones = torch.ones(C, C, dtype=torch.bool, device=g.device)
    segments = last[..., None].expand(*g.shape, C).masked_fill(~ones.tril(-1 - behind), 0).cumsum(-2)
    D = segments.masked_fill(~ones.tril(-behind), -torch.inf).exp()
    heads = math.lcm(q.shape[1], k.shape[1])
    scores = _heads(q, heads) @ _heads(k, heads).mT
    heads = math.lcm(heads, g.shape[1])
    A = _heads(scores, heads) * _heads(D, heads)
    if u is not None:
        own = _bonus(q, k, u)
        heads = math.lcm(A.shape[1], own.shape[1])
        A = _heads(A, heads) + _heads(own, heads) * torch.eye(C, dtype=A.dtype, device=A.device)
    suffix = later.flip(-1).cumsum(-1).flip(-1)
    return A, last.cumsum(-1).exp()[..., None], suffix.exp()[..., None], g.sum(-1).exp()[..., None, None]


def _pairs_per_key(q, k, g, u):
    """Scores with a decay for each key channel, by doubling: two neighbouring blocks meet at the point between them.

    From a token j of the first block to a token i of the second, the decay is that from j to the meeting point
    times that from there to i: two factors <= 1, one goes to k and one to q, and the pairs are a matrix product.
    Returns (A [.., C, C], keep_read [.., C, K], keep_write [.., C, K], keep_all [.., K, 1]).
    """
    C = g.shape[-2]
    size = 1 << (C - 1).bit_length()
    q, k, g = (pad(x, (0, 0, 0, size - C)) for x in (q, k, g))
    own = _bonus(q, k, u)
    heads = math.lcm(own.shape[1], g.shape[1])
    A, q, k, g = (x.unsqueeze(-2) for x in (*(_heads(x, heads) for x in (own, q, k)), g))
    # Sums of g within a block: from its start to i, from behind j to its end, and over all of it.
    to_i, from_j, over = g if u is None else torch.zeros_like(g), torch.zeros_like(g), g
    while A.shape[-1] < size:
        (A1, A2), (to1, to2), (from1, from2), (over1, over2), (_, q2), (k1, _) = (
            (x[..., 0::2, :, :], x[..., 1::2, :, :]) for x in (A, to_i, from_j, over, q, k)
        )
        cross = (q2 * _heads(to2.exp(), heads)) @ (k1 * _heads(from1.exp(), heads)).mT
        A = torch.cat([torch.cat([A1, torch.zeros_like(A1)], -1), torch.cat([cross, A2], -1)], -2)
        to_i, from_j = torch.cat([to1, to2 + over1], -2), torch.cat([from1 + over2, from2], -2)
        over = over1 + over2
        q, k = (x.flatten(-3, -2).unflatten(-2, (-1, A.shape[-1])) for x in (q, k))
    A, to_i, from_j = (x[..., 0, :C, :] for x in (A, to_i, from_j))
    return A[..., :C], to_i.exp(), from_j.exp(), over[..., 0, :, :].exp().mT
