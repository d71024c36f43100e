"""Tiny published models: a config for each model_type, weights by a rule, reference logits by transformers, or by
the equations of the paper where it has no such model (RWKV-7: rwkv7_by_hand.py).

usage: python tests/tools/published.py [NAME ...]      writes tests/models/parity/NAME.json and NAME.npz

Weights are a function of their name and shape alone (`weight`), by raw bits of a generator whose stream numpy
guarantees, so that only configs, names, shapes and logits are committed, and CI needs no transformers.
"""

import json
import sys
import zlib
from pathlib import Path

import numpy as np
import rwkv7_by_hand

FOLDER = Path(__file__).resolve().parents[1] / "models" / "parity"
LENGTHS = (13, 8)  # tokens of the two rows of a batch
Y = 64

BASE = {"vocab_size": Y, "hidden_size": 32, "num_hidden_layers": 3, "intermediate_size": 48, "bos_token_id": 1,
        "eos_token_id": 2, "pad_token_id": 0, "max_position_embeddings": 128}  # fmt: skip
GROUPED = {"num_attention_heads": 4, "num_key_value_heads": 2}
BAMBA = {"mamba_n_heads": 8, "mamba_n_groups": 2, "mamba_d_state": 8, "mamba_d_head": 8, "mamba_expand": 2,
         "mamba_chunk_size": 8}  # fmt: skip
LLAMA3 = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0,
          "high_freq_factor": 4.0, "original_max_position_embeddings": 64}  # fmt: skip
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64,
        "mscale": 1.0, "mscale_all_dim": 1.0}  # fmt: skip

CONFIGS = {
    "llama": BASE | GROUPED | {"attention_bias": True, "mlp_bias": True},
    "llama3": BASE | GROUPED | {"model_type": "llama", "tie_word_embeddings": True, "head_dim": 12,
                                "rope_parameters": LLAMA3},
    "mistral": BASE | GROUPED | {"sliding_window": 5, "head_dim": 16},
    "mamba": BASE | {"state_size": 4, "use_bias": True},
    "falcon_mamba": BASE | {"state_size": 4, "intermediate_size": 64},
    "mamba2": BASE | {"state_size": 8, "num_heads": 8, "head_dim": 8, "n_groups": 2, "chunk_size": 8,
                      "time_step_limit": [0.02, 0.7]},
    "bamba": BASE | GROUPED | BAMBA | {"attn_layer_indices": [1]},
    "falcon_h1": BASE | GROUPED | BAMBA | {
        "mamba_d_ssm": 64, "lm_head_multiplier": 0.6, "embedding_multiplier": 1.7, "mlp_multipliers": [0.8, 1.3],
        "key_multiplier": 0.7, "attention_out_multiplier": 1.2, "attention_in_multiplier": 0.9,
        "ssm_multipliers": [0.7, 1.1, 0.9, 1.2, 0.8], "ssm_in_multiplier": 1.25, "ssm_out_multiplier": 0.85},
    "falcon_h1_norm": BASE | GROUPED | BAMBA | {
        "model_type": "falcon_h1", "mamba_d_ssm": 64, "mamba_rms_norm": True, "mamba_norm_before_gate": False,
        "tie_word_embeddings": True},
    "jamba": BASE | GROUPED | {"num_hidden_layers": 4, "attn_layer_period": 4, "attn_layer_offset": 2,
                               "num_experts": 4, "mamba_d_state": 4, "mamba_dt_rank": 3, "use_mamba_kernels": False},
    "lfm2": BASE | GROUPED | {"layer_types": ["conv", "full_attention", "conv"], "block_multiple_of": 8},
    "nemotron_h": BASE | GROUPED | {
        "layers_block_type": ["mamba", "mlp", "attention", "moe"], "num_hidden_layers": 4, "head_dim": 8,
        "ssm_state_size": 8, "mamba_num_heads": 8, "mamba_head_dim": 8, "n_groups": 2, "chunk_size": 8,
        "n_routed_experts": 8, "moe_intermediate_size": 12, "moe_shared_expert_intermediate_size": 20,
        "num_experts_per_tok": 2, "routed_scaling_factor": 1.7, "n_group": 4, "topk_group": 2, "time_step_min": 0.3},
    "recurrent_gemma": BASE | GROUPED | {"num_key_value_heads": 1, "attention_window_size": 6, "lru_width": 32,
                                         "logits_soft_cap": 3.0},
    "qwen2": BASE | GROUPED | {"tie_word_embeddings": True},
    "qwen3": BASE | GROUPED | {"head_dim": 16, "rope_parameters": {k: v for k, v in YARN.items() if k[:2] != "ms"}},
    "granitemoehybrid": BASE | GROUPED | BAMBA | {
        "layer_types": ["mamba", "attention", "mamba"], "embedding_multiplier": 6.0, "logits_scaling": 3.0,
        "residual_multiplier": 0.4, "attention_multiplier": 0.1, "num_local_experts": 4, "num_experts_per_tok": 2,
        "shared_intermediate_size": 24, "position_embedding_type": "rope", "tie_word_embeddings": True},
    "granite_dense": BASE | GROUPED | BAMBA | {
        "model_type": "granitemoehybrid", "layer_types": ["mamba", "attention", "mamba"], "num_local_experts": 0,
        "num_experts_per_tok": 0, "shared_intermediate_size": 40, "attention_multiplier": 0.3},
    "qwen3_next": BASE | GROUPED | {
        "num_hidden_layers": 4, "head_dim": 16, "linear_key_head_dim": 8, "linear_value_head_dim": 6,
        "linear_num_key_heads": 2, "linear_num_value_heads": 4, "moe_intermediate_size": 12,
        "shared_expert_intermediate_size": 20, "num_experts": 4, "num_experts_per_tok": 2, "mlp_only_layers": [1]},
    "rwkv": {k: v for k, v in BASE.items() if k not in ("max_position_embeddings", "pad_token_id")} | {
        "rescale_every": 2, "context_length": 64},
    "bitnet": BASE | GROUPED,
    "zamba": BASE | {"num_attention_heads": 4, "num_key_value_heads": 4, "num_hidden_layers": 6, "mamba_d_state": 4,
                     "layers_block_type": ["mamba", "hybrid", "mamba", "hybrid", "mamba", "mamba"]},
    "zamba2": BASE | {
        "num_attention_heads": 4, "num_key_value_heads": 4, "num_hidden_layers": 6, "mamba_d_state": 8,
        "mamba_ngroups": 2, "n_mamba_heads": 8, "chunk_size": 8, "num_mem_blocks": 2, "adapter_rank": 3,
        "use_shared_attention_adapter": True, "use_mem_rope": True, "time_step_min": 0.3,
        "layers_block_type": ["mamba", "hybrid", "hybrid", "mamba", "hybrid", "mamba"]},
    "zamba2_plain": BASE | {
        "model_type": "zamba2", "num_attention_heads": 4, "num_key_value_heads": 4, "mamba_d_state": 8,
        "n_mamba_heads": 8, "chunk_size": 8, "adapter_rank": 3,
        "layers_block_type": ["mamba", "hybrid", "hybrid"]},
    "minimax": BASE | GROUPED | {
        "num_hidden_layers": 4, "head_dim": 12, "num_local_experts": 4, "block_size": 5, "full_attn_alpha_factor": 1.5,
        "layer_types": ["linear_attention", "full_attention", "linear_attention", "linear_attention"],
        "full_attn_beta_factor": 0.8, "linear_attn_alpha_factor": 1.3, "linear_attn_beta_factor": 0.7,
        "mlp_alpha_factor": 1.2, "mlp_beta_factor": 0.9},
    "rwkv7": {
        "model_type": "rwkv7", "hidden_size": 32, "num_hidden_layers": 3, "vocab_size": Y, "head_dim": 8,
        "norm_eps": 1e-3, "decay_low_rank_dim": 5, "a_low_rank_dim": 4, "gate_low_rank_dim": 6, "v_low_rank_dim": 3,
        "intermediate_size": 48},
    "bert": BASE | {"num_attention_heads": 4, "max_position_embeddings": 32},
    "deepseek_v3": BASE | {
        "num_attention_heads": 4, "num_key_value_heads": 4, "first_k_dense_replace": 1, "moe_intermediate_size": 12,
        "n_routed_experts": 8, "num_experts_per_tok": 3, "n_group": 4, "topk_group": 2, "kv_lora_rank": 10,
        "q_lora_rank": 14, "qk_rope_head_dim": 4, "qk_nope_head_dim": 6, "v_head_dim": 5, "rope_parameters": YARN},
}  # fmt: skip

TABLES = ("slope_rate", "query_decay", "key_decay", "diagonal_decay")  # minimax's, which follow from its config
BY_HAND = ("rwkv7",)
ENCODERS = ("bert",)  # their vectors are compared; they have no state


def weight(name, shape):
    """The values of one tensor: uniform, at a size that fits what its name says, the same on every machine."""
    bits = np.random.PCG64(zlib.crc32(name.encode())).random_raw(int(np.prod(shape, dtype=int)))
    u = ((bits >> 11) * 2.0**-53 * 2 - 1).reshape(shape)  # in [-1, 1)
    if name.endswith("A_log"):
        x = 1 + u
    elif name.endswith(("time_decay", "time_first", "recurrent_param", "dt_bias", "dt_proj.bias")):
        x = 1.5 * u - 0.5
    elif "time_mix" in name:
        x = 0.5 + 0.5 * u
    elif len(shape) == 1:
        x = 0.3 * u + (1 if name.endswith("weight") else 0)
    else:
        x = u * 1.7 / max(shape[-1], 4) ** 0.5
    return x.astype(np.float32)


def ids():
    """The two rows that every model reads, [2, 13]; past a row's length they are 0."""
    bits = np.random.PCG64(7).random_raw(len(LENGTHS) * max(LENGTHS)).reshape(len(LENGTHS), -1)
    found = 3 + (bits >> 11) % (Y - 3)
    found[np.arange(max(LENGTHS)) >= np.array(LENGTHS)[:, None]] = 0
    return found.astype(np.int64)


def reference(name):
    """(config, {key: shape} in the published layout, logits by row, logits of the left-padded batch)."""
    if name in BY_HAND:
        config = CONFIGS[name]
        shapes = rwkv7_by_hand.shapes(config)
        tensors = {key: weight(key, shape).astype(np.float64) for key, shape in shapes.items()}
        rows = [rwkv7_by_hand.logits(config, tensors, ids()[i, :n]) for i, n in enumerate(LENGTHS)]
        return config, shapes, rows, rows
    import tempfile

    import torch
    from safetensors.torch import load_file, save_file
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

    torch.manual_seed(0)
    options = dict(CONFIGS[name])
    kind = AutoModel if name in ENCODERS else AutoModelForCausalLM
    model = kind.from_config(AutoConfig.for_model(options.pop("model_type", name), **options))
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        config = json.loads((Path(folder) / "config.json").read_text())
        path = Path(folder) / "model.safetensors"
        stored = load_file(path)
        shapes = {key: list(x.shape) for key, x in sorted(stored.items()) if not key.endswith(TABLES)}
        tensors = {key: torch.from_numpy(weight(key, shape)) for key, shape in shapes.items()}
        save_file(stored | tensors, path, metadata={"format": "pt"})
        model, about = kind.from_pretrained(folder, output_loading_info=True, dtype=torch.float32)
        assert not any(about[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), about
    model.eval()
    both, padded = torch.from_numpy(ids()), torch.zeros(len(LENGTHS), max(LENGTHS), dtype=torch.int64)
    with torch.no_grad():
        if name in ENCODERS:
            rows = [model(both[i : i + 1, :n]).last_hidden_state[0].numpy() for i, n in enumerate(LENGTHS)]
            return tidy(config), shapes, rows, rows
        rows = [model(both[i : i + 1, :n], use_cache=False).logits[0].float().numpy() for i, n in enumerate(LENGTHS)]
        for i, n in enumerate(LENGTHS):
            padded[i, -n:] = both[i, :n]
        mask = (torch.arange(max(LENGTHS)) >= max(LENGTHS) - torch.tensor(LENGTHS)[:, None]).long()
        left = model(padded, attention_mask=mask, use_cache=False).logits.float().numpy()
    return tidy(config), shapes, rows, [left[i, -n:] for i, n in enumerate(LENGTHS)]


def tidy(config):
    return {key: x for key, x in config.items() if key not in ("transformers_version", "architectures", "dtype")}


def made_by(name):
    """The version of transformers that gave the logits, or None."""
    if name in BY_HAND:
        return None
    import transformers

    return transformers.__version__


def main(names):
    FOLDER.mkdir(exist_ok=True)
    for name in names or CONFIGS:
        config, shapes, rows, left = reference(name)
        differ = max(np.abs(a - b).max() for a, b in zip(rows, left, strict=True))
        far = float(differ / max(np.abs(x).max() for x in rows))
        # Not for all: transformers itself reads the padding of some (mamba with a bias, recurrent_gemma, rwkv).
        about = {"transformers": made_by(name), "left_padded": far < 2e-4}
        about |= {"config": config, "shapes": shapes}
        (FOLDER / f"{name}.json").write_text(json.dumps(about) + "\n", encoding="utf8")
        np.savez_compressed(FOLDER / f"{name}.npz", **{f"row{i}": x.astype(np.float32) for i, x in enumerate(rows)})
        size = sum(map(np.prod, shapes.values()))
        print(f"{name}: {size:,} weights, left-padded rows off by {far:.1e} of the largest")


if __name__ == "__main__":
    main(sys.argv[1:])
