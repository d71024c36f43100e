"""Writing a token at a time on a CPU: a model's weights laid out once, and each place of its stack one compiled loop.

`LM.forward` on one token takes some hundreds of small operations, whose calls cost several times what they compute. A
`Writer` computes the same token with two calls a place. It is for one row in float32; the definition stays
`LM.forward`, which it equals but for the order of its sums: logits within 1e-5 of the largest.

A place without a plan (see `_stages.PLANS`) runs as it always does, within the same token; `Writer.ordinary` has their
numbers. Weights whose lower 16 bits are zero, as of a kept model stored in bfloat16, are read without them; rows of
-s, 0 and s as int8; `Packed` layers of 4, 3 and 2 bits as their codes. None of it changes a number.
"""

import numpy as np
import torch
from torch import nn

from postx.models import _token
from postx.models._stages import LEAVES, PLANS, Norm, lay_out, own
from postx.models.blocks import Context
from postx.models.nn import RMSNorm
from postx.models.states import leaves
from postx.scans.runtime import COMPILED

PAYS_FROM = 4  # tokens: laying out the weights takes about as long as two calls of the model


def refused(lm, B, n=PAYS_FROM, S=()):
    """Why n tokens of B rows behind S are written by calls of the model, or None where a `Writer` does it."""
    if not COMPILED:
        return "numba's compiler is switched off"
    if B != 1 or n < PAYS_FROM:
        return f"a writer is for one row and at least {PAYS_FROM} tokens"
    if any(x.device.type != "cpu" or x.dtype != torch.float32 for x in lm.parameters()):
        return "a writer is for float32 on a CPU"
    if any(x.is_floating_point() and x.dtype != torch.float32 for x in leaves(S)):
        return "a writer is for a state in float32"
    if torch.is_autocast_enabled("cpu"):
        return "autocast computes in another dtype"
    if type(lm.norm) is not RMSNorm or any(changed(part) for part in (lm.embed, lm.norm)) or hooked(lm):
        return "the model's own parts are others than a writer knows"
    if lm.shared is not None and lm.shared.next_only:
        return "what the shared block hands to the next place is no part of the stream"
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
    made_of = [m for part in parts for m in part.modules() if m is not part and not isinstance(m, nn.ModuleList)]
    return (
        all(type(part) in PLANS and PLANS[type(part)].fits(part) for part in parts)
        and all(type(child) in LEAVES for child in made_of)
        and all(type(norm) is RMSNorm for norm in (block.norm, block.mlp_norm) if norm is not None)
        and block.carried == [None, None]
        and not changed(block)
    )


class Ordinary:
    """A place without a plan: its `forward`."""

    def __init__(self, block, S, writer):
        self.block, self.S, self.writer = block, S, writer

    def __call__(self):
        x_BTD = self.writer.stream[None, None]
        y, self.S, _ = self.block(x_BTD, self.S, self.writer.context)
        x_BTD.copy_(y)


class Writer:
    """A model that goes on from a state S, which it copies: writer(ids_B) -> logits_BY of the next token, for one row.

    The logits are overwritten by the next call. `state()` is what `LM.forward` would have returned. `ordinary` holds
    the numbers of the places without a plan. Raises ValueError with what `refused` says, and for more than one row.
    """

    def __init__(self, lm, S):
        tensors = leaves(S)
        if (why := refused(lm, len(tensors[0]) if tensors else 1, S=S)) is not None:
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
        last = lm.embed if lm.head is None else lm.head
        (head,) = lay_out([last])
        logits = torch.from_numpy(head.room)[None]
        self.logits_BY = logits[:, : lm.embed.num_embeddings]
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

    @torch.no_grad()
    def __call__(self, ids_B):
        if len(ids_B) != 1:
            raise ValueError(f"ids_B: a writer is for one row, got {len(ids_B)}")
        x_BTD, cross = self.lm.enter(ids_B[:, None])
        self.stream.copy_(x_BTD[0, 0])
        if self.ordinary:
            self.context = Context(form=self.lm.form, inplace=True, cross=cross)
        for stage in self.run:
            stage()
        _token.head(*self.args)
        return self.lm.bent(self.logits_BY)

    def state(self):
        """The state after the last token, of which the writer goes on to use the tensors."""
        return tuple(
            place.S if isinstance(place, Ordinary) else tuple(stage.state for stage in place) for place in self.places
        )
