"""The matrices of a mixture of experts in fewer bits: all experts of a place are one matrix, one under the other.

`MoE` keeps a weight as up_EDF, one table [D, F] an expert. A linear layer would keep its transpose, [F, D]: outputs in
rows, as quantizers round them. So `rows` puts the E transposes under one another, [E F, D]; `table` takes them back.
What is stored (`postx.models.packed`) is one `Quantized` of these rows, with "experts": E in its `how`.
"""

import torch

from postx.models.nn import MoE
from postx.quant import Quantized, gptq, load, uniform

NAMES = ("gate_EDF", "up_EDF", "out_EFD")
METHODS = ("uniform", "gptq")


def tables(module) -> dict[str, torch.nn.Parameter]:
    """{name: table of all experts} of every mixture in a module, as its parameters are called."""
    return {
        f"{place}.{name}".lstrip("."): getattr(part, name)
        for place, part in module.named_modules() if isinstance(part, MoE)
        for name in NAMES if getattr(part, name) is not None
    }  # fmt: skip


def rows(W_EIO):
    """[E, I, O] -> [E O, I]: the experts' matrices, outputs in rows, one under the other."""
    return W_EIO.mT.flatten(0, 1)


def table(W, E):
    """The inverse of `rows`."""
    return W.unflatten(0, (E, -1)).mT.contiguous()


def quantize(W_EIO, bits, method="uniform", **kw) -> Quantized:
    """All experts by one quantizer that scales rows or parts of rows.

    Raises ValueError for group="tensor": one scale for all experts is no part of a row.
    """
    if kw.get("group") == "tensor":
        raise ValueError('group: experts are scaled by rows or parts of rows, got "tensor"')
    q = load(method).quantize(rows(W_EIO), bits, **kw)
    return Quantized(q.method, q.shape, q.parts, q.how | {"experts": len(W_EIO)})


def calibrated(W_EIO, bits, inputs, **kw) -> Quantized:
    """All experts by GPTQ, each with the inputs that it was given, x_TI in `inputs`.

    An expert that no token of the calibration text chose has no inputs to repair for: its weights are rounded as if
    they were all alike and independent (the second moment is the identity), which is rounding to nearest.
    """
    E, I, _ = W_EIO.shape
    if len(inputs) != E:
        raise ValueError(f"inputs: expected those of {E} experts, got {len(inputs)}")
    found = []
    for W_IO, x_TI in zip(W_EIO, inputs, strict=True):
        known = {"x_TI": x_TI} if len(x_TI) else {"H_II": torch.eye(I, dtype=W_EIO.dtype, device=W_EIO.device)}
        found.append(gptq.quantize(W_IO.T, bits, **known, **kw))
    if "order" in found[0].parts:
        raise ValueError("act_order: experts share what is stored, so no order of the inputs can be")
    parts = {name: torch.cat([q.parts[name] for q in found]) for name in ("codes", "scale")}
    if "zero" in found[0].parts:  # packed over all rows of a matrix, so over all experts here
        zeros = [uniform.unpack_zero(q.parts["zero"], bits, q.parts["scale"]) for q in found]
        parts["zero"] = uniform.pack_zero(torch.cat(zeros), bits)
    return Quantized("gptq", (E * W_EIO.shape[2], I), parts, found[0].how | {"experts": E})


@torch.no_grad()
def inputs(moe, x_BTD) -> dict[str, list]:
    """What each expert reads where it is chosen: {"up_EDF": [x_TD of each], "gate_EDF": the same, "out_EFD": [x_TF]}.

    The hidden numbers are weighed by the router, as in the layer: what is hardly asked for may be hardly right.
    """
    x = x_BTD.flatten(0, -2)
    weight_TE = moe.weights(x_BTD)[0].flatten(0, -2)
    read, hidden = [], []
    for e in range(weight_TE.shape[1]):
        mine = weight_TE[:, e] != 0
        seen = x[mine]
        up = seen @ moe.up_EDF[e]
        h = moe.act(up) if moe.gate_EDF is None else moe.act(seen @ moe.gate_EDF[e]) * up
        read.append(seen)
        hidden.append(h * weight_TE[mine, e][:, None])
    return {"up_EDF": read, "gate_EDF": read, "out_EFD": hidden}


def lost(W_EIO, back_EIO, inputs) -> tuple[float, float]:
    """(weight error, output error) of all experts together, relative, as `quantized.Row` has them."""
    wide, back = W_EIO.double(), back_EIO.double()
    error = float((wide - back).square().sum() / wide.square().sum())
    off = whole = 0.0
    for W_IO, Q_IO, x_TI in zip(wide, back, inputs, strict=True):
        off += float((x_TI.double() @ (W_IO - Q_IO)).square().sum())
        whole += float((x_TI.double() @ W_IO).square().sum())
    return error, off / whole if whole else 0.0
