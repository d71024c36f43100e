"""Gated DeltaNet against its paper's formula: the order of decay and delta, shared key heads, and its limits."""

import contract
import pytest
import torch

from postx.mixers import deltanet, gated_deltanet

FORMS = ("step", "recurrent", "chunked")


def run(form, z, S=None):
    """Any form on all tokens; `step` one by one."""
    if form != "step":
        return getattr(gated_deltanet, form)(*z, S=S)
    S, outputs = gated_deltanet.init(*(x[:, 0] for x in z)) if S is None else S, []
    for t in range(z[0].shape[1]):
        y, S = gated_deltanet.step(S, *(x[:, t] for x in z))
        outputs.append(y)
    return torch.stack(outputs, 1), S


@pytest.mark.parametrize("form", FORMS)
def test_equals_the_papers_recurrence(form):
    """S_t = S_(t-1) alpha (I - beta k k') + beta v k' in the paper's [V, K]; value head j uses key head j // 2."""
    z, _ = gated_deltanet.example(20)
    q, k, v, beta, g = z
    y, last = run(form, z)
    for row in range(2):
        for j in range(4):
            S = torch.zeros(5, 6, dtype=torch.float64)
            for t in range(20):
                kt, vt, bt, alpha = k[row, t, j // 2], v[row, t, j], beta[row, t, j], g[row, t, j].exp()
                S = S @ (alpha * (torch.eye(6) - bt * torch.outer(kt, kt))) + bt * torch.outer(vt, kt)
                assert (y[row, t, j] - S @ q[row, t, j // 2] / 6**0.5).abs().max() <= 1e-12
            assert (last[row, j] - S.T).abs().max() <= 1e-12


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("v", "after"), [(0.0, 0.0), (1.0, 1.0), (3.0, 3.0)])
def test_the_decay_comes_before_the_delta(form, v, after):
    """S = 1, exp(g) = 1/2, beta = k = 1: the new state is v. Decay last gives v / 2; an undecayed error, v - 1/2."""
    one = torch.ones(1, 1, 1, 1, dtype=torch.float64)
    z = one, one, v * one, one[..., 0], one[..., 0] * torch.log(torch.tensor(0.5, dtype=torch.float64))
    assert run(form, z, S=one)[1].item() == pytest.approx(after, abs=1e-15)


@pytest.mark.parametrize("form", FORMS)
def test_without_decay_it_is_deltanet(form):
    (q, k, v, beta, g), _ = gated_deltanet.example(40, G=4)
    assert contract.close(run(form, (q, k, v, beta, 0 * g)), deltanet.recurrent(q, k, v, beta)) <= contract.TOLERANCE


@pytest.mark.parametrize("form", FORMS)
def test_total_forgetting_leaves_the_token_alone(form):
    (q, k, v, beta, g), _ = gated_deltanet.example(10)
    y, S = run(form, (q, k, v, beta, torch.full_like(g, -torch.inf)))
    qk = (q * k).sum(-1).repeat_interleave(2, 2)[..., None] / 6**0.5
    assert contract.close(y, qk * beta[..., None] * v) <= contract.TOLERANCE
    assert S.isfinite().all()


def test_layer_starts_with_slow_decays_and_keys_of_length_1(monkeypatch):
    seen, original = [], gated_deltanet.recurrent
    monkeypatch.setattr(gated_deltanet, "recurrent", lambda *z, **kw: (seen.append(z), original(*z, **kw))[1])
    torch.manual_seed(0)
    gated_deltanet.Layer(16)(torch.zeros(1, 3, 16))
    gated_deltanet.Layer(16, negative_eigenvalues=True)(30 * torch.randn(2, 9, 16))
    (*_, g), (q, k, _, beta, _) = seen
    want = -torch.linspace(1, 16, 4) * torch.tensor([1e-3, 10 ** (-7 / 3), 10 ** (-5 / 3), 0.1])
    assert torch.allclose(g[0, 0], want, rtol=1e-4)
    norms = k.norm(dim=-1)  # those near 0 stay below
    assert norms.max() <= 1 + 1e-5
    assert (norms - 1).abs().median() < 1e-5
    assert 1 < beta.max() <= 2


def test_bad_input_is_named():
    (q, k, v, beta, g), _ = gated_deltanet.example(4)
    with pytest.raises(ValueError, match="q_BTGK: 3 heads do not divide the 4"):
        gated_deltanet.recurrent(q[:, :, [0, 0, 0]], k[:, :, [0, 0, 0]], v, beta, g)
    with pytest.raises(ValueError, match=r"g_BTH: expected axes \[B, T, H\] with T=4"):
        gated_deltanet.chunked(q, k, v, beta, g[:, :3])
    with pytest.raises(ValueError, match=r"S_BHKV: expected axes \[B, H, K, V\] with H=4"):
        gated_deltanet.recurrent(q, k, v, beta, g, S=torch.zeros(2, 2, 6, 5))
    with pytest.raises(ValueError, match="G: 3 heads do not divide the 4"):
        gated_deltanet.cost(8, H=4, G=3)
