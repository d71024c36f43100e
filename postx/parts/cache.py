"""The cache of attention: what past tokens left behind, in slots, with the absolute position of each row.

A cache is a tuple (slots_BM..., pos_B): one or more tensors [B, M, ...] and the number of tokens that each
row has seen. Without a window, slot j holds position j and M grows. Under a window of W tokens the W slots
are a ring: position p lies in slot p mod W. Slots that were never written are exactly zero. A cache keeps the
dtype of what it stores, also in half precision: it copies inputs and accumulates nothing.
"""

from contextlib import contextmanager
from contextvars import ContextVar

import torch

FIRST_CAPACITY = 16
_roomy = ContextVar("roomy", default=False)


@contextmanager
def roomy():
    """Within, a cache has room for the next token, and its device is never asked how full it is: for a CUDA graph."""
    token = _roomy.set(True)
    try:
        yield
    finally:
        _roomy.reset(token)


def check_window(window) -> None:
    """Raise ValueError unless `window` is None or an integer of at least 1."""
    if window is not None and (isinstance(window, bool) or not isinstance(window, int) or window < 1):
        raise ValueError(f"window: expected None or an integer >= 1 (tokens), got {window!r}")


def check_ring(S, window: int | None) -> None:
    """Raise ValueError where a windowed cache has not exactly `window` slots."""
    check_window(window)
    M = S[0].shape[1]
    if window is not None and window != M:
        raise ValueError(f"S: a cache under window={window} has M={window} slots, got M={M}")


def held(pos_B: torch.Tensor, M: int, window: int | None) -> torch.Tensor:
    """The absolute position that each slot holds, [B, M]; -1 where the slot is empty."""
    slot_M = torch.arange(M, device=pos_B.device)
    last_B1 = pos_B[:, None] - 1
    if window is None or M == 0:
        return torch.where(slot_M <= last_B1, slot_M, -1)
    return (last_B1 - (last_B1 - slot_M) % M).clamp(min=-1)


def used(S) -> int:
    """How many leading slots can hold something in any row; the rest is spare capacity.

    A cache without slots holds nothing, and the device is not asked: training never waits for it.
    """
    *slots, pos_B = S
    M = slots[0].shape[1]
    return min(M, int(pos_B.max())) if M and not _roomy.get() else M


def unfilled(S):
    """An empty cache without its empty slots: what the first tokens of a text can look at."""
    *slots, pos_B = S
    return (*[x[:, :0] for x in slots], pos_B)


def append(S, token, window: int | None, *, inplace: bool = False):
    """Store one token per row: `token` is a tuple of tensors [B, ...], one for each tensor of slots.

    Pure by default: all tensors of the result are new. With `inplace=True` the slots of S are written, and
    where there is no room the capacity doubles: n tokens cost O(n) copies, not O(n^2). S is then spent.
    """
    *slots, pos_B = S
    M = slots[0].shape[1]
    if window is None and not _roomy.get():
        need = int(pos_B.max()) + 1
        if need > M:
            slots = grown(slots, need) if inplace else [_pad(x, need) for x in slots]
    index = (torch.arange(len(pos_B), device=pos_B.device), pos_B if window is None else pos_B % window)
    write = torch.Tensor.index_put_ if inplace else torch.Tensor.index_put
    slots = [write(x, index, new.to(x.dtype)) for x, new in zip(slots, token, strict=True)]
    return (*slots, pos_B + 1)


def grown(slots, need: int, exactly: bool = False):
    """Slots with room for `need` tokens, and for twice as many as before unless `exactly`."""
    return [_pad(x, max(need, x.shape[1] if exactly else max(2 * x.shape[1], FIRST_CAPACITY))) for x in slots]


def extend(S, tokens, lengths_B: torch.Tensor | None, window: int | None):
    """Store T tokens per row (of row b only the first lengths_B[b]); S is left as it was.

    Whole rows in an empty cache are the tokens themselves: a prompt's keys are not copied to be kept.
    """
    *slots, pos_B = S
    T = tokens[0].shape[1]
    if window is None and lengths_B is None and not slots[0].shape[1]:
        return (*(new.to(x.dtype) for x, new in zip(slots, tokens, strict=True)), pos_B + T)
    after_B = pos_B + (T if lengths_B is None else lengths_B.to(pos_B))
    M = window or (T if lengths_B is None else int(after_B.max()))
    if slots[0].shape[1] and window is None:
        M = max(slots[0].shape[1], int(after_B.max()))
    source_BM = held(after_B, M, window) - pos_B[:, None]  # which new token; negative: it stays
    row_B1 = torch.arange(len(pos_B), device=pos_B.device)[:, None]
    fresh_BM = source_BM >= 0
    filled = []
    for x, new in zip(slots, tokens, strict=True):
        taken = new[row_B1, source_BM.clamp(0, T - 1)].to(x.dtype)
        filled.append(torch.where(fresh_BM.view(*fresh_BM.shape, *[1] * (x.dim() - 2)), taken, _pad(x, M)))
    return (*filled, after_B)


def join(S, tokens, window: int | None):
    """What T new tokens can look at: the cached tokens followed by the new ones, copied where there are both.

    Returns (joined, position_BM, cached): tensors [B, cached + T, ...], the absolute position of each source
    (-1 where there is none), and the number of slots that come from the cache.
    """
    *slots, pos_B = S
    cached = used(S)
    joined = [new.to(x.dtype) for x, new in zip(slots, tokens, strict=True)]
    if cached:
        joined = [torch.cat([x[:, :cached], new], 1) for x, new in zip(slots, joined, strict=True)]
    position_BM = held(pos_B, slots[0].shape[1], window)[:, :cached]
    return joined, torch.cat([position_BM, positions(pos_B, tokens[0].shape[1])], 1), cached


def positions(pos_B: torch.Tensor, T: int) -> torch.Tensor:
    """The absolute positions of the next T tokens, [B, T]."""
    return pos_B[:, None] + torch.arange(T, device=pos_B.device)


def visible(position_BT: torch.Tensor, position_BM: torch.Tensor, window: int | None) -> torch.Tensor:
    """Whether a token may look at a source, [B, T, M]: it is not empty, not later, and within the window."""
    t, m = position_BT[:, :, None], position_BM[:, None, :]
    seen = (m >= 0) & (m <= t)
    return seen if window is None else seen & (m > t - window)


def _pad(x: torch.Tensor, M: int) -> torch.Tensor:
    if x.shape[1] == M:
        return x
    return torch.cat([x, x.new_zeros(x.shape[0], M - x.shape[1], *x.shape[2:])], 1)
