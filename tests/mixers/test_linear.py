"""Linear attention against its definition: weights phi(q).phi(k), divided by their sum."""

import contract
import pytest
import torch

from postx.mixers import linear


def by_definition(q_BTHK, k_BTGK, v_BTGV):
    """All weights at once, as Katharopoulos et al. 2020 write them (eq. 9), with keys repeated for each reader."""
    share = q_BTHK.shape[2] // k_BTGK.shape[2]
    k, v = (x.repeat_interleave(share, 2) for x in (k_BTGK, v_BTGV))
    weights = torch.einsum("bthk,bmhk->bhtm", linear.phi(q_BTHK), linear.phi(k)).tril()
    return torch.einsum("bhtm,bmhv->bthv", weights / weights.sum(-1, keepdim=True), v)


@pytest.mark.parametrize("form", ["recurrent", "parallel", "chunked"])
def test_every_form_is_the_definition(form):
    z, _ = linear.example(33)
    assert contract.close(getattr(linear, form)(*z)[0], by_definition(*z)) <= contract.TOLERANCE


def test_outputs_are_averages():
    """Weights are positive and add up to one, so no output leaves the range of the values."""
    (q, k, v), _ = linear.example(40)
    y, _ = linear.recurrent(10 * q, 10 * k, v)
    assert y.max() <= v.max()
    assert y.min() >= v.min()
    ones, _ = linear.recurrent(q, k, torch.ones_like(v))
    assert contract.close(ones, torch.ones_like(ones), 1e-12) <= 1e-12


def test_phi_is_elu_plus_one_without_its_underflow():
    x = torch.linspace(-5, 5, 101, dtype=torch.float64)
    assert contract.close(linear.phi(x), torch.nn.functional.elu(x) + 1, 1e-15) <= 1e-15
    low = torch.tensor([-18.0, -60.0])
    assert (torch.nn.functional.elu(low) + 1 == 0).all()  # what phi avoids
    assert (linear.phi(low) > 0).all()
    assert (linear.phi(low.bfloat16()) > 0).all()
    assert linear.phi(low.bfloat16()).dtype == torch.float32


@pytest.mark.parametrize("form", ["recurrent", "parallel", "chunked"])
def test_a_denominator_of_zero_gives_zero(form):
    (q, k, v), _ = linear.example(5)
    y, _ = getattr(linear, form)(q, torch.full_like(k, -1e4), v)  # exp(-1e4) is 0 in any dtype
    assert (y == 0).all()
    late = k.clone()
    late[:, :2] = -1e4
    y, _ = getattr(linear, form)(q, late, v)
    assert (y[:, :2] == 0).all()
    assert y.isfinite().all()
    assert (y[:, 2:] != 0).any()


def test_the_order_of_the_past_does_not_matter():
    z, _ = linear.example(20)
    shuffled = torch.cat([torch.randperm(19, generator=torch.Generator().manual_seed(0)), torch.tensor([19])])
    y, S = linear.recurrent(*z)
    y_shuffled, S_shuffled = linear.recurrent(*(x[:, shuffled] for x in z))
    assert contract.close((y_shuffled[:, -1], S_shuffled), (y[:, -1], S)) <= contract.TOLERANCE


def test_errors():
    z, _ = linear.example(4)
    with pytest.raises(ValueError, match="chunk: expected a whole number >= 1, got 0"):
        linear.chunked(*z, chunk=0)
    with pytest.raises(ValueError, match=r"v_BTGV: expected axes \[B, T, G, V\] with G=2"):
        linear.recurrent(z[0], z[1], z[2][:, :, :1])
    with pytest.raises(ValueError, match="k_BTGK: 3 heads do not divide the 4"):
        linear.parallel(z[0], *(x[:, :, [0, 0, 0]] for x in z[1:]))
