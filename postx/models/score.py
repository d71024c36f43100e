"""How well a model knows a text: its bits, in windows, so that two models can be compared window by window.

    bits, scored = windows(lm, ids, words.begins)       # bits of each window, and the tokens that were asked in it

A window's first half was asked in the window before and is only read here, so that every token but the first few
stands behind half a window at least. What a text begins with (`begins`) is never asked.
"""

import math

import torch
from torch.nn.functional import cross_entropy

from postx.diffusion import masked
from postx.shapes import whole


@torch.no_grad()
def windows(model, ids, begins=(), window=512, draws=16):
    """(bits_W, tokens_W, exact): bits of what is asked in each window, how many tokens that is, and whether exactly.

    A model that scores by a bound (a denoiser) is asked for the same tokens, by `draws` random masks of each window:
    its bits are upper bounds. Raises ValueError for a model that scores nothing, a text of fewer than two tokens, a
    window of fewer, and no draws.
    """
    whole(window=window, draws=draws)
    if window < 2:
        raise ValueError(f"window: expected at least 2 tokens, got {window}")
    ids = [*begins, *ids]
    how, first = model.capabilities.scores, max(1, len(begins))
    if not how:
        raise ValueError("model: it gives no probability of a text")
    if len(ids) <= first:
        raise ValueError(f"ids: expected at least {first + 1} tokens, got {len(ids)}")
    text, half = torch.tensor(ids)[None], window // 2
    bits, tokens = [], []
    for start in range(0, max(1, len(ids) - half), half):
        piece = text[:, start : start + window]
        asked = window - half if start else first
        if piece.shape[1] <= asked:
            break
        bits.append(_exact(model, piece, asked) if how == "exactly" else _bound(model, piece, asked, draws))
        tokens.append(piece.shape[1] - asked)
    return torch.tensor(bits, dtype=torch.float64), torch.tensor(tokens), how == "exactly"


def _exact(lm, piece, asked):
    logits = lm(piece)[0][0, asked - 1 : -1]
    return float(cross_entropy(logits.double(), piece[0, asked:], reduction="sum")) / math.log(2)


def _bound(net, piece, asked, draws):
    rows = piece.expand(draws, -1)
    fixed = (torch.arange(piece.shape[1]) < asked).expand_as(rows)
    side = {"fixed_BT": fixed, "generator": torch.Generator().manual_seed(0)}
    return float(masked.nelbo_by_count(net, rows, net.Y, **side).mean()) / math.log(2)
