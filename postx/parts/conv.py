"""Causal depthwise convolutions with a state: each channel mixes its own last W inputs, short ones or long ones.

    y_t = sum_j weight_j x_{t-j}, j = 0..W-1        state: the last W - 1 inputs, oldest first, S_BWD [B, W-1, D]

Two orders of the taps are in use and both are kept. `weight_DW` is torch's: its last column meets the current
token (`nn.Conv1d` with groups=D, padding W - 1, as in Mamba, Gated DeltaNet, Griffin and LFM2). `response_DW` is an
impulse response: its first column meets the current token (S4, H3, Hyena). Each is the other, flipped.
"""

import torch
from torch import nn

from postx import scans
from postx.shapes import named, pick, real, state_dtype, whole

STATE = "S_BW-1D"


@named
def init(x_BD, W):
    """Nothing seen yet: zeros S_BWD [B, W-1, D], at least float32. Raises ValueError for W below 1."""
    whole(W=W)
    B, D = x_BD.shape
    return x_BD.new_zeros(B, W - 1, D, dtype=state_dtype(x_BD.dtype))


@named
def step(S, x_BD, weight_DW, bias_D=None, *, inplace=False):
    """One token: a dot product of the taps with the stored inputs and this one. Returns (y_BD, S_BWD).

    Raises ValueError that quotes the argument and the axes.
    """
    x = x_BD.to(S.dtype)
    y = x * weight_DW[:, -1].to(S.dtype)
    if S.shape[1]:
        y = y + (S * weight_DW[:, :-1].T.to(S.dtype)).sum(1)
        moved = torch.cat([S[:, 1:], x[:, None]], 1)
        S = S.copy_(moved) if inplace else moved
    return (y if bias_D is None else y + bias_D).to(x_BD.dtype), S


@named
def scan(x_BTD, weight_DW, S=None, lengths_B=None, impl="auto"):
    """All tokens, left to right, a dot product of W taps each, through `scans.fir`. Returns (y_BTD, S_BWD).

    T W products a channel. Raises ValueError that quotes the argument and the axes.
    """
    W = weight_DW.shape[1]
    S, seen = _with_past(x_BTD, W, S)
    return _finish(scans.fir(seen, weight_DW, impl=impl), x_BTD, seen, None, lengths_B, W)


@named
def short_convolution(x_BTD, weight_DW, bias_D=None, S=None, lengths_B=None, reset_BT=None, impl="auto"):
    """All tokens, for filters of a few taps. Returns (y_BTD, S_BWD).

    weight_DW[:, -1] meets the current token. S is the last W - 1 inputs (None: zeros). Past lengths_B the output
    is 0 and the state stands still; where reset_BT is True a sequence begins and does not see what came before.
    Sums are made in at least float32. impl="torch" adds up W shifted products; "numba", on a CPU and without
    resets, is `scans.fir` in one pass. Raises ValueError that quotes the argument and the axes.
    """
    T, W = x_BTD.shape[1], weight_DW.shape[1]
    S, seen = _with_past(x_BTD, W, S)
    fast = scans.runtime.COMPILED and x_BTD.device.type == "cpu" and reset_BT is None
    part = _parts(reset_BT, W)  # which sequence of its row each entry of `seen` belongs to
    if pick(impl, ("torch", "numba") if fast else ("torch",)) == "numba":
        y = scans.fir(seen, weight_DW.to(S.dtype), impl="numba")
    else:
        y = 0.0
        for j in range(W):
            x = seen[:, j : j + T]
            if part is not None:
                x = x * (part[:, j : j + T] == part[:, W - 1 :])[..., None]
            y = y + x * weight_DW[:, j].to(S.dtype)
    y = y if bias_D is None else y + bias_D
    return _finish(y, x_BTD, seen, part, lengths_B, W)


@named
def long_convolution(x_BTD, response_DW, S=None, lengths_B=None):
    """All tokens by FFT, for filters as long as the text: O((T + W) log(T + W)) a channel. Returns (y_BTD, S_BWD).

    response_DW[:, 0] meets the current token. A circular convolution wraps round; with no past the inputs are
    padded to 2T - 1 at least, so that what wraps falls on zeros, and with a full past it falls on outputs that
    are thrown away (overlap-save). Done in at least float32, where the error grows with the largest input of
    the row, not with the output. Raises ValueError that quotes the argument and the axes.
    """
    T, W = x_BTD.shape[1], response_DW.shape[1]
    _, seen = _with_past(x_BTD, W, S)
    read, response = (seen, response_DW) if S is not None else (seen[:, W - 1 :], response_DW[:, :T])
    n = fast_length(T + W - 1 if S is not None else T + response.shape[1] - 1)
    spectrum = torch.fft.rfft(read, n, dim=1) * torch.fft.rfft(response.to(seen.dtype), n, dim=1).mT
    first = read.shape[1] - T
    y = torch.fft.irfft(spectrum, n, dim=1)[:, first : first + T]
    return _finish(y, x_BTD, seen, None, lengths_B, W)


def fast_length(n):
    """The least whole number >= n with no prime factor above 5, where an FFT is quick."""
    while True:
        rest = n
        for prime in (2, 3, 5):
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            return n
        n += 1


class Mixed(nn.Module):
    """A short convolution over several projections of one token at once, each channel on its own; W = 0: none.

    Mixed(widths, W)(parts, S, **side) -> (parts, S): S is (S_BWD,), or () where there is none.
    """

    def __init__(self, widths, W):
        super().__init__()
        self.widths = list(widths)
        bound = max(W, 1) ** -0.5
        taps = torch.empty(sum(self.widths), W).uniform_(-bound, bound) if W else None
        self.taps_DW = nn.Parameter(taps) if W else None

    def forward(self, parts, S=(), **side):
        if self.taps_DW is None:
            return parts, ()
        x, S = short_convolution(torch.cat(parts, -1), self.taps_DW, None, *S, **side)
        return x.split(self.widths, -1), (S,)


def _with_past(x_BTD, W, S):
    """The state, and the inputs with the state before them [B, W-1+T, D]."""
    S = init(x_BTD[:, 0], W) if S is None else S
    return S, torch.cat([S, x_BTD.to(S.dtype)], 1)


def _parts(reset_BT, W):
    """How many sequences of the row have begun by each entry of state and inputs, [B, W-1+T]; None without resets."""
    if reset_BT is None:
        return None
    if reset_BT.dtype != torch.bool:
        raise ValueError(f"reset_BT: expected bool, got {reset_BT.dtype}")
    return nn.functional.pad(reset_BT.long().cumsum(1), (W - 1, 0))


def _finish(y, like, seen, part, lengths_B, W):
    """The output in the input's dtype, 0 past each length, and the last W - 1 real inputs of its last sequence."""
    B, T = y.shape[:2]
    y = real(y, lengths_B).to(like.dtype)
    if lengths_B is None:
        lengths_B = torch.full((B,), T, device=y.device)
    kept_BW = lengths_B[:, None] + torch.arange(W - 1, device=y.device)
    S = seen.gather(1, kept_BW[..., None].expand(-1, -1, seen.shape[2]))
    if part is not None:
        part_BW = part.gather(1, kept_BW)
        S = S * (part_BW == part_BW[:, -1:])[..., None]
    return y, S
