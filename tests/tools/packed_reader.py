"""The packed format read by its description alone (postx/models/packed.py): no torch, no numpy, nothing of postx."""

import json
import struct
from statistics import NormalDist

SIZES = {"F32": "f", "F16": "e", "BF16": "H", "U8": "B", "I8": "b", "I32": "i", "F8_E4M3": "B"}


def read(path):
    """(config, {name: numbers in a row}, {layer: rows of its weight})."""
    data = path.read_bytes()
    (n,) = struct.unpack("<Q", data[:8])
    head, rest = json.loads(data[8 : 8 + n]), data[8 + n :]
    about = head.pop("__metadata__")
    tensors, shapes = {}, {name: x["shape"] for name, x in head.items()}
    for name, x in head.items():
        part = rest[slice(*x["data_offsets"])]
        tensors[name] = numbers(x["dtype"], part)
    layers = {}
    for layer, q in json.loads(about.get("packed", "{}")).items():
        begins = f"{layer}.weight/"
        parts = {name[len(begins) :]: tensors.pop(name) for name in list(tensors) if name.startswith(begins)}
        groups = shapes.get(begins + "scale", [1, 1])[-1]
        layers[layer] = weight(q["method"], *q["shape"], parts, q["how"], groups)
    return json.loads(about["config"]), tensors, layers


def numbers(dtype, data):
    count = len(data) // struct.calcsize(SIZES[dtype])
    found = struct.unpack(f"<{count}{SIZES[dtype]}", data)
    if dtype == "BF16":
        return struct.unpack(f"<{count}f", struct.pack(f"<{count}I", *(x << 16 for x in found)))
    if dtype == "F8_E4M3":
        return [(-1) ** (x >> 7) * ((x & 7) / 8 + (x >> 3 & 15 > 0)) * 2.0 ** (max(x >> 3 & 15, 1) - 7) for x in found]
    return found


def unpacked(data, bits, width):
    """The codes of one row."""
    word = int.from_bytes(bytes(data), "little")  # words follow one another, so that a row is one long word
    return [word >> bits * j & 2**bits - 1 for j in range(width)]


def rows(data, bits, O, I):
    size = -(-I // 8) * bits
    return [unpacked(data[o * size : o * size + size], bits, I) for o in range(O)]


def weight(method, O, I, parts, how, groups):
    if method == "ternary":
        size = -(-I // 5)
        trits = [[parts["codes"][o * size + i // 5] // 3 ** (i % 5) % 3 - 1 for i in range(I)] for o in range(O)]
        return [[parts["scale"][0] * t for t in row] for row in trits]
    if method == "nf4":
        flat = unpacked(parts["codes"], 4, O * I)
        all_ = [NF4[q] * absmax(parts, how, n // how["block"]) for n, q in enumerate(flat)]
        return [all_[o * I : o * I + I] for o in range(O)]
    if method == "microscaling":
        size, levels = (32 if how["form"] == "mxfp4" else 16), (0, 0.5, 1, 1.5, 2, 3, 4, 6)
        levels += tuple(-x for x in levels)
        s = [2.0 ** (x - 127) if size == 32 else x * parts["whole"][0] for x in parts["scale"]]
        codes = rows(parts["codes"], 4, O, I)
        return [[levels[q] * s[o * groups + i // size] for i, q in enumerate(row)] for o, row in enumerate(codes)]
    if method == "rotate":
        V, signs = weight(how["base"], O, I, parts, how, groups), outputs(how["seed"], I)
        return [[x / I**0.5 * (1 if e & 1 else -1) for x, e in zip(turned(v), signs, strict=True)] for v in V]
    if method not in ("uniform", "gptq", "awq"):
        raise ValueError(f"no description of {method!r} that is whole in itself")
    bits, size = how["bits"], how["group"] if groups > 1 else I
    middle = 2 ** (bits - 1) - (0.5 if how["grid"] == "midrise" else 0)
    zeros = unpacked(parts["zero"], bits, len(parts["scale"])) if "zero" in parts else [middle] * len(parts["scale"])
    order, divide, W = parts.get("order", range(I)), parts.get("s", [1] * I), []
    for o, row in enumerate(rows(parts["codes"], bits, O, I)):
        W.append([0.0] * I)
        for j, q in enumerate(row):
            g = 0 if len(zeros) == 1 else o * groups + j // size
            W[o][order[j]] = parts["scale"][g] * (q - zeros[g]) / divide[order[j]]
    return W


def absmax(parts, how, block):
    """NF4's scale of a block."""
    if not how["double"]:
        return parts["absmax"][block]
    return max(0, parts["absmax"][block] / 127 * parts["absmax_scale"][block // 256] + parts["absmax_mean"][0])


def quantiles():
    """NF4's sixteen values."""
    high = 0.9677083
    up, down = ([NormalDist().inv_cdf(high + (0.5 - high) * i / n) for i in range(n)] for n in (8, 7))
    values = sorted(up + [-x for x in down] + [0])
    return [x / max(map(abs, values)) for x in values]


NF4 = quantiles()


def turned(v):
    """v H', H Sylvester's."""
    v, step = list(v), 1
    while step < len(v):
        for i in range(len(v)):
            if not i & step:
                v[i], v[i + step] = v[i] + v[i + step], v[i] - v[i + step]
        step *= 2
    return v


def outputs(seed, count):
    """The first outputs of MT19937 (Matsumoto and Nishimura 1998) begun with a seed, at most 227."""
    state = [seed & 0xFFFFFFFF]
    for i in range(1, 624):
        state.append(1812433253 * (state[-1] ^ state[-1] >> 30) + i & 0xFFFFFFFF)
    found = []
    for i in range(count):
        y = state[i] & 0x80000000 | state[i + 1] & 0x7FFFFFFF
        y = state[i + 397] ^ y >> 1 ^ (0x9908B0DF if y & 1 else 0)
        y ^= y >> 11
        y ^= y << 7 & 0x9D2C5680
        y ^= y << 15 & 0xEFC60000
        found.append(y ^ y >> 18)
    return found
