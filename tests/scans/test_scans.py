"""The recurrences: numba equals the torch reference, gradients too; extremes stay finite; bad input is named."""

import contract
import pytest
import torch

from postx import scans

B, T, H, K, V, D, N = 2, 70, 4, 5, 6, 3, 4  # T crosses one block of the backward pass
LENGTHS = torch.tensor([70, 33])


def randn(*shape, dtype=torch.float64, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def outputs_and_gradients(function, inputs):
    """Flat outputs, and the gradients of a random linear loss on them."""
    inputs = [None if x is None else x.detach().clone().requires_grad_(True) for x in inputs]
    outputs = contract.leaves(function(*inputs))
    loss = 0.0
    for i, x in enumerate(outputs):
        if x.requires_grad:
            parts = torch.view_as_real(x) if x.is_complex() else x
            loss = loss + (parts * randn(*parts.shape, seed=i)).sum()
    return tuple(outputs), torch.autograd.grad(loss, [x for x in inputs if x is not None])


def numba_equals_reference(function, *inputs, tolerance=contract.TOLERANCE):
    want = outputs_and_gradients(lambda *x: function(*x, "reference"), inputs)
    got = outputs_and_gradients(lambda *x: function(*x, "numba"), inputs)
    assert len(got[0]) == len(want[0])
    assert contract.close(got, want, tolerance) <= tolerance


def decay_inputs(g_shape, groups=2):
    g = None if g_shape is None else -randn(*g_shape, seed=9).abs()
    return (
        randn(B, T, groups, K),
        randn(B, T, 1, K, seed=1),
        randn(B, T, H, V, seed=2),
        g,
        randn(B, H, K, V, seed=3),
    )


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["whole", "ragged"])
@pytest.mark.parametrize("g_shape", [None, (H,), (2, K), (B, T, H), (B, T, 2, K)], ids=str)
def test_decay_read_after(g_shape, lengths):
    def run(q, k, v, g, S, impl):
        return scans.decay(q, k, v, g, S, lengths_B=lengths, impl=impl)

    numba_equals_reference(run, *decay_inputs(g_shape))


@pytest.mark.parametrize("bonus", [True, False])
def test_decay_read_before(bonus):
    def run(q, k, v, g, S, u, impl):
        return scans.decay(q, k, v, g, S, read="before", u_HK=u, lengths_B=LENGTHS, impl=impl)

    numba_equals_reference(run, *decay_inputs((B, T, H, K)), randn(H, K, seed=4) if bonus else None)


@pytest.mark.parametrize("kind", [torch.float64, torch.complex128], ids=["real", "complex"])
@pytest.mark.parametrize("selective", [True, False])
def test_diagonal(selective, kind):
    A = randn(D, N, dtype=kind)
    A = torch.complex(-A.real.abs(), A.imag) if A.is_complex() else -A.abs()
    delta = randn(*((B, T, D) if selective else (D,)), seed=1).abs()
    write, read = (randn(*((B, T, N) if selective else (D, N)), dtype=kind, seed=s) for s in (2, 3))

    def run(u, delta, A, write, read, S, impl):
        return scans.diagonal(u, delta, A, write, read, S, lengths_B=LENGTHS, impl=impl)

    numba_equals_reference(
        run, randn(B, T, D, seed=5), delta, A, write, read, randn(B, D, N, dtype=kind, seed=6)
    )


@pytest.mark.parametrize("bonus", [True, False])
def test_logspace(bonus):
    def run(s, v, g, u, impl):
        return scans.logspace(s, v, g, u, lengths_B=LENGTHS, impl=impl)

    u = randn(D, seed=3) if bonus else None
    numba_equals_reference(run, 20 * randn(B, T, D), randn(B, T, D, seed=1), -randn(D, seed=2).abs(), u)


def test_logspace_is_a_softmax_however_large_the_scores():
    s, v = 1e4 * randn(1, T, D), randn(1, T, D, seed=1)
    y, _ = scans.logspace(s, v)
    want = torch.stack([(s[:, : t + 1].softmax(1) * v[:, : t + 1]).sum(1) for t in range(T)], 1)
    assert contract.close(y, want) <= contract.TOLERANCE


def test_logspace_in_float32_keeps_its_digits():
    """The naive sum overflows at s = 89; the scaled one loses nothing."""
    s, v = 200 * randn(1, T, D).float(), randn(1, T, D, seed=1).float()
    naive = torch.cumsum(s.exp() * v, 1) / torch.cumsum(s.exp(), 1)
    assert not naive.isfinite().all()
    for impl in scans.IMPLEMENTATIONS:
        y, _ = scans.logspace(s, v, impl=impl)
        want, _ = scans.logspace(s.double(), v.double(), impl="reference")
        assert contract.close(y, want, 1e-5) <= 1e-5


def test_merge_is_associative_and_equals_the_scan():
    s, v = 30 * randn(1, T, D), randn(1, T, D, seed=1)
    states = [scans.logspace(s[:, i : i + 10], v[:, i : i + 10])[1] for i in range(0, T, 10)]
    left = right = None
    for state in states:
        left = state if left is None else scans.merge(left, state)
    for state in reversed(states):
        right = state if right is None else scans.merge(state, right)
    whole = scans.logspace(s, v)[1]
    assert contract.close(left, whole) <= contract.TOLERANCE
    assert contract.close(right, whole) <= contract.TOLERANCE


@pytest.mark.parametrize("impl", scans.IMPLEMENTATIONS)
@pytest.mark.parametrize("g", [-torch.inf, -1e4, -1e-12, 0.0])
def test_decay_rates_at_the_ends(g, impl):
    """Total forgetting leaves the token alone; no forgetting is the plain sum."""
    q, k, v, _, _ = decay_inputs(None)
    y, _ = scans.decay(q, k, v, torch.full((H,), g, dtype=torch.float64), impl=impl)
    heads = [x.repeat_interleave(H // x.shape[2], 2) for x in (q, k)]
    scores = torch.einsum("bthk,bmhk->bhtm", *heads)
    scores = scores * torch.eye(T) if g < -1 else scores.tril()
    assert contract.close(y, torch.einsum("bhtm,bmhv->bthv", scores, v), 1e-8) <= 1e-8


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_state_is_at_least_float32_and_output_keeps_the_dtype(dtype):
    q, k, v, g, _ = (None if x is None else x.to(dtype) for x in decay_inputs((H,)))
    y, S = scans.decay(q, k, v, g)
    assert y.dtype == dtype
    assert S.dtype == torch.float32
    want, _ = scans.decay(q.double(), k.double(), v.double(), g.double())
    assert contract.close(y, want, contract.BOUNDS[dtype]) <= contract.BOUNDS[dtype]


def test_second_order_gradients_are_refused_not_wrong():
    q, k, v, g, S = decay_inputs((H,))
    v.requires_grad_(True)
    y, _ = scans.decay(q, k, v, g, S)
    (first,) = torch.autograd.grad(y.square().sum(), v, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


def test_bad_input_is_named():
    q, k, v, g, S = decay_inputs((H,))
    with pytest.raises(ValueError, match=r"q_BTHK: expected axes \[B, T, H, K\] with K=3"):
        scans.decay(q, k[..., :3], v, g, S)
    with pytest.raises(ValueError, match="q_BTHK: 3 heads do not divide the 4"):
        scans.decay(q[:, :, [0, 0, 0]], k, v, g, S)
    with pytest.raises(ValueError, match=r"g_BTH: expected axes \[B, T, H\] with T=70"):
        scans.decay(q, k, v, randn(B, 3, H), S)
    with pytest.raises(ValueError, match="read: expected 'after' or 'before', got 'during'"):
        scans.decay(q, k, v, g, S, read="during")
    with pytest.raises(ValueError, match="u_HK: a bonus .* needs read='before'"):
        scans.decay(q, k, v, g, S, u_HK=randn(H, K))
    with pytest.raises(
        ValueError, match=r"impl: 'cuda' is not available here; there are 'auto', 'reference', 'numba'"
    ):
        scans.decay(q, k, v, g, S, impl="cuda")
    u, A = randn(B, T, D), -randn(D, N).abs()
    with pytest.raises(ValueError, match=r"delta: expected axes \[B, T, D\] or \[D\], got shape \(2, 3\)"):
        scans.diagonal(u, randn(B, D), A, randn(D, N), randn(D, N))
    with pytest.raises(ValueError, match=r"C_DN: expected axes \[D, N\] with N=4"):
        scans.diagonal(u, randn(D).abs(), A, randn(D, N), randn(D, 3))
    with pytest.raises(ValueError, match=r"g_D: expected axes \[D\] with D=3"):
        scans.logspace(u, u, randn(2))


def test_whole_numbers_are_refused():
    whole = torch.ones(1, 4, 1, 2, dtype=torch.int64)
    with pytest.raises(ValueError, match="expected floating point numbers, got torch.int64"):
        scans.decay(whole, whole, whole)
    with pytest.raises(ValueError, match="expected floating point numbers, got torch.int64"):
        scans.delta(whole, whole, whole)
    with pytest.raises(ValueError, match="expected floating point numbers, got torch.int64"):
        scans.affine(-whole[..., 0], whole[..., 0])
    with pytest.raises(ValueError, match="expected floating point numbers, got torch.int64"):
        scans.affine(torch.full((1, 4, 1), -0.1), whole[..., :1, 0])
