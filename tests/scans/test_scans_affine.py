"""The affine recurrence: numba equals the reference and a closed form, gradients too; extremes; named errors."""

import contract
import pytest
import torch
from test_scans import numba_equals_reference, randn

from postx import scans

B, T, D = 2, 45, 70  # D crosses one block of channels


def inputs(dtype=torch.float64):
    return (
        -randn(B, T, D, dtype=dtype).abs(),
        randn(B, T, D, dtype=dtype, seed=1),
        randn(B, D, dtype=dtype, seed=2),
    )


@pytest.mark.parametrize(
    "lengths", [None, torch.tensor([45, 17]), torch.tensor([0, 1])], ids=["whole", "ragged", "0"]
)
def test_numba_equals_reference(lengths):
    def run(g, b, S, impl):
        return scans.affine(g, b, S, lengths_B=lengths, impl=impl)

    numba_equals_reference(run, *inputs())


@pytest.mark.parametrize("impl", scans.IMPLEMENTATIONS)
def test_equals_the_written_out_sum(impl):
    """h_t = exp(g_1 + .. + g_t) h_0 + sum over s of exp(g_{s+1} + .. + g_t) b_s."""
    g, b, S = inputs()
    want = torch.empty_like(b)
    for t in range(T):
        later = torch.stack([g[:, s + 1 : t + 1].sum(1) for s in range(t + 1)], 1)
        want[:, t] = (later.exp() * b[:, : t + 1]).sum(1) + g[:, : t + 1].sum(1).exp() * S
    y, last = scans.affine(g, b, S, impl=impl)
    assert contract.close((y, last), (want, want[:, -1])) <= contract.TOLERANCE


@pytest.mark.parametrize("impl", scans.IMPLEMENTATIONS)
def test_rates_at_the_ends(impl):
    g, b, _ = inputs()
    for rate, want in ((-torch.inf, b), (-1e9, b), (0.0, b.cumsum(1)), (-1e-15, b.cumsum(1))):
        y, _ = scans.affine(torch.full_like(g, rate), b, impl=impl)
        assert contract.close(y, want) <= contract.TOLERANCE


@pytest.mark.parametrize("impl", scans.IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", list(contract.BOUNDS), ids=str)
def test_state_is_at_least_float32_and_output_keeps_the_dtype(dtype, impl):
    g, b, S = inputs(dtype)
    y, last = scans.affine(g, b, S, impl=impl)
    assert y.dtype == dtype
    assert last.dtype == torch.float32
    want, _ = scans.affine(g.double(), b.double(), S.double(), impl="reference")
    assert contract.close(y, want, contract.BOUNDS[dtype]) <= contract.BOUNDS[dtype]


def test_views_with_odd_strides():
    g, b, S = inputs()
    views = [x.transpose(0, -1).contiguous().transpose(0, -1) for x in (g, b, S)]
    assert contract.close(scans.affine(*views), scans.affine(g, b, S), 0.0) == 0.0


def test_bad_input_is_named():
    g, b, S = inputs()
    with pytest.raises(ValueError, match=r"b_BTD: expected axes \[B, T, D\] with D=70"):
        scans.affine(g, b[..., :3])
    with pytest.raises(ValueError, match=r"S_BD: expected axes \[B, D\] with D=70"):
        scans.affine(g, b, S[:, :2])
    with pytest.raises(ValueError, match="impl: 'cuda' is not available here"):
        scans.affine(g, b, S, impl="cuda")
    with pytest.raises(ValueError, match="lengths_B: expected values from 0 to T=45"):
        scans.affine(g, b, S, lengths_B=torch.tensor([1, 46]))
