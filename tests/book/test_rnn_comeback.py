"""Chapter 6: the code that stands on its page, the equations that no other file holds, and its exercise solutions."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from page import Page
from torch import nn
from torch.nn import functional as F

from postx import cost
from postx.mixers import attention, deltanet, gated_deltanet, retnet, rwkv4, rwkv7
from postx.models import published

PAGE = Page(
    "rnn_comeback", torch=torch, F=F, math=math, nn=nn, replace=replace, published=published, cost=cost,
    attention=attention, deltanet=deltanet, retnet=retnet, rwkv4=rwkv4, rwkv7=rwkv7,
)  # fmt: skip
TEXT = "\n".join(c.source for c in PAGE.cells if c.cell_type == "markdown")
RESULTS = Path(__file__).resolve().parents[2] / "experiments" / "results"


@pytest.fixture(autouse=True)
def same_numbers_each_time():
    torch.manual_seed(0)


def unit(*shape):
    return F.normalize(torch.randn(*shape, dtype=torch.float64), dim=-1)


@pytest.mark.equation("eq-lstm-step")
@pytest.mark.parametrize(("T", "D", "H"), [(1, 3, 5), (40, 8, 8)])
def test_the_lstm_of_the_page_is_torchs(T, D, H, residual):
    lstm = nn.LSTM(D, H, batch_first=True, bias=False).double()
    x = 2 * torch.randn(1, T, D, dtype=torch.float64)
    mine = PAGE.function("lstm_by_hand")(x[0], lstm.weight_ih_l0, lstm.weight_hh_l0)
    error = (mine - lstm(x)[0][0]).abs().max().item()
    assert error < 1e-12
    residual(error)


def test_the_four_stacks_have_equally_many_weights():
    stacks = PAGE.function("stacks")(64)
    counts = {name: sum(p.numel() for p in stack.parameters()) for name, stack in stacks.items()}
    assert counts.pop("RWKV-4") == 8 * 64**2 + 2 * 5 * 64  # three blends, a decay and a bonus a channel
    assert set(counts.values()) == {8 * 64**2}


def test_the_recorded_run_says_what_the_page_says():
    record = json.loads((RESULTS / "rnn_training_gpu.json").read_text())
    ms = {(row["layer"], row["tokens_in_a_text"]): row["ms"] for row in record["rows"]}
    assert round(ms["LSTM", 16384] / ms["LSTM", 128]) == 92
    longer = {name: ms[name, 16384] / ms[name, 128] for name in ("attention", "RetNet", "RWKV-4")}
    assert (round(longer["attention"], 1), round(longer["RetNet"])) == (2.4, 4)
    assert longer["RWKV-4"] < 1.6, "nearly level"
    assert max(ms["LSTM", 2**p] for p in range(7, 11)) < 1.5 * ms["LSTM", 128]
    step = {T: 1e3 * ms["LSTM", T] / T for T in (1024, 2048, 4096, 8192, 16384)}
    assert [round(step[T]) for T in (1024, 2048)] == [8, 8]
    assert all(33 < step[T] < 36 for T in (4096, 8192, 16384))
    steady = 8 * ms["LSTM", 2048]  # the long text, had the pace not jumped
    assert round(steady) == 137
    assert round(steady / ms["LSTM", 128]) == 22
    assert [round(steady / ms[name, 16384]) for name in ("RetNet", "attention")] == [5, 12]
    assert ms["LSTM", 16384] / steady == pytest.approx(4, abs=0.2)
    assert [round(ms[name, 16384]) for name in ("attention", "RetNet", "RWKV-4")] == [11, 29, 58]
    assert all(abs(n / (8 * record["width"] ** 2) - 1) < 0.002 for n in record["weights"].values())
    pairs = 2 * cost.softmax_attention(16384, H=8, K=128).flops / 16384  # two layers, a token
    assert pairs / (2 * 8 * 1024**2) == pytest.approx(4, rel=0.01)


@pytest.mark.equation("eq-rwkv4-average")
def test_rwkv4_is_its_average(residual):
    (k, v), w = rwkv4.example(37)
    y, _ = rwkv4.recurrent(k, v, **w)
    g, u = w["g_D"], w["u_D"]
    error = torch.zeros(())
    for t in range(37):
        age = torch.arange(t - 1, -1, -1, dtype=torch.float64)[:, None]
        scores = torch.cat([age * g + k[0, :t], (u + k[0, t])[None]])
        expected = (scores.softmax(0) * v[0, : t + 1]).sum(0)
        error = torch.maximum(error, (y[0, t] - expected).abs().max())
    assert error < 1e-12
    mine = PAGE.function("average")(k[1, :, 3], v[1, :, 3], g[3], u[3])
    assert (mine - y[1, :, 3]).abs().max() < 1e-12
    residual(error)


def test_what_is_kept_is_what_the_states_hold():
    kept, layers = PAGE.function("kept"), PAGE.function("stacks")(256)
    x = torch.randn(1, 10, 256)
    for name, stack in layers.items():
        held, y = 0, x
        for layer in stack:
            y, S = layer(y)
            S = [part for part in S if part.is_floating_point()]
            held += sum(part.numel() for part in S)
        assert kept(name, 10) == held, name
    assert kept("attention", 32) == kept("RetNet", 10**6)
    assert round(kept("RetNet", 10) / kept("attention", 10)) == 3


def test_the_slowest_channel_forgets_as_the_page_says():
    decay = rwkv4.Layer(64).decay_D.exp().min().item()
    assert round(decay, 4) == 0.0067
    assert round(math.log(2) / decay) == 103


@pytest.mark.equation("eq-phone-context")
@pytest.mark.parametrize("bits", [16, 8, 4, 3])
def test_the_longest_context_fits_and_one_token_more_does_not(bits, residual):
    functions = PAGE.functions("states", "longest")
    for c in (published.LLAMA3_8B, published.MISTRAL_7B):
        for memory in (4, 8, 16, 64):
            fits = functions[1](replace(c, window=None), bits, memory)
            full = replace(c, window=None)
            for name, shape in (("grouped", full), ("multi-head", replace(full, G=full.H))):
                held, T = bits * full.weights() / 8, int(fits[name])
                room = memory * 10**9
                assert held + (shape.kv_bytes(T) if T else 0) <= room or T == 0
                assert held + shape.kv_bytes(T + 1) > room
            heads = full.D // 256
            state = 4 * full.L * heads * 256 * 512
            assert (fits["RetNet"] == math.inf) == (held + state <= room)
    residual(0.0)


def test_the_phone_numbers_in_the_text():
    longest = PAGE.functions("states", "longest")[1]
    small = published.Config("1B", L=16, D=2048, H=32, G=8, K=64, F=8192, Y=128256, tied=True)
    assert small.weights() == 1_235_814_400
    assert longest(small, 4, 4)["grouped"] == 103_213
    assert longest(published.LLAMA3_8B, 8, 16)["grouped"] == 60_804
    assert longest(published.LLAMA3_8B, 16, 16)["window"] == 0
    assert longest(published.LLAMA3_8B, 3, 4)["grouped"] > 0 == longest(published.LLAMA3_8B, 4, 4)["grouped"]


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
    scope = solution("ex-rnn-predict")
    assert (scope["added"], scope["corrected"]) == (1.5, 0.875)


@pytest.mark.parametrize("n", [1, 3, 6])
def test_derive(n):
    import numpy as np

    scope = solution("ex-rnn-crossings")
    assert scope["most"](n) == n
    rng = np.random.default_rng(n)
    for _ in range(200):
        c, bases = rng.normal(size=n + 1), rng.uniform(0.05, 0.99, n)
        assert scope["crossings"](c, bases) <= n


def test_code_count_to_three():
    x = torch.randint(2, (999,))
    assert torch.equal(solution("ex-rnn-three")["count_to_three"](x), x.cumsum(0) % 3)


def test_code_near():
    eps, needed_input = solution("ex-rnn-near")["needed"](1000)
    assert (1 - eps) ** 1000 == pytest.approx(0.5)
    assert 2 / (1 + math.exp(-needed_input)) == pytest.approx(2 - eps)
    assert (round(eps, 5), round(needed_input, 2)) == (0.00069, 7.97)


def test_explore():
    scope = solution("ex-rnn-explore")
    assert (scope["grouped"], scope["multi"]) == (30_402, 7_600)
    assert round(scope["tokens"]) == 2048
    assert round(scope["state"] / 1e6) == 268


def solution(label):
    return PAGE.solution(label)
