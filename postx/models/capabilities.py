"""What a model can do, said by the model itself: a caller asks for that, and not for the architecture's name.

    model.capabilities.streams, .scores, .rewinds, ...

| | streams | scores | rewinds | shares a prefix | fills a gap | state bounded by |
|---|---|---|---|---|---|---|
| attention | yes | exactly | yes | yes | no | nothing: every token adds to it |
| a window, a recurrence | yes | exactly | no | yes | no | a number of bytes |
| a denoiser of masks | no | by a bound | no | no | yes | it has none |
| an encoder | no | no | no | no | no | it has none |
"""

from typing import NamedTuple

from postx.mixers import attention, mla
from postx.models.blocks import Place, Positions
from postx.models.nn import ChannelMix


class Capabilities(NamedTuple):
    """What a caller can ask of a model.

    streams: write token after token, each after reading one. scores: "exactly", where the model gives the probability
    of a text, "by a bound", where it gives an upper bound on its bits, or "" for neither. rewinds: go back to an older
    state without reading again (`rewound`). shares_prefix: read a beginning once for many continuations. fills_gap:
    write the middle of a text, given both ends. state_bytes: what the state of one text never exceeds, 0 for a model
    without one, None where it grows with the text.
    """

    streams: bool
    scores: str
    rewinds: bool
    shares_prefix: bool
    fills_gap: bool
    state_bytes: int | None

    @property
    def bounded(self):
        return self.state_bytes is not None


def of_lm(lm):
    """A causal model's, from what its layers keep."""
    parts = [part for block in lm.blocks for part in block.mix if not isinstance(part, (Positions, Place))]
    parts += [] if lm.shared is None else [lm.shared.attention]
    caches = [part for part in parts if isinstance(part, (attention.Layer, mla.Layer))]
    whole = [part for part in caches if getattr(part, "window", None) is None]
    # Every other part keeps a fixed number of numbers; a ring is allocated at once.
    state_bytes = None if whole else lm.state_bytes(1)
    rewinds = len(whole) == len(parts) and not any(_remembers(part) for part in whole)
    rewinds &= not any(isinstance(block.mlp, ChannelMix) for block in lm.blocks)  # it keeps the last token
    return Capabilities(True, "exactly", rewinds, True, False, state_bytes)


def _remembers(part):
    """Whether a cache stands behind a short convolution, whose last inputs cannot be taken back."""
    return isinstance(part, attention.Layer) and part.conv.taps_DW is not None


MASKED = Capabilities(False, "by a bound", False, False, True, 0)
ENCODER = Capabilities(False, "", False, False, False, 0)


def rewound(lm, S, tokens):
    """The state S as it was `tokens` tokens ago; S is left as it is. Raises ValueError for a model that cannot.

    Only positions are taken back: slots behind them are not read, and are written over.
    """
    if not lm.capabilities.rewinds:
        raise ValueError("lm: it keeps a summary of its past, which cannot be taken back; keep a copy of the state")
    read = [int(x) for place in S for part in place if part for x in part[-1]]
    least = min(read, default=tokens)  # where nothing is kept, there is nothing to take back
    if isinstance(tokens, bool) or not isinstance(tokens, int) or not 0 <= tokens <= least:
        raise ValueError(f"tokens: expected 0 to {least}, all that were read, got {tokens}")
    return tuple(tuple((*part[:-1], part[-1] - tokens) if part else part for part in place) for place in S)
