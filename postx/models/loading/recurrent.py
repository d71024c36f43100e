"""What `config.json` says of models without attention: the functions of configs.py for Mamba and RWKV."""

import math

from postx.models.loading.config import Config, base


def mamba(c, **more):
    D = c("hidden_size")
    rank = c("time_step_rank", "auto")
    options = {"N": c("state_size", 16), "inner": c("intermediate_size", c("expand", 2) * D),
               "rank": math.ceil(D / 16) if rank == "auto" else rank, "conv_size": c("conv_kernel", 4),
               "bias": c("use_bias", False), **more}  # fmt: skip
    c.only(hidden_act="silu")
    return base(c, "M" * c("num_hidden_layers"), eps=c("layer_norm_epsilon", 1e-5), tied=True, options={"M": options})


def falcon_mamba(c):
    return mamba(c, norms="plain", norm_eps=c("mixer_rms_eps", 1e-6))


def limit(c, least=0.0):
    """(least, most) of a step; infinity is a string in some files, and a dictionary in others."""
    low, high = c("time_step_limit", (least, math.inf))
    return float(low), math.inf if isinstance(high, dict) else float(high)


def mamba2(c):
    c.only(hidden_act="silu")
    options = {"K": c("state_size", 128), "V": c("head_dim", 64), "G": c("n_groups", 8),
               "conv_size": c("conv_kernel", 4), "inner": c("expand", 2) * c("hidden_size"), "dt_limit": limit(c),
               "bias": c("use_bias", False), "eps": c("layer_norm_epsilon", 1e-5)}  # fmt: skip
    return base(c, "S" * c("num_hidden_layers"), eps=c("layer_norm_epsilon", 1e-5), options={"S": options})


def rwkv(c):
    D = c("hidden_size")
    c.only(attention_hidden_size=D)
    options = {"V": {"F": c("intermediate_size", 4 * D), "gate": True}}
    return base(c, "4" * c("num_hidden_layers"), eps=c("layer_norm_epsilon", 1e-5), mlp="V", options=options,
                norm="layer", embed_norm=True)  # fmt: skip


def rwkv7(c):
    """As flash-linear-attention publishes it: transformers has no RWKV-7."""
    c = Config({"head_dim": 64} | c)
    D, eps = c("hidden_size"), c("norm_eps", 1e-5)
    c.only(attn=None, norm_first=True, norm_bias=True, hidden_act="sqrelu")
    K = c["head_dim"] or D // c("num_heads")
    if set(c("value_dim", None) or [D]) != {D}:
        raise ValueError(f"config.json: value_dim={c['value_dim']!r} is not supported, only {D} in each layer")

    def rank(name, size):
        wider = 1 if name == "gate" else K / 64
        return c(f"{name}_low_rank_dim", None) or max(32, round(size * D**0.5 * wider / 32) * 32)

    options = {
        "7": {"H": D // K, "ranks": (rank("decay", 2.5), rank("a", 2.5), rank("gate", 5)), "value_rank": rank("v", 1.7),
              "eps": K * eps},
        "V": {"F": c("intermediate_size", None) or -(-int(D * c("hidden_ratio", 4)) // 32) * 32},
    }  # fmt: skip
    return base(c, "7" * c("num_hidden_layers"), eps=eps, mlp="V", options=options, norm="layer", embed_norm=True)
