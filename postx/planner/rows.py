"""What a model is to the planner: a dozen numbers, counted layer by layer on a model that takes no memory.

A `Row` is a list of places (layers), each made of parts (a mixer, an MLP), and every number of a part adds up over the
places, so that a layer can be changed and the row counted again without building anything.
"""

import functools
import re
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch

from postx.mixers import Still, attention, mla
from postx.models import blocks, published
from postx.models.lm import count
from postx.models.nn import MoE
from postx.models.states import floating, leaves
from postx.shapes import positive

STEP = 128  # widths of patterns of one's own are multiples of it: a head is 128 wide
VOCABULARY = 65536  # of a pattern of one's own, whose head and embedding are two tables
WINDOW = 4096


class Part(NamedTuple):
    """One mixer or MLP: what it adds to a model.

    weights: all of them. matrix: those that every token multiplies, a multiply-add each. routed: those of experts,
    of which a token takes a share. grow, slide: numbers that a token adds to the cache, for good or while it is in the
    window. state: numbers that are kept however long the text is. pair, read_pair: FLOPs for each pair of tokens in a
    prompt, and for each cached token when one is written (they differ under MLA, which reads latents unexpanded);
    slide_pair: within a window. recur: FLOPs that a recurrence spends on a token.
    """

    key: str
    weights: int
    matrix: int = 0
    routed: int = 0
    grow: int = 0
    slide: int = 0
    state: int = 0
    pair: int = 0
    read_pair: int = 0
    slide_pair: int = 0
    recur: int = 0


@dataclass(frozen=True)
class Row:
    """A model: `places`, each a tuple of numbers of `parts`, and what stands outside of the layers.

    outside: weights of embedding, head, norms and what layers share. head: weights of the output head. chosen: the
    share of the experts that a token takes, 0 without experts. window: of the sliding layers, 0 without.
    """

    name: str
    D: int
    layers: str
    parts: tuple
    places: tuple
    outside: int
    head: int
    chosen: float = 0.0
    window: int = 0

    def numbers(self):
        """The sums over all places, by the names of `Part` and of the row: what the formulas take."""
        found = dict.fromkeys(Part._fields[1:], 0)
        for place in self.places:
            for i in place:
                for field in found:
                    found[field] += getattr(self.parts[i], field)
        found["weights"] += self.outside
        found["matrix"] += self.head
        return found | {"head": self.head, "chosen": self.chosen, "window": self.window}

    def edited(self, layers, window=None):
        """The row with other mixers in its places, each at the widths that `letters` gives it; MLPs stay.

        Raises ValueError for another number of places, for a change of a place that has no mixer, and for letters
        that `letters` does not know.
        """
        old, new = blocks.places(self.layers), blocks.places(layers)
        if len(old) != len(new):
            raise ValueError(f"layers: {self.name} has {len(old)} places, got {len(new)} in {layers!r}")
        known, parts, places = letters(self.D), list(self.parts), []
        for was, wanted, place in zip(old, new, self.places, strict=True):
            if was == wanted:
                places.append(place)
                continue
            if was in blocks.MLPS or any(key not in known for key in wanted):
                raise ValueError(f"layers: {was} cannot become {wanted}; a mixer can, by one of {', '.join(known)}")
            mlp = [i for i in place if self.parts[i].key in blocks.MLPS]
            places.append(tuple(_index(parts, known[key]) for key in wanted) + tuple(mlp))
        return replace(self, layers=layers, parts=tuple(parts), places=tuple(places),
                       window=_window(self.window, parts, places, window))  # fmt: skip


def _index(parts, part):
    if part not in parts:
        parts.append(part)
    return parts.index(part)


def _window(own, parts, places, asked):
    slides = any(parts[i].slide for place in places for i in place)
    return (asked or own or WINDOW) if slides else 0


@functools.cache
def letters(D):
    """{letter: Part} of the layers that a pattern of one's own may have, at width D, and F, its MLP (8 D / 3 wide).

    Attention has heads of 128 and at most 8 groups of keys and values; L is the same in a window, K is DeepSeek-V3's
    latents. Mamba, Mamba-2 and the short convolution are at their papers' sizes, G is Qwen3-Next's Gated DeltaNet, 7 is
    RWKV-7, W is GLA with 4 heads, R is Griffin's RG-LRU. Raises ValueError for a width that is no multiple of 128.
    """
    positive(width=D)
    if D % STEP:
        raise ValueError(f"width: expected a multiple of {STEP}, got {D}")
    D = int(D)
    H = D // STEP
    heads = {"H": H, "G": max(g for g in range(1, 9) if H % g == 0), "K": STEP}
    options = {
        "A": heads, "L": heads | {"window": WINDOW},
        "K": {"H": H, "R": 512, "Rq": 1536, "nope": 128, "rotary": 64, "V": 128},
        "M": {}, "S": {}, "R": {"H": H},
        "G": {"H": 2 * H, "G": H, "K": 128, "V": 128, "conv_size": 4},
        "7": {"ranks": (64, 64, 128), "value_rank": 32}, "W": {}, "C": {},
    }  # fmt: skip
    with torch.device("meta"):
        found = {key: part(key, blocks.mixer(key, D, mine), D) for key, mine in options.items()}
        return found | {"F": part("F", blocks.MLPS["F"](D), D)}


def own(layers, D, window=None):
    """A pattern of one's own: an MLP follows every mixer but Mamba's, as in `LM`. Norms and biases are counted."""
    known = letters(D)
    names = blocks.places(layers)
    if bad := {key for name in names for key in name} - set(known):
        raise ValueError(f"pattern: the planner has no {', '.join(sorted(bad))}; there are {', '.join(known)}")
    parts = tuple(known.values())
    at = {key: i for i, key in enumerate(known)}
    places = tuple(
        tuple(at[key] for key in name) + ((at["F"],) if mlp == "F" and name != "F" else ())
        for name, mlp in zip(names, blocks.mlps(names, None), strict=True)
    )
    norms = sum(1 + (len(place) > len(name)) for name, place in zip(names, places, strict=True))
    head = VOCABULARY * D
    return Row(layers, int(D), layers, parts, places, 2 * head + D * (norms + 1), head,
               window=_window(0, parts, places, window))  # fmt: skip


@functools.cache
def of(name):
    """The row of a published model. Raises ValueError with the names there are."""
    return counted(published.build(name), name)


def counted(lm, name):
    """The row of any `LM` on the meta device, where nothing is computed (`copy.deepcopy(lm).to("meta")`)."""
    D, parts, places, window, chosen = lm.embed.weight.shape[1], {}, [], 0, 0.0
    for block in lm.blocks:
        # Layers of one kind are counted once: what was asked for, or the kind of an MLP, names them.
        kinds = [(repr(kept), kept[0], layer) for kept, layer in zip(block.kept, block.mix, strict=True)]
        kinds += [(key, key, block.mlp) for key, kind in blocks.MLPS.items() if type(block.mlp) is kind]
        for kind, key, layer in kinds:
            if kind not in parts:
                parts[kind] = part(key, layer, D, lm.shared)
            window = getattr(layer, "window", None) or window
            chosen = layer.k / layer.router.out_features if isinstance(layer, MoE) else chosen
        places.append(tuple(list(parts).index(kind) for kind, _, _ in kinds))
    parts = tuple(parts.values())
    inside = sum(parts[i].weights for place in places for i in place)
    return Row(name, D, lm.pattern, parts, tuple(places), count(lm).total - inside,
               lm.embed.weight.numel(), chosen, window)  # fmt: skip


def catalogue():
    """The names of all published models, in the order of the catalogue."""
    return list(published.MODELS)


def part(key, layer, D, shared=None):
    """The `Part` of a layer that was built on the meta device; `shared` is the block that Zamba's places share."""
    weights = sum(p.numel() for p in layer.parameters())
    routed = sum(p.numel() for p in (layer.up_EDF, layer.out_EFD, layer.gate_EDF) if p is not None) if isinstance(
        layer, MoE) else 0  # fmt: skip
    matrix = _multiplied(layer) - routed + (_multiplied(shared) if key == "Z" else 0)
    if key in blocks.MLPS or key in blocks.BARE and key != "Z":
        kept = _kept(layer, D, 1) if key == "V" else 0
        return Part(key, weights, matrix, routed, state=kept)
    one, two = (_kept(layer, D, T, shared) for T in (1, 2))
    attends = shared.attention if key == "Z" else layer
    if isinstance(attends, mla.Layer):
        nope, V, R, rotary = attends.up_k_HKR.shape[1], attends.up_v_HVR.shape[1], *attends.widths
        pair, read = (2 * attends.H * width for width in (nope + rotary + V, 2 * R + rotary))
        return Part(key, weights, matrix, grow=two - one, pair=pair, read_pair=read)
    if isinstance(attends, attention.Layer):
        (H, K), _, (_, V) = attends.heads
        pair = 2 * H * (K + V)
        if attends.window:
            return Part(key, weights, matrix, slide=one // attends.window, slide_pair=pair)
        return Part(key, weights, matrix, grow=two - one, pair=pair, read_pair=pair)
    if one != two:
        raise ValueError(f"layer {key}: its state grows with the text, and it is no attention")
    return Part(key, weights, matrix, state=one, recur=round(_recurrence(key, layer, D)))


def _multiplied(module):
    """Weights of two axes or more, but for rates and decays: each is one multiply-add a token."""
    return sum(p.numel() for p in module.parameters() if p.ndim > 1 and not isinstance(p, Still))


@torch.no_grad()
def _state(layer, D, T, shared=None):
    x = torch.zeros(1, T, D, device="meta")
    cross = {"first_value": x, "embedding": x, "shared": shared}
    return blocks.Context(cross=cross).call(layer, x, None)[1]


def _kept(layer, D, T, shared=None):
    """Numbers that one sequence keeps after T tokens."""
    return sum(x.numel() for x in leaves(_state(layer, D, T, shared)) if floating(x))


def _recurrence(key, layer, D):
    """FLOPs of the mixer's own `cost` for a token, at the sizes of its state: "S_BHKV" names them."""
    module = blocks.module(key)
    axes = module.STATE if isinstance(module.STATE, str) else module.STATE[0]
    names = re.findall(r"([A-Z])([+-]1)?", axes.partition("_")[2])
    shape = _state(layer, D, 1)[0].shape
    sizes = {name: n - int(more or 0) for (name, more), n in zip(names, shape, strict=True)}
    known = module.cost.__kwdefaults__ or {}
    sizes |= {"G": sizes["H"]} if "G" in known and "H" in sizes and "G" not in sizes else {}
    return module.cost(1, **{name: n for name, n in sizes.items() if name in known}).flops
