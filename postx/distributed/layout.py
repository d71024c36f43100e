"""Which rank holds which tokens of a text: "straight", a stretch each, or "zigzag", an early stretch and a late one.

Under a causal mask the last stretch has the most to look at. Zigzag cuts the text into 2 P stretches and gives rank r
the r-th from the front and the r-th from the back, so that all ranks have the same to do.
"""

from typing import NamedTuple

import torch

from postx.shapes import whole

KINDS = ("straight", "zigzag")


class Piece(NamedTuple):
    """A stretch of the text: its first token, how many it has, and the rank that holds it."""

    first: int
    size: int
    owner: int

    @property
    def last(self):
        return self.first + self.size - 1


class Layout:
    """T tokens over `ranks`: `pieces` of the text in order, each with its owner; sizes differ by one at most.

    Raises ValueError for an unknown kind, and where there are fewer tokens than pieces.
    """

    def __init__(self, T, ranks, kind="straight"):
        whole(T=T, ranks=ranks)
        if kind not in KINDS:
            raise ValueError(f"kind: expected one of {', '.join(map(repr, KINDS))}, got {kind!r}")
        count = ranks if kind == "straight" else 2 * ranks
        if count > T:
            raise ValueError(f"T: {kind} over {ranks} ranks needs a token for each of {count} pieces, got T={T}")
        self.T, self.ranks, self.kind = T, ranks, kind
        cuts = [i * T // count for i in range(count + 1)]
        self.pieces = []
        for i in range(count):
            first, size = cuts[i], cuts[i + 1] - cuts[i]
            self.pieces.append(Piece(first, size, min(i, count - 1 - i) if kind == "zigzag" else i))

    def of(self, rank):
        """The numbers of the pieces that a rank holds, in the order of the text."""
        return [i for i, piece in enumerate(self.pieces) if piece.owner == rank]

    def size(self, rank):
        """How many tokens a rank holds."""
        return sum(self.pieces[i].size for i in self.of(rank))

    def positions(self, rank, device=None):
        """The places in the text of a rank's tokens, [T of the rank]."""
        own = (self.pieces[i] for i in self.of(rank))
        return torch.cat([torch.arange(p.first, p.first + p.size, device=device) for p in own])

    def split(self, x, rank, axis=1):
        """The tokens of x that a rank holds."""
        if x.shape[axis] != self.T:
            raise ValueError(f"x: expected T={self.T} tokens on axis {axis}, got shape {tuple(x.shape)}")
        return torch.cat([x.narrow(axis, p.first, p.size) for p in map(self.pieces.__getitem__, self.of(rank))], axis)

    def join(self, parts, axis=1):
        """The text again, from what every rank holds, in the order of the ranks."""
        pieces = {}
        for rank, part in enumerate(parts):
            own = self.of(rank)
            pieces |= dict(zip(own, part.split([self.pieces[i].size for i in own], axis), strict=True))
        return torch.cat([pieces[i] for i in range(len(self.pieces))], axis)

    def hold(self, name, x, rank):
        """Raise ValueError where x [B, T, ...] is not what the rank should hold."""
        if x.shape[1] != self.size(rank):
            raise ValueError(
                f"{name}: rank {rank} of {self.ranks} holds {self.size(rank)} of T={self.T} tokens "
                f"({self.kind}), got shape {tuple(x.shape)}"
            )
