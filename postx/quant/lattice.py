"""Lattices: eight weights rounded together lose less than eight weights rounded alone.

D_n holds the integer vectors whose sum is even; E8 is D8 and D8 + 1/2 together. For equal density their cells have a
normalised second moment of 0.0766 (D4) and 0.0717 (E8), against 1/12 = 0.0833 for the cube. QuIP#'s E8P is a 16-bit
code for eight weights, made of points of E8 + 1/4:

    c = p with signs, +- 1/4        p: 256 vectors of positive half-integers

227 of the p are all those with norm^2 <= 10; 29 more have norm^2 12. An odd sum of p wants an odd number of minuses, an
even sum an even number, so seven sign bits decide eight signs: 8 + 7 + 1 = 16 bits, 65,536 points, 2 bits a weight.
Codes are QuIP#'s: the number of p above, then eight bits whose parity says the shift, and which are then the signs.
Sources: Conway & Sloane (1982), "Fast quantizing and decoding algorithms for lattice quantizers and codes"; Tseng et
al. (2024), QuIP#, sec. 4, and app. C.1 for the 29 of the 56 vectors with five 3/2 and three 1/2 that are taken; the
layout of a code is that of the authors' Cornell-RelaxML/quip-sharp, lib/codebook/latticee8_padded12.py.
"""

import functools
import itertools

import numba
import numpy as np
import torch

from postx.quant import Quantized, check_inputs, check_weight, not_zero, second_moment, store
from postx.quant.gptq import factor
from postx.quant.rotate import spin, unspin
from postx.scans.runtime import jit
from postx.shapes import check

BITS, CALIBRATED = (2, 4), True
WIDTH = 8
# The vectors of norm^2 12 in QuIP#'s order, each by the places of its three 1/2; the other five are 3/2.
NORM_12 = (
    "123", "023", "013", "012", "367", "357", "347", "356", "346", "345", "267", "257", "247", "256", "246",
    "245", "167", "157", "147", "156", "146", "045", "067", "057", "047", "056", "046", "014", "237",
)  # fmt: skip
PLACE = (0, 4, 1, 5, 2, 6, 3, 7)  # the bit that holds the sign of each coordinate
GAUSS = 1.03  # QuIP#'s scale: a standard normal times this is rounded with the least error
REST = 3.45  # QuIP#'s scale of what the first code leaves, for the second one (4 bits)


def nearest_d(x: torch.Tensor) -> torch.Tensor:
    """The point of D_n nearest to each x [..., n]: round all, and if the sum is odd, round the worst the other way."""
    near = torch.round(x)
    away = x - near
    worst = away.abs().argmax(-1, keepdim=True)
    step = torch.where(away.gather(-1, worst) >= 0, 1.0, -1.0).to(x.dtype)
    odd = near.sum(-1, keepdim=True).remainder(2) != 0
    return torch.where(odd, near.scatter_add(-1, worst, step), near)


def nearest_e8(x: torch.Tensor) -> torch.Tensor:
    """The point of E8 nearest to each x [..., 8]: the better one of D8 and D8 + 1/2."""
    whole, half = nearest_d(x), nearest_d(x - 0.5) + 0.5
    closer = (x - whole).square().sum(-1, keepdim=True) <= (x - half).square().sum(-1, keepdim=True)
    return torch.where(closer, whole, half)


@functools.lru_cache
def patterns() -> np.ndarray:
    """The 256 vectors p of E8P, [256, 8] float32."""
    low = [p for p in itertools.product((0.5, 1.5, 2.5), repeat=WIDTH) if sum(v * v for v in p) <= 10]
    pad = [[0.5 if str(i) in halves else 1.5 for i in range(WIDTH)] for halves in NORM_12]
    return np.array(low + pad, dtype=np.float32)


@functools.lru_cache
def points() -> torch.Tensor:
    """All points of E8P by their code, [65536, 8] float32: 256 pattern + bits.

    The parity of the eight bits is 1 where the shift is -1/4, and is then taken off the lowest. What is left are the
    signs, in the order `PLACE`; where the sum of p is odd, the last coordinate's is the other one.
    """
    code = torch.arange(2**16, device="cpu")
    p = torch.from_numpy(patterns())[code >> 8]
    bits = (code[:, None] >> torch.arange(WIDTH, device="cpu")) & 1
    down = bits.sum(1) % 2
    bits[:, 0] ^= down
    minus = bits[:, list(PLACE)]
    minus[:, 7] ^= p.sum(1).long() % 2
    return p * (1 - 2 * minus).float() + (0.25 - 0.5 * down.float())[:, None]


@jit
def _encode(x, p, place, codes):
    """The code of the point nearest to each row of x: for each shift and pattern the best signs are known."""
    for row in numba.prange(x.shape[0]):
        least = np.inf
        for shift in range(2):
            y = x[row] - np.float32(0.25 - 0.5 * shift)
            square, minuses = np.float32(0), 0
            for i in range(WIDTH):
                square += y[i] * y[i]
                minuses += y[i] < 0
            for k in range(p.shape[0]):
                dot, norm, weakest, total, at = (
                    np.float32(0),
                    np.float32(0),
                    np.float32(np.inf),
                    np.float32(0),
                    0,
                )
                for i in range(WIDTH):
                    part = abs(y[i]) * p[k, i]
                    dot += part
                    norm += p[k, i] * p[k, i]
                    total += p[k, i]
                    if part < weakest:
                        weakest, at = part, i
                sum_odd = int(total) % 2 == 1
                odd = sum_odd != (minuses % 2 == 1)
                distance = square - 2 * (dot - (2 * weakest if odd else 0)) + norm
                if distance < least:
                    least = distance
                    bits = shift
                    for i in range(WIDTH):
                        minus = ((y[i] < 0) != (odd and at == i)) != (sum_odd and i == WIDTH - 1)
                        bits ^= minus << place[i]
                    codes[row] = 256 * k + bits


def encode(x: torch.Tensor) -> torch.Tensor:
    """Code of the E8P point nearest to each x [n, 8], int32 [n]. Exact: every point is compared."""
    codes = np.empty(len(x), dtype=np.int32)
    _encode(np.ascontiguousarray(x.detach().float().cpu().numpy()), patterns(), np.array(PLACE), codes)
    return torch.from_numpy(codes).to(x.device)


def round_e8p(x: torch.Tensor, bits: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(codes, values) of x [n, 8]: one E8P point, or for 4 bits a second one for what the first leaves."""
    if not x.is_floating_point():
        raise ValueError(f"x: expected floating point numbers, got {x.dtype}")
    code = encode(x)
    table = points().to(x)
    value = table[code.long()]
    if bits == 2:
        return code[:, None], value
    rest = encode((x - value) * REST)
    return torch.stack([code, rest], 1), value + table[rest.long()] / REST


def quantize(
    W_OI, bits: int = 2, x_TI=None, *, H_II=None, seed: int | None = 0, damp=0.01, scale_dtype=torch.float16
) -> Quantized:
    """QuIP#: turn the weight on both sides, round eight inputs at a time to E8P, with feedback if inputs are given.

    bits 2 (one code) or 4 (two). seed: of the random Hadamard turns; None leaves the weight as it is. With x_TI or
    their second moment H_II, later columns repair the output (block LDLQ, the same feedback as `gptq` eight columns
    at a time). Stored: the codes and one scale a row; a width that 8 does not divide is padded and the padding
    counted. Errors: ValueError.
    """
    W_OI = check_weight(W_OI, bits)
    if bits not in (2, 4):
        raise ValueError(f"bits: expected an integer from 2 or 4, got {bits}")
    O, I = W_OI.shape
    if x_TI is not None:
        if H_II is not None:
            raise ValueError("x_TI, H_II: expected at most one of the inputs and their second moment")
        H_II = second_moment(check_inputs(x_TI, I))
    w = W_OI if seed is None else spin(spin(W_OI, seed).T, seed + 1).T
    scale = store(w.square().mean(1, keepdim=True).sqrt(), scale_dtype)
    w = torch.nn.functional.pad(w / not_zero(scale, w.dtype) * GAUSS, (0, -I % WIDTH)).contiguous()
    U = None
    if H_II is not None:
        check({"I": I}, H_II=H_II)
        H = H_II.to(w.dtype)
        H = H if seed is None else spin(spin(H, seed).T, seed)
        pad = w.shape[1] - I
        H = (
            torch.block_diag(H, torch.eye(pad, dtype=H.dtype, device=H.device) * H.diagonal().mean())
            if pad
            else H
        )
        U, _, _ = factor(H, damp, False)
    codes = []
    for a in range(0, w.shape[1], WIDTH):
        b = a + WIDTH
        code, value = round_e8p(w[:, a:b], bits)
        codes.append(code)
        if U is not None:
            e = torch.linalg.solve_triangular(
                U[a:b, a:b], w[:, a:b] - value.to(w.dtype), upper=True, left=False
            )
            w[:, b:] -= e @ U[a:b, b:]
    code = torch.stack(codes, 1)  # [O, blocks, bits / 2]
    bytes_ = torch.stack([code & 255, code >> 8], -1).to(torch.uint8)
    return Quantized("lattice", (O, I), {"codes": bytes_, "scale": scale}, {"bits": bits, "seed": seed})


def dequantize(q: Quantized) -> torch.Tensor:
    """W_OI in float32: points by their codes, scaled, turned back."""
    low, high = q.parts["codes"].int().unbind(-1)
    values = points().to(low.device)[(low + 256 * high).long()]  # [O, blocks, bits / 2, 8]
    w = values[:, :, 0] + (values[:, :, 1] / REST if q.how["bits"] == 4 else 0)
    w = w.flatten(1)[:, : q.shape[1]] * (q.parts["scale"].float() / GAUSS)
    seed = q.how["seed"]
    return w if seed is None else unspin(unspin(w.T, seed + 1).T, seed)
