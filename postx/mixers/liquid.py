"""Liquid time-constant networks: neurons that leak at a rate which the input and the other neurons set.

    dh/dt = -(delta + f) h + f A        f = peak sigmoid(u + R'h)        y = h at the end of the step

Hasani et al. 2021, "Liquid Time-constant Networks" (arXiv 2006.04439), eq. 1. A token is an input that holds for a time
dt; its update is the paper's fused solver (eq. 3), `unfolds` times with s = dt / unfolds:

    h <- (h + s f A) / (1 + s (delta + f))

f is taken at the old h, the h that leaks at the new one: semi-implicit Euler, of order 1 in s. With delta and peak >= 0
the new h is a weighted mean of h, A and 0, so it stays between min(0, A) and max(0, A) whatever s is (theorem 2), and
the time constant 1 / (delta + f) between 1 / (delta + peak) and 1 / delta (theorem 1). With a negative peak neither
holds.

| paper | here |
|---|---|
| x(t), I(t), A | h_BD (state S and output y), u_BTD (a projection of I), A_D |
| tau, f | 1 / delta_D, peak_D sigmoid(u_BTD + r_DD' h) |
| Delta t, number of unfolding steps L | dt_BT, in the units of 1 / delta; unfolds (6 in the public codes) |

Deviations. The paper leaves the network f open; here it is one layer, with one reversal potential A a neuron. The
public codes (ncps) sum over synapses, each with a sigmoid and a reversal potential of its own, and let the leak pull
to a learned level instead of 0.

Without r_DD the gate hears only the input. Then the equation is linear in h, both programs are a decay and a write for
each channel, and run through `scans.affine`, the recurrence of the RG-LRU. solver="exact" takes the solution itself
there, h <- e^(-(delta + f) dt) (h - h*) + h*, h* = f A / (delta + f): zero-order hold, as a state-space model does it.
"""

import math

import torch
from torch import nn

from postx import scans
from postx.cost import Cost
from postx.mixers import by_form, packed
from postx.scans import cpu_liquid
from postx.shapes import named, pick, positive, real, state_dtype, whole

FAMILY = "liquid"
STATE = "h_BD"
SOLVERS = ("fused", "exact")
IMPLEMENTATIONS = ("torch", "numba")


@named
def init(u_BD, dt_B, *, delta_D, A_D, peak_D, r_DD=None, unfolds=6, solver="fused"):
    """All neurons at rest: zeros h_BD, at least float32."""
    _check(dt_B, r_DD, unfolds, solver)
    return torch.zeros_like(u_BD, dtype=state_dtype(u_BD.dtype))


@named
def step(S, u_BD, dt_B, *, delta_D, A_D, peak_D, r_DD=None, unfolds=6, solver="fused", inplace=False):
    """One token: the input u holds for a time dt. Returns (y_BD, S), the same numbers twice."""
    _check(dt_B, r_DD, unfolds, solver)
    u, dt, delta, A, peak, r = _cast(S.dtype, u_BD, dt_B[:, None], delta_D, A_D, peak_D, r_DD)
    if solver == "exact":
        g, b = _exact(u, dt, delta, A, peak)
        h = g.exp() * S + b
    else:
        h = _fused(S, u, dt / unfolds, delta, A, peak, r, unfolds)
    S = S.copy_(h) if inplace else h
    return h.to(u_BD.dtype), S


@packed
def recurrent(
    u_BTD, dt_BT, *, delta_D, A_D, peak_D, r_DD=None, unfolds=6, solver="fused", S=None, lengths_B=None, impl="auto"
):  # fmt: skip
    """All tokens, left to right. Returns (y_BTD, S).

    With r_DD a loop of its own, impl "torch" or (on a CPU) "numba"; without it the affine scan in either.
    """
    _check(dt_BT, r_DD, unfolds, solver)
    chosen = pick(impl, IMPLEMENTATIONS if u_BTD.device.type == "cpu" else IMPLEMENTATIONS[:1])
    kind = state_dtype(u_BTD.dtype)
    S = torch.zeros_like(u_BTD[:, 0], dtype=kind) if S is None else S
    u, dt, delta, A, peak, r = _cast(kind, u_BTD, dt_BT[..., None], delta_D, A_D, peak_D, r_DD)
    dt = real(dt, lengths_B)  # past a row's end no time passes
    if r is None:
        g, b = _exact(u, dt, delta, A, peak) if solver == "exact" else _closed(u, dt, delta, A, peak, unfolds)
        y, S = scans.affine(g, b, S, lengths_B=lengths_B, impl="reference" if chosen == "torch" else "numba")
    elif chosen == "numba":
        y, S = cpu_liquid.Fused.apply(u, dt[..., 0], r, delta, A, peak, S, unfolds)
    else:
        ys = []
        for u_BD, dt_B1 in zip(u.unbind(1), dt.unbind(1), strict=True):
            S = _fused(S, u_BD, dt_B1 / unfolds, delta, A, peak, r, unfolds)
            ys.append(S)
        y = torch.stack(ys, 1)
    return real(y, lengths_B).to(u_BTD.dtype), S


def _fused(h, u, s, delta, A, peak, r, unfolds):
    """`unfolds` semi-implicit Euler steps of length s under the constant input u."""
    for _ in range(unfolds):
        f = peak * torch.sigmoid(u if r is None else u + h @ r)
        h = (h + s * f * A) / (1 + s * (delta + f))
    return h


def _closed(u, dt, delta, A, peak, unfolds):
    """Log-decay and write of all fused steps of a token together, where the gate does not hear h."""
    f = peak * torch.sigmoid(u)
    g = -unfolds * torch.log1p(dt / unfolds * (delta + f))
    return g, -torch.expm1(g) * f * A / (delta + f)


def _exact(u, dt, delta, A, peak):
    """Log-decay and write of the solution itself: towards h* = f A / (delta + f) at the rate delta + f."""
    f = peak * torch.sigmoid(u)
    g = -dt * (delta + f)
    return g, -torch.expm1(g) * f * A / (delta + f)


def _cast(kind, *tensors):
    return [None if x is None else x.to(kind) for x in tensors]


def _check(dt, r_DD, unfolds, solver):
    whole(unfolds=unfolds)
    if solver not in SOLVERS or (solver == "exact" and r_DD is not None):
        raise ValueError(f"solver: expected 'fused', or 'exact' where r_DD is None, got {solver!r}")
    if dt.device.type == "cpu" and bool((dt < 0).any()):  # on a GPU the question would stop the queue
        raise ValueError(f"dt: expected times >= 0, got {dt.min().item()}")


def example(T, *, B=2, D=5, seed=0, recurrent=True):
    """Valid float64 inputs: ((u_BTD, dt_BT), dict(delta_D, A_D, peak_D, r_DD)); r_DD None where not recurrent."""
    generator = torch.Generator().manual_seed(seed)
    u = torch.randn(B, T, D, generator=generator, dtype=torch.float64)
    dt, delta, peak = (torch.rand(*n, generator=generator, dtype=torch.float64) for n in ((B, T), (D,), (D,)))
    A, r = (torch.randn(*n, generator=generator, dtype=torch.float64) for n in ((D,), (D, D)))
    w = {"delta_D": 0.2 + delta, "A_D": A, "peak_D": 0.5 + 2 * peak, "r_DD": r if recurrent else None}
    return (u, 0.1 + dt), w


def cost(T, *, B=1, D=5, unfolds=6, item=4) -> Cost:
    """The bill of `recurrent` with r_DD: `unfolds` times a product with R and 11 FLOPs a neuron, counted on `_fused`.

    The product's sum begins at u. A sigmoid counts 3: exp, addition, division. Bytes: u and dt in, y out. The state,
    D numbers, is bounded.
    """
    positive(T=T, B=B, D=D, unfolds=unfolds)
    return Cost(B * T * unfolds * D * (2 * D + 11), B * T * (2 * D + 1) * item, B * D)


class Layer(nn.Module):
    """A layer of liquid neurons: Layer(x_BTD, S=None, dt_BT=None) -> (y_BTD, S), S = (h,).

    out(liquid(inward(x))), each token holding for its dt (1 where none is given). Time constants start spread from
    `slowest` down to `fastest` in the units of dt, the gates' peaks at 1 / fastest, A at random signs of 1, and R
    about as steep as the slopes of the public codes (3 to 8): with a flat one the gates hardly hear it.
    recurrent=False leaves R out: a linear recurrence.
    """

    def __init__(self, D, *, width=None, unfolds=6, fastest=1.0, slowest=32.0, recurrent=True, solver="fused"):
        super().__init__()
        width = width or D
        self.unfolds, self.solver = unfolds, solver
        self.inward, self.out = nn.Linear(D, width), nn.Linear(width, D)
        self.log_delta_D = nn.Parameter(-torch.linspace(math.log(fastest), math.log(slowest), width))
        self.log_peak_D = nn.Parameter(torch.full((width,), -math.log(fastest)))
        self.A_D = nn.Parameter(torch.randint(2, (width,)) * 2.0 - 1)
        self.r_DD = nn.Parameter(4 * torch.randn(width, width) / math.sqrt(width)) if recurrent else None

    def forward(self, x_BTD, S=None, *, dt_BT=None, form="auto", **side):
        dt_BT = torch.ones_like(x_BTD[..., 0]) if dt_BT is None else dt_BT
        w = {"delta_D": self.log_delta_D.exp(), "A_D": self.A_D, "peak_D": self.log_peak_D.exp(), "r_DD": self.r_DD}
        w |= {"unfolds": self.unfolds, "solver": self.solver}
        mix = by_form(__name__, form, x_BTD)
        y, h = mix(self.inward(x_BTD), dt_BT, S=S[0] if S else None, **w, **side)
        return self.out(y), (h,)
