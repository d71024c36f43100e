"""Attention of one stretch of queries to one stretch of sources, with what is needed to merge it with others.

    lse_t = log sum_m exp(s_tm)        y_t = sum_m exp(s_tm - lse_t) v_m

over the sources of the block only. Two blocks are merged by the online softmax; the backward pass of a block needs the
lse and the y of all blocks together, and then makes its share of the gradients alone.

impl "torch" is two products a few queries at a time, under any mask. impl "flash" is torch's fused kernel, for blocks
that are seen whole or along the diagonal; on a GPU it takes half precision only.
"""

import torch

from postx.scans import START
from postx.shapes import state_dtype

ROWS = 512  # queries at a time: B H ROWS M scores are in memory


def sees(query, key, window):
    """Whether any token of the piece `query` may look at any of `key`."""
    return key.first <= query.last and (window is None or query.first - key.last < window)


def fused(query, key, window, slopes_H):
    """Whether the block needs no mask but the diagonal's."""
    near = window is None or query.last - key.first < window
    return slopes_H is None and near and (key.last <= query.first or key == query)


def merge(y, lse, y_other, lse_other):
    """(y, lse) of two sets of sources together: the log-sum-exp of the sums, and the mean of the means by weight."""
    both = torch.logaddexp(lse, lse_other)
    return y * (lse - both).exp()[..., None] + y_other * (lse_other - both).exp()[..., None], both


def forward(q_BTHK, k_BMGK, v_BMGV, query, key, o):
    """(y_BTHV, lse_BTH) of a block, in at least float32; lse is -inf where a query sees nothing of it."""
    if o.impl == "flash" and fused(query, key, o.window, o.slopes_H):
        return _flash(q_BTHK, k_BMGK, v_BMGV, query == key, o.scale)
    q, k, v = _grouped(q_BTHK, k_BMGK, v_BMGV)
    done = []
    for t in range(0, q.shape[3], ROWS):
        scores = _scores(q[:, :, :, t : t + ROWS], k, query.first + t, key.first, o)
        lse = scores.logsumexp(-1)
        done.append(((scores - lse.clamp(min=START)[..., None]).exp() @ v, lse))
    y, lse = (torch.cat(parts, 3) for parts in zip(*done, strict=True))
    return y.flatten(1, 2).transpose(1, 2), lse.flatten(1, 2).transpose(1, 2)


def backward(dy_BTHV, q_BTHK, k_BMGK, v_BMGV, y_BTHV, lse_BTH, query, key, o):
    """The block's share of (dq, dk, dv), given y and lse of all blocks together."""
    if o.impl == "flash" and fused(query, key, o.window, o.slopes_H):
        return _flash_backward(dy_BTHV, q_BTHK, k_BMGK, v_BMGV, y_BTHV, lse_BTH, query == key, o.scale)
    G = k_BMGK.shape[2]
    q, k, v = _grouped(q_BTHK, k_BMGK, v_BMGV)
    dy, y, lse = (_by_group(x, G) for x in (dy_BTHV, y_BTHV, lse_BTH[..., None]))
    mean = (dy * y).sum(-1, keepdim=True)
    dq, dk, dv = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
    for t in range(0, q.shape[3], ROWS):
        rows = (slice(None),) * 3 + (slice(t, t + ROWS),)
        p = (_scores(q[rows], k, query.first + t, key.first, o) - lse[rows]).exp()
        ds = p * (dy[rows] @ v.mT - mean[rows]) * o.scale
        dq[rows] = ds @ k
        dk += (ds.mT @ q[rows]).sum(2, keepdim=True)
        dv += (p.mT @ dy[rows]).sum(2, keepdim=True)
    return dq.flatten(1, 2).transpose(1, 2), dk[:, :, 0].transpose(1, 2), dv[:, :, 0].transpose(1, 2)


def _by_group(x_BTHK, G):
    return x_BTHK.transpose(1, 2).unflatten(1, (G, -1))


def _grouped(q_BTHK, k_BMGK, v_BMGV):
    """q [B, G, readers, T, K], k and v [B, G, 1, M, .], in at least float32."""
    return (_by_group(x.to(state_dtype(x.dtype)), k_BMGK.shape[2]) for x in (q_BTHK, k_BMGK, v_BMGV))


def _scores(q, k, first_t, first_m, o):
    t = torch.arange(first_t, first_t + q.shape[3], device=q.device)[:, None]
    far = t - torch.arange(first_m, first_m + k.shape[3], device=q.device)
    scores = q @ k.mT * o.scale
    if o.slopes_H is not None:
        scores = scores - o.slopes_H.to(scores.dtype).view(q.shape[1], -1, 1, 1) * far
    seen = far >= 0 if o.window is None else (far >= 0) & (far < o.window)
    return scores.masked_fill(~seen, -torch.inf)


def _flash(q, k, v, causal, scale):
    q, k, v = _whole_heads(q, k, v)
    if q.is_cuda:
        y, lse = torch.ops.aten._scaled_dot_product_flash_attention(q, k, v, 0.0, causal, False, scale=scale)[:2]
    else:
        y, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, causal, scale=scale)
    return y.transpose(1, 2).to(lse.dtype), lse.transpose(1, 2)


def _flash_backward(dy, q, k, v, y, lse, causal, scale):
    G = k.shape[2]
    q, k, v = _whole_heads(q, k, v)
    dy, y, lse = dy.to(q.dtype).transpose(1, 2), y.to(q.dtype).transpose(1, 2), lse.mT.contiguous()
    if q.is_cuda:  # without dropout no random number is drawn, and its state is not read
        unused = [torch.zeros(n, dtype=torch.uint64, device=q.device) for n in (2, 0)]
        grads = torch.ops.aten._scaled_dot_product_flash_attention_backward(
            dy, q, k, v, y, lse, None, None, q.shape[2], k.shape[2], 0.0, causal, *unused, scale=scale
        )
    else:
        grads = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            dy, q, k, v, y, lse, 0.0, causal, scale=scale
        )
    dq, dk, dv = (x.transpose(1, 2) for x in grads)
    return dq, *(x.unflatten(2, (G, -1)).sum(3) for x in (dk, dv))


def _whole_heads(q, k, v):
    """[B, H, T, .] each: the kernel is given every reader's own key and value."""
    shared = q.shape[2] // k.shape[2]
    return q.transpose(1, 2), *(x.repeat_interleave(shared, 2).transpose(1, 2) for x in (k, v))
