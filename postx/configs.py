"""Published models and accelerators as small frozen records, each with its source, and what they cost to run.

Only shapes are kept: enough to count weights, KV bytes and FLOPs. What no shape can tell, such as quality
or price, is not here. Letters as in `postx.cost`; Y is the vocabulary.
"""

from dataclasses import dataclass

from postx import cost
from postx.cost import Cost, Device


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
        cost.positive(T=T)
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
