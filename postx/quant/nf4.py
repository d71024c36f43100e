"""NF4: sixteen quantiles of a normal distribution, scaled to [-1, 1], and one scale for each block of 64 weights.

    W ~ c[code] * absmax(block)

The code holds 0 exactly, 7 negative numbers beside -1 and 8 positive ones: quantiles at equal probabilities, meant so
that Gaussian weights use every code equally often. In blocks of 64 they do not: the largest of a block is at 2.6
standard deviations on average, not at the 1.85 of the last quantile, so the two ends are used by 1.9% and 1.7%. The
least squared error is that of `lloyd`. The largest weight of a block is exact. Source: Dettmers et al. (2023), QLoRA,
sec. 3, and the code's definition in bitsandbytes.
Blocks run over the flat row-major weight. Double quantization keeps the scales in 8 bits: their mean is taken
off and blocks of 256 share one float32 scale. Deviation: equally spaced 8-bit levels, where QLoRA uses 8-bit floats.
"""

import functools

import torch

from postx.quant import Quantized, check_weight, store
from postx.quant._pack import pack, unpack
from postx.quant.lloyd import nearest

BITS = (4,)
OFFSET = 0.9677083  # (1/32 + 1/30) / 2 below 1: the mean of the tail probabilities of 16 and 15 levels
SCALES = 256


@functools.lru_cache
def code() -> tuple[float, ...]:
    """The sixteen values, from their definition."""
    quantile = torch.distributions.Normal(0.0, 1.0).icdf
    positive = quantile(torch.linspace(OFFSET, 0.5, 9, dtype=torch.float64)[:-1])
    negative = -quantile(torch.linspace(OFFSET, 0.5, 8, dtype=torch.float64)[:-1])
    values = torch.cat([positive, negative, positive.new_zeros(1)]).sort().values
    return tuple((values / values.abs().max()).tolist())


def quantize(W_OI, bits: int = 4, *, block: int = 64, double: bool = True) -> Quantized:
    """Each block of the flat weight is divided by its largest absolute value and rounded to the nearest code.

    bits must be 4. Stored: 4 bits a weight, and a scale a block: 8 bits (and 32 for 256 blocks) if `double`, else
    float32. The last block may be shorter. A block of zeros comes back as zeros. Errors: ValueError.
    """
    W_OI = check_weight(W_OI, bits, range(4, 5))
    if isinstance(block, bool) or not isinstance(block, int) or block < 1:
        raise ValueError(f"block: expected a positive number of weights, got {block!r}")
    flat = W_OI.flatten()
    blocks = torch.nn.functional.pad(flat, (0, -len(flat) % block)).view(-1, block)
    absmax = store(blocks.abs().amax(1), torch.float32, "W_OI")
    how = {"block": block, "double": double}
    if double:
        parts = _shrink(absmax)
        absmax = store(_grow(parts, len(absmax)), torch.float32, "W_OI")  # a sum of huge ones overflows
    else:
        parts = {"absmax": absmax}
    # The codes are chosen for the scale that will be read back.
    safe = torch.where(absmax == 0, torch.ones_like(absmax), absmax).to(blocks.dtype)
    points = torch.tensor(code(), dtype=blocks.dtype, device=W_OI.device)
    codes = nearest(blocks / safe[:, None], points).view(1, -1)[:, : len(flat)]
    return Quantized("nf4", tuple(W_OI.shape), {"codes": pack(codes, 4), **parts}, how)


def dequantize(q: Quantized) -> torch.Tensor:
    """W_OI in float32: the code's value times the scale of its block."""
    count = q.shape[0] * q.shape[1]
    codes = unpack(q.parts["codes"], 4, count)[0].long()
    block = q.how["block"]
    absmax = _grow(q.parts, -(-count // block)) if q.how["double"] else q.parts["absmax"]
    scale = absmax.repeat_interleave(block)[:count]
    return (torch.tensor(code(), dtype=torch.float32, device=codes.device)[codes] * scale).view(q.shape)


def _shrink(absmax):
    """Scales in 8 bits: their mean, and for each 256 of them the largest deviation from it."""
    mean = absmax.mean().view(1)
    away = torch.nn.functional.pad(absmax - mean, (0, -len(absmax) % SCALES)).view(-1, SCALES)
    largest = away.abs().amax(1)
    safe = torch.where(largest == 0, torch.ones_like(largest), largest)
    codes = torch.round(away / safe[:, None] * 127).to(torch.int8).flatten()[: len(absmax)]
    return {"absmax": codes, "absmax_scale": largest, "absmax_mean": mean}


def _grow(parts, count):
    scale = parts["absmax_scale"].repeat_interleave(SCALES)[:count]
    # A negative scale would turn signs around; rounding can bring a tiny one below zero.
    return (parts["absmax"].float() / 127 * scale + parts["absmax_mean"]).clamp(min=0)
