"""Published models as pattern strings, and the numbers of parameters that their publishers state.

`build(name)` makes one from this package's modules; under `torch.device("meta")`, the default, it takes no memory.
What is held is the count, weight by weight; details that no count can see are not reproduced (Falcon-H1's and
RecurrentGemma's multipliers, the bases of rotary positions, the sigmoid routers of DeepSeek and Nemotron).
"""

from dataclasses import dataclass, field

import torch

from postx.lm import LM, Count


@dataclass(frozen=True)
class Published:
    """One model: its pattern, its widths, and what was published about its size.

    total and active are the stated parameters. unit 1: an exact number, from the weights' header or a listed
    count; otherwise the figure was rounded to that many parameters.
    """

    pattern: str
    D: int
    Y: int
    total: float
    source: str
    date: str
    unit: float = 1
    active: float | None = None
    active_unit: float = 1e9
    mlp: str | None = None
    options: dict = field(default_factory=dict)
    more: dict = field(default_factory=dict)

    def build(self, device="meta"):
        """The model, untrained."""
        with torch.device(device):
            return LM(self.pattern, self.D, self.Y, mlp=self.mlp, options=self.options, **self.more)

    def agrees(self, count: Count) -> bool:
        """Whether a count equals what was published, to the digit or to the rounding of the publication."""
        total = abs(count.total - self.total) <= (0 if self.unit == 1 else self.unit / 2)
        return total and (self.active is None or abs(count.active - self.active) <= self.active_unit / 2)


UNTIED = {"tied": False}
HUB = "config.json and the weights' header on the Hugging Face hub: "
MAMBA = "Gu and Dao 2023, arXiv 2312.00752; " + HUB + "state-spaces/mamba-{}-hf"
MAMBA2 = "Dao and Gu 2024, arXiv 2405.21060; state-spaces/mamba, modules/mamba2.py, vocabulary padded to 50288"
LFM2 = "Liquid AI 2025, arXiv 2511.23404; " + HUB + "LiquidAI/LFM2-{}"


def _mamba(L, D, total, size):
    return Published("M" * L, D, 50280, total, MAMBA.format(size), "2023-12-01")


def _mamba2(L, D, total):
    return Published("S" * L, D, 50288, total, MAMBA2, "2024-05-31")


def _lfm2(D, F, H, total, size):
    options = {"A": {"H": H, "G": 8, "K": 64, "qk_norm": True}, "F": {"F": F}}
    return Published("CCACCACCACACACAC", D, 65536, total, LFM2.format(size), "2025-07-10", options=options)


def _nemotron(pattern):
    """NVIDIA's letters M, * and - as ours: S, A and F."""
    return pattern.translate(str.maketrans("M*-", "SAF"))


MODELS = {
    "Llama-3-8B": Published(
        "A" * 32, 4096, 128256, 8030261248, "arXiv 2407.21783; " + HUB + "meta-llama/Meta-Llama-3-8B",
        "2024-04-18", options={"A": {"H": 32, "G": 8}, "F": {"F": 14336}}, more=UNTIED,
    ),
    "Mixtral-8x7B": Published(
        "A" * 32, 4096, 32000, 46702792704, "arXiv 2401.04088 (13B active); " + HUB + "mistralai/Mixtral-8x7B-v0.1",
        "2023-12-11", active=13e9, mlp="E", more=UNTIED,
        options={"A": {"H": 32, "G": 8}, "E": {"F": 14336, "E": 8, "k": 2}},
    ),
    "DeepSeek-V3": Published(
        "K" * 61, 7168, 129280, 671e9, "arXiv 2412.19437, without its multi-token-prediction module",
        "2024-12-26", unit=1e9, mlp="FFF" + "E" * 58, more=UNTIED,
        options={
            "K": {"H": 128, "R": 512, "Rq": 1536, "nope": 128, "rotary": 64, "V": 128}, "F": {"F": 18432},
            "E": {"F": 2048, "E": 256, "k": 8, "shared": 2048},
        },
    ),
    "Mamba-130m": _mamba(24, 768, 129135360, "130m"),
    "Mamba-1.4b": _mamba(48, 2048, 1372178432, "1.4b"),
    "Mamba-2.8b": _mamba(64, 2560, 2768345600, "2.8b"),
    "Mamba-2-130m": _mamba2(24, 768, 128989632),
    "Mamba-2-370m": _mamba2(48, 1024, 368346624),
    "Mamba-2-780m": _mamba2(48, 1536, 780161280),
    "Mamba-2-1.3b": _mamba2(48, 2048, 1343757312),
    "Mamba-2-2.7b": _mamba2(64, 2560, 2702599680),
    "RWKV-7-0.4B": Published(  # the header has 450,834,432: 66,560 more, which blend the first value into itself
        "7" * 24, 1024, 65536, 450767872, "BlinkDL/RWKV-LM, README: parameters in use", "2025-03-18", mlp="V",
        options={"7": {"ranks": (64, 64, 128), "value_rank": 32}},
        more=UNTIED | {"norm": "layer", "embed_norm": True},
    ),
    "RecurrentGemma-2B": Published(
        "RRL" * 8 + "RR", 2560, 256000, 2682862080, "google-deepmind/recurrentgemma, common.py", "2024-04-09",
        options={
            "R": {"width": 2560, "H": 10}, "L": {"H": 10, "G": 1, "K": 256, "window": 2048, "out_bias": True},
            "F": {"F": 7680, "activation": "gelu_tanh", "bias": True},
        },
    ),
    "Jamba": Published(
        "MMMMAMMM" * 4, 4096, 65536, 52e9, "arXiv 2403.19887; ai21labs/Jamba-v0.1, model card and config.json",
        "2024-03-28", unit=1e9, active=12e9, mlp="FE" * 16, more=UNTIED,
        options={
            "M": {"norms": True}, "A": {"H": 32, "G": 8, "rope": None}, "F": {"F": 14336},
            "E": {"F": 14336, "E": 16, "k": 2, "renormalise": False},
        },
    ),
    "Zamba-7B": Published(  # its Mamba layers have two heads, which changes no count
        "MMZM" + "MMMMZM" + "MMMMMZM" * 11 + "MM", 3712, 32000, 7e9,
        "arXiv 2405.16712; Zyphra/Zamba-7B-v1, config.json", "2024-04-16", unit=1e9,
        options={"Z": {"H": 16, "K": 464, "F": 14848}},
    ),
    "Nemotron-H-8B": Published(
        _nemotron("M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M-"), 4096, 131072, 8.1e9,
        "arXiv 2504.03624; nvidia/Nemotron-H-8B-Base-8K, config.json", "2025-03-21", unit=1e8, mlp="-", more=UNTIED,
        options={
            "S": {"G": 8}, "A": {"H": 32, "G": 8, "K": 128, "rope": None},
            "F": {"F": 21504, "gated": False, "activation": "relu2"},
        },
    ),
    "Nemotron-3-Nano-30B-A3B": Published(
        _nemotron("MEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEMEM*EMEMEMEME"), 2688, 131072, 31577937344,
        HUB + "nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16; 3.6B active with embeddings, model card",
        "2025-12-15", active=3.6e9, active_unit=1e8, mlp="-", more=UNTIED,
        options={
            "S": {"G": 8, "inner": 4096}, "A": {"H": 32, "G": 2, "K": 128, "rope": None},
            "E": {"F": 1856, "E": 128, "k": 6, "shared": 3712, "gated": False, "activation": "relu2"},
        },
    ),
    "Falcon-H1-0.5B": Published(
        "(AS)" * 36, 1024, 32784, 0.5e9, "arXiv 2507.22448; tiiuae/Falcon-H1-0.5B-Base, config.json",
        "2025-05-21", unit=1e8, more=UNTIED,
        options={"A": {"H": 8, "G": 2, "K": 64}, "S": {"inner": 1536, "norm": False}, "F": {"F": 2048}},
    ),
    "LFM2-350M": _lfm2(1024, 4608, 16, 354483968, "350M"),
    "LFM2-1.2B": _lfm2(2048, 8192, 32, 1170340608, "1.2B"),
}  # fmt: skip


def build(name, device="meta"):
    """The published model of that name, untrained. Raises ValueError with the names there are."""
    if name not in MODELS:
        raise ValueError(f"model {name!r} is not here; there are {', '.join(MODELS)}")
    return MODELS[name].build(device)
