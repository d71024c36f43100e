import contract
import pytest
import torch

from postx import mixers
from postx.mixers import gated_deltanet, kda


def test_one_decay_for_all_keys_is_gated_deltanet():
    (q, k, v, beta, g), _ = kda.example(37)
    g = g.mean(-1)
    for form in ("recurrent", "chunked"):
        got = getattr(kda, form)(q, k, v, beta, g[..., None].expand(-1, -1, -1, q.shape[-1]))
        contract.close(got, mixers.by_step(gated_deltanet, q, k, v, beta, g))


def test_the_table_fades_first_and_each_key_by_itself():
    S = torch.ones(1, 1, 2, 1, dtype=torch.float64)
    k, v, beta = (torch.tensor(x, dtype=torch.float64) for x in ([[[1.0, 0.0]]], [[[1.0]]], [[1.0]]))
    g = torch.tensor([[[0.5, 0.25]]], dtype=torch.float64).log()
    _, S = kda.step(S, k, k, v, beta, g)
    assert S.flatten().tolist() == pytest.approx([1.0, 0.25])  # corrected to v; faded, and left alone


def test_layer_starts_with_decays_spread_over_channels():
    layer = kda.Layer(32, H=2)
    slow = torch.nn.functional.softplus(layer.bias_HK)
    torch.testing.assert_close(slow.flatten()[[0, -1]], torch.tensor([1e-3, 1e-1]))
    assert layer.decay[0].out_features == 16  # through V channels, as published
