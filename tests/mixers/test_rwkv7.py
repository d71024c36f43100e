"""RWKV-7 against its paper's formula, the range of its decay, and the size of its state."""

import math

import contract
import pytest
import torch
from counting import Counting, numbers, operations

from postx.mixers import deltanet, rwkv7


@pytest.mark.parametrize("form", ["recurrent", "chunked"])
def test_equals_the_papers_recurrence(form):
    """S <- S diag(w) - (S kk) (kk * a)' + v k' in the paper's [V, K], y = S r; Peng et al. 2025, eq. 17."""
    (r, k, v, removal, a, g), _ = rwkv7.example(40)
    y, last = getattr(rwkv7, form)(r, k, v, removal, a, g)
    for row in range(2):
        for h in range(2):
            S = torch.zeros(5, 6, dtype=torch.float64)
            for t in range(40):
                rt, kt, vt, kk, at, gt = (x[row, t, h] for x in (r, k, v, removal, a, g))
                S = S @ (torch.diag(gt.exp()) - torch.outer(kk, kk * at)) + torch.outer(vt, kt)
                assert (y[row, t, h] - S @ rt).abs().max() <= 1e-12
            assert (last[row, h] - S.T).abs().max() <= 1e-12


@pytest.mark.parametrize("form", ["recurrent", "chunked"])
def test_one_rate_for_all_keys_and_no_decay_is_deltanet(form):
    """With k = a kk, v = v and a the same for all keys: beta = a, up to DeltaNet's scale."""
    (q, k, v, beta), _ = deltanet.example(30)
    a = beta[..., None].expand_as(k)
    y, S = getattr(rwkv7, form)(q / 6**0.5, a * k, v, k, a, torch.zeros_like(k))
    assert contract.close((y, S), deltanet.recurrent(q, k, v, beta)) <= contract.TOLERANCE


def test_a_token_keeps_more_than_0_545_of_every_key():
    assert math.exp(rwkv7.FASTEST) == pytest.approx(0.545239, abs=1e-6)
    x = torch.tensor([-1e9, -5.0, 0.0, 5.0, 1e9], dtype=torch.float64)
    w = rwkv7.log_decay(x).exp()
    assert w[-1].item() == pytest.approx(math.exp(-math.exp(-0.5)), abs=1e-15)
    assert w[0] == 1
    assert (w.diff() < 0).all()
    assert w[2].item() == pytest.approx(math.exp(-math.exp(-0.5) / 2), abs=1e-15)


def test_state_of_the_published_24_layers():
    """L (2 D + 64 D) numbers at L = 24, D = 1024: 64-wide heads, a last token here and one in the channel mix."""
    layer = rwkv7.Layer(1024)
    _, (table, last) = layer(torch.zeros(1, 1, 1024))
    assert table.numel() == rwkv7.cost(1, H=16, K=64, V=64).state_floats == 64 * 1024
    assert 24 * (table.numel() + 2 * last.numel()) == 1622016


def test_cost_counts_the_operations_of_a_step():
    K, V = 3, 4

    def run():
        S = [numbers(V) for _ in range(K)]
        r, k, v, kk, a, w = numbers(K), numbers(K), numbers(V), numbers(K), numbers(K), numbers(K)
        taken = [kk[i] * a[i] for i in range(K)]
        held, y = [Counting(0) for _ in range(V)], [Counting(0) for _ in range(V)]
        for i in range(K):
            for j in range(V):
                held[j] = held[j] + kk[i] * S[i][j]
        for i in range(K):
            for j in range(V):
                S[i][j] = w[i] * S[i][j] - taken[i] * held[j] + k[i] * v[j]
                y[j] = y[j] + r[i] * S[i][j]

    assert operations(run) == rwkv7.cost(1, H=1, K=K, V=V).flops



def test_layer_sees_the_token_before():
    torch.manual_seed(0)
    layer, x = rwkv7.Layer(16).double(), torch.randn(1, 2, 16, dtype=torch.float64)
    fresh = layer(x[:, 1:], (layer(x[:, :1])[1][0], torch.zeros(1, 16, dtype=torch.float64)))[0]
    assert (layer(x)[0][:, 1:] - fresh).abs().max() > 1e-3


def test_bad_input_is_named():
    z, _ = rwkv7.example(4)
    with pytest.raises(ValueError, match=r"removal_BTHK: expected axes \[B, T, H, K\] with K=6"):
        rwkv7.recurrent(*z[:3], z[3][..., :2], *z[4:])
    with pytest.raises(ValueError, match=r"g_BTHK: expected 4 axes \[B, T, H, K\]"):
        rwkv7.chunked(*z[:5], z[5][..., 0])
    with pytest.raises(ValueError, match=r"D: expected a multiple of H=3, got 16"):
        rwkv7.Layer(16, H=3)
