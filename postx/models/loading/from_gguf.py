"""GGUF files: the same checkpoints in one file, with llama.cpp's names, and often rounded to a few bits.

Names and settings are said in the words of the published layout, so that everything behind is the same. The file's
own rounding is undone to floating point (by the package gguf); what it lost is lost.
"""

from collections.abc import Mapping

import numpy as np
import torch

from postx.models.loading import extra
from postx.models.loading.fill import fill

TENSORS = {  # llama.cpp's name of a tensor -> the published one
    "token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head",
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj", "attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}  # fmt: skip
CONFIG = {  # key of config.json -> llama.cpp's, after the name of the architecture
    "num_hidden_layers": "block_count", "hidden_size": "embedding_length", "intermediate_size": "feed_forward_length",
    "num_attention_heads": "attention.head_count", "num_key_value_heads": "attention.head_count_kv",
    "rope_theta": "rope.freq_base", "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "head_dim": "attention.key_length", "max_position_embeddings": "context_length",
}  # fmt: skip
INTERLEAVED = ("llama",)  # architectures whose rotary pairs were moved next to each other in q and k


def load(path, dtype=torch.float32, device="cpu"):
    """The model in a .gguf file, ready to run.

    Raises ModuleNotFoundError without the package gguf, ValueError for an architecture that is not known, rotary
    positions that were stretched, and weights that do not fit.
    """
    reader = read(path)
    return fill(config(reader), Tensors(reader), dtype, device)


def read(path):
    """The reader of a .gguf file. Raises ValueError for a file that is none."""
    try:
        return extra("gguf").GGUFReader(path)
    except (ValueError, IndexError) as error:
        raise ValueError(f"{path} is not a whole GGUF file ({error})") from error


def field(reader, key, default=None):
    found = reader.fields.get(key)
    return default if found is None else found.contents()


def config(reader):
    """What the file says, as a config.json."""
    kind = field(reader, "general.architecture")
    if kind not in ("llama", "qwen2", "qwen3"):
        raise ValueError(f"a GGUF file of architecture {kind!r}: only llama, qwen2 and qwen3 are known here")
    found = {ours: field(reader, f"{kind}.{theirs}") for ours, theirs in CONFIG.items()}
    stretch = field(reader, f"{kind}.rope.scaling.type", "none")
    if stretch != "none" or any(t.name.startswith("rope_freqs") for t in reader.tensors):
        raise ValueError("a GGUF file with stretched rotary positions is not supported; take the published folder")
    names = {t.name: t for t in reader.tensors}
    found["vocab_size"] = int(names["token_embd.weight"].shape[1])
    found["tie_word_embeddings"] = "output.weight" not in names
    return {"model_type": kind, **{key: x for key, x in found.items() if x is not None}}


class Tensors(Mapping):
    """The tensors of a file under their published names, each made floating point when it is asked for."""

    def __init__(self, reader):
        self.kind = field(reader, "general.architecture")
        self.heads = [field(reader, f"{self.kind}.attention.head_count{end}") for end in ("", "_kv")]
        self.found = {self.published(t.name): t for t in reader.tensors}

    @staticmethod
    def published(name):
        """The published name; a name that is not in the table stays as it is, so that it is listed as unknown."""
        layer = ""
        if name.startswith("blk."):
            _, i, name = name.split(".", 2)
            layer = f"model.layers.{i}."
        stem, _, last = name.rpartition(".")
        return f"{layer}{TENSORS.get(stem, stem)}.{last}"

    def __getitem__(self, name):
        t = self.found[name]
        x = torch.from_numpy(np.array(extra("gguf").quants.dequantize(t.data, t.tensor_type))).float()
        part = name.rsplit(".", 2)[-2] if "self_attn" in name else ""
        if self.kind in INTERLEAVED and part in ("q_proj", "k_proj"):
            n = self.heads[part == "k_proj"]
            x = x.unflatten(0, (n, -1, 2)).transpose(1, 2).flatten(0, 2)
        return x

    def __iter__(self):
        return iter(self.found)

    def __len__(self):
        return len(self.found)
