"""Sixteen neighbouring channels as one number: the small vector helper of the fast scans.

A value of type `Lanes` is an LLVM vector of 16 float32 or float64. It lives in registers: one of AVX-512, two of
AVX2, four of NEON. Numba's loops are vectorised where LLVM sees how; a scan keeps its state in registers only if
told so, and this tells it. Inside a compiled function:

    v = load(array, i)     array.ravel()[i : i + 16]; the array must be contiguous
    load2, load4           the same with 32 and 64 lanes: two and four registers under one name
    store(array, i, v)     the reverse, of any width
    prefetch(array, i)     asks for the line of the cache with array.ravel()[i], into the second cache
    masked(array, i, masks, j)     bytes.ravel()[i : i + 16] & masks.ravel()[j : j + 16] as 16 float32
    number(array, i)       array.ravel()[i], unchecked; in what follows a number stands for copies of it
    add(a, b) mul(a, b)    lane by lane
    fma(a, b, c)           a b + c
    exp2(v)                2^v
    total(v)               the sum of the lanes
    dot(a, b)              16 lanes whose sum is that of a b
    totals(array, i)       lane j is the sum of array.ravel()[i + 16 j : i + 16 j + 16]
    room(n, array)         a new array of n numbers of the array's dtype that begins where a line of the cache does
    zeros(n, array)        the same, of zeros

exp2 in float32 is a polynomial of degree 5 around the nearest integer (minimax in relative error on [-1/2, 1/2],
exact at 0, so that "no decay" is exactly 1 however often it is applied). Its relative error is below 2e-7 where the
result is a normal number. Between 2^-127 and 2^-126 its absolute error is below 1.2e-38; from there down it is 0,
and from 128 up it is infinite. NaN stays NaN. In float64 it calls the C library for each lane.
"""

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic, models, register_model

from postx.scans.runtime import serial

LANES = 16
POLYNOMIAL = (1.0, 0.69314700365, 0.24022242427, 0.05550733581, 0.00967151299, 0.00132647273)


class Lanes(types.Type):
    """The numba type of 16 numbers of one dtype, or of a multiple of 16."""

    def __init__(self, dtype, width=LANES):
        self.dtype, self.width = dtype, width
        super().__init__(name=f"Lanes({dtype}, {width})")


@register_model(Lanes)
class _Model(models.PrimitiveModel):
    def __init__(self, manager, kind):
        super().__init__(manager, kind, ir.VectorType(manager.lookup(kind.dtype).get_value_type(), kind.width))


def _spread(context, builder, kind, value, wanted):
    """The value as lanes: a plain number is cast and copied into each."""
    if isinstance(kind, Lanes):
        return value
    value = context.cast(builder, value, kind, wanted.dtype)
    vector = context.get_value_type(wanted)
    one = builder.insert_element(ir.Constant(vector, ir.Undefined), value, ir.Constant(ir.IntType(32), 0))
    return _pick(builder, one, one, [0] * wanted.width)


def _pick(builder, a, b, places):
    """The lanes of a followed by those of b, as far as `places` names them."""
    return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(ir.IntType(32), len(places)), list(places)))


def _elementwise(emit):
    """A typing and lowering function for lanes and numbers in, lanes out."""

    def typed(kinds):
        wanted = next((kind for kind in kinds if isinstance(kind, Lanes)), None)
        if wanted is None or any(isinstance(kind, Lanes) and kind != wanted for kind in kinds):
            return None

        def lower(context, builder, signature, values):
            pairs = zip(signature.args, values, strict=True)
            return emit(builder, *(_spread(context, builder, kind, x, wanted) for kind, x in pairs))

        return wanted(*kinds), lower

    return typed


def _call(builder, name, *values):
    """An LLVM intrinsic on vectors, such as llvm.fmuladd (fused where the CPU can)."""
    kind = values[0].type
    suffix = f"v{kind.count}f{32 if isinstance(kind.element, ir.FloatType) else 64}"
    signature = ir.FunctionType(kind, [kind] * len(values))
    return builder.call(cgutils.get_or_insert_function(builder.module, signature, f"{name}.{suffix}"), values)


_add = _elementwise(lambda builder, a, b: builder.fadd(a, b))
_mul = _elementwise(lambda builder, a, b: builder.fmul(a, b))
_fma = _elementwise(lambda builder, a, b, c: _call(builder, "llvm.fmuladd", a, b, c))


@intrinsic
def add(typing, a, b):
    return _add((a, b))


@intrinsic
def mul(typing, a, b):
    return _mul((a, b))


@intrinsic
def fma(typing, a, b, c):
    return _fma((a, b, c))


@intrinsic
def exp2(typing, v):
    return _elementwise(_emit_exp2)((v,))


def _emit_exp2(builder, x):
    kind = x.type
    if isinstance(kind.element, ir.DoubleType):
        return _call(builder, "llvm.exp2", x)

    def number(value):
        return ir.Constant(kind, [value] * kind.count)

    integers = ir.VectorType(ir.IntType(32), kind.count)
    for bound, beyond in ((-127.0, "<"), (128.0, ">")):  # ordered comparisons: NaN passes
        x = builder.select(builder.fcmp_ordered(beyond, x, number(bound)), number(bound), x)
    # Adding 1.5 * 2^23 rounds to the nearest integer and leaves it in the lowest bits of the sum. The fences keep
    # a caller's fastmath from cancelling what is added and subtracted again.
    shifted = _call(builder, "llvm.arithmetic.fence", builder.fadd(x, number(12582912.0)))
    whole = _call(builder, "llvm.arithmetic.fence", builder.fsub(shifted, number(12582912.0)))
    rest = builder.fsub(x, whole)
    power = number(POLYNOMIAL[-1])
    for c in POLYNOMIAL[-2::-1]:
        power = _call(builder, "llvm.fmuladd", power, rest, number(c))
    exponent = builder.shl(builder.bitcast(shifted, integers), ir.Constant(integers, [23] * kind.count))
    return builder.bitcast(builder.add(builder.bitcast(power, integers), exponent), kind)


def _pointer(context, builder, kind, array, index, vector):
    data = context.make_array(kind)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [index]), vector.as_pointer())


def _loader(width):
    @intrinsic
    def load(typing, array, index):
        if not (isinstance(array, types.Array) and isinstance(index, types.Integer)):
            return None
        kind = Lanes(array.dtype, width)

        def lower(context, builder, signature, values):
            vector = context.get_value_type(kind)
            pointer = _pointer(context, builder, array, values[0], values[1], vector)
            return builder.load(pointer, align=array.dtype.bitwidth // 8)

        return kind(array, types.intp), lower

    return load


load, load2, load4 = _loader(LANES), _loader(2 * LANES), _loader(4 * LANES)


@intrinsic
def masked(typing, array, index, masks, at):
    if not all(isinstance(kind, types.Array) and kind.dtype == types.uint8 for kind in (array, masks)):
        return None

    def lower(context, builder, signature, values):
        narrow, wide = (ir.VectorType(ir.IntType(bits), LANES) for bits in (8, 32))
        pairs = (array, values[0], values[1]), (masks, values[2], values[3])
        x, kept = (builder.load(_pointer(context, builder, *pair, narrow), align=1) for pair in pairs)
        x = builder.zext(builder.and_(x, kept), wide)
        return builder.sitofp(x, context.get_value_type(Lanes(types.float32)))

    return Lanes(types.float32)(array, types.intp, masks, types.intp), lower


@intrinsic
def number(typing, array, index):
    if not (isinstance(array, types.Array) and isinstance(index, types.Integer)):
        return None

    def lower(context, builder, signature, values):
        data = context.make_array(array)(context, builder, values[0]).data
        return builder.load(builder.gep(data, [values[1]]))

    return array.dtype(array, types.intp), lower


@intrinsic
def store(typing, array, index, value):
    if not (isinstance(array, types.Array) and isinstance(value, Lanes) and value.dtype == array.dtype):
        return None

    def lower(context, builder, signature, values):
        vector = context.get_value_type(value)
        pointer = _pointer(context, builder, array, values[0], values[1], vector)
        builder.store(values[2], pointer, align=array.dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(array, types.intp, value), lower


@intrinsic
def prefetch(typing, array, index):
    def lower(context, builder, signature, values):
        byte, flag = ir.IntType(8), ir.IntType(32)
        at = _pointer(context, builder, array, *values, byte)
        signature = ir.FunctionType(ir.VoidType(), [at.type, flag, flag, flag])
        call = cgutils.get_or_insert_function(builder.module, signature, "llvm.prefetch.p0")
        builder.call(call, [at, flag(0), flag(2), flag(1)])  # to read, into the second cache, data
        return context.get_dummy_value()

    return types.void(array, types.intp), lower


@intrinsic
def total(typing, value):
    if not isinstance(value, Lanes):
        return None

    def lower(context, builder, signature, values):
        (x,) = values
        for width in _halves(value.width):  # fold the upper half onto the lower
            x = builder.fadd(_pick(builder, x, x, range(width)), _pick(builder, x, x, range(width, 2 * width)))
        return builder.extract_element(x, ir.Constant(ir.IntType(32), 0))

    return value.dtype(value), lower


def _halves(width):
    """width / 2, width / 4, ..., 1."""
    return [width >> n for n in range(1, width.bit_length())]


@intrinsic
def dot(typing, a, b):
    if not isinstance(a, Lanes) or a != b:
        return None

    def lower(context, builder, signature, values):
        parts = [[_pick(builder, x, x, range(i, i + LANES)) for x in values] for i in range(0, a.width, LANES)]
        products = builder.fmul(*parts[0])
        for x, y in parts[1:]:
            products = _call(builder, "llvm.fmuladd", x, y, products)
        return products

    return Lanes(a.dtype)(a, b), lower


@intrinsic
def totals(typing, array, index):
    if not (isinstance(array, types.Array) and isinstance(index, types.Integer)):
        return None
    kind = Lanes(array.dtype)

    def lower(context, builder, signature, values):
        start = _pointer(context, builder, array, values[0], values[1], context.get_value_type(kind))
        rows = [
            builder.load(builder.gep(start, [ir.Constant(ir.IntType(64), j)]), align=array.dtype.bitwidth // 8)
            for j in range(LANES)
        ]
        even, odd = range(0, 2 * LANES, 2), range(1, 2 * LANES, 2)
        while len(rows) > 1:  # neighbouring lanes of two rows become one row: 16 to 8 to 4 to 2 to 1
            rows = [
                builder.fadd(_pick(builder, x, y, even), _pick(builder, x, y, odd))
                for x, y in zip(rows[::2], rows[1::2], strict=True)
            ]
        return rows[0]

    return kind(array, types.intp), lower


@serial
def room(size, like):
    """Numpy aligns to 16 bytes; then most registers would be read from two lines of the cache instead of one."""
    line = 64 // like.itemsize
    start = np.empty(size + line, like.dtype)
    skip = line - start.ctypes.data // like.itemsize % line
    return start[skip : skip + size]


@serial
def zeros(size, like):
    out = room(size, like)
    for i in range(size):
        out[i] = 0
    return out
