"""Checkpoints in the published layout: a folder with config.json and safetensors, in one file or in shards.

Only safetensors are read: the older format (pytorch_model.bin) is a pickle, which runs whatever its author put in.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from postx.models.loading.fill import fill

CONFIG, WHOLE, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"


class Tensors(Mapping):
    """The tensors of a folder by name, each read when it is asked for. Raises ValueError for a damaged file."""

    def __init__(self, folder):
        self.folder, self.files = Path(folder), {}
        self.where = {}
        if (self.folder / INDEX).exists():
            shards = sorted(set(map(str, _json(self.folder / INDEX, "weight_map").values())))
            lacking = [name for name in shards if not (self.folder / name).exists()]
            if lacking:
                raise ValueError(f"{self.folder}: {INDEX} names {', '.join(lacking)}, which the folder does not have")
        else:
            shards = [WHOLE]
        for name in shards:
            try:
                self.files[name] = file = safe_open(self.folder / name, framework="pt")
                self.where |= dict.fromkeys(file.keys(), name)
            except (SafetensorError, OSError) as error:
                raise ValueError(f"{self.folder / name} is not a whole safetensors file ({error})") from error

    def __getitem__(self, name):
        return self.files[self.where[name]].get_tensor(name)

    def __iter__(self):
        return iter(self.where)

    def __len__(self):
        return len(self.where)


def folder(path, dtype=torch.float32, device="cpu"):
    """The model in a published folder, ready to run.

    Raises ValueError that says what was expected and what the folder has, for a folder without config.json or without
    safetensors, a model_type that is not known, and weights that do not fit.
    """
    path = Path(path)
    there = {p.name for p in path.iterdir()}
    if CONFIG not in there or not there & {WHOLE, INDEX}:
        pickled = " (its pickled weights are not read: a pickle runs code)" if any(
            name.endswith((".bin", ".pt", ".pth")) for name in there) else ""  # fmt: skip
        raise ValueError(
            f"{path}: expected a folder with {CONFIG} and {WHOLE}, or {INDEX} and its shards; "
            f"it has {', '.join(sorted(there)[:8]) or 'nothing'}{pickled}"
        )
    return fill(config(path), Tensors(path), dtype, device)


def config(path):
    """The folder's config.json, for a language model inside of a larger one that of the text."""
    found = _json(Path(path) / CONFIG)
    return found.get("text_config") or found


def read(path):
    """A JSON file as a dictionary, empty where there is none."""
    return _json(path) if path.exists() else {}


def _json(path, key=None):
    try:
        found = json.loads(path.read_text(encoding="utf8"))
        found = found if key is None else found[key]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged: {error!r}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} is damaged: expected names and values, got {str(found)[:40]!r}")
    return found
