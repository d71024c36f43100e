"""RG-LRU: each channel keeps one number, and a gate on the input decides how much of it to forget.

    a = exp(-delta r)        h <- a h + sqrt(1 - a^2) i x        y = h        delta = c softplus(Lambda), c = 8

De et al. 2024, "Griffin: Mixing Gated Linear Recurrences with Local Attention" (arXiv 2402.19427), sec. 2.4. r and i
are sigmoids of the input, in (0, 1). The factor on the write makes white noise of variance 1 leave h at variance 1,
whatever the decay; 1 - a^2 is computed as -expm1(-2 delta r), which keeps its digits near a = 1.

| paper | here |
|---|---|
| x_t, r_t, i_t, h_t | x_BTD, r_BTD, i_BTD, y_BTD and S = (h_BD, started_B) |
| c softplus(Lambda), log a_t | delta_D, -delta_D r_BTD |

Where the sources differ:
- The first token of a sequence. The paper writes h_0 = 0 and scales every token, the first as well
  (first="scaled"). Its two public codes, recurrentgemma and transformers, write i x there unscaled (first="whole"):
  nothing has been forgotten yet, so the variance is right from the start. The two differ for as long as h
  remembers that token. Hence the state knows whether it has started.
- The sign of Lambda. The paper names a = sigmoid(Lambda), so log a = -softplus(-Lambda). Both codes compute
  -c softplus(Lambda) r, and so does `rate` here: their Lambda has the opposite sign.
- The slope of sqrt(1 - a^2) has no bound near a = 1. Both codes hold it at 1000 in the backward pass:
  max_slope=1000. The forward numbers are the same; the gradient is then not the exact one. None: exact.
"""

import math

import torch
from torch import nn

from postx import scans
from postx.cost import Cost
from postx.mixers import Still, by_form, packed
from postx.parts import conv
from postx.scans import operators
from postx.shapes import named, positive, real, state_dtype

FAMILY, LETTER = "ssm", "R"
AUTO = {"triton": "recurrent"}  # one kernel
STATE = "h_BD", "started_B"
STARTS = ("whole", "scaled")


@named
def init(x_BD, r_BD, i_BD, *, delta_D, first="whole", max_slope=None):
    """Nothing remembered, nothing started: (zeros h_BD, at least float32, and zeros started_B)."""
    h = torch.zeros_like(x_BD, dtype=state_dtype(x_BD.dtype))
    return h, torch.zeros(len(x_BD), dtype=torch.int64, device=x_BD.device)


@named
def step(S, x_BD, r_BD, i_BD, *, delta_D, first="whole", max_slope=None, inplace=False):
    """One token: forget by a, add the gated and scaled input. Returns (y_BD, S)."""
    h, started = S
    g, b = _drive(x_BD, r_BD, i_BD, delta_D, started == 0, first, max_slope)
    if inplace:
        h, started = h.mul_(g.exp()).add_(b), started.fill_(1)
        return h.to(x_BD.dtype, copy=True), (h, started)
    h = g.exp() * h + b
    return h.to(x_BD.dtype), (h, torch.ones_like(started))


@packed
def recurrent(
    x_BTD, r_BTD, i_BTD, *, delta_D, first="whole", max_slope=None, S=None, lengths_B=None, impl="auto"
):
    """All tokens, left to right, through the affine scan. Returns (y_BTD, S)."""
    g, b, h, started = _prepare(x_BTD, r_BTD, i_BTD, delta_D, first, max_slope, S, lengths_B)
    y, h = scans.affine(g, b.to(x_BTD.dtype), h, lengths_B=lengths_B, impl=impl)
    return y, (h, started)


@packed
def parallel(x_BTD, r_BTD, i_BTD, *, delta_D, first="whole", max_slope=None, S=None, lengths_B=None):
    """All tokens at once, in log2(T) rounds of prefix sums: T log T work. Returns (y_BTD, S)."""
    g, b, h, started = _prepare(x_BTD, r_BTD, i_BTD, delta_D, first, max_slope, S, lengths_B)
    y, G = _prefix(g, b)
    y = y + G.exp() * h[:, None]
    return real(y.to(x_BTD.dtype), lengths_B), (y[:, -1], started)


@packed
def chunked(
    x_BTD,
    r_BTD,
    i_BTD,
    *,
    delta_D,
    first="whole",
    max_slope=None,
    S=None,
    lengths_B=None,
    chunk=64,
):
    """Prefix sums within all chunks of tokens at once, h from chunk to chunk: T log C work. Returns (y_BTD, S)."""
    g, b, h, started = _prepare(x_BTD, r_BTD, i_BTD, delta_D, first, max_slope, S, lengths_B)
    T = g.shape[1]
    # Tokens that fill up the last chunk neither fade nor write, so h after them is h after the last real one.
    g, b = (nn.functional.pad(z, (0, 0, 0, -T % chunk)).unflatten(1, (-1, chunk)) for z in (g, b))
    y, G = _prefix(g, b)
    fade, begins = G.exp(), []
    for fade_BD, y_BD in zip(fade[:, :, -1].unbind(1), y[:, :, -1].unbind(1), strict=True):
        begins.append(h)
        h = fade_BD * h + y_BD
    y = (y + fade * torch.stack(begins, 1)[:, :, None]).flatten(1, 2)[:, :T]
    return real(y.to(x_BTD.dtype), lengths_B), (h, started)


def _prefix(g, b):
    """h from 0 at every token of [..., T, D], and the log-decays added up to it.

    Each round adds to a token what stands 1, 2, 4, ... tokens before it (Hillis and Steele 1986). Log-decays
    only ever add up: no factor exceeds 1, nothing is divided, and no two running sums are subtracted.
    """
    reach, T = 1, g.shape[-2]
    while reach < T:
        before_g, before_b = g[..., :-reach, :], b[..., :-reach, :]
        b = torch.cat([b[..., :reach, :], b[..., reach:, :] + g[..., reach:, :].exp() * before_b], -2)
        g = torch.cat([g[..., :reach, :], g[..., reach:, :] + before_g], -2)
        reach *= 2
    return b, g


def rate(lambda_D, c=8.0):
    """The rate of each channel, delta = c softplus(Lambda) > 0: what a whole open gate (r = 1) forgets by."""
    return c * nn.functional.softplus(lambda_D)


def _drive(x, r, i, delta_D, begins, first, max_slope):
    """Log-decay and write, g = -delta r and sqrt(1 - exp(2 g)) i x; the write of a first token may be whole."""
    if first not in STARTS:
        raise ValueError(f"first: expected 'whole' or 'scaled', got {first!r}")
    kind = state_dtype(x.dtype)
    x, r, i = (z.to(kind) for z in (x, r, i))
    g = -delta_D.to(kind) * r
    square = -torch.expm1(2 * g)
    scale = square.sqrt() if max_slope is None else _BoundedSqrt.apply(square, max_slope)
    if first == "whole":
        scale = torch.where(begins[..., None], torch.ones_like(scale), scale)
    return g, scale * i * x


def _prepare(x_BTD, r_BTD, i_BTD, delta_D, first, max_slope, S, lengths_B):
    """Log-decays and writes, neither past a row's end, h before the first token, and who will have started."""
    h, started = init(x_BTD[:, 0], r_BTD[:, 0], i_BTD[:, 0], delta_D=delta_D) if S is None else S
    token = torch.arange(x_BTD.shape[1], device=x_BTD.device)
    begins_BT = (started == 0)[:, None] & (token == 0)
    g, b = _drive(x_BTD, r_BTD, i_BTD, delta_D, begins_BT, first, max_slope)
    if lengths_B is None:
        return g, b, h, torch.ones_like(started)
    return real(g, lengths_B), real(b, lengths_B), h, started | (lengths_B > 0).long()


class _BoundedSqrt(torch.autograd.Function):
    """The square root, with its slope 1 / (2 sqrt(x)) held at a bound in the backward pass."""

    @staticmethod
    def forward(ctx, x, bound):
        y = x.sqrt()
        ctx.save_for_backward(y)
        ctx.bound = bound
        return y

    @staticmethod
    def backward(ctx, dy):
        (y,) = ctx.saved_tensors
        return dy * (0.5 / y).clamp(max=ctx.bound), None


@named
def operator(x_BTD, r_BTD, i_BTD, *, delta_D, **w):
    """What these tokens do to any state: see `postx.scans.operators`."""
    h, started = init(x_BTD[:, 0], r_BTD[:, 0], i_BTD[:, 0], delta_D=delta_D)
    keep_BD = torch.exp(-delta_D * r_BTD.sum(1, dtype=h.dtype))
    S = recurrent(x_BTD, r_BTD, i_BTD, delta_D=delta_D, S=(h, started + 1), **w)[1]
    return operators.Fade((keep_BD, started), S)


def example(T, *, B=2, D=5, seed=0, first="whole"):
    """Valid float64 inputs: ((x_BTD, r_BTD, i_BTD), dict(delta_D, first))."""
    generator = torch.Generator().manual_seed(seed)
    x, r, i = (torch.randn(B, T, D, generator=generator, dtype=torch.float64) for _ in range(3))
    lambda_D = torch.randn(D, generator=generator, dtype=torch.float64) - 3
    return (x, r.sigmoid(), i.sigmoid()), {"delta_D": rate(lambda_D), "first": first}


def cost(T, *, B=1, D=5, item=4) -> Cost:
    """The bill of `recurrent`: delta r, two exps, root, negation, i x, scale, a h + b: 10 FLOPs a token and channel.

    Bytes: x, r and i in, y out. The state, one number a channel, is bounded.
    """
    positive(T=T, B=B, D=D)
    return Cost(10 * B * T * D, 4 * B * T * D * item, B * D)


class Layer(nn.Module):
    """Griffin's recurrent block: Layer(x_BTD, S=None) -> (y_BTD, S), with S = (h, started, short convolution's).

    out(gelu(gate(x)) * rglru(conv(in(x)))), with gelu in its tanh form as published: a short convolution of conv_size
    taps, and gates r and i from H diagonal blocks. Lambda starts so that a^c is uniform in [0.9, 0.999] (paper, sec.
    2.4; the codes draw a, not a^c, from there).
    """

    def __init__(self, D, *, width=None, H=4, conv_size=4, c=8.0, first="whole", max_slope=1000.0):
        super().__init__()
        width = width or D
        if width % H:
            raise ValueError(f"H: {H} blocks do not divide the width {width}")
        self.c, self.first, self.max_slope = c, first, max_slope
        self.gate, self.input = nn.Linear(D, width), nn.Linear(D, width)
        self.weight_DW = nn.Parameter(torch.randn(width, conv_size) / math.sqrt(conv_size))
        self.bias_D = nn.Parameter(torch.zeros(width))
        block = width // H
        self.gates_HKV = nn.Parameter(torch.randn(H, block, 2 * block) / math.sqrt(block))
        self.gates_HV = Still(torch.zeros(H, 2 * block))
        a_D = torch.empty(width).uniform_(0.9, 0.999)
        self.lambda_D = nn.Parameter(torch.log(torch.expm1(-torch.log(a_D) / c)))  # inverse of softplus
        self.out = nn.Linear(width, D)

    def forward(self, x_BTD, S=None, *, form="auto", lengths_B=None, reset_BT=None, **side):
        *S, S_conv = S if S else (None,)
        x, S_conv = conv.short_convolution(
            self.input(x_BTD), self.weight_DW, self.bias_D, S_conv, lengths_B, reset_BT
        )
        blocks = x.unflatten(-1, (self.gates_HKV.shape[0], -1))
        both = torch.einsum("bthk,hkv->bthv", blocks, self.gates_HKV) + self.gates_HV
        r, i = (part.flatten(2).sigmoid() for part in both.chunk(2, -1))
        weights = {"delta_D": rate(self.lambda_D, self.c), "first": self.first, "max_slope": self.max_slope}
        side |= {"lengths_B": lengths_B, "reset_BT": reset_BT}
        y, S = by_form(__name__, form, x_BTD)(x, r, i, S=tuple(S) or None, **weights, **side)
        return self.out(nn.functional.gelu(self.gate(x_BTD), approximate="tanh") * y), (*S, S_conv)
