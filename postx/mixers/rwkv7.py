"""RWKV-7: a table that fades key by key, and in which each token takes out one direction and writes another.

    S <- diag(exp g) S - (kk * a) (kk' S) + k v'        y = S' r

Peng et al. 2025, "RWKV-7 Goose" (arXiv 2503.14456), eq. 17. kk is what the token takes out (of length 1, made by
the caller), a in (0, 1) how much of it, key by key; k, what it writes under, need not be kk. Read after the update,
no scale. Published models keep the decay exp g of every key in (exp(-e^-1/2), 1) = (0.545, 1): see `log_decay`. As a
is a vector, the token's matrix diag(exp g) - (kk * a) kk' is not symmetric.

There is no `parallel` form: the tokens' matrices do not commute, so no mask over pairs of tokens stands for their
product. `chunked` solves one triangular system a chunk; with a decay for each key its E_ij is a table C x C x K,
so the chunk is small, and it saves little on a CPU. It is here as the form that a GPU can use, and as a check.

| paper | here |
|---|---|
| r_t (receptance) | r_BTHK |
| k-tilde, v | k_BTHK, v_BTHV |
| kappa-hat (removal key), a (in-context learning rate) | removal_BTHK, a_BTHK |
| w_t | exp(g_BTHK) |
| S_t [V, K], S (diag w - kk (kk * a)') + v k' | S_BHKV, transposed |
"""

import math

import torch
from torch import nn

from postx import scans
from postx.cost import Cost
from postx.mixers import Still, by_form, packed
from postx.parts.shift import token_shift
from postx.scans import delta_chunked, operators
from postx.shapes import check, empty, named, state_dtype

FAMILY, LETTER = "linear", "7"
STATE = "S_BHKV"
AUTO = {"triton": "recurrent"}  # one kernel
FIRST = {"value_rank": 0}  # it gives its value to the later ones, and blends in none
FASTEST = -math.exp(-0.5)  # the log-decay's lower end: a key keeps at least exp(-0.6065) = 0.545 of itself a token


def log_decay(x):
    """g = -exp(-1/2) sigmoid(x), at least float32: every decay exp(g) is between 0.545239 and 1, whatever x is."""
    return FASTEST * torch.sigmoid(x.to(state_dtype(x.dtype)))


@named
def init(r_BHK, k_BHK, v_BHV, removal_BHK, a_BHK, g_BHK):
    """The empty table, S_BHKV."""
    return empty(k_BHK, v_BHV)


@named
def step(S, r_BHK, k_BHK, v_BHV, removal_BHK, a_BHK, g_BHK, *, inplace=False):
    """One token: take out, fade, write, read with r. Returns (y_BHV, S)."""
    r, k, v, removal, a, g = (x.to(S.dtype) for x in (r_BHK, k_BHK, v_BHV, removal_BHK, a_BHK, g_BHK))
    held = torch.einsum("bhk,bhkv->bhv", removal, S)
    change = k[..., None] * v[..., None, :] - (removal * a)[..., None] * held[..., None, :]
    keep = g.exp()[..., None]
    S = S.mul_(keep).add_(change) if inplace else S * keep + change
    return torch.einsum("bhk,bhkv->bhv", r, S).to(v_BHV.dtype), S


@packed
def recurrent(r_BTHK, k_BTHK, v_BTHV, removal_BTHK, a_BTHK, g_BTHK, *, S=None, lengths_B=None, impl="auto"):
    """All tokens, left to right. Returns (y_BTHV, S)."""
    z = r_BTHK, k_BTHK, v_BTHV, None, g_BTHK
    return scans.delta(*z, S, **_keys(removal_BTHK, a_BTHK), lengths_B=lengths_B, impl=impl)


@packed
def chunked(
    r_BTHK, k_BTHK, v_BTHV, removal_BTHK, a_BTHK, g_BTHK, *, S=None, lengths_B=None, chunk=16
):
    """A triangular system within a chunk, the table between chunks: linear in T. Returns (y_BTHV, S).

    Holds C^2 K numbers a head at a time.
    """
    z = r_BTHK, k_BTHK, v_BTHV, None, g_BTHK
    return delta_chunked.in_chunks(*z, S, **_keys(removal_BTHK, a_BTHK), lengths_B=lengths_B, chunk=chunk)


def _keys(removal_BTHK, a_BTHK):
    """The b and c of `scans.delta`: removal reads, removal * a takes out."""
    return {"b_BTHK": (removal_BTHK * a_BTHK).to(removal_BTHK.dtype), "c_BTHK": removal_BTHK}


@named
def operator(r_BTHK, k_BTHK, v_BTHV, removal_BTHK, a_BTHK, g_BTHK):
    """What these tokens do to any state: see `postx.scans.operators`."""
    more = removal_BTHK, a_BTHK, g_BTHK
    return operators.full(lambda v, S: recurrent(r_BTHK, k_BTHK, v, *more, S=S)[1], k_BTHK, v_BTHV)


def example(T, *, B=2, H=2, K=6, V=5, seed=0):
    """Valid float64 inputs, removal keys of length 1, a in (0, 1): ((r, k, v, removal, a, g), {})."""
    generator = torch.Generator().manual_seed(seed)
    r, k, removal, a, g, v = (
        torch.randn(B, T, H, width, generator=generator, dtype=torch.float64) for width in (K, K, K, K, K, V)
    )
    return (r, k, v, nn.functional.normalize(removal, dim=-1), a.sigmoid(), log_decay(g)), {}


def cost(T, *, B=1, H=2, K=6, V=5, item=4):
    """9 K V + K FLOPs a token and head: kk' S, the decay, two writes and the read. The state is bounded.

    Bytes: r, k, removal, a, g, v in and y out; the table stays on chip.
    """
    return Cost(B * T * H * (9 * K * V + K), B * T * H * (5 * K + 2 * V) * item, B * H * K * V)


class Layer(nn.Module):
    """RWKV-7's time mixing: Layer(x_BTD, S=None) -> (y_BTD, S), S = (table, last token).

    Each of r, decay, k, v, a and gate sees its own blend of the token and the one before it; decay, a and gate pass
    through `rank` channels. The removal key is k times a weight, made of length 1; k itself is scaled by
    1 + (a - 1) w. After a group norm a head (eps 64e-5, as in the published models) the token's own v is added with
    the weight sum(r k u). Published models have heads of 64 and a rank for each projection; their later layers
    also blend v with the first layer's, by a gate through `value_rank` channels. A Layer with value_rank=0 leaves its
    v in cross["first_value"], where it is given such a dictionary; the others read it there, and raise ValueError
    without. ranks: those of decay, a and gate, where they differ. eps: the group norm's.
    """

    TAKES = ("cross",)

    def __init__(self, D, *, H=None, rank=32, ranks=None, value_rank=0, eps=64e-5):
        super().__init__()
        self.H = H = H or max(1, D // 64)
        if D % H:
            raise ValueError(f"D: expected a multiple of H={H}, got {D}")
        self.mix_6D = Still(torch.full((6, D), 0.5))
        self.r, self.k, self.v, self.out = (nn.Linear(D, D, bias=False) for _ in range(4))
        down = [nn.Linear(D, n, bias=False) for n in ranks or (rank,) * 3]
        up = [nn.Linear(x.out_features, D, bias=i < 2) for i, x in enumerate(down)]
        self.decay, self.a = nn.Sequential(down[0], nn.Tanh(), up[0]), nn.Sequential(down[1], up[1])
        self.gate = nn.Sequential(down[2], nn.Sigmoid(), up[2])
        self.value = None
        if value_rank:
            self.value = nn.Sequential(nn.Linear(D, value_rank, bias=False), nn.Linear(value_rank, D))
        nn.init.uniform_(self.decay[-1].bias, -6, 1)
        self.removal_D, self.scale_D = nn.Parameter(torch.full((D,), 0.85)), nn.Parameter(torch.ones(D))
        self.u_HK = Still(torch.full((H, D // H), 0.1))
        self.norm = nn.GroupNorm(H, D, eps=eps)

    def forward(self, x_BTD, S=None, *, form="auto", cross=None, **side):
        check({"D": self.mix_6D.shape[1]}, x_BTD=x_BTD)
        previous, last_BD = token_shift(x_BTD, S[1] if S else None, **side)
        seen = (x_BTD[:, :, None] + (previous - x_BTD)[:, :, None] * self.mix_6D).unbind(2)
        projections = self.r, self.decay, self.k, self.v, self.a, self.gate
        r, d, k, v, a, gate = (project(x) for project, x in zip(projections, seen, strict=True))
        if self.value is not None:
            if cross is None or "first_value" not in cross:
                raise ValueError("cross: this layer blends its v with the first layer's, under 'first_value'")
            v = torch.lerp(v, cross["first_value"], self.value(seen[3]).sigmoid())
        elif cross is not None:
            cross["first_value"] = v
        a = a.sigmoid()
        kind = k.dtype  # what weights in float32 make of it under autocast goes back
        removal, k = k * self.removal_D, (k * (1 + (a - 1) * self.scale_D)).to(kind)
        r, k, v, removal, a, d = (x.unflatten(-1, (self.H, -1)) for x in (r, k, v, removal, a, d))
        removal = nn.functional.normalize(removal.to(state_dtype(kind)), dim=-1).to(kind)
        y, table = by_form(__name__, form, x_BTD)(r, k, v, removal, a, log_decay(d), S=S[0] if S else None, **side)
        y = self.norm(y.flatten(0, 1).flatten(1)).view_as(v) + (r * k * self.u_HK).sum(-1, keepdim=True) * v
        return self.out(y.flatten(2) * gate), (table, last_BD)
