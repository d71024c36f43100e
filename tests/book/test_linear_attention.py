"""Chapter 5: the code that stands on its page, the equations that no other file holds, and its exercise solutions."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from page import Page
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from experiments import rows
from postx import cost
from postx.mixers import gla, linear, retnet
from postx.scans.decay_chunked import decay_chunked
from postx.widgets import memory

PAGE = Page("linear_attention", torch=torch, F=F, math=math, np=np)
CELLS, solution, page_function = PAGE.cells, PAGE.solution, PAGE.function
TEXT = "\n".join(c.source for c in CELLS if c.cell_type == "markdown")


@pytest.fixture(autouse=True)
def same_numbers_each_time():
    torch.manual_seed(0)


def one_head(T, K=8, V=6, seed=0):
    z, _ = linear.example(T, B=1, H=1, G=1, K=K, V=V, seed=seed)
    return z, [x[0, :, 0] for x in z]


def unit(*shape, seed=0):
    g = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(*shape, generator=g, dtype=torch.float64), dim=-1)


@pytest.mark.equation("eq-table-write-read")
def test_the_table_is_the_sum_over_pairs(residual):
    by_table, by_pairs = page_function("by_table"), page_function("by_pairs")
    _, (q, k, v) = one_head(23)
    y = by_table(q, k, v)
    expected = torch.stack([sum((q[t] @ k[i]) * v[i] for i in range(t + 1)) for t in range(23)])
    error = max((y - expected).abs().max(), (by_pairs(q, k, v) - expected).abs().max())
    assert error < 1e-12
    later = v.clone()
    later[9:] += 1
    assert torch.equal(by_table(q, k, later)[:9], y[:9])
    assert (page_function("swapped")(q, k, later)[:9] - page_function("swapped")(q, k, v)[:9]).abs().max() > 0.1
    residual(error)


@pytest.mark.equation("eq-linear-chunk")
@pytest.mark.parametrize("C", [1, 4, 16, 23, 40])
def test_chunks_of_the_page(C, residual):
    _, (q, k, v) = one_head(23)
    error = (page_function("in_chunks")(q, k, v, C) - page_function("by_table")(q, k, v)).abs().max()
    assert error < 1e-12
    residual(error)


def test_the_feature_map_as_written_dies_where_the_page_says():
    as_written = page_function("phi_as_written")
    for dtype, alive, dead in ((torch.float32, -16, -18), (torch.bfloat16, -6.2, -6.25)):
        x = torch.tensor([alive, dead], dtype=dtype)
        assert (as_written(x) == 0).tolist() == [False, True]
    far = torch.tensor([-18.0, -103.0, -104.0])
    assert (linear.phi(far) == 0).tolist() == [False, False, True]
    assert (linear.phi(far[:1]) - math.exp(-18)).abs().max() < 1e-14


@pytest.mark.equation("eq-linear-costs")
@pytest.mark.parametrize(("K", "V", "C"), [(16, 16, 16), (64, 64, 32), (8, 24, 64)])
def test_the_three_bills(K, V, C, residual):
    T = 256
    assert cost.decay_recurrence(T, K=K, V=V, decay=False).flops == T * 4 * K * V
    assert cost.softmax_attention(T, K=K, V=V).flops == T * (T + 1) * (K + V)
    _, parts = one_head(T, K, V)
    with FlopCounterMode(display=False) as counter:
        page_function("in_chunks")(*parts, C)
    assert counter.get_total_flops() == T * (2 * C * (K + V) + 4 * K * V)
    if K == V:  # where the bills meet
        assert (2 * K - 1 + 1) * 2 * K == 4 * K * K
        assert (2 * (K + C) - 1 + 1) * 2 * K == 4 * C * K + 4 * K * K
    residual(0.0)


@pytest.mark.equation("eq-table-interference")
@pytest.mark.parametrize(("n", "K"), [(2, 8), (16, 32), (64, 64), (200, 32)])
def test_interference_of_random_keys(n, K, residual):
    rounds = max(64, 60_000 // n)
    k, v = unit(rounds, n, K, seed=n), torch.randn(rounds, n, 4, dtype=torch.float64)
    off = k @ (k.mT @ v) - v
    ratio = (off.square().mean() / v.square().mean()).item()
    error = abs(ratio * K / (n - 1) - 1)
    assert error < 0.05
    residual(error)


def test_orthogonal_keys_are_exact_and_full():
    k = torch.linalg.qr(torch.randn(32, 32, dtype=torch.float64)).Q
    v = torch.randn(32, 5, dtype=torch.float64)
    assert (k @ (k.T @ v) - v).abs().max() < 1e-12
    more = torch.cat([k, unit(1, 32)])
    assert (more @ more.T - torch.eye(33)).abs().max() > 0.1


@pytest.mark.equation("eq-retention-table")
def test_retention_is_its_sum(residual):
    z, w = retnet.example(19)
    q, k, v = z
    gamma = w["g_H"].exp()
    y, _ = retnet.recurrent(*z, **w)
    expected = torch.zeros_like(y)
    for t in range(19):
        for i in range(t + 1):
            score = (q[:, t] * k[:, i]).sum(-1) * 8**-0.5 * gamma ** (t - i)
            expected[:, t] += score[..., None] * v[:, i]
    error = (y - expected).abs().max()
    assert error < 1e-12
    residual(error)


@pytest.mark.equation("eq-half-life")
def test_half_lives_of_the_published_heads(residual):
    g = retnet.log_gamma(4)
    assert g.exp().tolist() == pytest.approx([0.96875, 0.984375, 0.9921875, 0.99609375], abs=1e-15)
    half = math.log(2) / -g
    assert half.tolist() == pytest.approx([21.8, 44.0, 88.4, 177.1], abs=0.05)
    error = ((g * half).exp() - 0.5).abs().max()
    assert error < 1e-12
    residual(error)


def test_retention_in_parallel_is_quadratic_and_in_chunks_linear():
    def work(form, T):
        z, w = retnet.example(T, B=1, H=1, K=64, V=64)
        with FlopCounterMode(display=False) as counter:
            form(*z, **w)
        return counter.get_total_flops()

    assert work(retnet.parallel, 2048) > 3.8 * work(retnet.parallel, 1024)
    assert work(retnet.chunked, 2048) == pytest.approx(2 * work(retnet.chunked, 1024), rel=0.01)


@pytest.mark.equation("eq-fading-noise")
@pytest.mark.parametrize(("p", "K", "age"), [(3, 16, 0), (4, 32, 10), (5, 64, 20)])
def test_signal_and_noise_of_a_fading_table(p, K, age, residual):
    gamma, rounds = 1 - 2.0**-p, 2000
    T = math.ceil(20 / (1 - gamma))  # what is older has faded below 1e-8
    k = unit(rounds, T, K, seed=p)
    leak = (k * k[:, T - 1 - age, None]).sum(-1) * gamma ** torch.arange(T - 1, -1, -1.0, dtype=torch.float64)
    signal = leak[:, T - 1 - age].clone()
    assert (signal - gamma**age).abs().max() < 1e-12
    leak[:, T - 1 - age] = 0
    predicted = (1 / (1 - gamma**2) - gamma ** (2 * age)) / K
    error = abs(leak.square().sum(-1).mean().item() / predicted - 1)  # values of length 1 in random directions
    assert error < 0.05
    residual(error)


def test_the_reach_that_the_answer_names():
    horizon = page_function("horizon")
    assert [horizon(1 - 2.0**-p, 64) for p in (4, 5, 6, 7, 8)] == [15, 21, 22, 0, None]


def test_which_value_it_was_is_read_where_the_vector_is_lost():
    found = page_function("found")
    alone = [found(n, 64, 256).mean().item() for n in (64, 128, 256)]
    assert min(alone) > 0.98, "the vectors of these reads are off by 1, 1.4 and 2"
    wide = [found(256, 64, V).mean().item() for V in (16, 64, 256)]
    assert wide[0] < 0.3 < 0.6 < wide[1] < 0.9 < wide[2], "the size of the table counts, not its rows"
    assert found(256, 32, 128).mean().item() == pytest.approx(wide[1], abs=0.1)
    reach = [found(1024, 64, 256, 1 - 2.0**-p)[50:100].mean().item() for p in (5, 6, 7, 8)]
    assert reach[0] < 0.2 < 0.6 < reach[1] < 0.95 < min(reach[2:]), "slower decays reach farther"


def test_the_heart_among_448_strangers_is_named_right_with_256_pixels_only():
    writes = [("A", memory.pixels(memory.PRESETS["heart"])), *((str(i), None) for i in range(448))]
    found = []
    for side in memory.SIDES:
        y = memory.replay(writes, 64, 0, "add", side).T @ memory.key("A", 64, 0)
        error = (y - memory.scaled(writes[0][1], side)).norm() / side
        assert error == pytest.approx(math.sqrt(449 / 64), rel=0.3)
        found.append(memory.recognized(writes, "A", y, side))
    assert found == [False, False, True]


def test_the_recorded_runs_are_of_this_page_and_say_what_it_says():
    recorded = [json.loads(line) for line in rows.RESULTS.read_text().splitlines()]
    assert all(row["numbers"] == rows.numbers(row["mixer"], row["K"]) for row in recorded)
    for mixer, K in rows.CASES:
        mine = [row for row in recorded if (row["mixer"], row["K"]) == (mixer, K)]
        assert {row["seed"] for row in mine} == set(rows.SEEDS)
    untrained = rows.page()["untrained"]
    (row,) = (row for row in recorded if (row["mixer"], row["K"], row["seed"]) == ("untrained", 8, 1))
    assert untrained(8, torch.Generator().manual_seed(1)) == pytest.approx(row["accuracy"], abs=1e-3)


def test_the_heart_is_lost_near_an_error_of_one_and_recognized_among_256_pictures():
    heart = memory.pixels(memory.PRESETS["heart"])

    def read(pairs, rows):
        strangers = [memory.stranger(i) for i in range(pairs - 1)]
        writes = [("A", heart), *((str(i), v) for i, v in enumerate(strangers))]
        return memory.replay(writes, rows, 0, "add").T @ memory.key("A", rows, 0), torch.stack([heart, *strangers])

    for strangers in (16, 64):
        assert (read(strangers + 1, strangers)[0] - heart).norm() / 8 == pytest.approx(1, abs=0.1)
    y, pictures = read(256, 64)
    assert (y - heart).norm() > 1.7 * heart.norm()
    assert torch.cdist(y[None], pictures).argmin() == 0


def test_the_states_that_the_page_counts():
    for layer, floats in ((retnet.Layer(1024, H=4), 1024**2 // 2), (gla.Layer(1024, H=4), 1024**2 // 8)):
        with torch.no_grad():
            _, state = layer(torch.zeros(1, 1, 1024))
        assert state[0].numel() == floats


def test_who_hears_how_many_others():
    assert [round(1 / (1 - (1 - 2.0 ** (-5 - h)) ** 2)) for h in (4, 7)] == [256, 2048]


@pytest.mark.equation("eq-gla-gate")
def test_gates(residual):
    assert gla.log_decay(torch.zeros((), dtype=torch.float64)).exp().item() == pytest.approx(0.957603, abs=1e-6)
    assert gla.log_decay(torch.tensor(-8.0)).exp().item() == pytest.approx(0.61, abs=0.005)
    (q, k, v, _), _ = gla.example(15)
    x = torch.randn(k.shape, dtype=torch.float64)
    y, end = gla.recurrent(q, k, v, gla.log_decay(x))
    S, outputs = torch.zeros_like(end), []
    for t in range(15):
        alpha = torch.sigmoid(x[:, t]) ** (1 / 16)
        S = torch.diag_embed(alpha) @ S + k[:, t, :, :, None] * v[:, t, :, None]
        outputs.append((S.mT @ q[:, t, :, :, None])[..., 0] * 8**-0.5)
    error = max((y - torch.stack(outputs, 1)).abs().max(), (end - S).abs().max())
    assert error < 1e-12
    residual(error)


@pytest.mark.equation("eq-taylor-map")
@pytest.mark.parametrize("K", [1, 4, 16])
def test_taylor_features(K, residual):
    taylor = page_function("taylor")
    with_features = page_function("with_features", decay_chunked=decay_chunked)
    (q, k, v), _ = linear.example(40, H=2, G=2, K=K)
    assert taylor(q).shape[-1] == 1 + K + K * (K + 1) // 2
    s = torch.einsum("bthk,bmhk->bhtm", q, k) / K**0.5
    weights = 1 + s + s**2 / 2
    assert weights.min() >= 0.5
    error = (torch.einsum("bthr,bmhr->bhtm", taylor(q), taylor(k)) - weights).abs().max()
    weights = weights.tril()
    y = torch.einsum("bhtm,bmhv->bthv", weights / weights.sum(-1, keepdim=True), v)
    error = max(error, (with_features(taylor, q, k, v)[0] - y).abs().max())
    assert error < 1e-11
    known, _ = linear.chunked(q, k, v)
    assert (with_features(linear.phi, q, k, v)[0] - known).abs().max() < 1e-12
    residual(error)


def test_the_mask_after_the_exponential_fails_from_the_length_that_the_page_names():
    mask_afterwards = page_function("mask_afterwards")
    g = retnet.log_gamma(1, torch.float32)
    assert mask_afterwards(2795, g).isfinite().all()
    assert mask_afterwards(2796, g).isnan().any()
    g.requires_grad_()
    age = torch.arange(2796)[:, None] - torch.arange(2796)
    cut = torch.exp(g * age).tril()
    assert cut.isfinite().all()
    cut.sum().backward()
    assert g.grad.isnan().all()


def test_predict():
    scope = solution("ex-linear-predict")
    assert (scope["plain"], scope["based"]) == (33, 125)
    for tokens, rank, width in ((33, 64, 128), (125, 153, 80)):
        assert tokens * width > rank * 65 >= (tokens - 1) * width


@pytest.mark.parametrize("K", [64, 256, 1024])
def test_derive(K):
    age, eps = solution("ex-linear-horizon")["best_reach"](K)
    assert age == pytest.approx(K / math.e, rel=0.03)
    assert eps == pytest.approx(math.e / K, rel=0.06)
    if K == 64:
        assert (round(age, 1), round(eps, 3)) == (23.0, 0.042)


@pytest.mark.parametrize("C", [1, 5, 16, 60])
def test_code_retention_in_chunks(C):
    (q, k, v), w = retnet.example(37, B=1, H=1)
    y, _ = retnet.recurrent(q, k, v, **w)
    mine = solution("ex-linear-retention")["retention_in_chunks"](
        q[0, :, 0] * 8**-0.5, k[0, :, 0], v[0, :, 0], w["g_H"].exp().item(), C
    )
    assert (mine - y[0, :, 0]).abs().max() < 1e-12


def test_code_rewrite():
    rewrite = solution("ex-linear-rewrite")["rewrite"]
    k = torch.linalg.qr(torch.randn(8, 8, dtype=torch.float64)).Q
    S, v = torch.randn(8, 5, dtype=torch.float64), torch.randn(5, dtype=torch.float64)
    after = rewrite(S, k[0], v)
    assert (after.T @ k[0] - v).abs().max() < 1e-12
    assert (k[1:] @ after - k[1:] @ S).abs().max() < 1e-12


def test_at_4096_tokens_the_linear_layer_takes_a_sixth_of_softmax_attentions_time():
    """The recorded GPU run, for as many channels: 16 heads of 128 beside 64 of 64."""
    rows = json.loads((Path(cost.__file__).parents[1] / "benchmarks" / "results" / "gpu.json").read_text())["rows"]
    (ours,) = (r for r in rows if r["case"].startswith("linear, B=8") and r["who"] == "postx")
    (soft,) = (r for r in rows if r["case"].startswith("causal attention") and r["who"] == "torch's cuDNN")
    for way in ("forward_ms", "both_ms"):
        assert soft[way] / (64 * 64) / (ours[way] / (16 * 128)) == pytest.approx(6, abs=0.5)
    assert ours["forward_ms"] < 2 * ours["floor_ms"]
