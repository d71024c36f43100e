"""The places of a residual stack: the table of letters, and what a letter builds.

| letter | mixer | | letter | mixer |
|---|---|---|---|---|
| A | attention | | D | DeltaNet |
| L | attention in a window (local) | | G | Gated DeltaNet |
| K | latent attention (MLA: compressed keys) | | R | RG-LRU |
| M | Mamba | | N | linear attention (no softmax) |
| S | SSD (Mamba-2) | | T | RetNet (retention) |
| I | S4D (time-invariant) | | W | GLA (row-wise decay) |
| H | Hyena | | 4, 6, 7 | RWKV-4, RWKV-6, RWKV-7 |
| C | gated short convolution (LFM2) | | Z | Zamba's shared attention and MLP |
| P | adds a position to the stream | | F, E, V | no mixer: an MLP alone |

MLPs: F dense (SwiGLU unless told otherwise), E experts, V RWKV's channel mix, - none.
"""

import math
import re

import torch
from torch import nn

from postx import mixers
from postx.mixers import attention
from postx.nn import MLP, ChannelMix, MoE, RMSNorm
from postx.shapes import check, check_lengths

MIXERS = {  # letter: (module in postx.mixers, default options)
    "A": ("attention", {}),
    "L": ("attention", {"window": 64}),
    "K": ("mla", {}),
    "M": ("mamba", {}),
    "S": ("ssd", {}),
    "I": ("s4d", {}),
    "H": ("hyena", {}),
    "C": ("shortconv", {}),
    "N": ("linear", {}),
    "T": ("retnet", {}),
    "W": ("gla", {}),
    "D": ("deltanet", {}),
    "G": ("gated_deltanet", {}),
    "R": ("rglru", {}),
    "4": ("rwkv4", {}),
    "6": ("rwkv6", {}),
    "7": ("rwkv7", {}),
}
BARE = "PZ"  # they read the stream itself, and no MLP follows
MLPS = {"F": MLP, "E": MoE, "V": ChannelMix}
WITHOUT_MLP = "MSPZ"  # by default: a Mamba block has its own gate and expansion
NORMS = {"rms": RMSNorm, "layer": nn.LayerNorm}
IN_PLACE = ("attention", "mla")  # their Layers can write into the cache that they are given


def places(pattern):
    """The places of a pattern, each a string of letters: places("M(AS)F") == ["M", "AS", "F"].

    Raises ValueError for a letter that is not in the table, or brackets that do not match.
    """
    found = re.findall(r"\(([^()]+)\)|([^()])", pattern)
    names = [group or letter for group, letter in found]
    if "".join(f"({group})" if group else letter for group, letter in found) != pattern or not names:
        raise ValueError(f"pattern: cannot read {pattern!r}: letters, and groups such as (AS)")
    for name in names:
        for letter in name:
            if letter not in MIXERS and not (name == letter and (letter in MLPS or letter in BARE)):
                table = ", ".join(f"{x} {module}" for x, (module, _) in MIXERS.items())
                raise ValueError(
                    f"pattern: no letter {letter!r} as in {name!r}; there are {table}; alone P, Z, F, E, V"
                )
    return names


def mlps(names, mlp):
    """The MLP letter of each place. Raises ValueError for unknown letters, or neither one nor one for each mixer."""
    if mlp is None:
        return [n if n in MLPS else "-" if set(n) <= set(WITHOUT_MLP) else "F" for n in names]
    free = [n for n in names if n not in MLPS and n not in BARE]
    if len(mlp) not in (1, len(free)) or set(mlp) - set(MLPS) - {"-"}:
        raise ValueError(f"mlp: expected 1 or {len(free)} letters out of {', '.join(MLPS)} and -, got {mlp!r}")
    rest = iter(mlp * len(free) if len(mlp) == 1 else mlp)
    return [n if n in MLPS else "-" if n in BARE else next(rest) for n in names]


class Block(nn.Module):
    """One place: x = x + the sum of its mixers on norm(x), then x = x + mlp(norm(x)).

    Block(x_BTD, S, cross, side) -> (x_BTD, S, load): S holds the state of each mixer, and of the MLP where it has
    one; load is that of a mixture of experts, or None. `cross` is what the places of one pass hand to each other.
    """

    def __init__(self, D, letters, mlp, options, norm, eps):
        super().__init__()
        self.letters = "" if letters in MLPS else letters
        self.D, self.options = D, options
        self.norm = norm(D, eps) if self.letters and letters not in BARE else None
        self.mix = nn.ModuleList(mixer(letter, D, options.get(letter, {})) for letter in self.letters)
        self.mlp_norm = norm(D, eps) if mlp != "-" else None
        self.mlp = MLPS[mlp](D, **options.get(mlp, {})) if mlp != "-" else None

    @property
    def caches(self):
        """Whether a state of this place is a cache that grows or turns round, and says itself how full it is."""
        return any(x == "Z" or MIXERS.get(x, ("",))[0] in IN_PLACE for x in self.letters)

    def forward(self, x, S, cross, *, form, inplace, **side):
        seen, after, load = x if self.norm is None else self.norm(x), [], None
        kept = len(self.letters) + isinstance(self.mlp, ChannelMix)
        if S is not None and len(S) != kept:
            raise ValueError(f"S: place {self.letters or '-'} keeps {kept} states, got {len(S)}")
        for letter, S_i in zip(self.letters, S or (), strict=False):
            want = state_axes(letter, self.D, **self.options.get(letter, {}))
            got = [getattr(part, "ndim", None) for part in S_i] if isinstance(S_i, tuple) else S_i
            if got != want:
                raise ValueError(f"S: the state of {letter} is {len(want)} tensors of {want} axes, got {got}")
        S = (None,) * (kept + 1) if S is None else (*S, None)
        for letter, mix, S_i in zip(self.letters, self.mix, S, strict=False):
            more = {} if letter == "P" else {"form": form}
            if letter in "7Z":
                more["cross"] = cross
            if letter == "Z" or letter in MIXERS and MIXERS[letter][0] in IN_PLACE:
                more["inplace"] = inplace
            y, S_i = mix(seen, S_i, **more, **side)
            x = x + y
            after.append(S_i)
        if isinstance(self.mlp, ChannelMix):
            y, S_i = self.mlp(self.mlp_norm(x), S[len(self.letters)], **side)
            x = x + y
            after.append(S_i)
        elif isinstance(self.mlp, MoE):
            y, load = self.mlp(self.mlp_norm(x), side.get("lengths_B"))
            x = x + y
        elif self.mlp is not None:
            x = x + self.mlp(self.mlp_norm(x))
        return x, tuple(after), load


_AXES = {}


def state_axes(letter, D, **options):
    """How many axes each tensor of a letter's state has, seen once on a layer that takes no memory.

    >>> state_axes("A", 8)
    [4, 4, 1]
    """
    key = letter, D, repr(sorted(options.items()))
    if key not in _AXES:
        with torch.device("meta"), torch.no_grad():
            x = torch.zeros(1, 1, D)
            more = {"cross": {"first_value": x}} if letter == "7" else {}
            if letter == "Z":
                layer, x = Shared(D, **options).attention, torch.cat([x, x], -1)
            else:
                layer = mixer(letter, D, options)
            _AXES[key] = [part.ndim for part in layer(x, None, **more)[1]]
    return _AXES[key]


def mixer(letter, D, options):
    """The layer that a letter stands for, with its default options overridden."""
    if letter == "P":
        return Positions(D, **options)
    if letter == "Z":
        return Place(D)
    name, default = MIXERS[letter]
    return mixers.load(name).Layer(D, **default | options)


class Shared(nn.Module):
    """Zamba's block, of which a model has one: attention and an MLP that read [stream, embedding], 2 D wide.

        y = mlp(norm(attention(norm([x, embedding]))))

    Nothing is added inside of it, and what it gives goes through a matrix of the place where it stands (`Place`).
    Glorioso et al. 2024 (arXiv 2405.16712), sec. 2, whose attention has no positions. There the result is added to
    the input of the following Mamba layer only; here to the stream. Keyword arguments are those of the attention;
    F is the MLP's width.
    """

    def __init__(self, D, *, F=None, eps=1e-5, **options):
        super().__init__()
        self.norm, self.mlp_norm = RMSNorm(2 * D, eps), RMSNorm(D, eps)
        self.attention = attention.Layer(D, D_in=2 * D, **{"rope": None} | options)
        self.mlp = MLP(D, F, activation="gelu")

    def forward(self, x_BTD, embedding_BTD, S, **side):
        y, S = self.attention(self.norm(torch.cat([x_BTD, embedding_BTD], -1)), S, **side)
        return self.mlp(self.mlp_norm(y)), S


class Place(nn.Module):
    """Where the shared block stands: its weights come in `cross`, only the matrix on its output is the place's own."""

    def __init__(self, D):
        super().__init__()
        self.out = nn.Linear(D, D, bias=False)

    def forward(self, x_BTD, S=None, *, cross, **side):
        y, S = cross["shared"](x_BTD, cross["embedding"], S, **side)
        return self.out(y), S


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

    def forward(self, x_BTD, S=None, *, lengths_B=None, reset_BT=None):
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
