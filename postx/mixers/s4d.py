"""S4D: each channel keeps N damped oscillators that ring with its past, the same ones whatever the text says.

    h <- exp(delta A) h + (exp(delta A) - 1) / A u        y = 2 Re(sum_n C h) + skip u

Gu et al. 2022, "On the Parameterization and Initialization of Diagonal State Space Models" (S4D), on Gu et al.
2021 (S4): zero-order hold of both matrices, B = 1, and one of each conjugate pair kept, hence 2 Re. Because
nothing depends on the input, the recurrence is also a convolution with the kernel 2 Re(sum C Bbar exp(delta A)^l).

| paper | here |
|---|---|
| u, y, D | u_BTD, y_BTD, skip_D |
| Delta, A, C, x (the state) | delta_D, A_DN, C_DN (complex), S_BDN (complex) |
"""

import math

import torch
from torch import nn

from postx import scans
from postx.cost import Cost, ssm_scan
from postx.mixers import Still, by_form, packed
from postx.parts.hippo import INITS, hippo_legs, inv, legs, lin, normal_plus_low_rank  # noqa: F401
from postx.scans import operators
from postx.shapes import named, real, state_dtype

FAMILY, LETTER = "ssm", "I"
STATE = "S_BDN"
AUTO = {"far": "parallel"}  # few large operations beat a loop over chunks


@named
def init(u_BD, *, delta_D, A_DN, C_DN, skip_D):
    """All oscillators at rest: complex zeros S_BDN, at least complex64."""
    _complex(A_DN=A_DN, C_DN=C_DN)
    return u_BD.new_zeros(*u_BD.shape, A_DN.shape[1], dtype=_kind(u_BD, A_DN))


@named
def step(S, u_BD, *, delta_D, A_DN, C_DN, skip_D, inplace=False):
    """One token: each oscillator turns, fades, and is pushed by u. Returns (y_BD, S)."""
    _complex(A_DN=A_DN, C_DN=C_DN)
    turn_DN, push_DN = _discretize(delta_D, A_DN, S.dtype)
    written = push_DN * u_BD[..., None]
    S = S.mul_(turn_DN).add_(written) if inplace else turn_DN * S + written
    y = 2 * (C_DN * S).sum(-1).real + skip_D * u_BD
    return y.to(u_BD.dtype), S


@packed
def recurrent(u_BTD, *, delta_D, A_DN, C_DN, skip_D, S=None, lengths_B=None, impl="auto"):
    """All tokens, left to right, through the diagonal scan. Returns (y_BTD, S)."""
    _complex(A_DN=A_DN, C_DN=C_DN)
    z = delta_D[:, None] * A_DN
    exact = torch.special.expm1(z) / z  # zero-order hold of B, over the scan's own Euler step delta B
    y, S = scans.diagonal(u_BTD, delta_D, A_DN, exact, 2 * C_DN, S, lengths_B=lengths_B, impl=impl)
    return real(y + (skip_D * u_BTD).to(y.dtype), lengths_B), S


@packed
def parallel(u_BTD, *, delta_D, A_DN, C_DN, skip_D, S=None, lengths_B=None):
    """All tokens at once: a causal convolution by FFT, padded so that its end does not wrap. Returns (y_BTD, S).

    The powers of exp(delta A) are written out, so memory grows with D N T; `chunked` bounds it.
    """
    return _convolve(u_BTD, delta_D, A_DN, C_DN, skip_D, S, lengths_B)


@packed
def chunked(u_BTD, *, delta_D, A_DN, C_DN, skip_D, S=None, lengths_B=None, chunk=64):
    """A convolution within each chunk of tokens, the state between chunks. Returns (y_BTD, S)."""
    outputs = []
    for t in range(0, u_BTD.shape[1], chunk):
        piece = u_BTD[:, t : t + chunk]
        left = None if lengths_B is None else (lengths_B - t).clamp(0, piece.shape[1])
        y, S = _convolve(piece, delta_D, A_DN, C_DN, skip_D, S, left)
        outputs.append(y)
    return torch.cat(outputs, 1), S


def kernel(T, *, delta_D, A_DN, C_DN):
    """The impulse response of each channel, [D, T] real: 2 Re(sum_n C Bbar exp(delta A)^l), l = 0..T-1."""
    turn_DN, push_DN = _discretize(delta_D, A_DN, torch.promote_types(A_DN.dtype, C_DN.dtype))
    return 2 * torch.einsum("dn,dnt->dt", C_DN * push_DN, _powers(delta_D, A_DN, T, turn_DN.dtype)).real


def _convolve(u_BTD, delta_D, A_DN, C_DN, skip_D, S, lengths_B):
    _complex(A_DN=A_DN, C_DN=C_DN)
    (B, T, D), kind = u_BTD.shape, _kind(u_BTD, A_DN)
    S = u_BTD.new_zeros(B, D, A_DN.shape[1], dtype=kind) if S is None else S
    u = u_BTD.to(state_dtype(u_BTD.dtype))
    powers_DNT = _powers(delta_D, A_DN, T + 1, kind)
    turn_DN, push_DN = _discretize(delta_D, A_DN, kind)
    response_DT = 2 * torch.einsum("dn,dnt->dt", C_DN * push_DN, powers_DNT[..., :T]).real
    n = 2 * T
    spectrum = torch.fft.rfft(u, n, dim=1) * torch.fft.rfft(response_DT, n, dim=1).mT
    ringing = (
        2 * torch.einsum("bdn,dnt->btd", C_DN * S, powers_DNT[..., 1:]).real
    )  # of the state that came in
    y = torch.fft.irfft(spectrum, n, dim=1)[:, :T] + ringing + skip_D * u

    ends = torch.full((B,), T, device=u.device) if lengths_B is None else lengths_B
    # The state at each row's end: shift the row so that its last real token stands last.
    source_BT = torch.arange(T, device=u.device) - (T - ends)[:, None]
    shifted = u.gather(1, source_BT.clamp(min=0)[..., None].expand_as(u)) * (source_BT >= 0)[..., None]
    written = torch.einsum("btd,dnt->bdn", shifted.to(kind), powers_DNT[..., :T].flip(-1))
    left = powers_DNT[..., ends].movedim(-1, 0)
    return real(y.to(u_BTD.dtype), lengths_B), left * S + push_DN * written


def _discretize(delta_D, A_DN, kind):
    """(exp(delta A), (exp(delta A) - 1) / A). expm1: in float32 the difference loses every digit at small delta."""
    z = delta_D[:, None] * A_DN
    return torch.exp(z).to(kind), (torch.special.expm1(z) / A_DN).to(kind)


def _powers(delta_D, A_DN, T, kind):
    """exp(delta A l) for l = 0..T-1, [D, N, T]."""
    steps = torch.arange(T, device=A_DN.device, dtype=delta_D.dtype)
    return torch.exp((delta_D[:, None] * A_DN)[..., None] * steps).to(kind)


def _kind(u, A):
    return torch.promote_types(state_dtype(u.dtype), A.dtype)


def _complex(**weights):
    for name, x in weights.items():
        if not x.is_complex():
            raise ValueError(f"{name}: expected complex numbers [D, N], got {x.dtype}")


@named
def operator(u_BTD, **w):
    """What these tokens do to any state: see `postx.scans.operators`."""
    keep_DN, _ = _discretize(u_BTD.shape[1] * w["delta_D"], w["A_DN"], _kind(u_BTD, w["A_DN"]))
    return operators.Fade(keep_DN, recurrent(u_BTD, **w)[1])


def example(T, *, B=2, D=3, N=4, seed=0):
    """Valid float64 inputs: ((u_BTD,), dict(delta_D, A_DN, C_DN, skip_D))."""
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape, dtype=torch.float64):
        return torch.randn(shape, generator=generator, dtype=dtype)

    delta_D = torch.exp(randn(D) * 0.5 - 2)
    w = {
        "delta_D": delta_D,
        "A_DN": lin(D, N),
        "C_DN": randn(D, N, dtype=torch.complex128),
        "skip_D": randn(D),
    }
    return (randn(B, T, D),), w


def cost(T, *, B=1, D=64, N=32, item=4) -> Cost:
    """The bill of `recurrent` on T tokens; the state, D N complex numbers, is bounded."""
    return ssm_scan(T, B=B, D=D, N=N, selective=False, item=item)


class Layer(nn.Module):
    """S4D, a GELU and a projection: Layer(x_BTD, S=None) -> (y_BTD, S). delta starts log-uniform in [1e-3, 0.1].

    init="lin", "inv" or "legs": the N frequencies that every channel starts from.
    """

    def __init__(self, D, *, N=32, init="lin"):
        super().__init__()
        if init not in INITS:
            raise ValueError(f"init: expected one of {', '.join(map(repr, INITS))}, got {init!r}")
        self.log_delta_D = nn.Parameter(torch.empty(D).uniform_(math.log(1e-3), math.log(0.1)))
        self.log_A_real_DN = Still(torch.full((D, N), math.log(0.5)))
        self.A_imag_DN = Still(INITS[init](D, N).imag.to(torch.get_default_dtype()))
        self.C_DN2 = nn.Parameter(
            torch.randn(D, N, 2) * math.sqrt(0.5)
        )  # real and imaginary part: optimizers want reals
        self.skip_D = nn.Parameter(torch.randn(D))
        self.out = nn.Linear(D, D)

    def weights(self):
        """delta_D, A_DN, C_DN and skip_D as the mixer takes them; the real part of A is always negative."""
        wide = state_dtype(self.C_DN2.dtype)  # there are no complex numbers of bfloat16
        A_DN = torch.complex(-torch.exp(self.log_A_real_DN.to(wide)), self.A_imag_DN.to(wide))
        C_DN, delta_D = torch.view_as_complex(self.C_DN2.to(wide)), torch.exp(self.log_delta_D.to(wide))
        return {"delta_D": delta_D, "A_DN": A_DN, "C_DN": C_DN, "skip_D": self.skip_D}

    def forward(self, x_BTD, S=None, *, form="auto", **side):
        y, S = by_form(__name__, form, x_BTD)(x_BTD, S=S[0] if S else None, **self.weights(), **side)
        return self.out(nn.functional.gelu(y)), (S,)
