"""Chapter 6: the code that stands on its page, the equations that no other file holds, and its exercise solutions."""

import math

import pytest
import torch
from page import Page
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from postx import cost
from postx.mixers import deltanet, gated_deltanet, retnet, rwkv4, rwkv7

PAGE = Page("delta_rule", torch=torch, F=F, math=math, deltanet=deltanet, retnet=retnet, rwkv7=rwkv7)


@pytest.fixture(autouse=True)
def same_numbers_each_time():
    torch.manual_seed(0)


def unit(*shape):
    return F.normalize(torch.randn(*shape, dtype=torch.float64), dim=-1)


@pytest.mark.equation("eq-delta-rule")
def test_the_delta_rule_of_the_page(residual):
    k, v, beta = unit(30, 6), torch.randn(30, 4, dtype=torch.float64), 2 * torch.rand(30, dtype=torch.float64)
    S = PAGE.function("by_delta")(k, v, beta)
    other = torch.zeros(6, 4, dtype=torch.float64)
    for t in range(30):
        erase = torch.eye(6) - beta[t] * torch.outer(k[t], k[t])
        other = erase @ other + beta[t] * torch.outer(k[t], v[t])
    z = [x[None, :, None] for x in (k, k, v, beta)]
    error = max((S - other).abs().max(), (S - deltanet.recurrent(*z)[1][0, 0]).abs().max())
    assert error < 1e-12
    residual(error)


@pytest.mark.equation("eq-delta-gradient")
@pytest.mark.parametrize("beta", [0.3, 1.0, 1.7])
def test_the_delta_rule_is_a_gradient_step(beta, residual):
    S = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    k, v = unit(6), torch.randn(4, dtype=torch.float64)
    (gradient,) = torch.autograd.grad(0.5 * (S.T @ k - v).square().sum(), S)
    z = [x[None, None] for x in (k, k, v)] + [torch.full((1, 1), beta, dtype=torch.float64)]
    _, after = deltanet.step(S.detach()[None, None], *z)
    error = (after[0, 0] - (S - beta * gradient)).abs().max().item()
    assert error < 1e-12
    residual(error)


@pytest.mark.equation("eq-delta-eigen")
@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0, 2.0, 2.5])
def test_the_eigenvalues_of_a_token(beta, residual):
    k = unit(7)
    x = torch.randn(7, dtype=torch.float64)
    x = x - (x @ k) * k
    matrix = torch.eye(7, dtype=torch.float64) - beta * torch.outer(k, k)
    error = max((matrix @ k - (1 - beta) * k).abs().max(), (matrix @ x - x).abs().max())
    assert error < 1e-12
    assert deltanet.cost(1, H=1, K=64, V=32).flops == 6 * 64 * 32 + 2 * 32
    assert cost.decay_recurrence(1, K=64, V=32, decay=False).flops == 4 * 64 * 32
    residual(error)


def text(T, K=6, V=4):
    q, v = torch.randn(T, K, dtype=torch.float64), torch.randn(T, V, dtype=torch.float64)
    return q, unit(T, K), v, 2 * torch.rand(T, dtype=torch.float64)


@pytest.mark.equation("eq-delta-chunk")
@pytest.mark.parametrize("C", [1, 5, 16, 40])
def test_the_chunks_of_the_page_solve_their_triangle(C, residual):
    q, k, v, beta = text(33)
    y, S = PAGE.function("delta_in_chunks")(q, k, v, beta, C)
    z = [x[None, :, None] for x in (q * 6**0.5, k, v, beta)]
    want, end = deltanet.recurrent(*z)
    error = max((y - want[0, :, 0]).abs().max(), (S - end[0, 0]).abs().max()).item()
    assert error < 1e-9
    residual(error)


@pytest.mark.equation("eq-delta-costs")
@pytest.mark.parametrize(("C", "K", "V"), [(16, 64, 64), (64, 32, 64)])
def test_the_costs_of_a_scan_and_of_chunks(C, K, V, residual):
    """The counter sees matrix products; the triangular solve's C V a token is counted by hand."""
    join, in_chunks = PAGE.function("join"), PAGE.function("delta_in_chunks")
    q, k, v, beta = (x.float() for x in text(2 * C, K, V))

    def counted(run):
        with FlopCounterMode(display=False) as counter:
            run()
        return counter.get_total_flops()

    pair = torch.zeros(K, K), torch.zeros(K, V)
    assert counted(lambda: join(pair, pair)) == 2 * K**3 + 2 * K**2 * V
    found = counted(lambda: in_chunks(q, k, v, beta, C)) / (2 * C) + C * V
    assert deltanet.cost(1, H=1, K=K, V=V).flops == 6 * K * V + 2 * V
    assert found == 6 * K * V + 4 * C * K + 3 * C * V
    residual(0.0)


def test_a_scan_gives_the_same_table():
    _, k, v, beta = text(32)
    by_scan = PAGE.functions("join", "by_scan")[1]
    S = by_scan(k, v, beta)
    assert (S - PAGE.function("by_delta")(k, v, beta)).abs().max() < 1e-12


def test_the_doors_of_the_first_slider():
    by_delta = PAGE.function("by_delta")
    says = torch.eye(2, dtype=torch.float64)
    for c, beta in ((1.0, 0.5), (1.0, 2.0), (0.6, 1.0)):
        keys = torch.tensor([[1.0, 0.0], [c, math.sqrt(1 - c * c)]], dtype=torch.float64)
        S = by_delta(keys, says, torch.tensor([1.0, beta], dtype=torch.float64))
        assert torch.allclose(S.T @ keys[1], torch.tensor([c * (1 - beta), beta], dtype=torch.float64))
        assert (S.T @ keys[0])[0].item() == pytest.approx(1 - beta * c * c)
        assert (S.T @ keys[0])[1].item() == pytest.approx(beta * c)


def test_rewrites_as_the_answer_says():
    from postx import scans

    scope = {"scans": scans, "unit": lambda *s, seed: unit(*s)}
    last_values = PAGE.function("last_values", **scope)
    assert last_values("orthogonal", 8, 64, "delta rule") < 1e-12
    assert last_values("orthogonal", 8, 64, "adding") == pytest.approx(63**0.5, rel=0.05)
    assert last_values("orthogonal", 8, 64, "fading") == pytest.approx(expected_fading(8), rel=0.2)  # one draw
    assert expected_fading(2) == pytest.approx(2.7, abs=0.05)
    assert expected_fading(32) == pytest.approx(0.48, abs=0.01)


def expected_fading(n, rewrites=64):
    "Root mean square error of the last values, over draws of the values: n orthogonal keys, each faded its own age."
    gamma, squares = retnet.log_gamma(1).exp().item(), 0.0
    for age in range(n):
        squares += (1 - gamma**age) ** 2 + sum(gamma ** (2 * (age + n * r)) for r in range(1, rewrites))
    return (squares / n) ** 0.5


@pytest.mark.equation("eq-gated-delta")
def test_gated_deltanet_fades_first(residual):
    (q, k, v, beta, g), _ = gated_deltanet.example(25, B=1, H=1, G=1)
    _, end = gated_deltanet.recurrent(q, k, v, beta, g)
    S = torch.zeros(6, 5, dtype=torch.float64)
    for t in range(25):
        kt = k[0, t, 0]
        erase = torch.eye(6) - beta[0, t, 0] * torch.outer(kt, kt)
        S = erase @ (g[0, t, 0].exp() * S) + beta[0, t, 0] * torch.outer(kt, v[0, t, 0])
    error = (end[0, 0] - S).abs().max()
    assert error < 1e-12
    residual(error)


@pytest.mark.equation("eq-rwkv7-delta")
def test_rwkv7_is_its_recurrence_and_turns_a_sign_only_so_far(residual):
    (r, k, v, removed, a, g), _ = rwkv7.example(25, B=1, H=1)
    _, end = rwkv7.recurrent(r, k, v, removed, a, g)
    S, lowest = torch.zeros(6, 5, dtype=torch.float64), 1.0
    for t in range(25):
        kk = removed[0, t, 0]
        matrix = torch.diag(g[0, t, 0].exp()) - torch.outer(kk * a[0, t, 0], kk)
        S = matrix @ S + torch.outer(k[0, t, 0], v[0, t, 0])
        eigenvalues = torch.linalg.eigvals(matrix)
        assert eigenvalues.imag.abs().max() < 1e-12
        lowest = min(lowest, eigenvalues.real.min().item())
    error = (end[0, 0] - S).abs().max()
    assert error < 1e-12
    assert lowest > math.exp(rwkv7.FASTEST) - 1
    assert round(math.exp(rwkv7.FASTEST) - 1, 3) == -0.455
    residual(error)


@pytest.mark.equation("eq-parity-state")
@pytest.mark.parametrize("T", [1, 100, 5000])
def test_parity_by_reflection_is_exact(T, residual):
    x = torch.randint(2, (T,))
    found = PAGE.function("parity_by_reflection")(x)
    assert torch.equal(found, (x.cumsum(0) % 2).double())
    residual(0.0)


@pytest.mark.equation("eq-parity-positive")
@pytest.mark.parametrize("a", [0.0, 0.3, 0.99, 1.0])
def test_a_positive_factor_never_turns_back(a, residual):
    s = [torch.tensor(0.7, dtype=torch.float64)]
    for _ in range(60):
        s.append(a * s[-1] - 0.4)
    steps = torch.stack(s).diff()
    error = (steps - a ** torch.arange(60, dtype=torch.float64) * steps[0]).abs().max()
    assert error < 1e-12
    assert (steps.sign() != -steps[0].sign()).all()
    residual(error)


def test_a_rotation_turns_the_steps_of_retnet():
    layer = retnet.Layer(16, H=2).double()
    with torch.no_grad():
        y, _ = layer(torch.ones(1, 400, 16, dtype=torch.float64))
    steps = y[0].diff(dim=0)
    assert ((steps[1:] * steps[:-1]) < 0).any(0).all(), "so the page says: RetNet without its rotation"


def test_the_models_that_only_fade_have_positive_factors():
    assert (retnet.log_gamma(8).exp() > 0).all()  # without the rotation of its queries and keys
    (_, _), w = rwkv4.example(1)
    assert (w["g_D"].exp() > 0).all()
    assert 0.9**980 < 2e-45 < 0.9**970


def test_predict():
    scope = solution("ex-delta-predict")
    assert (scope["added"], scope["corrected"]) == (1.5, 0.875)


@pytest.mark.parametrize("n", [1, 3, 6])
def test_derive(n):
    import numpy as np

    scope = solution("ex-delta-crossings")
    assert scope["most"](n) == n
    rng = np.random.default_rng(n)
    for _ in range(200):
        c, bases = rng.normal(size=n + 1), rng.uniform(0.05, 0.99, n)
        assert scope["crossings"](c, bases) <= n


def test_code_count_to_three():
    x = torch.randint(2, (999,))
    assert torch.equal(solution("ex-delta-three")["count_to_three"](x), x.cumsum(0) % 3)


def test_code_near():
    eps, needed_input = solution("ex-delta-near")["needed"](1000)
    assert (1 - eps) ** 1000 == pytest.approx(0.5)
    assert 2 / (1 + math.exp(-needed_input)) == pytest.approx(2 - eps)
    assert (round(eps, 5), round(needed_input, 2)) == (0.00069, 7.97)


def solution(label):
    return PAGE.solution(label)
