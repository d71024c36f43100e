"""The packed format, version 1: a model in two files, with any of its linear layers as a quantizer stores them.

NAME.safetensors holds the numbers. Its head (safetensors metadata: strings by name) says what they are:

    postx     the version of this format, "1"; files written before it had one are of version 1
    config    JSON: the keyword arguments of `LM`; beside them "network" names another network ("Denoiser", or
              "published", whose "config" is the config.json of the checkpoint it came from)
    packed    JSON, where layers are packed: {layer: {"method", "shape": [O, I], "how"}}

A weight that is not packed stands under its name in `state_dict`. A packed layer L has no "L.weight" but one tensor
"L.weight/PART" for each part that its quantizer (`postx.quant`, the method) keeps; every part counts in
`bits_per_weight`. `postx.quant.load(method).dequantize` is the definition, and `Quantized.matvec` multiplies by the
codes as they lie. This is what a reader in another language needs (tests/tools/packed_reader.py is one):

    file    8 bytes, the length n of the head; n bytes of JSON, {name: {"dtype", "shape", "data_offsets": [first, end]}}
            counted from the end of the head, and "__metadata__", the strings above; then the tensors, rows one after
            another. All numbers are little-endian; BF16 is the upper half of a float32
    codes   U8 [rows, ceil(I / 8) bits]: eight codes of `bits` bits are one word of `bits` bytes, code j at its bits
            j bits and up; each row begins with a byte, and codes behind its end are padding
    trits   U8 [rows, ceil(I / 5)]: a byte is the sum of (t_j + 1) 3^j, t_j = -1, 0, 1, j = 0 .. 4
    groups  how.group "row": one a row; n: inputs n g to n g + n - 1 are group g, the last may be shorter; "tensor":
            one in all. "scale" is [rows, groups], [1, 1] for a tensor
    zero    as many codes of `bits` bits as scales, in one row, in the order of the scales

    uniform, gptq   W = s (q - z); z is "zero" on how.grid "asymmetric", 2^(bits-1) on "symmetric", 1/2 less on
                    "midrise". With "order" (I32 [I]) column j of the codes, and of the groups, is input order[j]'s
    awq             the same, over "s" of each input
    ternary         W = scale t
    nf4             one row of 4-bit codes for the whole matrix, row by row: W = c[q] m, c of `postx.quant.nf4.code`,
                    m of how.block weights "absmax", or with how.double max(0, absmax / 127 absmax_scale +
                    absmax_mean), where 256 absmax share an absmax_scale
    microscaling    W = c[q] s, c = 0, 0.5, 1, 1.5, 2, 3, 4, 6, negative from q = 8 on; how.form "mxfp4":
                    s = 2^(scale - 127) for 32 inputs; "nvfp4": s = scale (E4M3) whole, for 16
    rotate          W = V H' diag(e) / sqrt(I), V by how.base. e_i is 1 or -1 as bit 0 of output i of MT19937, begun
                    with how.seed, is 1 or 0; H is Sylvester's for I = 2^k, else as in `postx.quant.rotate`
    lloyd           W = points[q] s; points are stored, or those of `lloyd.gaussian_codebook(bits)`
    experts         with how.experts E the rows are those of E matrices [O / E, I], one under the other; the weight is
                    named L itself and is their transposes, [E, I, O / E] (`postx.models.experts`)
    lattice, turbo  as their modules say: their codes are numbers of points in tables that these compute

NAME.json is for people and programs that want no tensors: name, config, and whatever was measured.
"""

import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from postx.models.experts import table
from postx.quant import Quantized

VERSION = "1"


def write(path, config, weights, packed=None):
    """Write the first of the two files. weights: {name: tensor}; packed: {linear layer: `Quantized`}, in its place."""
    weights, how = dict(weights), {}
    for layer, q in (packed or {}).items():
        del weights[layer if "experts" in q.how else f"{layer}.weight"]
        weights |= {f"{layer}.weight/{part}": x.cpu().contiguous() for part, x in q.parts.items()}
        how[layer] = {"method": q.method, "shape": list(q.shape), "how": q.how}
    head = {"postx": VERSION, "config": json.dumps(config)} | ({"packed": json.dumps(how)} if how else {})
    save_file(weights, path, metadata=head)


def read(path):
    """(config, weights, packed layers) of a file.

    Raises ValueError for a file that is damaged, was not written by `write`, or is of a later version.
    """
    try:
        with safe_open(path, framework="pt") as file:
            head = file.metadata() or {}
            weights = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118, not a dict
    except (SafetensorError, OSError) as error:
        raise ValueError(f"name: {path} is not a whole safetensors file ({error})") from error
    if "config" not in head:
        raise ValueError(f"name: {path} was not written by `checkpoints.save`: its head says nothing of a model")
    if head.get("postx", VERSION) != VERSION:
        raise ValueError(f"name: {path} is of format {head['postx']}; this package reads format {VERSION}")
    layers = {}
    try:
        config, how = (json.loads(head.get(part, "{}")) for part in ("config", "packed"))
        for layer, q in how.items():
            start = f"{layer}.weight/"
            parts = {key.removeprefix(start): weights.pop(key) for key in list(weights) if key.startswith(start)}
            layers[layer] = Quantized(q["method"], tuple(q["shape"]), parts, q["how"])
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"name: the head of {path} is damaged ({error!r})") from error
    return config, weights, layers


def same(layers):
    """{name of the weight: its values in float32}: what packed layers stand for."""
    return {
        **{f"{layer}.weight": q.dequantize() for layer, q in layers.items() if "experts" not in q.how},
        **{layer: table(q.dequantize(), q.how["experts"]) for layer, q in layers.items() if "experts" in q.how},
    }


def stored_bytes(path):
    """Bytes of every tensor in a file, without reading one: {name: bytes}."""
    with safe_open(Path(path), framework="pt") as file:
        found = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118, not a dict
        width = {"F32": 4, "F16": 2, "BF16": 2, "F64": 8, "I64": 8, "I32": 4, "U8": 1, "I8": 1, "BOOL": 1, "I16": 2}
        return {key: width[x.get_dtype()] * int(torch.tensor(x.get_shape()).prod()) for key, x in found.items()}
