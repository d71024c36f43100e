"""The sliding dot product: numba equals the reference and torch's convolution, gradients too; named errors."""

import contract
import pytest
import torch
from test_scans import numba_equals_reference, randn

from postx import scans


@pytest.mark.parametrize(("T", "D", "W"), [(1, 1, 1), (70, 3, 4), (70, 70, 1), (5, 130, 90), (130, 2, 65)])
def test_numba_equals_reference(T, D, W):
    """Over the edges of the blocks of tokens and of channels, and with windows longer than the text."""

    def run(x, weight, impl):
        return (scans.fir(x, weight, impl=impl),)

    numba_equals_reference(run, randn(2, T + W - 1, D), randn(D, W, seed=1))


@pytest.mark.parametrize("impl", scans.IMPLEMENTATIONS)
def test_equals_torchs_convolution(impl):
    x, weight = randn(2, 40, 5), randn(5, 7, seed=1)
    want = torch.nn.functional.conv1d(x.mT, weight[:, None], groups=5).mT
    assert contract.close(scans.fir(x, weight, impl=impl), want) <= contract.TOLERANCE


@pytest.mark.parametrize("impl", scans.IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_sums_are_made_in_float32(dtype, impl):
    x, weight = randn(2, 40, 5).to(dtype), randn(5, 7, seed=1).to(dtype)
    y = scans.fir(x, weight, impl=impl)
    assert y.dtype == torch.float32
    assert contract.close(y, scans.fir(x.double(), weight.double()), 1e-5) <= 1e-5


def test_bad_input_is_named():
    x, weight = randn(2, 40, 5), randn(5, 7)
    with pytest.raises(ValueError, match=r"weight_DW: expected axes \[D, W\] with D=5"):
        scans.fir(x, weight[:2])
    with pytest.raises(ValueError, match="x_BMD: expected at least W=7 >= 1 inputs, got M=6"):
        scans.fir(x[:, :6], weight)
    with pytest.raises(ValueError, match="x_BMD: expected at least W=0 >= 1 inputs, got M=40"):
        scans.fir(x, weight[:, :0])
    with pytest.raises(ValueError, match="impl: 'cuda' is not available here"):
        scans.fir(x, weight, impl="cuda")
