"""CfC: a gated recurrent cell in which the time since the last token moves a state between two proposals.

    b = act(u + R'h)        h <- (1 - s) left(b) + s right(b)        s = sigmoid(rate(b) dt + shift(b))

Hasani et al. 2022, "Closed-form continuous-time neural networks" (Nature Machine Intelligence 4; arXiv 2106.13898): the
gated form, as the authors' code computes it (ncps, CfCCell, mode "default", one backbone layer), and its two others:

    mode "no_gate"    h <- left(b) + s right(b)
    mode "pure"       h <- A - A f(b) exp(-(|tau| + |f(b)|) dt), the paper's eq. 2 with one head

 u is the input's share
of the backbone, R'h the state's; act(x) = 1.7159 tanh(0.666 x). left and right are affine and end in tanh, rate and
shift are affine: four heads.

| paper | here |
|---|---|
| x(t), I(t), t | h_BD (state S and output y), u_BTF (a projection of I), dt_BT |
| g, h (the two proposals) | heads 0 and 1 of heads_HFD and bias_HD |
| -f(x, I) t in the time gate | rate dt + shift, heads 2 and 3; the paper has no shift |

There is no differential equation in it any more, and no solver. What is lost with them: after dt = 0 the state is not
what it was, two steps of dt / 2 are not one step of dt, and the old h acts only through the backbone. Bounds are kept:
h is a weighted mean of two numbers in (-1, 1), for every dt and all weights.
"""

import math

import torch
from torch import nn

from postx.cost import Cost
from postx.mixers import Still, by_form, packed
from postx.shapes import named, positive, real, state_dtype

FAMILY = "liquid"
STATE = "h_BD"
HEADS = ("left", "right", "rate", "shift")
MODES = ("default", "no_gate", "pure")


@named
def init(u_BF, dt_B, *, r_DF, heads_HFD, bias_HD, tau_D=None, A_D=None, mode="default"):
    """All zeros: h_BD, at least float32."""
    _check(dt_B, heads_HFD, tau_D, A_D, mode)
    return u_BF.new_zeros(len(u_BF), len(r_DF), dtype=state_dtype(u_BF.dtype))


@named
def step(S, u_BF, dt_B, *, r_DF, heads_HFD, bias_HD, tau_D=None, A_D=None, mode="default", inplace=False):
    """One token that comes dt after the last. Returns (y_BD, S), the same numbers twice."""
    _check(dt_B, heads_HFD, tau_D, A_D, mode)
    u, dt, r, heads, bias = (x.to(S.dtype) for x in (u_BF, dt_B[:, None], r_DF, heads_HFD, bias_HD))
    b = 1.7159 * torch.tanh(0.666 * (u + S @ r))
    h = _cell(torch.einsum("bf,hfd->hbd", b, heads) + bias[:, None], dt, tau_D, A_D, mode)
    S = S.copy_(h) if inplace else h
    return h.to(u_BF.dtype), S


@packed
def recurrent(
    u_BTF, dt_BT, *, r_DF, heads_HFD, bias_HD, tau_D=None, A_D=None, mode="default", S=None, lengths_B=None
):
    """All tokens, left to right, in torch: the state is inside of every nonlinearity. Returns (y_BTD, S)."""
    _check(dt_BT, heads_HFD, tau_D, A_D, mode)
    kind = state_dtype(u_BTF.dtype)
    S = u_BTF.new_zeros(len(u_BTF), len(r_DF), dtype=kind) if S is None else S
    u, dt, r, bias = (x.to(kind) for x in (u_BTF, dt_BT[..., None], r_DF, bias_HD.flatten()))
    wide = heads_HFD.to(kind).permute(1, 0, 2).flatten(1)  # the heads side by side: one product
    ys = []
    for t, (u_BF, dt_B1) in enumerate(zip(u.unbind(1), dt.unbind(1), strict=True)):
        b = 1.7159 * torch.tanh(0.666 * torch.addmm(u_BF, S, r))
        h = _cell(torch.addmm(bias, b, wide).chunk(len(heads_HFD), -1), dt_B1, tau_D, A_D, mode)
        S = h if lengths_B is None else torch.where((t < lengths_B)[:, None], h, S)
        ys.append(h)
    return real(torch.stack(ys, 1), lengths_B).to(u_BTF.dtype), S


def _cell(heads, dt, tau_D, A_D, mode):
    """The new state from what the heads say of the backbone."""
    if mode == "pure":
        (f,) = heads
        A = A_D.to(f.dtype)
        return A - A * f * torch.exp(-dt * (tau_D.to(f.dtype).abs() + f.abs()))
    left, right, rate, shift = heads
    s, left, right = torch.sigmoid(rate * dt + shift), left.tanh(), right.tanh()
    return left + s * right if mode == "no_gate" else torch.lerp(left, right, s)


def _check(dt, heads_HFD, tau_D, A_D, mode):
    if mode not in MODES:
        raise ValueError(f"mode: expected one of {', '.join(map(repr, MODES))}, got {mode!r}")
    count = 1 if mode == "pure" else len(HEADS)
    if len(heads_HFD) != count:
        raise ValueError(f"heads_HFD: mode {mode!r} has H={count}, got shape {tuple(heads_HFD.shape)}")
    if (mode == "pure") != (tau_D is not None) or (tau_D is None) != (A_D is None):
        raise ValueError("tau_D, A_D: mode 'pure' needs both, the others take neither")
    if dt.device.type == "cpu" and bool((dt < 0).any()):  # on a GPU the question would stop the queue
        raise ValueError(f"dt: expected times >= 0, got {dt.min().item()}")


def example(T, *, B=2, D=5, F=7, seed=0, mode="default"):
    """Valid float64 inputs: ((u_BTF, dt_BT), dict(r_DF, heads_HFD, bias_HD, and of mode "pure" tau_D, A_D))."""
    generator = torch.Generator().manual_seed(seed)
    u, r, heads, bias = (
        torch.randn(*n, generator=generator, dtype=torch.float64)
        for n in ((B, T, F), (D, F), (len(HEADS), F, D), (len(HEADS), D))
    )
    dt = torch.rand(B, T, generator=generator, dtype=torch.float64) + 0.1
    w = {"r_DF": r / D**0.5, "heads_HFD": heads / F**0.5, "bias_HD": bias}
    if mode == "pure":
        w = {"r_DF": w["r_DF"], "heads_HFD": w["heads_HFD"][:1], "bias_HD": bias[:1], "tau_D": bias[1], "A_D": bias[2]}
    return (u, dt), w if mode == "default" else w | {"mode": mode}


def cost(T, *, B=1, D=5, F=7, item=4) -> Cost:
    """The bill of `step`: products with R and the four heads, 2 D F + 8 F D FLOPs, and 3 F + 10 D elementwise.

    Sums begin at u and at the biases. A sigmoid counts 3, a tanh 1, as an exp does. Bytes: u and dt in, y out. The
    state, D numbers, is bounded.
    """
    positive(T=T, B=B, D=D, F=F)
    return Cost(B * T * (10 * D * F + 3 * F + 10 * D), B * T * (F + 1 + D) * item, B * D)


class Layer(nn.Module):
    """A layer of CfC neurons: Layer(x_BTD, S=None, dt_BT=None) -> (y_BTD, S), S = (h,).

    out(cfc(inward(x))) with a backbone F wide (`width` unless told otherwise; 128 in the public code), each token dt
    after the last (1 where none is given). Weights start as Xavier does, as in that code; A at 1, and tau at 0.1 (there
    at 0, where |tau| has no slope, so that it never moves).
    """

    def __init__(self, D, *, width=None, F=None, mode="default"):
        super().__init__()
        width, self.mode, heads = width or D, mode, 1 if mode == "pure" else len(HEADS)
        F = F or width
        self.inward, self.out = nn.Linear(D, F), nn.Linear(width, D)
        self.r_DF = nn.Parameter(torch.empty(width, F).uniform_(-1, 1) * math.sqrt(6 / (D + width + F)))
        self.heads_HFD = nn.Parameter(torch.empty(heads, F, width).uniform_(-1, 1) * math.sqrt(6 / (F + width)))
        self.bias_HD = Still(torch.zeros(heads, width))
        self.tau_D = Still(torch.full((width,), 0.1)) if mode == "pure" else None
        self.A_D = nn.Parameter(torch.ones(width)) if mode == "pure" else None

    def forward(self, x_BTD, S=None, *, dt_BT=None, form="auto", **side):
        dt_BT = torch.ones_like(x_BTD[..., 0]) if dt_BT is None else dt_BT
        w = {"r_DF": self.r_DF, "heads_HFD": self.heads_HFD, "bias_HD": self.bias_HD}
        w |= {"mode": self.mode, "tau_D": self.tau_D, "A_D": self.A_D}
        y, h = by_form(__name__, form, x_BTD)(self.inward(x_BTD), dt_BT, S=S[0] if S else None, **w, **side)
        return self.out(y), (h,)
