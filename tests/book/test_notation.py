"""The six equations of the notation page, in float64, each against a second way to compute it."""

import numpy as np
import pytest
from scipy.linalg import expm
from scipy.signal import cont2discrete
from scipy.stats import norm

T, N, K, V = 23, 5, 6, 4


@pytest.fixture
def rng():
    return np.random.default_rng(11)


def stable(rng, n=N):
    """A dense matrix whose eigenvalues all have negative real parts."""
    A = rng.standard_normal((n, n))
    return A - (np.linalg.eigvals(A).real.max() + 0.3) * np.eye(n)


def gap(a, b):
    return float(np.abs(a - b).max())


def segment_sums(g):
    """seg[t, i] = g[i+1] + ... + g[t], every segment added up on its own."""
    seg = np.full((len(g), len(g)) + g.shape[1:], -np.inf)
    for t in range(len(g)):
        for i in range(t + 1):
            seg[t, i] = g[i + 1:t + 1].sum(axis=0)
    return seg


@pytest.mark.equation("eq-ssm-recurrence")
def test_the_recurrence_equals_its_unrolled_sum(rng, residual):
    A_bar = expm(0.2 * stable(rng))
    k, q, v, skip = rng.standard_normal(N), rng.standard_normal(N), rng.standard_normal(T), 0.7
    S, y = np.zeros(N), np.empty(T)
    for t in range(T):
        S = A_bar @ S + k * v[t]
        y[t] = q @ S + skip * v[t]
    filter_T = np.array([q @ np.linalg.matrix_power(A_bar, j) @ k for j in range(T)])
    unrolled = np.array([filter_T[:t + 1][::-1] @ v[:t + 1] for t in range(T)]) + skip * v
    assert gap(y, unrolled) < 1e-12
    residual(gap(y, unrolled))


@pytest.mark.equation("eq-zoh")
@pytest.mark.parametrize("delta", [1e-3, 0.1, 2.0])
def test_zero_order_hold_equals_scipy(rng, residual, delta):
    A, k = stable(rng), rng.standard_normal((N, 1))
    A_bar = expm(delta * A)
    k_bar = np.linalg.solve(delta * A, A_bar - np.eye(N)) @ (delta * k)
    A_ref, k_ref, *_ = cont2discrete((A, k, np.eye(N), np.zeros((N, 1))), delta, method="zoh")
    worst = max(gap(A_bar, A_ref), gap(k_bar, k_ref))
    assert worst < 1e-12
    residual(worst)


@pytest.mark.equation("eq-zoh")
def test_zero_order_hold_is_the_flow_under_a_held_input(rng, residual):
    A, k, v, delta, fine = stable(rng), rng.standard_normal(N), 1.3, 0.5, 2000
    S0 = S = rng.standard_normal(N)
    dt = delta / fine
    for _ in range(fine):  # Runge-Kutta on dS/dt = A S + k v
        a = A @ S + k * v
        b = A @ (S + dt / 2 * a) + k * v
        c = A @ (S + dt / 2 * b) + k * v
        d = A @ (S + dt * c) + k * v
        S = S + dt / 6 * (a + 2 * b + 2 * c + d)
    A_bar = expm(delta * A)
    held = A_bar @ S0 + np.linalg.solve(A, A_bar - np.eye(N)) @ k * v
    euler = A_bar @ S0 + delta * k * v
    assert gap(S, held) < 1e-10
    assert gap(S, euler) > 1e-2  # Mamba's shorter write is an approximation, not the flow
    residual(gap(S, held))


def selective(rng, D=3):
    x, A = rng.standard_normal((T, D)), -np.exp(rng.standard_normal((D, N)))
    delta = np.log1p(np.exp(x @ rng.standard_normal((D, D)) + 0.1))  # softplus
    return x, A, delta, x @ rng.standard_normal((D, N)), x @ rng.standard_normal((D, N))


@pytest.mark.equation("eq-selective")
def test_the_selective_recurrence_equals_its_masked_matrix(rng, residual):
    v, A, delta, k, q = selective(rng)
    g = delta[:, :, None] * A  # [T, D, N]
    S, y = np.zeros(A.shape), np.empty_like(v)
    for t in range(T):
        S = np.exp(g[t]) * S + delta[t, :, None] * k[t] * v[t, :, None]
        y[t] = S @ q[t]
    decay = np.exp(segment_sums(g))  # [T, T, D, N]
    matrix = np.einsum("tn,tidn,id,in->dti", q, decay, delta, k)
    masked = np.einsum("dti,id->td", matrix, v)
    assert gap(y, masked) < 1e-9
    assert np.count_nonzero(np.triu(matrix[0], 1)) == 0
    residual(gap(y, masked))


def test_a_large_step_writes_and_a_small_one_keeps():
    A, old, k, v = -1.0, 5.0, 1.0, 3.0
    kept, cleared = (np.exp(delta * A) * old + delta * k * v for delta in (1e-3, 10.0))
    assert abs(kept - old) < 0.001 * old
    assert abs(cleared - 10.0 * v) < 1e-3  # nothing of the old state is left


@pytest.mark.equation("eq-ssd-dual")
def test_the_dual_form_equals_the_recurrence(rng, residual):
    q, k, v = (rng.standard_normal((T, width)) for width in (K, K, V))
    g = -np.exp(rng.standard_normal(T))
    S, y = np.zeros((K, V)), np.empty((T, V))
    for t in range(T):
        S = np.exp(g[t]) * S + np.outer(k[t], v[t])
        y[t] = S.T @ q[t]
    L = np.exp(segment_sums(g))
    dual = (L * (q @ k.T)) @ v
    assert gap(y, dual) < 1e-9
    residual(gap(y, dual))


def feature(x):
    """elu(x) + 1, written so that it never rounds to zero."""
    return np.where(x > 0, x + 1, np.exp(np.minimum(x, 0)))


@pytest.mark.equation("eq-linear-attention")
def test_linear_attention_summed_keys_first(rng, residual):
    q, k = (feature(3 * rng.standard_normal((T, K))) for _ in range(2))
    v = rng.standard_normal((T, V))
    scores = np.tril(q @ k.T)
    direct = scores @ v / scores.sum(axis=1, keepdims=True)
    S, n, y = np.zeros((K, V)), np.zeros(K), np.empty((T, V))
    for t in range(T):
        S, n = S + np.outer(k[t], v[t]), n + k[t]
        y[t] = S.T @ q[t] / (n @ q[t])
    assert gap(y, direct) < 1e-12
    residual(gap(y, direct))


@pytest.mark.equation("eq-linear-attention")
def test_without_a_mask_it_is_associativity_and_with_one_it_is_not(rng, residual):
    q, k = (feature(rng.standard_normal((T, K))) for _ in range(2))
    v = rng.standard_normal((T, V))
    swapped = q @ (k.T @ v)
    worst = gap((q @ k.T) @ v, swapped)
    assert worst < 1e-9
    assert gap(np.tril(q @ k.T) @ v, swapped) > 1.0
    residual(worst)


@pytest.mark.equation("eq-uniform-error")
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_evenly_spread_weights_have_exactly_this_error(residual, bits):
    span, step = 6.0, 6.0 / 2**bits
    middles = -span / 2 + step * (np.arange(2**bits) + 0.5)
    lower, upper = middles - step / 2, middles + step / 2
    error = (((upper - middles)**3 - (lower - middles)**3) / 3).sum() / span  # the density is 1/span
    assert len(middles) == 2**bits
    assert abs(error / (step**2 / 12) - 1) < 1e-12
    residual(abs(error / (step**2 / 12) - 1))


def gaussian_error(step, reach=12.0):
    """E[(w - w_hat)^2] of a standard normal under unclipped rounding: each cell in closed form."""
    middles = step * np.arange(-round(reach / step), round(reach / step) + 1)
    a, b = middles - step / 2, middles + step / 2
    mass = norm.cdf(b) - norm.cdf(a)
    first = norm.pdf(a) - norm.pdf(b)
    second = mass + a * norm.pdf(a) - b * norm.pdf(b)
    return float((second - 2 * middles * first + middles**2 * mass).sum())


@pytest.mark.equation("eq-uniform-error")
def test_a_gaussian_reaches_the_limit_as_the_step_shrinks(residual):
    ratio = {step: gaussian_error(step) / (step**2 / 12) for step in (3.0, 2.0, 0.5)}
    assert abs(ratio[3.0] - 1) > abs(ratio[2.0] - 1) > 1e-3
    assert abs(ratio[0.5] - 1) < 1e-10
    residual(abs(ratio[0.5] - 1))


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_the_documents_program_has_one_level_too_many_and_leaves_its_range(bits):
    span = 6.0
    step = span / (2**bits - 1)
    weights = np.linspace(-5, 5, 200_001)
    levels = np.unique(np.round(np.clip(weights, -span / 2, span / 2) / step))
    assert len(levels) == 2**bits + 1
    assert levels.max() * step > span / 2
