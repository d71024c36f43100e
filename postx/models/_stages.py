"""What a `postx.models.writer.Writer` is made of: the parts of a place, laid out for the loops of `_token`.

A stage is built from a part, the stream x, what the part reads of it (seen), and the part's state, which it copies. A
call adds what the part computes for one token to x; `state` is the state after it. `fits(part)` says whether a stage
knows the part's options. To plan another mixer is to write its loop in `_token`, its stage here, and its line in PLANS.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from postx.mixers import attention, gated_deltanet, ssd
from postx.models import _panels, _token
from postx.models.nn import ACTIVATIONS, MLP, Packed, RMSNorm
from postx.parts import cache, conv
from postx.scans.lanes import LANES

NONE = np.zeros(0, np.float32)


class Panels(NamedTuple):
    """Weights [O, I] of one or several matrices in panels of `_panels.WIDE` outputs, and their scale (`_panels`)."""

    W: np.ndarray
    scale: tuple

    @property
    def room(self):
        """An array for the product."""
        return np.zeros(self.scale[0].shape[1], np.float32)


def lay_out(*groups):
    """`Panels` of groups of layers, whose outputs follow one another: all in the narrowest dtype without loss."""
    grids = [{layer.product.grid if isinstance(layer, Packed) else None for layer in group} for group in groups]
    if all(len(grid) == 1 and (next(iter(grid)) or [0])[0] in _panels.CODES for grid in grids):
        return [_packed(group, *next(iter(grid))) for group, grid in zip(groups, grids, strict=True)]
    stacked = [torch.cat([layer.weight.detach() for layer in group]) for group in groups]
    if all(((W == 0) | (W.abs() == W.abs().amax(1, keepdim=True))).all() for W in stacked):
        return [_in_panels(W.sign().to(torch.int8), W.abs().amax(1)) for W in stacked]
    bits = [W.view(torch.int32) for W in stacked]
    if any((b & 0xFFFF).any() for b in bits):
        return [_in_panels(W, torch.ones(len(W))) for W in stacked]
    found = [_in_panels((b >> 16).to(torch.int16), torch.ones(len(b))) for b in bits]
    return [Panels(W.view(np.uint16), scale) for W, scale in found]


def _in_panels(W, scale):
    short = -len(W) % _panels.WIDE
    W = nn.functional.pad(W, (0, 0, 0, short)).view(-1, _panels.WIDE, W.shape[1])
    scale = nn.functional.pad(scale, (0, short)).numpy()[None]
    return Panels(W.mT.contiguous().numpy(), (scale, np.zeros((0, scale.shape[1]), np.float32), W.shape[2]))


def _packed(layers, bits, size):
    """`Panels` of packed layers with the same bits and groups."""
    codes, scale, offset = (torch.cat(x) for x in zip(*(layer.product.codes() for layer in layers), strict=True))
    short = -len(codes) % _panels.WIDE
    codes = nn.functional.pad(codes, (0, 0, 0, short)).view(-1, _panels.WIDE, codes.shape[1])
    codes = codes.mT.int()  # [panels, I, 32]

    def joined(x, width, count):  # 32 numbers of `width` bits in bytes, number n in byte n % count
        return sum(part << width * n for n, part in enumerate(x.split(count, -1))).to(torch.uint8)

    if bits == 4:
        words = joined(codes, 4, 16)
    else:
        words = joined(codes & 3, 2, 8)
        if bits == 3:
            high = (codes >> 2).unflatten(-1, (4, 8)) << torch.arange(8)
            words = torch.cat([words, high.sum(-1).to(torch.uint8)], -1)
    words = words.contiguous().numpy().view(_panels.CODES[bits])
    scale, offset = (nn.functional.pad(x, (0, 0, 0, short)).T.contiguous().numpy() for x in (scale, offset))
    return Panels(words, (scale, offset, size))


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
        W, out = lay_out(first, [part.out])
        bias = NONE if part.up.bias is None else np.concatenate([own(layer.bias) for layer in first])
        kind = next(i for i, act in enumerate(ACTIVATIONS.values()) if act is part.act)  # in the order of `_token`
        gated = part.gate is not None
        self.args = (x, seen, *W, *out, bias, own(part.out.bias), kind, gated, W.room, out.room)

    def __call__(self):
        _token.mlp(*self.args)

    @staticmethod
    def fits(part):
        return part.norm is None and any(act is part.act for act in ACTIVATIONS.values())


class SSD:
    """Mamba-2."""

    def __init__(self, part, x, seen, S):
        self.state = tuple(dense(tensor) for tensor in S)
        W, out = lay_out([part.inward], [part.out])
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
        return part.inward.bias is None and not part.gate_last


class Attention:
    """Attention over a cache, which is a ring or doubles where it is full."""

    def __init__(self, part, x, seen, S):
        self.window, self.slots, self.position = part.window, [dense(tensor) for tensor in S[:2]], own(S[2])
        W, out = lay_out([part.q, part.k, part.v], [part.out])
        (H, K), rope = part.heads[0], part.rope
        dims = 0 if rope is None else rope.dims or K
        frequency = own(torch.zeros(0, dtype=torch.float64) if rope is None else rope.turns(dims))
        q_norm, k_norm = [None, None] if part.norms is None else [norm.weight for norm in part.norms]
        eps = np.float32(0 if part.norms is None else part.norms[0].eps)
        half = rope is not None and rope.pairing == "half"
        self.before, self.H = (x, seen), H
        self.after = (
            self.position, H, part.window or 0, np.float32(part.scale or K**-0.5), frequency, half, *W, own(q_norm),
            own(k_norm), eps, *out, own(part.out.bias), W.room, np.zeros((2, len(frequency)), np.float32),
            np.zeros(H, np.float32),
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
        plain = part.q.bias is None and part.gate is None and part.sub_norm is None
        return plain and part.causal and not part.alibi and part.conv.taps_DW is None


class GatedDelta:
    """Gated DeltaNet, with or without a short convolution."""

    def __init__(self, part, x, seen, S):
        self.state = tuple(dense(tensor) for tensor in S)
        table, past = self.state[0].numpy()[0], self.state[1].numpy()[0] if len(S) > 1 else np.zeros((0, 0), np.float32)
        first = part.q, part.k, part.v, part.gate, part.beta, part.rate
        W, out = lay_out(first, [part.out])
        taps = np.zeros((1, 0), np.float32) if part.conv.taps_DW is None else own(part.conv.taps_DW.mT)
        self.args = (
            x, seen, table, past, part.G, *W, taps, own(part.bias_H), own(-part.log_A_H.exp()), np.float32(part.top),
            own(part.norm.weight), np.float32(part.norm.eps), *out, W.room, np.zeros(out.W.shape[1], np.float32),
            np.zeros(table.shape[2], np.float32), out.room,
        )  # fmt: skip

    def __call__(self):
        _token.gated_delta(*self.args)

    @staticmethod
    def fits(part):
        return True


class Norm:
    """An RMS norm of the stream."""

    def __init__(self, part, x, seen):
        self.args = x, own(part.weight), np.float32(part.eps), seen

    def __call__(self):
        _token.norm(*self.args)


PLANS = {attention.Layer: Attention, gated_deltanet.Layer: GatedDelta, ssd.Layer: SSD, MLP: Dense}
LEAVES = nn.Linear, Packed, nn.RMSNorm, RMSNorm, ssd.GroupNorm, nn.Identity, conv.Mixed  # what they are made of
