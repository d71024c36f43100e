"""Rotary positions: each pair of key channels turns by an angle that is proportional to the position."""

from dataclasses import dataclass

import torch

from postx.shapes import state_dtype

PAIRINGS = ("half", "interleaved")


@dataclass(frozen=True)
class Rope:
    """Turn pair i of the first `dims` channels by the angle position * base^(-2i / dims).

    Dot products of rotated queries and keys depend on the two positions only through their difference.
    `pairing="half"` makes pairs (i, i + dims/2), as GPT-NeoX and Llama's published weights do;
    `"interleaved"` makes pairs (2i, 2i+1), as the paper and DeepSeek do. The two differ by a fixed
    permutation of the channels, so weights trained with one give wrong answers under the other.
    `dims=None` rotates all channels. `frequencies`, one a pair, take the place of base^(-2i / dims) (Llama 3.1, YaRN).

    Raises ValueError for an unknown pairing, a base not above 0, or a width that is odd or larger than K.
    Source: Su et al. 2021 (RoFormer), sec. 3.2.2.
    """

    base: float = 10000.0
    pairing: str = "half"
    dims: int | None = None
    frequencies: tuple[float, ...] | None = None

    def __post_init__(self):
        if self.pairing not in PAIRINGS:
            raise ValueError(f"pairing: expected one of {', '.join(PAIRINGS)}, got {self.pairing!r}")
        if not self.base > 0:
            raise ValueError(f"base: expected a number above 0, got {self.base}")

    def turns(self, dims: int, device=None) -> torch.Tensor:
        """The angle a token of each pair, [dims / 2], float64."""
        if self.frequencies is None:
            return self.base ** (-2 * torch.arange(dims // 2, device=device, dtype=torch.float64) / dims)
        if len(self.frequencies) != dims // 2:
            raise ValueError(f"frequencies: expected {dims // 2}, one a pair, got {len(self.frequencies)}")
        return torch.tensor(self.frequencies, device=device, dtype=torch.float64)

    def rotate(self, x: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        """Rotate x [*position.shape, heads, K]; the result has the dtype of x.

        Angles are computed in float64: in float32 the angle of position 10^6 is already off by 0.05 radians.
        """
        K = x.shape[-1]
        dims = K if self.dims is None else self.dims
        if dims % 2 or not 0 < dims <= K:
            raise ValueError(f"rope: can rotate an even number of at most K={K} channels, got dims={dims}")
        wide = state_dtype(x.dtype)
        angle = position[..., None, None] * self.turns(dims, x.device)
        cos, sin = angle.cos().to(wide), angle.sin().to(wide)

        turned = x[..., :dims].to(wide)
        if self.pairing == "half":
            a, b = turned.chunk(2, -1)
            turned = torch.cat([a * cos - b * sin, a * sin + b * cos], -1)
        else:
            a, b = turned[..., 0::2], turned[..., 1::2]
            turned = torch.stack([a * cos - b * sin, a * sin + b * cos], -1).flatten(-2)
        return torch.cat([turned.to(x.dtype), x[..., dims:]], -1)
