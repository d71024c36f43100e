"""DeltaNet: a table of associations in which writing to a key first takes out what is stored under it.

    S <- S + beta k (v - S' k)'        y = S' q / sqrt(K)

Schlag et al. 2021, "Linear Transformers Are Secretly Fast Weight Programmers", eqs. 23 to 26; in parallel over a
chunk: Yang et al. 2024 (arXiv 2406.06484). The table takes a gradient step of size beta on |v - S'k|^2 / 2. With
|k| = 1 the token's matrix I - beta k k' has the eigenvalue 1 - beta: beta = 1 rewrites the key, beta = 2 reflects
it, outside of (0, 2) it grows. The caller normalises k, as the `Layer` here does; the mixer takes any k.

There is no `parallel` form: what a token erases depends on what all earlier ones erased, so there is no mask that
weighs pairs of tokens by themselves. All at once means to solve one T x T triangular system: that is `chunked` with
chunk = T, cubic in T.

| paper | here |
|---|---|
| q_t, k_t, v_t, beta_t | q_BTHK, k_BTHK, v_BTHV, beta_BTH |
| S_t [V, K] | S_BHKV, transposed |
"""

import torch
from torch import nn

from postx import scans
from postx.cost import delta_recurrence
from postx.mixers import by_form, packed
from postx.parts import conv
from postx.scans import delta_chunked, operators
from postx.shapes import empty, named, state_dtype

FAMILY, LETTER = "linear", "D"
STATE = "S_BHKV"
AUTO = {"triton": "recurrent"}  # one kernel


@named
def init(q_BHK, k_BHK, v_BHV, beta_BH):
    """The empty table, S_BHKV."""
    return empty(k_BHK, v_BHV)


@named
def step(S, q_BHK, k_BHK, v_BHV, beta_BH, *, inplace=False):
    """One token: look up k, move what is there towards v by beta, read with q. Returns (y_BHV, S)."""
    q, k, v, beta = (x.to(S.dtype) for x in (q_BHK, k_BHK, v_BHV, beta_BH))
    missing = beta[..., None] * (v - torch.einsum("bhk,bhkv->bhv", k, S))
    written = k[..., None] * missing[..., None, :]
    S = S.add_(written) if inplace else S + written
    return torch.einsum("bhk,bhkv->bhv", q * q.shape[-1] ** -0.5, S).to(v_BHV.dtype), S


@packed
def recurrent(q_BTHK, k_BTHK, v_BTHV, beta_BTH, *, S=None, lengths_B=None, impl="auto"):
    """All tokens, left to right. Returns (y_BTHV, S)."""
    y, S = scans.delta(*_terms(q_BTHK, k_BTHK, v_BTHV, beta_BTH), None, S, lengths_B=lengths_B, impl=impl)
    return y.to(v_BTHV.dtype), S


@packed
def chunked(q_BTHK, k_BTHK, v_BTHV, beta_BTH, *, S=None, lengths_B=None, chunk=64):
    """A triangular system within a chunk, the table between chunks: linear in T. Returns (y_BTHV, S)."""
    y, S = delta_chunked.in_chunks(*_terms(q_BTHK, k_BTHK, v_BTHV, beta_BTH), None, S, lengths_B=lengths_B, chunk=chunk)
    return y.to(v_BTHV.dtype), S


def _terms(q_BTHK, k_BTHK, v_BTHV, beta_BTH):
    """The arguments of `scans.delta` up to beta, in their own dtype: q scaled, and v as far as it is written."""
    written = (v_BTHV * beta_BTH[..., None]).to(v_BTHV.dtype)
    return q_BTHK * q_BTHK.shape[-1] ** -0.5, k_BTHK, written, beta_BTH


@named
def operator(q_BTHK, k_BTHK, v_BTHV, beta_BTH):
    """What these tokens do to any state: see `postx.scans.operators`."""
    return operators.full(lambda v, S: recurrent(q_BTHK, k_BTHK, v, beta_BTH, S=S)[1], k_BTHK, v_BTHV)


def example(T, *, B=2, H=2, K=6, V=5, seed=0):
    """Valid float64 inputs, with keys of length 1 and beta in (0, 2): ((q, k, v, beta), {})."""
    generator = torch.Generator().manual_seed(seed)
    shapes = ((B, T, H, K), (B, T, H, K), (B, T, H, V), (B, T, H))
    q, k, v, beta = (torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes)
    return (q, nn.functional.normalize(k, dim=-1), v, 2 * beta.sigmoid()), {}


def cost(T, *, B=1, H=2, K=6, V=5, item=4):
    """6 K V + 2 V FLOPs a token and head; bytes: q, k, v in and y out. The state is bounded."""
    return delta_recurrence(T, B=B, H=H, K=K, V=V, item=item)


def unit(x):
    """x of length 1, as published: x / sqrt(|x|^2 + 1e-6), so that a key near 0 stays near 0. In x's dtype."""
    wide = x.to(state_dtype(x.dtype))
    return (wide * (wide.square().sum(-1, keepdim=True) + 1e-6).rsqrt()).to(x.dtype)


class Layer(nn.Module):
    """Projections, SiLU, keys and queries of length 1, a norm a head: Layer(x_BTD, S=None) -> (y_BTD, S).

    negative_eigenvalues=True doubles beta to (0, 2), so that a token can reflect what is stored under its key
    (Grazzi et al. 2024, arXiv 2411.12537). conv_size=4, as published, mixes each channel of q, k and v with its last
    4 tokens before the SiLU; their last inputs then join the state.
    """

    def __init__(self, D, *, H=2, K=None, V=None, negative_eigenvalues=False, conv_size=0):
        super().__init__()
        self.H, self.top = H, 2.0 if negative_eigenvalues else 1.0
        K, V = K or D // H, V or D // H
        self.q, self.k = nn.Linear(D, H * K, bias=False), nn.Linear(D, H * K, bias=False)
        self.v, self.beta = nn.Linear(D, H * V, bias=False), nn.Linear(D, H, bias=False)
        self.conv = conv.Mixed((H * K, H * K, H * V), conv_size)
        self.norm, self.out = nn.RMSNorm(V, eps=1e-5), nn.Linear(H * V, D, bias=False)

    def forward(self, x_BTD, S=None, *, form="auto", **side):
        S, S_conv = (S[:1], S[1:]) if S else (None, ())
        parts, S_conv = self.conv([p(x_BTD) for p in (self.q, self.k, self.v)], S_conv, **side)
        q, k, v = (nn.functional.silu(x).unflatten(-1, (self.H, -1)) for x in parts)
        q, k = unit(q), unit(k)
        beta = self.top * self.beta(x_BTD).sigmoid()
        y, S = by_form(__name__, form, x_BTD)(q, k, v, beta, S=S[0] if S else None, **side)
        return self.out(self.norm(y).flatten(2)), (S, *S_conv)
