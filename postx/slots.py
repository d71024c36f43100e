"""You are the state: people pick things up, four slots remember, and five machines read the same stream.

A pair says who now holds which of eight shapes. Marked pairs are asked about at the end, in the order in which their
people first came; the others are there to be let go. A slot keeps a person and a shape as 8 numbers each, so four
slots are 64 numbers. So is the machines' table: 8 rows of keys, 8 columns of shapes. A person's key is 1 / sqrt(3) in
three of the eight rows, a shape is 1 in its column. Every table follows one line with three numbers,

    S <- a S + b k (v - c S'k)'

| machine | a | b | c | in the package |
|---|---|---|---|---|
| linear | 1 | 1 | 0 | `linear` on log k, as phi(log k) = k; its normaliser is 8 numbers more |
| decay | DECAY | 1 | 0 | `retnet` |
| delta | 1 | BETA | 1 | `deltanet` |
| gate | GATE, or 1 where a pair is not marked | 1, or 0 there | 0 | `ssd`, dt = 1 at a mark and else 0 |

The cache keeps every pair: `attention` with a sharp softmax, ALiBi's slope putting the newest of equal keys first.
The page plays this in _static/widgets/state.js; tests/book/test_state.py holds the two together.
"""

import itertools
import math
from dataclasses import dataclass

import torch
from matplotlib.figure import Figure

from postx import fieldmap
from postx.mixers import attention, deltanet, linear, retnet, ssd
from postx.style import FAMILY, SERIES, look

SHAPES = ("circle", "square", "triangle", "star", "diamond", "cross", "heart", "hexagon")
PEOPLE = """
Ada Ben Cleo Dan Eve Finn Gia Hal Ida Jon Kim Leo Mia Ned Ona Pam Quin Rob Sue Tom Uma Vic Wes Xia Yan Zoe
Amy Bob Cora Dov Edi Fay Gus Hugo Ines Jim Kai Lou Max Nia Otto Pia Ray Sam Tess Udo Vera Will Ari Bea Cy
Dirk Elsa Fred Gina Hank
"""
NAMES = tuple(PEOPLE.split())
CODES = tuple(itertools.combinations(range(8), 3))  # the rows of each name
LENGTHS = (8, 16, 32, 64, 128)
# Each the best of a grid on other streams of 32 pairs (tests/test_slots.py finds them again).
DECAY, GATE, BETA = 0.95, 0.9, 0.3
SCALE, SLOPE = 1000.0, 1.0  # a step of 1/3 in q'k outweighs 128 tokens
# name, its chapter, what it does with a pair, its color on the page and in the still picture
MACHINES = {
    "cache": ("Cache", "attention_cost", "keeps every pair", "attention", FAMILY["attention"]),
    "linear": ("Linear attention", "linear_attention", "adds every pair", "linear", FAMILY["linear"]),
    "decay": ("Decay", "linear_attention", "adds, old ones fade", "teal", SERIES[0]),
    "delta": ("Delta rule", "delta_rule", "corrects what a name has", "gold", SERIES[1]),
    "gate": ("Selective gate", "selective_ssm", "adds and fades if asked", "ssm", FAMILY["ssm"]),
}
AHEAD = 1e-9  # what the winning shape must be ahead by; less is a tie, and no answer


@dataclass(frozen=True)
class Pair:
    """Person `who` now holds shape `what` (numbers into NAMES and SHAPES); will it be asked about?"""

    who: int
    what: int
    marked: bool


def draws(seed):
    """below(n): the next whole number below n, by xorshift32 (Marsaglia 2003, "Xorshift RNGs")."""
    x = (seed * 2654435761) % 2**32 or 1

    def below(n):
        nonlocal x
        x ^= x << 13 & 0xFFFFFFFF
        x ^= x >> 17
        x ^= x << 5 & 0xFFFFFFFF
        return x % n

    for _ in range(8):  # the first numbers of neighboring seeds are alike
        below(1)
    return below


def stream(n, seed):
    """`n` pairs: 5 n / 8 are marked, about n / 4 + 2 people; the others are about up to 3 n / 8 other people.

    Raises ValueError for a length that is not in LENGTHS and for a seed outside of 1 to 9999.
    """
    if n not in LENGTHS:
        raise ValueError(f"n: expected one of {', '.join(map(str, LENGTHS))}, got {n!r}")
    if not isinstance(seed, int) or not 1 <= seed <= 9999:
        raise ValueError(f"seed: expected a whole number from 1 to 9999, got {seed!r}")
    below, people = draws(seed), list(range(len(NAMES)))
    for i in range(len(people)):
        j = i + below(len(people) - i)
        people[i], people[j] = people[j], people[i]
    asked = n // 4 + 2
    others = people[asked : asked + 3 * n // 8]
    new, marks, held, pairs = asked, 5 * n // 8, {}, []
    for t in range(n):
        if below(n - t) >= marks:  # as likely as what is left
            pairs.append(Pair(others[below(len(others))], below(8), False))
            continue
        if new == asked or below(marks) < new:
            who, what = people[asked - new], below(8)
            new -= 1
        else:
            who = people[below(asked - new)]
            what = (held[who] + 1 + below(7)) % 8  # never what they hold already
        marks -= 1
        held[who] = what
        pairs.append(Pair(who, what, True))
    return pairs


def truth(pairs):
    """Who will be asked about, and what they hold at the end: {who: what}."""
    return {pair.who: pair.what for pair in pairs if pair.marked}


def recall(pairs, choices):
    """What four slots answer, {who: what or None}: choice t says which slot (0 to 3) takes pair t, None lets it go."""
    if len(choices) != len(pairs):
        raise ValueError(f"choices: expected one for each of {len(pairs)} pairs, got {len(choices)}")
    slots, written = [None] * 4, {}
    for t, (pair, slot) in enumerate(zip(pairs, choices, strict=True)):
        if slot is not None:
            slots[slot], written[slot] = pair, t
    newest = {slots[slot].who: slots[slot].what for slot in sorted(written, key=written.get)}
    return {who: newest.get(who) for who in truth(pairs)}


def by_rule(pairs):
    """Choices of a careful player: a marked pair goes to its person's slot, or to an empty one, or is let go."""
    slots, choices = [], []
    for pair in pairs:
        known = pair.who in slots
        if pair.marked and not known and len(slots) < 4:
            slots.append(pair.who)
            known = True
        choices.append(slots.index(pair.who) if pair.marked and known else None)
    return choices


def readings(pairs):
    """What each machine reads at the end under the key of each person asked about: {machine: y_BV}, float64.

    B is one row for each person, in the order of `truth`. Every machine runs its mixer's `step` over the stream.
    """
    asked = list(truth(pairs))
    key = torch.zeros(len(NAMES), 8, dtype=torch.float64)
    for who, rows in enumerate(CODES):
        key[who, list(rows)] = 3**-0.5
    B, shape = len(asked), torch.eye(8, dtype=torch.float64)
    q = key[asked][:, None]
    states, y = {}, {}
    for pair in pairs:
        k, v = (x.expand(B, 1, 8) for x in (key[pair.who], shape[pair.what]))
        mark = torch.full((B, 1), float(pair.marked), dtype=torch.float64)
        for name, (mixer, z, w) in {
            "cache": (attention, (q, k, v), {"scale": SCALE, "slopes_H": torch.tensor([SLOPE], dtype=torch.float64)}),
            "linear": (linear, (q.log(), k.log(), v), {}),
            "decay": (retnet, (q, k, v), {"g_H": torch.tensor([math.log(DECAY)], dtype=torch.float64)}),
            "delta": (deltanet, (q, k, v, BETA * torch.ones_like(mark)), {}),
            "gate": (ssd, (q, k, v * mark[..., None], math.log(GATE) * mark), {}),
        }.items():
            S = states[name] if name in states else mixer.init(*z, **w)
            y[name], states[name] = mixer.step(S, *z, **w)
    return {name: found[:, 0] for name, found in y.items()}


def answers(pairs):
    """What each machine says of each person asked about: {machine: {who: what, or None where shapes tie}}."""
    said = {}
    for machine, y_BV in readings(pairs).items():
        best, what = y_BV.topk(2)
        clear = (best[:, 0] - best[:, 1] > AHEAD).tolist()
        said[machine] = {
            who: int(w[0]) if sure else None for who, w, sure in zip(truth(pairs), what, clear, strict=True)
        }
    return said


def score(pairs, said):
    """How many of the people asked about got the right answer."""
    return sum(said[who] == what for who, what in truth(pairs).items())


def data(seed):
    """What the page's script is told: names and their rows, settings, machines, and the first stream's seed."""
    machines = [
        {"id": machine, "name": name, "page": fieldmap.page(chapter), "why": why, "color": color}
        for machine, (name, chapter, why, color, _) in MACHINES.items()
    ]
    settings = {"decay": DECAY, "gate": GATE, "beta": BETA, "scale": SCALE, "slope": SLOPE}
    return {"names": NAMES, "codes": CODES, "machines": machines, "seed": seed, **settings}


MARKERS = ("o", "s", "^", "*", "D", "P", r"$\heartsuit$", "H")  # of SHAPES, in the still picture


def draw(pairs):
    """The end of one game as a matplotlib Figure, `by_rule` in the slots: a row each, hollow where it is wrong."""
    right, said = truth(pairs), answers(pairs)
    rows = [("Four slots", "black", recall(pairs, by_rule(pairs)))]
    rows += [(name, color, said[machine]) for machine, (name, _, _, _, color) in MACHINES.items()]
    with look():
        fig = Figure(figsize=(5.6, 0.36 * len(rows) + 0.55), layout="none")
        ax = fig.add_axes((0, 0, 1, 1), xlim=(-3.6, len(right) + 0.6), ylim=(len(rows) - 0.4, -1.6))
        ax.axis("off")
        for x, (who, what) in enumerate(right.items()):
            ax.text(x, -1, f"{NAMES[who]}\n{SHAPES[what]}", ha="center", va="center", size=10)
        for y, (name, color, found) in enumerate(rows):
            ax.text(-3.5, y, name, va="center", color=color)
            ax.text(len(right) - 0.1, y, f"{score(pairs, found)} of {len(right)}", va="center", ha="center")
            for x, (who, what) in enumerate(found.items()):
                fill = {"mfc": color if what == right[who] else "none", "mec": color, "ms": 11}
                ax.plot([x], [y], marker="$?$" if what is None else MARKERS[what], **fill)
    return fig


def alt(pairs):
    """The picture of `draw` in words."""
    said = {"four slots": recall(pairs, by_rule(pairs))}
    said |= {MACHINES[machine][0].lower(): found for machine, found in answers(pairs).items()}
    counts = ", ".join(f"{name} {score(pairs, found)}" for name, found in said.items())
    return f"The end of a game of {len(pairs)} pairs. Of {len(truth(pairs))} people asked about, right: {counts}."
