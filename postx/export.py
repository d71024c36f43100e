"""What a page runs: a kept model in fewer bits as a packed file, its manifest, and a script that carries both.

    write("hybrid", 4, folder)         hybrid_4.safetensors and hybrid_4.json, in format 1 of `postx.models.packed`
    script(folder / "hybrid_4")        weights_hybrid_4.js: the two as one call, postx.take("hybrid_4", {...}, "BASE64")

A page that was opened from disk may load scripts and nothing else, so the weights come as one. Linear layers of the
blocks are rounded to the nearest of 2^bits levels, each row with the range that has the least squared error (`RANGE`,
the method "nearest" of the chapter on fewer bits), and experts like them; embedding, norms, routers, taps and the few
numbers of a mixer stay in bf16.
The manifest says what the page computes, block by block, as the modules themselves have it.
"""

import base64
import json
from pathlib import Path

import torch
from torch.nn.functional import silu

from postx.mixers import attention, gated_deltanet, rwkv7, ssd
from postx.models import checkpoints, experts, quantized
from postx.models.denoiser import Denoiser
from postx.models.nn import MLP, MoE, RMSNorm
from postx.parts.rope import Rope
from postx.quant import uniform
from postx.text import packages_slice

RANGE = {"grid": "midrise", "clip": "search"}
BITS = (4, 3, 2)  # and the width that a model is kept in
SCRIPT = "weights_{}.js"


def describe(lm):
    """The sizes that a program needs to compute the model: D, Y, eps, network, and for each block its mixer and MLP.

    Raises ValueError for a part that the page has no code for, naming the block.
    """
    both_ways = isinstance(lm, Denoiser)
    if lm.head is not None or not isinstance(lm.norm, RMSNorm) or getattr(lm, "embed_norm", None) is not None:
        raise ValueError("lm: the page computes models with a tied head and RMS norms only")
    if not both_ways and (lm.embed_scale != 1 or lm.logit_scale != 1 or lm.softcap is not None):
        raise ValueError("lm: the page neither scales embedding and logits nor bends them")
    blocks = []
    for i, block in enumerate(lm.blocks):
        if len(block.mix) != 1 or not isinstance(block.mlp, MLP | MoE):
            raise ValueError(f"lm: block {i} is not one mixer and an MLP or experts, all that the page computes")
        blocks.append(_mixer(i, block.mix[0], both_ways) | _mlp(i, block.mlp))
    Y, D = lm.embed.weight.shape
    return {"network": "denoiser" if both_ways else "lm", "D": D, "Y": Y, "eps": lm.norm.eps, "blocks": blocks}


def write(name, bits, folder, from_=checkpoints.FOLDER, ids_BT=None, **measured):
    """Write one model as NAME_BITS.safetensors and NAME_BITS.json; returns the path without its ending.

    bits: 4, 3, 2, or the `width` that it is kept in, which stays as it is: 16, or 8 where rows are kept so; None for
    a ternary model: NAME_trits. measured: what else the manifest says, such as the bits a byte that were lost. from_:
    the folder of the kept model. ids_BT: a text to calibrate on; layers are then rounded by GPTQ on the same grid.
    Raises ValueError for other bits, and as `describe` and `checkpoints.load` do.
    """
    lm, kept = checkpoints.load(name, from_), checkpoints.packed(name, from_)
    as_kept = width(name, from_)
    allowed = (None,) if as_kept is None else (as_kept, *BITS)
    if bits not in allowed:
        raise ValueError(f"bits: {name} is written in {' or '.join(map(str, allowed))}, got {bits!r}")
    if bits in BITS and ids_BT is not None:
        kept = quantized.quantized(lm, "gptq", bits, ids_BT, judged=1, **RANGE)[1].stored
    elif bits in BITS:
        kept = {layer: uniform.quantize(part.weight, bits, **RANGE) for layer, part in quantized.linears(lm).items()}
        kept |= {name: experts.quantize(W_EIO, bits, **RANGE) for name, W_EIO in experts.tables(lm).items()}
    weights = sum(p.numel() for p in lm.parameters())
    told = {"of": name, "bits": bits, "weights": weights, **describe(lm), **measured}
    path = checkpoints.save(f"{name}_{bits or 'trits'}", lm, checkpoints.record(name, from_)["config"],
                            {"page": told}, folder, packed=kept)  # fmt: skip
    return path.with_suffix("")


def width(name, from_=checkpoints.FOLDER):
    """Bits a weight of the linear layers of a kept model: 16, 8 where its rows are packed so, None for trits."""
    packed = checkpoints.packed(name, from_).values()
    return max(q.how.get("bits", 0) for q in packed) or None if packed else 16


def calibration(rows=2, T=2048):
    """Text that GPTQ's repairs are made for, ids_BT: even stretches of the packages' validation slice."""
    text = packages_slice().validation
    at = [i * (len(text) - T) // rows for i in range(rows)]
    return torch.stack([torch.from_numpy(text[i : i + T].astype("int64")) for i in at])


def script(path):
    """Write weights_NAME.js beside NAME.safetensors and NAME.json; returns its path. It is classic JavaScript."""
    path = Path(path)
    told = json.loads(path.with_suffix(".json").read_text(encoding="utf8"))["page"]
    body = base64.b64encode(path.with_suffix(".safetensors").read_bytes()).decode()
    out = path.with_name(SCRIPT.format(path.name))
    part = out.with_suffix(".part")  # a build that is stopped leaves no half of a script
    part.write_text(f'postx.take("{path.name}", {json.dumps(told)}, "{body}");\n', encoding="utf8")
    return part.replace(out)


def _mixer(i, layer, both_ways):
    if isinstance(layer, attention.Layer):
        (H, K), (G, _), (_, V) = layer.heads
        plain = (layer.window, layer.norms, layer.gate, layer.sub_norm, layer.scale, layer.q.bias)
        rope = layer.rope
        if any(x is not None for x in (*plain, layer.out.bias)) or layer.alibi or layer.causal == both_ways:
            raise ValueError(f"lm: the attention of block {i} has options that the page has no code for")
        if not isinstance(rope, Rope) or rope != Rope(base=rope.base):
            raise ValueError(f"lm: block {i}: the page turns all channels of q and k in halves, got rope={rope}")
        taps = 0 if layer.conv.taps_DW is None else layer.conv.taps_DW.shape[1]
        return {"mixer": "attention", "H": H, "G": G, "K": K, "V": V, "base": rope.base, "taps": taps}
    if isinstance(layer, ssd.Layer):
        limited = layer.dt_limit != (0, float("inf")) or layer.gate_last or layer.inward.bias is not None
        if limited or layer.G != 1 or not isinstance(layer.norm, ssd.GroupNorm):
            raise ValueError(f"lm: the SSD of block {i} has options that the page has no code for")
        V = layer.widths[0] // layer.H
        return {"mixer": "ssd", "H": layer.H, "K": layer.K, "V": V, "mixer_eps": layer.norm.eps}
    if isinstance(layer, gated_deltanet.Layer):
        GK, _, HV = layer.conv.widths
        taps = 0 if layer.conv.taps_DW is None else layer.conv.taps_DW.shape[1]
        return {"mixer": "gated_deltanet", "H": layer.H, "G": layer.G, "K": GK // layer.G, "V": HV // layer.H,
                "taps": taps, "top": layer.top, "mixer_eps": layer.norm.eps}  # fmt: skip
    if isinstance(layer, rwkv7.Layer):
        if layer.value is not None:
            raise ValueError(f"lm: the RWKV-7 of block {i} blends in the first block's values, as the page does not")
        return {"mixer": "rwkv7", "H": layer.H, "K": layer.u_HK.shape[1], "mixer_eps": layer.norm.eps}
    raise ValueError(f"lm: block {i} is {type(layer).__module__}, which the page has no code for")


def _mlp(i, mlp):
    if isinstance(mlp, MoE):
        plain = mlp.bias_E is None and mlp.groups is None and mlp.shared is None and mlp.scale == 1 and mlp.renormalise
        if not plain or mlp.gate_EDF is None or mlp.act is not silu:
            raise ValueError(f"lm: the page computes experts of SwiGLU behind a softmax, block {i} has another mixture")
        E, _, F = mlp.up_EDF.shape
        return {"F": F, "E": E, "k": mlp.k}
    if mlp.gate is None or mlp.norm is not None or mlp.up.bias is not None or mlp.act is not silu:
        raise ValueError(f"lm: the page computes SwiGLU without biases and norms, block {i} has another MLP")
    return {"F": mlp.up.out_features}
