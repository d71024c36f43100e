"""One model of each family with equal parameters, on the same text: loss against tokens and against time.

    python -m experiments.families --out FOLDER [--text FILE] [--small] [--device cuda] [--shard 0/2]
    python -m experiments.families --out FOLDER --times      step times, each model alone on the device

Eight layers of width 192, each a mixer and a gated MLP whose width makes the parameters equal to 5%; otherwise each
mixer keeps its Layer's defaults. The runs share batches, schedule and optimizer. Curves are bits per byte on unseen
topics and modules. Times come from a second pass in which nothing else runs: `tokens_per_second` turns the first
curve's axis into seconds.
"""

from experiments.equal import spread

DEPTH, D, T, TARGET = 8, 192, 512, 2_800_000
TABLE = {"A": {"H": 4}, "H": {"W": 512}, "T": {"H": 4}, "D": {"H": 4}, "7": {"H": 4}, "S": {"K": 64}}
FAMILIES = {
    "attention": "A", "linear": "N", "retnet": "T", "gla": "W", "deltanet": "D", "gated_deltanet": "G",
    "mamba": "M", "ssd": "S", "rwkv6": "6", "rwkv7": "7", "hyena": "H", "rglru": "R", "hybrid": None,
}


def pattern(name, depth=DEPTH):
    """The pattern of a family; the hybrid is SSD with two attention layers of eight."""
    letter = FAMILIES[name]
    return letter * depth if letter else spread("S", "A", depth, max(1, depth // 4))
