"""Mamba beyond the contract: the paper's definition, what delta means, the associative scan, the block."""

import contract
import pytest
import torch

from postx.mixers import mamba


def by_definition(u, delta, write, read, A, skip):
    """Gu & Dao 2023, eqs. 2a, 2b and 4 with Bbar = delta B, one channel and one state at a time."""
    B, T, D = u.shape
    y = torch.zeros_like(u)
    for b in range(B):
        for d in range(D):
            for n in range(A.shape[1]):
                h = 0.0
                for t in range(T):
                    h = torch.exp(delta[b, t, d] * A[d, n]) * h + delta[b, t, d] * write[b, t, n] * u[b, t, d]
                    y[b, t, d] += read[b, t, n] * h
    return y + skip * u


@pytest.mark.parametrize("form", ["recurrent", "parallel", "chunked"])
def test_agrees_with_the_definition(form):
    z, w = mamba.example(23)
    want = by_definition(*z, w["A_DN"], w["skip_D"])
    got = contract.run(mamba, form, z, w)[0]
    assert contract.close(got, want) <= contract.TOLERANCE


@pytest.mark.parametrize("form", ["recurrent", "parallel", "chunked"])
def test_a_token_with_delta_zero_is_passed_over(form):
    """The state afterwards is as if the token had not been there: how filler is ignored."""
    z, w = mamba.example(20)
    filler = torch.zeros(20, dtype=torch.bool)
    filler[[3, 4, 5, 11]] = True
    u, delta, write, read = z
    delta = torch.where(filler[:, None], 0.0, delta)
    y, S = contract.run(mamba, form, (u, delta, write, read), w)
    kept = tuple(x[:, ~filler] for x in (u, delta, write, read))
    y_kept, S_kept = contract.run(mamba, form, kept, w)
    assert contract.close((y[:, ~filler], S), (y_kept, S_kept)) <= contract.TOLERANCE


def test_a_long_delta_replaces_the_state():
    """At delta A = -1000 nothing of the past is left: y = delta u (write . read) + skip u."""
    (u, delta, write, read), w = mamba.example(9)
    delta = torch.full_like(delta, 1000.0)
    y, _ = mamba.recurrent(u, delta, write, read, **w)
    want = 1000 * u * (write * read).sum(-1, keepdim=True) + w["skip_D"] * u
    assert contract.close(y, want) <= contract.TOLERANCE


def test_compose_where_a_quotient_of_products_would_be_nan():
    keep = torch.full((1, 300, 1, 1), 1e-3, dtype=torch.float64)
    written = torch.randn(1, 300, 1, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    quotient = keep.cumprod(1) * (written / keep.cumprod(1)).cumsum(1)
    assert not quotient.isfinite().all()
    _, h = mamba.compose(keep, written)
    want, state = [], torch.zeros(1, 1, 1, dtype=torch.float64)
    for t in range(300):
        state = keep[:, t] * state + written[:, t]
        want.append(state)
    assert contract.close(h, torch.stack(want, 1)) <= contract.TOLERANCE


def test_errors_name_the_argument():
    z, w = mamba.example(4)
    with pytest.raises(ValueError, match=r"delta_BTD: expected axes \[B, T, D\]"):
        mamba.recurrent(z[0], z[1][..., :2], *z[2:], **w)
    with pytest.raises(ValueError, match=r"A_DN: expected axes \[D, N\] with D=5"):
        mamba.recurrent(*z, A_DN=w["A_DN"][:3], skip_D=w["skip_D"])
    with pytest.raises(ValueError, match="chunk: expected a whole number >= 1, got 0"):
        mamba.chunked(*z, chunk=0, **w)
    with pytest.raises(ValueError, match=r"S_BDN: expected axes"):
        mamba.chunked(*z, S=torch.zeros(2, 5, 1), **w)
    with pytest.raises(ValueError, match="impl: 'cuda' is not available here"):
        mamba.recurrent(*z, impl="cuda", **w)


def test_layer_starts_as_the_paper_says():
    torch.manual_seed(0)
    layer = mamba.Layer(64)
    delta = torch.nn.functional.softplus(layer.delta.bias)
    assert delta.min() >= 1e-3 * 0.999
    assert delta.max() <= 0.1 * 1.001
    assert torch.allclose(-layer.log_rate_DN.exp(), -torch.arange(1.0, 17).expand(128, 16))
    assert layer.inward.weight.shape == (256, 64)
    assert layer.delta.weight.shape == (128, 4)
