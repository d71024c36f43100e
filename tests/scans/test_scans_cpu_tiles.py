"""The kernels that keep a table without its decay, tile by tile: any length, any decay, and their stated precision."""

import contract
import pytest
import torch
from test_scans import numba_equals_reference, outputs_and_gradients, randn
from test_scans_delta import unit

from postx import scans
from postx.scans import cpu_decay, cpu_erase, cpu_tiles

B, H, K, V = 2, 4, 5, 6
AROUND = sorted({n + m for n in (cpu_erase.TIME, cpu_decay.TIME) for m in (-1, 0, 1)} | {1, 2})
REACH = cpu_tiles.REACH
# Log-decays that stay within a tile's reach, that leave it now and then, at every token, and that forget everything.
RATES = {"mild": 0.1, "reach": REACH / 8, "steep": 2 * REACH, "all": torch.inf}


def decay(q, k, v, g, S, impl, **more):
    return scans.decay(q, k, v, g, S, impl=impl, **more)


def delta(q, k, v, beta, g, S, impl, **more):
    return scans.delta(q, k, v, beta, g, S, impl=impl, **more)


def tokens(T, G=2, dtype=torch.float64):
    q, k, v = randn(B, T, G, K, seed=1), unit(randn(B, T, 1, K, seed=2)), randn(B, T, H, V, seed=3)
    return [x.to(dtype) for x in (q, k, v)]


@pytest.mark.parametrize("T", AROUND)
@pytest.mark.parametrize("read", ["after", "before"])
def test_decay_at_lengths_around_a_tile(T, read):
    state, lengths = randn(B, H, K, V, seed=4), torch.tensor([T, T // 2])
    for shape in (None, (B, T, 1), (B, T, H, K)):
        g = None if shape is None else -randn(*shape, seed=5).abs()
        numba_equals_reference(lambda *x: decay(*x, read=read, lengths_B=lengths), *tokens(T), g, state)  # noqa: B023


@pytest.mark.parametrize("T", AROUND)
def test_delta_at_lengths_around_a_tile(T):
    beta, state, lengths = randn(B, T, 2, seed=6).sigmoid(), randn(B, H, K, V, seed=4), torch.tensor([T // 2, T])
    for g in (None, -randn(B, T, H, seed=5).abs(), -randn(1, seed=5).abs()):
        numba_equals_reference(lambda *x: delta(*x, lengths_B=lengths), *tokens(T), beta, g, state)  # noqa: B023


@pytest.mark.parametrize("rate", RATES.values(), ids=RATES)
@pytest.mark.parametrize("kind", ["head", "key", "before", "delta"])
def test_any_decay_has_the_reference_s_values_and_gradients(kind, rate):
    """Where a decay is total only every third token's is: the others' gradients must not be lost beside it."""
    T, state = 70, randn(B, H, K, V, seed=4)
    g = -randn(B, T, H, *(K,) * (kind == "key"), seed=5).abs()
    g = torch.where((torch.arange(T) % 3 == 0).view(-1, *[1] * (g.dim() - 2)), -rate, g) if rate > 1e9 else rate * g
    if kind == "delta":
        numba_equals_reference(delta, *tokens(T), randn(B, T, H, seed=6).sigmoid(), g, state)
    else:
        more = {"read": "before" if kind == "before" else "after"}
        numba_equals_reference(lambda *x: decay(*x, **more), *tokens(T), g, state)


@pytest.mark.parametrize("kind", ["none", "head", "key", "delta"])
def test_float32_stays_within_its_bound(kind):
    """Values and gradients of 500 tokens against float64 on the same rounded numbers, each by its own scale."""
    T = 500
    g = None if kind == "none" else -randn(B, T, H, *(K,) * (kind == "key"), seed=5).abs() / 2
    beta = [randn(B, T, H, seed=6).sigmoid()] if kind == "delta" else []
    inputs = [*tokens(T), *beta, g, randn(B, H, K, V, seed=4)]
    scan = delta if kind == "delta" else decay
    single = [None if x is None else x.float() for x in inputs]
    double = [None if x is None else x.double() for x in single]
    got = outputs_and_gradients(lambda *x: scan(*x, "numba"), single)
    want = outputs_and_gradients(lambda *x: scan(*x, "reference"), double)
    for a, b in zip(got[0] + got[1], want[0] + want[1], strict=True):
        assert contract.close(a, b, 2e-5) <= 2e-5


@pytest.mark.parametrize("kind", ["head", "key", "before", "delta"])
@pytest.mark.parametrize("steep", [0.1, 1.0, 3.0])
def test_a_decay_s_gradient_keeps_its_digits_over_many_tiles(kind, steep):
    """Against float64, by the largest: one decay for 2,000 tokens, and one for each.

    One g = -3 leaves a twentieth of the state, beside the whole of which its gradient is rounded at every token.
    """
    T, keys = 2000, (K,) * (kind == "key")
    q, k, v = tokens(T, G=H)
    beta, w, state = randn(B, T, H, seed=6).sigmoid(), randn(B, T, H, V, seed=7), randn(B, H, K, V, seed=4)

    def learnt(g, impl, dtype):
        x, g = [x.float().to(dtype) for x in (q, k, v, beta, state, w)], g.float().to(dtype).requires_grad_()
        args = *x[:3], *([x[3]] if kind == "delta" else []), g, x[4], impl
        y, last = delta(*args) if kind == "delta" else decay(*args, read="before" if kind == "before" else "after")
        return torch.autograd.grad((y * x[5]).sum() + last.sum(), g)[0].double()

    constant, own = torch.full((H, *keys), -steep), -steep * randn(B, T, H, *keys, seed=5).abs()
    for g, bound in ((constant, 1e-4 if steep > 1 else 2e-5), (own, 2e-5)):
        want = learnt(g, "reference", torch.float64)
        for dtype, most in ((torch.float32, bound), (torch.float64, 1e-9)):
            error = (learnt(g, "numba", dtype) - want).abs().max() / want.abs().max()
            assert error <= most, f"{error:.1e} in {dtype}"


def test_wide_heads_are_cut_into_tasks_that_share_a_head_of_keys():
    """One group of keys and values beyond one register, for more threads than heads have groups."""
    q, k, v = randn(1, 40, 1, 33), randn(1, 40, 1, 33, seed=1), randn(1, 40, 3, 70, seed=2)
    g, S = -randn(1, 40, 3, seed=3).abs(), randn(1, 3, 33, 70, seed=4)
    want = scans.decay(q, k, v, g, S, impl="reference")
    arrays = [x.numpy() for x in (q, k, v, g[..., None], S, torch.tensor([40]))]
    for threads in (1, 2, 3, 8):
        got = cpu_decay.scan(*arrays, threads)
        assert contract.close(tuple(map(torch.from_numpy, got)), want) <= contract.TOLERANCE
        total, _ = cpu_decay.scan(*arrays, threads, heads=1)
        assert contract.close(torch.from_numpy(total), want[0].sum(2, keepdim=True)) <= contract.TOLERANCE


def test_no_decay_is_exact_however_long():
    """A factor of 1 - 6e-8 a token would have lost half a percent of the state."""
    T, S = 100_000, torch.ones(1, 1, 4, 4)
    zeros = torch.zeros(1, T, 1, 4)
    for g in (None, torch.zeros(1), torch.zeros(1, 4)):
        assert torch.equal(scans.decay(zeros, zeros, zeros, g, S)[1], S)


def test_growth_and_nan_are_not_hidden():
    q, k, v = (torch.ones(1, 80, 1, 2) for _ in range(3))
    y, S = scans.decay(q, k, v, torch.full((1,), 2.0))
    assert y[0, 60:].isinf().all()
    assert S.isinf().all()
    want, _ = scans.decay(q.double(), k.double(), v.double(), torch.full((1,), 2.0).double(), impl="reference")
    assert contract.close(y[:, :30] / want[:, :30], torch.ones(1, 30, 1, 2), 1e-5) <= 1e-5
    g = torch.zeros(1, 80, 1)
    g[0, 40] = torch.nan
    y, _ = scans.decay(q, k, v, g)
    assert y[0, :40].isfinite().all()
    assert y[0, 40:].isnan().all()
