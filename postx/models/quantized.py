"""A whole language model in fewer bits, and the rotation that leaves it what it was.

`quantized(lm, ...)` replaces every linear layer of the blocks by what a quantizer gives back. Embedding, head, norms,
convolutions and the few numbers of a mixer (decays, time steps) stay as they are: `Report.kept` says how many weights.
`turn(lm, R)` is QuaRot's observation (Ashkboos et al. 2024, sec. 4.1): an RMS norm without its own scale commutes with
a rotation, so embed R, R' before every layer that reads the stream, R after every layer that writes to it, change
nothing at all.
"""

import copy
from typing import NamedTuple

import torch
from torch import nn

from postx.models import experts
from postx.models.blocks import Context
from postx.models.nn import MoE, RMSNorm
from postx.quant import Quantized, load, output_error, ternary
from postx.quant.ternary import integers, through

MOST = 4096  # calibration inputs kept of a layer


class Row(NamedTuple):
    """One layer: how well it was kept."""

    name: str
    weights: int
    bits_per_weight: float
    weight_error: float  # |W - Q|^2 / |W|^2
    output_error: float  # |x (W - Q)'|^2 / |x W'|^2 over the calibration inputs


class Report(NamedTuple):
    """All layers, the weights that no quantizer touched, and what is stored of each layer."""

    rows: list[Row]
    kept: int
    stored: dict[str, Quantized]

    @property
    def bits_per_weight(self) -> float:
        """Of the quantized layers together."""
        return sum(r.bits_per_weight * r.weights for r in self.rows) / sum(r.weights for r in self.rows)


def linears(lm) -> dict[str, nn.Linear]:
    """The linear layers of the blocks by name, in the order in which they are computed, but for routers.

    A router is a thousandth of its experts, and whom it sends where is not a matter of small errors.
    """
    routers = {m.router for m in lm.modules() if isinstance(m, MoE)}
    return {
        name: m for name, m in lm.named_modules()
        if isinstance(m, nn.Linear) and name.startswith("blocks.") and m not in routers
    }  # fmt: skip


@torch.no_grad()
def inputs(lm, ids_BT, names, run=None) -> dict[str, torch.Tensor]:
    """What the named layers read when the model reads ids_BT: x_TI of each, at most `MOST` rows evenly taken.

    run: what is called in place of the whole model.
    """
    seen, hooks = {}, []
    for name in names:

        def keep(module, args, name=name):
            rows = args[0].detach().flatten(0, -2)
            seen[name] = rows[:: max(1, -(-len(rows) // MOST))].float()

        hooks.append(lm.get_submodule(name).register_forward_pre_hook(keep))
    try:
        lm(ids_BT) if run is None else run()
    finally:
        for hook in hooks:
            hook.remove()
    return seen


class _Walk:
    """The calibration text on its way through a model, block after block, so that no block is computed L times."""

    def __init__(self, lm, ids_BT):
        self.lm, self.ids_BT = lm, ids_BT
        self.x, cross = lm.enter(ids_BT) if hasattr(lm, "enter") else (None, None)
        self.context = Context(form=lm.form, cross=cross) if hasattr(lm, "enter") else None

    def inputs(self, i, names):
        """Of the named layers of block i. A network that is no `LM` is computed whole."""
        if self.x is None:
            return inputs(self.lm, self.ids_BT, names)
        here = self.context._replace(cross=dict(self.context.cross))  # what crosses places is not yet handed on
        return inputs(self.lm, self.ids_BT, names, lambda: self._block(i, here))

    def _block(self, i, context):
        return self.lm.blocks[i](self.x, None, context)[0]

    def pass_(self, i):
        """Go through block i as it is now."""
        if self.x is not None:
            self.x = self._block(i, self.context)


@torch.no_grad()
def quantized(lm, method: str, bits: int | None, ids_BT, *, feed=True, judged=MOST, **kw) -> tuple[nn.Module, Report]:
    """A copy of the model with its linear layers quantized, and the report. `lm` itself is not touched.

    method names a quantizer, kw go to it. Calibrated ones (and `rotate` over one) get the layer's inputs, taken from
    the copy as it stands, block after block, so that later layers repair what earlier ones did (as GPTQ's authors do);
    feed=False gives none. bits None is for a method without a choice (ternary). Output errors are measured on `judged`
    of these inputs, evenly taken: in float64, so that on a laptop they can take longer than the rounding.

    The experts of a mixture are rounded by `uniform` and `gptq`, each for the tokens that it was given; other methods
    leave them as they are. Routers stay (`linears`).
    """
    module, small = load(method), copy.deepcopy(lm)
    base = load(kw["base"]) if "base" in kw else module
    calibrated = feed and getattr(base, "CALIBRATED", False)
    rows, stored, layers = [], {}, linears(small)
    walk = _Walk(small, ids_BT)
    for i in range(len(small.blocks)):
        mine, moe = [name for name in layers if name.startswith(f"blocks.{i}.")], f"blocks.{i}.mlp"
        mixed = method in experts.METHODS and isinstance(small.blocks[i].mlp, MoE)
        seen = walk.inputs(i, [*mine, moe] if mixed else mine)
        for name in mine:
            if name not in seen:
                continue  # Zamba's place of a shared block
            weight, x = layers[name].weight, seen[name]
            more = dict(kw, x_TI=x) if calibrated else kw
            q = module.quantize(weight, **more) if bits is None else module.quantize(weight, bits, **more)
            back, stored[name] = q.dequantize(), q
            wide = weight.double()
            error = float((wide - back).square().sum() / wide.square().sum())
            some = x[:: max(1, -(-len(x) // judged))]
            rows.append(Row(name, weight.numel(), q.bits_per_weight, error, output_error(weight, back, some)))
            weight.copy_(back)
        if mixed:
            read = experts.inputs(small.blocks[i].mlp, seen[moe])
            for name, W_EIO in experts.tables(small.blocks[i].mlp).items():
                q = (experts.calibrated(W_EIO, bits, read[name], **kw) if calibrated
                     else experts.quantize(W_EIO, bits, method, **kw))  # fmt: skip
                back, stored[f"{moe}.{name}"] = experts.table(q.dequantize(), len(W_EIO)), q
                lost = experts.lost(W_EIO, back, read[name])
                rows.append(Row(f"{moe}.{name}", W_EIO.numel(), q.bits_per_weight, *lost))
                W_EIO.copy_(back)
        walk.pass_(i)
    total = sum(p.numel() for p in small.parameters())
    return small, Report(rows, total - sum(r.weights for r in rows), stored)


def train_trits(lm) -> nn.Module:
    """Let the linear layers of the blocks multiply by trits and learn: in place, on the parameters that are there."""
    for name, old in linears(lm).items():
        new = ternary.Linear(old.in_features, old.out_features, bias=old.bias is not None, device="meta")
        new.weight, new.bias = old.weight, old.bias
        lm.set_submodule(name, new)
    return lm


def round_inputs(lm, bits: int = 8) -> nn.Module:
    """Let every linear layer of the blocks read its input rounded token by token to `bits` bits: in place.

    Symmetric, the step from the token's largest value, as in BitNet and SpinQuant; gradients pass straight through.
    """

    def hook(_, args):
        codes, step = integers(args[0], bits)
        rounded = (codes * step).to(args[0].dtype)
        return through(args[0], rounded), *args[1:]

    for layer in linears(lm).values():
        layer.register_forward_pre_hook(hook)
    return lm


@torch.no_grad()
def turn(lm, R) -> nn.Module:
    """A copy of the model whose stream is turned by the orthogonal matrix R [D, D]; its output is the same.

    The scales of the RMS norms go into the layers that read them, so the head is untied. Which layers read and write
    the stream is seen by running the model once. Raises ValueError for a norm that is not RMS, an R that is not
    orthogonal, and a model in which something else reads the stream (a token shift with weights of its own).
    """
    D = lm.embed.weight.shape[1]
    R = R.to(lm.embed.weight)
    if R.shape != (D, D) or not torch.allclose(R @ R.T, torch.eye(D).to(R), atol=1e-5):
        raise ValueError(f"R: expected an orthogonal matrix [{D}, {D}], got shape {tuple(R.shape)}")
    out = copy.deepcopy(lm)
    out.head = nn.Linear(D, lm.embed.num_embeddings, bias=False).to(R)
    out.load_state_dict(out.state_dict() | turned(lm, R))
    probe = torch.arange(16, device=R.device)[None] % lm.embed.num_embeddings
    want, got = lm(probe)[0], out(probe)[0]
    if not torch.allclose(got, want, rtol=1e-3, atol=1e-3 * float(want.abs().max())):
        raise ValueError("lm: something beside norms and linear layers reads the stream; it cannot be turned")
    return out


def turned(lm, R) -> dict[str, torch.Tensor]:
    """{name: weight} of what `turn` changes, as functions of R that can be differentiated. Errors: as `turn`."""
    head = lm.embed.weight if lm.head is None else lm.head.weight
    found = {"embed.weight": lm.embed.weight @ R, "head.weight": (head * lm.norm.weight) @ R}
    names = {module: name for name, module in lm.named_modules()}
    for norm, layers in [*_readers(lm), (lm.norm, [])]:
        found[f"{names[norm]}.weight"] = torch.ones_like(norm.weight)
        for layer in layers:
            found[f"{names[layer]}.weight"] = (layer.weight * norm.weight) @ R
    for block in lm.blocks:
        for part in (*block.mix, block.mlp):
            if part is None:
                continue
            if not isinstance(getattr(part, "out", None), nn.Linear):
                raise ValueError(
                    f"lm: {type(part).__module__} does not write to the stream by a linear layer `out`"
                )
            found[f"{names[part.out]}.weight"] = R.T @ part.out.weight
            if part.out.bias is not None:
                found[f"{names[part.out]}.bias"] = part.out.bias @ R
    return found


def _readers(lm):
    """(norm, linear layers that read its output itself) for every norm of a block."""
    norms = [n for b in lm.blocks for n in (b.norm, b.mlp_norm) if n is not None]
    for norm in [*norms, lm.norm]:
        if not isinstance(norm, RMSNorm):
            raise ValueError(f"lm: only RMS norms commute with a rotation, got {type(norm).__name__}")
    made, reads, hooks = {}, {id(n): [] for n in norms}, []
    for norm in norms:
        hooks.append(norm.register_forward_hook(lambda m, _, y: made.__setitem__(id(m), y)))
    for layer in linears(lm).values():

        def look(m, args):
            for key, y in made.items():
                if args[0] is y:
                    reads[key].append(m)

        hooks.append(layer.register_forward_pre_hook(look))
    try:
        with torch.no_grad():
            lm(torch.zeros(1, 4, dtype=torch.int64, device=lm.embed.weight.device))
    finally:
        for hook in hooks:
            hook.remove()
    return [(n, reads[id(n)]) for n in norms]
