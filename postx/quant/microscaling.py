"""MXFP4 and NVFP4: floating-point numbers of 4 bits, and a scale for every few of them that a chip can apply.

    W ~ s c[code]        c = +-0, 0.5, 1, 1.5, 2, 3, 4, 6        E2M1: a sign, two bits of exponent, one of mantissa

    MXFP4   blocks of 32, s a power of two in 8 bits (E8M0): 2^(floor(log2 max|W|) - 2). The largest weight of a block
            is then 4 to 8 steps, and what lies above 6 is cut to 6
    NVFP4   blocks of 16, s an 8-bit float (E4M3) times one float32 for the tensor, chosen so that the largest weight of
            a block is 6 steps, up to the rounding of s, and the largest s is 448, the end of E4M3

The levels stand closer near 0, as Gaussian weights do. Halves round to the even code. Sources: Open Compute Project
(2023), Microscaling formats (MX) specification v1.0, sec. 5 and 6.3; Rouhani et al. (2023), "Microscaling data formats
for deep learning"; NVIDIA (2025), "Pretraining large language models with NVFP4", arXiv 2509.25149.
"""

import torch

from postx.quant import Quantized, check_weight, join, not_zero, split, store
from postx.quant._pack import pack, unpack

BITS = (4,)
LEVELS = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
BLOCK = {"mxfp4": 32, "nvfp4": 16}
EXPONENT, BIAS = 2, 127  # of the largest level; of E8M0
LARGEST = 448.0  # of E4M3


def encode(x: torch.Tensor) -> torch.Tensor:
    """E2M1 codes of numbers, uint8: the nearest level, half-way the even code, beyond 6 the level 6; sign in bit 3."""
    if not x.is_floating_point():
        raise ValueError(f"x: expected floating point numbers, got {x.dtype}")
    levels = torch.tensor(LEVELS, dtype=x.dtype, device=x.device)
    edges, size = (levels[1:] + levels[:-1]) / 2, x.abs().contiguous()
    below, above = (torch.bucketize(size, edges, right=right) for right in (False, True))
    code = torch.where(below % 2 == 0, below, above)  # they differ by one, and only half-way
    return (code + 8 * torch.signbit(x)).to(torch.uint8)


def decode(codes: torch.Tensor) -> torch.Tensor:
    """The numbers of E2M1 codes, float32."""
    levels = torch.tensor(LEVELS, dtype=torch.float32, device=codes.device)
    return torch.cat([levels, -levels])[codes.long()]


def quantize(W_OI, bits: int = 4, *, form: str = "mxfp4") -> Quantized:
    """Each block of a row to E2M1 numbers and a scale; form "mxfp4" or "nvfp4".

    bits must be 4. A row's last block may be shorter. Stored: 4 bits a weight, 8 bits a block, and for nvfp4 a
    float32. Errors: ValueError names the argument.
    """
    W_OI = check_weight(W_OI, bits, range(4, 5))
    if form not in BLOCK:
        raise ValueError(f"form: expected one of {', '.join(BLOCK)}, got {form!r}")
    blocks = split(W_OI, BLOCK[form])
    largest = blocks.abs().amax(-1)
    if form == "mxfp4":
        exponent = torch.frexp(largest).exponent - 1 - EXPONENT  # frexp's mantissa lies in [1/2, 1)
        exponent = torch.where(largest == 0, -BIAS, exponent).clamp(-BIAS, BIAS)
        parts = {"scale": (exponent + BIAS).to(torch.uint8)}
    else:
        whole = (largest.max() / (LEVELS[-1] * LARGEST)).float().view(1)
        scale = (largest / LEVELS[-1] / not_zero(whole, W_OI.dtype)).clamp(max=LARGEST)
        parts = {"scale": scale.to(torch.float8_e4m3fn), "whole": whole}
    store(LEVELS[-1] * _scales(parts), torch.float32, "W_OI")  # the largest number that a block can hold
    codes = encode(blocks / not_zero(_scales(parts), W_OI.dtype)[..., None])
    return Quantized(
        "microscaling",
        tuple(W_OI.shape),
        {"codes": pack(join(codes, W_OI.shape), 4), **parts},
        {"form": form},
    )


def dequantize(q: Quantized) -> torch.Tensor:
    """W_OI in float32: level times the scale of its block."""
    numbers = split(decode(unpack(q.parts["codes"], 4, q.shape[1])), BLOCK[q.how["form"]])
    return join(numbers * _scales(q.parts)[..., None], q.shape)


def _scales(parts):
    """The scale of each block [rows, blocks], float32."""
    if "whole" in parts:
        return parts["scale"].float() * parts["whole"]
    return torch.exp2(parts["scale"].float() - BIAS)
