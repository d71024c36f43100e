"""What `config.json` says, as keyword arguments of `LM` or `Encoder`: one function for each `model_type`.

Defaults are those of transformers' configuration classes, for keys that a published file leaves out. What a file asks
for and this package does not have is refused by name (`Config.only`).
"""

import math

from postx.models.loading.config import Config, base, dense, heads
from postx.models.loading.recurrent import falcon_mamba, limit, mamba, mamba2, rwkv, rwkv7  # noqa: F401, found by name
from postx.models.loading.rotary import magnitude, rope


def llama(c):
    return base(c, "A" * c("num_hidden_layers"), eps=c("rms_norm_eps", 1e-6),
                options={"A": heads(c), "F": dense(c)})  # fmt: skip


def mistral(c):
    options = {"A": heads(c, window=c("sliding_window", None)), "F": dense(c)}
    return base(c, "A" * c("num_hidden_layers"), eps=c("rms_norm_eps", 1e-6), options=options)


def qwen2(c):
    c.only(use_sliding_window=False)
    return base(c, "A" * c("num_hidden_layers"), eps=c("rms_norm_eps", 1e-6),
                options={"A": heads(c) | {"bias": True}, "F": dense(c)})  # fmt: skip


def qwen3(c):
    c = Config({"head_dim": 128} | c)
    c.only(use_sliding_window=False)
    eps = c("rms_norm_eps", 1e-6)
    options = {"A": heads(c, qk_norm=True, qk_eps=eps), "F": dense(c)}
    return base(c, "A" * c("num_hidden_layers"), eps=eps, options=options)


def bitnet(c):
    eps = c("rms_norm_eps", 1e-5)
    options = {"A": heads(c, sub_norm=eps), "F": dense(Config({"hidden_act": "relu2"} | c), sub_norm=eps)}
    return base(c, "A" * c("num_hidden_layers"), eps=eps, options=options)


def ssd(c, **more):
    """Mamba-2 layers in the words of Bamba, Falcon-H1 and Granite."""
    inner = c("mamba_d_ssm", c("mamba_expand", 2) * c("hidden_size"))
    V = c("mamba_d_head", "auto")
    return {"K": c("mamba_d_state", 256), "V": inner // c("mamba_n_heads", 128) if V == "auto" else V,
            "G": c("mamba_n_groups", 1), "conv_size": c("mamba_d_conv", 4), "inner": inner, "dt_limit": limit(c),
            "bias": c("mamba_proj_bias", False), "eps": c("rms_norm_eps", 1e-5), **more}  # fmt: skip


def bamba(c):
    attends = c("attn_layer_indices", [])
    pattern = "".join("A" if i in attends else "S" for i in range(c("num_hidden_layers")))
    options = {"A": heads(c, share=0.5), "S": ssd(c), "F": dense(c)}
    return base(c, pattern, eps=c("rms_norm_eps", 1e-5), mlp="F", options=options)


def falcon_h1(c):
    c.only(projectors_bias=c("mamba_proj_bias", False))
    own = ssd(c, norm=c("mamba_rms_norm", False), gate_last=c("mamba_norm_before_gate", True))
    options = {"A": heads(c), "S": own, "F": dense(c)}
    return base(c, "(AS)" * c("num_hidden_layers"), eps=c("rms_norm_eps", 1e-5), mlp="F", options=options,
                embed_scale=c("embedding_multiplier", 1.0), logit_scale=c("lm_head_multiplier", 1.0))  # fmt: skip


def jamba(c):
    L, eps, D = range(c("num_hidden_layers")), c("rms_norm_eps", 1e-6), c("hidden_size")
    period, offset = c("attn_layer_period", 8), c("attn_layer_offset", 4)
    experts, every, first = c("num_experts", 16), c("expert_layer_period", 2), c("expert_layer_offset", 1)
    rank = c("mamba_dt_rank", "auto")
    options = {
        "A": heads(c, rope=None),
        "M": {"N": c("mamba_d_state", 16), "inner": c("mamba_expand", 2) * D, "conv_size": c("mamba_d_conv", 4),
              "rank": math.ceil(D / 16) if rank == "auto" else rank, "bias": c("mamba_proj_bias", False),
              "norms": True, "norm_eps": eps},
        "F": dense(c),
        "E": {"F": c("intermediate_size"), "E": experts, "k": c("num_experts_per_tok", 2), "renormalise": False,
              "activation": c.act},
    }  # fmt: skip
    return base(c, "".join("A" if i % period == offset else "M" for i in L), eps=eps, options=options,
                mlp="".join("E" if experts > 1 and i % every == first else "F" for i in L))  # fmt: skip


def zamba(c):
    c.only(hidden_act="gelu", hidden_mamba_act="silu")
    L, D, H = c("num_hidden_layers"), c("hidden_size"), c("num_attention_heads")
    period, offset = c("attn_layer_period", 6), c("attn_layer_offset", 4)
    shares = c.kinds or ["mamba", "mamba", "hybrid"] + [
        "hybrid" if i % period == offset else "mamba" for i in range(L - 3)]  # fmt: skip
    K, rank = c("attention_head_dim", 2 * D // H), c("mamba_dt_rank", "auto")
    options = {
        "Z": {"H": H, "G": c("num_key_value_heads", H), "K": K, "F": c("intermediate_size"), "next_only": True,
              "scale": (K / 2) ** -0.5},
        "M": {"N": c("mamba_d_state", 16), "inner": c("mamba_expand", 2) * D, "conv_size": c("mamba_d_conv", 4),
              "rank": math.ceil(D / 16) if rank == "auto" else rank, "bias": c("mamba_proj_bias", False),
              "heads": c("n_mamba_heads", 2)},
    }  # fmt: skip
    pattern = c.letters(shares, mamba="M", linear_attention="M", hybrid="ZM")
    return base(c, pattern, eps=c("rms_norm_eps", 1e-5), tied=True, options=options, mlp="-")


def zamba2(c):
    c.only(hidden_act="gelu", add_bias_linear=False)
    L, D, H = c("num_hidden_layers"), c("hidden_size"), c("num_attention_heads", 32)
    shares = c.kinds or (["mamba"] + (["mamba"] * 5 + ["hybrid"]) * 7 + ["mamba"] * 4 + ["hybrid"]
                         + ["mamba"] * 3 + ["hybrid"] + ["mamba"] * 2)  # fmt: skip
    if len(shares) != L:
        raise ValueError(f"config.json: num_hidden_layers={L}, but {len(shares)} layers are listed")
    K, inner = 2 * D // H, int(c("mamba_expand", 2) * D)
    options = {
        "Z": {"H": H, "G": c("num_key_value_heads", H), "K": K, "F": c("intermediate_size", 4 * D), "next_only": True,
              "scale": (K / 2) ** -0.5, "rope": rope(c, K)[0] if c("use_mem_rope", False) else None,
              "blocks": c("num_mem_blocks", 1), "rank": c("adapter_rank", 128),
              "adapt_attention": c("use_shared_attention_adapter", False)},
        "S": {"K": c("mamba_d_state", 64), "V": inner // c("n_mamba_heads", 8), "G": c("mamba_ngroups", 1),
              "conv_size": c("mamba_d_conv", 4), "inner": inner, "dt_limit": (c("time_step_min", 0.001), math.inf),
              "eps": 1e-5},
    }  # fmt: skip
    pattern = c.letters(shares, mamba="S", linear_attention="S", hybrid="ZS")
    return base(c, pattern, eps=c("rms_norm_eps", 1e-5), tied=True, options=options, mlp="-")


def lfm2(c):
    c.only(conv_bias=False)
    L, eps = range(c("num_hidden_layers")), c("norm_eps", 1e-5)
    kinds = c.kinds or ["full_attention" if i in c("full_attn_idxs", list(L)) else "conv" for i in L]
    F = c("block_ff_dim", None) or c("intermediate_size")
    if c("block_auto_adjust_ff_dim", True):
        F = int(c("block_ffn_dim_multiplier", 1.0) * int(2 * F / 3))
        F = -(-F // c("block_multiple_of", 256)) * c("block_multiple_of", 256)
    options = {"A": heads(c, qk_norm=True, qk_eps=eps), "C": {"conv_size": c("conv_L_cache", 3)}, "F": {"F": F}}
    return base(c, c.letters(kinds, conv="C", full_attention="A"), eps=eps, options=options, mlp="F",
                tied=c("tie_embedding", True))  # fmt: skip


def nemotron_h(c):
    c = Config({"head_dim": 128} | c)
    c.only(moe_latent_size=None, attention_bias=False, mlp_bias=False)
    words = {"linear_attention": "S", "mamba": "S", "full_attention": "A", "attention": "A", "mlp": "F", "moe": "E"}
    pattern = (c.letters(c("hybrid_override_pattern"), **{"M": "S", "*": "A", "-": "F", "E": "E"}) if c.kinds is None
               else c.letters(c.kinds, **words))  # fmt: skip
    eps, shared = c("layer_norm_epsilon", c("rms_norm_eps", 1e-5)), c("moe_shared_expert_intermediate_size", 0)
    options = {
        "A": heads(c, rope=None),
        "S": {"K": c("ssm_state_size", 128), "V": c("mamba_head_dim", 64), "G": c("n_groups", 8), "eps": eps,
              "conv_size": c("conv_kernel", 4), "inner": c("mamba_num_heads") * c("mamba_head_dim", 64),
              "dt_limit": (c("time_step_min", 0.001), math.inf), "bias": c("use_bias", False)},
        "F": {"F": c("intermediate_size", None), "activation": c("mlp_hidden_act", "relu2"), "gated": False},
        "E": routed(c) | {"F": c("moe_intermediate_size", 1), "shared": shared, "gated": False,
                          "activation": c("mlp_hidden_act", "relu2")},
    }  # fmt: skip
    return base(c, pattern, eps=eps, mlp="-", options=options)


def routed(c):
    """The sigmoid router of DeepSeek-V3."""
    groups = c("n_group", 1), c("topk_group", 1)
    return {"E": c("n_routed_experts", 1), "k": min(c("num_experts_per_tok", 1), c("n_routed_experts", 1)),
            "sigmoid": True, "groups": None if groups == (1, 1) else groups, "scale": c("routed_scaling_factor", 1.0),
            "renormalise": c("norm_topk_prob", True)}  # fmt: skip


def deepseek_v3(c):
    c.only(attention_bias=False)
    L, dense_ = c("num_hidden_layers"), c("first_k_dense_replace", 3)
    nope, rotary = c("qk_nope_head_dim", 128), c("qk_rope_head_dim", 64)
    turn, sharper = rope(c, rotary, pairing="interleaved" if c("rope_interleave", True) else "half")
    if abs(sharper - 1) > 1e-9:
        raise ValueError("config.json: rope_scaling with mscale other than mscale_all_dim is not supported")
    stretch = dict(c.get("rope_scaling") or {}) | dict(c.get("rope_parameters") or {})
    more = magnitude(stretch.get("factor", 1), stretch.get("mscale_all_dim") or 0) ** 2
    options = {
        "K": {"H": c("num_attention_heads"), "R": c("kv_lora_rank", 512), "Rq": c("q_lora_rank"), "nope": nope,
              "rotary": rotary, "V": c("v_head_dim", 128), "rope": turn, "scale": (nope + rotary) ** -0.5 * more},
        "F": dense(c),
        "E": routed(c) | {"F": c("moe_intermediate_size"), "activation": c.act,
                          "shared": c("moe_intermediate_size") * c("n_shared_experts", 1)},
    }  # fmt: skip
    return base(c, "K" * L, eps=c("rms_norm_eps", 1e-6), mlp="F" * dense_ + "E" * (L - dense_), options=options)


def recurrent_gemma(c):
    L, D, H = c("num_hidden_layers"), c("hidden_size"), c("num_attention_heads")
    kinds = (list(c("block_types", c.get("_block_types") or ["recurrent", "recurrent", "attention"])) * L)[:L]
    attention = heads(c, share=0.5, window=c("attention_window_size", 2048)) | {"out_bias": True}
    options = {"A": attention, "R": {"width": c("lru_width", D), "H": H, "conv_size": c("conv1d_width", 4)},
               "F": {"F": c("intermediate_size") // 2, "bias": True,
                     "activation": Config({"hidden_activation": "gelu_pytorch_tanh"} | c).act}}  # fmt: skip
    return base(c, c.letters(kinds, attention="A", recurrent="R"), eps=c("rms_norm_eps", 1e-6),
                tied=True, options=options, softcap=c("logits_soft_cap", 30.0),
                embed_scale=bfloat16(D**0.5))  # fmt: skip


def bfloat16(x):
    """x as Gemma's code rounds its scale of the embedding: to 8 bits of significand."""
    fraction, exponent = math.frexp(x)
    return math.ldexp(round(fraction * 256) / 256, exponent)


def granitemoehybrid(c):
    kinds = c.kinds or c("layer_types")
    experts, shared, eps = c("num_local_experts", 8), c("shared_intermediate_size", 1024), c("rms_norm_eps", 1e-6)
    attention = heads(c, scale=c("attention_multiplier", 1.0))
    if c("position_embedding_type", None) != "rope":
        attention["rope"] = None
    options = {
        "A": attention, "S": ssd(c, eps=eps), "F": {"F": shared, "activation": c.act},
        "E": {"F": c("intermediate_size"), "E": experts, "k": c("num_experts_per_tok", 2), "shared": shared,
              "activation": c.act},
    }  # fmt: skip
    pattern = c.letters(kinds, mamba="S", linear_attention="S", attention="A", full_attention="A")
    return base(c, pattern, eps=eps, mlp="E" if experts else "F", options=options,
                embed_scale=c("embedding_multiplier", 1.0), logit_scale=1 / c("logits_scaling", 1.0))  # fmt: skip


def qwen3_next(c):
    c = Config({"head_dim": 256} | c)
    L, eps = range(c("num_hidden_layers")), c("rms_norm_eps", 1e-6)
    every, step, plain = c("full_attention_interval", 4), c("decoder_sparse_step", 1), c("mlp_only_layers", [])
    kinds = c.kinds or ["linear_attention" if (i + 1) % every else "full_attention" for i in L]
    experts = c("num_experts", 512)
    options = {
        "A": heads(c, share=0.25, qk_norm=True, qk_eps=eps, gate=True),
        "G": {"H": c("linear_num_value_heads", 32), "G": c("linear_num_key_heads", 16), "eps": eps,
              "K": c("linear_key_head_dim", 128), "V": c("linear_value_head_dim", 128),
              "conv_size": c("linear_conv_kernel_dim", 4)},
        "F": dense(c),
        "E": {"F": c("moe_intermediate_size", 512), "E": experts, "k": c("num_experts_per_tok", 10),
              "renormalise": c("norm_topk_prob", True), "shared": c("shared_expert_intermediate_size", 512),
              "shared_gate": True, "activation": c.act},
    }  # fmt: skip
    sparse = [experts > 0 and i not in plain and (i + 1) % step == 0 for i in L]
    return base(c, c.letters(kinds, linear_attention="G", full_attention="A"), eps=eps, options=options,
                mlp="".join("E" if s else "F" for s in sparse))  # fmt: skip


def minimax(c):
    c = Config({"rope_theta": 1e6} | c)
    c.only(hidden_act="silu", sliding_window=None)
    H = c("num_attention_heads")
    kinds = c.kinds or ["linear_attention" if i % 2 else "full_attention" for i in range(c("num_hidden_layers"))]
    options = {
        "A": heads(c), "T": {"H": H, "K": c("head_dim", c("hidden_size") // H), "lightning": True},
        "E": {"F": c("intermediate_size"), "E": c("num_local_experts", c("num_experts", 8)),
              "k": c("num_experts_per_tok", 2)},
    }  # fmt: skip
    carried = {"A": "full_attn", "T": "linear_attn", "E": "mlp"}
    carried = {key: c(f"{name}_alpha_factor", 1) for key, name in carried.items()}
    return base(c, c.letters(kinds, full_attention="A", linear_attention="T"), eps=c("rms_norm_eps", 1e-5), mlp="E",
                options=options, carried=carried)  # fmt: skip


def bert(c):
    c.only(position_embedding_type="absolute")
    return {"network": "Encoder", "D": c("hidden_size"), "L": c("num_hidden_layers"), "Y": c("vocab_size"),
            "H": c("num_attention_heads"), "F": c("intermediate_size"), "size": c("max_position_embeddings", 512),
            "kinds": c("type_vocab_size", 2), "activation": Config({"hidden_act": "gelu"} | c).act,
            "eps": c("layer_norm_eps", 1e-12)}  # fmt: skip
