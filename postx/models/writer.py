"""Writing a token at a time on a CPU: a model's weights laid out once, and each place of its stack one compiled loop.

`LM.forward` on one token takes some hundreds of small operations, whose calls cost several times what they compute. A
`Writer` computes the same token with two calls a place. It is for one row in float32; the definition stays
`LM.forward`, which it equals but for the order of its sums: logits within 1e-4 of the largest.

A place without a plan here (see `PLANS`) runs as it always does, within the same token; `Writer.ordinary` names those.
Weights whose lower 16 bits are zero, as of a kept model stored in bfloat16, are read without them; rows of -s, 0 and s
as int8. Neither changes a number.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from postx.mixers import attention, ssd
from postx.models import _token
from postx.models.blocks import Context
from postx.models.nn import ACTIVATIONS, MLP, RMSNorm
from postx.parts import cache, conv
from postx.scans.lanes import LANES
from postx.scans.runtime import COMPILED

PAYS_FROM = 4  # tokens: laying out the weights takes about as long as two calls of the model
NONE = np.zeros(0, np.float32)


def refused(lm, B, n=PAYS_FROM):
    """Why n tokens of B rows are written by calls of the model, or None where a `Writer` does it."""
    if not COMPILED:
        return "numba's compiler is switched off"
    if B != 1 or n < PAYS_FROM:
        return f"a writer is for one row and at least {PAYS_FROM} tokens"
    if any(x.device.type != "cpu" or x.dtype != torch.float32 for x in lm.parameters()):
        return "a writer is for float32 on a CPU"
    if torch.is_autocast_enabled("cpu"):
        return "autocast computes in another dtype"
    if type(lm.norm) is not RMSNorm or any(changed(part) for part in (lm.embed, lm.norm)) or hooked(lm):
        return "the model's own parts are others than a writer knows"
    return None if any(planned(block) for block in lm.blocks) else "no place of the model has a plan"


def hooked(module):
    """Whether something stands between what a module's class does and what it does."""
    return bool(module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module))


def changed(module):
    """The same for all that is in it, weights that are computed (parametrizations) included."""
    return any(hooked(m) or hasattr(m, "parametrizations") for m in module.modules())


def planned(block):
    """Whether a place has a plan: mixers and MLPs as this package builds them, behind RMS norms."""
    parts = [*block.mix, *([] if block.mlp is None else [block.mlp])]
    made_of = [child for part in parts for child in part.children() if not isinstance(child, nn.ModuleList)]
    return (
        all(type(part) in PLANS and PLANS[type(part)].fits(part) for part in parts)
        and all(type(child) in LEAVES for child in made_of)
        and all(type(norm) is RMSNorm for norm in (block.norm, block.mlp_norm) if norm is not None)
        and not changed(block)
    )


class Panels(NamedTuple):
    """Weights [O, I] of one or several matrices in panels of `_token.WIDE` outputs, and a scale an output."""

    W: np.ndarray
    scale: np.ndarray

    @property
    def room(self):
        """An array for the product."""
        return np.zeros(len(self.scale), np.float32)


def lay_out(*groups):
    """`Panels` of each group of matrices, whose outputs follow one another: all in the narrowest dtype without loss."""
    stacked = [torch.cat([m.detach() for m in group]) for group in groups]
    if all(((W == 0) | (W.abs() == W.abs().amax(1, keepdim=True))).all() for W in stacked):
        return [_panels(W.sign().to(torch.int8), W.abs().amax(1)) for W in stacked]
    bits = [W.view(torch.int32) for W in stacked]
    if any((b & 0xFFFF).any() for b in bits):
        return [_panels(W, torch.ones(len(W))) for W in stacked]
    found = [_panels((b >> 16).to(torch.int16), torch.ones(len(b))) for b in bits]
    return [Panels(W.view(np.uint16), scale) for W, scale in found]


def _panels(W, scale):
    short = -len(W) % _token.WIDE
    W = nn.functional.pad(W, (0, 0, 0, short)).view(-1, _token.WIDE, W.shape[1])
    return Panels(W.mT.contiguous().numpy(), nn.functional.pad(scale, (0, short)).numpy())


def own(x):
    """A tensor's numbers as a dense array of their own; none for None."""
    return NONE if x is None else dense(x).numpy()


def dense(x):
    return x.detach().clone(memory_format=torch.contiguous_format)


class Dense:
    """An MLP."""

    state = ()

    def __init__(self, part, x, seen, S):
        first = [part.up] if part.gate is None else [part.gate, part.up]
        W, out = lay_out([layer.weight for layer in first], [part.out.weight])
        bias = NONE if part.up.bias is None else np.concatenate([own(layer.bias) for layer in first])
        kind = next(i for i, act in enumerate(ACTIVATIONS.values()) if act is part.act)  # in the order of `_token`
        gated = part.gate is not None
        self.args = (x, seen, *W, *out, bias, own(part.out.bias), kind, gated, W.room, out.room)

    def __call__(self):
        _token.mlp(*self.args)

    @staticmethod
    def fits(part):
        return any(act is part.act for act in ACTIVATIONS.values())


class SSD:
    """Mamba-2."""

    def __init__(self, part, x, seen, S):
        self.state = tuple(dense(tensor) for tensor in S)
        W, out = lay_out([part.inward.weight], [part.out.weight])
        normed = isinstance(part.norm, ssd.GroupNorm)
        taps = part.taps_DW.mT, part.taps_bias_D, part.dt_bias_H, -part.log_rate_H.exp(), part.skip_H
        self.args = (
            x, seen, *(tensor.numpy()[0] for tensor in self.state), *W, *(own(tensor) for tensor in taps),
            *(np.float32(limit) for limit in part.dt_limit), part.G, own(part.norm.weight if normed else None),
            np.float32(part.norm.eps if normed else 0), *out, W.room, np.zeros(out.W.shape[1], np.float32), out.room,
        )  # fmt: skip

    def __call__(self):
        _token.ssd(*self.args)

    @staticmethod
    def fits(part):
        return True


class Attention:
    """Attention over a cache, which is a ring or doubles where it is full."""

    def __init__(self, part, x, seen, S):
        self.window, self.slots, self.position = part.window, [dense(tensor) for tensor in S[:2]], own(S[2])
        W, out = lay_out([part.q.weight, part.k.weight, part.v.weight], [part.out.weight])
        (H, K), rope = part.heads[0], part.rope
        dims = 0 if rope is None else rope.dims or K
        pair = torch.arange(dims // 2, dtype=torch.float64)
        frequency = own((rope.base if rope else 1.0) ** (-2 * pair / max(1, dims)))
        q_norm, k_norm = [None, None] if part.norms is None else [norm.weight for norm in part.norms]
        eps = np.float32(0 if part.norms is None else part.norms[0].eps)
        half = rope is not None and rope.pairing == "half"
        self.before, self.H = (x, seen), H
        self.after = (
            self.position, H, part.window or 0, np.float32(K**-0.5), frequency, half, *W, own(q_norm), own(k_norm), eps,
            *out, own(part.out.bias), W.room, np.zeros((2, len(frequency)), np.float32), np.zeros(H, np.float32),
        )  # fmt: skip
        self.last = np.zeros(out.W.shape[1], np.float32), out.room
        self.bind()

    def bind(self):
        """Hand the cache, as long as it is now, to the kernel."""
        self.M = self.slots[0].shape[1]
        keys, values = (slot.numpy()[0] for slot in self.slots)
        scores = np.zeros((self.H, -(-self.M // LANES) * LANES), np.float32)
        self.args = (*self.before, keys, values, *self.after, scores, *self.last)

    def __call__(self):
        if self.window is None and self.position[0] >= self.M:
            self.slots = cache.grown(self.slots, int(self.position[0]) + 1)
            self.bind()
        _token.attention(*self.args)

    @property
    def state(self):
        return *self.slots, torch.from_numpy(self.position.copy())

    @staticmethod
    def fits(part):
        return part.causal and not part.alibi and part.conv.taps_DW is None


class Ordinary:
    """A place without a plan: its `forward`."""

    def __init__(self, block, S, writer):
        self.block, self.S, self.writer = block, S, writer

    def __call__(self):
        x_BTD = self.writer.stream[None, None]
        y, self.S, _ = self.block(x_BTD, self.S, self.writer.context)
        x_BTD.copy_(y)


# The class of a part -> what writes its tokens; `fits(part)` says whether it knows the part's options.
PLANS = {ssd.Layer: SSD, attention.Layer: Attention, MLP: Dense}
LEAVES = nn.Linear, nn.RMSNorm, RMSNorm, ssd.GroupNorm, nn.Identity, conv.Mixed  # what they are made of


class Writer:
    """A model that goes on from a state S, which it copies: writer(ids_B) -> logits_BY of the next token, for one row.

    `state()` is what `LM.forward` would have returned. `ordinary` holds the numbers of the places without a plan.
    Raises ValueError with what `refused` says.
    """

    def __init__(self, lm, S):
        tensors = [tensor for S_i in S for part in S_i for tensor in part]
        if (why := refused(lm, len(tensors[0]) if tensors else 1)) is not None:
            raise ValueError(f"lm: {why}")
        D = lm.embed.weight.shape[1]
        self.lm, self.stream, self.context = lm, torch.zeros(D), None
        self.x, self.seen = self.stream.numpy(), np.zeros(D, np.float32)
        self.ordinary, self.run, self.places = [], [], []
        for number, (block, S_i) in enumerate(zip(lm.blocks, S, strict=True)):
            if planned(block):
                self.places.append(self._plan(block, S_i))
            else:
                self.ordinary.append(number)
                self.places.append(Ordinary(block, S_i, self))
                self.run.append(self.places[-1])
        weight = lm.embed.weight if lm.head is None else lm.head.weight
        (head,) = lay_out([weight])
        logits = torch.zeros(1, len(head.scale))
        self.logits_BY = logits[:, : len(weight)]
        self.args = self.x, own(lm.norm.weight), np.float32(lm.norm.eps), *head, self.seen, logits.numpy()[0]

    def _plan(self, block, S):
        """The stages of a place, which are put into `run`; those that keep a state are returned."""
        stages = []
        for norm, parts in ((block.norm, block.mix), (block.mlp_norm, [] if block.mlp is None else [block.mlp])):
            if norm is not None:
                self.run.append(Norm(norm, self.x, self.seen))
            for part in parts:
                stages.append(PLANS[type(part)](part, self.x, self.seen, S[len(stages)]))
                self.run.append(stages[-1])
        return stages

    def __call__(self, ids_B):
        x_BD = self.lm.embed(ids_B)
        if self.lm.embed_norm is not None:
            x_BD = self.lm.embed_norm(x_BD)
        self.stream.copy_(x_BD[0])
        if self.ordinary:
            cross = {"embedding": x_BD[:, None], "shared": self.lm.shared}
            self.context = Context(form=self.lm.form, inplace=True, cross=cross)
        for stage in self.run:
            stage()
        _token.head(*self.args)
        return self.logits_BY

    def state(self):
        """The state after the last token, of which the writer goes on to use the tensors."""
        return tuple(
            place.S if isinstance(place, Ordinary) else tuple(stage.state for stage in place) for place in self.places
        )


class Norm:
    """An RMS norm of the stream."""

    def __init__(self, part, x, seen):
        self.args = x, own(part.weight), np.float32(part.eps), seen

    def __call__(self):
        _token.norm(*self.args)
