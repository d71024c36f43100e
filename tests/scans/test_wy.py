"""The chunked form of the delta rule: any chunk, decays of any size, and broken versions that must be caught."""


import contract
import pytest
import torch
from broken import mutant
from contract import survives

from postx import mixers, scans
from postx.scans import delta_chunked

DELTA = ("deltanet", "gated_deltanet", "rwkv7")


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("name", DELTA)
@pytest.mark.parametrize("chunk", [1, 2, 7, 29, 100])
def test_any_chunk(name, chunk):
    mixer = mixers.load(name)
    z, w = mixer.example(29)
    S = contract.warm_state(mixer)
    got = mixer.chunked(*z, S=S, chunk=chunk, **w)
    assert contract.close(got, mixers.by_step(mixer, *z, S=S, **w)) <= contract.TOLERANCE


@pytest.mark.parametrize("name", DELTA)
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-4), (torch.float64, 1e-9)])
def test_a_long_text_agrees_with_the_recurrence(name, dtype, bound):
    mixer = mixers.load(name)
    z = contract.cast(mixer.example(700, K=16, V=16)[0], dtype)
    assert contract.close(mixer.chunked(*z), mixer.recurrent(*z), bound) <= bound


@pytest.mark.parametrize("g", [-torch.inf, -1e4, -1e-9, 0.0])
@pytest.mark.parametrize("wide", [False, True], ids=["a head", "a key"])
def test_decays_at_the_ends(g, wide):
    """Large and small ones beside each other too: the small ones are not lost, and -inf - -inf does not appear."""
    B, T, H, K, V = 1, 23, 2, 4, 3
    q, k, c, v = randn(B, T, H, K), randn(B, T, H, K, seed=1) / 3, randn(B, T, H, K, seed=2), randn(B, T, H, V, seed=3)
    beta, S = randn(B, T, H, seed=4).sigmoid(), randn(B, H, K, V, seed=5)
    g_BTH = torch.where(torch.arange(T) % 5 == 0, g, -0.1)[None, :, None].expand(B, T, H).double()
    g_full = (g_BTH[..., None].expand(B, T, H, K) if wide else g_BTH).clone().requires_grad_(True)
    more = {"b_BTHK": k, "c_BTHK": c / c.norm(dim=-1, keepdim=True)}
    got = delta_chunked.in_chunks(q, k, v, beta, g_full, S, **more, lengths_B=None, chunk=8)
    want = scans.delta(q, k, v, beta, g_full, S, **more)
    assert contract.close(got, want) <= contract.TOLERANCE
    (grad,) = torch.autograd.grad(got[0].sum(), g_full)
    assert grad.isfinite().all()


def test_float32_keeps_a_small_decay_beside_a_large_one():
    """After a token that forgets everything a slow decay still fades: a running sum would round it away."""
    g = torch.full((1, 6, 1), -1e-3)
    g[0, 1] = -1e5
    fade = delta_chunked._fade(g.transpose(1, 2)[..., None], torch.zeros(1, 1, 6, 1))[0, 0, :, :, 0]
    assert fade[6, 2] == torch.exp(torch.tensor(-4e-3))
    assert fade[6, 0] == 0
    assert torch.equal(fade, fade.tril())
    naive = g[0, :, 0].cumsum(0)
    assert torch.exp(naive[5] - naive[1]) != fade[6, 2]


@pytest.mark.parametrize("name", DELTA)
def test_bad_arguments_are_named(name):
    mixer = mixers.load(name)
    z, _ = mixer.example(4)
    with pytest.raises(ValueError, match="chunk: expected a whole number >= 1, got 0"):
        mixer.chunked(*z, chunk=0)


# (what is broken, source before, source after, mixer that must notice)
BROKEN = [
    ("state not passed on", "return y + _pairs(q, k, after) @ u, S + (k", "return y + _pairs(q, k, after) @ u, (k",
     "deltanet"),
    ("state does not fade", "S = from_start[:, :, -1, :, None] * S", "S = 1.0 * S", "gated_deltanet"),
    ("own decay read", "after, before = fade[:, :, 1:, 1:], fade[:, :, :-1, 1:]",
     "after = before = fade[:, :, 1:, 1:]", "rwkv7"),
    ("what S holds is not erased", "v - held", "v", "deltanet"),
    ("no solve", "u = _solve(beta * _pairs(c, k, before), v - held)", "u = v - held", "deltanet"),
    ("writes do not fade", "S + (k * to_end).mT @ u", "S + k.mT @ u", "gated_deltanet"),
    ("erased part not read", "@ v - _pairs(q, b, after) @ r", "@ v", "rwkv7"),
    ("erased part kept", "@ v - (b * to_end).mT @ r", "@ v", "rwkv7"),
]  # fmt: skip


@pytest.mark.parametrize(("broken", "old", "new", "name"), BROKEN, ids=[b[0] for b in BROKEN])
def test_broken_chunks_are_caught(broken, old, new, name, monkeypatch):
    mutated = mutant(delta_chunked, old, new)
    mixer = mixers.load(name)
    monkeypatch.setattr(mixer, "delta_chunked", mutated)
    assert not survives(mixer, "chunked"), f"{name}.chunked with {broken!r} passes the contract"
