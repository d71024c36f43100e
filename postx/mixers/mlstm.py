"""mLSTM of xLSTM: a fading table whose gates are exponentials, read as a weighted mean.

    C <- exp(g) C + exp(i) k v'        n <- exp(g) n + exp(i) k        y = C' q / max(|n' q|, 1)

Beck et al. 2024, "xLSTM: Extended Long Short-Term Memory" (arXiv 2405.04517), eqs. 19 to 27. k is scaled by K^-1/2. An
input gate exp(i) has no upper end, so a token can outweigh all before it, and overflow. C and n are therefore
stored divided by exp(m), with m <- max(g + m, i, 0), the paper's stabilizer (eq. 15) held at 0 from below: then both
factors are at most 1, y is the same whatever m is, and exp(-m), which takes the place of 1 in the denominator,
cannot overflow either. i = -inf writes nothing. The published code adds 1e-6 to the denominator; here nothing.

The normaliser n is a column of ones in v, as in linear attention, and m is a running maximum that a few vectorised
rounds find for all tokens; the rest is the decay recurrence with g + m_before - m <= 0 for its log-decay.

| paper | here |
|---|---|
| q_t, k_t, v_t | q_BTHK, k_BTHK, v_BTHV |
| i-tilde, log f | i_BTH, g_BTH <= 0 |
| C_t [V, K], n_t, m_t | C_BHKV transposed, n_BHK, m_BH |
"""

from typing import NamedTuple

import torch
from torch import nn
from torch.nn.functional import layer_norm, logsigmoid, silu

from postx import scans
from postx.cost import Cost, decay_recurrence
from postx.mixers import Still, by_form, packed
from postx.parts import conv
from postx.scans.decay_chunked import decay_chunked
from postx.shapes import check, empty, named, real, state_dtype, sum_dtype

FAMILY, LETTER = "linear", "X"
STATE = "C_BHKV", "n_BHK", "m_BH"
FOLLOW = "-"  # the block has its own gate and expansion
AUTO = {"triton": "recurrent"}  # one kernel, and a few rounds for the maximum


@named
def init(q_BHK, k_BHK, v_BHV, i_BH, g_BH):
    """Nothing stored: (C_BHKV, n_BHK, m_BH) = 0."""
    C = empty(k_BHK, v_BHV)
    return C, torch.zeros_like(k_BHK, dtype=C.dtype), torch.zeros_like(i_BH, dtype=C.dtype)


@named
def step(S, q_BHK, k_BHK, v_BHV, i_BH, g_BH, *, inplace=False):
    """One token: fade, write with weight exp(i), read. Returns (y_BHV, S)."""
    C, n, m = S
    q, k, v, i, g = (x.to(C.dtype) for x in (q_BHK, k_BHK, v_BHV, i_BH, g_BH))
    top = torch.maximum(g + m, i.clamp(min=0))
    keep, write = (g + m - top).exp(), (i - top).exp()
    k = k * (write * k.shape[-1] ** -0.5)[..., None]
    written = k[..., None] * v[..., None, :]
    if inplace:
        C.mul_(keep[..., None, None]).add_(written)
        n.mul_(keep[..., None]).add_(k)
        m.copy_(top)
    else:
        C, n, m = C * keep[..., None, None] + written, n * keep[..., None] + k, top
    y, total = torch.einsum("bhk,bhkv->bhv", q, C), (q * n).sum(-1)
    return (y / torch.maximum(total.abs(), (-m).exp())[..., None]).to(v_BHV.dtype), (C, n, m)


@packed
def recurrent(q_BTHK, k_BTHK, v_BTHV, i_BTH, g_BTH, *, S=None, lengths_B=None, impl="auto"):
    """All tokens, left to right, through the decay scan. Returns (y_BTHV, S)."""
    terms, m_BTH = _terms(q_BTHK, k_BTHK, v_BTHV, i_BTH, g_BTH, S, lengths_B)
    return _read(*scans.decay(*terms, lengths_B=lengths_B, impl=impl), m_BTH, v_BTHV)


@packed
def parallel(q_BTHK, k_BTHK, v_BTHV, i_BTH, g_BTH, *, S=None, lengths_B=None):
    """All pairs at once: one chunk of T tokens, quadratic in T. Returns (y_BTHV, S)."""
    return _in_chunks(q_BTHK, k_BTHK, v_BTHV, i_BTH, g_BTH, S, lengths_B, v_BTHV.shape[1])


@packed
def chunked(q_BTHK, k_BTHK, v_BTHV, i_BTH, g_BTH, *, S=None, lengths_B=None, chunk=64):
    """Quadratic within a chunk of tokens, the table between chunks: linear in T. Returns (y_BTHV, S)."""
    return _in_chunks(q_BTHK, k_BTHK, v_BTHV, i_BTH, g_BTH, S, lengths_B, chunk)


def _in_chunks(q_BTHK, k_BTHK, v_BTHV, i_BTH, g_BTH, S, lengths_B, chunk):
    terms, m_BTH = _terms(q_BTHK, k_BTHK, v_BTHV, i_BTH, g_BTH, S, lengths_B)
    return _read(*decay_chunked(*terms, lengths_B=lengths_B, chunk=chunk), m_BTH, v_BTHV)


def running_maximum(i_BTH, g_BTH, m_BH):
    """m_t = max(g_t + m_(t-1), i_t, 0) at every token, from m_BH before the first.

    Each round joins to a token what stands 1, 2, 4, ... tokens before it (Hillis and Steele 1986). Log-decays only
    ever add up over their own stretch: the maximum of i minus a running sum of g, the shorter way, loses the digits
    of i once that sum is long.
    """
    top, fade = i_BTH.clamp(min=0), g_BTH
    top = torch.cat([torch.maximum(top[:, :1], (fade[:, :1] + m_BH[:, None])), top[:, 1:]], 1)
    reach = 1
    while reach < top.shape[1]:
        joined = torch.maximum(top[:, reach:], fade[:, reach:] + top[:, :-reach])
        fade = torch.cat([fade[:, :reach], fade[:, reach:] + fade[:, :-reach]], 1)
        top, reach = torch.cat([top[:, :reach], joined], 1), 2 * reach
    return top


def _terms(q_BTHK, k_BTHK, v_BTHV, i_BTH, g_BTH, S, lengths_B):
    """The arguments of `scans.decay` (q, k, [v, 1], g, S), and the maximum at every token.

    q, k and v are in v's dtype, but for float16; the gates are at least float32.
    """
    kind, (i, g) = sum_dtype(v_BTHV.dtype), (x.to(state_dtype(x.dtype)) for x in (i_BTH, g_BTH))
    q, k, v = (x.to(kind) for x in (q_BTHK, k_BTHK, v_BTHV))
    C, n, m = init(*(x[:, 0] for x in (q, k, v, i, g))) if S is None else S
    # past a row's end nothing fades, and i = 0 cannot raise the maximum, which is at least 0
    m_BTH = running_maximum(real(i, lengths_B), real(g, lengths_B), m)
    before = torch.cat([m[:, None], m_BTH[:, :-1]], 1)
    k = (k * ((i - m_BTH).exp() * k.shape[-1] ** -0.5)[..., None]).to(kind)
    v = torch.cat([v, torch.ones_like(v[..., :1])], -1)
    return (q, k, v, g + before - m_BTH, torch.cat([C, n[..., None]], -1)), m_BTH


def _read(y, S, m_BTH, like):
    """Divide by the last column or exp(-m), whichever is larger, and take the state apart."""
    total = torch.maximum(y[..., -1:].abs(), (-m_BTH).exp()[..., None])
    return (y[..., :-1] / total).to(like.dtype), (S[..., :-1], S[..., -1], m_BTH[:, -1])


class Scaled(NamedTuple):
    """What tokens do to a state stored divided by exp(m): all of it fades by exp(A), b is added. See `operators`."""

    A: torch.Tensor
    b: tuple

    def __call__(self, S):
        m = torch.maximum(S[2] + self.A, self.b[2])
        old, new = (S[2] + self.A - m).exp()[..., None], (self.b[2] - m).exp()[..., None]
        n = old * S[1] + new * self.b[1]
        return old[..., None] * S[0] + new[..., None] * self.b[0], n, m

    def then(self, after):
        return Scaled(after.A + self.A, after(self.b))


@named
def operator(q_BTHK, k_BTHK, v_BTHV, i_BTH, g_BTH):
    """What these tokens do to any state: see `postx.scans.operators`."""
    S = recurrent(q_BTHK, k_BTHK, v_BTHV, i_BTH, g_BTH)[1]
    return Scaled(g_BTH.sum(1, dtype=S[2].dtype), S)


def example(T, *, B=2, H=3, K=6, V=5, seed=0):
    """Valid float64 inputs, input gates from exp(-6) to exp(6) and so: ((q, k, v, i, g), {})."""
    generator = torch.Generator().manual_seed(seed)
    shapes = ((B, T, H, K), (B, T, H, K), (B, T, H, V), (B, T, H), (B, T, H))
    q, k, v, i, f = (torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes)
    return (q, k, v, 2 * i, logsigmoid(f + 2)), {}


def cost(T, *, B=1, H=3, K=6, V=5, item=4) -> Cost:
    """5 K (V + 1) FLOPs a token and head for table and normaliser, K to weigh k, V divisions, 3 exps; bounded."""
    table = decay_recurrence(T, B=B, H=H, K=K, V=V + 1, item=item)
    flops, moved = B * T * H * (K + V + 3), B * T * H * (2 * K + 2 * V + 2) * item
    return Cost(table.flops + flops, moved, B * H * (K * (V + 1) + 1))


class Layer(nn.Module):
    """The mLSTM block of xLSTM: Layer(x_BTD, S=None) -> (y_BTD, S), S = (C, n, m, last inputs of the convolution).

        u, z = Linear(x)      c = silu(conv(u))      q, k from c, v from u      out = Linear((norm(y) + skip c) silu(z))

    `expand` D wide inside (2). Input and forget gate are linear in (q, k, v), one a head; their weights start at 0,
    the forget bias from 3 to 6 over the heads, the input bias at deviation 0.1. The norm is a layer norm of each
    head by itself, without bias. q, k and v are full matrices where the published code has blocks of four channels.
    """

    def __init__(self, D, *, H=4, expand=2, conv_size=4):
        super().__init__()
        inner = expand * D
        if inner % H:
            raise ValueError(f"H: expected a divisor of the inner width {inner}, got {H}")
        self.H = H
        self.up, self.out = nn.Linear(D, 2 * inner, bias=False), nn.Linear(inner, D, bias=False)
        self.q, self.k, self.v = (nn.Linear(inner, inner, bias=False) for _ in range(3))
        self.conv = conv.Mixed((inner,), conv_size)
        self.gates_HF = nn.Parameter(torch.zeros(2 * H, 3 * inner))
        self.gates_bias_H = Still(torch.cat([0.1 * torch.randn(H), torch.linspace(3, 6, H)]))
        self.skip_D, self.norm_D = Still(torch.ones(inner)), nn.Parameter(torch.ones(inner))

    def forward(self, x_BTD, S=None, *, form="auto", **side):
        check({"D": self.up.in_features}, x_BTD=x_BTD)
        S, S_conv = (S[:3], S[3:]) if S else (None, ())
        u, z = self.up(x_BTD).chunk(2, -1)
        (c,), S_conv = self.conv([u], S_conv, **side)
        c = silu(c)
        q, k, v = self.q(c), self.k(c), self.v(u)
        i, f = nn.functional.linear(torch.cat([q, k, v], -1), self.gates_HF, self.gates_bias_H).chunk(2, -1)
        q, k, v = (x.unflatten(-1, (self.H, -1)) for x in (q, k, v))
        y, S = by_form(__name__, form, x_BTD)(q, k, v, i, logsigmoid(f.to(state_dtype(f.dtype))), S=S, **side)
        y = layer_norm(y, y.shape[-1:], eps=1e-5).flatten(2) * self.norm_D
        return self.out((y + self.skip_D * c) * silu(z)), (*S, *S_conv)
