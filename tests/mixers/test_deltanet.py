"""DeltaNet against its paper's formula, and what the delta rule can do that adding cannot."""

import pytest
import torch

from postx import mixers, scans
from postx.mixers import deltanet

FORMS = ("recurrent", "chunked")


def orthonormal(n):
    torch.manual_seed(0)
    return torch.linalg.qr(torch.randn(n, n, dtype=torch.float64)).Q


def table(form, k, v, beta, S=None):
    """The table S [K, V] after writing k [T, K], v [T, V] with beta [T] in one head of one row."""
    z = k[None, :, None], k[None, :, None], v[None, :, None], beta[None, :, None]
    return getattr(deltanet, form)(*z, S=S)[1][0, 0]


@pytest.mark.parametrize("form", FORMS)
def test_equals_the_papers_recurrence(form):
    """S_t = S_(t-1) (I - beta k k') + beta v k' in the paper's [V, K], o = S q / sqrt(K); Yang et al. 2024, eq. 2."""
    (q, k, v, beta), _ = deltanet.example(40)
    y, last = getattr(deltanet, form)(q, k, v, beta)
    for row in range(2):
        for h in range(2):
            S = torch.zeros(5, 6, dtype=torch.float64)
            for t in range(40):
                kt, vt, bt = k[row, t, h], v[row, t, h], beta[row, t, h]
                S = S @ (torch.eye(6) - bt * torch.outer(kt, kt)) + bt * torch.outer(vt, kt)
                assert (y[row, t, h] - S @ q[row, t, h] / 6**0.5).abs().max() <= 1e-12
            assert (last[row, h] - S.T).abs().max() <= 1e-12


@pytest.mark.parametrize("form", FORMS)
def test_orthonormal_keys_store_as_many_pairs_exactly(form):
    k, v = orthonormal(32), torch.randn(32, 32, dtype=torch.float64)
    S = table(form, k, v, torch.ones(32, dtype=torch.float64))
    assert (k @ S - v).abs().max() <= 1e-12


@pytest.mark.parametrize("form", FORMS)
def test_rewriting_a_key_returns_the_last_value_and_adding_returns_the_sum(form):
    k, v = orthonormal(32)[:3], torch.randn(5, 4, dtype=torch.float64)
    keys = k[[0, 1, 0, 2, 0]]
    S = table(form, keys, v, torch.ones(5, dtype=torch.float64))
    assert (k @ S - v[[4, 1, 3]]).abs().max() <= 1e-12
    _, added = scans.decay(*(x[None, :, None] for x in (keys, keys, v)))
    assert (k[0] @ added[0, 0] - v[[0, 2, 4]].sum(0)).abs().max() <= 1e-12


@pytest.mark.parametrize("form", FORMS)
def test_a_token_moves_what_is_stored_by_beta(form):
    """|v - S'k| shrinks by 1 - beta at each write of one pair: the eigenvalue of I - beta k k'."""
    k, v = orthonormal(8)[:1].expand(6, -1), torch.randn(1, 3, dtype=torch.float64).expand(6, -1)
    for beta in (0.3, 1.0, 1.7):
        S = table(form, k, v, torch.full((6,), beta, dtype=torch.float64))
        assert (v[0] - k[0] @ S - (1 - beta) ** 6 * v[0]).abs().max() <= 1e-12


@pytest.mark.parametrize("form", FORMS)
def test_one_number_tracks_parity_with_beta_2_and_cannot_with_beta_below_1(form):
    """1 - beta k k' = -1: a reflection a set bit. Below 1 the state keeps its sign whatever the bits are."""
    bits = (torch.rand(500, generator=torch.Generator().manual_seed(1)) < 0.5).double()
    one, start = torch.ones(500, 1, dtype=torch.float64), torch.ones(1, 1, 1, 1, dtype=torch.float64)
    y = getattr(deltanet, form)(
        *(x[None, :, None] for x in (one, one, 0 * one)), 2 * bits[None, :, None], S=start
    )[0]
    assert torch.equal(y[0, :, 0, 0], 1 - 2 * (bits.cumsum(0) % 2))
    y = getattr(deltanet, form)(
        *(x[None, :, None] for x in (one, one, 0 * one)), 0.999 * bits[None, :, None], S=start
    )[0]
    assert (y >= 0).all()


def test_layer_keeps_keys_at_length_1_and_doubles_beta_only_when_asked(monkeypatch):
    seen = []
    original = deltanet.recurrent
    monkeypatch.setattr(deltanet, "recurrent", lambda *z, **kw: (seen.append(z), original(*z, **kw))[1])
    torch.manual_seed(0)
    x = 30 * torch.randn(2, 9, 16)
    for negative in (False, True):
        deltanet.Layer(16, negative_eigenvalues=negative)(x)
    (q, k, _, beta), (*_, doubled) = seen
    for unit in (q, k):
        assert torch.allclose(unit.norm(dim=-1), torch.ones(2, 9, 2), atol=1e-5)
    assert 0 < beta.min() < beta.max() <= 1
    assert 1 < doubled.max() <= 2


def test_bad_input_is_named():
    z, _ = deltanet.example(4)
    with pytest.raises(ValueError, match=r"beta_BTH: expected axes \[B, T, H\] with H=2"):
        deltanet.recurrent(*z[:3], z[3][..., :1])
    with pytest.raises(ValueError, match=r"S_BHKV: expected axes \[B, H, K, V\] with V=5"):
        deltanet.chunked(*z, S=torch.zeros(2, 2, 6, 4))
    with pytest.raises(ValueError, match=r"S_BHKV: expected axes \[B, H, K, V\]"):
        deltanet.step(torch.zeros(2, 2, 6, 4), *(x[:, 0] for x in z))
    assert mixers.forms(deltanet) == ["recurrent", "chunked"]
