"""Linear attention: replace the softmax by a feature map, and the past becomes one table of fixed size.

    S <- S + phi(k) [v, 1]'        y = (phi(q)' S)_v / (phi(q)' S)_1        phi(x) = elu(x) + 1

Katharopoulos et al. 2020, "Transformers are RNNs", eqs. 7 to 20: no scale on q'k. The normaliser is a column of
ones beside v, so the state is S_BHKV with V + 1 columns. Where the denominator is exactly 0 the output is 0; no
epsilon is added anywhere.

| paper | here |
|---|---|
| phi(Q), phi(K), V | phi(q_BTHK), phi(k_BTGK), v_BTGV |
| S_i [K, V], Z_i [K] | S_BHKV[..., :-1], S_BHKV[..., -1] |
"""

import torch
from torch import nn

from postx import scans
from postx.cost import Cost
from postx.mixers import by_form, packed
from postx.parts import conv
from postx.scans import operators
from postx.scans.decay_chunked import decay_chunked
from postx.shapes import check_shared, empty, named, state_dtype, sum_dtype

FAMILY, LETTER = "linear", "N"
STATE = "S_BGKV+1"
AUTO = {"triton": "recurrent"}  # one kernel


def phi(x):
    """elu(x) + 1, as x + 1 above zero and exp(x) below: `elu(x) + 1` itself is 0 in float32 from x = -18 on.

    In at least float32.
    """
    x = x.to(state_dtype(x.dtype))
    return torch.relu(x) + torch.exp(x.clamp(max=0))  # one of the two stands still; `where` is slower


@named
def init(q_BHK, k_BGK, v_BGV):
    """The empty table, S_BHKV with one table a key-value head (H = G here) and V + 1 columns."""
    return empty(k_BGK, _with_ones(v_BGV))


@named
def step(S, q_BHK, k_BGK, v_BGV, *, inplace=False):
    """One token: write phi(k) [v, 1]' into the table, read it with phi(q). Returns (y_BHV, S)."""
    written = phi(k_BGK)[..., None] * _with_ones(v_BGV.to(S.dtype))[..., None, :]
    S = S.add_(written) if inplace else S + written
    q_BGHK = phi(q_BHK).unflatten(1, (k_BGK.shape[1], -1))
    return _normalise(torch.einsum("bghk,bgkv->bghv", q_BGHK, S).flatten(1, 2), v_BGV), S


@packed
def recurrent(q_BTHK, k_BTGK, v_BTGV, *, S=None, lengths_B=None, impl="auto"):
    """All tokens, left to right. Returns (y_BTHV, S)."""
    G = k_BTGK.shape[2]
    # Readers that share a table read it in turns: one scan for each reader of a group, all on the same writes.
    kind = sum_dtype(v_BTGV.dtype)
    readers = phi(q_BTHK).to(kind).unflatten(2, (G, -1)).unbind(3)
    k, v1 = phi(k_BTGK).to(kind), _with_ones(v_BTGV.to(kind))
    results = [scans.decay(q, k, v1, None, S, lengths_B=lengths_B, impl=impl) for q in readers]
    y = torch.stack([y for y, _ in results], 3).flatten(2, 3)
    return _normalise(y, v_BTGV), results[0][1]


@packed
def parallel(q_BTHK, k_BTGK, v_BTGV, *, S=None, lengths_B=None):
    """All pairs at once, as attention without softmax: quadratic in T. Returns (y_BTHV, S)."""
    return _in_chunks(q_BTHK, k_BTGK, v_BTGV, S, lengths_B, q_BTHK.shape[1])


@packed
def chunked(q_BTHK, k_BTGK, v_BTGV, *, S=None, lengths_B=None, chunk=64):
    """Quadratic within a chunk of tokens, the table between chunks: linear in T. Returns (y_BTHV, S)."""
    return _in_chunks(q_BTHK, k_BTGK, v_BTGV, S, lengths_B, chunk)


def _in_chunks(q_BTHK, k_BTGK, v_BTGV, S, lengths_B, chunk):
    z = phi(q_BTHK), phi(k_BTGK), _with_ones(v_BTGV.to(state_dtype(v_BTGV.dtype)))
    y, S = decay_chunked(*z, None, S, lengths_B=lengths_B, chunk=chunk)
    return _normalise(y, v_BTGV), S


def _with_ones(v):
    """v with a column of ones, which sums up the weights."""
    return torch.cat([v, torch.ones_like(v[..., :1])], -1)


def _normalise(y, like):
    """Divide by the last column; 0 where that is 0 (every weight underflowed, or nothing was written)."""
    total = y[..., -1:]
    empty = total == 0
    return torch.where(empty, torch.zeros_like(total), y[..., :-1] / total.masked_fill(empty, 1)).to(
        like.dtype
    )


@named
def operator(q_BTHK, k_BTGK, v_BTGV):
    """What these tokens do to any state: see `postx.scans.operators`."""
    S = recurrent(q_BTHK, k_BTGK, v_BTGV)[1]
    return operators.Fade(torch.ones_like(S), S)


def example(T, *, B=2, H=4, G=2, K=8, V=6, seed=0):
    """Valid float64 inputs: ((q_BTHK, k_BTGK, v_BTGV), {})."""
    generator = torch.Generator().manual_seed(seed)
    shapes = ((B, T, H, K), (B, T, G, K), (B, T, G, V))
    return tuple(torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes), {}


def cost(T, *, B=1, H=4, G=None, K=64, V=64, item=4) -> Cost:
    """Writes into G tables and reads by H heads, 2 K (V + 1) FLOPs each a token, and V divisions a head.

    Bytes: q, k, v in and y out; the tables stay on chip. The state is bounded.
    """
    G = G or H
    check_shared("G", G, H)
    flops = 2 * K * (V + 1) * (G + H) + H * V
    return Cost(B * T * flops, B * T * (H + G) * (K + V) * item, B * G * K * (V + 1))


class Layer(nn.Module):
    """Projections around the mixer: Layer(x_BTD, S=None) -> (y_BTD, S).

    conv_size=4 mixes each channel of q, k and v with its last 4 tokens first; their inputs then join the state.
    """

    def __init__(self, D, *, H=4, G=None, K=None, V=None, conv_size=0):
        super().__init__()
        self.H, self.G = H, H if G is None else G
        K, V = K or D // H, V or D // H
        self.q, self.k = nn.Linear(D, H * K, bias=False), nn.Linear(D, self.G * K, bias=False)
        self.v, self.out = nn.Linear(D, self.G * V, bias=False), nn.Linear(H * V, D, bias=False)
        self.conv = conv.Mixed((H * K, self.G * K, self.G * V), conv_size)

    def forward(self, x_BTD, S=None, *, form="auto", **side):
        S, S_conv = (S[:1], S[1:]) if S else (None, ())
        parts, S_conv = self.conv([p(x_BTD) for p in (self.q, self.k, self.v)], S_conv, **side)
        heads = self.H, self.G, self.G
        q, k, v = (x.unflatten(-1, (n, -1)) for x, n in zip(parts, heads, strict=True))
        y, S = by_form(__name__, form, x_BTD)(q, k, v, S=S[0] if S else None, **side)
        return self.out(y.flatten(2)), (S, *S_conv)
