"""A matrix times a vector in a compiled loop, the matrix in panels: what `_token` spends its time on.

A weight matrix [O, I] is kept in panels of 32 outputs, [O / 32, I, words], so that a product reads it once from front
to back and adds nothing up across a register. Its numbers are float32, or the upper halves of them (bfloat16, as
uint16), or int8, 32 words each; or codes of 4, 3 or 2 bits (`CODES`). `scale` is (scale_GO of each group of inputs and
output, scale * zero, as many or none, inputs of a group):

    y_o = sum over groups: s (sum q_i x_i) - s z (sum x_i)
"""

import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from postx.scans import lanes
from postx.scans.lanes import Lanes
from postx.scans.runtime import serial

WIDE = 32  # outputs of a panel
# Codes of 32 outputs under one input, [O / 32, I, words]: the dtype of a word says how many bits a code has. 2 bits:
# byte j holds outputs j, j + 8, j + 16, j + 24; 4 bits: j and j + 16; 3 bits: two as those of 2, then 32 highest bits.
CODES = {4: np.uint8, 3: np.uint32, 2: np.uint64}


@intrinsic
def weights(typing, array, index):
    """32 weights from array.ravel()[index] on, as float32."""
    kind, bits = array.dtype, array.dtype.bitwidth
    integers, floats = (ir.VectorType(x, WIDE) for x in (ir.IntType(32), ir.FloatType()))

    def lower(context, builder, signature, values):
        data = context.make_array(signature.args[0])(context, builder, values[0]).data
        start = builder.gep(data, [values[1]])
        if kind in (types.uint8, types.uint32, types.uint64):
            return builder.sitofp(_unpacked(builder, start, {8: 4, 32: 3, 64: 2}[bits]), floats)
        number = ir.FloatType() if kind == types.float32 else ir.IntType(bits)
        x = builder.load(builder.bitcast(start, ir.VectorType(number, WIDE).as_pointer()), align=bits // 8)
        if bits == 16:
            return builder.bitcast(builder.shl(builder.zext(x, integers), ir.Constant(integers, [16] * WIDE)), floats)
        return x if bits == 32 else builder.sitofp(builder.sext(x, integers), floats)

    return Lanes(types.float32, WIDE)(array, types.intp), lower


def _unpacked(builder, start, bits):
    """Codes from `start` on as 32 integers of 32 bits; see `CODES`."""
    count = 16 if bits == 4 else 8
    narrow, wide = (ir.VectorType(ir.IntType(n), count) for n in (8, 32))
    x = builder.zext(builder.load(builder.bitcast(start, narrow.as_pointer()), align=1), wide)
    width, parts = min(bits, 2) if bits < 4 else 4, []
    for n in range(WIDE // count):
        part = builder.lshr(x, ir.Constant(wide, [width * n] * count))
        parts.append(builder.and_(part, ir.Constant(wide, [2**width - 1] * count)))
    while len(parts) > 1:
        pairs = zip(parts[::2], parts[1::2], strict=True)
        places = ir.Constant(ir.VectorType(ir.IntType(32), 2 * count), list(range(2 * count)))
        parts, count = [builder.shuffle_vector(a, b, places) for a, b in pairs], 2 * count
    if bits != 3:
        return parts[0]
    high = builder.load(builder.gep(start, [ir.Constant(ir.IntType(64), 2)]))  # the third word of 32 bits
    high = builder.zext(builder.bitcast(high, ir.VectorType(ir.IntType(1), WIDE)), parts[0].type)
    return builder.or_(parts[0], builder.shl(high, ir.Constant(high.type, [2] * WIDE)))


@serial
def product(W, scale, x, y):
    """y = W x of panels W [O / 32, I, words] and their scale; y is as long as the panels are."""
    panels, I, words = W.shape
    scale_GO, offset_GO, size = scale
    groups, O = scale_GO.shape
    totals = np.empty(len(offset_GO), np.float32)
    for g in range(len(offset_GO)):
        totals[g] = x[g * size : min(g * size + size, I)].sum()
    for p in range(panels):
        start, out = p * I * words, lanes.mul(lanes.load2(y, p * WIDE), np.float32(0))
        for g in range(groups):
            first, last = g * size, min(g * size + size, I)
            a = lanes.mul(weights(W, start + first * words), lanes.number(x, first))
            b = lanes.mul(a, np.float32(0))
            for i in range(first + 1, last - 1, 2):
                b = lanes.fma(weights(W, start + i * words), lanes.number(x, i), b)
                a = lanes.fma(weights(W, start + (i + 1) * words), lanes.number(x, i + 1), a)
            if (last - first) % 2 == 0:
                b = lanes.fma(weights(W, start + (last - 1) * words), lanes.number(x, last - 1), b)
            at = g * O + p * WIDE
            a = lanes.mul(lanes.add(a, b), lanes.load2(scale_GO, at))
            if len(offset_GO):
                a = lanes.fma(lanes.load2(offset_GO, at), -totals[g], a)
            out = a if g == 0 else lanes.add(out, a)
        lanes.store(y, p * WIDE, out)
