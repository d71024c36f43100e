"""Gated linear attention against its definition in loops, its gate, its limits, its state."""

import math

import contract
import pytest
import torch

from postx import mixers
from postx.mixers import gla, retnet

FORMS = [("recurrent", {}), ("parallel", {}), ("chunked", {"chunk": 5}), ("chunked", {})]


def by_hand(q, k, v, g):
    """y_t = sum_{m <= t} sum_i q_ti k_mi exp(g_{m+1,i} + ... + g_ti) v_m / sqrt K, each sum by itself."""
    B, T, H, K = q.shape
    y = torch.zeros(B, T, H, v.shape[-1], dtype=torch.float64)
    for t in range(T):
        for m in range(t + 1):
            weight = (q[:, t] * k[:, m] * g[:, m + 1 : t + 1].sum(1).exp()).sum(-1) / math.sqrt(K)
            y[:, t] += weight[..., None] * v[:, m]
    return y


@pytest.mark.parametrize(("form", "more"), FORMS)
@pytest.mark.parametrize("strength", [1, 100])
def test_every_form_is_the_definition(form, more, strength):
    (q, k, v, g), _ = gla.example(21)
    want = by_hand(q, k, v, strength * g)
    assert contract.close(getattr(gla, form)(q, k, v, strength * g, **more)[0], want) <= contract.TOLERANCE
    assert contract.close(mixers.by_step(gla, q, k, v, strength * g)[0], want) <= contract.TOLERANCE


def test_an_undecided_gate_keeps_nearly_everything():
    """sigmoid(0)^(1/16) = 0.5^(1/16) = 0.957603."""
    assert float(gla.log_decay(torch.zeros(1, dtype=torch.float64)).exp()) == pytest.approx(
        0.957603, abs=1e-6
    )
    assert gla.log_decay(torch.tensor([-1e4])).isfinite().all()


@pytest.mark.parametrize(("form", "more"), FORMS)
def test_one_constant_decay_a_head_is_retention(form, more):
    (q, k, v, _), _ = gla.example(21)
    g = retnet.log_gamma(4)
    y = getattr(gla, form)(q, k, v, g[:, None].expand(2, 21, 4, 8), **more)
    assert contract.close(y, retnet.parallel(q, k, v, g_H=g)) <= contract.TOLERANCE


@pytest.mark.parametrize(("form", "more"), FORMS)
@pytest.mark.parametrize("rate", [-torch.inf, -1e4, -1e-12, 0.0])
def test_rates_at_the_ends(rate, form, more):
    """One key channel forgets all, or nothing, at every other token; gradients stay finite and right."""
    (q, k, v, g), _ = gla.example(21)
    g[:, ::2, :, 3] = rate

    def run(scan):
        x = g.clone().requires_grad_()
        y, S = scan(x)
        return y, S, *torch.autograd.grad((y * v).sum() + S.square().sum(), x)

    got = run(lambda x: getattr(gla, form)(q, k, v, x, **more))
    assert contract.close(got, run(lambda x: mixers.by_step(gla, q, k, v, x))) <= contract.TOLERANCE


def test_state_is_an_eighth_of_d_squared():
    _, (table,) = gla.Layer(64)(torch.randn(1, 3, 64))
    assert table.numel() == 64**2 // 8


def test_bad_input_is_named():
    (q, k, v, g), _ = gla.example(4)
    for form in mixers.forms(gla):
        with pytest.raises(ValueError, match=r"g_BTHK: expected axes .* with K=8"):
            getattr(gla, form)(q, k, v, g[..., :3])
    with pytest.raises(ValueError, match="D: expected a multiple of 2 H = 8"):
        gla.Layer(20)
