"""Retention against the paper's formula in loops; its decays; its mask; the layer."""

import math

import contract
import pytest
import torch

from postx import mixers
from postx.mixers import retnet

FORMS = [("recurrent", {}), ("parallel", {}), ("chunked", {"chunk": 5}), ("chunked", {})]


def by_hand(q, k, v, gamma):
    """y_t = sum_{m <= t} gamma^(t-m) (q_t . k_m / sqrt K) v_m, with Python powers."""
    B, T, H, K = q.shape
    y = torch.zeros(B, T, H, v.shape[-1], dtype=torch.float64)
    for t in range(T):
        for m in range(t + 1):
            for h in range(H):
                weight = (q[:, t, h] * k[:, m, h]).sum(-1) / math.sqrt(K) * gamma[h] ** (t - m)
                y[:, t, h] += weight[:, None] * v[:, m, h]
    return y


@pytest.mark.parametrize(("form", "more"), FORMS)
def test_every_form_is_the_definition(form, more):
    z, w = retnet.example(13)
    want = by_hand(*z, [1 - 2.0 ** (-5 - h) for h in range(4)])
    assert contract.close(getattr(retnet, form)(*z, **w, **more)[0], want) <= contract.TOLERANCE
    assert contract.close(mixers.by_step(retnet, *z, **w)[0], want) <= contract.TOLERANCE


def test_the_decays_are_the_papers():
    """gamma = 31/32, 63/64, 127/128, 255/256: half-lives of 21.8, 44.0, 88.4 and 177.1 tokens."""
    g = retnet.log_gamma(4)
    assert torch.equal(g.exp().mul(256).round(), torch.tensor([248.0, 252, 254, 255], dtype=torch.float64))
    assert contract.close(g.exp(), torch.tensor([0.96875, 0.984375, 0.9921875, 0.99609375])) < 1e-15
    half_lives = math.log(0.5) / g
    assert [round(float(x), 1) for x in half_lives] == [21.8, 44.0, 88.4, 177.1]


@pytest.mark.parametrize("form", ["parallel", "chunked"])
def test_parallel_equals_recurrent_in_float32(form):
    z, w = contract.cast(retnet.example(300), torch.float32)
    got, want = getattr(retnet, form)(*z, **w), retnet.recurrent(*z, **w)
    assert contract.close(got, want, 1e-6) <= 1e-6


def test_the_mask_never_overflows():
    """exp(g (t - m)) above the diagonal is inf at T = 4096, and inf times the mask's 0 is NaN; ours is masked first."""
    g, age = retnet.log_gamma(1, torch.float32), torch.arange(4096)[:, None] - torch.arange(4096)
    assert torch.isnan(torch.exp(g * age) * (age >= 0)).any()
    D = retnet.decay_mask(4096, g)[0]
    assert D.isfinite().all()
    assert float(D.triu(1).abs().max()) == 0
    assert contract.close(D, (g.double() * age).exp().tril(), 1e-6) <= 1e-6


@pytest.mark.parametrize(("form", "more"), FORMS)
@pytest.mark.parametrize("rate", [-torch.inf, -1e4, -1e-12, 0.0])
def test_rates_at_the_ends(rate, form, more):
    """Total forgetting leaves the token alone; none is linear attention's plain sum. Gradients stay finite."""
    (q, k, v), _ = retnet.example(9)
    g = torch.full((4,), rate, dtype=torch.float64, requires_grad=True)
    y, S = getattr(retnet, form)(q, k, v, g_H=g, **more)
    scores = torch.einsum("bthk,bmhk->bhtm", q, k) * 8**-0.5
    want = torch.einsum("bhtm,bmhv->bthv", scores * torch.eye(9) if rate < -1 else scores.tril(), v)
    assert contract.close(y, want, 1e-8) <= 1e-8
    (gradient,) = torch.autograd.grad(y.sum() + S.sum(), g)
    assert gradient.isfinite().all()


def test_without_decay_it_is_linear_attention_without_features():
    (q, k, v), _ = retnet.example(9)
    y, _ = retnet.chunked(q, k, v, g_H=torch.zeros(4, dtype=torch.float64))
    table = torch.einsum("bmhk,bmhv->bmhkv", k, v).cumsum(1)
    assert contract.close(y, torch.einsum("bthk,bthkv->bthv", q, table) * 8**-0.5) <= contract.TOLERANCE


def test_state_is_2_d_squared_over_the_heads():
    layer = retnet.Layer(64)
    _, (table, position) = layer(torch.randn(1, 3, 64))
    assert table.numel() == 2 * 64**2 // 8
    assert position.tolist() == [3]


def test_layer_sees_relative_positions_only():
    torch.manual_seed(0)
    layer, x = retnet.Layer(16).double(), torch.randn(2, 7, 16, dtype=torch.float64)
    y, (table, _) = layer(x)
    shifted, _ = layer(x, (torch.zeros_like(table), torch.tensor([100, 5])))
    assert contract.close(shifted, y) <= contract.TOLERANCE
    still = retnet.Layer(16).double()
    still.load_state_dict(layer.state_dict())
    still.rope = type("NoRope", (), {"rotate": staticmethod(lambda x, position: x)})()
    assert contract.error(still(x)[0], y) > 1e-3


def test_layer_norms_each_head():
    """The factor of one head's values is undone by its norm, up to eps."""
    torch.manual_seed(0)
    layer, x = retnet.Layer(16, H=2).double(), torch.randn(1, 7, 16, dtype=torch.float64)
    y, _ = layer(x)
    with torch.no_grad():
        layer.v.weight[:16] *= 1e3
        layer.v.weight[16:] *= 1e4
    assert contract.error(layer(x)[0], y) < 1e-2
    layer.norm = torch.nn.Identity()
    assert contract.error(layer(x)[0], y) > 1


def test_bad_input_is_named():
    (q, k, v), w = retnet.example(4)
    for form in mixers.forms(retnet):
        with pytest.raises(ValueError, match=r"g_H: expected axes \[H\] with H=4"):
            getattr(retnet, form)(q, k, v, g_H=w["g_H"][:3])
        with pytest.raises(ValueError, match=r"k_BTHK: expected axes .* with H=4"):
            getattr(retnet, form)(q, k[:, :, :2], v, **w)
    with pytest.raises(ValueError, match="chunk: expected a whole number >= 1, got 0"):
        retnet.chunked(q, k, v, **w, chunk=0)
    with pytest.raises(ValueError, match="D: expected a multiple of 2 H = 16"):
        retnet.Layer(24)
