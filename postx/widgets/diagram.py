"""Block diagrams of the layers, all in one style, from one description each: what every letter passes before it mixes.

A layer is its letters from left to right, the bands that some of them pass (top to bottom), its mixing rule, and what
follows it. `svg` draws it for a page, `draw` into a matplotlib axes.
"""

from dataclasses import dataclass
from html import escape

from matplotlib.patches import FancyBboxPatch

from postx import mixers
from postx.style import FAMILY

WIDTH, ROW, BOX, GAP = 240, 36, 24, 6  # units of the drawing: pixels of a page


@dataclass(frozen=True)
class Block:
    """`letters` in their order; a band is (text, the letters that pass it). "gate" passes by and meets its product.

    Letters in `constant` do not come from x. `shown` is what a letter's box says, where that is not the letter.
    """

    letters: tuple[str, ...]
    rule: tuple[str, ...]
    after: tuple[str, ...]
    before: tuple[tuple[str, str], ...] = ()
    constant: tuple[str, ...] = ()
    shown: tuple[tuple[str, str], ...] = ()


TURNED, SHORT, UNIT = ("turned by place", "q k"), ("short convolution\nSiLU", "q k v"), ("length 1", "q k")
LAYERS = {
    "attention": Block(("q", "k", "v"), ("softmax of q·k over", "all words so far, times v"), ("out",), (TURNED,)),
    "linear": Block(("q", "k", "v"), ("S ← S + φ(k) v′", "y = S′φ(q) ÷ the sum"), ("out",)),
    "retnet": Block(("q", "k", "v", "gate"), ("S ← γ S + k v′", "y = S′q"), ("norm per head", "×", "out"), (TURNED,)),
    "gla": Block(
        ("q", "k", "v", "g", "gate"), ("S ← diag(eᵍ) S + k v′", "y = S′q"), ("norm per head", "×", "out"),
        (("ln σ\n÷ 16", "g"),),
    ),
    "deltanet": Block(
        ("q", "k", "v", "beta"), ("S ← S + β k (v − S′k)′", "y = S′q"), ("norm per head", "out"),
        (SHORT, UNIT, ("σ", "beta")), shown=(("beta", "β"),),
    ),
    "gated_deltanet": Block(
        ("q", "k", "v", "beta", "g", "gate"), ("S ← eᵍ S, then", "S ← S + β k (v − S′k)′"),
        ("norm per head", "×", "out"), (SHORT, UNIT, ("σ", "beta")), shown=(("beta", "β"),),
    ),
    "ssd": Block(
        ("q", "k", "v", "g", "gate"), ("S ← eᵍ S + k v′", "y = S′q"), ("×", "norm", "out"),
        (SHORT, ("Δ v, −a Δ", "v g")), shown=(("g", "Δ"),),
    ),
    "hyena": Block(
        ("v", "x1", "x2", "h"), ("z = x₁ · v", "y = x₂ · (h ∗ z)"), ("out",), (("short convolution", "v x1 x2"),),
        constant=("h",), shown=(("x1", "x₁"), ("x2", "x₂")),
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Box:
    """A box with lines of text: its upper left corner, how wide it is and what it is ("rule" is the mixer's)."""

    x: float
    y: float
    width: float
    lines: tuple[str, ...]
    kind: str = "plain"

    @property
    def height(self):
        return BOX * (1 + 0.75 * (len(self.lines) - 1))

    @property
    def places(self):
        """(x, y, text) of each line, at its middle."""
        x, y = self.x + self.width / 2, self.y + BOX / 2
        return [(x, y + 0.75 * BOX * i, text) for i, text in enumerate(self.lines)]


def parts(name):
    """(height, lines (x, y, x, y), boxes) of a layer's drawing; y grows downwards.

    Raises ValueError for a layer that has no description.
    """
    if name not in LAYERS:
        raise ValueError(f"name: no diagram of {name!r}; there are {', '.join(LAYERS)}")
    block, lines, boxes = LAYERS[name], [], []
    pitch = WIDTH / max(4, len(block.letters))
    left = (WIDTH - pitch * len(block.letters)) / 2
    at = {letter: left + pitch * (i + 0.5) for i, letter in enumerate(block.letters)}
    mixed = [letter for letter in block.letters if letter != "gate"]
    middle = (at[mixed[0]] + at[mixed[-1]]) / 2
    down = dict.fromkeys(block.letters, ROW + BOX)  # how far down each letter's line has come

    def over(letters, texts, kind="plain"):
        """A box that these letters run into, side by side."""
        y = max(down[letter] for letter in letters) + ROW - BOX
        x, width = at[letters[0]] - pitch / 2 + GAP / 2, at[letters[-1]] - at[letters[0]] + pitch - GAP
        boxes.append(Box(x, y, width, texts, kind))
        for letter in letters:
            lines.append((at[letter], down[letter], at[letter], y))
            down[letter] = y + boxes[-1].height

    live = [at[letter] for letter in block.letters if letter not in block.constant]
    boxes.append(Box(middle - BOX / 2, 0, BOX, ("x",)))
    lines += [(middle, BOX, middle, BOX + GAP), (min(live), BOX + GAP, max(live), BOX + GAP)]
    lines += [(x, BOX + GAP, x, ROW) for x in live]
    for letter, x in at.items():
        boxes.append(Box(x - pitch / 2 + GAP / 2, ROW, pitch - GAP, (dict(block.shown).get(letter, letter),)))
    for text, letters in block.before:
        over(letters.split(), tuple(text.split("\n")))
    over(mixed, block.rule, "rule")
    y = down[mixed[0]]
    for text in block.after:
        top, half = y + ROW - BOX, BOX / 2 if text == "×" else 56
        lines.append((middle, y, middle, top))
        if text == "×":
            beside = top + BOX / 2
            lines += [(at["gate"], down["gate"], at["gate"], beside), (at["gate"], beside, middle + half, beside)]
        boxes.append(Box(middle - half, top, 2 * half, (text,)))
        y = top + BOX
    return y, lines, boxes


def svg(name):
    """The diagram as an SVG of its own, for a page: its colors are the figure's."""
    height, lines, boxes = parts(name)
    drawn = ["<path d='M{:g} {:g}L{:g} {:g}'/>".format(*line) for line in lines]
    for box in boxes:
        place = f"x='{box.x:g}' y='{box.y:g}' width='{box.width:g}' height='{box.height:g}'"
        drawn.append(f"<rect class='{box.kind}' {place} rx='5'/>")
        drawn += [f"<text x='{x:g}' y='{y:g}' dy='.35em'>{escape(text)}</text>" for x, y, text in box.places]
    says = escape("; ".join(" ".join(box.lines) for box in boxes))
    return (
        f"<svg class='px-block' role='img' aria-label='Block diagram of the layer, from x down: {says}' "
        f"style='--px-family:var(--px-{mixers.load(name).FAMILY})' viewBox='-1 -1 {WIDTH + 2} {height + 2:g}'>"
        f"{''.join(drawn)}</svg>"
    )


def draw(ax, name):
    """Draw the diagram into an axes of matplotlib."""
    height, lines, boxes = parts(name)
    looks = {"plain": {"ec": "black", "lw": 0.8}, "rule": {"ec": FAMILY[mixers.load(name).FAMILY], "lw": 1.6}}
    for line in lines:
        ax.plot(line[::2], line[1::2], color="black", lw=0.8, zorder=1)
    for box in boxes:
        shape = {"boxstyle": "round,pad=0,rounding_size=5", "fc": "white", "zorder": 2, **looks[box.kind]}
        ax.add_patch(FancyBboxPatch((box.x, box.y), box.width, box.height, **shape))
        for x, y, text in box.places:
            ax.text(x, y, text, ha="center", va="center", size=7)
    ax.set(xlim=(-2, WIDTH + 2), ylim=(height + 2, -2), aspect="equal")
    ax.axis("off")
