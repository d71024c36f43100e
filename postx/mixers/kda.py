"""Kimi Delta Attention: Gated DeltaNet in which each key channel of the table fades at its own pace.

    S <- diag(exp g) S        S <- S + beta k (v - S' k)'        y = S' q / sqrt(K)

Kimi Team 2025, "Kimi Linear" (arXiv 2510.26692), eq. 1. The decay comes first, as in Gated DeltaNet, and the two are
the same where all channels of a head share one g. The caller normalises q and k, as the `Layer` here does. Value
head j reads with key head j // (H / G).

There is no `parallel` form, for DeltaNet's reason: what a token erases depends on what all earlier ones erased.
`chunked` holds a table C x C x K, for each pair of tokens and key, so its chunk is small, as RWKV-7's is.

| paper | here |
|---|---|
| q_t, k_t, v_t, beta_t | q_BTGK, k_BTGK, v_BTHV, beta_BTH |
| alpha_t | exp(g_BTHK), g <= 0 |
| S_t [K, V] | S_BHKV |
"""

import torch
from torch import nn
from torch.nn.functional import normalize, silu, softplus

from postx import scans
from postx.cost import Cost, delta_recurrence
from postx.mixers import Still, by_form, packed
from postx.mixers.deltanet import unit
from postx.parts import conv
from postx.scans import delta_chunked, operators
from postx.shapes import check, check_shared, empty, named, state_dtype

FAMILY = "linear"
STATE = "S_BHKV"
AUTO = {"triton": "recurrent"}  # one kernel


@named
def init(q_BGK, k_BGK, v_BHV, beta_BH, g_BHK):
    """The empty table, S_BHKV: one a value head."""
    return empty(k_BGK, v_BHV)


@named
def step(S, q_BGK, k_BGK, v_BHV, beta_BH, g_BHK, *, inplace=False):
    """One token: each row of the table fades, what is under k moves towards v, q reads. Returns (y_BHV, S)."""
    q, k, v, beta, g = (x.to(S.dtype) for x in (q_BGK, k_BGK, v_BHV, beta_BH, g_BHK))
    q, k = (x.repeat_interleave(v.shape[1] // x.shape[1], 1) for x in (q, k))
    keep = g.exp()[..., None]
    S = S.mul_(keep) if inplace else S * keep
    missing = beta[..., None] * (v - torch.einsum("bhk,bhkv->bhv", k, S))
    written = k[..., None] * missing[..., None, :]
    S = S.add_(written) if inplace else S + written
    return torch.einsum("bhk,bhkv->bhv", q * q.shape[-1] ** -0.5, S).to(v_BHV.dtype), S


@packed
def recurrent(q_BTGK, k_BTGK, v_BTHV, beta_BTH, g_BTHK, *, S=None, lengths_B=None, impl="auto"):
    """All tokens, left to right. Returns (y_BTHV, S)."""
    terms, read = _terms(q_BTGK, k_BTGK, v_BTHV, beta_BTH, g_BTHK)
    y, S = scans.delta(*terms, S, c_BTHK=read, lengths_B=lengths_B, impl=impl)
    return y.to(v_BTHV.dtype), S


@packed
def chunked(q_BTGK, k_BTGK, v_BTHV, beta_BTH, g_BTHK, *, S=None, lengths_B=None, chunk=16):
    """A triangular system within a chunk, the table between chunks: linear in T. Returns (y_BTHV, S)."""
    terms, read = _terms(q_BTGK, k_BTGK, v_BTHV, beta_BTH, g_BTHK)
    y, S = delta_chunked.in_chunks(*terms, S, c_BTHK=read, lengths_B=lengths_B, chunk=chunk)
    return y.to(v_BTHV.dtype), S


def _terms(q_BTGK, k_BTGK, v_BTHV, beta_BTH, g_BTHK):
    """The arguments of `scans.delta` up to g, and its c: the key that reads the state before it fades, exp(g) k.

    beta goes into the key that writes and takes out. So v is as it came, and keys keep their dtype.
    """
    beta, g = (x.to(state_dtype(x.dtype)) for x in (beta_BTH, g_BTHK))
    k = k_BTGK.repeat_interleave(v_BTHV.shape[2] // k_BTGK.shape[2], 2)
    written, read = ((k * x).to(k.dtype) for x in (beta[..., None], g.exp()))
    return (q_BTGK * q_BTGK.shape[-1] ** -0.5, written, v_BTHV, None, g), read


@named
def operator(q_BTGK, k_BTGK, v_BTHV, beta_BTH, g_BTHK):
    """What these tokens do to any state: see `postx.scans.operators`."""
    return operators.full(lambda v, S: recurrent(q_BTGK, k_BTGK, v, beta_BTH, g_BTHK, S=S)[1], k_BTGK, v_BTHV)


def example(T, *, B=2, H=4, G=2, K=6, V=5, seed=0):
    """Valid float64 inputs, with keys of length 1, beta in (0, 1) and g < 0: ((q, k, v, beta, g), {})."""
    generator = torch.Generator().manual_seed(seed)
    shapes = ((B, T, G, K), (B, T, G, K), (B, T, H, V), (B, T, H), (B, T, H, K))
    q, k, v, beta, g = (torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes)
    return (q, normalize(k, dim=-1), v, beta.sigmoid(), -softplus(g)), {}


def cost(T, *, B=1, H=4, G=2, K=6, V=5, item=4):
    """7 K V + 2 V + K FLOPs a token and value head; bytes: q and k of G heads, v and g in, y out. Bounded state."""
    check_shared("G", G, H)
    full = delta_recurrence(T, B=B, H=H, K=K, V=V, decay=True, item=item)
    return Cost(full.flops + B * T * H * K, B * T * (2 * G * K + H * (2 * V + K)) * item, full.state_floats)


class Layer(nn.Module):
    """Kimi Linear's layer: Layer(x_BTD, S=None) -> (y_BTD, S), S = (table, last inputs of the convolution).

        g = -exp(A) softplus(f(x) + bias)      beta = sigmoid(b(x))      out = Linear(RMSNorm(y) sigmoid(gate(x)))

    q, k and v pass a short convolution and a SiLU; q and k are made of length 1. f and gate pass through `rank`
    channels (None: V, as published). exp(A) starts uniform in [1, 16], one a head, as published; the bias, one a
    channel, so that channels forget at rates spread from 0.001 to 0.1 (published code starts it at 0).
    negative_eigenvalues=True doubles beta to (0, 2). The attention layers beside it need no positions.
    """

    def __init__(self, D, *, H=4, G=None, K=None, V=None, rank=None, negative_eigenvalues=False, conv_size=4):
        super().__init__()
        G = G or H
        check_shared("G", G, H)
        self.H, self.G, self.top = H, G, 2.0 if negative_eigenvalues else 1.0
        K, V = K or max(1, D // H), V or max(1, D // H)
        rank = rank or V
        self.q, self.k = nn.Linear(D, G * K, bias=False), nn.Linear(D, G * K, bias=False)
        self.v, self.beta = nn.Linear(D, H * V, bias=False), nn.Linear(D, H, bias=False)
        self.conv = conv.Mixed((G * K, G * K, H * V), conv_size)
        self.decay = nn.Sequential(nn.Linear(D, rank, bias=False), nn.Linear(rank, H * K, bias=False))
        self.gate = nn.Sequential(nn.Linear(D, rank, bias=False), nn.Linear(rank, H * V))
        spread = torch.logspace(-3, -1, H * K).view(H, K)
        self.bias_HK = Still(spread + torch.log(-torch.expm1(-spread)))  # softplus(bias) = spread
        self.log_A_H = Still(torch.empty(H).uniform_(1, 16).log())
        self.norm, self.out = nn.RMSNorm(V, eps=1e-5), nn.Linear(H * V, D, bias=False)

    def forward(self, x_BTD, S=None, *, form="auto", **side):
        check({"D": self.q.in_features}, x_BTD=x_BTD)
        S, S_conv = (S[:1], S[1:]) if S else (None, ())
        parts, S_conv = self.conv([p(x_BTD) for p in (self.q, self.k, self.v)], S_conv, **side)
        heads = self.G, self.G, self.H
        q, k, v = (silu(x).unflatten(-1, (n, -1)) for x, n in zip(parts, heads, strict=True))
        q, k = unit(q), unit(k)
        wide = state_dtype(x_BTD.dtype)  # a log-decay adds up over the text
        rate = softplus(self.decay(x_BTD).to(wide).unflatten(-1, (self.H, -1)) + self.bias_HK)
        g = -self.log_A_H.to(wide).exp()[:, None] * rate
        beta = self.top * self.beta(x_BTD).sigmoid()
        y, S = by_form(__name__, form, x_BTD)(q, k, v, beta, g, S=S[0] if S else None, **side)
        gate = self.gate(x_BTD).sigmoid().unflatten(-1, (self.H, -1))
        return self.out((self.norm(y) * gate).flatten(2)), (S, *S_conv)
