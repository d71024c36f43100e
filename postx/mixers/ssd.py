"""Mamba-2's state space duality: a scalar decay a head makes the scan a masked attention, and the reverse.

    S <- exp(g) S + k v'        y = S' q        or        Y = (L o Q K') V,  L_ij = exp(g_{j+1} + ... + g_i), j <= i

Dao and Gu 2024, "Transformers are SSMs", secs. 5 to 7. Three routes to the same numbers: a token at a time, all
pairs at once, and pairs within a chunk with the state between. Groups: head h reads and writes with q and k of group
h // (H / G). Scaling x by dt, the skip and the gate are the Layer's.

| paper | here |
|---|---|
| C, B (state width N) | q_BTGK, k_BTGK |
| X dt (head width P) | v_BTHV |
| A dt, log a | g_BTH <= 0 |
| h [P, N] | S_BHKV, transposed |
"""

import math

import torch
from torch import nn
from torch.nn.functional import pad, silu, softplus

from postx import scans
from postx.cost import Cost, decay_recurrence
from postx.mixers import by_form, packed
from postx.parts import conv
from postx.scans import operators
from postx.shapes import check, check_shared, empty, named, real, state_dtype

FAMILY, LETTER = "ssm", "S"
STATE = "S_BHKV"
FOLLOW = "-"  # the block has its own gate and expansion
AUTO = {"triton": "recurrent"}  # one kernel


@named
def init(q_BGK, k_BGK, v_BHV, g_BH):
    """The empty table of each head, S_BHKV, at least float32."""
    return empty(k_BGK, v_BHV)


@named
def step(S, q_BGK, k_BGK, v_BHV, g_BH, *, inplace=False):
    """One token: the table fades by one number, k v' is written, q reads. Returns (y_BHV, S)."""
    q, k = (x.to(S.dtype).repeat_interleave(v_BHV.shape[1] // x.shape[1], 1) for x in (q_BGK, k_BGK))
    keep, written = g_BH.to(S.dtype).exp()[..., None, None], k[..., None] * v_BHV.to(S.dtype)[..., None, :]
    S = S.mul_(keep).add_(written) if inplace else keep * S + written
    return torch.einsum("bhk,bhkv->bhv", q, S).to(v_BHV.dtype), S


@packed
def recurrent(q_BTGK, k_BTGK, v_BTHV, g_BTH, *, S=None, lengths_B=None, impl="auto"):
    """All tokens, left to right, through the decay scan. Returns (y_BTHV, S)."""
    return scans.decay(q_BTGK, k_BTGK, v_BTHV, g_BTH, S, lengths_B=lengths_B, impl=impl)


@packed
def parallel(q_BTGK, k_BTGK, v_BTHV, g_BTH, *, S=None, lengths_B=None):
    """All pairs at once, a masked attention: one chunk of T tokens, quadratic in T. Returns (y_BTHV, S)."""
    return _in_chunks(q_BTGK, k_BTGK, v_BTHV, g_BTH, S, lengths_B, v_BTHV.shape[1])


@packed
def chunked(q_BTGK, k_BTGK, v_BTHV, g_BTH, *, S=None, lengths_B=None, chunk=64):
    """Pairs within a chunk of tokens, the state between chunks: linear in T. Returns (y_BTHV, S)."""
    return _in_chunks(q_BTGK, k_BTGK, v_BTHV, g_BTH, S, lengths_B, min(chunk, v_BTHV.shape[1]))


def segment_sums(g):
    """g [..., C] -> [..., C, C]: entry (i, j) is g_{j+1} + ... + g_i for j <= i, and -inf above the diagonal.

    Each entry is a sum of its own terms. The shorter way, a difference of two running sums, loses the digits of a
    short segment far along a long row, and gives NaN where g is -inf; exp first and mask later overflows.
    """
    C = g.shape[-1]
    below = torch.ones(C, C, dtype=torch.bool, device=g.device).tril(-1)
    sums = g[..., :, None].expand(*g.shape, C).masked_fill(~below, 0).cumsum(-2)
    return sums.masked_fill(below.mT, -torch.inf)


def _in_chunks(q_BTGK, k_BTGK, v_BTHV, g_BTH, S, lengths_B, C):
    """The blocks of the mask's matrix: full ones on its diagonal, one rank-K product below it for each chunk."""
    T, G, kind = *k_BTGK.shape[1:3], state_dtype(v_BTHV.dtype)
    S = empty(k_BTGK[:, 0], v_BTHV[:, 0]) if S is None else S
    q, k, v, g = (x.to(kind) for x in (q_BTGK, k_BTGK, v_BTHV, g_BTH))
    k, g = real(k, lengths_B), real(g, lengths_B)  # a token past the end writes nothing and lets nothing fade
    # Whole chunks, and heads by group: x is [b, n chunks, c tokens, g groups, r readers of the group, ...]. The
    # padding has g = 0 and k = 0, so the last state does not notice it.
    q, k, v, g = (
        pad(x, (0, 0) * (x.dim() - 2) + (0, -T % C)).unflatten(1, (-1, C)) for x in (q, k, v, g)
    )
    v, g = v.unflatten(3, (G, -1)), g.unflatten(3, (G, -1)).movedim(2, -1)
    sums = segment_sums(g)
    mask, left, seen = sums.exp(), sums[..., -1, :].exp(), g.cumsum(-1).exp()
    scores = torch.einsum("bncgk,bnmgk->bngcm", q, k)[:, :, :, None] * mask
    y = torch.einsum("bngrcm,bnmgrv->bncgrv", scores, v)

    written = torch.einsum("bnmgk,bnmgrv->bngrkv", k, v * left.movedim(-1, 2)[..., None])
    before, S = [], S.unflatten(1, (G, -1))
    for n in range(written.shape[1]):
        before.append(S)
        S = seen[:, n, ..., -1, None, None] * S + written[:, n]
    carried = torch.einsum("bncgk,bngrkv->bncgrv", q, torch.stack(before, 1))
    y = (y + carried * seen.movedim(-1, 2)[..., None]).flatten(3, 4).flatten(1, 2)[:, :T]
    return real(y, lengths_B).to(v_BTHV.dtype), S.flatten(1, 2)


@named
def operator(q_BTGK, k_BTGK, v_BTHV, g_BTH):
    """What these tokens do to any state: see `postx.scans.operators`."""
    return operators.fade(g_BTH, recurrent(q_BTGK, k_BTGK, v_BTHV, g_BTH)[1])


def example(T, *, B=2, H=4, G=2, K=8, V=6, seed=0):
    """Valid float64 inputs: ((q_BTGK, k_BTGK, v_BTHV, g_BTH), {})."""
    generator = torch.Generator().manual_seed(seed)
    shapes = (B, T, G, K), (B, T, G, K), (B, T, H, V), (B, T, H)
    *z, dt = (torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes)
    return (*z, -softplus(dt)), {}


def cost(T, *, B=1, H=4, G=2, K=8, V=6, item=4) -> Cost:
    """The bill of `recurrent`: 5 K V FLOPs and an exp a token and head; q and k once a group; bounded state."""
    check_shared("G", G, H)
    bill = decay_recurrence(T, B=B, H=H, K=K, V=V, item=item)
    return Cost(bill.flops + B * T * H, B * T * (2 * G * K + 2 * H * V + H) * item, bill.state_floats)


class GroupNorm(nn.Module):
    """An RMS norm of each of G groups of channels by itself, with one weight a channel (Mamba-2's, for G > 1)."""

    def __init__(self, D, G, eps=1e-5):
        super().__init__()
        self.G, self.eps, self.weight = G, eps, nn.Parameter(torch.ones(D))

    def forward(self, x):
        x = nn.functional.rms_norm(x.unflatten(-1, (self.G, -1)), (x.shape[-1] // self.G,), eps=self.eps).flatten(-2)
        return x * self.weight


class Layer(nn.Module):
    """The Mamba-2 block: Layer(x_BTD, S=None) -> (y_BTD, S). It is `inner` wide, `expand` D if that is None.

        dt = softplus(Linear(x) + bias)      v = x dt, g = -rate dt      out = Linear(RMSNorm((y + skip x) silu(z)))

    One short convolution over x, k and q together; heads of width V (64, or `inner` where that is less). dt
    starts log-uniform in [1e-3, 0.1], the rates uniform in [1, 16]. norm=False leaves the RMS norm out (Falcon-H1); it
    is of each group by itself, with eps in it, and before the gate with gate_last=True (some of Falcon-H1). dt is held
    to dt_limit = (least, most) (Nemotron-H has a least one). bias: on the way in and back.
    S = (S_BHKV, last inputs of the convolution).
    """

    def __init__(
        self, D, *, K=128, V=None, G=1, expand=2, conv_size=4, inner=None, norm=True, eps=1e-5, gate_last=False,
        dt_limit=(0, math.inf), bias=False,
    ):  # fmt: skip
        super().__init__()
        inner = inner or expand * D
        V = min(64, inner) if V is None else V
        if inner % V:
            raise ValueError(f"V: expected a divisor of the inner width {inner}, got {V}")
        self.H, self.G, self.K, self.dt_limit, self.gate_last = inner // V, G, K, dt_limit, gate_last
        check_shared("G", G, self.H)
        self.widths = inner, G * K, G * K
        mixed, bound = sum(self.widths), conv_size**-0.5
        self.inward = nn.Linear(D, inner + mixed + self.H, bias=bias)
        self.taps_DW = nn.Parameter(torch.empty(mixed, conv_size).uniform_(-bound, bound))
        self.taps_bias_D = nn.Parameter(torch.empty(mixed).uniform_(-bound, bound))
        first = 10 ** torch.empty(self.H).uniform_(-3, -1)
        self.dt_bias_H = nn.Parameter(first + torch.log(-torch.expm1(-first)))  # softplus of this is `first`
        self.log_rate_H = nn.Parameter(torch.empty(self.H).uniform_(1, 16).log())
        self.skip_H = nn.Parameter(torch.ones(self.H))
        self.norm = GroupNorm(inner, G, eps) if norm else nn.Identity()
        self.out = nn.Linear(inner, D, bias=bias)

    def forward(self, x_BTD, S=None, *, form="auto", **side):
        check({"D": self.inward.in_features}, x_BTD=x_BTD)
        gate, mixed, dt = self.inward(x_BTD).split([self.widths[0], sum(self.widths), self.H], -1)
        S, S_conv = S or (None, None)
        mixed, S_conv = conv.short_convolution(mixed, self.taps_DW, self.taps_bias_D, S_conv, **side)
        x, k, q = silu(mixed).split(self.widths, -1)
        x = x.unflatten(-1, (self.H, -1))
        k, q = (part.unflatten(-1, (self.G, -1)) for part in (k, q))
        dt = softplus(dt.to(state_dtype(dt.dtype)) + self.dt_bias_H).clamp(*self.dt_limit)
        v, g = (x * dt[..., None]).to(x.dtype), -torch.exp(self.log_rate_H.to(dt.dtype)) * dt
        y, S = by_form(__name__, form, x_BTD)(q, k, v, g, S=S, **side)
        y = (y + self.skip_H[:, None] * x).flatten(2)
        y = self.norm(y) * silu(gate) if self.gate_last else self.norm(y * silu(gate))
        return self.out(y), (S, S_conv)
