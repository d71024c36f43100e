"""Published models: as patterns whose parameters are counted, and as shapes whose cost is; accelerators beside them.

`build(name)` makes one from this package's modules; under `torch.device("meta")`, the default, it takes no memory.
What is held is the count, weight by weight; details that no count can see are not reproduced (Falcon-H1's and
RecurrentGemma's multipliers, the bases of rotary positions, the sigmoid routers of DeepSeek and Nemotron).

A `Config` holds shapes only: enough to count weights, KV bytes and FLOPs. Letters as in `postx.cost`; Y is the
vocabulary.
"""

from dataclasses import dataclass, field

import torch

from postx import cost
from postx.cost import Cost, Device
from postx.models.lm import LM, Count
from postx.shapes import positive


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
    "Llama-3-70B": Published(
        "A" * 80, 8192, 128256, 70553706496, "arXiv 2407.21783; " + HUB + "meta-llama/Meta-Llama-3-70B",
        "2024-04-18", options={"A": {"H": 64, "G": 8}, "F": {"F": 28672}}, more=UNTIED,
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


@dataclass(frozen=True)
class Config:
    """The shape of a decoder-only language model: L layers, of which `attention_layers` keep a KV cache.

    `window`: keys kept by a sliding window. `latent`, `rotary`: widths that MLA caches for keys and values.
    `mamba_layers`: layers with a Mamba-1 state (N = 16). `experts`: MLPs a layer; 1 is dense.
    """

    name: str
    L: int
    D: int
    H: int
    G: int
    K: int
    F: int
    Y: int
    gated: bool = True
    tied: bool = False
    window: int | None = None
    latent: int | None = None
    rotary: int = 0
    attention_layers: int | None = None
    mamba_layers: int = 0
    experts: int = 1
    source: str = ""

    def kv_floats(self, T, *, rolling=True):
        """Numbers the KV cache holds after T tokens: 2 L G K each, or L (latent + rotary) each under MLA.

        Under a window at most `window` tokens are kept; rolling=False counts a cache that never forgets.
        """
        positive(T=T)
        layers = self.L if self.attention_layers is None else self.attention_layers
        kept = min(T, self.window) if self.window and rolling else T
        width = self.latent + self.rotary if self.latent else 2 * self.G * self.K
        return layers * width * kept

    def kv_bytes(self, T, *, item=2, rolling=True):
        """Bytes of the KV cache of one sequence after T tokens, `item` bytes a number."""
        return self.kv_floats(T, rolling=rolling) * item

    def fixed_state_floats(self):
        """Numbers of state that do not grow with the text: the Mamba layers' scan states and last inputs."""
        return self.mamba_layers * cost.mamba_block(1, D=self.D).state_floats if self.mamba_layers else 0

    def _dense(self, what):
        reasons = {"MLA": self.latent, "Mamba layers": self.mamba_layers, "experts": self.experts > 1}
        if any(reasons.values()):
            named = ", ".join(name for name, present in reasons.items() if present)
            raise ValueError(f"{what}: counts dense Transformers only, and {self.name} has {named}")

    def matrix_weights(self):
        """Weights that multiply: projections, MLP and output head; not the embedding table, not the norms."""
        self._dense("matrix_weights")
        block = 2 * self.D * self.H * self.K + 2 * self.D * self.G * self.K
        block += (3 if self.gated else 2) * self.D * self.F
        return self.L * block + self.Y * self.D

    def weights(self):
        """All weights, with two norms a layer and one at the end, no biases: Llama's count to the unit."""
        embedding = 0 if self.tied else self.Y * self.D
        return self.matrix_weights() + embedding + (2 * self.L + 1) * self.D

    def _forward(self, T, past, B, form, item):
        shape = {name: getattr(self, name) for name in ("D", "H", "G", "K", "F", "gated", "window")}
        block = cost.transformer_block(T, B=B, past=past, form=form, item=item, **shape)
        return self.L * block + cost.matmul(B, self.D, self.Y, item=item)

    def prefill(self, T, *, B=1, form="tiled", item=2) -> Cost:
        """Read a prompt of T tokens and score one next token: all blocks over T, the output head once."""
        self._dense("prefill")
        return self._forward(T, 0, B, form, item)

    def decode(self, n, *, B=1, item=2) -> Cost:
        """Write one token after n cached ones: 2 FLOPs a matrix weight, and 4 L H K FLOPs a key."""
        self._dense("decode")
        return self._forward(1, n - 1, B, "tiled", item)

    def crossover(self, where="decode", *, weights=None):
        """Tokens at which attention's FLOPs equal 2 P: P / (2 L H K) in decode, twice that over a prefill.

        P is `weights` where given, else the weights that multiply. The usual rule takes all weights.
        """
        self._dense("crossover")
        if where not in ("decode", "prefill"):
            raise ValueError(f"where: expected 'decode' or 'prefill', got {where!r}")
        tokens = (weights or self.matrix_weights()) / (2 * self.L * self.H * self.K)
        return tokens if where == "decode" else 2 * tokens


LLAMA2_7B = Config("Llama-2-7B", L=32, D=4096, H=32, G=32, K=128, F=11008, Y=32000,
                   source="Touvron et al. 2023, arXiv 2307.09288; meta-llama/Llama-2-7b-hf config.json")
LLAMA2_13B = Config("Llama-2-13B", L=40, D=5120, H=40, G=40, K=128, F=13824, Y=32000,
                    source="Touvron et al. 2023, arXiv 2307.09288; meta-llama/Llama-2-13b-hf config.json")
LLAMA3_8B = Config("Llama-3-8B", L=32, D=4096, H=32, G=8, K=128, F=14336, Y=128256,
                   source="Grattafiori et al. 2024, arXiv 2407.21783, table 3")
LLAMA3_70B = Config("Llama-3-70B", L=80, D=8192, H=64, G=8, K=128, F=28672, Y=128256,
                    source="Grattafiori et al. 2024, arXiv 2407.21783, table 3")
MISTRAL_7B = Config("Mistral-7B", L=32, D=4096, H=32, G=8, K=128, F=14336, Y=32000, window=4096,
                    source="Jiang et al. 2023, arXiv 2310.06825, table 1")
MIXTRAL = Config("Mixtral-8x7B", L=32, D=4096, H=32, G=8, K=128, F=14336, Y=32000, experts=8,
                 source="Jiang et al. 2024, arXiv 2401.04088, table 1")
JAMBA = Config("Jamba", L=32, D=4096, H=32, G=8, K=128, F=14336, Y=65536, attention_layers=4,
               mamba_layers=28, experts=16,
               source="Lieber et al. 2024, arXiv 2403.19887; ai21labs/Jamba-v0.1 config.json")
DEEPSEEK_V2 = Config("DeepSeek-V2", L=60, D=5120, H=128, G=128, K=128, F=1536, Y=102400, latent=512,
                     rotary=64, experts=160, source="DeepSeek-AI 2024, arXiv 2405.04434, section 3.1.2")
DEEPSEEK_V3 = Config("DeepSeek-V3", L=61, D=7168, H=128, G=128, K=128, F=2048, Y=129280, latent=512,
                     rotary=64, experts=256,
                     source="DeepSeek-AI 2024, arXiv 2412.19437; inference/configs/config_671B.json")

# Dense half-precision peaks: the data sheet's H100 figure, 1,979e12, is with 2:4 sparsity, so half of it.
H100 = Device("H100 SXM", flops=989.5e12, bandwidth=3.35e12, memory=80e9, source="NVIDIA H100 data sheet")
A100 = Device("A100 SXM 80 GB", flops=312e12, bandwidth=2.039e12, memory=80e9,
              source="NVIDIA A100 data sheet")
