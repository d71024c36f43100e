"""A packed weight times a vector, without unpacking it first: what the product reads is what is stored.

    4 bits   y_o = sum over groups: s (sum q_i x_i - z sum x_i)      two codes a byte
    trits    y_o = s (sum d_i x_i - sum x_i),  d = 0, 1, 2           five digits a byte, base 3

One vector at a time a product does two operations a weight, so that reading the weights takes the time: an eighth of
the bytes of float32, or a twentieth, may take less of it. The inputs are put in the order of the codes first, one row
of them for each place in a byte. A byte of trits becomes a float and loses one digit after the other by
floor((b + 1/2) / 3), exact for every byte. The trits are multiplied as well: on a CPU a fused multiplication and
addition takes no longer than an addition, and the argument for additions is one about chips.
"""

import numba
import numpy as np
import torch

from postx.quant import Quantized, uniform
from postx.quant._pack import TRITS
from postx.scans import lanes
from postx.scans.lanes import LANES
from postx.scans.runtime import COMPILED, jit

KERNELS = ("uniform", "gptq", "ternary")
HALF, THREE, THIRD = np.float32(0.5), np.float32(3), np.float32(1 / 3)


@jit
def _nibbles(packed, x_2, scale, zero, size, total, y):
    """packed [O, bytes], x_2 [2, bytes], scale and zero [O, groups] for `size` bytes each, total [groups] of x."""
    width, groups = packed.shape[1], scale.shape[1]
    for o in numba.prange(packed.shape[0]):
        sum_ = np.float32(0)
        for g in range(groups):
            start, stop = g * size, min(g * size + size, width)
            row, even, odd = packed[o, start:stop], x_2[0, start:stop], x_2[1, start:stop]
            a = np.float32(0)
            for k in range(stop - start):
                # As bytes again: LLVM then widens them to 32 bits, not to 64.
                a += np.float32(np.uint8(row[k] & 15)) * even[k] + np.float32(np.uint8(row[k] >> 4)) * odd[k]
            sum_ += scale[o, g] * (a - zero[o, g] * total[g])
        y[o] = sum_


@jit
def _nibbles_in_lanes(packed, x_2, scale, zero, size, total, y):
    """The same where groups and rows are multiples of 16 bytes: one sum over lanes a row, not one a group."""
    width, groups = packed.shape[1], scale.shape[1]
    zeros = lanes.zeros(LANES, y)
    for o in numba.prange(packed.shape[0]):
        nothing = lanes.load(zeros, 0)
        sum_, shift = nothing, np.float32(0)
        for g in range(groups):
            a, b = nothing, nothing
            for k in range(g * size, min(g * size + size, width), LANES):
                a = lanes.fma(lanes.codes(packed, o * width + k, 0, 15), lanes.load(x_2, k), a)
                b = lanes.fma(lanes.codes(packed, o * width + k, 4, 15), lanes.load(x_2, width + k), b)
            sum_ = lanes.fma(lanes.add(a, b), scale[o, g], sum_)
            shift += scale[o, g] * zero[o, g] * total[g]
        y[o] = lanes.total(sum_) - shift


@jit
def _trits(packed, x_5, scale, total, y):
    """packed [O, bytes], x_5 [5, bytes]."""
    x0, x1, x2, x3, x4 = x_5[0], x_5[1], x_5[2], x_5[3], x_5[4]
    for o in numba.prange(packed.shape[0]):
        row = packed[o]
        a = np.float32(0)
        for k in range(packed.shape[1]):
            t0 = np.float32(row[k])
            t1 = np.floor((t0 + HALF) * THIRD)
            t2 = np.floor((t1 + HALF) * THIRD)
            t3 = np.floor((t2 + HALF) * THIRD)
            t4 = np.floor((t3 + HALF) * THIRD)
            a += (t0 - THREE * t1) * x0[k] + (t1 - THREE * t2) * x1[k]
            a += (t2 - THREE * t3) * x2[k] + (t3 - THREE * t4) * x3[k] + t4 * x4[k]
        y[o] = scale * (a - total)


def matvec(q: Quantized, x_I: torch.Tensor) -> torch.Tensor:
    """W x for a packed W, y_O in float32: `q.dequantize() @ x_I` with its sums in another order.

    For "ternary", and for "uniform" and "gptq" of 4 bits whose groups are rows, tensors or an even number of inputs.
    x_I may be of any real dtype; it is read as float32. On a CPU; elsewhere dequantize. Raises ValueError for what has
    no kernel here, and for an x_I of the wrong shape.
    """
    if q.method not in KERNELS or q.how.get("bits", 4) != 4:
        bits = f" of {q.how['bits']} bits" if "bits" in q.how else ""
        raise ValueError(
            f"q: no kernel for {q.method!r}{bits}; there are uniform and gptq of 4 bits, and ternary"
        )
    O, I = q.shape
    codes = q.parts["codes"]
    if not isinstance(x_I, torch.Tensor):
        raise TypeError(f"x_I: expected a torch.Tensor with axes [I], got {type(x_I).__name__}")
    if x_I.is_complex():
        raise ValueError(f"x_I: expected real numbers, got {x_I.dtype}")
    if x_I.shape != (I,):
        raise ValueError(f"x_I: expected axes [I] with I={I}, got shape {tuple(x_I.shape)}")
    if codes.device.type != "cpu" or x_I.device.type != "cpu":
        raise ValueError(
            f"q, x_I: the kernels are for a CPU, got {codes.device} and {x_I.device}; dequantize there"
        )
    x, y = x_I.detach().float(), torch.empty(O, dtype=torch.float32)
    if "order" in q.parts:  # the groups follow it
        x = x[q.parts["order"].long()]
    if q.method == "ternary":
        x_5 = _by_place(x, TRITS, codes.shape[1])
        _trits(codes.numpy(), x_5, np.float32(q.parts["scale"].item()), np.float32(x.sum().item()), y.numpy())
        return y
    scale, zero, size = _scales(q, I)
    total = torch.nn.functional.pad(x, (0, -I % size)).view(-1, size).sum(1)
    whole = COMPILED and codes.shape[1] % LANES == 0 and size // 2 % LANES == 0
    run = _nibbles_in_lanes if whole else _nibbles
    run(codes.numpy(), _by_place(x, 2, codes.shape[1]), scale, zero, size // 2, total.numpy(), y.numpy())
    return y


def _by_place(x, digits, width):
    """x in the order of the digits of `width` bytes: [digits, bytes], contiguous, zeros where there is no input."""
    return torch.nn.functional.pad(x, (0, digits * width - len(x))).view(width, digits).T.contiguous().numpy()


def _scales(q, I):
    """Scale and zero point [O, groups] in float32, and the inputs of a group: whole bytes, a row's padding included."""
    grid, scale = q.how["grid"], q.parts["scale"].float()[..., None]
    zero = uniform.unpack_zero(q.parts["zero"], 4, scale) if "zero" in q.parts else None
    zero = uniform.origin(scale, zero, 4, grid)
    groups = scale.shape[1]
    size = 2 * q.parts["codes"].shape[1] if groups == 1 else q.how["group"]
    if size % 2:
        raise ValueError(f"q: groups of {size} inputs share bytes; the kernel takes an even number")
    return *(part[..., 0].expand(q.shape[0], groups).contiguous().numpy() for part in (scale, zero)), size
