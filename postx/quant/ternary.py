"""BitNet b1.58: every weight is -1, 0 or 1 times one number, and the network is trained that way.

    Q = clip(round(W / s), -1, 1) s        s = mean |W|, one for the tensor, at least 1e-5
    x ~ round(127 x / max|x|)              each token's inputs in 8 bits, max|x| at least 1e-5

log2 3 = 1.58 bits a weight; five trits a byte store 1.6. A product with such weights needs additions only, and one
multiplication an output for the scale. In training the full-precision W is kept, the rounded one is used, and the
gradient passes the rounding as if it were not there (straight through). Source: Ma et al. (2024), "The era of 1-bit
LLMs", sec. 2, and for the floors of 1e-5 its authors' "Training tips, code and FAQ"; Wang et al. (2023), BitNet.
Deviation: no norm of the layer's own before the rounding of x; a block's norm stands there already, but for the layers
that write to the stream. Nobody claims that a network trained in full can be rounded this way.
"""

import torch
from torch import nn

from postx.quant import Quantized, check_weight, store
from postx.quant._pack import pack_trits, unpack_trits
from postx.shapes import state_dtype

BITS = ()  # log2(3)

FLOOR = 1e-5  # of mean |W| and max|x|: what is smaller counts as nothing, and is not blown up to -1 and 1


def through(x: torch.Tensor, rounded: torch.Tensor) -> torch.Tensor:
    """The value of `rounded` with the gradient of x."""
    return x + (rounded - x).detach()


def absmean(W: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(trits as floats, s) of a weight: W is about s times the trits."""
    if not W.is_floating_point():
        raise ValueError(f"W: expected floating point weights, got {W.dtype}")
    s = W.abs().mean().clamp(min=FLOOR)
    return torch.round(W / s).clamp(-1, 1), s


def integers(x: torch.Tensor, bits: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    """(codes as floats, step) of inputs [..., I]: each token's largest absolute value is 2^(bits-1) - 1 steps.

    At least float32, whatever x is: in bfloat16 the quotient itself would be rounded first.
    """
    if not x.is_floating_point():
        raise ValueError(f"x: expected floating point numbers, got {x.dtype}")
    x = x.to(state_dtype(x.dtype))
    step = x.abs().amax(-1, keepdim=True).clamp(min=FLOOR) / (2 ** (bits - 1) - 1)
    return torch.round(x / step), step


def absmax(x: torch.Tensor, bits: int = 8) -> torch.Tensor:
    """x with each token rounded to `bits` bits, at least float32."""
    codes, step = integers(x, bits)
    return codes * step


class Linear(nn.Linear):
    """A linear layer that multiplies by trits: x [..., I] -> [..., O]; the weights it trains are W_OI in full.

    The product is one of integers below 128, scaled afterwards: exact where it is summed in float32, also when
    autocast makes its factors bfloat16.
    """

    def forward(self, x):
        trits, s = absmean(self.weight)
        codes, step = (part.detach() for part in integers(x))
        s = s.detach()
        y = nn.functional.linear(through(x / step, codes), through(self.weight / s, trits))
        y = (y.to(step.dtype) * (step * s)).to(y.dtype)
        return y if self.bias is None else y + self.bias.to(y.dtype)


def quantize(W_OI, *, scale_dtype=torch.float16) -> Quantized:
    """Trits, five a byte, and one scale for the tensor. Errors: ValueError."""
    W_OI = check_weight(W_OI, 1)
    trits, s = absmean(W_OI)
    return Quantized(
        "ternary", tuple(W_OI.shape), {"codes": pack_trits(trits), "scale": store(s.view(1), scale_dtype)}
    )


def dequantize(q: Quantized) -> torch.Tensor:
    """W_OI in float32: trits times their scale."""
    return unpack_trits(q.parts["codes"], q.shape[1]).float() * q.parts["scale"].float()


def operations(q: Quantized, tokens: int = 1) -> dict[str, int]:
    """What a product of `tokens` vectors with these trits takes, beside that of a full weight of the same shape.

    Zeros cost nothing; a row of n trits that are not zero takes n - 1 additions. One multiplication an output for the
    scales. The full weight takes I multiplications and I - 1 additions an output.
    """
    O, I = q.shape
    full = int((unpack_trits(q.parts["codes"], I) != 0).sum(1).sub(1).clamp(min=0).sum())
    return {
        "additions": tokens * full,
        "multiplications": tokens * O,
        "full additions": tokens * O * (I - 1),
        "full multiplications": tokens * O * I,
    }
