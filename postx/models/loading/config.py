"""config.json as it is read: what is missing, unknown or refused is said by name; what all architectures share."""

from postx.models.loading.rotary import rope

ACTIVATIONS = {"silu": "silu", "swish": "silu", "gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh", "relu2": "relu2"}


class Config(dict):
    """config.json as a dictionary that says what is missing: c("key") or c("key", default)."""

    def __call__(self, key, default=...):
        value = self.get(key)
        if value is None:
            if default is ...:
                raise ValueError(f"config.json: no {key!r}, which {self.get('model_type')} needs")
            return default
        return value

    def only(self, **known):
        """Raise ValueError where the file asks for something else than what is known here."""
        for key, value in known.items():
            if self(key, value) != value:
                raise ValueError(f"config.json: {key}={self[key]!r} is not supported, only {value!r}")

    @property
    def act(self):
        name = self("hidden_act", self("hidden_activation", self("mlp_hidden_act", "silu")))
        if name not in ACTIVATIONS:
            raise ValueError(f"config.json: activation {name!r} is not known; there are {', '.join(ACTIVATIONS)}")
        return ACTIVATIONS[name]

    @property
    def packing(self):
        """How the weights of the file are packed, or None."""
        about = self.get("quantization_config") or {}
        return about.get("quant_method") if isinstance(about, dict) else about

    @property
    def kinds(self):
        """What each layer is, or None: the file's list under either of its names."""
        return self.get("layers_block_type") or self.get("layer_types")

    def letters(self, kinds, **known):
        """The pattern of a list of layers, whose kinds stand for the letters of `known`. ValueError for others."""
        if strange := sorted(set(map(str, kinds)) - set(known)):
            raise ValueError(f"config.json: layers of kind {', '.join(strange)}; there are {', '.join(known)}")
        return "".join(known[kind] for kind in kinds)


def base(c, pattern, *, eps, tied=False, mlp=None, **more):
    """What all share. `options` without a place in the pattern are left out."""
    options = {key: o for key, o in more.pop("options").items() if key in pattern or key in (mlp or "F")}
    return {"pattern": pattern, "D": c("hidden_size"), "Y": c("vocab_size"), "mlp": mlp, "eps": eps,
            "tied": c("tie_word_embeddings", tied), "options": options, **more}  # fmt: skip


def heads(c, share=1.0, **more):
    """Options of softmax attention; share: of the channels that turn where the file does not say."""
    H = c("num_attention_heads")
    K = c("head_dim", c("hidden_size") // H)
    turn, sharper = rope(c, K, share)
    scale = {"scale": K**-0.5 * sharper} if sharper != 1 else {}
    return {"H": H, "G": c("num_key_value_heads", H), "K": K, "rope": turn,
            "bias": c("attention_bias", False), "out_bias": c("attention_bias", False), **scale, **more}  # fmt: skip


def dense(c, **more):
    return {"F": c("intermediate_size"), "activation": c.act, "bias": c("mlp_bias", False), **more}
