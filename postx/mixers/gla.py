"""Gated linear attention: a table whose rows fade each at its own pace, and the token decides how fast.

    S <- diag(exp g) S + k v'        y = K^-1/2 S' q        g <= 0, one for each key channel

Yang et al. 2024, "Gated Linear Attention Transformers with Hardware-Efficient Training", sec. 4.
Read after the update.

| paper | here |
|---|---|
| Q, K, V | q_BTHK, k_BTHK, v_BTHV |
| alpha_t = sigmoid(.)^(1/16) | exp(g_BTHK), g = logsigmoid(.) / 16 |
| S_t | S_BHKV |
"""

import torch
from torch import nn
from torch.nn.functional import logsigmoid, silu

from postx import scans
from postx.cost import Cost, decay_recurrence
from postx.mixers import by_form, packed
from postx.parts import conv
from postx.scans import operators
from postx.scans.decay_chunked import decay_chunked
from postx.shapes import check, empty, named, state_dtype

FAMILY, LETTER = "linear", "W"
STATE = "S_BHKV"
AUTO = {"triton": "recurrent"}  # one kernel
TEMPERATURE = 16  # a gate of 1/2 then keeps 0.958 of the table, not half of it


@named
def init(q_BHK, k_BHK, v_BHV, g_BHK):
    """The empty table of each head, S_BHKV."""
    return empty(k_BHK, v_BHV)


@named
def step(S, q_BHK, k_BHK, v_BHV, g_BHK, *, inplace=False):
    """One token: row i of the table fades by exp(g_i), k v' is written, q reads. Returns (y_BHV, S)."""
    q, k, v, g = (x.to(S.dtype) for x in (q_BHK, k_BHK, v_BHV, g_BHK))
    keep, written = g.exp()[..., None], k[..., None] * v[..., None, :]
    S = S.mul_(keep).add_(written) if inplace else keep * S + written
    return torch.einsum("bhk,bhkv->bhv", q * q.shape[-1] ** -0.5, S).to(v_BHV.dtype), S


@packed
def recurrent(q_BTHK, k_BTHK, v_BTHV, g_BTHK, *, S=None, lengths_B=None, impl="auto"):
    """All tokens, left to right. Returns (y_BTHV, S)."""
    return scans.decay(_scaled(q_BTHK), k_BTHK, v_BTHV, g_BTHK, S, lengths_B=lengths_B, impl=impl)


@packed
def parallel(q_BTHK, k_BTHK, v_BTHV, g_BTHK, *, S=None, lengths_B=None):
    """All pairs at once, each key channel with its own decay: one chunk of T tokens. Returns (y_BTHV, S)."""
    T = v_BTHV.shape[1]
    return decay_chunked(_scaled(q_BTHK), k_BTHK, v_BTHV, g_BTHK, S, lengths_B=lengths_B, chunk=T)


@packed
def chunked(q_BTHK, k_BTHK, v_BTHV, g_BTHK, *, S=None, lengths_B=None, chunk=64):
    """Quadratic within a chunk of tokens, the table between chunks: linear in T. Returns (y_BTHV, S)."""
    return decay_chunked(_scaled(q_BTHK), k_BTHK, v_BTHV, g_BTHK, S, lengths_B=lengths_B, chunk=chunk)


def log_decay(x):
    """g = logsigmoid(x) / 16, the log of sigmoid(x)^(1/16), in at least float32."""
    return logsigmoid(x.to(state_dtype(x.dtype))) / TEMPERATURE


def _scaled(q):
    return q * q.shape[-1] ** -0.5


@named
def operator(q_BTHK, k_BTHK, v_BTHV, g_BTHK):
    """What these tokens do to any state: see `postx.scans.operators`."""
    return operators.fade(g_BTHK, recurrent(q_BTHK, k_BTHK, v_BTHV, g_BTHK)[1])


def example(T, *, B=2, H=4, K=8, V=6, seed=0):
    """Valid float64 inputs: ((q_BTHK, k_BTHK, v_BTHV, g_BTHK), {})."""
    generator = torch.Generator().manual_seed(seed)
    shapes = ((B, T, H, K), (B, T, H, K), (B, T, H, V), (B, T, H, K))
    *z, gate = (torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes)
    return (*z, log_decay(gate)), {}


def cost(T, *, B=1, H=4, K=8, V=6, item=4) -> Cost:
    """The bill of `recurrent`: 5 K V FLOPs and K exps a token and head; q, k, v, g in, y out; bounded state."""
    decays = Cost(B * T * H * K, B * T * H * K * item)
    return decay_recurrence(T, B=B, H=H, K=K, V=V, item=item) + decays


class Layer(nn.Module):
    """Gated linear attention between projections: Layer(x_BTD, S=None) -> (y_BTD, S).

    Keys are D / 2 wide over all heads, values D; the decay comes through `rank` channels; an RMS norm over each
    head's outputs, with one weight for all heads; a swish gate. conv_size=4 mixes each channel of
    q, k and v with its last 4 tokens; their inputs then join the state.
    """

    def __init__(self, D, *, H=4, K=None, V=None, rank=16, conv_size=0):
        super().__init__()
        if D % (2 * H) and (K is None or V is None):
            raise ValueError(f"D: expected a multiple of 2 H = {2 * H} where K or V is not given, got {D}")
        self.H, K, V = H, K or D // (2 * H), V or D // H
        self.q, self.k = nn.Linear(D, H * K, bias=False), nn.Linear(D, H * K, bias=False)
        self.v, self.gate = nn.Linear(D, H * V, bias=False), nn.Linear(D, H * V, bias=False)
        self.conv = conv.Mixed((H * K, H * K, H * V), conv_size)
        self.decay = nn.Sequential(nn.Linear(D, rank, bias=False), nn.Linear(rank, H * K))
        self.norm, self.out = nn.RMSNorm(V, eps=1e-5), nn.Linear(H * V, D, bias=False)

    def forward(self, x_BTD, S=None, *, form="auto", **side):
        check({"D": self.q.in_features}, x_BTD=x_BTD)
        S, S_conv = (S[:1], S[1:]) if S else (None, ())
        parts, S_conv = self.conv([p(x_BTD) for p in (self.q, self.k, self.v)], S_conv, **side)
        q, k, v, g = (x.unflatten(-1, (self.H, -1)) for x in (*parts, self.decay(x_BTD)))
        y, S = by_form(__name__, form, x_BTD)(q, k, v, log_decay(g), S=S[0] if S else None, **side)
        return self.out(self.norm(y).flatten(2) * silu(self.gate(x_BTD))), (S, *S_conv)
