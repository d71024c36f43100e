"""BERT: a network that reads a whole text both ways and gives a vector for each token, for search and comparison.

    x = norm(word + position + kind)      at each layer: x = norm(x + attention(x)), x = mlp_norm(x + mlp(x))

The norms stand after the sum, not before the mixer as in `LM`: nothing but normed vectors ever flows. Source: Devlin
et al. 2019, and Vaswani et al. 2017, sec. 3, for the layer. Sentence vectors: Reimers and Gurevych 2019, sec. 3.
"""

import torch
from torch import nn
from torch.nn.functional import normalize

from postx.mixers import attention
from postx.models import capabilities
from postx.models.nn import MLP
from postx.shapes import check


class Encoder(nn.Module):
    """y_BTD = net(ids_BT): L layers of H heads and an ungated MLP of width F, over at most `size` positions.

    Every row is whole: there are no lengths, read texts of unequal length one by one. Raises ValueError for a text
    longer than `size` tokens.
    """

    def __init__(self, D, L, Y, *, H, F, size=512, kinds=2, activation="gelu", eps=1e-12):
        super().__init__()
        self.embed, self.positions, self.kinds = nn.Embedding(Y, D), nn.Embedding(size, D), nn.Embedding(kinds, D)
        self.embed_norm = nn.LayerNorm(D, eps)
        self.blocks = nn.ModuleList(AfterBlock(D, H, F, activation, eps) for _ in range(L))

    capabilities = capabilities.ENCODER

    def forward(self, ids_BT, kind_BT=None):
        T = check(ids_BT=ids_BT)["T"]
        if self.positions.num_embeddings < T:
            raise ValueError(f"ids_BT: expected at most {self.positions.num_embeddings} tokens, got {T}")
        kind_BT = torch.zeros_like(ids_BT) if kind_BT is None else kind_BT
        position_T = torch.arange(T, device=ids_BT.device)
        x = self.embed_norm(self.embed(ids_BT) + self.positions(position_T) + self.kinds(kind_BT))
        for block in self.blocks:
            x = block(x)
        return x

    def sentence(self, ids_BT):
        """One vector of length 1 a row, the mean of its tokens' vectors: [B, D]."""
        return normalize(self(ids_BT).mean(1), dim=-1)


class AfterBlock(nn.Module):
    """One layer whose norms come after the sums."""

    kept = [("A", ())]

    def __init__(self, D, H, F, activation, eps):
        super().__init__()
        mix = attention.Layer(D, H, rope=None, causal=False, bias=True, out_bias=True)
        self.mix = nn.ModuleList([mix])
        self.norm, self.mlp_norm = nn.LayerNorm(D, eps), nn.LayerNorm(D, eps)
        self.mlp = MLP(D, F, activation=activation, gated=False, bias=True)

    def forward(self, x):
        x = self.norm(x + self.mix[0](x)[0])
        return self.mlp_norm(x + self.mlp(x))
