"""The packed format, version 1: a model in two files, with any of its linear layers as a quantizer stores them.

NAME.safetensors holds the numbers. Its head (safetensors metadata: strings by name) says what they are:

    postx     the version of this format, "1"; files written before it had one are of version 1
    config    JSON: the keyword arguments of `LM`; beside them "network" names another network ("Denoiser", or
              "published", whose "config" is the config.json of the checkpoint it came from)
    packed    JSON, where layers are packed: {layer: {"method", "shape": [O, I], "how"}}

A weight that is not packed stands under its name in `state_dict`. A packed layer L has no "L.weight" but one tensor
"L.weight/PART" for each part that its quantizer (`postx.quant`, the method) keeps: codes, scales, zero points, signs.
Codes of `bits` bits lie one after another in bytes, least significant bits first (`postx.quant._pack`); every part
counts in `bits_per_weight`. `postx.quant.load(method).dequantize` is the definition of what they mean, and
`Quantized.matvec` multiplies by them as they lie.

NAME.json is for people and programs that want no tensors: name, config, and whatever was measured.
"""

import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from postx.quant import Quantized

VERSION = "1"


def write(path, config, weights, packed=None):
    """Write the first of the two files. weights: {name: tensor}; packed: {linear layer: `Quantized`}, in its place."""
    weights, how = dict(weights), {}
    for layer, q in (packed or {}).items():
        del weights[f"{layer}.weight"]
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
    """{layer: weight_OI in float32}: what packed layers stand for."""
    return {f"{layer}.weight": q.dequantize() for layer, q in layers.items()}


def stored_bytes(path):
    """Bytes of every tensor in a file, without reading one: {name: bytes}."""
    with safe_open(Path(path), framework="pt") as file:
        found = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118, not a dict
        width = {"F32": 4, "F16": 2, "BF16": 2, "F64": 8, "I64": 8, "I32": 4, "U8": 1, "I8": 1, "BOOL": 1, "I16": 2}
        return {key: width[x.get_dtype()] * int(torch.tensor(x.get_shape()).prod()) for key, x in found.items()}
