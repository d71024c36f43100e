"""RWKV-6: a table whose rows fade at a pace that the token chooses, read before it is written to.

    y = (S + diag(u) k v')' q        S <- diag(exp g) S + k v'        g = -exp(.), one for each key channel

Peng et al. 2024, "Eagle and Finch", sec. 4.2 (Finch). The token itself is seen through the bonus u only; no scale
on q'k. The paper calls the query receptance. The token shift, the low-rank decay and the norm are in `Layer`.

| paper | here |
|---|---|
| r, k, v | q_BTHK, k_BTHK, v_BTHV |
| w_t = exp(-exp(d_t)), u | exp(g_BTHK), u_HK |
| S [K, V] (the wkv state) | S_BHKV |
"""

import torch
from torch import nn
from torch.nn.functional import silu

from postx import scans
from postx.cost import Cost, decay_recurrence
from postx.mixers import Still, by_form, packed
from postx.parts.shift import token_shift
from postx.scans import operators
from postx.scans.decay_chunked import decay_chunked
from postx.shapes import check, empty, named, state_dtype

FAMILY, LETTER = "linear", "6"
STATE = "S_BHKV"
AUTO = {"triton": "recurrent"}  # one kernel


@named
def init(q_BHK, k_BHK, v_BHV, g_BHK, *, u_HK):
    """The empty table of each head, S_BHKV."""
    return empty(k_BHK, v_BHV)


@named
def step(S, q_BHK, k_BHK, v_BHV, g_BHK, *, u_HK, inplace=False):
    """One token: q reads the old table and the token itself times u; then rows fade, k v' is written.

    Returns (y_BHV, S).
    """
    q, k, v, g, u = (x.to(S.dtype) for x in (q_BHK, k_BHK, v_BHV, g_BHK, u_HK))
    written = k[..., None] * v[..., None, :]
    y = torch.einsum("bhk,bhkv->bhv", q, S + u[..., None] * written).to(v_BHV.dtype)
    keep = g.exp()[..., None]
    return y, S.mul_(keep).add_(written) if inplace else keep * S + written


@packed
def recurrent(q_BTHK, k_BTHK, v_BTHV, g_BTHK, *, u_HK, S=None, lengths_B=None, impl="auto"):
    """All tokens, left to right. Returns (y_BTHV, S)."""
    z = q_BTHK, k_BTHK, v_BTHV, g_BTHK
    return scans.decay(*z, S, read="before", u_HK=u_HK, lengths_B=lengths_B, impl=impl)


@packed
def parallel(q_BTHK, k_BTHK, v_BTHV, g_BTHK, *, u_HK, S=None, lengths_B=None):
    """All pairs at once, each key channel with its own decay: one chunk of T tokens. Returns (y_BTHV, S)."""
    z, T = (q_BTHK, k_BTHK, v_BTHV, g_BTHK), v_BTHV.shape[1]
    return decay_chunked(*z, S, read="before", u_HK=u_HK, lengths_B=lengths_B, chunk=T)


@packed
def chunked(q_BTHK, k_BTHK, v_BTHV, g_BTHK, *, u_HK, S=None, lengths_B=None, chunk=64):
    """Quadratic within a chunk of tokens, the table between chunks: linear in T. Returns (y_BTHV, S)."""
    z = q_BTHK, k_BTHK, v_BTHV, g_BTHK
    return decay_chunked(*z, S, read="before", u_HK=u_HK, lengths_B=lengths_B, chunk=chunk)


@named
def operator(q_BTHK, k_BTHK, v_BTHV, g_BTHK, *, u_HK):
    """What these tokens do to any state: see `postx.scans.operators`."""
    return operators.fade(g_BTHK, recurrent(q_BTHK, k_BTHK, v_BTHV, g_BTHK, u_HK=u_HK)[1])


def example(T, *, B=2, H=4, K=8, V=6, seed=0):
    """Valid float64 inputs: ((q_BTHK, k_BTHK, v_BTHV, g_BTHK), dict(u_HK))."""
    generator = torch.Generator().manual_seed(seed)
    shapes = ((B, T, H, K), (B, T, H, K), (B, T, H, V), (B, T, H, K), (H, K))
    *z, decay, u = (torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes)
    return (*z, -torch.exp(decay - 2)), {"u_HK": u}


def cost(T, *, B=1, H=4, K=8, V=6, item=4) -> Cost:
    """The bill of `recurrent`: 5 K V FLOPs a token and head, K exps, 3 K + 2 V for the bonus; bounded state.

    Bytes: q, k, v, g in and y out.
    """
    more = Cost(B * T * H * (4 * K + 2 * V), B * T * H * K * item)
    return decay_recurrence(T, B=B, H=H, K=K, V=V, item=item) + more


class Layer(nn.Module):
    """Finch's time mixing: Layer(x_BTD, S=None) -> (y_BTD, S), S = (table, last token).

    Each of q, k, v, decay and gate sees its own blend of the token and the one before it; the blend depends on
    the token through `rank` channels, and so does the decay, g = -exp(w + low rank). A group norm over each
    head's outputs (eps 64e-5, as in the published models), then a swish gate. Keys are D / 2 wide over all heads
    by default, values D; the published models have K = V = 64 and H = D / 64, and two ranks instead of one.
    """

    def __init__(self, D, *, H=4, K=None, V=None, rank=32):
        super().__init__()
        if D % (2 * H) and (K is None or V is None):
            raise ValueError(f"D: expected a multiple of 2 H = {2 * H} where K or V is not given, got {D}")
        self.H, K, V = H, K or D // (2 * H), V or D // H
        self.first_D, self.mix_5D = nn.Parameter(torch.full((D,), 0.5)), Still(torch.full((5, D), 0.5))
        self.mix_down = nn.Linear(D, 5 * rank, bias=False)
        self.mix_up_5RD = nn.Parameter(torch.empty(5, rank, D))
        nn.init.uniform_(self.mix_up_5RD, -0.01, 0.01)
        self.q, self.k = nn.Linear(D, H * K, bias=False), nn.Linear(D, H * K, bias=False)
        self.v, self.gate = nn.Linear(D, H * V, bias=False), nn.Linear(D, H * V, bias=False)
        self.decay = nn.Sequential(
            nn.Linear(D, rank, bias=False), nn.Tanh(), nn.Linear(rank, H * K, bias=False)
        )
        self.decay_HK = Still(torch.linspace(-6, 1, K).repeat(H, 1))
        self.u_HK = Still(torch.linspace(0, 1, K).repeat(H, 1))
        self.norm, self.out = nn.GroupNorm(H, H * V, eps=64e-5), nn.Linear(H * V, D, bias=False)

    def forward(self, x_BTD, S=None, *, form="auto", **side):
        check({"D": self.first_D.shape[0]}, x_BTD=x_BTD)
        previous, last_BD = token_shift(x_BTD, S[1] if S else None, **side)
        change = previous - x_BTD
        low = torch.tanh(self.mix_down(x_BTD + change * self.first_D)).unflatten(-1, (5, -1))
        blend = self.mix_5D + torch.einsum("btnr,nrd->btnd", low, self.mix_up_5RD)
        seen = (x_BTD[:, :, None] + change[:, :, None] * blend).unbind(2)
        projections = self.q, self.k, self.v, self.decay, self.gate
        q, k, v, d, gate = (project(x) for project, x in zip(projections, seen, strict=True))
        q, k, v, d = (x.unflatten(-1, (self.H, -1)) for x in (q, k, v, d))
        g = -torch.exp(self.decay_HK + d.to(state_dtype(d.dtype)))
        y, table = by_form(__name__, form, x_BTD)(q, k, v, g, u_HK=self.u_HK, S=S[0] if S else None, **side)
        y = self.norm(y.flatten(0, 1).flatten(1)).view(*gate.shape)
        return self.out(y * silu(gate)), (table, last_BD)
