"""The delta recurrence: numba equals the torch reference and a product of matrices; its errors name the argument."""

import contract
import pytest
import torch
from test_scans import LENGTHS, B, H, K, T, V, numba_equals_reference, randn

from postx import scans
from postx.scans import cpu_delta


def unit(x):
    return x / x.norm(dim=-1, keepdim=True)


def inputs(g_shape=(B, T, 2, K), beta=True, free=True, groups=2):
    """q, k, v, beta, g, S, b, c with shared heads; without `free`, b and c are left to be k."""
    return (
        randn(B, T, groups, K),
        unit(randn(B, T, 1, K, seed=1)),
        randn(B, T, H, V, seed=2),
        randn(B, T, H, seed=3).sigmoid() if beta else None,
        None if g_shape is None else -randn(*g_shape, seed=4).abs(),
        randn(B, H, K, V, seed=5),
        unit(randn(B, T, 2, K, seed=6)) if free else None,
        unit(randn(B, T, H, K, seed=7)) if free else None,
    )


def scan(q, k, v, beta, g, S, b, c, impl, **more):
    return scans.delta(q, k, v, beta, g, S, b_BTHK=b, c_BTHK=c, impl=impl, **more)


@pytest.mark.parametrize("read", ["after", "before"])
@pytest.mark.parametrize("lengths", [None, LENGTHS, torch.tensor([0, 64])], ids=["whole", "ragged", "empty"])
@pytest.mark.parametrize("g_shape", [None, (H,), (2, K), (B, T, H), (B, T, 2, K)], ids=str)
def test_numba_equals_reference(g_shape, lengths, read):
    def run(*args):
        return scan(*args, lengths_B=lengths, read=read)

    numba_equals_reference(run, *inputs(g_shape))


@pytest.mark.parametrize("beta", [True, False], ids=["beta", "no beta"])
@pytest.mark.parametrize("free", [True, False], ids=["b and c", "b = c = k"])
def test_what_defaults_to_k_has_its_gradient(free, beta):
    numba_equals_reference(scan, *inputs((B, T, H), beta, free))


@pytest.mark.parametrize("tokens", [1, cpu_delta.BLOCK - 1, cpu_delta.BLOCK, cpu_delta.BLOCK + 1])
def test_lengths_around_a_block_of_the_backward_pass(tokens):
    short = [None if x is None else x if i == 5 else x[:, :tokens] for i, x in enumerate(inputs())]
    numba_equals_reference(scan, *short)


@pytest.mark.parametrize("impl", scans.IMPLEMENTATIONS)
@pytest.mark.parametrize("read", ["after", "before"])
def test_equals_the_product_of_matrices(impl, read):
    """Written from the formula, one head at a time, with the K x K matrix of each token formed."""
    q, k, v, beta, g, S, b, c = inputs()
    y, last = scan(q, k, v, beta, g, S, b, c, impl, read=read)
    for row in range(B):
        for h in range(H):
            X, worst = S[row, h], 0.0
            for t in range(T):
                A = torch.diag(g[row, t, h // 2].exp())
                A = A - beta[row, t, h] * torch.outer(b[row, t, h // 2], c[row, t, h])
                new = A @ X + torch.outer(k[row, t, 0], v[row, t, h])
                want = (X if read == "before" else new).T @ q[row, t, h // 2]
                worst, X = max(worst, float((y[row, t, h] - want).abs().max())), new
            assert worst <= contract.TOLERANCE
            assert contract.close(last[row, h], X) <= contract.TOLERANCE


@pytest.mark.parametrize("impl", scans.IMPLEMENTATIONS)
def test_without_erasing_it_is_the_decay_recurrence(impl):
    q, k, v, beta, g, S, *_ = inputs()
    got = scans.delta(q, k, v, torch.zeros_like(beta), g, S, impl=impl)
    assert contract.close(got, scans.decay(q, k, v, g, S)) <= contract.TOLERANCE


@pytest.mark.parametrize("impl", scans.IMPLEMENTATIONS)
def test_total_forgetting_leaves_the_token_alone(impl):
    """At g = -inf and with nothing erased S is k v', and the gradients stay finite."""
    q, k, v, _, _, S, *_ = (None if x is None else x.requires_grad_(True) for x in inputs())
    g = torch.full((H,), -torch.inf, dtype=torch.float64)
    y, _ = scans.delta(q, k, v, torch.zeros(B, T, H, dtype=torch.float64), g, S, impl=impl)
    want = (q * k).sum(-1).repeat_interleave(H // 2, 2)[..., None] * v
    assert contract.close(y, want) <= contract.TOLERANCE
    assert all(x.isfinite().all() for x in torch.autograd.grad(y.sum(), (q, k, v)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_state_is_at_least_float32_and_output_keeps_the_dtype(dtype):
    args = [None if x is None else x.to(dtype) for x in inputs()]
    y, S = scan(*args, "auto")
    assert y.dtype == dtype
    assert S.dtype == torch.float32
    want, _ = scan(*(x.double() for x in args), "auto")
    assert contract.close(y, want, contract.BOUNDS[dtype]) <= contract.BOUNDS[dtype]


def test_second_order_gradients_are_refused_not_wrong():
    q, k, v, beta, g, S, b, c = inputs()
    v.requires_grad_(True)
    (first,) = torch.autograd.grad(scan(q, k, v, beta, g, S, b, c, "numba")[0].square().sum(), v, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


def test_bad_input_is_named():
    q, k, v, beta, g, S, b, c = inputs()
    with pytest.raises(ValueError, match=r"b_BTHK: expected axes \[B, T, H, K\] with K=5"):
        scan(q, k, v, beta, g, S, b[..., :3], c, "auto")
    with pytest.raises(ValueError, match="c_BTHK: 3 heads do not divide the 4"):
        scan(q, k, v, beta, g, S, b, c[:, :, :3], "auto")
    with pytest.raises(ValueError, match=r"beta_BTH: expected axes \[B, T, H\] with T=70"):
        scan(q, k, v, beta[:, :3], g, S, b, c, "auto")
    with pytest.raises(ValueError, match="beta_BTH: 3 heads do not divide the 4"):
        scan(q, k, v, beta[..., :3], g, S, b, c, "auto")
    with pytest.raises(ValueError, match=r"S_BHKV: expected axes \[B, H, K, V\] with V=6"):
        scan(q, k, v, beta, g, S[..., :2], b, c, "auto")
    with pytest.raises(ValueError, match="read: expected 'after' or 'before', got 'during'"):
        scan(q, k, v, beta, g, S, b, c, "auto", read="during")
    with pytest.raises(ValueError, match="lengths_B: expected values from 0 to T=70"):
        scan(q, k, v, beta, g, S, b, c, "auto", lengths_B=torch.tensor([71, 1]))
    with pytest.raises(ValueError, match="impl: 'cuda' is not available here"):
        scan(q, k, v, beta, g, S, b, c, "cuda")


def test_more_values_and_keys_than_one_table_holds():
    """Two blocks of values and more than a register of keys, neither a multiple of its lanes."""

    def wide(*shape, seed):
        return randn(*shape, seed=seed) / shape[-1] ** 0.5

    inputs = wide(1, 20, 2, 19, seed=0), wide(1, 20, 1, 19, seed=1), randn(1, 20, 2, 70, seed=2)
    rest = randn(1, 20, 2, seed=3).sigmoid(), -randn(1, 20, 2, 19, seed=4).abs(), randn(1, 2, 19, 70, seed=5)
    numba_equals_reference(scan, *inputs, *rest, None, wide(1, 20, 2, 19, seed=6))
