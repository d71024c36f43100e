"""The one contract of the quantizers: fewer bits in, the same shape out, and everything that is stored is counted.

A quantizer module has

    quantize(W_OI, bits, ...) -> Quantized
    dequantize(q) -> W_OI       float32; `Quantized.dequantize` calls it
    CALIBRATED = True           where quantize also takes the layer's inputs, x_TI ("needed": and does not do without)
    BITS = (2, 4)               where only these widths exist; () where there is no choice, and no argument

`Quantized.parts` holds every tensor that must be kept to read the weight back: packed codes, scales, zero points,
codebooks that are not fixed by definition, signs. `bits_per_weight` is their size. `how` holds the few words that a
whole tensor needs once (bits, group, names of choices); they are not counted.

Half-way values round to even, as torch and IEEE 754 do. Weights must be finite: an infinite weight would spend the
whole range of its group on one number.
"""

import importlib
import pkgutil
from dataclasses import dataclass, field

import torch

from postx.shapes import check


@dataclass(frozen=True)
class Quantized:
    """A weight in fewer bits: what is stored, and which module reads it."""

    method: str
    shape: tuple[int, int]
    parts: dict[str, torch.Tensor]
    how: dict = field(default_factory=dict)

    def dequantize(self) -> torch.Tensor:
        """The weight again, W_OI in float32."""
        return load(self.method).dequantize(self)

    @property
    def nbytes(self) -> int:
        return sum(part.numel() * part.element_size() for part in self.parts.values())

    @property
    def bits_per_weight(self) -> float:
        """Every stored byte, scales and padding included, over the number of weights."""
        return 8 * self.nbytes / (self.shape[0] * self.shape[1])

    def matvec(self, x_I: torch.Tensor) -> torch.Tensor:
        """W x, y_O in float32, read from the packed codes where `postx.quant._matvec` has a kernel; else ValueError."""
        return self.product()(x_I)

    def product(self):
        """What `matvec` computes as a function of x_I, for many of them: scales are laid out once."""
        return importlib.import_module(f"{__name__}._matvec").Product(self)

    def to(self, device) -> "Quantized":
        parts = {name: part.to(device) for name, part in self.parts.items()}
        return Quantized(self.method, self.shape, parts, self.how)


def names() -> list[str]:
    """Every quantizer in this folder, by the name of its file; imports none."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_"))


def load(name: str):
    """The quantizer module of that name. Raises ValueError with the names that exist."""
    if name not in names():
        raise ValueError(f"quantizer {name!r} does not exist; there are {', '.join(names())}")
    return importlib.import_module(f"{__name__}.{name}")


def check_weight(W_OI: torch.Tensor, bits: int, allowed: range = range(1, 9)) -> torch.Tensor:
    """The weight in float32, or float64 where it came so; ValueError for what no quantizer can take."""
    check(W_OI=W_OI)
    if isinstance(bits, bool) or not isinstance(bits, int) or bits not in allowed:
        raise ValueError(f"bits: expected an integer from {allowed[0]} to {allowed[-1]}, got {bits!r}")
    if not W_OI.is_floating_point():
        raise ValueError(f"W_OI: expected floating point weights, got {W_OI.dtype}")
    if W_OI.numel() == 0:
        raise ValueError(f"W_OI: expected at least one weight, got shape {tuple(W_OI.shape)}")
    if not bool(torch.isfinite(W_OI).all()):
        bad = (~torch.isfinite(W_OI)).nonzero()
        raise ValueError(f"W_OI: {len(bad)} weights are not finite, the first at {tuple(bad[0].tolist())}")
    if W_OI.dtype == torch.float64 and float(W_OI.detach().abs().max()) > torch.finfo(torch.float32).max:
        raise ValueError(f"W_OI: a weight of {float(W_OI.abs().max()):.3g} overflows the float32 it is read back in")
    return W_OI.detach() if W_OI.dtype == torch.float64 else W_OI.detach().float()


def check_inputs(x_TI: torch.Tensor, I: int) -> torch.Tensor:
    """Calibration inputs in float32 or float64; ValueError for the wrong width, none, or non-finite ones."""
    check({"I": I}, x_TI=x_TI)
    if len(x_TI) == 0:
        raise ValueError("x_TI: expected at least one calibration input, got 0")
    if x_TI.is_complex():
        raise ValueError(f"x_TI: expected real numbers, got {x_TI.dtype}")
    if not bool(torch.isfinite(x_TI).all()):
        raise ValueError("x_TI: calibration inputs must be finite")
    return x_TI.detach() if x_TI.dtype == torch.float64 else x_TI.detach().float()


def split(W_OI: torch.Tensor, group: int | str) -> torch.Tensor:
    """Weights by group, [rows, groups, size]: each group gets one scale.

    group: "tensor" (one scale for all), "row" (one for each output), or a number of neighbouring inputs. A size
    that does not divide the row leaves a shorter last group, padded with zeros here and cut off by `join`.
    """
    O, I = W_OI.shape
    if group == "tensor":
        return W_OI.reshape(1, 1, O * I)
    size = I if group == "row" else group
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise ValueError(f'group: expected "tensor", "row" or a positive number of inputs, got {group!r}')
    size = min(size, I)
    pad = -I % size
    return torch.nn.functional.pad(W_OI, (0, pad)).reshape(O, -1, size)


def join(groups: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
    """The inverse of `split`: [rows, groups, size] back to [O, I], the padding cut off."""
    if groups.shape[0] != shape[0]:  # one group for the whole tensor
        return groups.reshape(shape)
    return groups.reshape(shape[0], -1)[:, : shape[1]]


def store(scale: torch.Tensor, dtype: torch.dtype, argument="scale_dtype") -> torch.Tensor:
    """Scales in the dtype that is kept. Raises ValueError where one overflows it; a tiny one may become zero."""
    kept = scale.to(dtype)
    if not bool(torch.isfinite(kept).all()):
        hint = "" if dtype == torch.float32 else "; pass torch.float32"
        raise ValueError(f"{argument}: a scale of {float(scale.abs().max()):.3g} overflows {dtype}{hint}")
    return kept


def not_zero(scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Scales to divide by: a group of zeros has scale 0 and is divided by 1."""
    scale = scale.to(dtype)
    return torch.where(scale == 0, torch.ones_like(scale), scale)


def second_moment(x_TI: torch.Tensor) -> torch.Tensor:
    """H_II = x' x / T: all that the squared error of a layer's output needs to know of its inputs.

    Raises ValueError where it overflows.
    """
    H_II = x_TI.T @ x_TI / len(x_TI)
    if not bool(torch.isfinite(H_II).all()):
        raise ValueError(f"x_TI: inputs up to {float(x_TI.abs().max()):.3g} have squares that overflow {x_TI.dtype}")
    return H_II


def output_error(W_OI: torch.Tensor, back_OI: torch.Tensor, x_TI: torch.Tensor) -> float:
    """Squared error of the layer's output over the squared output, |x (W - back)'|^2 / |x W'|^2, in float64."""
    check({}, W_OI=W_OI, back_OI=back_OI)
    x = check_inputs(x_TI, W_OI.shape[1]).double()
    W, back = W_OI.detach().double(), back_OI.detach().double()
    lost, whole = ((x @ part.T).square().sum() for part in (W - back, W))
    return float(lost / whole) if whole or lost else 0.0
