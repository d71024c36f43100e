"""Gated DeltaNet: the table first fades as a whole, then the token corrects what is left under its key.

    S <- exp(g) S        S <- S + beta k (v - S' k)'        y = S' q / sqrt(K)

Yang, Kautz and Hatamizadeh 2024, "Gated Delta Networks" (arXiv 2412.06464), eq. 10. The decay comes first: with
S = 1, exp(g) = 1/2, beta = k = v = 1 the new state is 1; had it come after, 1/2. With g = 0 it is DeltaNet. The
caller normalises k, as the `Layer` here does. Value head j reads with key head j // (H / G).

There is no `parallel` form, for DeltaNet's reason: what a token erases depends on what all earlier ones erased.

| paper | here |
|---|---|
| q_t, k_t, v_t, beta_t | q_BTGK, k_BTGK, v_BTHV, beta_BTH |
| alpha_t | exp(g_BTH), g <= 0 |
| S_t [V, K] | S_BHKV, transposed |
"""

import math

import torch
from torch import nn

from postx import scans
from postx.cost import Cost, delta_recurrence
from postx.mixers import by_form, packed
from postx.mixers.deltanet import unit
from postx.parts import conv
from postx.scans import delta_chunked, operators
from postx.shapes import check_shared, empty, named, state_dtype

FAMILY, LETTER = "linear", "G"
STATE = "S_BHKV"
AUTO = {"triton": "recurrent"}  # one kernel


@named
def init(q_BGK, k_BGK, v_BHV, beta_BH, g_BH):
    """The empty table, S_BHKV: one a value head."""
    return empty(k_BGK, v_BHV)


@named
def step(S, q_BGK, k_BGK, v_BHV, beta_BH, g_BH, *, inplace=False):
    """One token: let the table fade, then move what is under k towards v, and read with q. Returns (y_BHV, S)."""
    q, k, v, beta, g = (x.to(S.dtype) for x in (q_BGK, k_BGK, v_BHV, beta_BH, g_BH))
    q, k = (x.repeat_interleave(v.shape[1] // x.shape[1], 1) for x in (q, k))
    keep = g.exp()[..., None, None]
    S = S.mul_(keep) if inplace else S * keep
    missing = beta[..., None] * (v - torch.einsum("bhk,bhkv->bhv", k, S))
    written = k[..., None] * missing[..., None, :]
    S = S.add_(written) if inplace else S + written
    return torch.einsum("bhk,bhkv->bhv", q * q.shape[-1] ** -0.5, S).to(v_BHV.dtype), S


@packed
def recurrent(q_BTGK, k_BTGK, v_BTHV, beta_BTH, g_BTH, *, S=None, lengths_B=None, impl="auto"):
    """All tokens, left to right. Returns (y_BTHV, S)."""
    terms = _terms(q_BTGK, k_BTGK, v_BTHV, beta_BTH, g_BTH)
    y, S = scans.delta(*terms, S, lengths_B=lengths_B, impl=impl)
    return y.to(v_BTHV.dtype), S


@packed
def chunked(q_BTGK, k_BTGK, v_BTHV, beta_BTH, g_BTH, *, S=None, lengths_B=None, chunk=64):
    """A triangular system within a chunk, the table between chunks: linear in T. Returns (y_BTHV, S)."""
    terms = _terms(q_BTGK, k_BTGK, v_BTHV, beta_BTH, g_BTH)
    y, S = delta_chunked.in_chunks(*terms, S, lengths_B=lengths_B, chunk=chunk)
    return y.to(v_BTHV.dtype), S


def _terms(q_BTGK, k_BTGK, v_BTHV, beta_BTH, g_BTH):
    """The arguments of `scans.delta` up to g. There k reads the state before it fades, so its beta is beta exp(g).

    q, k and v keep their dtype; beta and g are at least float32.
    """
    beta, g = (x.to(state_dtype(x.dtype)) for x in (beta_BTH, g_BTH))
    written = (v_BTHV * beta[..., None]).to(v_BTHV.dtype)
    return q_BTGK * q_BTGK.shape[-1] ** -0.5, k_BTGK, written, beta * g.exp(), g


@named
def operator(q_BTGK, k_BTGK, v_BTHV, beta_BTH, g_BTH):
    """What these tokens do to any state: see `postx.scans.operators`."""
    return operators.full(lambda v, S: recurrent(q_BTGK, k_BTGK, v, beta_BTH, g_BTH, S=S)[1], k_BTGK, v_BTHV)


def example(T, *, B=2, H=4, G=2, K=6, V=5, seed=0):
    """Valid float64 inputs, with keys of length 1, beta in (0, 1) and g < 0: ((q, k, v, beta, g), {})."""
    generator = torch.Generator().manual_seed(seed)
    shapes = ((B, T, G, K), (B, T, G, K), (B, T, H, V), (B, T, H), (B, T, H))
    q, k, v, beta, g = (torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes)
    return (q, nn.functional.normalize(k, dim=-1), v, beta.sigmoid(), -nn.functional.softplus(g)), {}


def cost(T, *, B=1, H=4, G=2, K=6, V=5, item=4):
    """7 K V + 2 V FLOPs a token and value head; bytes: q and k of G heads, v in and y out. The state is bounded."""
    check_shared("G", G, H)
    full = delta_recurrence(T, B=B, H=H, K=K, V=V, decay=True, item=item)
    return Cost(full.flops, B * T * (2 * G * K + 2 * H * V) * item, full.state_floats)


class Layer(nn.Module):
    """DeltaNet's layer with a decay a head, g = -exp(A) softplus(. + bias), and a gate on the normed output.

    Layer(x_BTD, S=None) -> (y_BTD, S). The bias starts so that exp(g) forgets at rates spread from 0.001 to 0.1,
    and exp(A) from 1 to 16, as in Mamba-2. negative_eigenvalues=True doubles beta to (0, 2). conv_size=4, as
    published, mixes each channel of q, k and v with its last 4 tokens before the SiLU; their inputs join the state.
    eps: in the norm of the output (Qwen3-Next has 1e-6).
    """

    def __init__(self, D, *, H=4, G=None, K=None, V=None, negative_eigenvalues=False, conv_size=0, eps=1e-5):
        super().__init__()
        G = G or max(1, H // 2)
        check_shared("G", G, H)
        self.H, self.G, self.top = H, G, 2.0 if negative_eigenvalues else 1.0
        K, V = K or max(1, D // H), V or max(1, D // H)
        self.q, self.k = nn.Linear(D, G * K, bias=False), nn.Linear(D, G * K, bias=False)
        self.v, self.gate = nn.Linear(D, H * V, bias=False), nn.Linear(D, H * V, bias=False)
        self.conv = conv.Mixed((G * K, G * K, H * V), conv_size)
        self.beta, self.rate = nn.Linear(D, H, bias=False), nn.Linear(D, H, bias=False)
        spread = torch.exp(torch.linspace(math.log(0.001), math.log(0.1), H))
        self.bias_H = nn.Parameter(spread + torch.log(-torch.expm1(-spread)))  # softplus(bias) = spread
        self.log_A_H = nn.Parameter(torch.log(torch.linspace(1, 16, H)))
        self.norm, self.out = nn.RMSNorm(V, eps=eps), nn.Linear(H * V, D, bias=False)

    def forward(self, x_BTD, S=None, *, form="auto", **side):
        S, S_conv = (S[:1], S[1:]) if S else (None, ())
        parts, S_conv = self.conv([p(x_BTD) for p in (self.q, self.k, self.v)], S_conv, **side)
        heads = self.G, self.G, self.H
        q, k, v = (nn.functional.silu(x).unflatten(-1, (n, -1)) for x, n in zip(parts, heads, strict=True))
        q, k = unit(q), unit(k)
        beta = self.top * self.beta(x_BTD).sigmoid()
        wide = state_dtype(x_BTD.dtype)  # a log-decay adds up over the text
        g = -self.log_A_H.to(wide).exp() * nn.functional.softplus(self.rate(x_BTD).to(wide) + self.bias_H)
        y, S = by_form(__name__, form, x_BTD)(q, k, v, beta, g, S=S[0] if S else None, **side)
        gate = nn.functional.silu(self.gate(x_BTD)).unflatten(-1, (self.H, -1))
        return self.out((self.norm(y) * gate).flatten(2)), (S, *S_conv)
