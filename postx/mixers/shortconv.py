"""The gated short convolution of LFM2: look at the last few tokens, and let the input gate what goes in and out.

    y = C * conv(B * x)        conv: each channel's own causal filter of W taps        state: the last W - 1 of B * x

Liquid AI 2025, "LFM2 Technical Report" (arXiv 2511.23404), and its code in transformers (lfm2): W = 3, no bias. No
gate passes through a nonlinearity, so y is cubic in the layer's input. The reach is W tokens and no more: LFM2
leaves what is further away to a few attention layers, and to depth.

| paper | here |
|---|---|
| B, C, x (one projection, split in that order) | b_BTD, c_BTD, x_BTD |
| the filter | weight_DW; its last column meets the current token, as in torch |
"""

import math
from typing import NamedTuple

import torch
from torch import nn

from postx.cost import Cost
from postx.cost import short_convolution as _bill
from postx.mixers import by_form, packed
from postx.parts import conv
from postx.shapes import named, state_dtype

FAMILY, LETTER = "conv", "C"
STATE = "S_BW-1D"
AUTO = {"far": "parallel"}  # a few shifted products


@named
def init(b_BD, c_BD, x_BD, *, weight_DW):
    """No past: zeros S_BWD [B, W-1, D], at least float32."""
    return conv.init(x_BD, weight_DW.shape[1])


@named
def step(S, b_BD, c_BD, x_BD, *, weight_DW, inplace=False):
    """One token: gate it, filter it with the W - 1 kept before it, gate the result. Returns (y_BD, S)."""
    y, S = conv.step(S, b_BD.to(S.dtype) * x_BD, weight_DW, inplace=inplace)
    return (c_BD * y).to(x_BD.dtype), S


@packed
def recurrent(b_BTD, c_BTD, x_BTD, *, weight_DW, S=None, lengths_B=None, impl="auto"):
    """All tokens, left to right, a dot product of W taps each. Returns (y_BTD, S)."""
    y, S = conv.scan(b_BTD.to(state_dtype(x_BTD.dtype)) * x_BTD, weight_DW, S, lengths_B, impl)
    return (c_BTD * y).to(x_BTD.dtype), S


@packed
def parallel(b_BTD, c_BTD, x_BTD, *, weight_DW, S=None, lengths_B=None):
    """All tokens at once, tap by tap: W shifted products. Returns (y_BTD, S)."""
    written = b_BTD.to(state_dtype(x_BTD.dtype)) * x_BTD
    y, S = conv.short_convolution(written, weight_DW, None, S, lengths_B, impl="torch")
    return (c_BTD * y).to(x_BTD.dtype), S


class Recent(NamedTuple):
    """The state is the last W-1 inputs: A (a number) new ones, the end of b, push out as many. See `operators`."""

    A: torch.Tensor
    b: torch.Tensor

    def __call__(self, S):
        new = int(self.A)
        return torch.cat([S[:, new:], self.b[:, self.b.shape[1] - new :]], 1)

    def then(self, after):
        return Recent((self.A + after.A).clamp(max=self.b.shape[1]), after(self.b))


@named
def operator(b_BTD, c_BTD, x_BTD, *, weight_DW):
    """What these tokens do to any state: see `postx.scans.operators`."""
    S = recurrent(b_BTD, c_BTD, x_BTD, weight_DW=weight_DW)[1]
    return Recent(torch.tensor(min(x_BTD.shape[1], S.shape[1]), device=S.device), S)


def example(T, *, B=2, D=5, W=3, seed=0):
    """Valid float64 inputs: ((b_BTD, c_BTD, x_BTD), dict(weight_DW))."""
    generator = torch.Generator().manual_seed(seed)
    z = tuple(torch.randn(B, T, D, generator=generator, dtype=torch.float64) for _ in range(3))
    return z, {"weight_DW": torch.randn(D, W, generator=generator, dtype=torch.float64)}


def cost(T, *, B=1, D=5, W=3, item=4) -> Cost:
    """The filter, 2 W FLOPs a token and channel, and one product for each gate.

    Bytes: b, c, x in and y out. The state, W - 1 gated inputs, is bounded.
    """
    bill = _bill(T, B=B, D=D, conv_size=W, item=item)
    return Cost(bill.flops + 2 * B * T * D, 4 * B * T * D * item, bill.state_floats)


class Layer(nn.Module):
    """One projection to B, C and x, the gated convolution, one projection back: Layer(x_BTD, S=None) -> (y, S)."""

    def __init__(self, D, *, conv_size=3):
        super().__init__()
        self.input, self.out = nn.Linear(D, 3 * D, bias=False), nn.Linear(D, D, bias=False)
        self.weight_DW = nn.Parameter(torch.randn(D, conv_size) / math.sqrt(conv_size))

    def forward(self, x_BTD, S=None, *, form="auto", **side):
        b, c, x = self.input(x_BTD).chunk(3, -1)
        y, S = by_form(__name__, form, x_BTD)(b, c, x, weight_DW=self.weight_DW, S=S[0] if S else None, **side)
        return self.out(y), (S,)
