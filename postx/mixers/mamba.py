"""Mamba's selective scan: each channel keeps N fading numbers, and the token decides what is written, kept and read.

    h <- exp(delta A) h + delta u write        y = sum_n read h + skip u

Gu and Dao 2023, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces", sec. 3 and algorithm 2. A is held
by zero-order hold, exp(delta A), and B by Euler, delta B: the paper's text gives zero-order hold for both, its code
and its later paper do this. delta is a step length: near 0 the token is passed over and the state kept, large and the
state is replaced. `write` and `read` are shared by all channels.

| paper | here |
|---|---|
| x, y | u_BTD, y_BTD |
| Delta (after softplus), B, C | delta_BTD, write_BTN, read_BTN |
| A (real, negative), D | A_DN, skip_D |
| h | S_BDN |
"""

import math
from functools import partial

import torch
from torch import nn
from torch.nn.functional import linear, silu, softplus

from postx import scans
from postx.cost import Cost, ssm_scan
from postx.mixers import Still, by_form, packed
from postx.parts import conv
from postx.scans import operators
from postx.shapes import check, named, real, state_dtype

FAMILY, LETTER = "ssm", "M"
STATE = "S_BDN"
FOLLOW = "-"  # the block has its own gate and expansion
AUTO = {"triton": "recurrent"}  # one kernel


@named
def init(u_BD, delta_BD, write_BN, read_BN, *, A_DN, skip_D):
    """Nothing written yet: zeros S_BDN, at least float32."""
    return u_BD.new_zeros(*u_BD.shape, A_DN.shape[1], dtype=state_dtype(u_BD.dtype))


@named
def step(S, u_BD, delta_BD, write_BN, read_BN, *, A_DN, skip_D, inplace=False):
    """One token: the state fades, is written to, and is read. Returns (y_BD, S)."""
    u, delta, write, read = (x.to(S.dtype) for x in (u_BD, delta_BD, write_BN, read_BN))
    keep, written = torch.exp(delta[..., None] * A_DN), (delta * u)[..., None] * write[:, None]
    S = S.mul_(keep).add_(written) if inplace else keep * S + written
    y = torch.einsum("bdn,bn->bd", S, read) + skip_D * u
    return y.to(u_BD.dtype), S


@packed
def recurrent(
    u_BTD, delta_BTD, write_BTN, read_BTN, *, A_DN, skip_D, S=None, lengths_B=None, impl="auto"
):
    """All tokens, left to right, through the diagonal scan. Returns (y_BTD, S)."""
    y, S = scans.diagonal(u_BTD, delta_BTD, A_DN, write_BTN, read_BTN, S, lengths_B=lengths_B, impl=impl)
    seen = skip_D * u_BTD.to(state_dtype(u_BTD.dtype))
    return real(y + seen, lengths_B).to(u_BTD.dtype), S


@packed
def parallel(u_BTD, delta_BTD, write_BTN, read_BTN, *, A_DN, skip_D, S=None, lengths_B=None):
    """All tokens at once, by an associative scan of log2 T rounds. Returns (y_BTD, S).

    Every round touches all of [B, T, D, N], which is what makes it slow on a CPU; `chunked` bounds the memory.
    """
    return _in_chunks(u_BTD, delta_BTD, write_BTN, read_BTN, A_DN, skip_D, S, lengths_B, u_BTD.shape[1])


@packed
def chunked(
    u_BTD, delta_BTD, write_BTN, read_BTN, *, A_DN, skip_D, S=None, lengths_B=None, chunk=64
):
    """An associative scan within each chunk of tokens, the state between chunks. Returns (y_BTD, S)."""
    return _in_chunks(u_BTD, delta_BTD, write_BTN, read_BTN, A_DN, skip_D, S, lengths_B, chunk)


def compose(keep_BTDN, written_BTDN):
    """What T updates h <- keep h + written do together, after each of them: all prefixes, in log2 T rounds.

    Two updates in a row are one: (a, b) then (a', b') is (a' a, a' b + b'). Each round joins every update with
    the one 1, 2, 4, ... places before it (Hillis and Steele 1986). Only products of decays, never a quotient of
    them: a decay that underflows to 0 is right, and one divided by another would be 0/0.
    """
    shift, T = 1, keep_BTDN.shape[1]
    while shift < T:
        a, b = keep_BTDN[:, shift:], written_BTDN[:, shift:]
        written_BTDN = torch.cat([written_BTDN[:, :shift], a * written_BTDN[:, :-shift] + b], 1)
        keep_BTDN = torch.cat([keep_BTDN[:, :shift], a * keep_BTDN[:, :-shift]], 1)
        shift *= 2
    return keep_BTDN, written_BTDN


def _in_chunks(u_BTD, delta_BTD, write_BTN, read_BTN, A_DN, skip_D, S, lengths_B, chunk):
    u, delta, write, read = (x.to(state_dtype(x.dtype)) for x in (u_BTD, delta_BTD, write_BTN, read_BTN))
    B, T, D = u.shape
    S = u.new_zeros(B, D, A_DN.shape[1]) if S is None else S
    delta = real(delta, lengths_B)  # a step of length 0 keeps all and writes nothing
    outputs = []
    for t in range(0, T, chunk):
        d, x = delta[:, t : t + chunk], (delta * u)[:, t : t + chunk]
        keep, written = compose(
            torch.exp(d[..., None] * A_DN), x[..., None] * write[:, t : t + chunk, None]
        )
        h = keep * S[:, None] + written
        outputs.append(torch.einsum("btdn,btn->btd", h, read[:, t : t + chunk]))
        S = h[:, -1]
    y = torch.cat(outputs, 1) + skip_D * u
    return real(y, lengths_B).to(u_BTD.dtype), S


@named
def operator(u_BTD, delta_BTD, write_BTN, read_BTN, *, A_DN, skip_D):
    """What these tokens do to any state: see `postx.scans.operators`."""
    z, wide = (u_BTD, delta_BTD, write_BTN, read_BTN), state_dtype(delta_BTD.dtype)
    keep_BDN = torch.exp(delta_BTD.sum(1, dtype=wide)[..., None] * A_DN)
    return operators.Fade(keep_BDN, recurrent(*z, A_DN=A_DN, skip_D=skip_D)[1])


def example(T, *, B=2, D=5, N=4, seed=0):
    """Valid float64 inputs: ((u_BTD, delta_BTD, write_BTN, read_BTN), dict(A_DN, skip_D))."""
    generator = torch.Generator().manual_seed(seed)
    shapes = (B, T, D), (B, T, D), (B, T, N), (B, T, N), (D,)
    u, delta, write, read, skip_D = (torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes)
    return (u, softplus(delta - 1), write, read), {"A_DN": decays(D, N).double(), "skip_D": skip_D}


def decays(D, N):
    """Mamba's first A: -1, -2, ..., -N in every channel (S4D-Real), [D, N]."""
    return -torch.arange(1.0, N + 1).repeat(D, 1)


def cost(T, *, B=1, D=5, N=4, item=4) -> Cost:
    """The bill of `recurrent`: 7 N + 2 FLOPs a token and channel, one of the 7 an exp; bounded state of D N."""
    return ssm_scan(T, B=B, D=D, N=N, item=item)


class Layer(nn.Module):
    """The Mamba block: Layer(x_BTD, S=None) -> (y_BTD, S). Gate, short convolution, selective scan, projection.

        delta = softplus(Linear(x) + bias)      out = Linear(y silu(z))

    `expand` D channels inside, delta through `rank` = D / 16 of them. delta starts log-uniform in [1e-3, 0.1]
    (by its bias), A at -1..-N, the skip at 1. norms=True puts an RMS norm with norm_eps on delta's channels, write
    and read (Jamba); "plain" one without weights (Falcon Mamba). inner: channels, where they are not expand D. bias:
    on the way in and back. heads > 1: so many equal parts of the channels, each with a delta, write and read of its
    own, seen from its own channels only (Zamba). S = (S_BDN, last inputs of the convolution).
    """

    OWN = ("delta",)

    def __init__(
        self, D, *, N=16, expand=2, inner=None, rank=None, conv_size=4, norms=False, norm_eps=1e-6, bias=False, heads=1
    ):  # fmt: skip
        super().__init__()
        inner, self.N, self.rank = inner or expand * D, N, rank or math.ceil(D / 16)
        if inner % heads:
            raise ValueError(f"heads: {heads} parts do not divide {inner} channels")
        self.heads = heads
        bound = conv_size**-0.5
        self.inward = nn.Linear(D, 2 * inner, bias=bias)
        self.taps_DW = nn.Parameter(torch.empty(inner, conv_size).uniform_(-bound, bound))
        self.taps_bias_D = nn.Parameter(torch.empty(inner).uniform_(-bound, bound))
        self.choose = nn.Linear(inner // heads, heads * (self.rank + 2 * N), bias=False)
        self.delta = nn.Linear(self.rank, inner)
        sizes = self.rank, N, N
        made = (nn.RMSNorm(n, eps=norm_eps, elementwise_affine=norms != "plain") for n in sizes)
        self.norms = nn.ModuleList(made) if norms else None
        nn.init.uniform_(self.delta.weight, -(self.rank**-0.5), self.rank**-0.5)
        first = torch.empty(inner).uniform_(math.log(1e-3), math.log(0.1)).exp()
        with torch.no_grad():
            self.delta.bias.copy_(first + torch.log(-torch.expm1(-first)))  # softplus of this is `first`
        self.log_rate_DN = Still(torch.log(-decays(inner, N)))
        self.skip_D = nn.Parameter(torch.ones(inner))
        self.out = nn.Linear(inner, D, bias=bias)

    def forward(self, x_BTD, S=None, *, form="auto", **side):
        check({"D": self.inward.in_features}, x_BTD=x_BTD)
        u, gate = self.inward(x_BTD).chunk(2, -1)
        S, S_conv = S or (None, None)
        u, S_conv = conv.short_convolution(u, self.taps_DW, self.taps_bias_D, S_conv, **side)
        u, A = silu(u), -torch.exp(self.log_rate_DN)
        run = partial(by_form(__name__, form, x_BTD), **side)
        if self.heads == 1:
            y, S = self._head(run, S, u, A, self.skip_D, self.choose, self.delta)
        else:
            y, S = self._each(run, S, u, A)
        return self.out(y * silu(gate)), (S, S_conv)

    def _head(self, run, S, u, A, skip, choose, delta):
        step, write, read = choose(u).split([self.rank, self.N, self.N], -1)
        if self.norms is not None:
            step, write, read = (n(x) for n, x in zip(self.norms, (step, write, read), strict=True))
        return run(u, softplus(delta(step)), write, read, S=S, A_DN=A, skip_D=skip)

    def _each(self, run, S, u, A):
        """Head after head: each has its rows of `choose`, and its channels of all else."""
        H, done = self.heads, []
        states = [None] * H if S is None else S.chunk(H, 1)
        rows = (x.chunk(H) for x in (A, self.skip_D, self.choose.weight, self.delta.weight, self.delta.bias))
        for S_h, u_h, A_h, skip, choose, delta, bias in zip(states, u.chunk(H, -1), *rows, strict=True):
            own = partial(linear, weight=choose), partial(linear, weight=delta, bias=bias)
            done.append(self._head(run, S_h, u_h, A_h, skip, *own))
        return tuple(torch.cat(parts, axis) for axis, parts in zip((-1, 1), zip(*done, strict=True), strict=True))
