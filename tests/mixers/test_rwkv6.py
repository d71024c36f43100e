"""RWKV-6 against its definition in loops: read before the update, the bonus, no scale; limits and state."""

import contract
import pytest
import torch

from postx import mixers
from postx.mixers import gla, rwkv6

FORMS = [("recurrent", {}), ("parallel", {}), ("chunked", {"chunk": 5}), ("chunked", {})]


def by_hand(q, k, v, g, u):
    """y_t = (q_t . u k_t) v_t + sum_{m < t} sum_i q_ti k_mi exp(g_{m+1,i} + ... + g_{t-1,i}) v_m."""
    B, T, H, K = q.shape
    y = torch.zeros(B, T, H, v.shape[-1], dtype=torch.float64)
    for t in range(T):
        y[:, t] = (q[:, t] * u * k[:, t]).sum(-1, keepdim=True) * v[:, t]
        for m in range(t):
            weight = (q[:, t] * k[:, m] * g[:, m + 1 : t].sum(1).exp()).sum(-1, keepdim=True)
            y[:, t] += weight * v[:, m]
    return y


@pytest.mark.parametrize(("form", "more"), FORMS)
@pytest.mark.parametrize("strength", [1, 100])
def test_every_form_is_the_definition(form, more, strength):
    (q, k, v, g), w = rwkv6.example(21)
    z = q, k, v, strength * g
    want = by_hand(*z, w["u_HK"])
    assert contract.close(getattr(rwkv6, form)(*z, **w, **more)[0], want) <= contract.TOLERANCE
    assert contract.close(mixers.by_step(rwkv6, *z, **w)[0], want) <= contract.TOLERANCE


@pytest.mark.parametrize(("form", "more"), FORMS)
def test_without_decay_a_bonus_of_one_makes_reading_before_reading_after(form, more):
    """Then it is GLA without decay, and without its scale; a bonus of zero lacks the token itself."""
    (q, k, v, g), w = rwkv6.example(21)
    plain = gla.parallel(q * 8**0.5, k, v, 0 * g)[0]
    own = (q * k).sum(-1, keepdim=True) * v
    for bonus in (0, 1):
        y, _ = getattr(rwkv6, form)(q, k, v, 0 * g, u_HK=torch.full_like(w["u_HK"], bonus), **more)
        assert contract.close(y, plain - (1 - bonus) * own) <= contract.TOLERANCE


@pytest.mark.parametrize(("form", "more"), FORMS)
@pytest.mark.parametrize("rate", [-torch.inf, -1e4, -1e-12, 0.0])
def test_rates_at_the_ends(rate, form, more):
    """One key channel forgets all, or nothing, at every other token; gradients stay finite and right."""
    (q, k, v, g), w = rwkv6.example(21)
    g[:, ::2, :, 3] = rate

    def run(scan):
        x, u = g.clone().requires_grad_(), w["u_HK"].clone().requires_grad_()
        y, S = scan(x, u)
        return y, S, *torch.autograd.grad((y * v).sum() + S.square().sum(), (x, u))

    got = run(lambda x, u: getattr(rwkv6, form)(q, k, v, x, u_HK=u, **more))
    want = run(lambda x, u: mixers.by_step(rwkv6, q, k, v, x, u_HK=u))
    assert contract.close(got, want) <= contract.TOLERANCE


def test_state_is_an_eighth_of_d_squared_and_a_token():
    _, (table, last) = rwkv6.Layer(64)(torch.randn(1, 3, 64))
    assert table.numel() == 64**2 // 8
    assert last.numel() == 64


def test_published_sizes_fit_the_layer():
    """K = V = 64 a head, H = D / 64: 64 D floats of state."""
    _, (table, _) = rwkv6.Layer(128, H=2, K=64, V=64)(torch.randn(1, 3, 128))
    assert table.numel() == 64 * 128


def test_layer_decays_stay_below_one():
    torch.manual_seed(0)
    layer, x = rwkv6.Layer(16), 1e3 * torch.randn(2, 40, 16)
    y, (table, _) = layer(x)
    assert y.isfinite().all()
    assert table.isfinite().all()


def test_bad_input_is_named():
    (q, k, v, g), w = rwkv6.example(4)
    for form in mixers.forms(rwkv6):
        with pytest.raises(ValueError, match=r"u_HK: expected axes \[H, K\] with H=4"):
            getattr(rwkv6, form)(q, k, v, g, u_HK=w["u_HK"][:2])
    with pytest.raises(ValueError, match="D: expected a multiple of 2 H = 8"):
        rwkv6.Layer(20)
