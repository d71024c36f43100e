"""How few attention layers: 0, 1, 2, 4 or all 8 of eight, and where the one stands; recall, text loss, KV bytes.

    python -m experiments.hybrids --out FOLDER [--text FILE] [--small] [--task recall|text] [--device cuda] [--shard 0/2]

Three families: SSD and Gated DeltaNet with causal attention, RG-LRU with local attention (a window of 128 tokens,
as Griffin pairs them). All patterns have an MLP after every mixer, whose width makes the parameters equal to 5%.
Recall: multi-query associative recall with up to 128 pairs in 512 tokens, more than any of these states keeps;
asked afterwards with 16 to 128 pairs. Text: bytes, bits per byte on unseen topics and modules. The pattern without
any other mixer is one model that both families with causal attention share.
"""

from experiments.equal import config, kv_bytes, spread, state_floats

DEPTH, D, T, TARGET = 8, 128, 512, 1_600_000
CONTEXT = 32_768  # tokens for which the bytes of keys and values are stated
TABLE = {
    "A": {"H": 4}, "L": {"H": 4, "window": 128},
    "S": {"K": 16, "V": 64},  # 4 heads: 4,096 floats a layer
    "G": {"H": 4, "G": 4, "K": 32, "V": 32},  # the same number
    "R": {},  # D floats a layer
}
FAMILIES = {"ssd": ("S", "A"), "gated_deltanet": ("G", "A"), "rglru": ("R", "L")}
PLACES = [(0, "spread"), (1, "first"), (1, "middle"), (1, "last"), (2, "spread"), (4, "spread"), (8, "spread")]
RECALL = {"pairs": 128, "keys": 128, "values": 128, "fillers": 32}
ASKED = (16, 32, 64, 128)


def patterns(depth=DEPTH):
    """{pattern: [(family, attention layers, where), ...]}: every point of the figure, each pattern once."""
    found = {}
    for family, (mixer, attention) in FAMILIES.items():
        for n, where in PLACES:
            n = n if n < DEPTH else depth
            if n <= depth:
                found.setdefault(spread(mixer, attention, depth, n, where), []).append((family, n, where))
    return found
