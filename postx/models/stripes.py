"""Published hybrids as strips: one colored cell a layer, sorted by date, for the chapter on hybrids and for slides."""

from dataclasses import dataclass

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PatchCollection
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import Circle, Rectangle

from postx.models.blocks import MIXERS, MLPS, module, places
from postx.models.published import MODELS
from postx.style import FAMILY, look

# What a layer keeps: a growing cache, a window, a state, the last inputs; by the mixers' `FAMILY`.
KINDS = {
    "attention": "attention",
    "local attention": "attention",
    "state space": "ssm",
    "linear attention": "linear",
    "convolution": "conv",
}
HOLLOW = ("local attention",)  # the second kind of a family is drawn as an outline


def kind(letter):
    """The kind of a letter of `postx.models.blocks`; Zamba's shared block (Z) is attention."""
    _, options = MIXERS.get(letter, (None, {}))
    if "window" in options:
        return "local attention"
    family = "attention" if letter == "Z" else module(letter).FAMILY
    return next(name for name, of in KINDS.items() if of == family)


@dataclass(frozen=True)
class Strip:
    """One model: its date, its mixers as a pattern string, where the layers are listed.

    experts: "" none, "all" after every mixer, "rest" after every one but the first, "half" after every second, "own"
    where the pattern has an E. seen: whether the list of layers was read from the publisher's own files or report;
    otherwise from a copy.
    """

    name: str
    date: str
    pattern: str
    source: str
    experts: str = ""
    seen: bool = True

    @property
    def mixers(self):
        """The places that mix tokens: ["M", "AS"], without MLPs."""
        return [place for place in places(self.pattern) if place not in MLPS]

    def expert_layers(self):
        """Which mixers are followed by a mixture of experts, by number."""
        if self.experts == "own":
            letters = places(self.pattern)
            mixers = [i for i, place in enumerate(letters) if place not in MLPS]
            return [n for n, i in enumerate(mixers) if letters[i + 1 : i + 2] == ["E"]]
        start, step = {"": (len(self.mixers), 1), "all": (0, 1), "rest": (1, 1), "half": (1, 2)}[self.experts]
        return list(range(start, len(self.mixers), step))

    def count(self, wanted):
        """Layers that hold a mixer of that kind."""
        return sum(wanted in map(kind, place) for place in self.mixers)

    def share(self):
        """Attention layers and all layers as the figure writes them: "4 of 32", or "8 local of 26"."""
        full, local = self.count("attention"), self.count("local attention")
        return f"{full or local}{'' if full else ' local'} of {len(self.mixers)}"


def _known(name, experts=""):
    published = MODELS[name]
    return Strip(name, published.date[:7], published.pattern, published.source, experts)


# NVIDIA's letters of the 8B study: M Mamba-2, * attention, + an MLP, which is no mixer.
STUDY = "M+M+M++M+M*+M+M+M+M++M*+M+M+M+M+M*++M+M+M+M+M*+M++M+M+M+".translate(str.maketrans("M*+", "SAF"))
GRANITE = "".join("A" if i in (5, 15, 25, 35) else "S" for i in range(40))
KIMI = "".join("K" if i in (4, 8, 12, 16, 20, 24, 27) else "G" for i in range(1, 28))
K3 = "".join("K" if i % 4 == 0 or i == 93 else "G" for i in range(1, 94))
EVO2 = "".join("A" if i in (3, 10, 17, 24, 31) else "H" for i in range(32))
FIELD = sorted(
    (
        Strip("StripedHyena-7B", "2023-12", "HA" * 16, "togethercomputer/stripedhyena, configs/7b-sh-32k-v1.yml"),
        _known("Jamba", "half"),
        _known("Zamba-7B"),
        _known("Llama-3-8B"),
        _known("RecurrentGemma-2B"),
        Strip("Samba-421M", "2024-06", "ML" * 6, "microsoft/Samba, lit_gpt/config.py; window 2,048"),
        Strip("NVIDIA study 8B", "2024-06", STUDY, "arXiv 2406.07887, from a transcription", seen=False),
        Strip("MiniMax-01", "2025-01", "NNNNNNNA" * 10, "MiniMax-AI/MiniMax-01, README", "all"),
        Strip("Evo 2 7B", "2025-02", EVO2, "ArcInstitute/evo2, evo2/configs"),
        Strip("Gemma-3-1B", "2025-03", "LLLLLA" * 4 + "LL", "config.json in copies; window 512", "", False),
        _known("Nemotron-H-8B"),
        _known("Falcon-H1-0.5B"),
        _known("LFM2-1.2B"),
        Strip("gpt-oss-20b", "2025-08", "LA" * 12, "config.json in copies; window 128", "all", False),
        Strip("Qwen3-Next-80B", "2025-09", "GGGA" * 12, "Hugging Face hub: config.json in copies", "all", False),
        Strip("Granite-4.0-H-Micro", "2025-10", GRANITE, "Hugging Face hub: config.json in copies", "", False),
        Strip("MiniMax-M2", "2025-10", "A" * 62, "Hugging Face hub: MiniMaxAI/MiniMax-M2, config.json", "all"),
        Strip("Kimi Linear 48B", "2025-10", KIMI, "tech report (3:1); list of layers from copies", "rest", False),
        Strip("Olmo-3-7B", "2025-11", "LLLA" * 8, "config.json in copies; window 4,096", "", False),
        _known("Nemotron-3-Nano-30B-A3B", "own"),
        Strip("Kimi K3", "2026-07", K3, "69 and 24 layers by readers of its config.json", "rest", False),
    ),
    key=lambda strip: strip.date,
)  # fmt: skip

# Points on paper.
WIDTH, SIZE, ROW, TOP, BOTTOM = 403.0, 10.0, 16.5, 20.0, 62.0
NAME, LEFT, RIGHT = 46.0, 158.0, 330.0


def draw(field=FIELD):
    """The figure as a matplotlib Figure of 403 points across, for `explore.show`."""
    height = TOP + ROW * len(field) + BOTTOM
    with look():
        fig = Figure(figsize=(WIDTH / 72, height / 72), layout="none")
        FigureCanvasAgg(fig)
        ax = fig.add_axes((0, 0, 1, 1), xlim=(0, WIDTH), ylim=(height, 0))  # points, downwards
        ax.axis("off")
        ax.text(LEFT, 3, "first layer", size=SIZE - 1, va="top")
        ax.text(RIGHT, 3, "last", size=SIZE - 1, va="top", ha="right")
        ax.text(WIDTH - 3, 3, "attention", size=SIZE - 1, va="top", ha="right")
        cells, dots = {name: [] for name in KINDS}, []
        for row, strip in enumerate(field):
            y = TOP + ROW * row
            _row(ax, strip, y, cells, dots)
        for name, patches in cells.items():
            if patches:
                ax.add_collection(PatchCollection(patches, **_look(name)))
        ax.add_collection(PatchCollection(dots, facecolor="black", linewidth=0))
        _legend(ax, TOP + ROW * len(field) + 12)
    return fig


def _look(name):
    color = FAMILY[KINDS[name]]
    face = to_rgba(color, 0.25) if name in HOLLOW else color
    return {"facecolor": face, "edgecolor": color, "linewidth": 0.8 if name in HOLLOW else 0}


def _row(ax, strip, y, cells, dots):
    short = strip.name.removesuffix("-30B-A3B")
    ax.text(3, y + ROW / 2, strip.date, size=SIZE - 1, va="center", family="monospace")
    ax.text(NAME + 3, y + ROW / 2, short, size=SIZE - 0.5, va="center")
    weight = "bold" if strip.count("attention") else "normal"
    ax.text(WIDTH - 3, y + ROW / 2, strip.share(), size=SIZE - 0.5, va="center", ha="right", weight=weight)
    mixers = strip.mixers
    step = (RIGHT - LEFT) / len(mixers)
    tall = ROW - 6.5
    for i, place in enumerate(mixers):
        for part, letter in enumerate(place):
            low, high = part / len(place) * tall, (part + 1) / len(place) * tall
            cells[kind(letter)].append(Rectangle((LEFT + i * step, y + 1.5 + low), step * 0.86, high - low))
    for i in strip.expert_layers():
        dots.append(Circle((LEFT + (i + 0.43) * step, y + ROW - 2.6), min(1.1, 0.42 * step)))


def _legend(ax, y):
    spots = {name: (3 + 134 * (i % 3), y + 16 * (i // 3)) for i, name in enumerate(KINDS)}
    for name, (x, top) in spots.items():
        ax.add_patch(Rectangle((x, top - 5), 10, 10, **_look(name)))
        ax.text(x + 15, top, name, size=SIZE - 0.5, va="center")
    ax.add_patch(Circle((8, y + 33), 1.6, facecolor="black", linewidth=0))
    ax.text(18, y + 33, "a mixture of experts follows; a cell cut in two runs both mixers side by side",
            size=SIZE - 0.5, va="center")  # fmt: skip


def alt(field=FIELD):
    """The figure in words, for those who do not see it."""
    rows = "; ".join(f"{strip.date} {strip.name}: attention in {strip.share()} layers" for strip in field)
    return f"Published language models by date, one colored cell a layer. {rows}."
