"""Trained weights in files: NAME.safetensors holds the numbers in bf16, NAME.json what they are and how they did.

The small models of the book (`hybrid` and its twins `attention` and `ssd`) come with the package, in postx/weights;
so does `masked`, a `Denoiser` of the same size.
Linear layers may also be kept as a quantizer stores them, packed; `load` gives them back dequantized.
"""

import json
from pathlib import Path

import torch

from postx.models.denoiser import Denoiser
from postx.models.lm import LM
from postx.models.loading import files, fill, from_gguf, hub
from postx.models.packed import read, same, write

NETWORKS = {"LM": LM, "Denoiser": Denoiser, "published": lambda config: fill.build(config, torch.get_default_device())}
PACKED = "packed"  # the name of the model in a folder that the command `quantize` wrote
FOLDER = Path(__file__).parents[1] / "weights"


def kept(folder=FOLDER):
    """Names of the models whose two files are in the folder."""
    return sorted(p.stem for p in Path(folder).glob("*.safetensors") if p.with_suffix(".json").exists())


def save(name, lm, config, record, folder=FOLDER, dtype=torch.bfloat16, packed=None):
    """Write NAME.safetensors with weights in `dtype` and NAME.json with config and record; returns the first path.

    config: the keyword arguments of `LM`, or of `Denoiser` with "network": "Denoiser" beside them. It is stored in
    both files, so that the weights explain themselves.
    packed: {linear layer: its `Quantized`}, stored in place of their weights (`quant.network.Report.stored`).
    Raises ValueError where the config does not build the model given.
    """
    weights = {key: x.detach().to("cpu", dtype if x.is_floating_point() else x.dtype).contiguous()
               for key, x in lm.state_dict().items()}
    with torch.device("meta"):
        shapes = {key: x.shape for key, x in _build(config).state_dict().items()}
    if shapes != {key: x.shape for key, x in weights.items()}:
        raise ValueError(f"config: {config!r} does not build the model given")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.safetensors"
    write(path, config, weights, packed)
    text = json.dumps({"name": name, "config": config, **record}, indent=1)
    path.with_suffix(".json").write_text(text + "\n", encoding="utf8")
    return path


def record(name, folder=FOLDER):
    """What is known of a kept model: config, parameters, training log, losses measured on the stored weights."""
    path = _find(name, folder, ".json")
    try:
        return json.loads(path.read_text(encoding="utf8"))
    except ValueError as error:  # not JSON, or not text
        raise ValueError(f"name: {path} is damaged: {error}") from error


def load(what, folder=FOLDER, dtype=torch.float32, device="cpu"):
    """A trained model in evaluation mode, its values in `dtype`. `what` is the first of these that fits:

    - the name of a kept model in `folder`: an `LM` or `Denoiser`;
    - a folder that the command `quantize` wrote;
    - a folder in the published layout, config.json and safetensors, of an architecture in loading/names.toml;
    - a file NAME.gguf (with the package gguf);
    - "hf:owner/name" or "hf:owner/name@revision": such a folder on the hub (with the package huggingface_hub).

    Raises FileNotFoundError naming the missing file and the models that are there, ValueError for a file that is
    damaged or not of this kind, and lists by name the weights that do not fit.
    """
    what = str(what)
    if what not in kept(folder):
        if what.startswith("hf:"):
            return hub.load(what, dtype, device)
        if what.endswith(".gguf") and Path(what).is_file():
            return from_gguf.load(what, dtype, device)
        if (Path(what) / f"{PACKED}.safetensors").exists():
            return _kept(PACKED, what, dtype, device)
        if Path(what).is_dir():
            return files.folder(what, dtype, device)
    return _kept(what, folder, dtype, device)


def _kept(name, folder, dtype, device):
    config, weights, layers = _read(name, folder)
    try:
        with torch.device("meta"):
            lm = _build(config)
        weights |= same(layers)
        lm.load_state_dict({key: x.to("meta") for key, x in weights.items()})  # all names, and their shapes
        for key in list(weights):
            x = weights.pop(key)
            fill.put(lm, key, x.to(device, dtype if x.is_floating_point() else x.dtype))
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        path = _find(name, folder, ".safetensors")
        raise ValueError(f"name: {path} holds no model of this package ({error})") from error
    lm.published = config.get("config")
    return lm.eval()


def _build(config):
    if not isinstance(config, dict):
        raise ValueError(f"config: expected the keyword arguments of a network, got {config!r}")
    config = dict(config)
    name = config.pop("network", "LM")
    if name not in NETWORKS:
        raise ValueError(f"config: expected a network out of {', '.join(NETWORKS)}, got {name!r}")
    try:
        return NETWORKS[name](**config)
    except TypeError as error:
        raise ValueError(f"config: {config!r} does not build a {name} ({error})") from error


def packed(name, folder=FOLDER):
    """{linear layer: `Quantized`} of a kept model, as stored; empty where nothing is packed. Errors: as `load`."""
    return _read(name, folder)[2]


def _read(name, folder):
    """(config, weights, packed layers) of a kept model."""
    return read(_find(name, folder, ".safetensors"))


def _find(name, folder, suffix):
    path = Path(folder) / f"{name}{suffix}"
    if not path.exists():
        there = ", ".join(kept(folder)) or "none (an installed wheel has none; a checkout of the repository has)"
        raise FileNotFoundError(
            f"name: {path.name} is not in {path.parent}; kept models there: {there}; and there is no folder or .gguf "
            f"file {name!r}"
        )
    return path
