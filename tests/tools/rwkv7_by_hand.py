"""RWKV-7 from the equations of its paper, in numpy and float64, one token after the other: what the loader is held to.

Peng et al. 2025, arXiv 2503.14456, sec. 4, on weights under the names of the published files (flash-linear-attention).
Vectors are rows, S is [V, K] as in the paper; nothing of postx is used.
"""

import numpy as np

BLENDS = "rwkvag"  # receptance, decay (w), key, value, in-context learning rate (a), gate


def shapes(c):
    """{name: shape} of a file."""
    D, L, F, K, Y = (c[k] for k in ("hidden_size", "num_hidden_layers", "intermediate_size", "head_dim", "vocab_size"))
    found = {"model.embeddings.weight": [Y, D], "lm_head.weight": [Y, D]}
    norms = ["model.norm", "model.layers.0.pre_norm"]
    for i in range(L):
        layer = f"model.layers.{i}."
        norms += [layer + name for name in ("attn_norm", "ffn_norm", "attn.g_norm")]
        found |= {f"{layer}attn.x_{x}": [1, 1, D] for x in BLENDS}
        found |= {f"{layer}attn.{x}_proj.weight": [D, D] for x in "rkvo"}
        found |= {f"{layer}attn.k_k": [D], f"{layer}attn.k_a": [D], f"{layer}attn.r_k": [D // K, K]}
        for x, name in zip("wagv"[: 4 if i else 3], ("decay", "a", "gate", "v"), strict=False):
            rank = c[f"{name}_low_rank_dim"]
            thin = f"{layer}attn.{x}_lora.lora."
            found |= {f"{thin}0.weight": [rank, D], f"{thin}2.weight": [D, rank]}
            found |= {} if x == "g" else {f"{thin}2.bias": [D]}
        found |= {f"{layer}ffn.x_k": [D], f"{layer}ffn.key.weight": [F, D], f"{layer}ffn.value.weight": [D, F]}
    found |= {f"{norm}.{part}": [D] for norm in norms for part in ("weight", "bias")}
    return dict(sorted(found.items()))


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def normed(x, w, name, eps, groups=1):
    parts = x.reshape(groups, -1)
    parts = (parts - parts.mean(1, keepdims=True)) / np.sqrt(parts.var(1, keepdims=True) + eps)
    return parts.ravel() * w[f"{name}.weight"] + w[f"{name}.bias"]


def logits(c, w, ids):
    """[T, Y] of a row of ids."""
    L, eps, K = c["num_hidden_layers"], c["norm_eps"], c["head_dim"]
    D = c["hidden_size"]
    H = D // K
    S = np.zeros((L, H, K, K))
    last = np.zeros((L, 2, D))  # the normed inputs of the token before: time mixing, channel mixing
    out = []
    for token in ids:
        x = normed(w["model.embeddings.weight"][token], w, "model.layers.0.pre_norm", eps)
        first = None
        for i in range(L):
            layer = f"model.layers.{i}."
            seen = normed(x, w, f"{layer}attn_norm", eps)
            y, first = time_mix(c, w, f"{layer}attn.", seen, last[i, 0], S[i], first)
            last[i, 0], x = seen, x + y
            seen = normed(x, w, f"{layer}ffn_norm", eps)
            blend = seen + (last[i, 1] - seen) * w[f"{layer}ffn.x_k"]
            last[i, 1] = seen
            x = x + w[f"{layer}ffn.value.weight"] @ np.maximum(w[f"{layer}ffn.key.weight"] @ blend, 0) ** 2
        out.append(w["lm_head.weight"] @ normed(x, w, "model.norm", eps))
    return np.stack(out)


def time_mix(c, w, at, x, before, S, first):
    """(what is added to the stream, the first layer's value); S [H, V, K] is written into."""
    H, K = S.shape[:2]
    seen = {name: x + (before - x) * w[f"{at}x_{name}"].ravel() for name in BLENDS}

    def thin(name, bend=lambda x: x):
        up = w[f"{at}{name}_lora.lora.2.weight"] @ bend(w[f"{at}{name}_lora.lora.0.weight"] @ seen[name])
        return up + w.get(f"{at}{name}_lora.lora.2.bias", 0)

    r, k, v = (w[f"{at}{name}_proj.weight"] @ seen[name] for name in "rkv")
    decay = np.exp(-np.exp(-0.5) * sigmoid(thin("w", np.tanh)))
    a, gate = sigmoid(thin("a")), thin("g", sigmoid)
    v, first = (v, v) if first is None else (v + (first - v) * sigmoid(thin("v")), first)
    removal, k = k * w[f"{at}k_k"], k * (1 + (a - 1) * w[f"{at}k_a"])
    read, bonus = [], []
    for h in range(H):
        own = slice(h * K, h * K + K)
        kk = removal[own] / np.linalg.norm(removal[own])
        S[h] = S[h] @ (np.diag(decay[own]) - np.outer(kk, a[own] * kk)) + np.outer(v[own], k[own])
        read.append(S[h] @ r[own])
        bonus.append(r[own] @ (w[f"{at}r_k"][h] * k[own]) * v[own])
    y = normed(np.concatenate(read), w, f"{at}g_norm", K * c["norm_eps"], H) + np.concatenate(bonus)
    return w[f"{at}o_proj.weight"] @ (gate * y), first
