"""Zamba's shared blocks: weights that stand in several places of a model, and what a place has of its own."""

import torch
from torch import nn

from postx.mixers import attention
from postx.models.nn import MLP, RMSNorm


class Shared(nn.Module):
    """Zamba's block, which stands in several places: attention and an MLP that read [stream, embedding], 2 D wide.

        y = mlp(norm(attention(norm([x, embedding]))))

    Nothing is added inside of it, and what it gives goes through a matrix of the place where it stands (`Place`).
    Glorioso et al. 2024 (arXiv 2405.16712), sec. 2, whose attention has no positions. There the result is added to
    the input of the following Mamba layer only: next_only=True; otherwise to the stream. Keyword arguments are those
    of the attention; F is the MLP's width. Zamba2 (Glorioso et al. 2024, arXiv 2411.15242, sec. 2) has several of
    them, blocks=2, which take turns, and lets a place add thin products of its own to their weights (`Adapters`).
    """

    def __init__(self, D, *, F=None, eps=1e-5, next_only=False, blocks=1, rank=0, adapt_attention=False, **options):
        super().__init__()
        self.next_only = next_only
        self.norm, self.mlp_norm = RMSNorm(2 * D, eps), RMSNorm(D, eps)
        self.attention = attention.Layer(D, D_in=2 * D, **{"rope": None} | options)
        self.mlp = MLP(D, F, activation="gelu")
        self.others = nn.ModuleList(
            Shared(D, F=F, eps=eps, next_only=next_only, **options) for _ in range(blocks - 1)
        )

    def whose(self, place):
        """The block whose turn it is in the place of that number."""
        number = place % (1 + len(self.others))
        return self.others[number - 1] if number else self

    def forward(self, x_BTD, embedding_BTD, S, adapters=None, **side):
        seen = self.norm(torch.cat([x_BTD, embedding_BTD], -1))
        beside = None if adapters is None else adapters.attention(seen)
        y, S = self.attention(seen, S, beside=beside, **side)
        y = self.mlp_norm(y)
        return self.mlp(y, None if adapters is None else adapters.mlp(y)), S


class Adapters(nn.Module):
    """What one place adds to the shared block: B A x beside W x, with A [rank, I] and B [O, rank] (LoRA, Hu 2021).

    Beside the MLP's gate and up, and with adapt_attention=True beside queries, keys and values.
    """

    def __init__(self, D, rank, adapt_attention, *, H=4, G=None, K=None, V=None, F=None, **_):
        super().__init__()
        K = K or D // H
        F = F or -(-8 * D // 24) * 8
        widths = {"q": H * K, "k": (G or H) * K, "v": (G or H) * (V or K)} if adapt_attention else {}
        self.heads = nn.ModuleDict({name: thin(2 * D, rank, width) for name, width in widths.items()})
        self.mlp = thin(D, rank, 2 * F)

    def attention(self, x):
        return [part(x) for part in self.heads.values()] or None


def thin(I, rank, O):
    return nn.Sequential(nn.Linear(I, rank, bias=False), nn.Linear(rank, O, bias=False))


class Place(nn.Module):
    """Where a shared block stands: its weights come in `cross`; the place's own are the matrix on its output, and
    adapters of `rank` channels (Zamba2). `number` counts the places of a model."""

    TAKES = ("inplace", "cross")

    def __init__(self, D, *, rank=0, adapt_attention=False, **options):
        super().__init__()
        self.number = 0
        self.out = nn.Linear(D, D, bias=False)
        self.adapters = Adapters(D, rank, adapt_attention, **options) if rank else None

    def forward(self, x_BTD, S=None, *, cross, **side):
        block = cross["shared"].whose(self.number)
        y, S = block(x_BTD, cross["embedding"], S, self.adapters, **side)
        if cross["shared"].next_only:
            cross["handed"] = self.out(y)  # the next place with a norm takes it
            return x_BTD.new_zeros(()), S
        return self.out(y), S
