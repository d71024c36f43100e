"""What a block of tokens does to a state, whatever is in it: S -> A S + b, and how two blocks in a row are one.

Where an update is linear in the state, so is a block of updates, and blocks can be computed apart and put together
afterwards: between chunks, between devices. A mixer says its own in `operator(*z, **w)`; b is what the block leaves in
an empty state, A what it leaves of a full one. Rows are taken to have begun before the block.

    (A, b) then (A', b')  =  (A' A, A' b + b')
"""

from typing import NamedTuple

import torch

from postx.scans import START, merge
from postx.shapes import map_state, state_dtype


class Fade(NamedTuple):
    """Every number of the state fades by itself: S -> A * S + b, where A broadcasts."""

    A: torch.Tensor
    b: torch.Tensor

    def __call__(self, S):
        return map_state(lambda A, b, S: A * S + b, self.A, self.b, S)

    def then(self, after):
        return Fade(map_state(torch.mul, after.A, self.A), after(self.b))


class Full(NamedTuple):
    """The rows of a table are mixed: S -> A S + b, with A_BHKK and b_BHKV."""

    A: torch.Tensor
    b: torch.Tensor

    def __call__(self, S):
        return self.A @ S + self.b

    def then(self, after):
        return Full(after.A @ self.A, after(self.b))


class Logspace(NamedTuple):
    """Sums stored times e^-max fade by e^A: their maximum takes the decay. b = (num, den, max).

    A maximum carries no gradient, so that of A goes through a factor of 1.
    """

    A: torch.Tensor
    b: tuple

    def __call__(self, S):
        num, den, top = S
        finite = torch.clamp(self.A, min=START)
        one = torch.exp(finite - finite.detach())
        return merge((one * num, one * den, top + self.A.detach()), self.b)

    def then(self, after):
        return Logspace(after.A + self.A, after(self.b))


def fade(g, S):
    """The operator of tokens with the log-decays g, [B,T,...], that leave S in an empty state."""
    A = g.sum(1, dtype=S.dtype).exp()
    return Fade(A.view(*A.shape, *[1] * (S.dim() - A.dim())), S)


def full(run, k_BTHK, v_BTHV):
    """The operator of a delta rule, run(v_BTHV, S) -> S: A is what it makes of the identity, unwritten to."""
    B, T, H, V = v_BTHV.shape
    K = k_BTHK.shape[-1]
    identity = torch.eye(K, dtype=state_dtype(v_BTHV.dtype), device=v_BTHV.device).expand(B, H, K, K)
    return Full(run(v_BTHV.new_zeros(B, T, H, K), identity.contiguous()), run(v_BTHV, None))
