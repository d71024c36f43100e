"""Token shift, and the layers around the decaying mixers: ragged rows, resets, packed sequences."""

import contract
import pytest
import torch

from postx import mixers
from postx.parts.shift import token_shift

LAYERS = ("retnet", "gla", "rwkv4", "rwkv6")


def test_shift_is_the_token_before():
    x = torch.arange(24.0).view(2, 4, 3)
    previous, last = token_shift(x)
    assert torch.equal(previous, torch.cat([torch.zeros(2, 1, 3), x[:, :-1]], 1))
    assert torch.equal(last, x[:, -1])
    previous, _ = token_shift(x, last)
    assert torch.equal(previous[:, 0], last)


def test_shift_of_ragged_rows_and_resets():
    x, S = torch.arange(24.0).view(2, 4, 3), torch.full((2, 3), -1.0)
    reset = torch.tensor([[False, True, False, False], [True, False, False, False]])
    previous, last = token_shift(x, S, lengths_B=torch.tensor([2, 0]), reset_BT=reset)
    assert torch.equal(previous[0, :2], torch.stack([S[0], torch.zeros(3)]))
    assert torch.equal(last, torch.stack([x[0, 1], S[1]]))
    with pytest.raises(ValueError, match=r"S_BD: expected axes \[B, D\] with D=3"):
        token_shift(x, S[:, :2])
    with pytest.raises(ValueError, match="lengths_B: expected values from 0 to T=4"):
        token_shift(x, lengths_B=torch.tensor([5, 1]))


@pytest.mark.parametrize("name", ["linear", *LAYERS])
def test_what_pads_a_row_is_never_read(name):
    mixer, lengths = mixers.load(name), torch.tensor([9, 13])
    z, w = mixer.example(20)
    past = torch.arange(20) >= lengths[:, None]
    broken = tuple(x.masked_fill(past.view(*past.shape, *[1] * (x.dim() - 2)), torch.nan) for x in z)
    for form in mixers.forms(mixer):
        want = contract.run(mixer, form, z, w, lengths_B=lengths)
        assert contract.close(contract.run(mixer, form, broken, w, lengths_B=lengths), want, 0.0) == 0


@pytest.mark.parametrize("name", LAYERS)
def test_layer_keeps_packed_sequences_apart(name):
    torch.manual_seed(0)
    layer, x = mixers.load(name).Layer(16).double(), torch.randn(1, 20, 16, dtype=torch.float64)
    reset = torch.zeros(1, 20, dtype=torch.bool)
    reset[0, [0, 7, 8]] = True
    y, S = layer(x, reset_BT=reset)
    alone = [layer(x[:, a:b]) for a, b in ((0, 7), (7, 8), (8, 20))]
    assert contract.close(y, torch.cat([part for part, _ in alone], 1)) <= contract.TOLERANCE
    if name != "retnet":  # whose keys are rotated by their place in the row: only differences of places count
        assert contract.close(S, alone[-1][1]) <= contract.TOLERANCE


@pytest.mark.parametrize("name", LAYERS)
def test_layer_continues_each_row_from_its_own_end(name):
    torch.manual_seed(0)
    layer, x = mixers.load(name).Layer(16).double(), torch.randn(2, 12, 16, dtype=torch.float64)
    y, S = layer(x)
    lengths = torch.tensor([5, 9])
    y_a, S_a = layer(x, lengths_B=lengths)
    for row, cut in enumerate(lengths.tolist()):
        assert contract.close(y_a[row, :cut], y[row, :cut]) <= contract.TOLERANCE
        S_row = tuple(part[row : row + 1] for part in S_a)
        y_b, S_b = layer(x[row : row + 1, cut:], S_row)
        want = tuple(part[row : row + 1] for part in S)
        assert contract.close((y_b, S_b), (y[row : row + 1, cut:], want)) <= contract.TOLERANCE
