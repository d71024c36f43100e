"""From the table of names to a model: every tensor of a file goes to its place, and what does not fit is listed."""

import re
import tomllib
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from postx.models.blocks import MLPS
from postx.models.encoder import Encoder
from postx.models.lm import LM
from postx.models.loading import configs
from postx.models.loading.config import Config
from postx.models.loading.transforms import HOW
from postx.models.quantized import round_inputs


class Rule(NamedTuple):
    """Where one tensor of ours comes from: their names, which of them may be absent, and what is done to them."""

    names: list[str]
    optional: list[bool]
    how: str | None


@cache
def entries():
    """names.toml, with what each entry takes from the one that it is like."""
    text = tomllib.loads((Path(__file__).parent / "names.toml").read_text(encoding="utf8"))

    def whole(name):
        own = text[name]
        full = dict(whole(own["like"])) if "like" in own else {}
        for key, value in own.items():
            full[key] = full.get(key, {}) | value if isinstance(value, dict) else value
        return full

    return {name: whole(name) for name in text}


def known():
    """Every `model_type` that can be loaded."""
    return sorted(entries())


def build(config, device="meta"):
    """The model that a config.json describes, untrained; on the meta device it takes no memory.

    Raises ValueError that names the model_type that is not known, and those that are, the key that is missing or
    holds something else than expected, or the packing of weights that cannot be read.
    """
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in entries():
        raise ValueError(f"config.json: model_type {kind!r} is not known here; there are {', '.join(known())}")
    how = Config(config).packing
    if how not in (None, "bitnet"):
        raise ValueError(f"config.json: weights packed by {how!r} cannot be read; take the checkpoint in bfloat16")
    try:
        options = getattr(configs, kind)(Config(config))
        network = {"LM": LM, "Encoder": Encoder}[options.pop("network", "LM")]
        with torch.device(device):
            model = network(**options)
    except (TypeError, ZeroDivisionError) as error:  # words for numbers, no heads
        raise ValueError(f"config.json: a value of it is no {kind}'s ({error})") from error
    if how == "bitnet":
        round_inputs(model, 8)  # such a model was trained to read its inputs so, and is another without
    return model


def fill(config, tensors, dtype=torch.float32, device="cpu"):
    """The model with its weights, in evaluation mode; its `published` is the config. `tensors`: {their name: tensor}.

    Raises ValueError that lists, by name, what is missing, what nobody asked for, and what has another shape.
    """
    lm, c, entry = build(config), Config(config), entries()[config["model_type"]]
    there, used = set(tensors.keys()), set()
    missing, misshapen, found = [], [], {}
    for key, old in lm.state_dict().items():
        rule, inner = _rule(lm, entry, key)
        used.update(rule.names)
        absent = [name for name, may in zip(rule.names, rule.optional, strict=True) if name not in there and not may]
        if absent:
            missing += absent
            continue
        parts = [tensors[name] for name in rule.names if name in there]
        here = Config(c | {"layer": _layer(lm, int(key.split(".")[1]))}) if key.startswith("blocks.") else c
        x = HOW[rule.how](here, inner, *parts) if rule.how else parts[0] if parts else torch.zeros(old.shape)
        if x.shape != old.shape:
            misshapen.append(f"{' + '.join(rule.names)} gives {list(x.shape)}, {key} is {list(old.shape)}")
            continue
        found[key] = x.to(device, dtype if x.is_floating_point() else x.dtype).contiguous()
    if getattr(lm, "head", 0) is None:  # a tied head may be in the file a second time
        used.add("lm_head.weight")
    unknown = [name for name in sorted(there - used) if not any(re.search(p, name) for p in entry.get("ignore", []))]
    wrong = [f"{what}: {_listed(names)}" for what, names in
             (("missing", missing), ("unknown", unknown), ("of another shape", misshapen)) if names]  # fmt: skip
    if wrong:
        raise ValueError(f"the weights do not fit the {config['model_type']} of config.json; {'; '.join(wrong)}")
    for key, x in found.items():
        put(lm, key, x)
    lm.published = config
    return lm.eval()


def _listed(names):
    names = list(dict.fromkeys(names))
    return ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")


def put(lm, key, x):
    """In place of the tensor of that name, which has no memory; a parameter keeps its kind (`Still`)."""
    owner, _, name = key.rpartition(".")
    owner = lm.get_submodule(owner)
    old = getattr(owner, name)
    setattr(owner, name, type(old)(x) if isinstance(old, nn.Parameter) else x)


def _rule(lm, entry, key):
    """(the rule for one tensor of ours, its name within its part)."""
    if key.startswith("shared."):  # a shared block is stored where it stands first
        inner, number = key.removeprefix("shared."), 0
        if inner.startswith("others."):
            _, number, inner = inner.split(".", 2)
            number = int(number) + 1
        return _find(entry["shared_block"], inner, _shared(lm, entry, number), lm), inner
    if not key.startswith("blocks."):
        return _find(entry["model"], key, "", lm), key
    _, i, where, *rest = key.split(".")
    block, behind = lm.blocks[int(i)], int(i) and _shares(lm)[int(i) - 1]
    layer = entry["behind_Z" if behind else "layer"].format(i=_layer(lm, int(i)))
    if where == "mix":
        letter, inner, part = block.kept[int(rest[0])][0], ".".join(rest[1:]), block.mix[int(rest[0])]
        if inner.startswith("adapters."):  # those of all places lie beside the shared block that they are for
            rule = _find(entry["adapters"], inner.removeprefix("adapters."), _shared(lm, entry, part.number), part)
            return rule._replace(names=[name.replace("{n}", str(part.number)) for name in rule.names]), inner
        return _find(entry.get(letter, {}), inner, layer, part), inner
    if where == "mlp":
        letter = next(k for k, part in MLPS.items() if type(block.mlp) is part)
        return _find(entry.get(letter, {}), ".".join(rest), layer, block.mlp), ".".join(rest)
    inner = ".".join([where, *rest])
    return _find(entry["block"], inner, layer, block), inner


def _shares(lm):
    """Of each place, whether the shared block stands there."""
    return [bool(block.kept) and block.kept[0][0] == "Z" for block in lm.blocks]


def _shared(lm, entry, number):
    """What the names of the shared block of the place of that number begin with."""
    places = [place for place, shares in enumerate(_shares(lm)) if shares]
    return entry["shared"].format(i=_layer(lm, places[number % (1 + len(lm.shared.others))]))


def _layer(lm, place):
    """The published number of the layer of a place: the shared block has none of its own."""
    return place - sum(_shares(lm)[:place])


def _find(table, key, layer, part):
    """The entry of that very name, or that of the module that it belongs to, as a rule with whole names."""
    module, _, last = key.rpartition(".")
    if key in table:
        told, more = table[key], ""
    elif module in table:
        told, more = table[module], f".{last}"
    else:
        raise ValueError(f"names.toml: no entry for {key}")
    told, _, how = (x.strip() for x in told.partition("|"))
    names, optional = [], []
    for name in (x.strip() for x in told.split("+")):
        may, name = name.endswith("?"), layer + name.rstrip("?") + more
        count = range(part.router.out_features) if "{e}" in name else [0]
        names += [name.replace("{e}", str(e)) for e in count]
        optional += [may] * len(count)
    return Rule(names, optional, how or None)
