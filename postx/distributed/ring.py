"""Ring attention: every rank keeps its queries, and the keys and values of all ranks go round.

    for step s = 0, 1, ...:   look at the block of rank r - s, merge what it says, pass the block on to rank r + 1

While a block is looked at, the next one travels. Exact: blocks are merged by the online softmax (`blocks.merge`). The
backward pass sends keys and values round once more, together with the gradients that each rank adds to; from the last
rank that has something to add these go straight home.

A piece of the text goes only as far as a rank needs it: under a causal mask in the straight layout rank P - 1 passes
nothing on, and under a window of W tokens a piece stops W tokens further on.

Source: Liu et al. 2023, "Ring Attention with Blockwise Transformers" (arXiv 2310.01889); the balanced order is that of
Brandon et al. 2023, "Striped Attention" (arXiv 2311.09431) in its zigzag form, two stretches a rank.
"""

from typing import NamedTuple

import torch

from postx.distributed import blocks
from postx.parts.cache import check_window
from postx.scans import START
from postx.shapes import check, check_shared, pick, state_dtype


class Options(NamedTuple):
    """What a block needs to know besides its tensors."""

    window: int | None
    scale: float
    slopes_H: torch.Tensor | None
    impl: str


def hops(layout, window=None):
    """How far each piece travels: the steps to the last rank that needs it, in the order of the pieces."""
    P, far = layout.ranks, []
    for key in layout.pieces:
        needs = {q.owner for q in layout.pieces if blocks.sees(q, key, window)}
        far.append(max((step for step in range(P) if (key.owner + step) % P in needs), default=0))
    return far


def attend(q_BTHK, k_BTGK, v_BTGV, layout, wire, *, window=None, scale=None, slopes_H=None, impl="auto"):
    """Causal softmax attention over all tokens of the layout, for those that this rank holds; returns y_BTHV.

    The arguments are this rank's own tokens (`layout.split`), queries and keys already rotated. impl: "torch", or
    "flash" (see `blocks`), which "auto" takes where K = V and, on a GPU, in half precision. Every rank must call it,
    and its backward pass. Raises ValueError for shapes that do not fit the layout, or a group of another size.
    """
    sizes = check(q_BTHK=q_BTHK, k_BTGK=k_BTGK, v_BTGV=v_BTGV)
    check_shared("k_BTGK", sizes["G"], sizes["H"])
    check_window(window)
    if layout.ranks != wire.ranks:
        raise ValueError(f"layout: it is for {layout.ranks} ranks, the group has {wire.ranks}")
    layout.hold("q_BTHK", q_BTHK, wire.rank)
    half = q_BTHK.dtype in (torch.float16, torch.bfloat16)
    flash = sizes["K"] == sizes["V"] and (half or not q_BTHK.is_cuda)
    impl = pick(impl, ("torch", "flash") if flash else ("torch",))
    o = Options(window, sizes["K"] ** -0.5 if scale is None else scale, slopes_H, impl)
    return _Ring.apply(q_BTHK, k_BTGK, v_BTGV, layout, wire, o).to(v_BTGV.dtype)


class _Ring(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, layout, wire, o):
        ring = Ring(layout, wire, o.window)
        wide = state_dtype(v.dtype)
        y = [x.new_zeros(*x.shape[:3], v.shape[-1], dtype=wide) for x in ring.cut(q)]
        lse = [torch.full(x.shape[:3], START, dtype=wide, device=x.device) for x in y]
        held = dict(zip(ring.own, zip(ring.cut(k), ring.cut(v), strict=True), strict=True))
        for step in range(ring.steps + 1):
            arrives = ring.pass_on(held, step, (k, v))
            for i, j, query, key in ring.pairs(held):
                here = blocks.forward(ring.cut(q)[i], *held[j], query, key, o)
                y[i], lse[i] = blocks.merge(y[i], lse[i], *here)
            held = arrives()
        y, lse = torch.cat(y, 1), torch.cat(lse, 1)
        ctx.ring, ctx.o = ring, o
        ctx.save_for_backward(q, k, v, y, lse)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dy):
        (q, k, v, y, lse), ring, o = ctx.saved_tensors, ctx.ring, ctx.o
        qs, dys, ys, lses = (ring.cut(x) for x in (q, dy, y, lse))
        dq = [torch.zeros_like(x, dtype=y.dtype) for x in qs]
        held = dict(zip(ring.own, zip(ring.cut(k), ring.cut(v), strict=True), strict=True))
        sums = tuple(torch.zeros_like(x, dtype=y.dtype) for x in (k, v))  # of this rank's pieces, at first
        grads, home = dict(zip(ring.own, zip(*map(ring.cut, sums), strict=True), strict=True)), {}
        for step in range(ring.steps + 1):
            arrives = ring.pass_on(held, step, (k, v))
            for i, j, query, key in ring.pairs(held):
                share = blocks.backward(dys[i], qs[i], *held[j], ys[i], lses[i], query, key, o)
                for total, part in zip((dq[i], *grads[j]), share, strict=True):
                    total += part
            held = arrives()
            home |= ring.send_home(grads, step, sums)
            grads = ring.pass_on(grads, step, sums)()
        dk, dv = (torch.cat([home[j][n] for j in ring.own], 1) for n in (0, 1))
        return torch.cat(dq, 1).to(q.dtype), dk.to(k.dtype), dv.to(v.dtype), None, None, None


class Ring:
    """The plan of one rank: which pieces it has at each step, and where they go next."""

    def __init__(self, layout, wire, window):
        self.layout, self.wire, self.window = layout, wire, window
        self.own, self.hops = layout.of(wire.rank), hops(layout, window)
        self.steps = max(self.hops)
        self.sizes = [layout.pieces[i].size for i in self.own]

    def cut(self, x):
        """A rank's own tokens, piece by piece."""
        return x.split(self.sizes, 1)

    def pairs(self, held):
        """(place among the own queries, piece of the sources, and both pieces) wherever something is seen."""
        for j in held:
            for i, own in enumerate(self.own):
                query, key = self.layout.pieces[own], self.layout.pieces[j]
                if blocks.sees(query, key, self.window):
                    yield i, j, query, key

    def pass_on(self, held, step, like):
        """Begin to send to the next rank what goes further, and to receive; returns what waits for {piece: tensors}."""
        P, rank = self.wire.ranks, self.wire.rank
        goes = [j for j in held if self.hops[j] > step]
        comes = [j for j in self.layout.of((rank - 1 - step) % P) if self.hops[j] > step]
        sends = [(x, (rank + 1) % P) for j in goes for x in held[j]]
        receives = [(x, (rank - 1) % P) for j in comes for x in self.places(j, like)]
        wait = self.wire.exchange(sends, receives)

        def arrives():
            parts = iter(wait())
            return {j: (next(parts), next(parts)) for j in comes}

        return arrives

    def places(self, j, like):
        """Where the tensors of a piece go that look like those of `like` but for their tokens."""
        return [x.new_empty(len(x), self.layout.pieces[j].size, *x.shape[2:]) for x in like]

    def send_home(self, grads, step, like):
        """Gradients of pieces that go no further are sent to their owners; returns those that came home, by piece."""
        P, rank = self.wire.ranks, self.wire.rank
        done = {j: grads[j] for j in grads if self.hops[j] == step}
        mine = [j for j in self.own if self.hops[j] == step]
        if step == 0:
            return {j: done[j] for j in mine}
        sends = [(x, self.layout.pieces[j].owner) for j in done for x in done[j]]
        receives = [(x, (rank + step) % P) for j in mine for x in self.places(j, like)]
        parts = iter(self.wire.exchange(sends, receives)())
        return {j: (next(parts), next(parts)) for j in mine}
