"""The matrix a text makes: whatever mixes tokens is y = M v, and M shows who hears whom.

Every word has one vector e (postx/widgets/words.py). Word t asks with its own, q_t = e(word t); word i is found under
that of the word before it, k_i = e(word i-1), as a short convolution lets a layer have it. So entry (t, i) is large
where word i came after word t: "is" finds what "is" was followed by. The weights are not trained but chosen, to show
what each mixer makes of the same q, k and gates; words of content open a gate, fillers hardly do.

M is read off the mixers themselves, by giving them T values that are 1 at one word and 0 at the others.
"""

import math
from dataclasses import asdict, dataclass, field

import numpy as np
import torch
from matplotlib.figure import Figure

from postx import mixers, style
from postx.explore.widget import widget
from postx.widgets import diagram, words

HONEST = (
    "The weights are fixed, not trained: a word's vector is made from its letters, and is its query; its key "
    "is the vector of the word before. Fillers (the, is, then, …) hardly open a gate."
)


@dataclass(frozen=True)
class Knob:
    """A slider of a mixer: a number from `least` to `most`, or which of `names`."""

    label: str
    least: float
    most: float
    step: float
    start: float
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Shown:
    """A mixer of the menu: its module, its entry of M or its rule in HTML, why M looks as it does, its sliders."""

    title: str
    mixer: str
    entry: str
    because: str
    knobs: dict[str, Knob] = field(default_factory=dict)


def _keep(label, start=0.7):
    return Knob(label, 0.05, 1, 0.05, start)


CONTENT = "what survives a word of content"
FILLER = Knob("how much a filler fades", 0, 1, 0.05, 0.1)
BETA = Knob("strength of a write, β", 0, 2, 0.05, 1)
MENU = {
    "softmax": Shown(
        "softmax", "attention",
        "M<sub>ti</sub> = e<sup>q<sub>t</sub>·k<sub>i</sub> / temperature</sup> ÷ the row's sum",
        "A few cells take nearly all of their row, because the exponential widens the lead of the best match before "
        "the row is divided by its sum.",
        {"temperature": Knob("temperature", 0.05, 1, 0.05, 0.2)},
    ),
    "linear": Shown(
        "linear", "linear", "M<sub>ti</sub> = φ(q<sub>t</sub>)·φ(k<sub>i</sub>) ÷ the row's sum",
        "Rows are almost even, because positive features φ never cancel: what does not match has a weight too.",
        {"length": Knob("length of q and k before φ", 1, 16, 1, 4)},
    ),
    "retention": Shown(
        "retention", "retnet", "M<sub>ti</sub> = γ<sup>t−i</sup> q<sub>t</sub>·k<sub>i</sub>",
        "Cells pale with their distance from the diagonal, because each word fades the table by the same γ, whatever "
        "it says.",
        {"keep": _keep("what survives a word, γ", 0.85)},
    ),
    "gla": Shown(
        "GLA", "gla",
        "M<sub>ti</sub> = q<sub>t</sub>·(a<sub>i+1</sub>⋯a<sub>t</sub> k<sub>i</sub>), one a for each row of the table",
        "Old cells pale each in their own way, because a word of content fades its own half of the table's rows and a "
        "filler hardly any.",
        {"keep": _keep(CONTENT, 0.4), "filler": FILLER},
    ),
    "delta": Shown(
        "delta", "deltanet", "S ← S + β k (v − S′k)′, read with q",
        "Of two words that followed the same word only the later is left, because a write first takes out what stands "
        "under its key.",
        {"beta": BETA},
    ),
    "gated_delta": Shown(
        "gated delta", "gated_deltanet", "S ← a S, then S ← S + β k (v − S′k)′, read with q",
        "As with delta, and what is old is paler too, because a word of content lets the whole table fade before it "
        "writes.",
        {"beta": BETA, "keep": _keep(CONTENT)},
    ),
    "ssd": Shown(
        "SSD", "ssd", "M<sub>ti</sub> = e<sup>−a(Δ<sub>i+1</sub>+…+Δ<sub>t</sub>)</sup> q<sub>t</sub>·k<sub>i</sub> "
        "Δ<sub>i</sub>",
        "Columns of fillers are nearly empty and words of content cut off what is older, because one number a word, "
        "its step Δ, says both how loudly it writes and how much it lets fade.",
        {"keep": _keep(CONTENT), "filler": Knob("step Δ of a filler", 0, 1, 0.05, 0.1)},
    ),
    "hyena": Shown(
        "Hyena", "hyena", "M<sub>ti</sub> = x<sub>2,t</sub> h<sub>t−i</sub> x<sub>1,i</sub>, one channel",
        "Signs run in stripes along the diagonals, because the filter h knows only the distance; of the stripes whole "
        "rows and columns are left, because gates compare no two words.",
        {
            "window": Knob("window of the filter, in words", 1, 12, 1, 6),
            "gates": Knob("gates", 0, 2, 1, 2, ("none", "on rows", "on columns and rows")),
        },
    ),
}  # fmt: skip


def matrix_of(name, said, **knobs):
    """M [T, T] of a mixer of the menu for a list of words: row t, column i is what y_t takes of v_i. float64 numpy.

    Raises ValueError for a mixer or a knob that is not in the menu, a value out of its range, and no or too many words.
    """
    if name not in MENU:
        raise ValueError(f"name: {name!r} is not in the menu; there are {', '.join(MENU)}")
    at = {key: knob.start for key, knob in MENU[name].knobs.items()} | knobs
    for key, value in at.items():
        knob = MENU[name].knobs.get(key)
        if knob is None:
            raise ValueError(f"{key}: {name} has the knobs {', '.join(MENU[name].knobs)}")
        if not knob.least <= value <= knob.most:
            raise ValueError(f"{key}: expected {knob.least} to {knob.most}, got {value}")
    if not 1 <= len(said) <= words.MOST:
        raise ValueError(f"said: expected 1 to {words.MOST} words, got {len(said)}")
    z, w = _inputs(name, said, **at)
    y, _ = mixers.by_step(mixers.load(MENU[name].mixer), *z, **w)
    return (y[..., 0].mT if name == "hyena" else y[0, :, 0]).numpy()


def _inputs(name, said, temperature=1, length=1, keep=1, filler=0.1, beta=1, window=6, gates=2):
    """z and w of the mixer, with one head; v is the identity, so that y is M."""
    T, K = len(said), words.K
    q = torch.stack([words.vector(word) for word in said])[None, :, None]
    k = torch.stack([words.vector(word) for word in ["", *said[:-1]]])[None, :, None]
    v, s_T = torch.eye(T, dtype=torch.float64)[None, :, None], words.gates(said, filler)
    long_q, g_T = q * K**0.5, math.log(keep) * s_T  # the mixers' own K^-1/2 takes the root away again
    g_BTH, beta_BTH = g_T[None, :, None], torch.full((1, T, 1), float(beta), dtype=torch.float64)
    if name == "softmax":
        return (q, k, v), {"scale": 1 / temperature}
    if name == "linear":
        return (length * q, length * k, v), {}
    if name == "retention":
        return (long_q, k, v), {"g_H": torch.tensor([math.log(keep)], dtype=torch.float64)}
    if name == "gla":
        return (long_q, k, v, g_BTH[..., None] * _rows(said)[None, :, None]), {}
    if name == "delta":
        return (long_q, k, v, beta_BTH), {}
    if name == "gated_delta":
        return (long_q, k, v, beta_BTH, g_BTH), {}
    if name == "ssd":
        return (q, k, v * s_T[:, None, None], g_BTH), {}
    lag = torch.arange(T, dtype=torch.float64)
    h = torch.exp(-lag / window) * torch.cos(math.pi * lag / 3)
    now = (lag == 0).double()
    x, filters = {0: ([s_T**0], [h]), 1: ([s_T], [h]), 2: ([s_T, s_T], [now, h])}[gates]
    x_BTLD = torch.stack(x, -1)[None, :, :, None].expand(T, T, len(x), 1)
    w = {"response_LDW": torch.stack(filters)[:, None], "skip_LD": torch.zeros(len(filters), 1, dtype=torch.float64)}
    return (torch.eye(T, dtype=torch.float64)[..., None], x_BTLD), w


def _rows(said):
    """[T, K]: 1 where a word lets a row of the table fade: about half of them, the word's own choice."""
    chosen = []
    for word in said:
        source = words.numbers(word + "/gate")
        chosen.append([float(next(source) > 0.5) for _ in range(words.K)])
    return torch.tensor(chosen, dtype=torch.float64)


CAPTION = "The table M of y = M v: row t, column i is how much of word i goes into the output at word t."


def matrix(name, text=words.TEXT, *, caption=CAPTION):
    """The tool, opened at one mixer of the menu and one text. Raises ValueError as `matrix_of` does."""
    said, _ = words.split(text)
    M = matrix_of(name, said)
    with style.look():
        still = _still(name, said, M)
    menu = {
        key: {"title": one.title, "entry": one.entry, "because": one.because, "block": diagram.svg(one.mixer)}
        | {"knobs": {knob: asdict(told) for knob, told in one.knobs.items()}}
        for key, one in MENU.items()
    }
    data = {"text": text, "start": name, "menu": menu, "honest": HONEST, "most": words.MOST, "K": words.K}
    data["fillers"] = sorted(words.FILLERS)
    alt = f"The matrix that {MENU[name].title} makes of “{' '.join(said)}”: {MENU[name].because}"
    return widget("matrix", data, alt=alt, still=still, caption=caption)


def _still(name, said, M):
    """M with its words, and the layer's diagram beside it."""
    fig = Figure(figsize=(style.RC["figure.figsize"][0], 4.1))
    left, right = fig.subplots(1, 2, width_ratios=(1.6, 1))
    shade = np.ma.masked_array(np.sign(M) * abs(M) ** 0.75, np.triu(np.ones_like(M), 1))
    most = abs(shade).max()
    left.imshow(shade, cmap="PuOr", vmin=-most, vmax=most)
    left.set_title(f"M of {MENU[name].title}")
    left.set_xticks(range(len(said)), said, rotation=90)
    left.set_yticks(range(len(said)), said)
    left.set(xlabel="is asked", ylabel="asks")
    left.grid(visible=False)
    diagram.draw(right, MENU[name].mixer)
    return fig
