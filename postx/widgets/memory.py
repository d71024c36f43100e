"""A memory one paints on: pictures of 8 x 8 pixels are written into a table under keys, and read back.

A picture is a value of 64 numbers, 1 for ink and -1 for paper, and the table is S_KV: K rows of 64 numbers. Three rules
write, and what they write is what the package's mixers write:

    add     S <- S + k v'                   retention without a decay (`postx.mixers.retnet`, g = 0)
    fade    S <- 0.8 S + k v'               retention, gamma = 0.8
    delta   S <- S + k (v - S'k)'           the delta rule, beta = 1 (`postx.mixers.deltanet`)

A read with a key is S'k. The keys A, B and C share the table's first row, in the proportion that makes the product of
any two of them the number `alike`; each has one more row of its own. A stranger is a picture of random dots under a
random key that uses all rows.

A picture can have 16 or 256 pixels as well: V. The error of a read does not depend on it, but which of 512 pictures the
read is nearest to does.
"""

import math

import torch
from matplotlib.figure import Figure

from postx import style
from postx.explore.widget import widget
from postx.mixers import deltanet, retnet
from postx.widgets import words

ROWS = (4, 16, 64, 256)
KEYS = "ABC"
FADE, SIDE, SIDES, MANY = 0.8, 8, (4, 8, 16), 512
RULES = {
    "add": (
        "adding",
        "The more alike the keys, the more a read brings of the other picture, because what both wrote into the row "
        "that they share was added up.",
    ),
    "fade": (
        "fading",
        f"The last picture is strong and older ones go gray, because each write first leaves only {FADE} of the table, "
        "whatever stands in it.",
    ),
    "delta": (
        "delta rule",
        "The picture written last is read back exactly, because what stood under its key was taken out first; the "
        "other one pays for what the two keys share.",
    ),
}
PRESETS = {
    "heart": ".##..##. ######## ######## ######## .######. ..####.. ...##... ........",
    "face": "..####.. .#....#. #.#..#.# #......# #.#..#.# #..##..# .#....#. ..####..",
    "letter": ".######. ##....## ##....## ##....## ######## ##....## ##....## ##....##",
}
PRESETS = {name: drawn.replace(" ", "") for name, drawn in PRESETS.items()}
START = (("A", "heart"), ("B", "face"))  # what is written when the tool opens


def pixels(drawn):
    """The value of a picture: [64], 1 where it has a #, -1 elsewhere."""
    return torch.tensor([1.0 if pixel == "#" else -1.0 for pixel in drawn], dtype=torch.float64)


def key(name, rows, alike):
    """The key of A, B, C or of stranger number `name`: [rows], of length 1."""
    if name not in KEYS:
        return words.vector(f"key {name}", rows)
    k = torch.zeros(rows, dtype=torch.float64)
    k[0], k[1 + KEYS.index(name)] = math.sqrt(alike), math.sqrt(1 - alike)
    return k


def stranger(number, side=SIDE):
    """The picture of a stranger: [side^2] random dots, always the same ones."""
    source = words.numbers(f"picture {number}")
    return torch.tensor([1.0 if next(source) > 0.5 else -1.0 for _ in range(side**2)], dtype=torch.float64)


def scaled(v, side):
    """A picture [64] with side^2 pixels, each two by two, or one of four: ink where at least two of them are."""
    square = v.view(SIDE, SIDE)
    if side >= SIDE:
        return square.repeat_interleave(side // SIDE, 0).repeat_interleave(side // SIDE, 1).flatten()
    ink = (square > 0).double().unfold(0, 2, 2).unfold(1, 2, 2).sum((2, 3)).flatten()
    return torch.where(ink >= 2, 1.0, -1.0).double()


def value(name, v, side=SIDE):
    """What is written under a key: the drawing v [64], or the stranger of that number, with side^2 pixels."""
    return scaled(v, side) if name in KEYS else stranger(name, side)


def recognized(writes, asked, y, side=SIDE):
    """Is the picture last written under `asked` the nearest to y of 512: those written, the presets, and strangers?"""
    known = [value(name, v, side) for name, v in writes] + [scaled(pixels(p), side) for p in PRESETS.values()]
    numbers, number = {name for name, _ in writes}, 0
    while len(known) < MANY:
        if str(number) not in numbers:
            known.append(stranger(number, side))
        number += 1
    last = next(value(name, v, side) for name, v in reversed(writes) if name == asked)
    return torch.equal(max(known, key=lambda v: (v @ y).item()), last)


def replay(writes, rows, alike, rule, side=SIDE):
    """The table after these writes, a list of (name of a key, picture [64]): S_KV [rows, side^2].

    Raises ValueError for a number of rows below 4, a likeness outside of 0 to 1, and a rule that is not there.
    """
    if rows < 1 + len(KEYS):
        raise ValueError(f"rows: expected at least {1 + len(KEYS)} (one that keys share, one of each), got {rows}")
    if not 0 <= alike <= 1:
        raise ValueError(f"alike: expected 0 to 1, got {alike}")
    if rule not in RULES:
        raise ValueError(f"rule: expected one of {', '.join(RULES)}, got {rule!r}")
    S = torch.zeros(1, 1, rows, side**2, dtype=torch.float64)
    g = torch.tensor([math.log(FADE) if rule == "fade" else 0.0], dtype=torch.float64)
    for name, v in writes:
        k, v = key(name, rows, alike)[None, None], value(name, v, side)[None, None]
        if rule == "delta":
            _, S = deltanet.step(S, k, k, v, torch.ones(1, 1, dtype=torch.float64))
        else:
            _, S = retnet.step(S, k, k, v, g_H=g)
    return S[0, 0]


CAPTION = "Pictures are written into one table under keys, and read back with a key."


def memory(rule="add", rows=4, alike=0.5, *, caption=CAPTION):
    """The tool, opened with a heart under A and a face under B. Raises ValueError as `replay` does."""
    S = replay([(name, pixels(PRESETS[drawn])) for name, drawn in START], rows, alike, rule)
    with style.look():
        still = _still(S, alike)
    data = {"rule": rule, "rows": rows, "alike": alike, "choices": ROWS, "fade": FADE}
    data["rules"] = {key: {"title": title, "because": because} for key, (title, because) in RULES.items()}
    data |= {"presets": PRESETS, "start": START, "sides": SIDES}
    alt = (
        "A heart was written under key A and a face under key B into one table. The rows of the table, drawn as "
        f"pictures, and what a read with A gives back under the rule of {RULES[rule][0]}: the heart, "
        + ("with a ghost of the face in it." if alike and rule != "delta" else "and how it was written.")
    )
    return widget("memory", data, alt=alt, still=still, caption=caption)


def _still(S, alike):
    fig = Figure(figsize=(style.RC["figure.figsize"][0], 1.8))
    read = S.T @ key("A", len(S), alike)
    side = math.isqrt(len(S))
    tiles = S.view(side, side, SIDE, SIDE).transpose(1, 2).reshape(side * SIDE, side * SIDE)
    shown = {
        "under A": pixels(PRESETS["heart"]).view(SIDE, SIDE), "under B": pixels(PRESETS["face"]).view(SIDE, SIDE),
        f"{len(S)} rows": tiles, "read with A": read.view(SIDE, SIDE),
    }  # fmt: skip
    for ax, (title, picture) in zip(fig.subplots(1, 4), shown.items(), strict=True):
        most = picture.abs().max().item()
        ax.imshow(picture.numpy(), cmap="gray_r", vmin=-most, vmax=most)
        ax.set(xticks=[], yticks=[])
        ax.spines[["top", "right"]].set_visible(True)
        ax.set_title(title)
        ax.grid(visible=False)
    return fig
