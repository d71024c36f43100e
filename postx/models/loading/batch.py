"""Batches of texts of unequal length, as other libraries pad them: on the left, with a mask."""

import torch

from postx.shapes import check


def left_padded(ids_BT, mask_BT):
    """(ids_BT, lengths_B) with each row's real tokens first, as `LM` takes them; mask is true (1) where one is real.

    Raises ValueError where a row's padding does not stand on the left alone.
    """
    check({"B": ids_BT.shape[0], "T": ids_BT.shape[1]}, mask_BT=mask_BT)
    mask, T = mask_BT.bool(), ids_BT.shape[1]
    lengths_B = mask.sum(1)
    place_T = torch.arange(T, device=ids_BT.device)
    if not torch.equal(mask, place_T >= T - lengths_B[:, None]):
        raise ValueError("mask_BT: expected each row's padding on the left, and on the left alone")
    from_BT = (place_T + T - lengths_B[:, None]).clamp(max=T - 1)
    return ids_BT.gather(1, from_BT).masked_fill(place_T >= lengths_B[:, None], 0), lengths_B
