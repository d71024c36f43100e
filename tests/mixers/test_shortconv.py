"""LFM2's gated short convolution against torch's own convolution, its reach, its state, its layer with resets."""

import contract
import pytest
import torch
from torch import nn

from postx.mixers import shortconv

FORMS = ("recurrent", "parallel")


@pytest.mark.parametrize("form", FORMS)
def test_equals_the_definition_with_torchs_convolution(form):
    (b, c, x), w = shortconv.example(20)
    D, W = w["weight_DW"].shape
    conv = nn.Conv1d(D, D, W, groups=D, padding=W - 1, bias=False).double()
    conv.weight.data = w["weight_DW"][:, None]
    want = c * conv((b * x).mT)[..., :20].mT
    y, S = getattr(shortconv, form)(b, c, x, **w)
    assert contract.close((y, S), (want, (b * x)[:, -W + 1 :])) <= contract.TOLERANCE


@pytest.mark.parametrize("form", FORMS)
def test_reach_is_w_tokens(form):
    (b, c, x), w = shortconv.example(9)
    changed = x.clone()
    changed[:, 2] += 1
    moved = (
        getattr(shortconv, form)(b, c, changed, **w)[0] - getattr(shortconv, form)(b, c, x, **w)[0]
    ).abs()
    assert moved.amax((0, 2)).gt(1e-12).tolist() == [False, False, True, True, True] + [False] * 4


def test_one_tap_needs_no_state():
    (b, c, x), w = shortconv.example(6, W=1)
    for form in FORMS:
        y, S = getattr(shortconv, form)(b, c, x, **w)
        assert S.shape == (2, 0, 5)
        assert contract.close(y, c * b * x * w["weight_DW"][:, 0]) <= contract.TOLERANCE



def test_bad_input_is_named():
    z, w = shortconv.example(4)
    with pytest.raises(ValueError, match=r"c_BTD: expected axes \[B, T, D\] with T=4"):
        shortconv.parallel(z[0], z[1][:, :2], z[2], **w)
    with pytest.raises(
        ValueError, match=r"S_BWD: expected axes \[B, W-1, D\] with W=3 \(from weight_DW\), got shape \(2, 3, 5\)"
    ):
        shortconv.recurrent(*z, **w, S=torch.zeros(2, 3, 5))
