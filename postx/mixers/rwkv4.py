"""RWKV-4: an average of the values so far, in which old ones fade and a token's own gets a bonus.

    y_t = (sum_{i<t} e^((t-1-i) g + k_i) v_i + e^(u + k_t) v_t) / (the same sums without v)        g = -exp(decay)

Peng et al. 2023, "RWKV: Reinventing RNNs for the Transformer Era", sec. 3.1. The sums are kept times e^-max,
so no score overflows; the maximum only chooses that scale and carries no gradient. There is no query: the
receptance gate, sigmoid(r) y, and the token shift before the projections are in `Layer`.

| paper | here |
|---|---|
| k, v | k_BTD (scores), v_BTD |
| w, u | -g_D, u_D |
| a, b, p (appendix) | S = (num_BD, den_BD, max_BD) |
"""

import torch
from torch import nn

from postx import scans
from postx.cost import Cost
from postx.mixers import Still, by_form, packed
from postx.parts.shift import token_shift
from postx.scans import operators
from postx.shapes import check, named, real, state_dtype

FAMILY, LETTER = "linear", "4"
STATE = "num_BD", "den_BD", "max_BD"
AUTO = {"far": "parallel"}  # few large operations beat a loop over chunks


@named
def init(k_BD, v_BD, *, g_D, u_D):
    """The average over nothing: (num_BD, den_BD, max_BD) = (0, 0, a finite floor)."""
    zeros = torch.zeros_like(v_BD, dtype=_kind(k_BD, v_BD))
    return zeros, zeros.clone(), torch.full_like(zeros, scans.START)


@named
def step(S, k_BD, v_BD, *, g_D, u_D, inplace=False):
    """One token: read the faded sums and the token itself with weight e^(u + k), then add it. Returns (y_BD, S)."""
    num, den, top = S[0], S[1], S[2].detach()
    k, v, g, u = (x.to(num.dtype) for x in (k_BD, v_BD, g_D, u_D))
    peak = torch.maximum(top, u + k).detach()
    old, own = torch.exp(top - peak), torch.exp(u + k - peak)
    y = (old * num + own * v) / (old * den + own)

    new_top = torch.maximum(top + g, k).detach()
    keep, add = torch.exp(top + g - new_top), torch.exp(k - new_top)
    if inplace:
        num.mul_(keep).add_(add * v)
        den.mul_(keep).add_(add)
        S[2].copy_(new_top)
        return y.to(v_BD.dtype), S
    return y.to(v_BD.dtype), (keep * num + add * v, keep * den + add, new_top)


@packed
def recurrent(k_BTD, v_BTD, *, g_D, u_D, S=None, lengths_B=None, impl="auto"):
    """All tokens, left to right. Returns (y_BTD, S)."""
    return scans.logspace(k_BTD, v_BTD, g_D, u_D, S, lengths_B=lengths_B, impl=impl)


@packed
def parallel(k_BTD, v_BTD, *, g_D, u_D, S=None, lengths_B=None):
    """All tokens at once in log2 T rounds: round r joins each sum with the one 2^r tokens before. Returns (y, S).

    Memory: 3 B T D numbers a round, which autograd keeps.
    """
    return _by_doubling(k_BTD, v_BTD, g_D, u_D, S, lengths_B)


@packed
def chunked(k_BTD, v_BTD, *, g_D, u_D, S=None, lengths_B=None, chunk=64):
    """`parallel` on each chunk of tokens, the state between chunks. Returns (y_BTD, S)."""
    outputs = []
    for i, (k, v) in enumerate(zip(k_BTD.split(chunk, 1), v_BTD.split(chunk, 1), strict=True)):
        left = None if lengths_B is None else (lengths_B - i * chunk).clamp(0, k.shape[1])
        y, S = _by_doubling(k, v, g_D, u_D, S, left)
        outputs.append(y)
    return torch.cat(outputs, 1), S


def _by_doubling(k_BTD, v_BTD, g_D, u_D, S, lengths_B):
    B, T = v_BTD.shape[:2]
    S = init(k_BTD[:, 0], v_BTD[:, 0], g_D=g_D, u_D=u_D) if S is None else S
    k, v, g, u = (x.to(S[0].dtype) for x in (k_BTD, v_BTD, g_D, u_D))

    # Slot 0 holds the state that came in, slot t + 1 token t alone; after the rounds each holds all up to it.
    top = k.detach().clamp(min=scans.START)  # k = -inf says never: its weight is 0
    weight = torch.exp(k - top)  # 1, and the way for the gradient of k
    sums = tuple(torch.cat([s[:, None], x], 1) for s, x in zip(S, (weight * v, weight, top), strict=True))
    sums = (*sums[:2], sums[2].detach())
    reach = 1
    while reach <= T:
        faded = _fade(tuple(x[:, :-reach] for x in sums), reach * g)
        joined = scans.merge(faded, tuple(x[:, reach:] for x in sums))
        sums = tuple(torch.cat([x[:, :reach], y], 1) for x, y in zip(sums, joined, strict=True))
        reach *= 2

    before = tuple(x[:, :-1] for x in sums)
    peak = (u + k).detach().clamp(min=scans.START)
    own = torch.exp(u + k - peak)
    num, den, _ = scans.merge(before, (own * v, own, peak))
    y = real(num / den, lengths_B).to(v_BTD.dtype)
    ends = torch.full((B,), T, device=v.device) if lengths_B is None else lengths_B.long()
    return y, tuple(x[torch.arange(B, device=v.device), ends] for x in sums)


def _fade(sums, g):
    """Sums that have aged by g <= 0: the maximum takes the decay, a factor of 1 takes the gradient."""
    num, den, top = sums
    finite = g.masked_fill(g == -torch.inf, 0)
    factor = torch.exp(finite - finite.detach())
    return factor * num, factor * den, top + g.detach()


def _kind(k, v):
    return state_dtype(torch.promote_types(k.dtype, v.dtype))


@named
def operator(k_BTD, v_BTD, *, g_D, u_D):
    """What these tokens do to any state: see `postx.scans.operators`."""
    return operators.Logspace(k_BTD.shape[1] * g_D, recurrent(k_BTD, v_BTD, g_D=g_D, u_D=u_D)[1])


def example(T, *, B=2, D=6, seed=0):
    """Valid float64 inputs: ((k_BTD, v_BTD), dict(g_D, u_D))."""
    generator = torch.Generator().manual_seed(seed)
    k, v = (torch.randn(B, T, D, generator=generator, dtype=torch.float64) for _ in range(2))
    decay, u = (torch.randn(D, generator=generator, dtype=torch.float64) for _ in range(2))
    return (3 * k, v), {"g_D": -torch.exp(decay - 1), "u_D": u}


def cost(T, *, B=1, D=6, item=4) -> Cost:
    """The bill of `recurrent`: 23 FLOPs a token and channel, counted on `step`; k, v in and y out; 3 D floats."""
    read, write = 2 + 2 + 2 + 3 + 2 + 1, 2 + 2 + 2 + 3 + 2  # peak, differences, exps, num, den, quotient
    return Cost(B * T * D * (read + write), 3 * B * T * D * item, 3 * B * D)


class Layer(nn.Module):
    """RWKV-4's time mixing: Layer(x_BTD, S=None) -> (y_BTD, S), S = (num, den, max, last token).

    k, v and r each see their own blend of the token and the one before it; the output is out(sigmoid(r) y).
    Decays start spread from e^-5 to e^3 over the channels, the bonus at log 0.3 in a zigzag of 0.5.
    """

    def __init__(self, D):
        super().__init__()
        self.mix_3D = Still(torch.linspace(0, 1, D).repeat(3, 1))
        self.decay_D = nn.Parameter(torch.linspace(-5, 3, D))
        self.u_D = nn.Parameter(torch.arange(D) % 3 * 0.5 - 0.5 + torch.tensor(0.3).log())
        self.k, self.v, self.r, self.out = (nn.Linear(D, D, bias=False) for _ in range(4))

    def forward(self, x_BTD, S=None, *, form="auto", **side):
        check({"D": self.decay_D.shape[0]}, x_BTD=x_BTD)
        previous, last_BD = token_shift(x_BTD, S[3] if S else None, **side)
        k, v, r = (
            project(torch.lerp(previous, x_BTD, mix))
            for project, mix in zip((self.k, self.v, self.r), self.mix_3D, strict=True)
        )
        w = {"g_D": -self.decay_D.exp(), "u_D": self.u_D}
        y, sums = by_form(__name__, form, x_BTD)(k, v, S=S[:3] if S else None, **w, **side)
        return self.out(r.sigmoid() * y), (*sums, last_BD)
