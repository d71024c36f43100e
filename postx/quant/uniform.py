"""Round to nearest: equally spaced levels, one scale (and perhaps one zero point) for each group of weights.

    asymmetric   W ~ s (q - z)              q = 0 .. 2^b - 1, the range always includes 0
    symmetric    W ~ s q                    q = -2^(b-1) .. 2^(b-1) - 1, s = largest |W| / (2^(b-1) - 1)
    midrise      W ~ s (q + 1/2 - 2^(b-1))  q = 0 .. 2^b - 1: levels on both sides of 0, none at it

Sources: Jacob et al. (2018), "Quantization and training of neural networks for efficient integer-arithmetic-only
inference", for the asymmetric form; Max (1960), Table 2, for the best step of a Gaussian.
"""

import functools
import math

import torch

from postx.quant import Quantized, check_weight, join, lloyd, not_zero, split, store
from postx.quant._pack import pack, unpack

GRIDS = ("asymmetric", "symmetric", "midrise")
FRACTIONS = [f / 40 for f in range(40, 11, -1)]  # of the largest weight, tried by the clipping search


@functools.lru_cache
def gaussian_step(bits: int) -> tuple[float, float]:
    """The step of 2^bits midrise levels that is best for a standard normal, and its mean squared error.

    Golden-section search on the exact error (Max 1960, Table 2: 1.5958, 0.9957, 0.5860, 0.3352, ...).
    """
    import numpy as np

    levels = np.arange(2**bits) + 0.5 - 2 ** (bits - 1)

    def error(step):
        inner = step * (levels[1:] + levels[:-1]) / 2
        edges = np.concatenate([[-lloyd.SPAN], np.clip(inner, -lloyd.SPAN, lloyd.SPAN), [lloyd.SPAN]])
        P, M, Q = lloyd.moments(lloyd.gaussian, edges)
        return float((Q - 2 * step * levels * M + (step * levels) ** 2 * P).sum())

    lo, hi, golden = 0.0, 2.0 * lloyd.SPAN / 2**bits, (math.sqrt(5) - 1) / 2
    while hi - lo > 1e-9:
        a, b = hi - golden * (hi - lo), lo + golden * (hi - lo)
        lo, hi = (lo, b) if error(a) < error(b) else (a, hi)
    return (lo + hi) / 2, error((lo + hi) / 2)


def quantize(
    W_OI, bits: int, *, grid="asymmetric", group: int | str = "row", clip="max", scale_dtype=torch.float16
) -> Quantized:
    """Each weight to the nearest level of its group.

    grid: see the module. group: "tensor", "row" or a number of inputs (the last group of a row may be shorter).
    clip: "max" (the range is that of the weights), a fraction of it in (0, 1], "search" (for each group the fraction
    out of 0.3 .. 1 with the least squared error), or "gaussian" (midrise only: the best step for a Gaussian of the
    group's root mean square). bits 1 to 8; symmetric needs 2. Stored: the codes, one scale a group in
    `scale_dtype`, and for the asymmetric grid one zero point of `bits` bits a group.
    Errors: ValueError names the argument.
    """
    W_OI = check_weight(W_OI, bits)
    groups, scale, zero = _rounded(W_OI, bits, grid, group, clip, scale_dtype)
    codes = join(groups, W_OI.shape).to(torch.uint8)
    parts = {"codes": pack(codes, bits), "scale": scale.squeeze(-1)}
    if zero is not None:
        parts["zero"] = pack_zero(zero, bits)
    return Quantized("uniform", tuple(W_OI.shape), parts, {"bits": bits, "group": group, "grid": grid})


def round_trip(W_OI, bits, *, grid="asymmetric", group="row", clip="max", scale_dtype=torch.float16):
    """`quantize(...).dequantize()` without the packing in between, in W_OI's own dtype: for searches."""
    W_OI = check_weight(W_OI, bits)
    groups, scale, zero = _rounded(W_OI, bits, grid, group, clip, scale_dtype)
    return join(_values(groups, scale, zero, bits, grid), W_OI.shape)


def _rounded(W_OI, bits, grid, group, clip, dtype):
    """Codes as floats [rows, groups, size], scale and zero point of each group."""
    w = split(W_OI, group)
    scale, zero = scales(w, split(torch.ones_like(W_OI), group), bits, grid, clip, dtype)
    return _codes(w, scale, zero, bits, grid), scale, zero


def dequantize(q: Quantized) -> torch.Tensor:
    """W_OI in float32."""
    bits, grid = q.how["bits"], q.how["grid"]
    codes = split(unpack(q.parts["codes"], bits, q.shape[1]).float(), q.how["group"])
    scale, zero = q.parts["scale"].float()[..., None], None
    if "zero" in q.parts:
        zero = unpack_zero(q.parts["zero"], bits, scale)
    return join(_values(codes, scale, zero, bits, grid), q.shape)


def pack_zero(zero, bits):
    """Zero points [rows, groups, 1] in `bits` bits each, one after another."""
    return pack(zero.to(torch.uint8).view(1, -1), bits)


def unpack_zero(packed, bits, scale):
    """Zero points of the shape of `scale`."""
    return unpack(packed, bits, scale.numel()).float().view(scale.shape)


def scales(w, real, bits, grid, clip, dtype):
    """Scale and zero point (None where the grid has none) of each group, [rows, groups, 1].

    w [rows, groups, size]; `real` is 1 for a weight and 0 for padding.
    """
    if grid not in GRIDS:
        raise ValueError(f"grid: expected one of {', '.join(GRIDS)}, got {grid!r}")
    if grid == "symmetric" and bits == 1:
        raise ValueError('bits: a symmetric grid of 1 bit has no positive level; use grid="midrise"')
    if clip == "gaussian":
        if grid != "midrise":
            raise ValueError(f'clip: "gaussian" is the best step of the midrise grid, got grid={grid!r}')
        rms = (w.square().sum(-1, keepdim=True) / real.sum(-1, keepdim=True)).sqrt()
        return store(gaussian_step(bits)[0] * rms, dtype), None
    if clip == "max":
        fractions = [1.0]
    elif clip == "search":
        fractions = FRACTIONS
    elif isinstance(clip, int | float) and not isinstance(clip, bool) and 0 < clip <= 1:
        fractions = [float(clip)]
    else:
        raise ValueError(f'clip: expected "max", "search", "gaussian" or a number in (0, 1], got {clip!r}')
    best = None
    for fraction in fractions:
        scale, zero = _range(w, real, bits, grid, fraction, dtype)
        if len(fractions) == 1:
            return scale, zero
        back = _values(_codes(w, scale, zero, bits, grid), scale.to(w.dtype), zero, bits, grid)
        error = ((back - w).square() * real).sum(-1, keepdim=True)
        if best is None:
            best = error, scale, zero
            continue
        better = error < best[0]
        pairs = zip((error, scale, zero), best, strict=True)
        best = tuple(None if new is None else torch.where(better, new, old) for new, old in pairs)
    return best[1], best[2]


def _range(w, real, bits, grid, fraction, dtype):
    """Scale and zero point where the range is that fraction of the group's own."""
    if grid == "asymmetric":
        lo = fraction * w.amin(-1, keepdim=True).clamp(max=0)  # padding is 0, which the range includes anyway
        hi = fraction * w.amax(-1, keepdim=True).clamp(min=0)
        scale = store((hi - lo) / (2**bits - 1), dtype)
        zero = torch.round(-lo / not_zero(scale, w.dtype)).clamp(0, 2**bits - 1)
        return scale, zero
    largest = fraction * w.abs().amax(-1, keepdim=True)
    # midrise: the outermost level is at the largest weight
    return store(largest / (2 ** (bits - 1) - (1 if grid == "symmetric" else 0.5)), dtype), None


def origin(scale, zero, bits, grid):
    """Every grid is s (q - z), q = 0 .. 2^bits - 1: this gives z, of the shape of s; half-way for midrise."""
    return (
        zero if grid == "asymmetric" else torch.full_like(scale, 2 ** (bits - 1) - 0.5 * (grid == "midrise"))
    )


def _codes(w, scale, zero, bits, grid):
    """Codes 0 .. 2^bits - 1 as floats."""
    z = origin(scale, zero, bits, grid).to(w.dtype)
    half = z - torch.floor(z)  # round to an integer code, not to an integer of w / s
    return (torch.round(w / not_zero(scale, w.dtype) + half) + (z - half)).clamp(0, 2**bits - 1)


def _values(codes, scale, zero, bits, grid):
    return (codes - origin(scale, zero, bits, grid).to(codes.dtype)) * scale.to(codes.dtype)
