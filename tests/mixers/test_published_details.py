"""Details in which a layer follows what is published: each was once otherwise, and moved the logits of real weights."""

import copy
import math

import pytest
import torch

from postx.mixers import attention, deltanet, gated_deltanet, hyena, kda, rglru, rwkv4, ssd


def test_mamba2_norms_each_group_by_itself():
    net = ssd.Layer(8, K=4, V=4, G=2)
    x = torch.ones(1, 16)
    x[:, 8:] = 100
    torch.testing.assert_close(net.norm(x)[0, [0, 8]], torch.ones(2), atol=1e-4, rtol=0)
    one = ssd.Layer(8, K=4, V=4, G=1).norm
    torch.testing.assert_close(one(x), torch.nn.functional.rms_norm(x, (16,), eps=1e-5))


def test_time_steps_are_held_to_their_limits():
    torch.manual_seed(0)
    layer = ssd.Layer(8, K=4, V=4, dt_limit=(0.5, 0.7))
    seen = {}
    layer.log_rate_H.data.zero_()  # then g = -dt

    def spy(q, k, v, g, **more):
        seen["dt"] = -g
        return run(q, k, v, g, **more)

    run, ssd.recurrent = ssd.recurrent, spy
    try:
        layer(torch.randn(2, 9, 8))
    finally:
        ssd.recurrent = run
    assert seen["dt"].min() >= 0.5
    assert seen["dt"].max() <= 0.7


@pytest.mark.parametrize("module", [deltanet, gated_deltanet, kda])
def test_keys_near_zero_stay_near_zero(module):
    x = torch.tensor([[3e-4, 4e-4], [3.0, 4.0]], dtype=torch.float64)
    want = x / (x.square().sum(-1, keepdim=True) + 1e-6).sqrt()
    torch.testing.assert_close(module.unit(x), want)
    assert module.unit(x)[0].norm() < 0.5


def test_griffins_gelu_is_the_tanh_form():
    torch.manual_seed(0)
    layer, x = rglru.Layer(8).double(), torch.randn(1, 5, 8, dtype=torch.float64)
    layer.out = torch.nn.Identity()
    y, z = layer(x)[0], layer.gate(x)
    layer.gate.weight.data.zero_()
    layer.gate.bias.data.fill_(50)  # wide open: gelu(50) = 50
    got = 50 * y / layer(x)[0]
    tanh = 0.5 * z * (1 + torch.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)))
    torch.testing.assert_close(got, tanh)
    assert (got - torch.nn.functional.gelu(z)).abs().max() > 1e-5


def test_epsilon_of_the_norm_on_queries_and_keys():
    for eps in (1e-6, 1e-5):
        assert {norm.eps for norm in attention.Layer(8, H=2, qk_norm=True, qk_eps=eps).norms} == {eps}


def test_hyenas_window_has_a_floor():
    torch.manual_seed(0)
    filters = hyena.Filters(2, 8, 26)
    assert filters.window_DW[:, 20].min() > 0.05
    assert filters.window_DW[:, 0].max() == pytest.approx(1.05)
    blind = hyena.Filters(2, 8, 26, floor=0)  # what records made before the floor have
    assert blind.window_DW[:, 20].max() < 0.1
    torch.testing.assert_close(filters.window_DW - blind.window_DW, torch.full((8, 26), 0.05))


def test_hyenas_short_filter_has_a_bias():
    torch.manual_seed(0)
    layer = hyena.Layer(8)
    assert layer.bias_D.shape == (24,)
    x = torch.randn(1, 6, 8)
    before = layer(x)[0]
    layer.bias_D.data += 1
    assert (layer(x)[0] - before).abs().max() > 1e-3


def test_hyenas_filters_keep_their_phases_in_half_precision():
    torch.manual_seed(0)
    filters = hyena.Filters(2, 64, 256)
    want = filters()
    with torch.autocast("cpu", torch.bfloat16):
        auto = filters()
    assert auto.dtype == torch.float32
    torch.testing.assert_close(auto, want)
    half = copy.deepcopy(filters).bfloat16()
    error = (half() - want).norm() / want.norm()
    assert error < 0.2  # the weights themselves are rounded; phases computed in bfloat16 lose everything


FORMS = ("recurrent", "parallel", "chunked")


@pytest.mark.parametrize("form", FORMS)
def test_rwkv4_keys_that_say_never(form):
    k, v = torch.zeros(1, 5, 1), torch.arange(1.0, 6).view(1, 5, 1)
    k[0, 2] = -torch.inf
    w = {"g_D": torch.tensor([-1.0]), "u_D": torch.tensor([0.0])}
    y = getattr(rwkv4, form)(k, v, **w)[0].flatten()
    torch.testing.assert_close(y, torch.tensor([1.0, 1.5, 1.731059, 3.240451, 4.265417]))


@pytest.mark.parametrize("form", FORMS)
def test_rwkv4_a_row_of_least_keys_is_still_weighed(form):
    k = torch.full((1, 3, 1), torch.finfo(torch.float32).min)  # the usual way to mask
    v = torch.arange(1.0, 4).view(1, 3, 1)
    w = {"g_D": torch.tensor([-1.0]), "u_D": torch.tensor([0.0])}
    y = getattr(rwkv4, form)(k, v, **w)[0].flatten()
    assert y[0] == 1  # the only token there is has all the weight
    assert y.isfinite().all()
