"""Retention: linear attention without a feature map, whose table fades by one fixed factor for each head.

    S <- gamma S + k v'        y = K^-1/2 S' q        gamma_h = 1 - 2^(-5-h)

Sun et al. 2023, "Retentive Network", eqs. 5 to 8. Read after the update, so a token sees itself with weight 1.
Left to the caller: the rotation of q and k, and what follows the heads (`Layer` has both). The paper's code
divides rows of the mask, and scales the state, by running sums; the group norm that follows undoes any factor of
a row (up to its eps), so they are left out here.

| paper | here |
|---|---|
| Q, K, V [.., d] | q_BTHK, k_BTHK, v_BTHV |
| gamma, D_nm = gamma^(n-m) | exp(g_H), `decay_mask` |
| S_n | S_BHKV |
"""

import torch
from torch import nn

from postx import scans
from postx.cost import Cost, decay_recurrence
from postx.mixers import by_form, packed
from postx.parts import conv
from postx.parts.rope import Rope
from postx.scans import operators
from postx.scans.decay_chunked import decay_chunked
from postx.shapes import check, empty, named, real, state_dtype

FAMILY, LETTER = "linear", "T"
STATE = "S_BHKV"
AUTO = {"triton": "recurrent"}  # one kernel


def log_gamma(H, dtype=torch.float64):
    """g_H = log(1 - 2^(-5-h)), h = 0..H-1: half-lives of 22, 44, 88, ... tokens. log1p, for the last heads' sake."""
    return torch.log1p(-(2.0 ** (-5 - torch.arange(H, dtype=torch.float64)))).to(dtype)


@named
def init(q_BHK, k_BHK, v_BHV, *, g_H):
    """The empty table of each head, S_BHKV."""
    return empty(k_BHK, v_BHV)


@named
def step(S, q_BHK, k_BHK, v_BHV, *, g_H, inplace=False):
    """One token: the table fades by exp(g), k v' is written, q reads. Returns (y_BHV, S)."""
    q, k, v = (x.to(S.dtype) for x in (q_BHK, k_BHK, v_BHV))
    gamma, written = g_H.to(S.dtype).exp()[:, None, None], k[..., None] * v[..., None, :]
    S = S.mul_(gamma).add_(written) if inplace else gamma * S + written
    return torch.einsum("bhk,bhkv->bhv", q * q.shape[-1] ** -0.5, S).to(v_BHV.dtype), S


@packed
def recurrent(q_BTHK, k_BTHK, v_BTHV, *, g_H, S=None, lengths_B=None, impl="auto"):
    """All tokens, left to right. Returns (y_BTHV, S)."""
    return scans.decay(_scaled(q_BTHK), k_BTHK, v_BTHV, g_H, S, lengths_B=lengths_B, impl=impl)


@packed
def parallel(q_BTHK, k_BTHK, v_BTHV, *, g_H, S=None, lengths_B=None):
    """All pairs at once, (Q K' * D) V with D of `decay_mask`: quadratic in T. Returns (y_BTHV, S)."""
    (B, T), kind = v_BTHV.shape[:2], state_dtype(v_BTHV.dtype)
    S = empty(k_BTHK[:, 0], v_BTHV[:, 0]) if S is None else S
    q, k, v, g = _scaled(q_BTHK).to(kind), k_BTHK.to(kind), v_BTHV.to(kind), g_H.to(kind)
    token = torch.arange(T, device=v.device)
    ends = torch.full((B,), T, device=v.device) if lengths_B is None else lengths_B
    k, v = real(k, lengths_B), real(v, lengths_B)
    scores = torch.einsum("bthk,bmhk->bhtm", q, k) * decay_mask(T, g)
    y = torch.einsum("bhtm,bmhv->bthv", scores, v)
    y = y + torch.einsum("bthk,ht,bhkv->bthv", q, _fade(g, token + 1), S)

    left = _fade(g, ends[:, None] - 1 - token)  # [H, B, T]: what is left of each write at its row's end
    S = _fade(g, ends).mT[..., None, None] * S + torch.einsum("bmhk,hbm,bmhv->bhkv", k, left, v)
    return real(y, lengths_B).to(v_BTHV.dtype), S


@packed
def chunked(q_BTHK, k_BTHK, v_BTHV, *, g_H, S=None, lengths_B=None, chunk=64):
    """Quadratic within a chunk of tokens, the table between chunks: linear in T. Returns (y_BTHV, S)."""
    return decay_chunked(_scaled(q_BTHK), k_BTHK, v_BTHV, g_H, S, lengths_B=lengths_B, chunk=chunk)


def decay_mask(T, g_H):
    """D_HTM = exp(g (t - m)) for m <= t, and 0 above the diagonal, masked before exp: [H, T, T].

    Without the mask inside, exp(g (t - m)) overflows above the diagonal, and inf times a mask's 0 is NaN.
    """
    token = torch.arange(T, device=g_H.device)
    return _fade(g_H, token[:, None] - token)


def _fade(g_H, age):
    """exp(g age) for each head, [H, *age.shape]; 1 at age 0 also where g = -inf, 0 at negative ages."""
    exponent = torch.where(age > 0, g_H.view(-1, *[1] * age.dim()) * age, 0)
    return exponent.masked_fill(age < 0, -torch.inf).exp()


def _scaled(q):
    return q * q.shape[-1] ** -0.5


@named
def operator(q_BTHK, k_BTHK, v_BTHV, *, g_H):
    """What these tokens do to any state: see `postx.scans.operators`."""
    keep_H11 = (q_BTHK.shape[1] * g_H.to(state_dtype(v_BTHV.dtype))).exp()[:, None, None]
    return operators.Fade(keep_H11, recurrent(q_BTHK, k_BTHK, v_BTHV, g_H=g_H)[1])


def example(T, *, B=2, H=4, K=8, V=6, seed=0):
    """Valid float64 inputs: ((q_BTHK, k_BTHK, v_BTHV), dict(g_H)), with the paper's decays."""
    generator = torch.Generator().manual_seed(seed)
    shapes = ((B, T, H, K), (B, T, H, K), (B, T, H, V))
    z = tuple(torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes)
    return z, {"g_H": log_gamma(H)}


def cost(T, *, B=1, H=4, K=8, V=6, item=4) -> Cost:
    """The bill of `recurrent`: 5 K V FLOPs a token and head, q, k, v in and y out; the state is bounded."""
    return decay_recurrence(T, B=B, H=H, K=K, V=V, item=item)


class Layer(nn.Module):
    """Multi-scale retention: Layer(x_BTD, S=None) -> (y_BTD, S), S = (table, position of the next token).

    K = D / H and V = 2 D / H; a group norm over each head's V outputs; a swish gate. q and k are rotated by plain
    rotary angles on interleaved pairs: the decay that the paper's xPos adds to the rotation is left out. conv_size=4
    mixes each channel of q, k and v with its last 4 tokens before the rotation; their inputs then join the state.
    lightning=True is MiniMax-01's layer (2025, arXiv 2501.08313, sec. 2.2): V = K, silu on q, k and v and no rotation,
    one RMS norm over all heads, a sigmoid gate. It does not scale q; the norm undoes our K^-1/2, its 1e-6 included.
    """

    def __init__(self, D, *, H=8, K=None, conv_size=0, lightning=False):
        super().__init__()
        if K is None and D % (2 * H):
            raise ValueError(f"D: expected a multiple of 2 H = {2 * H} (pairs to rotate), got {D}")
        self.H, self.rope, K = H, None if lightning else Rope(pairing="interleaved"), K or D // H
        V = K if lightning else 2 * K
        self.q, self.k = nn.Linear(D, H * K, bias=False), nn.Linear(D, H * K, bias=False)
        self.v, self.gate = nn.Linear(D, H * V, bias=False), nn.Linear(D, H * V, bias=False)
        self.conv = conv.Mixed((H * K, H * K, H * V), conv_size)
        self.norm = nn.RMSNorm(H * V, eps=1e-6 / K) if lightning else nn.GroupNorm(H, H * V, affine=False)
        self.out = nn.Linear(H * V, D, bias=False)
        self.register_buffer("g_H", log_gamma(H, torch.get_default_dtype()))

    def forward(self, x_BTD, S=None, *, form="auto", lengths_B=None, reset_BT=None):
        check({"D": self.q.in_features}, x_BTD=x_BTD)
        B, T = x_BTD.shape[:2]
        S_conv = S[2:] if S else ()
        table, start_B = S[:2] if S else (None, torch.zeros(B, dtype=torch.int64, device=x_BTD.device))
        position_BT = start_B[:, None] + torch.arange(T, device=x_BTD.device)
        side = {"lengths_B": lengths_B, "reset_BT": reset_BT}
        parts, S_conv = self.conv([p(x_BTD) for p in (self.q, self.k, self.v)], S_conv, **side)
        parts = parts if self.rope is not None else map(nn.functional.silu, parts)
        q, k, v = (x.unflatten(-1, (self.H, -1)) for x in parts)
        if self.rope is not None:
            q, k = self.rope.rotate(q, position_BT), self.rope.rotate(k, position_BT)
        y, table = by_form(__name__, form, x_BTD)(q, k, v, g_H=self.g_H, S=table, **side)
        y, gate = self.norm(y.flatten(0, 1).flatten(1)).view(B, T, -1), self.gate(x_BTD)
        y = self.out((gate.sigmoid() if self.rope is None else nn.functional.silu(gate)) * y)
        return y, (table, start_B + (T if lengths_B is None else lengths_B), *S_conv)
