"""A whole `Layer` over ranks: its projections are each token's own, its mixer goes through the ring or passes a state.

What else a layer keeps from one token to the next looks back a few tokens only (the inputs of a short convolution, the
token before), or counts them. Of these each rank gets from the one before what its last tokens left: the halo.
"""

import sys

import torch

from postx.distributed import passed, ring
from postx.distributed import wire as wires


class Across:
    """A form (see `postx.mixers.by_form`): how a mixer computes over the ranks of a wire, by its family."""

    def __init__(self, layout, wire, how="turn"):
        self.layout, self.wire, self.how = layout, wire, how

    def __call__(self, mixer, *z, S=None, lengths_B=None, reset_BT=None, **w):
        if lengths_B is not None or reset_BT is not None:
            raise ValueError("lengths_B, reset_BT: over several ranks rows are whole, and one text each")
        if mixer.__name__ == "postx.mixers.attention":
            return self._attention(*z, **w)
        S = S if self.wire.rank == 0 else None
        return passed.run(mixer, *z, layout=self.layout, wire=self.wire, S=S, how=self.how, **w)

    def _attention(self, q_BTHK, k_BTGK, v_BTGV, *, rope=None, **w):
        """No cache comes back: keys and values stay where they are."""
        if rope is not None:
            position_1T = self.layout.positions(self.wire.rank, q_BTHK.device)[None]
            q_BTHK, k_BTGK = rope.rotate(q_BTHK, position_1T), rope.rotate(k_BTGK, position_1T)
        return ring.attend(q_BTHK, k_BTGK, v_BTGV, self.layout, self.wire, **w), ()


def layer(part, x_BTD, layout, wire, *, how="turn", **more):
    """part(x_BTD) of a whole text, for the tokens that this rank holds: returns y_BTD.

    part: a mixer's `Layer`, with the same weights on every rank. more: what its forward takes beside. Every rank must
    call it, and the backward pass of its y; a weight's gradient is then this rank's share, and the shares add up.
    Raises ValueError as `ring.attend` and `passed.run` do, and where a rank holds fewer tokens than the layer's short
    convolution looks back.
    """
    layout.hold("x_BTD", x_BTD, wire.rank)
    if not getattr(part, "causal", True):
        raise ValueError("part: attention that looks both ways (causal=False) does not go round the ring")
    across = Across(layout, wire, how)
    mixer = sys.modules[type(part).__module__]
    if mixer.FAMILY != "attention":
        passed.refuse(mixer)
    S, zero = _before(part, mixer, x_BTD, layout, wire, more)
    return part(x_BTD, S, form=across, **more)[0] + zero


def _before(part, mixer, x_BTD, layout, wire, more):
    """The state before this rank's tokens but for the mixer's own, which `Across` brings, and the zero of `send`."""
    own = 1 if isinstance(mixer.STATE, str) else len(mixer.STATE)
    with torch.no_grad():
        kept = part(x_BTD[:, -1:], **_tail(more, 1))[1][own:]
    flows = [x for x in kept if wires.moves(x)]
    if not kept or wire.ranks == 1:
        return None, 0
    depth = max([1, *(x.shape[1] for x in flows if x.dim() == 3)])
    least = min(layout.size(rank) for rank in range(wire.ranks))
    if flows and (least < depth or layout.kind != "straight"):
        raise ValueError(
            f"layout: this layer looks back {depth} tokens, so every rank needs as many, in order: 'straight' and not "
            f"{layout.kind!r} with {least} tokens on a rank"
        )
    S, came, zero = part(x_BTD[:, -depth:], **_tail(more, depth))[1], (), 0
    if flows:
        tie = wires.anchor(x_BTD, *part.parameters())
        came, zero = passed.halo(tuple(x for x in S[own:] if wires.moves(x)), wire, tie)
    if wire.rank == 0:
        return None, zero
    start, came = layout.pieces[wire.rank].first, iter(came)
    rest = (next(came) if wires.moves(x) else torch.full_like(x, start) for x in S[own:])
    return (*map(passed.detached, S[:own]), *rest), zero


def _tail(more, n):
    """What belongs to the last n tokens of what a layer takes beside x."""
    if isinstance(more, dict):
        return {name: _tail(x, n) for name, x in more.items()}
    return more[:, -n:] if isinstance(more, torch.Tensor) else more
