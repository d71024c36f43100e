"""Writing on a GPU: one step of a model captured as a CUDA graph, so that a token costs no call from Python.

A model's step is some hundreds of small kernels, and to launch them one by one takes longer than they run. A graph is
launched as a whole. Its shapes are fixed: the number of rows is, the recurrent states are, and a cache is given room
for all tokens to come beforehand. What is captured is `LM.forward` itself on one token, the definition.
"""

import torch

from postx.models.blocks import Place
from postx.models.nn import ChannelMix
from postx.models.writer import changed
from postx.parts import cache
from postx.shapes import map_state, trusted

PAYS_FROM = 8  # tokens: to warm up and to capture takes about as long as a few calls of the model


def refused(lm, n, eos=None, B=1):
    """Why n tokens are written by calls of the model, or None where a `Graph` does it."""
    if not any(block.mix or isinstance(block.mlp, ChannelMix) for block in lm.blocks):
        return "without a state nothing says how many rows there are"
    if not lm.embed.weight.is_cuda:
        return "a graph is for a CUDA device"
    if n < PAYS_FROM:
        return f"a graph pays from {PAYS_FROM} tokens on"
    if eos is not None and B > 1:
        return "rows that end on their own change what a step computes"
    if torch.is_autocast_enabled("cuda"):
        return "autocast keeps its copies of the weights, which a graph would outlive"
    return "Python that hangs on the model would run only once" if changed(lm) else None


class Graph:
    """A model that goes on from a state S, which it copies: graph(ids_B) -> logits_BY of the next token.

    `room`: tokens that will be written, at most; the caches are made as long. The logits are overwritten by the next
    call. `state()` is the state after the last token; the next call writes into it. Raises ValueError with what
    `refused` says, and for more tokens than there is room for.
    """

    def __init__(self, lm, S, room):
        if (why := refused(lm, room)) is not None:
            raise ValueError(f"lm: {why}")
        self.lm, self.room, self.written = lm, room, 0
        self.S = tuple(
            tuple(self._own(part, S_i) for part, S_i in zip([*block.mix, block.mlp], S_B, strict=False))
            for block, S_B in zip(lm.blocks, S, strict=True)
        )
        first = next(x for S_B in self.S for S_i in S_B for x in S_i)
        self.ids_B = torch.zeros(len(first), dtype=torch.int64, device=first.device)
        aside = torch.cuda.Stream(first.device)
        aside.wait_stream(torch.cuda.current_stream(first.device))
        with torch.cuda.stream(aside):  # compiles kernels; a cache's slot that it writes is the next token's own
            self._step()
        torch.cuda.current_stream(first.device).wait_stream(aside)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.logits_BY, after = self._step()
            map_state(lambda x, new: None if x is new else x.copy_(new), self.S, after)

    def _own(self, part, S):
        """A copy of a part's state; a cache that grows with room for all that is to come."""
        S = map_state(lambda x: x.clone(memory_format=torch.contiguous_format), S)
        owner = self.lm.shared.attention if isinstance(part, Place) else part
        if "inplace" not in getattr(part, "TAKES", ()) or getattr(owner, "window", None) is not None:
            return S
        at = next(i for i, x in enumerate(S) if not x.is_floating_point())  # slots..., position, what follows
        return *cache.grown(S[:at], int(S[at].max()) + self.room, exactly=True), *S[at:]

    @torch.no_grad()
    def _step(self):
        with trusted(), cache.roomy():
            logits, S = self.lm(self.ids_B[:, None], self.S, inplace=True)
        return logits[:, -1], S

    def __call__(self, ids_B):
        if self.written == self.room:
            raise ValueError(f"room: {self.room} tokens were written, and the caches have no room for more")
        self.written += 1
        self.ids_B.copy_(ids_B)
        self.graph.replay()
        return self.logits_BY

    def state(self):
        """The state after the last token."""
        return self.S
