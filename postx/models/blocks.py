"""The places of a residual stack: what a letter or a name in a pattern stands for, and what it builds.

A mixer's letter stands in its own file (`LETTER`); any mixer also goes by its name. MIXERS is the table of all letters.
Beside them, alone in their place: P adds a position to the stream, Z is Zamba's shared attention and MLP, and F, E, V
are MLPs without a mixer: F dense (SwiGLU unless told otherwise), E experts, V RWKV's channel mix. - is no MLP.
"""

import math
import re
from typing import NamedTuple

import torch
from torch import nn

from postx import mixers
from postx.models.nn import MLP, ChannelMix, MoE, RMSNorm
from postx.models.shared import Place, Shared
from postx.shapes import check, check_lengths

BARE = ("P", "Z")  # they read the stream itself, and no MLP follows
MLPS = {"F": MLP, "E": MoE, "V": ChannelMix}
NORMS = {"rms": RMSNorm, "layer": nn.LayerNorm}


def letters():
    """{letter: (mixer, options of its Layer)}, as the files of the mixers say. ValueError where two claim one."""
    found = {}
    for name in mixers.names():
        module = mixers.load(name)
        own = {module.LETTER: {}} if hasattr(module, "LETTER") else {}
        for letter, options in (own | getattr(module, "VARIANTS", {})).items():
            if letter in found or letter in BARE or letter in MLPS or len(letter) != 1:
                raise ValueError(f"LETTER: {letter!r} of {name} is taken, or no single letter")
            found[letter] = name, options
    return found


MIXERS = letters()


def module(key):
    """The mixer that a letter or a name stands for; None for P, Z and MLPs."""
    return None if key in BARE or key in MLPS else mixers.load(MIXERS[key][0] if key in MIXERS else key)


def places(pattern):
    """The places of a pattern, each a string of letters, or a tuple of letters and names.

    >>> places("M(AS)F"), places(["gla", ("attention", "S"), "F"])
    (['M', 'AS', 'F'], [('gla',), ('attention', 'S'), 'F'])

    Raises ValueError for what is no letter and no mixer, or brackets that do not match.
    """
    if isinstance(pattern, str):
        found = re.findall(r"\(([^()]+)\)|([^()])", pattern)
        names = [group or letter for group, letter in found]
        if "".join(f"({group})" if group else letter for group, letter in found) != pattern or not names:
            raise ValueError(f"pattern: cannot read {pattern!r}: letters, and groups such as (AS)")
    else:
        names = [x if x in BARE or x in MLPS else (x,) if isinstance(x, str) else tuple(x) for x in pattern]
    for name in names:
        for key in name:
            if key not in MIXERS and key not in mixers.names() and not (name == key and (key in MLPS or key in BARE)):
                table = ", ".join(f"{letter} {mixer}" for letter, (mixer, _) in MIXERS.items())
                raise ValueError(
                    f"pattern: no letter {key!r} as in {name!r}; there are {table}; alone P, Z, F, E, V; and names"
                )
    return names


def mlps(names, mlp):
    """The MLP letter of each place. Raises ValueError for unknown letters, or neither one nor one for each mixer."""
    if mlp is None:
        return [n if n in MLPS else "-" if all(_follow(key) == "-" for key in n) else "F" for n in names]
    free = [n for n in names if n not in MLPS and n not in BARE]
    if len(mlp) not in (1, len(free)) or set(mlp) - set(MLPS) - {"-"}:
        raise ValueError(f"mlp: expected 1 or {len(free)} letters out of {', '.join(MLPS)} and -, got {mlp!r}")
    rest = iter(mlp * len(free) if len(mlp) == 1 else mlp)
    return [n if n in MLPS else "-" if n in BARE else next(rest) for n in names]


def _follow(key):
    return "-" if key in BARE else getattr(module(key), "FOLLOW", "F")


class Context(NamedTuple):
    """What the places of one pass share; `cross` is what they hand to each other."""

    lengths_B: torch.Tensor | None = None
    reset_BT: torch.Tensor | None = None
    form: str = "auto"
    inplace: bool = False
    cross: dict | None = None

    def call(self, part, x_BTD, S):
        """The one contract of what stands in a place: part(x, S, context) -> (y, S, load).

        A part takes the fields that its `TAKES` names beside `SIDE`. MLPs have no state: theirs is ().
        """
        if isinstance(part, MoE):
            y, load = part(x_BTD, self.lengths_B)
            return y, (), load
        if isinstance(part, MLP):
            return part(x_BTD), (), None
        names = *mixers.SIDE, *getattr(part, "TAKES", ())
        return *part(x_BTD, S, **{name: getattr(self, name) for name in names}), None


class Block(nn.Module):
    """One place: x = x + the sum of its mixers on norm(x), then x = x + mlp(norm(x)).

    Block(x_BTD, S, context) -> (x_BTD, S, load): S holds the state of each of its parts; load is that of a mixture of
    experts, or None. carried: {letter: factor}; what goes round a part of that letter is then norm(x) times the factor,
    and not x (MiniMax-01, after Post-LN).
    """

    def __init__(self, D, letters, mlp, options, norm, eps, carried=()):
        super().__init__()
        keys = () if letters in MLPS else letters
        # A place of MLPs alone has no state to hold to anything; the shared block's stands in `Shared`.
        self.kept = [(key, tuple(sorted(options.get(key, {}).items()))) for key in keys]
        self.D = D
        self.norm = norm(D, eps) if keys and letters not in BARE else None
        self.mix = nn.ModuleList(mixer(key, D, options.get(key, {})) for key in keys)
        self.mlp_norm = norm(D, eps) if mlp != "-" else None
        self.mlp = MLPS[mlp](D, **options.get(mlp, {})) if mlp != "-" else None
        self.carried = [next((carried[key] for key in own if key in carried), None) for own in (keys, mlp)]

    @property
    def caches(self):
        """Whether a state of this place is a cache that grows or turns round, and says itself how full it is."""
        return any("inplace" in getattr(part, "TAKES", ()) for part in self.mix)

    def check_state(self, S):
        """Raise ValueError unless S has an entry for each part, and a mixer's the tensors that its layer keeps."""
        parts = len(self.kept) + (self.mlp is not None)
        told = "".join(key if len(key) == 1 else f"({key})" for key, _ in self.kept) or "-"
        if len(S) != parts:
            raise ValueError(f"S: place {told} keeps {parts} states, got {len(S)}")
        for (key, options), S_i in zip(self.kept, S, strict=False):
            want = state_axes(key, self.D, **dict(options))
            got = [getattr(part, "ndim", None) for part in S_i] if isinstance(S_i, tuple) else S_i
            if got != want:
                raise ValueError(f"S: the state of {key} is {len(want)} tensors of {want} axes, got {got}")

    def forward(self, x, S, context):
        after, load = [], None
        halves = (self.norm, self.mix), (self.mlp_norm, [] if self.mlp is None else [self.mlp])
        for (norm, parts), factor in zip(halves, self.carried, strict=True):
            handed = None if norm is None or not context.cross else context.cross.pop("handed", None)
            seen = x if norm is None else norm(x if handed is None else x + handed)
            x = x if factor is None else seen * factor
            for part in parts:
                y, S_i, more = context.call(part, seen, S[len(after)] if S else None)
                x, load = x + y, more or load
                after.append(S_i)
        return x, tuple(after), load


_AXES = {}


def state_axes(key, D, **options):
    """How many axes each tensor of a layer's state has, seen once on a layer that takes no memory.

    >>> state_axes("A", 8)
    [4, 4, 1]
    """
    name = key, D, repr(sorted(options.items()))
    if name not in _AXES:
        with torch.device("meta"), torch.no_grad():
            x = torch.zeros(1, 1, D)
            cross = {"first_value": x}
            if key == "Z":
                cross = {"embedding": x, "shared": Shared(D, **options)}
            layer = mixer(key, D, options)
            _AXES[name] = [part.ndim for part in Context(cross=cross).call(layer, x, None)[1]]
    return _AXES[name]


def mixer(key, D, options):
    """The layer that a letter or a name stands for, with its default options overridden."""
    if key == "P":
        return Positions(D, **options)
    if key == "Z":
        return Place(D, **options)
    default = MIXERS[key][1] if key in MIXERS else {}
    return module(key).Layer(D, **default | options)


class Positions(nn.Module):
    """A vector for each position, added to the stream: (x_BTD, S=None) -> (y_BTD, S), S = (position of the next,).

    kind="learned": `size` vectors; every position past the last one takes the last. kind="sinusoidal": Vaswani et
    al. 2017, sec. 3.5, which has no end. A reset begins at position 0 again.
    """

    def __init__(self, D, *, size=256, kind="learned"):
        super().__init__()
        if kind not in ("learned", "sinusoidal"):
            raise ValueError(f"kind: expected 'learned' or 'sinusoidal', got {kind!r}")
        self.D, self.table = D, nn.Embedding(size, D) if kind == "learned" else None
        if self.table is not None:
            nn.init.normal_(self.table.weight, std=0.02)

    def forward(self, x_BTD, S=None, *, lengths_B=None, reset_BT=None, form=None):
        B, T = x_BTD.shape[:2]
        check_lengths(lengths_B, B, T)
        check({"B": B, "T": T}, reset_BT=reset_BT)
        token = torch.arange(T, device=x_BTD.device)
        start_B = S[0] if S else torch.zeros(B, dtype=torch.int64, device=x_BTD.device)
        position_BT = start_B[:, None] + token
        if reset_BT is not None:
            began_BT = torch.where(reset_BT, token, -1).cummax(1).values
            position_BT = torch.where(began_BT < 0, position_BT, token - began_BT)
        if lengths_B is None:
            last_B = position_BT[:, -1] + 1
        else:
            last = position_BT.gather(1, (lengths_B.long() - 1).clamp(min=0)[:, None])[:, 0] + 1
            last_B = torch.where(lengths_B > 0, last, start_B)
        if self.table is not None:
            return self.table(position_BT.clamp(max=self.table.num_embeddings - 1)), (last_B,)
        pair = torch.arange(0, self.D, 2, device=x_BTD.device, dtype=torch.float64)
        angle = position_BT[..., None] * torch.exp(-math.log(10000.0) * pair / self.D)
        return torch.cat([angle.sin(), angle.cos()], -1)[..., : self.D].to(x_BTD.dtype), (last_B,)
