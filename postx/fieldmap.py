"""The map of the field: a lane for each family, its works by year, who descends from whom, and links to chapters."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, Rectangle
from matplotlib.textpath import TextPath

from postx.style import FAMILY, look

CHAPTERS = Path(__file__).resolve().parents[1] / "chapters"


@dataclass(frozen=True)
class Lane:
    """One family: its color in `style.FAMILY`, what it replaces or cuts, chapters, works with years."""

    family: str
    title: str
    cuts: str
    chapters: tuple[str, ...]
    works: dict[str, float]


CORE = (
    "attention_cost", "selective_ssm", "ssd_duality", "linear_attention", "hybrids", "quantization_error",
    "whole_machine",
)  # fmt: skip
COMPARED = "the_race"  # the chapter about all lanes at once
# Years are those of the first public version, with the month as a fraction: Mamba is of December 2023.
LANES = (
    Lane(
        "neutral", "Recurrent networks", "one state, one token after the other", ("rnn_comeback",),
        {"Elman's RNN": 1990.2, "LSTM": 1997.9, "attention in RNNs": 2014.7},
    ),
    Lane(
        "attention", "Transformer", "every token looks at every earlier one",
        ("attention_cost", "beyond_one_machine"),
        {
            "Transformer": 2017.45, "MQA": 2019.85, "sliding window": 2020.3, "FlashAttention": 2022.4,
            "GQA": 2023.4, "MLA": 2024.35,
        },
    ),
    Lane(
        "linear", "Linear attention and new RNNs", "replace the growing cache by a table of fixed size",
        ("linear_attention", "delta_rule", "rnn_comeback"),
        {
            "Linear attention": 2020.5, "DeltaNet": 2021.15, "RWKV-4": 2023.4, "RetNet": 2023.55,
            "GLA": 2023.95, "RWKV-6": 2024.3, "Gated DeltaNet": 2024.95, "RWKV-7": 2025.2,
        },
    ),
    Lane(
        "ssm", "State-space models", "replace re-reading by running notes",
        ("state_space_models", "selective_ssm", "ssd_duality"),
        {
            "HiPPO": 2020.6, "S4": 2021.85, "S4D": 2022.45, "Mamba": 2023.95, "Mamba-2": 2024.4,
            "Mamba-3": 2026.2,
        },
    ),
    Lane(
        "conv", "Long convolutions", "replace attention by filters as long as the text", ("long_convolutions",),
        {"H3": 2022.98, "Hyena": 2023.15},
    ),
    Lane(
        "hybrid", "Hybrids", "keep a few attention layers, make the rest cheap",
        ("hybrids", "recall_lab", "whole_machine"),
        {
            "StripedHyena": 2023.95, "Griffin": 2024.15, "Jamba": 2024.25, "Zamba": 2024.4,
            "MiniMax-01": 2025.05, "Nemotron-H": 2025.25, "LFM2": 2025.5, "Qwen3-Next": 2025.7,
            "Kimi Linear": 2025.83,
        },
    ),
    Lane(
        "liquid", "Liquid networks", "replace the clock of tokens by continuous time", ("liquid_networks",),
        {"LTC": 2020.45, "CfC": 2021.5},
    ),
    Lane(
        "diffusion", "Text diffusion", "replaces left to right by rounds of refinement", ("diffusion",),
        {
            "D3PM": 2021.5, "Plaid": 2023.4, "SEDD": 2023.8, "MDLM": 2024.45, "LLaDA": 2025.1,
            "Mercury": 2025.45,
        },
    ),
    Lane(
        "quant", "Fewer bits", "cuts the bytes of a weight, in any lane above", ("quantization_error", "sub_four_bit"),
        {
            "GPTQ": 2022.8, "NF4": 2023.4, "QuIP#": 2024.1, "BitNet b1.58": 2024.15, "SpinQuant": 2024.4,
            "TurboQuant": 2025.3,
        },
    ),
)
DESCENT = (
    ("Elman's RNN", "LSTM"), ("LSTM", "attention in RNNs"), ("attention in RNNs", "Transformer"),
    ("Transformer", "Linear attention"), ("Linear attention", "DeltaNet"), ("DeltaNet", "Gated DeltaNet"),
    ("Linear attention", "RetNet"), ("HiPPO", "S4"), ("S4", "Mamba"), ("Mamba", "Mamba-2"),
    ("Mamba-2", "Mamba-3"), ("Linear attention", "Mamba-2"), ("S4", "H3"), ("H3", "Hyena"),
    ("Hyena", "StripedHyena"), ("Mamba", "Jamba"), ("Gated DeltaNet", "Qwen3-Next"),
    ("Gated DeltaNet", "Kimi Linear"), ("MLA", "Kimi Linear"), ("LTC", "CfC"), ("D3PM", "SEDD"),
    ("D3PM", "MDLM"), ("MDLM", "LLaDA"),
)
# Where a work is told, if not in the first chapter of its lane.
TOLD = {
    "RWKV-4": "rnn_comeback", "RWKV-6": "rnn_comeback", "RWKV-7": "delta_rule", "DeltaNet": "delta_rule",
    "Gated DeltaNet": "delta_rule", "Mamba": "selective_ssm", "Mamba-2": "ssd_duality", "Mamba-3": "selective_ssm",
    "QuIP#": "sub_four_bit", "BitNet b1.58": "sub_four_bit", "SpinQuant": "sub_four_bit", "TurboQuant": "sub_four_bit",
}  # fmt: skip

# Points on paper. The years before 2017 are squeezed, those from 2023 on stretched: there the works are.
WIDTH, SIZE, ROW, HEAD, PAD, GAP = 400.0, 11.0, 15.0, 34.0, 3.0, 5.0
YEARS = (1990, 2014, 2017, 2020, 2022, 2023, 2024, 2025, 2026, 2027)
PLACES = (20.0, 46.0, 66.0, 112.0, 164.0, 200.0, 258.0, 318.0, 368.0, 398.0)


def year_x(year):
    """Where a year stands across the map, in points."""
    return float(np.interp(year, YEARS, PLACES))


def arrange(lane):
    """Name -> (row, is the name left of its dot?): the first row where the name touches no other.

    >>> arrange(LANES[4])
    {'H3': (0, False), 'Hyena': (1, False)}
    """
    taken, placed = [], {}
    for name, year in sorted(lane.works.items(), key=lambda item: item[1]):
        x, reach = year_x(year), TextPath((0, 0), name, size=SIZE).get_extents().x1 + 10
        spans = {False: (x - 4, x + reach), True: (x - reach, x + 4)}
        row, left = next(
            (row, left)
            for row in range(len(taken) + 1)
            for left, (start, end) in spans.items()
            if start > 6 and end < WIDTH - 2 and (row == len(taken) or _free(start, end, taken[row]))
        )
        if row == len(taken):
            taken.append([])
        taken[row].append(spans[left])
        placed[name] = row, left
    return placed


def _free(start, end, spans):
    return all(end < a or start > b for a, b in spans)


def chapters(lane):
    """The chapters of a lane as the map writes them, with a star on the core path: {"selective_ssm": "3★"}."""
    return {name: f"{number(name)}{'★' * (name in CORE)}" for name in sorted(lane.chapters, key=number)}


def file(chapter):
    """The notebook of a chapter, by its name. Raises ValueError where there is no such chapter."""
    found = list(CHAPTERS.glob(f"[0-9][0-9]_{chapter}.ipynb"))
    if len(found) != 1:
        raise ValueError(f"chapter: no {chapter!r} in {CHAPTERS}")
    return found[0]


def number(chapter):
    """The number of a chapter, which its file carries."""
    return int(file(chapter).name[:2])


def page(chapter):
    """The built page of a chapter, as the other pages reach it: "05_linear_attention.html"."""
    return f"{file(chapter).stem}.html"


def pages():
    """{page: name} of every chapter on the map, such as "Chapter 5: Linear attention"."""
    names = {name for lane in LANES for name in lane.chapters} | {COMPARED}
    return {page(name): f"Chapter {number(name)}: {_title(name)}" for name in sorted(names, key=number)}


def _title(chapter):
    first = json.loads(file(chapter).read_text(encoding="utf8"))["cells"][0]["source"]
    return "".join(first).splitlines()[0].removeprefix("# ")


def draw():
    """The map as a matplotlib Figure of 400 points across, for `explore.show`."""
    layouts = [arrange(lane) for lane in LANES]
    heights = [HEAD + ROW * (1 + max(row for row, _ in layout.values())) + PAD for layout in layouts]
    top, bottom = 18.0, 20.0
    height = top + sum(heights) + GAP * len(LANES) + bottom
    with look():
        fig = Figure(figsize=(WIDTH / 72, height / 72), layout="none")
        FigureCanvasAgg(fig)
        ax = fig.add_axes((0, 0, 1, 1), xlim=(0, WIDTH), ylim=(height, 0))  # points, downwards
        ax.axis("off")
        for year in (1990, 2017, 2020, *range(2022, 2027)):
            ax.text(year_x(year), 2, str(year), size=SIZE - 0.5, ha="center", va="top")
            ax.plot([year_x(year)] * 2, [15, height - bottom], color="#808080", alpha=0.25, lw=0.6, zorder=0)
        dots, y = {}, top
        for lane, layout, tall in zip(LANES, layouts, heights, strict=True):
            dots.update(_lane(ax, lane, layout, y, tall))
            y += tall + GAP
        compared = f"All lanes compared: ch. {number(COMPARED)}"
        ax.text(9, height - 4, compared, size=SIZE, va="bottom", url=page(COMPARED))
        ax.text(WIDTH - 9, height - 4, "★ core path", size=SIZE, ha="right", va="bottom")  # not one line of text
        for older, newer in DESCENT:
            _arrow(ax, dots[older], dots[newer])
    return fig


def _lane(ax, lane, layout, y, tall):
    color = FAMILY[lane.family]
    first = page(lane.chapters[0])
    ax.add_patch(Rectangle((2, y), WIDTH - 4, tall, facecolor=color, alpha=0.13, linewidth=0, url=first))
    ax.add_patch(Rectangle((2, y), 3, tall, facecolor=color, linewidth=0))
    ax.text(9, y + 3, lane.title, size=SIZE + 1, weight="bold", va="top", url=first)
    numbers, x = chapters(lane), WIDTH - 7
    for name, words in [*reversed(numbers.items()), (lane.chapters[0], "ch.")]:
        ax.text(x, y + 3, words, size=SIZE, va="top", ha="right", url=page(name))
        x -= TextPath((0, 0), words, size=SIZE).get_extents().x1 + 7
    ax.text(9, y + 19, lane.cuts, size=SIZE, va="top", url=first)
    dots = {}
    for name, (row, left) in layout.items():
        x, middle = year_x(lane.works[name]), y + HEAD + ROW * (row + 0.5)
        ax.plot([x], [middle], "o", color=color, ms=5, zorder=3)
        side = {"x": x - 5, "ha": "right"} if left else {"x": x + 5, "ha": "left"}
        told = page(TOLD.get(name, lane.chapters[0]))
        ax.text(y=middle, s=name, size=SIZE, va="center", zorder=4, url=told, **side)
        dots[name] = x, middle, color
    return dots


def _arrow(ax, older, newer):
    across, down = newer[0] - older[0], newer[1] - older[1]
    if abs(down) < 1:
        bend = -0.18  # over the names of its own row
    elif abs(down) < 70 and (down < 0 or across > 120):
        bend = 0.3 if down < 0 else -0.25  # to a row nearby: around the names between
    else:
        bend = 0.15
    arrow = FancyArrowPatch(
        older[:2], newer[:2], arrowstyle="-|>", mutation_scale=7, color=older[2], lw=1.2, alpha=0.6, zorder=2,
        connectionstyle=f"arc3,rad={bend}", shrinkA=3, shrinkB=3,
    )
    ax.add_patch(arrow)


def alt():
    """The map in words, for those who do not see it."""
    lanes = "; ".join(
        f"{lane.title}, ch. {', '.join(chapters(lane).values()).replace('★', '')}: "
        + ", ".join(f"{name} {int(year)}" for name, year in lane.works.items())
        for lane in LANES
    )
    lines = ", ".join(f"{older} to {newer}" for older, newer in DESCENT)
    lead = "Map of the field, a lane for each family, years from 1990 to 2026 from left to right."
    return f"{lead} {lanes}. Arrows of descent: {lines}."
