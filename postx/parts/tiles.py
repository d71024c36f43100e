"""Exact softmax attention in tiles: a running (numerator, denominator, maximum) instead of a table of scores.

Softmax needs the sum over all sources before it can divide. It can divide last: take the sources a tile at a
time, keep for every query the largest score so far and two sums relative to it,

    top' = max(top, max_m s_m)
    den' = den exp(top - top') + sum_m exp(s_m - top')
    num' = num exp(top - top') + sum_m exp(s_m - top') v_m

and y = num / den after the last tile. Rescaling by exp(top - top') <= 1 never overflows. The maximum starts
at the lowest finite number, not at minus infinity, so that top - top' is never inf - inf.

Source: Milakov and Gimelshein 2018 (the running softmax); Dao et al. 2022 (FlashAttention: tiles, and scores
recomputed in the backward pass). Here a tile of sources meets all queries that can see it in one product,
since a Python loop over tiles of queries would spend its time in Python.
"""

from typing import NamedTuple

import torch

from postx.parts.cache import visible
from postx.shapes import state_dtype, whole


class Seen(NamedTuple):
    """Queries, all sources (the first `cached` of them from the cache), and everyone's absolute position."""

    q_BTHK: torch.Tensor
    k_BMGK: torch.Tensor
    v_BMGV: torch.Tensor
    position_BT: torch.Tensor
    position_BM: torch.Tensor
    cached: int


def attend(
    q_BTHK, k_BMGK, v_BMGV, position_BT, position_BM, cached, *, window=None, scale=None, slopes_H=None, chunk=64
):
    """Softmax attention over tiles of `chunk` sources; returns y_BTHV in the dtype of v.

    At most B H T chunk scores exist at a time, in the backward pass too: it keeps y, top and den per query,
    and computes each tile's scores again. Differentiable once.
    Raises ValueError for a chunk below 1.
    """
    whole(chunk=chunk)
    T, G, K = q_BTHK.shape[1], k_BMGK.shape[2], q_BTHK.shape[-1]
    wide = state_dtype(q_BTHK.dtype)
    q = q_BTHK.to(wide) * (K**-0.5 if scale is None else scale)
    # The readers of one group become further rows of the same products: row = token * readers + reader.
    q_BGTK = q.unflatten(2, (G, -1)).transpose(1, 2).flatten(2, 3)
    k_BGMK, v_BGMV = (x.to(wide).transpose(1, 2) for x in (k_BMGK, v_BMGV))
    tiles = list(bands(T, cached, window, chunk))
    readers = q_BTHK.shape[2] // G
    slopes_GH = None if slopes_H is None else slopes_H.to(wide).view(G, readers)
    y_BGTV = _Tiled.apply(q_BGTK, k_BGMK, v_BGMV, position_BT, position_BM, slopes_GH, tiles, window, readers)
    return y_BGTV.unflatten(2, (T, readers)).transpose(1, 2).flatten(2, 3).to(v_BMGV.dtype)


def bands(T, cached, window, chunk):
    """The tiles worth computing, as (sources, tokens) slices: outside of them the mask hides everything.

    Sources are the cached ones followed by the T new ones.
    """
    reach = cached + T if window is None else window - 1  # how far past a source a token can still see it
    for first in range(0, cached, chunk):
        if reach:
            yield slice(first, min(first + chunk, cached)), slice(0, min(T, reach))
    for first in range(0, T, chunk):
        after = min(first + chunk, T)
        yield slice(cached + first, cached + after), slice(first, min(T, after + reach))


class _Tiled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q_BGTK, k_BGMK, v_BGMV, position_BT, position_BM, slopes_GH, tiles, window, readers):
        num = q_BGTK.new_zeros(*q_BGTK.shape[:3], v_BGMV.shape[-1])
        den = q_BGTK.new_zeros(*q_BGTK.shape[:3], 1)
        top = torch.full_like(den, torch.finfo(den.dtype).min)
        for sources, tokens in tiles:
            rows = slice(tokens.start * readers, tokens.stop * readers)
            mask = _mask(position_BT[:, tokens], position_BM[:, sources], window, readers)
            fall = _fall(position_BT[:, tokens], position_BM[:, sources], slopes_GH)
            scores = _scores(q_BGTK[:, :, rows], k_BGMK[:, :, sources], mask, fall)
            new_top = torch.maximum(top[:, :, rows], scores.amax(-1, keepdim=True))
            kept = (top[:, :, rows] - new_top).exp_()
            p = scores.sub_(new_top).exp_()
            num[:, :, rows].mul_(kept).add_(p @ v_BGMV[:, :, sources])
            den[:, :, rows].mul_(kept).add_(p.sum(-1, keepdim=True))
            top[:, :, rows] = new_top
        y_BGTV = num.div_(den)
        ctx.tiles, ctx.window, ctx.readers = tiles, window, readers
        positions = position_BT, position_BM, slopes_GH
        ctx.save_for_backward(q_BGTK, k_BGMK, v_BGMV, *positions, y_BGTV, top, den)
        return y_BGTV

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dy_BGTV):
        q_BGTK, k_BGMK, v_BGMV, position_BT, position_BM, slopes_GH, y_BGTV, top, den = ctx.saved_tensors
        dq, dk, dv = torch.zeros_like(q_BGTK), torch.zeros_like(k_BGMK), torch.zeros_like(v_BGMV)
        mean = (dy_BGTV * y_BGTV).sum(-1, keepdim=True)  # the softmax's own term: sum_m p_m dp_m
        for sources, tokens in ctx.tiles:
            rows = slice(tokens.start * ctx.readers, tokens.stop * ctx.readers)
            mask = _mask(position_BT[:, tokens], position_BM[:, sources], ctx.window, ctx.readers)
            q, k, v = q_BGTK[:, :, rows], k_BGMK[:, :, sources], v_BGMV[:, :, sources]
            dy = dy_BGTV[:, :, rows]
            fall = _fall(position_BT[:, tokens], position_BM[:, sources], slopes_GH)
            p = _scores(q, k, mask, fall).sub_(top[:, :, rows]).exp_().div_(den[:, :, rows])
            dv[:, :, sources] += p.mT @ dy
            ds = (dy @ v.mT).sub_(mean[:, :, rows]).mul_(p)
            dq[:, :, rows] += ds @ k
            dk[:, :, sources] += ds.mT @ q
        return dq, dk, dv, *[None] * 6


def _mask(position_BT, position_BM, window, readers):
    """Where a row may look, [B, 1, rows, M]; every token has one row for each reader."""
    return visible(position_BT, position_BM, window).repeat_interleave(readers, 1)[:, None]


def _fall(position_BT, position_BM, slopes_GH):
    """ALiBi's -slope times the distance, [B, G, rows, M], with the rows of `_mask`; None without slopes."""
    if slopes_GH is None:
        return None
    far_BTM = position_BM[:, None, :] - position_BT[:, :, None]
    return (far_BTM[:, None, :, None] * slopes_GH[:, None, :, None]).flatten(2, 3)


def _scores(q, k, mask, fall=None):
    """q . k for one tile, less what the distance costs, and minus infinity where the mask hides it."""
    scores = q @ k.mT
    return (scores if fall is None else scores.add_(fall)).masked_fill_(~mask, -torch.inf)
