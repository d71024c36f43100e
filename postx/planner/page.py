"""What the page of the planner is given: the formulas, the sentences, every model as numbers, and the facts."""

from matplotlib.figure import Figure

from postx import planner, style
from postx.explore.widget import widget
from postx.mixers import load
from postx.models import blocks, published
from postx.planner import facts, formulas, rows, words

WIDTHS = (1024, 2048, 4096, 8192)  # of patterns of one's own; the widths of the models are there for their edits
OWN = "SSSSSSSA" * 4
CONTEXTS = [1024 * 2**i for i in range(14)] + [10 * 1024**2]  # 1k, 2k, ... 8M, 10M
BATCHES = [2**i for i in range(11)]
CACHE_BITS, STATE_BITS = (16, 8, 4), (32, 16, 8)
WEIGHT_BITS = (16, 8, 6, 5, 4.9, 4.8, 4.5, 4, 3, 2)
TAGS = {"A": "attention", "L": "attention in a window", "K": "latent attention", "M": "Mamba", "S": "Mamba-2",
        "R": "RG-LRU", "G": "Gated DeltaNet", "7": "RWKV-7", "W": "GLA", "C": "short convolution"}  # fmt: skip
ALT = (
    "Bars of memory for 16 users of 65,536 tokens each, weights at 4 bits, before a line at the 21.6 GB that a card of "
    "24 GB leaves: Llama-3-8B needs 141 GB, nearly all of it cache; Jamba 43.2 GB; Nemotron-3-Nano 23 GB; "
    "Mamba-2.8b 1.78 GB."
)
STILL = ("Llama-3-8B", "Jamba", "Nemotron-3-Nano-30B-A3B", "Mamba-2.8b")


def payload():
    """Everything that the script needs, as JSON can say it."""
    names = rows.catalogue()
    widths = sorted({rows.of(name).D for name in names} | set(WIDTHS))
    return {
        "fields": rows.Part._fields,
        "formulas": formulas.FORMULAS,
        "inputs": formulas.ROW + formulas.CHOICES + formulas.DEVICE,
        "sentences": words.SENTENCES,
        "units": words.UNITS,
        "models": [_model(name) for name in names],
        "letters": {D: {key: list(part) for key, part in rows.letters(D).items()} for D in widths},
        "tags": list(TAGS.items()),  # JSON would put the digit first
        "colors": {key: load(blocks.MIXERS[key][0]).FAMILY for key in TAGS},
        "follow": {key: blocks.mlps([key], None)[0] for key in TAGS},
        "own": {"layers": OWN, "widths": WIDTHS, "vocabulary": rows.VOCABULARY, "window": rows.WINDOW},
        "contexts": CONTEXTS,
        "batches": BATCHES,
        "bits": {"weight": WEIGHT_BITS, "cache": CACHE_BITS, "state": STATE_BITS},
        "tried": planner.BITS,
        "defaults": planner.DEFAULTS,
        "device": planner.DEVICE,
        "share": facts.SHARE,
        "devices": facts.table()["device"],
        "measured": facts.table()["measured"],
        "checked": facts.table()["checked"],
        "none": facts.NONE,
        "unknown": facts.UNKNOWN,
    }


def _model(name):
    row, told = rows.of(name), published.MODELS[name]
    return {
        "name": name, "D": row.D, "layers": row.layers, "parts": [list(part) for part in row.parts],
        "places": row.places, "outside": row.outside, "head": row.head, "chosen": row.chosen, "window": row.window,
        "source": told.source, "date": told.date, "length": facts.context(name),
        "quality": [row | {"said": facts.figure(row)} for row in facts.quality(name)], "served": facts.served(name),
    }  # fmt: skip


def still():
    """Four models, 16 users, 65,536 tokens: what a page without scripts shows."""
    with style.look():
        fig = Figure(figsize=(5.6, 2.4))
        ax, usable = fig.subplots(), 24 * facts.SHARE
        for y, name in enumerate(STILL):
            found = planner.plan(name, context=65536, batch=16, weight_bits=4).found
            left = 0
            for key, color in (("weight", "neutral"), ("cache", "attention"), ("state", "ssm")):
                width = found[f"{key}_bytes"] / 1e9
                label = {"weight": "weights"}.get(key, key) if y == 0 else None
                ax.barh(y, width, left=left, color=style.FAMILY[color], height=0.6, label=label)
                left += width
            ax.text(max(left, usable) + 2, y, words.say(found["total_bytes"], "bytes"), va="center")
        ax.axvline(usable, color="black", linewidth=1)
        ax.text(usable + 2, 3.45, f"{words.three(usable)} GB of a 24 GB card", va="bottom", size=9)
        ax.set(xlim=(0, 165), ylim=(3.5, -0.5), xlabel="GB", yticks=range(4), yticklabels=STILL)
        ax.legend(loc="lower right", ncols=1)
    return fig


def show():
    """The planner as a figure of a built page; elsewhere its still picture."""
    return widget("planner", payload(), alt=ALT, still=still())
