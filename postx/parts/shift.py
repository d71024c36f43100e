"""Token shift: each token also sees the one before it. A convolution of width 2, and RWKV's only one."""

import torch

from postx.shapes import named


@named
def token_shift(x_BTD, S_BD=None, *, lengths_B=None, reset_BT=None):
    """The token before each token, and the last real one as the state: (previous_BTD, S_BD).

    S_BD is the token before the first (zeros if None). A token that begins a new sequence (reset_BT) is preceded
    by zeros. Source: Peng et al. 2023 (RWKV-4), sec. 3.1. Raises ValueError for wrong axes and lengths.
    """
    B, T, D = x_BTD.shape
    S_BD = x_BTD.new_zeros(B, D) if S_BD is None else S_BD
    with_first = torch.cat([S_BD[:, None].to(x_BTD.dtype), x_BTD], 1)
    last = torch.full((B,), T, device=x_BTD.device) if lengths_B is None else lengths_B.long()
    previous = with_first[:, :-1]
    if reset_BT is not None:
        previous = previous.masked_fill(reset_BT[..., None], 0)
    return previous, with_first[torch.arange(B, device=x_BTD.device), last]
