"""A packed weight times a vector, without unpacking it first: what the product reads is what is stored.

    codes    y_o = sum over groups: s (sum q_i x_i - z sum x_i)      of 1 to 8 bits, one after another
    trits    y_o = s (sum d_i x_i - sum x_i),  d = 0, 1, 2           five digits a byte, base 3

One vector at a time a product does two operations a weight, so that reading the weights takes the time: an eighth of
the bytes of float32, or a twentieth, may take less of it.

A code of b bits stands at bits b i to b (i + 1) of its row. What of it lies in byte k is that byte under a mask, times
2^(8 k - b i), exact in float32: no code is shifted, and one that lies across two bytes is the sum of two. So a row is
read 16 bytes at a time, each under as many masks as it has codes, and 2^(8 k - b i) x_i is put in that order first. A
group begins and ends at any bit: its masks say which. The last 16 bytes of a group may be other groups' too, or were
read before; their masks are 0 there.

A byte of trits becomes a float and loses one digit after the other by floor((b + 1/2) / 3), exact for every byte. The
trits are multiplied as well: on a CPU a fused multiplication and addition takes no longer than an addition, and the
argument for additions is one about chips.
"""

import functools
from typing import NamedTuple

import numba
import numpy as np
import torch
from torch.nn import functional

from postx.quant import Quantized, rotate, uniform
from postx.quant._pack import TRITS, WORD, unpack
from postx.scans import lanes
from postx.scans.lanes import LANES
from postx.scans.runtime import COMPILED, jit, serial

GRIDS = ("uniform", "gptq", "awq")  # what stores codes of equally spaced levels
HALF, THREE, THIRD = np.float32(0.5), np.float32(3), np.float32(1 / 3)
ROWS = 4  # outputs at a time, which share what is read of x


class Plan(NamedTuple):
    """How rows of codes are read: blocks of 16 bytes, those of a group one after another, and the masks on each."""

    at: np.ndarray  # [blocks] the first byte
    end: np.ndarray  # [groups] the block behind a group's last
    mask: np.ndarray  # [blocks, masks, 16]
    place: np.ndarray  # the same axes: the input that a code is for, or one that is 0
    factor: np.ndarray  # the same axes: 2^(8 k - b i)


@functools.lru_cache(maxsize=256)
def plan(I, bits, size):
    """The `Plan` of rows of I codes in groups of `size`; a row of fewer than 16 bytes is read as if it had 16."""
    width = -(-I // WORD) * bits
    byte = np.arange(width)
    code = byte * 8 // bits + np.arange(-(-8 // bits) + 1)[:, None]  # the codes that may have bits in a byte
    low, high = np.maximum(8 * byte, code * bits), np.minimum(8 * byte + 8, (code + 1) * bits)
    there = low < high
    there = there[there.any(1)]
    code, low, high = code[: len(there)], low[: len(there)], high[: len(there)]
    mask = np.where(there, (1 << np.maximum(high - low, 0)) - 1 << low - 8 * byte, 0)
    factor = 2.0 ** (8 * byte - code * bits)
    at, end, parts = [], [], []
    for first in range(0, I, size):
        stop = min(first + size, I)
        last = -(-stop * bits // 8)
        for start in range(first * bits // 8, last, LANES):
            at.append(max(0, min(start, width - LANES)))
            k = at[-1] + np.arange(LANES)
            new, k = (start <= k) & (k < last), np.minimum(k, width - 1)
            used = new & there[:, k] & (first <= code[:, k]) & (code[:, k] < stop)
            parts.append([np.where(used, x[:, k], none) for x, none in ((mask, 0), (code, I), (factor, 0))])
        end.append(len(at))
    mask, place, factor = (np.ascontiguousarray([part[i] for part in parts], dtype)
                           for i, dtype in enumerate((np.uint8, np.int32, np.float32)))  # fmt: skip
    return Plan(np.array(at), np.array(end), mask, place, factor)


@serial
def _in_order(x, place, factor):
    """The inputs as the blocks ask for them: [blocks, masks, 16] numbers in a row, zeros where there is none."""
    out = lanes.zeros(place.size, x)
    for i in range(place.size):
        at = place.flat[i]
        out[i] = x[at] * factor.flat[i] if at < len(x) else np.float32(0)
    return out


@jit
def _codes(packed, x, at, end, mask, place, factor, scale, offset, total, y):
    """packed [O, bytes], x [I], scale and offset = scale * zero [groups, O], total [groups] of x; see `Plan`."""
    O, width, masks = packed.shape[0], packed.shape[1], mask.shape[1]
    ordered, zeros = _in_order(x, place, factor), lanes.zeros(LANES, y)
    for four in numba.prange(-(-O // ROWS)):
        o0, o1 = four * ROWS, min(four * ROWS + 1, O - 1)  # the last four may be fewer: then some are read again
        o2, o3 = min(four * ROWS + 2, O - 1), min(four * ROWS + 3, O - 1)
        none = lanes.load(zeros, 0)
        y0, y1, y2, y3, block = none, none, none, none, 0
        for g in range(len(end)):
            a0, a1, a2, a3 = none, none, none, none
            while block < end[g]:
                for m in range(block * masks, block * masks + masks):
                    x_m = lanes.load(ordered, m * LANES)
                    a0 = lanes.fma(lanes.masked(packed, o0 * width + at[block], mask, m * LANES), x_m, a0)
                    a1 = lanes.fma(lanes.masked(packed, o1 * width + at[block], mask, m * LANES), x_m, a1)
                    a2 = lanes.fma(lanes.masked(packed, o2 * width + at[block], mask, m * LANES), x_m, a2)
                    a3 = lanes.fma(lanes.masked(packed, o3 * width + at[block], mask, m * LANES), x_m, a3)
                block += 1
            y0, y1 = lanes.fma(a0, scale[g, o0], y0), lanes.fma(a1, scale[g, o1], y1)
            y2, y3 = lanes.fma(a2, scale[g, o2], y2), lanes.fma(a3, scale[g, o3], y3)
        y[o0], y[o1], y[o2], y[o3] = lanes.total(y0), lanes.total(y1), lanes.total(y2), lanes.total(y3)
        for g in range(len(end)):
            for o in range(o0, o3 + 1):
                y[o] -= offset[g, o] * total[g]


def _codes_plain(packed, x, at, end, mask, place, factor, scale, offset, total, y):
    """The same where numba's compiler is switched off."""
    ordered = np.append(x, np.float32(0))[place] * factor
    bytes_ = packed[:, at[:, None] + np.arange(LANES)]
    blocks = ((bytes_[:, :, None] & mask) * ordered).sum((2, 3))
    each = [part.sum(1) for part in np.split(blocks, end[:-1], 1)]
    y[:] = (np.stack(each) * scale - offset * total[:, None]).sum(0)


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


class Product:
    """W x for a packed W, with all that does not depend on x laid out once: product(x_I) -> y_O in float32.

    `q.dequantize() @ x_I` with its sums in another order. For uniform, gptq and awq of any bits and groups, rotate of
    one of these, whose turn is x's, and ternary. x_I may be of any real dtype; it is read as float32. On a
    CPU; elsewhere dequantize. Raises ValueError for what has no kernel here, and for an x_I of the wrong shape.
    """

    def __init__(self, q: Quantized):
        base = q.how.get("base", "uniform") if q.method == "rotate" else q.method
        if base not in GRIDS and q.method != "ternary":
            told = repr(base) if q.method == base else f"'rotate' of {base!r}"
            raise ValueError(f"q: no kernel for {told}; there are uniform, gptq and awq, rotate of these, and ternary")
        codes = q.parts["codes"]
        if codes.device.type != "cpu":
            raise ValueError(f"q: the kernels are for a CPU, got {codes.device}; dequantize there")
        self.q, self.args = q, ()
        if q.method == "ternary":
            self.packed = codes.numpy()
            return
        scale, zero, size = _scales(q)
        self.args = *plan(q.shape[1], q.how["bits"], size), scale.numpy(), (scale * zero).numpy()
        self.size, self.packed = size, functional.pad(codes, (0, max(0, LANES - codes.shape[1]))).contiguous().numpy()

    def __call__(self, x_I: torch.Tensor) -> torch.Tensor:
        O, I = self.q.shape
        if not isinstance(x_I, torch.Tensor):
            raise TypeError(f"x_I: expected a torch.Tensor with axes [I], got {type(x_I).__name__}")
        if x_I.is_complex():
            raise ValueError(f"x_I: expected real numbers, got {x_I.dtype}")
        if x_I.shape != (I,):
            raise ValueError(f"x_I: expected axes [I] with I={I}, got shape {tuple(x_I.shape)}")
        if x_I.device.type != "cpu":
            raise ValueError(f"x_I: the kernels are for a CPU, got {x_I.device}; dequantize there")
        x, y = self._turned(x_I.detach().float()), torch.empty(O, dtype=torch.float32)
        if self.q.method == "ternary":
            scale, total = np.float32(self.q.parts["scale"].item()), np.float32(x.sum().item())
            _trits(self.packed, _by_place(x, TRITS, self.packed.shape[1]), scale, total, y.numpy())
            return y
        total = functional.pad(x, (0, -I % self.size)).view(-1, self.size).sum(1)
        run = _codes if COMPILED else _codes_plain
        run(self.packed, x.contiguous().numpy(), *self.args, total.numpy(), y.numpy())
        return y

    @property
    def grid(self):
        """(bits, inputs of a group) where W is scale * (code - zero) of the inputs as they come; else None."""
        how, plain = self.q.how, self.q.method in ("uniform", "gptq") and "order" not in self.q.parts
        return (how["bits"], self.size) if plain else None

    def codes(self):
        """(codes_OI, scale [O, groups], scale * zero) of such a weight."""
        codes = unpack(self.q.parts["codes"], self.q.how["bits"], self.q.shape[1])
        return codes, *(torch.from_numpy(part).T for part in self.args[-2:])

    def _turned(self, x):
        """The inputs as the codes are for them: turned, divided, or in the order in which they were rounded."""
        parts = self.q.parts
        if self.q.method == "rotate":
            x = rotate.spin(x, self.q.how["seed"])
        x = x / parts["s"].float() if "s" in parts else x
        return x[parts["order"].long()] if "order" in parts else x


def matvec(q: Quantized, x_I: torch.Tensor) -> torch.Tensor:
    """One product of a `Product`."""
    return Product(q)(x_I)


def _by_place(x, digits, width):
    """x in the order of the digits of `width` bytes: [digits, bytes], contiguous, zeros where there is no input."""
    return functional.pad(x, (0, digits * width - len(x))).view(width, digits).T.contiguous().numpy()


def _scales(q):
    """Scale and zero point [groups, O] in float32, and the inputs of a group."""
    (O, I), bits, scale = q.shape, q.how["bits"], q.parts["scale"].float()[..., None]
    zero = uniform.unpack_zero(q.parts["zero"], bits, scale) if "zero" in q.parts else None
    zero = uniform.origin(scale, zero, bits, q.how["grid"])
    size = I if scale.shape[1] == 1 else q.how["group"]
    return *(part[..., 0].expand(O, -1).T.contiguous() for part in (scale, zero)), size
