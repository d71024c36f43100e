"""LTC with a synapse for every wire: each has a conductance, a slope, a threshold and a level that it pulls to.

    capacity dh_d/dt = drive_d - total_d h_d + sum_k weight_kd sigma_kd (level_kd - h_d)
    sigma_kd = sigmoid(slope_kd (h_k - threshold_kd))

Hasani et al. 2021, "Liquid Time-constant Networks" (arXiv 2006.04439), sec. 2, as the authors' code has it (ncps,
LTCCell): the network f of their eq. 1 is a sum over synapses, and the leak pulls to a level of its own. `liquid` has
one gate and one reversal potential a neuron. drive and total hold what does not change within a token: the leak, and
the inputs, whose synapses are the Layer's. The fused solver (eq. 3) takes `unfolds` steps of s = dt / unfolds, with
sigma at the old h and h itself at the new:

    h <- (capacity h + s (drive + sum weight sigma level)) / (capacity + s (total + sum weight sigma))

With conductances and capacity > 0 the new h is a weighted mean of the old one and of the levels, for every dt. The
published code adds 1e-8 to the denominator; here nothing.

| published code | here |
|---|---|
| cm, w, erev, sigma, mu | capacity_D, weight_DD, level_DD, slope_DD, threshold_DD (from, to) |
| sensory sums with gleak vleak, gleak | drive_BTD, total_BTD |
| elapsed time, ode_unfolds | dt_BT, unfolds |
"""

import torch
from torch import nn
from torch.nn.functional import softplus

from postx.cost import Cost
from postx.mixers import by_form, packed
from postx.scans import cpu_synapses
from postx.shapes import check, named, pick, positive, real, state_dtype

FAMILY = "liquid"
STATE = "h_BD"
IMPLEMENTATIONS = ("torch", "numba")


@named
def init(drive_BD, total_BD, dt_B, *, capacity_D, weight_DD, level_DD, slope_DD, threshold_DD, unfolds=6):
    """All neurons at 0: h_BD, at least float32."""
    _check(dt_B, unfolds)
    return torch.zeros_like(drive_BD, dtype=state_dtype(drive_BD.dtype))


@named
def step(
    S, drive_BD, total_BD, dt_B, *, capacity_D, weight_DD, level_DD, slope_DD, threshold_DD, unfolds=6, inplace=False
):  # fmt: skip
    """One token: the inputs hold for a time dt. Returns (y_BD, S), the same numbers twice."""
    _check(dt_B, unfolds)
    w = (x.to(S.dtype) for x in (capacity_D, weight_DD, level_DD, slope_DD, threshold_DD))
    drive, total, dt = (x.to(S.dtype) for x in (drive_BD, total_BD, dt_B[:, None]))
    h = _fused(S, drive, total, dt / unfolds, *w, unfolds)
    S = S.copy_(h) if inplace else h
    return h.to(drive_BD.dtype), S


@packed
def recurrent(
    drive_BTD, total_BTD, dt_BT, *, capacity_D, weight_DD, level_DD, slope_DD, threshold_DD, unfolds=6, S=None,
    lengths_B=None, impl="auto",
):  # fmt: skip
    """All tokens, left to right, in a loop of its own: impl "torch", or on a CPU "numba". Returns (y_BTD, S)."""
    _check(dt_BT, unfolds)
    chosen = pick(impl, IMPLEMENTATIONS if drive_BTD.device.type == "cpu" else IMPLEMENTATIONS[:1])
    kind = state_dtype(drive_BTD.dtype)
    S = torch.zeros_like(drive_BTD[:, 0], dtype=kind) if S is None else S
    # past a row's end no time passes
    drive, total, dt = (real(x, lengths_B).to(kind) for x in (drive_BTD, total_BTD, dt_BT))
    w = [x.to(kind) for x in (capacity_D, weight_DD, level_DD, slope_DD, threshold_DD)]
    if chosen == "numba":
        y, S = cpu_synapses.Fused.apply(drive, total, dt, *w, S, unfolds)
    else:
        ys = []
        for drive_BD, total_BD, dt_B in zip(drive.unbind(1), total.unbind(1), dt.unbind(1), strict=True):
            S = _fused(S, drive_BD, total_BD, dt_B[:, None] / unfolds, *w, unfolds)
            ys.append(S)
        y = torch.stack(ys, 1)
    return real(y, lengths_B).to(drive_BTD.dtype), S


def _fused(h, drive, total, s, capacity, weight, level, slope, threshold, unfolds):
    """`unfolds` semi-implicit Euler steps of length s under constant inputs."""
    for _ in range(unfolds):
        opened = weight * torch.sigmoid(slope * (h[..., None] - threshold))  # [B, from, to]
        top = capacity * h + s * (drive + (opened * level).sum(1))
        h = top / (capacity + s * (total + opened.sum(1)))
    return h


def _check(dt, unfolds):
    positive(unfolds=unfolds)
    if dt.device.type == "cpu" and bool((dt < 0).any()):  # on a GPU the question would stop the queue
        raise ValueError(f"dt: expected times >= 0, got {dt.min().item()}")


def example(T, *, B=2, D=4, seed=0):
    """Valid float64 inputs: ((drive_BTD, total_BTD, dt_BT), dict of the five weights)."""
    generator = torch.Generator().manual_seed(seed)
    drive, level = (torch.randn(n, generator=generator, dtype=torch.float64) for n in ((B, T, D), (D, D)))
    total, dt, capacity, weight, slope, threshold = (
        torch.rand(n, generator=generator, dtype=torch.float64) for n in ((B, T, D), (B, T), (D,), *[(D, D)] * 3)
    )
    w = {"capacity_D": 0.4 + 0.2 * capacity, "weight_DD": weight, "level_DD": level}
    return (drive, total, 0.1 + dt), w | {"slope_DD": 3 + 5 * slope, "threshold_DD": 0.3 + 0.5 * threshold}


def cost(T, *, B=1, D=4, unfolds=6, item=4) -> Cost:
    """The bill of `recurrent`: `unfolds` times 9 FLOPs a synapse and 7 a neuron, counted on `_fused`.

    A synapse: a difference, slope, sigmoid (3), weight, level, two sums. Bytes: drive, total and dt in, y out. The
    state, D numbers, is bounded.
    """
    positive(T=T, B=B, D=D, unfolds=unfolds)
    return Cost(B * T * unfolds * (9 * D * D + 7 * D), B * T * (3 * D + 1) * item, B * D)


class Layer(nn.Module):
    """A layer of LTC neurons, all wires there: Layer(x_BTD, S=None, dt_BT=None) -> (y_BTD, S), S = (h,).

    Each input is scaled and shifted, and reaches each of the `width` neurons by a synapse of its own. Conductances,
    leak and capacity go through a softplus. They start from the ranges of the authors' code. dt is 1 where none is
    given.
    """

    def __init__(self, D, *, width=None, unfolds=6):
        super().__init__()
        width, self.unfolds = width or D, unfolds

        def draw(*shape, low, high):
            return nn.Parameter(torch.empty(*shape).uniform_(low, high))

        self.scale_D, self.shift_D = nn.Parameter(torch.ones(D)), nn.Parameter(torch.zeros(D))
        self.weight_DD = draw(D + width, width, low=0.001, high=1.0)  # inputs first, then neurons
        self.slope_DD = draw(D + width, width, low=3.0, high=8.0)
        self.threshold_DD = draw(D + width, width, low=0.3, high=0.8)
        self.level_DD = nn.Parameter(torch.randint(2, (D + width, width)) * 2.0 - 1)
        self.leak_D, self.rest_D = draw(width, low=0.001, high=1.0), draw(width, low=-0.2, high=0.2)
        self.capacity_D = draw(width, low=0.4, high=0.6)
        self.out = nn.Linear(width, D)

    def forward(self, x_BTD, S=None, *, dt_BT=None, form="auto", **side):
        y, h = self.neurons(x_BTD, S[0] if S else None, dt_BT, form, **side)
        return self.out(y), (h,)

    def neurons(self, x_BTD, h_BD=None, dt_BT=None, form="auto", **side):
        """What the neurons hold after each token, without the projection to the outside. Returns (y, h_BD)."""
        D = self.scale_D.shape[0]
        check({"D": D}, x_BTD=x_BTD)
        dt_BT = torch.ones_like(x_BTD[..., 0]) if dt_BT is None else dt_BT
        weight, leak = softplus(self.weight_DD), softplus(self.leak_D)
        seen = (x_BTD * self.scale_D + self.shift_D)[..., None]
        opened = weight[:D] * torch.sigmoid(self.slope_DD[:D] * (seen - self.threshold_DD[:D]))
        drive, total = (opened * self.level_DD[:D]).sum(-2) + leak * self.rest_D, opened.sum(-2) + leak
        tables = {"level_DD": self.level_DD, "slope_DD": self.slope_DD, "threshold_DD": self.threshold_DD}
        w = {"capacity_D": softplus(self.capacity_D)}
        w |= {name: x[D:] for name, x in ({"weight_DD": weight} | tables).items()}
        return by_form(__name__, form, x_BTD)(drive, total, dt_BT, S=h_BD, unfolds=self.unfolds, **w, **side)
