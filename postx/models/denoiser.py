"""A small network that reads a whole noisy text at once: the blocks of `postx.models.lm`, with attention both ways.

    x = embed(ids) or project(z)  (+ time)      at each layer: x = x + attention(norm(x)), x = x + mlp(norm(x))
    logits = head(norm(x))

It answers for every place what the clean token there is: logits_BTY. It is the language model of the book with the
causal mask taken off, so that a comparison with the kept attention model is one of objectives, not of networks.
"""

import math

import torch
from torch import nn
from torch.nn import functional

from postx.diffusion import check_ids
from postx.models import capabilities
from postx.models.blocks import NORMS, Block, Context
from postx.shapes import check


class Denoiser(nn.Module):
    """logits_BTY = net(ids_BT, sigma_B=None): Y clean tokens; ids run from 0 to Y, where Y is the mask.

    Sizes are `LM`'s: L layers of H heads and a gated MLP of width F (8/3 D by default), rotary positions, the head
    tied to the embedding of the Y clean tokens. conditioned=True adds a time: net(ids_BT, t_B), where any number of
    each row will do (sigma for SEDD, t for Plaid). R > 0 takes vectors: net(z_BTR, t_B, guess_BTR=None), with a guess
    (self-conditioning; zeros where there is none) beside them; the head then has weights of its own.
    Raises ValueError for a time where none is expected, or none where one is, and for vectors likewise.
    """

    def __init__(self, D, L, Y=256, *, H=4, F=None, R=0, conditioned=False, norm="rms", eps=1e-5, std=0.02):
        super().__init__()
        self.Y, self.R, self.conditioned = Y, R, conditioned
        self.embed = nn.Linear(2 * R, D, bias=False) if R else nn.Embedding(Y + 1, D)
        self.time = Time(D) if conditioned else None
        options = {"A": {"H": H, "causal": False}, "F": {"F": F}}
        self.blocks = nn.ModuleList(Block(D, "A", "F", options, NORMS[norm], eps) for _ in range(L))
        self.norm = NORMS[norm](D, eps)
        self.head = nn.Linear(D, Y, bias=False) if R else None
        self._start(std)

    @property
    def capabilities(self):
        """What it can do; a bound on a text's bits is that of masks over ids, not of vectors or of other times."""
        told = capabilities.MASKED
        return told._replace(scores="") if self.R or self.conditioned else told

    def _start(self, std):
        """Normal weights of deviation std; what writes to the stream is scaled by (2 L)^-1/2, as in `LM`."""
        scale = (2 * max(1, len(self.blocks))) ** -0.5
        if not self.R:
            nn.init.normal_(self.embed.weight, std=std)
        if self.head is not None:
            nn.init.normal_(self.head.weight, std=std)
        for block in self.blocks:
            for part in (*block.mix, block.mlp):
                for name, child in part.named_children():
                    if isinstance(child, nn.Linear):
                        nn.init.normal_(child.weight, std=std * (scale if name == "out" else 1))

    def forward(self, x, t_B=None, guess_BTR=None):
        if self.R:
            sizes = check({"R": self.R}, z_BTR=x)
            check(sizes, guess_BTR=guess_BTR)
            h = self.embed(torch.cat([x, torch.zeros_like(x) if guess_BTR is None else guess_BTR], -1))
        else:
            if guess_BTR is not None:
                raise ValueError("guess_BTR: a denoiser of ids (R=0) takes no guess")
            sizes = check(ids_BT=x)
            check_ids(x, self.Y + 1)  # the mask is one of them
            h = self.embed(x)
        if (t_B is None) == self.conditioned:
            said = "expects a time for each row" if self.conditioned else "takes no time"
            raise ValueError(f"t_B: a denoiser with conditioned={self.conditioned} {said}")
        if self.conditioned:
            check({"B": sizes["B"]}, t_B=t_B)
            h = h + self.time(t_B.to(h.dtype))[:, None]
        for block in self.blocks:
            h, _, _ = block(h, None, Context())
        weight = self.embed.weight[: self.Y] if self.head is None else self.head.weight
        return functional.linear(self.norm(h), weight)


class Time(nn.Module):
    """A number for each row to a vector: sines and cosines of log(t) at many frequencies, then a small MLP. [B, D].

    The logarithm spreads noise levels that differ by factors (sigma from 1e-4 to 20) evenly.
    """

    def __init__(self, D, waves=32):
        super().__init__()
        self.waves = waves
        self.up, self.out = nn.Linear(2 * waves, D), nn.Linear(D, D)

    def forward(self, t_B):
        # No buffer: what no file keeps would be anything in a module that is built on the meta device and then loaded.
        octave_N = torch.linspace(-5, 2, self.waves, dtype=torch.float32, device=t_B.device)
        angle = t_B.clamp(min=1e-6).log()[:, None] * (2 * math.pi * 2.0**octave_N).to(t_B.dtype)
        return self.out(functional.silu(self.up(torch.cat([angle.sin(), angle.cos()], -1))))
