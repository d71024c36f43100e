"""Checkpoints of a run in one safetensors file: weights, moments, random state; step, log and config in its head."""

import dataclasses
import json
import os
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from postx.distributed.data import put, whole

# What may differ between the run that saved and the run that goes on: it changes no number, or is the user's affair.
FREE = ("device", "cuda_graph", "checkpoint", "checkpoint_every", "quiet", "ranks")


def save(path, model, named, optimizer, more, config, run, write=True):
    """Write the file beside its place, then move it there: a kill leaves the old one or the new one, whole.

    Of several ranks one writes; the others help to put together what is cut up between them.
    """
    tensors = _tensors(model, named, optimizer, more)
    tensors["rng.cpu"] = torch.get_rng_state()
    if torch.device(config.device).type == "cuda":
        tensors["rng.cuda"] = torch.cuda.get_rng_state(config.device)
    tensors = {name: whole(x.detach()).cpu().contiguous() for name, x in tensors.items()}
    if not write:
        return
    head = {
        "config": json.dumps(dataclasses.asdict(config)),
        "run": json.dumps(run),
        "torch": torch.__version__,
    }
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".part")
    save_file(tensors, beside, metadata=head)
    with open(beside, "rb") as file:
        os.fsync(file.fileno())
    os.replace(beside, path)


def load(path, model, named, optimizer, more, config):
    """Put the file's numbers in place and return its `run`.

    Raises ValueError where the file is no checkpoint, or its config, names or shapes are another run's.
    """
    try:
        with safe_open(path, "pt") as file:
            head, held = file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:  # a folder is no file either
        raise ValueError(f"checkpoint: {path} is not a whole safetensors file ({error})") from error
    theirs, run = (_json(head.get(part, "")) for part in ("config", "run"))
    kinds = {"step": int, "log": list, "tokens": int, "seconds": int | float}
    if not theirs or not run or not all(isinstance(run.get(name), kind) for name, kind in kinds.items()):
        raise ValueError(f"checkpoint: {path} holds no run to go on with")
    ours = json.loads(json.dumps(dataclasses.asdict(config)))
    for name in ours:
        if name not in FREE and theirs.get(name) != ours[name]:
            raise ValueError(
                f"checkpoint: {path} is of a run with {name}={theirs.get(name)!r}, this one has {ours[name]!r}"
            )
    random = {name: held.pop(name) for name in ("rng.cpu", "rng.cuda") if name in held}
    now = torch.get_rng_state()
    if "rng.cpu" not in random or random["rng.cpu"].shape != now.shape or random["rng.cpu"].dtype != now.dtype:
        raise ValueError(f"checkpoint: {path} holds no random state of this torch")
    places = _tensors(model, named, optimizer, more)
    if differing := sorted(set(places) ^ set(held)):
        raise ValueError(f"checkpoint: {path} and the model do not both have {', '.join(differing[:3])}")
    for name, place in places.items():
        if place.shape != held[name].shape:
            raise ValueError(
                f"{name}: {path} has shape {tuple(held[name].shape)}, the model {tuple(place.shape)}"
            )
    with torch.no_grad():
        for name, place in places.items():
            put(place, held[name])
    torch.set_rng_state(random["rng.cpu"])
    if "rng.cuda" in random and torch.device(config.device).type == "cuda":
        torch.cuda.set_rng_state(random["rng.cuda"], config.device)
    return run


def _json(text):
    """The dict that a text holds; an empty one where it holds none."""
    try:
        found = json.loads(text)
    except json.JSONDecodeError:
        return {}
    return found if isinstance(found, dict) else {}


def _tensors(model, named, optimizer, more):
    """Everything that a step reads and writes, by name. Tied weights appear once."""
    kept = set(model.state_dict())
    tensors = {f"model.{name}": p for name, p in model.named_parameters()}
    tensors |= {f"model.{name}": x for name, x in model.named_buffers() if name in kept}
    for name, p in named.items():
        tensors |= {f"optimizer.{name}.{key}": x for key, x in optimizer.state[p].items()}
    return tensors | {f"loop.{name}": x for name, x in more.items()}
