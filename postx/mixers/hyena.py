"""Hyena: long filters and gates in turn. Each level convolves with all of the past, then multiplies by the input.

    z <- v        for each level n = 1..L:   z <- x_n * (h_n conv z + skip_n z)        y <- z

Poli et al. 2023, "Hyena Hierarchy" (arXiv 2302.10866), def. 3.1: the order is the number of levels, L here. As a
matrix it is D_L S_L .. D_1 S_1, diagonals times causal Toeplitz matrices (sec. 3.2). Order 1 is GSS; order 2 is H3
(remark 3.2; Fu et al. 2022), with a shift filter and a diagonal SSM (`h3` below builds them). The authors' code
(safari) counts differently: its order 2 is one long filter between two gates, which is order 2 here with the first
response 1, 0, 0, .. and no skip.

A filter has a fixed greatest length W. Decode keeps the last W - 1 inputs of every level and takes a real dot
product with them: W D L work a token, where a state space model has N D. Nothing of the prefix is computed again.

| paper | here |
|---|---|
| v, x^n, h^n, D (the skip) | v_BTD, x_BTLD, response_LDW (column 0 meets the current token), skip_LD |
| the past inputs of every level | S_BLWD [B, L, W-1, D], oldest first |
"""

import math
from contextlib import nullcontext

import torch
from torch import nn

from postx.cost import Cost, long_convolution
from postx.mixers import Still, by_form, packed, s4d
from postx.parts import conv
from postx.shapes import check, named, real, state_dtype

FAMILY, LETTER = "conv", "H"
STATE = "S_BLW-1D"
AUTO = {"near": "parallel", "far": "parallel"}  # few large operations beat any loop
GROWS = "W"


@named
def init(v_BD, x_BLD, *, response_LDW, skip_LD):
    """No past: zeros S_BLWD [B, L, W-1, D], at least float32."""
    B, L, D = x_BLD.shape
    return v_BD.new_zeros(B, L, _taps(response_LDW) - 1, D, dtype=state_dtype(v_BD.dtype))


@named
def step(S, v_BD, x_BLD, *, response_LDW, skip_LD, inplace=False):
    """One token: level by level, the filter's dot product with what is kept, then the gate. Returns (y_BD, S)."""
    _taps(response_LDW)
    z, levels = v_BD.to(S.dtype), []
    for n in range(len(response_LDW)):
        y, kept = conv.step(S[:, n], z, response_LDW[n].flip(1), inplace=inplace)
        z = x_BLD[:, n] * (y + skip_LD[n] * z)
        levels.append(kept)
    return z.to(v_BD.dtype), S if inplace else torch.stack(levels, 1)


@packed
def recurrent(v_BTD, x_BTLD, *, response_LDW, skip_LD, S=None, lengths_B=None, impl="auto"):
    """All tokens, left to right, a dot product of W taps each: T W L products a channel. Returns (y_BTD, S)."""

    def convolve(z, response_DW, S):
        return conv.scan(z, response_DW.flip(1), S, lengths_B, impl)

    return _levels(convolve, v_BTD, x_BTLD, response_LDW, skip_LD, S, lengths_B)


@packed
def parallel(v_BTD, x_BTLD, *, response_LDW, skip_LD, S=None, lengths_B=None):
    """All tokens at once, each level by FFT, padded so that its end does not wrap. Returns (y_BTD, S).

    L T log T work. Exact but for rounding, which grows with the largest input of a row, not with each output.
    """
    return _by_fft(v_BTD, x_BTLD, response_LDW, skip_LD, S, lengths_B)


@packed
def chunked(v_BTD, x_BTLD, *, response_LDW, skip_LD, S=None, lengths_B=None, chunk=64):
    """Chunks of tokens by FFT, each with the last W - 1 inputs before it. Returns (y_BTD, S).

    Overlap-save: a transform of chunk + W - 1 points gives `chunk` outputs, so memory is bounded, and a chunk
    much shorter than W is wasteful.
    """
    outputs = []
    for t in range(0, v_BTD.shape[1], chunk):
        v, x = v_BTD[:, t : t + chunk], x_BTLD[:, t : t + chunk]
        left = None if lengths_B is None else (lengths_B - t).clamp(0, v.shape[1])
        y, S = _by_fft(v, x, response_LDW, skip_LD, S, left)
        outputs.append(y)
    return torch.cat(outputs, 1), S


def _by_fft(v_BTD, x_BTLD, response_LDW, skip_LD, S, lengths_B):
    def convolve(z, response_DW, S):
        return conv.long_convolution(z, response_DW, S, lengths_B)

    return _levels(convolve, v_BTD, x_BTLD, response_LDW, skip_LD, S, lengths_B)


def _levels(convolve, v_BTD, x_BTLD, response_LDW, skip_LD, S, lengths_B):
    """Level by level: convolve(z, response_DW, S_BWD) -> (y_BTD, S_BWD), then the skip and the gate."""
    _taps(response_LDW)
    z, levels = v_BTD.to(state_dtype(v_BTD.dtype)), []
    for n in range(len(response_LDW)):
        y, kept = convolve(z, response_LDW[n], None if S is None else S[:, n])
        z = x_BTLD[:, :, n] * (y + skip_LD[n] * z)
        levels.append(kept)
    return real(z, lengths_B).to(v_BTD.dtype), torch.stack(levels, 1)


def shift(taps_DN, W):
    """The response of H3's shift SSM, [D, W]: its state holds the last N inputs, so it is N free taps, then zeros.

    Raises ValueError where N exceeds W.
    """
    sizes = check(taps_DN=taps_DN)
    if sizes["N"] > W:
        raise ValueError(f"taps_DN: {sizes['N']} taps do not fit into a response of W = {W}")
    return nn.functional.pad(taps_DN, (0, W - sizes["N"]))


def h3(taps_DN, W, *, delta_D, A_DN, C_DN):
    """The two responses of H3, response_LDW with L = 2: a shift of keys, then S4D's diagonal memory of k v.

    y = q * ssm(v * shift(k)): call the forms with v_BTD = k and x_BTLD = [v, q]. The diagonal response is cut at W,
    so it equals the endless recurrence for the first W tokens. Source: Fu et al. 2022 (arXiv 2212.14052), sec. 3.2.
    """
    return torch.stack([shift(taps_DN, W), s4d.kernel(W, delta_D=delta_D, A_DN=A_DN, C_DN=C_DN)])


def _taps(response_LDW):
    """W. Raises ValueError where there is no level or no tap."""
    if not response_LDW.numel():
        shape = tuple(response_LDW.shape)
        raise ValueError(f"response_LDW: expected at least one level and one tap, got shape {shape}")
    return response_LDW.shape[2]


def example(T, *, B=2, L=2, D=3, W=21, seed=0):
    """Valid float64 inputs: ((v_BTD, x_BTLD), dict(response_LDW, skip_LD)), with filters that fade."""
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    fade = torch.exp(-3 * torch.arange(W) / W)
    return (randn(B, T, D), randn(B, T, L, D)), {
        "response_LDW": randn(L, D, W) * fade,
        "skip_LD": randn(L, D),
    }


def cost(T, *, B=1, L=2, D=3, W=21, item=4) -> Cost:
    """The bill of `parallel`: L long convolutions, each with a skip and a gate, 3 FLOPs a token and channel.

    The state, the last W - 1 inputs of every level, is bounded by W: while T <= W it is all of the past.
    """
    level = long_convolution(T, B=B, D=D, item=item)
    moved = (B * T * D * (2 + L) + L * D * W) * item
    by = f"a filter of {W} taps: that many past inputs, at every level"
    return Cost(L * (level.flops + 3 * B * T * D), moved, B * L * (W - 1) * D, True, by)


class Filters(nn.Module):
    """A small MLP from the position to all responses: `Filters(L, D, W)() -> response_LDW`.

    h(t) = MLP([t, cos 2 pi k t, -sin 2 pi k t]) * (exp(-rate t) + floor), k = 1..bands, t from 0 to 1 over the W taps;
    activations sin(freq x) with learned freq. The number of parameters does not depend on W. Source: Poli et al.
    2023, sec. 3.3, whose k starts at 0; the window is safari's: rates evenly spread over the channels of a level,
    which so fade to 1% after 1.5 to 0.3 times W, and are not learned. The floor (its "shift", 0.05) keeps the far end
    of the text within reach of every channel; with floor=0, as the records made before it are, all of them are nearly
    blind beyond a part of W. Computed in float32 at least: half precision loses the phases of the sines.
    """

    def __init__(self, L, D, W, *, hidden=64, bands=8, depth=2, frequency=10.0, floor=0.05):
        super().__init__()
        self.shape = L, D, W
        widths = [2 * bands + 1] + [hidden] * (depth + 1)
        self.layers = nn.ModuleList(map(nn.Linear, widths[:-1], widths[1:]))
        self.frequency = nn.Parameter(torch.full((hidden,), float(frequency)))
        self.out = nn.Linear(hidden, L * D, bias=False)
        t_W = torch.linspace(0, 1, W)
        angles = 2 * math.pi * torch.arange(W)[:, None] / W * torch.arange(1, bands + 1)
        self.register_buffer("positions", torch.cat([t_W[:, None], angles.cos(), -angles.sin()], 1))
        rate_D = math.log(100) * torch.linspace(1 / 1.5, 1 / 0.3, D)
        self.register_buffer("window_DW", torch.exp(-rate_D[:, None] * t_W) + floor)

    def forward(self):
        kind = state_dtype(self.out.weight.dtype)
        x, linear = self.positions.to(kind), nn.functional.linear
        known = torch.amp.is_autocast_available(x.device.type)  # not on the meta device
        with torch.autocast(x.device.type, enabled=False) if known else nullcontext():
            for layer in self.layers:
                x = torch.sin(self.frequency.to(kind) * linear(x, layer.weight.to(kind), layer.bias.to(kind)))
            x = linear(x, self.out.weight.to(kind))
        return x.T.unflatten(0, self.shape[:2]) * self.window_DW.to(kind)


class Layer(nn.Module):
    """Hyena of any order: Layer(x_BTD, S=None) -> (y_BTD, S), with S = (the levels', short convolution's).

    One projection to v and `order` gates, a short convolution (with a bias) over all of them, implicit filters of W
    taps at most, and a projection back. A text may be longer than W: what is further back than W tokens is not seen.
    floor is that of the filters' window (`Filters`).
    """

    def __init__(self, D, *, order=2, W=256, conv_size=3, hidden=64, floor=0.05):
        super().__init__()
        if order < 1:
            raise ValueError(f"order: expected at least 1 level, got {order}")
        width = (order + 1) * D
        self.input, self.out = nn.Linear(D, width), nn.Linear(D, D)
        self.weight_DW = nn.Parameter(torch.randn(width, conv_size) / math.sqrt(conv_size))
        bound = conv_size**-0.5  # as torch starts a convolution's bias
        self.bias_D = nn.Parameter(torch.empty(width).uniform_(-bound, bound))
        self.filters = Filters(order, D, W, hidden=hidden, floor=floor)
        self.skip_LD = Still(torch.randn(order, D))

    def forward(self, x_BTD, S=None, *, form="auto", lengths_B=None, reset_BT=None, **side):
        S_long, S_short = S if S else (None, None)
        z, S_short = conv.short_convolution(
            self.input(x_BTD), self.weight_DW, self.bias_D, S_short, lengths_B, reset_BT
        )
        v, *gates = z.chunk(self.skip_LD.shape[0] + 1, -1)
        weights = {"response_LDW": self.filters(), "skip_LD": self.skip_LD}
        side |= {"lengths_B": lengths_B, "reset_BT": reset_BT}
        y, S_long = by_form(__name__, form, x_BTD)(v, torch.stack(gates, 2), S=S_long, **weights, **side)
        return self.out(y), (S_long, S_short)
