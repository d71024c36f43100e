"""Mamba-3: Mamba-2 with a state that also turns, writes that look one token back, and several inputs at once.

    S <- exp(g) R(theta)' (S + before k_(t-1) v_(t-1)')        S <- S + now k v'        y = S' q

Lahoti et al. 2026, "Mamba-3" (arXiv 2603.15569). Three changes to SSD:

- exponential-trapezoidal steps: a token is written in part when it comes (now = lambda dt) and in part one token later
  (before = (1 - lambda) dt), with lambda in (0, 1) chosen by the token. lambda = 1 gives Mamba-2's step back.
- a complex state, in real numbers: R(theta) turns the key channels 2j and 2j + 1 by theta_j, for the first N pairs.
  With theta = pi a state changes its sign, which no factor exp(g) > 0 can do: parity becomes one layer's work.
- MIMO: R keys and queries share one table, S <- S + now sum_r k_r (up_r v)', and y_r = S' q_r. R = 1 is the usual form.

To turn the state by -theta each token is to turn q and k by the running sum of theta: rotary positions that the
token decides (sec. 3.2). And since both parts of a write decay and turn alike, a token's whole weight is now +
the next token's `before`. So every form is the decay recurrence on turned q and k, read before the write, plus the
token's own now (q'k) v. The angle's sum is taken in float64, as its digits would be lost along a long text.

| paper, published code | here |
|---|---|
| C, B (rank R, state width N) | q_BTRHK, k_BTRHK |
| x (head width P), mimo_x | v_BTHV, up_RHV |
| A dt; lambda dt, (1 - lambda) dt | g_BTH <= 0; now_BTH, before_BTH |
| theta dt | theta_BTHN |
| h [P, N] turned by all angles; k, v of the last token | S_BHKV turned by the last token's; k_BRHK, v_BHV |
"""

import math
from typing import NamedTuple

import torch
from torch import nn
from torch.nn.functional import silu, softplus

from postx import scans
from postx.cost import Cost
from postx.mixers import Still, by_form, packed
from postx.scans.decay_chunked import decay_chunked
from postx.shapes import check, check_shared, empty, named, real, state_dtype

FAMILY = "ssm"
STATE = "S_BHKV", "k_BRHK", "v_BHV"
FOLLOW = "-"  # the block has its own gate and expansion
AUTO = {"triton": "recurrent"}  # one kernel


@named
def init(q_BRHK, k_BRHK, v_BHV, g_BH, now_BH, before_BH, theta_BHN, *, up_RHV=None):
    """Nothing stored and no token before the first: (S_BHKV, k_BRHK, v_BHV) = 0."""
    _fits(k_BRHK, theta_BHN)
    S = empty(k_BRHK[:, 0], v_BHV)
    return S, torch.zeros_like(k_BRHK, dtype=S.dtype), torch.zeros_like(v_BHV, dtype=S.dtype)


@named
def step(S, q_BRHK, k_BRHK, v_BHV, g_BH, now_BH, before_BH, theta_BHN, *, up_RHV=None, inplace=False):
    """One token: the rest of the last write, fade and turn, write, read with each query. Returns (y_BRHV, S)."""
    _fits(k_BRHK, theta_BHN)
    S, k_last, v_last = S
    kind, dtype, R = S.dtype, v_BHV.dtype, k_BRHK.shape[1]
    q, k, v, g, now, before, theta = (
        x.to(kind) for x in (q_BRHK, k_BRHK, v_BHV, g_BH, now_BH, before_BH, theta_BHN)
    )
    whole = S + _outer(k_last * before[:, None, :, None], _raised(v_last, up_RHV, R))
    turned = turn(whole.mT, -theta[:, :, None]).mT * g.exp()[..., None, None]
    after = turned + _outer(k * now[:, None, :, None], _raised(v, up_RHV, R))
    if inplace:
        S.copy_(after), k_last.copy_(k), v_last.copy_(v)
    else:
        S, k_last, v_last = after, k, v
    return torch.einsum("brhk,bhkv->brhv", q, S).to(dtype), (S, k_last, v_last)


@packed
def recurrent(
    q_BTRHK, k_BTRHK, v_BTHV, g_BTH, now_BTH, before_BTH, theta_BTHN, *, up_RHV=None, S=None, lengths_B=None,
    impl="auto",
):  # fmt: skip
    """All tokens, left to right, through the decay scan: R scans of R T writes. Returns (y_BTRHV, S)."""
    z = q_BTRHK, k_BTRHK, v_BTHV, g_BTH, now_BTH, before_BTH, theta_BTHN
    (q, *writes), finish = _terms(*z, up_RHV, S, lengths_B)
    results = [scans.decay(q_r, *writes, read="before", impl=impl) for q_r in q.unbind(-2)]
    return finish(torch.stack([y for y, _ in results], 3), results[0][1])


@packed
def parallel(
    q_BTRHK, k_BTRHK, v_BTHV, g_BTH, now_BTH, before_BTH, theta_BTHN, *, up_RHV=None, S=None, lengths_B=None
):
    """All pairs at once: one chunk of T tokens, quadratic in T. Returns (y_BTRHV, S)."""
    z = q_BTRHK, k_BTRHK, v_BTHV, g_BTH, now_BTH, before_BTH, theta_BTHN
    return _in_chunks(z, up_RHV, S, lengths_B, v_BTHV.shape[1])


@packed
def chunked(
    q_BTRHK, k_BTRHK, v_BTHV, g_BTH, now_BTH, before_BTH, theta_BTHN, *, up_RHV=None, S=None, lengths_B=None,
    chunk=64,
):  # fmt: skip
    """Pairs within a chunk of tokens, the state between chunks: linear in T. Returns (y_BTRHV, S)."""
    z = q_BTRHK, k_BTRHK, v_BTHV, g_BTH, now_BTH, before_BTH, theta_BTHN
    return _in_chunks(z, up_RHV, S, lengths_B, chunk)


def _in_chunks(z, up_RHV, S, lengths_B, chunk):
    (q, *writes), finish = _terms(*z, up_RHV, S, lengths_B)
    y, S = decay_chunked(q.flatten(2, 3), *writes, read="before", chunk=chunk * z[0].shape[2])
    return finish(y.unflatten(2, (-1, z[0].shape[2])).transpose(2, 3).transpose(2, 3), S)


def turn(x, angle):
    """Channels 2j and 2j + 1 of x [..., K] turned by angle_j [..., N]; those past 2 N stay as they are."""
    N, cos, sin = angle.shape[-1], angle.cos(), angle.sin()
    even, odd = x[..., 0 : 2 * N : 2], x[..., 1 : 2 * N : 2]
    turned = torch.stack([cos * even - sin * odd, sin * even + cos * odd], -1).flatten(-2)
    return torch.cat([turned, x[..., 2 * N :].expand(*turned.shape[:-1], -1)], -1)


def _raised(v_BHV, up_RHV, R):
    """The value that each of the R keys writes, [..., R, H, V]."""
    v = v_BHV.unsqueeze(-3)
    return v.expand(*v.shape[:-3], R, *v.shape[-2:]) if up_RHV is None else v * up_RHV.to(v.dtype)


def _outer(k_BRHK, v_BRHV):
    return torch.einsum("brhk,brhv->bhkv", k_BRHK, v_BRHV)


def _fits(k, theta):
    """Raise ValueError where there are more pairs than key channels."""
    if 2 * theta.shape[-1] > k.shape[-1]:
        raise ValueError(f"theta: {theta.shape[-1]} pairs need 2 N <= K = {k.shape[-1]} key channels")


def _terms(q_BTRHK, k_BTRHK, v_BTHV, g_BTH, now_BTH, before_BTH, theta_BTHN, up_RHV, S, lengths_B):
    """The arguments of `scans.decay`, R places of time for each token, and what makes y and S of its results.

    The reads of a token stand at the first of its places, before its writes, as q [B, T R, H, R, K]. What is read,
    and written under what, has v's dtype; all is computed in at least float32.
    """
    z = q_BTRHK, k_BTRHK, v_BTHV, g_BTH, now_BTH, before_BTH, theta_BTHN
    B, T, R = k_BTRHK.shape[:3]
    _fits(k_BTRHK, theta_BTHN)
    S, k_last, v_last = init(*(x[:, 0] for x in z), up_RHV=up_RHV) if S is None else S
    q, k, v, *rates = (x.to(state_dtype(x.dtype)) for x in z)
    g, now, before, theta = (real(x, lengths_B) for x in rates)
    end_B = torch.full((B,), T, device=v.device) if lengths_B is None else lengths_B.long()
    S = S + _outer(k_last * before[:, 0, None, :, None], _raised(v_last, up_RHV, R))
    weight = now + torch.cat([before[:, 1:], torch.zeros_like(before[:, :1])], 1)
    angle = theta.double().cumsum(1)
    last = angle[torch.arange(B, device=v.device), end_B - 1] * (end_B > 0)[:, None, None]
    q_turned, k_turned = (turn(x, angle[:, :, None].remainder(2 * math.pi).to(x.dtype)) for x in (q, k))
    values = _raised(v, up_RHV, R)
    own = torch.einsum("btrhk,btshk,btshv->btrhv", q, k * now[:, :, None, :, None], values)

    first = (torch.arange(R, device=v.device) == 0).to(v.dtype)  # to write a number into it would wait for a GPU
    reads = (q_turned * g.exp()[:, :, None, :, None]).transpose(2, 3)  # [B,T,H,R,K]
    reads = (reads[:, :, None] * first[:, None, None, None]).flatten(1, 2)
    fades = (g[:, :, None] * first[:, None]).flatten(1, 2)
    written = (values * weight[:, :, None, :, None]).flatten(1, 2)

    def finish(y, S):
        """y [B, T R, H, R, V] and the state in the frame of the first token -> (y_BTRHV, S)."""
        y = y.unflatten(1, (T, R))[:, :, 0].transpose(2, 3) + own
        y = real(y, lengths_B)
        S = turn(S.mT, -last[:, :, None].remainder(2 * math.pi).to(S.dtype)).mT
        seen = (torch.cat([a[:, None], b.to(a.dtype)], 1) for a, b in ((k_last, k), (v_last, v)))
        return y.to(v_BTHV.dtype), (S, *(x[torch.arange(B, device=v.device), end_B] for x in seen))

    reads, k_turned, written = (x.to(v_BTHV.dtype) for x in (reads, k_turned.flatten(1, 2), written))
    return (reads, k_turned, written, fades, S), finish


class Turned(NamedTuple):
    """What tokens do to a state: the rest of the last write, fade, turn, and what they leave. See `operators`."""

    A: tuple  # the first token's `before`, the sums of g and theta, up_RHV
    b: tuple

    def __call__(self, S):
        (before, g, theta, up_RHV), (S, k, v) = self.A, S
        S = S + _outer(k * before[:, None, :, None], _raised(v, up_RHV, k.shape[1]))
        S = turn(S.mT, -theta[:, :, None].to(S.dtype)).mT * g.exp()[..., None, None]
        return S + self.b[0], *self.b[1:]

    def then(self, after):
        (before, g, theta, up_RHV), (_, g_after, theta_after, _) = self.A, after.A
        return Turned((before, g + g_after, theta + theta_after, up_RHV), after(self.b))


@named
def operator(q_BTRHK, k_BTRHK, v_BTHV, g_BTH, now_BTH, before_BTH, theta_BTHN, *, up_RHV=None):
    """What these tokens do to any state: see `postx.scans.operators`."""
    z = q_BTRHK, k_BTRHK, v_BTHV, g_BTH, now_BTH, before_BTH, theta_BTHN
    S = recurrent(*z, up_RHV=up_RHV)[1]
    kind = S[0].dtype
    return Turned((before_BTH[:, 0].to(kind), g_BTH.sum(1, dtype=kind), theta_BTHN.double().sum(1), up_RHV), S)


def example(T, *, B=2, R=2, H=3, K=6, V=5, N=2, seed=0):
    """Valid float64 inputs: ((q, k, v, g, now, before, theta), {"up_RHV"})."""
    generator = torch.Generator().manual_seed(seed)
    shapes = ((B, T, R, H, K), (B, T, R, H, K), (B, T, H, V), *[(B, T, H)] * 3, (B, T, H, N))
    q, k, v, a, dt, blend, angle = (torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes)
    up = torch.rand(R, H, V, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    dt, now = softplus(dt), blend.sigmoid()
    z = q, k, v, -softplus(a) * dt, now * dt, (1 - now) * dt, math.pi * angle.tanh() * dt[..., None]
    return z, {"up_RHV": up}


def cost(T, *, B=1, R=2, H=3, K=6, V=5, N=2, item=4) -> Cost:
    """The bill of `step`: two writes and a read of R rank-one terms, the fade, six FLOPs a turned pair and column.

    6 R K V + K V + 6 N V FLOPs a token and head, 2 R (K + V) to weigh keys and raise values, an exp and 2 N sines and
    cosines. Bytes: all inputs in, y out; the state stays on chip. The state is bounded.
    """
    flops = 6 * R * K * V + K * V + 6 * N * V + 2 * R * (K + V) + 2 * N + 1
    moved = 2 * R * K + V + 3 + N + R * V
    return Cost(B * T * H * flops, B * T * H * moved * item, B * H * (K * V + R * K + V))


class Layer(nn.Module):
    """The Mamba-3 block: Layer(x_BTD, S=None) -> (y_BTD, S), S = (table, last k, last v). No short convolution.

        dt = softplus(. + bias)   g = -max(f(.), 1e-4) dt   theta = pi tanh(.) dt   q, k = RMSNorm(.) + bias

    with f(x) = 1 + x above 0 and 1 / (1 - x) below, as in the published code. It is `expand` D wide inside, in heads of
    V; K key channels in G groups, of which the share `turned` (1/2) is turned. rank > 1 is MIMO: each head's value and
    gate are scaled by a learned vector for each of the `rank` updates, and the outputs added up by another. dt starts
    log-uniform in [1e-3, 0.1].
    """

    def __init__(self, D, *, K=128, V=None, G=1, expand=2, rank=1, turned=0.5):
        super().__init__()
        inner = expand * D
        V = min(64, inner) if V is None else V
        if inner % V:
            raise ValueError(f"V: expected a divisor of the inner width {inner}, got {V}")
        self.H, self.G, self.R, self.N = inner // V, G, rank, int(K * turned) // 2
        if self.N < 1:
            raise ValueError(f"turned: a share of {turned} of K={K} channels holds no pair")
        check_shared("G", G, self.H)
        self.widths = [inner, inner, rank * G * K, rank * G * K, self.H, self.H, self.H, self.N]
        self.inward = nn.Linear(D, sum(self.widths), bias=False)
        first = 10 ** torch.empty(self.H).uniform_(-3, -1)
        self.dt_bias_H = Still(first + torch.log(-torch.expm1(-first)))  # softplus of this is `first`
        self.q_norm, self.k_norm = nn.RMSNorm(K, eps=1e-5), nn.RMSNorm(K, eps=1e-5)
        self.q_bias_RHK = nn.Parameter(torch.ones(rank, self.H, K))
        self.k_bias_RHK = nn.Parameter(torch.ones(rank, self.H, K))
        self.skip_H = Still(torch.ones(self.H))
        self.up_RHV = nn.Parameter(torch.full((rank, self.H, V), 1 / rank)) if rank > 1 else None
        self.gate_RHV = nn.Parameter(torch.ones(rank, self.H, V)) if rank > 1 else None
        self.down_RHV = nn.Parameter(torch.full((rank, self.H, V), 1 / rank)) if rank > 1 else None
        self.out = nn.Linear(inner, D, bias=False)

    def forward(self, x_BTD, S=None, *, form="auto", **side):
        check({"D": self.inward.in_features}, x_BTD=x_BTD)
        gate, v, k, q, dt, a, blend, angle = self.inward(x_BTD).split(self.widths, -1)
        gate, v = (x.unflatten(-1, (self.H, -1)) for x in (gate, v))
        q, k = (
            norm(x.unflatten(-1, (self.R, self.G, -1))).repeat_interleave(self.H // self.G, 3) + bias
            for x, norm, bias in ((q, self.q_norm, self.q_bias_RHK), (k, self.k_norm, self.k_bias_RHK))
        )
        dt, a = (x.to(state_dtype(x.dtype)) for x in (dt, a))  # a log-decay adds up over the text
        dt, now = softplus(dt + self.dt_bias_H), blend.sigmoid()
        g = -(a.clamp(min=0) + (1 - a.clamp(max=0)).reciprocal()).clamp(min=1e-4) * dt
        theta = math.pi * angle.tanh()[:, :, None] * dt[..., None]
        z = q, k, v, g, now * dt, (1 - now) * dt, theta
        more = {} if self.up_RHV is None else {"up_RHV": self.up_RHV}
        y, S = by_form(__name__, form, x_BTD)(*z, S=S, **more, **side)
        y = y + self.skip_H[:, None] * _raised(v, self.up_RHV, self.R)
        if self.up_RHV is None:
            return self.out((y[:, :, 0] * silu(gate)).flatten(2)), S
        y = y * silu(gate[:, :, None] * self.gate_RHV)
        return self.out((y * self.down_RHV).sum(2).flatten(2)), S
