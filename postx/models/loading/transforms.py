"""What is done to a published tensor on its way into a module, by the names that names.toml uses.

how(c, key, *tensors) -> tensor: c is the `Config`, and says c("layer") within one; key is our name of the tensor within
its part ("q.weight").
"""

import torch


def taps(c, key, x):
    """Taps of a depthwise convolution, [D, 1, W] in torch's layer, without the axis of one."""
    return x.squeeze(1)


def one_more(c, key, x):
    """The weight of a norm that is stored less 1."""
    return 1 + x.float()


def rest_of_one(c, key, x):
    return (1 - x.float()).flatten()


def rows(c, key, *x):
    return torch.stack([part.flatten() for part in x])


def six_rows(c, key, *x):
    """RWKV-7's six blends, one tensor each, or in older files all in one."""
    if len(x) not in (1, 6):
        raise ValueError(f"the weights do not fit: expected attn.x_r, x_w, x_k, x_v, x_a and x_g, or x_x, got {len(x)}")
    return x[0].reshape(6, -1) if len(x) == 1 else rows(c, key, *x)


def side_by_side(c, key, *x):
    return torch.cat(x, -1)


def first_half(c, key, x):
    return x.chunk(2, -2)[0]


def second_half(c, key, x):
    return x.chunk(2, -2)[1]


def experts(c, key, *x):
    """One matrix [out, in] of each expert, as [E, in, out]."""
    return torch.stack(x).mT


def experts_first_half(c, key, x):
    return first_half(c, key, x).mT


def experts_second_half(c, key, x):
    return second_half(c, key, x).mT


def residual(c, key, x):
    return x * c("residual_multiplier", 1.0)


def experts_residual(c, key, x):
    return residual(c, key, x).mT


def attention_in(c, key, x):
    return x * c("attention_in_multiplier", 1.0) if key.endswith("weight") else x


def attention_key(c, key, x):
    return attention_in(c, key, x) * c("key_multiplier", 1.0)


def attention_out(c, key, x):
    return x * c("attention_out_multiplier", 1.0)


def ssm_in(c, key, x):
    """Falcon-H1's five multipliers on what the input projection gives (gate, x, write, read, step), and one on x."""
    inner = c("mamba_d_ssm", c("mamba_expand", 2) * c("hidden_size"))
    K = c("mamba_n_groups", 1) * c("mamba_d_state", 256)
    sizes = torch.tensor([inner, inner, K, K, c("mamba_n_heads", 128)])
    each = torch.tensor(c("ssm_multipliers", [1.0] * 5)).repeat_interleave(sizes).to(x.device)
    return x * each[:, None] * c("ssm_in_multiplier", 1.0) if key.endswith("weight") else x * each


def ssm_out(c, key, x):
    return x * c("ssm_out_multiplier", 1.0)


def mlp_gate(c, key, x):
    return x * c("mlp_multipliers", [1.0, 1.0])[0]


def mlp_down(c, key, x):
    return x * c("mlp_multipliers", [1.0, 1.0])[1]


def query_of_both(c, key, x):
    """Query and gate stand side by side, head by head."""
    return x.unflatten(0, (c("num_attention_heads"), 2, -1))[:, 0].flatten(0, 1)


def gate_of_both(c, key, x):
    return x.unflatten(0, (c("num_attention_heads"), 2, -1))[:, 1].flatten(0, 1)


def qkvz(c, key, x):
    """Qwen3-Next's q, k, v and gate: the heads of a group together, group after group."""
    G, H = c("linear_num_key_heads", 16), c("linear_num_value_heads", 32)
    K, V = c("linear_key_head_dim", 128), c("linear_value_head_dim", 128)
    parts = x.unflatten(0, (G, -1)).split([K, K, H // G * V, H // G * V], 1)
    return parts[["q", "k", "v", "gate"].index(key.partition(".")[0])].flatten(0, 1)


def ba(c, key, x):
    """Likewise beta and the rate, one number a value head each."""
    parts = x.unflatten(0, (c("linear_num_key_heads", 16), 2, -1))
    return parts[:, ["beta", "rate"].index(key.partition(".")[0])].flatten(0, 1)


def heads_in_rows(c, key, x):
    return x.flatten(0, 1)


def every_other(c, key, x):
    """Channel and gate in turns, as all channels and then all gates."""
    return x.unflatten(0, (-1, 2)).transpose(0, 1).flatten(0, 1)


def third(c, key, x):
    """MiniMax's q, k and v: side by side, head by head."""
    return x.unflatten(0, (c("num_attention_heads"), 3, -1))[:, "qkv".index(key[0])].flatten(0, 1)


def log_decays(c, key, slope=None):
    """g_H of MiniMax's lightning attention, from slopes as ALiBi's, smaller in later layers; some files hold them."""
    if slope is not None:
        return -slope.flatten()
    H, L = c("num_attention_heads"), c("num_hidden_layers")
    share = 1 - c("layer") / (L - 1 + 1e-5) + 1e-5
    return -share * 2.0 ** (-8 / H * torch.arange(1, H + 1))


def full_beta(c, key, x):
    return x * c("full_attn_beta_factor", 1.0)


def linear_beta(c, key, x):
    return x * c("linear_attn_beta_factor", 1.0)


def experts_beta(c, key, *x):
    return experts(c, key, *x) * c("mlp_beta_factor", 1.0)


def _latent(c, x):
    H = c("num_attention_heads")
    return x.unflatten(0, (H, -1)).split([c("qk_nope_head_dim", 128), c("v_head_dim", 128)], 1)


def keys_of_latent(c, key, x):
    return _latent(c, x)[0]


def values_of_latent(c, key, x):
    return _latent(c, x)[1]


def trits(c, key, x, scale=None):
    """BitNet's weights: as they are, or four rows in a byte, two bits each (0, 1, 2 for -1, 0, 1), times `scale`.

    The scale multiplies in files of the newer linear class and divides in those of the older, as transformers reads
    them.
    """
    if x.dtype != torch.uint8:
        return x if scale is None else x * scale
    about = c.get("quantization_config") or {}
    codes = torch.cat([(x >> shift) & 3 for shift in (0, 2, 4, 6)])
    scale = 1 if scale is None else scale.float()
    return (codes.float() - 1) * (scale if about.get("linear_class") == "autobitlinear" else 1 / scale)


HOW = {name: f for name, f in globals().items() if callable(f) and not name.startswith("_")}
