"""Chapter 8: the code that stands on its page, the equations that no other file holds, and its exercise solutions."""

import json
import math

import numpy as np
import pytest
import torch
from page import Page
from torch.nn import functional as F

from experiments import window
from postx import cost
from postx.mixers import hyena, s4d

PAGE = Page("long_convolutions", torch=torch, F=F, np=np, math=math, hyena=hyena, s4d=s4d)
solution, page_function = PAGE.solution, PAGE.function
FFT = {"fft_convolve": page_function("fft_convolve")}


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


@pytest.mark.equation("eq-conv-toeplitz")
@pytest.mark.parametrize(("T", "W"), [(1, 1), (9, 4), (9, 9), (9, 20)])
def test_the_matrix_of_the_page_is_the_sum(T, W, residual):
    h, v = random(W), random(T, seed=1)
    matrix = page_function("toeplitz")(h, T)
    by_sum = [sum(h[j] * v[t - j] for j in range(min(t + 1, W))) for t in range(T)]
    worst = np.abs(matrix @ v - by_sum).max()
    assert worst < 1e-12
    assert (np.triu(matrix, 1) == 0).all()
    residual(worst)


@pytest.mark.equation("eq-implicit-filter")
@pytest.mark.parametrize("frequency", [1.0, 10.0])
def test_an_implicit_filter_is_its_formula(frequency, residual):
    torch.manual_seed(0)
    network = hyena.Filters(2, 3, 40, bands=4, frequency=frequency).double()
    got = network()
    worst = 0.0
    for j in range(40):
        t = network.positions[j, 0]
        waves = [f(2 * math.pi * k * j / 40) for f in (math.cos, lambda a: -math.sin(a)) for k in range(1, 5)]
        x = torch.cat([t[None], torch.tensor(waves, dtype=torch.float64)])
        for layer in network.layers:
            x = torch.sin(frequency * (layer.weight @ x + layer.bias))
        rate = math.log(100) * torch.linspace(1 / 1.5, 1 / 0.3, 3, dtype=torch.float64)
        want = (network.out.weight @ x).unflatten(0, (2, 3)) * (torch.exp(-rate * t) + 0.05)
        worst = max(worst, (got[..., j] - want).abs().max().item())
    assert network.positions[-1, 0] == 1
    assert worst < 1e-5  # positions and window are stored in 32 bits
    residual(worst)


@pytest.mark.equation("eq-conv-wrap")
@pytest.mark.parametrize(
    ("T", "W", "n"), [(12, 12, 12), (12, 12, 22), (12, 5, 15), (12, 5, 16), (10, 30, 39)]
)
def test_a_ring_lays_the_tail_over_the_beginning(T, W, n, residual):
    h, v = random(W), random(T, seed=1)
    whole = np.concatenate([np.convolve(h, v), np.zeros(n)])
    ring = FFT["fft_convolve"](h, v, n)
    worst = np.abs(ring - (whole[:T] + whole[n : n + T])).max()
    assert worst < 1e-12
    wrong = np.abs(ring - whole[:T]) > 1e-9
    assert wrong.tolist() == [t + n <= T + W - 1 for t in range(1, T + 1)]
    residual(worst)


def test_the_causality_test_of_the_page_is_sharp():
    is_causal, ring = page_function("is_causal"), FFT["fft_convolve"]
    h, v = random(2, 20)
    verdicts = [is_causal(lambda v, n=n: ring(h, v, n), v) for n in range(20, 42)]
    assert verdicts == [n >= 39 for n in range(20, 42)]


@pytest.mark.equation("eq-hyena-operator")
@pytest.mark.parametrize("L", [1, 2, 4])
def test_hyena_by_hand_is_the_package(L, residual):
    by_hand, _ = PAGE.functions("hyena_by_hand", "toeplitz")
    (v, x), w = hyena.example(30, L=L, W=11)
    h = w["response_LDW"].clone()
    h[:, :, 0] += w["skip_LD"]
    worst = 0.0
    for form in (hyena.recurrent, hyena.parallel, hyena.chunked):
        y, _ = form(v, x, **w)
        for d in range(3):
            mine = by_hand(v[1, :, d].numpy(), x[1, :, :, d].T.numpy(), h[:, d].numpy())
            worst = max(worst, np.abs(y[1, :, d].numpy() - mine).max())
    assert worst < 1e-9
    residual(worst)


@pytest.mark.equation("eq-hyena-matrix")
def test_the_gates_of_a_text_make_a_matrix(residual):
    as_matrix, by_hand, toeplitz = PAGE.functions("as_matrix", "hyena_by_hand", "toeplitz")
    x, h, v = random(3, 14), random(3, 14, seed=1), random(14, seed=2)
    matrix = as_matrix(x, h)
    worst = np.abs(matrix @ v - by_hand(v, x, h)).max()
    entry = sum(  # D3 S3 D2 S2 D1 S1, one entry written out
        x[2, 9] * h[2, 9 - a] * x[1, a] * h[1, a - b] * x[0, b] * h[0, b - 4]
        for a in range(4, 10)
        for b in range(4, a + 1)
    )
    worst = max(worst, abs(entry - matrix[9, 4]))
    assert worst < 1e-10
    assert (np.triu(matrix, 1) == 0).all()
    assert np.abs(np.diff(np.diag(matrix))).max() > 0.01, "with gates it is not Toeplitz"
    residual(worst)


@pytest.mark.equation("eq-conv-costs")
@pytest.mark.parametrize("T", [2, 100, 4096])
def test_the_bills(T, residual):
    direct, fft = page_function("direct_flops"), page_function("fft_flops")
    assert direct(T) == 2 * sum(t + 1 for t in range(T))
    n = 2 * T
    assert fft(T) == pytest.approx(3 * 2.5 * n * math.log2(n) + 6 * (n // 2 + 1), rel=1e-12)
    off = abs(fft(T) / cost.long_convolution(T, D=1).flops - 1)
    assert off < 1e-12
    for N in (1, 16):
        assert cost.ssm_scan(T, D=1, N=N, selective=False).flops == (14 * N + 2) * T
    residual(off)


def test_where_the_curves_cross():
    direct, fft = page_function("direct_flops"), page_function("fft_flops")
    assert min(T for T in range(2, 500) if fft(T) < direct(T)) in range(120, 128)
    causal_attention = {T: cost.softmax_attention(T, H=1, K=64).flops / 64 for T in range(2, 200)}
    assert min(T for T, flops in causal_attention.items() if T > 8 and fft(T) < flops) == 53
    by_order = [min(T for T, f in causal_attention.items() if T > 8 and L * fft(T) < f) for L in (1, 2)]
    assert by_order == [53, 125]
    gain = {T: cost.softmax_attention(T, H=1, K=64).flops / 64 / fft(T) for T in (8192, 65536)}
    assert gain[65536] / gain[8192] == pytest.approx(6.6, abs=0.05)
    assert all(fft(T) > (14 * 4 + 2) * T for T in range(64, 2**20, 4099))
    assert all(fft(T) < (14 * 32 + 2) * T for T in range(64, 2**20, 4099))


@pytest.mark.equation("eq-hyena-state")
@pytest.mark.parametrize(("L", "W", "D"), [(1, 1, 3), (2, 21, 5), (3, 64, 2)])
def test_the_state_is_the_past(L, W, D, residual):
    (v, x), w = hyena.example(70, B=1, L=L, D=D, W=W)
    _, S = hyena.parallel(v, x, **w)
    assert S.numel() == hyena.cost(70, L=L, D=D, W=W).state_floats == L * (W - 1) * D
    assert torch.equal(S[0, 0], v[0, 70 - (W - 1) :])
    residual(0.0)


@pytest.mark.equation("eq-modal-filter")
@pytest.mark.parametrize("springs", [1, 3])
def test_distillation_finds_modes_that_are_there(springs, residual):
    distill, write = page_function("distill"), page_function("write_with_modes")
    w = {
        "delta_D": torch.tensor([0.05], dtype=torch.float64),
        "A_DN": s4d.lin(1, springs + 1)[:, 1:],
        "C_DN": torch.ones(1, springs, dtype=torch.complex128),
    }
    h = s4d.kernel(128, **w)[0].numpy()
    rate, weight, again = distill(h, 2 * springs)
    assert np.abs(again - h).max() < 1e-8 * np.abs(h).max()
    v = random(100)
    worst = np.abs(write(rate, weight, v) - np.convolve(again, v)[:100]).max() / np.abs(h).max()
    assert worst < 1e-9
    assert (np.abs(rate) <= 1).all()
    residual(worst)


def test_conv1d_wants_the_filter_turned_around():
    with_conv1d = page_function("with_conv1d")
    h, v = torch.tensor(random(6)), torch.tensor(random(15, seed=1))
    want = torch.tensor(np.convolve(h, v)[:15])
    assert (with_conv1d(h, v, turn=True) - want).abs().max() < 1e-12
    assert (with_conv1d(h, v, turn=False) - want).abs().max() > 0.1


def test_the_layers_of_evo_2_are_all_there():
    (source,) = [c.source for c in PAGE.cells if c.cell_type == "code" and c.source.startswith("striped = ")]
    scope = {}
    exec(source, scope)
    kinds = {kind: scope["evo2"].count(kind) for kind in ("SE", "MR", "LI", "attention", "")}
    assert kinds == {"SE": 9, "MR": 9, "LI": 9, "attention": 5, "": 0}
    assert len(scope["evo2"]) == len(scope["striped"]) == 32
    assert scope["striped"].count("attention") == 16


def test_what_the_released_hyena_keeps_is_half_of_two_filters():
    one, two = (hyena.cost(4096, L=L, D=8, W=4096).state_floats for L in (1, 2))
    assert two == 2 * one == 2 * 4095 * 8
    (v, x), w = hyena.example(30, B=1, L=2, D=2, W=30)  # the authors' order 2: the first filter is one tap
    first = torch.zeros_like(w["response_LDW"][0])
    first[:, 0] = 1
    w = {"response_LDW": torch.stack([first, w["response_LDW"][1]]), "skip_LD": 0 * w["skip_LD"]}
    y, _ = hyena.parallel(v, x, **w)
    matrix = page_function("toeplitz")
    for d in range(2):
        q, k, h = x[0, :, 1, d].numpy(), x[0, :, 0, d].numpy(), w["response_LDW"][1, d].numpy()
        entries = q[:, None] * matrix(h, 30) * k
        assert np.abs(entries @ v[0, :, d].numpy() - y[0, :, d].numpy()).max() < 1e-10


def test_the_projections_of_an_evo_layer_keep_six_numbers_a_channel():
    (source,) = [c.source for c in PAGE.cells if c.cell_type == "code" and "short = 3 * (3 - 1)" in c.source]
    scope = {"evo2": ["SE"] * 9 + ["MR"] * 9 + ["LI"] * 9 + ["attention"] * 5}
    exec(source, scope)
    kept = sum(scope["kept"][kind] for kind in ("SE", "MR", "LI"))
    assert kept / 2**20 == pytest.approx(11.7, abs=0.1)
    assert scope["kept"]["attention"] == 80 * 2**30


def test_a_text_has_its_answers_behind_its_marks():
    texts = page_function("texts", SYMBOLS=16, LENGTH=24)
    text, answer = texts(50, 2, torch.Generator().manual_seed(0))
    for row, said in zip(text.tolist(), answer.tolist(), strict=True):
        for mark, symbol in zip(row[24:], said, strict=True):
            assert row[:24].count(mark) == 1
            assert row[row.index(mark) + 1] == symbol < 16


def test_the_recorded_windows_say_what_the_page_says():
    recorded = [json.loads(line) for line in window.RESULTS.read_text().splitlines()]

    def seeds(kind, frequency, key="accuracy"):
        mine = [row for row in recorded if (row["window"], row["frequency"]) == (kind, frequency)]
        rate = max((row for row in mine if row["seed"] == 0), key=lambda row: row["accuracy"])["rate"]
        found = [row[key] for row in mine if row["rate"] == rate]
        assert len(found) == len(window.SEEDS)
        return found

    assert max(seeds("to zero", 1)) < 0.5
    far = [by["22"] < 0.8 * by["2"] for by in seeds("to zero", 1, "by_distance")]
    assert sum(far) == 2, "two of the three are worst at the far end"
    assert min(*seeds("floor", 1), *seeds("none", 1), *seeds("", None)) > 0.99
    assert max(share for kind in window.WINDOWS for share in seeds(kind, 10)) < 0.12
    assert sum(share > 0.9 for share in seeds("floor", 3)) == 2


def test_the_windows_of_the_experiment():
    shown = {kind: window.FromNetwork(26, kind, 1).filters.window_DW for kind in window.WINDOWS}
    assert (shown["none"] == 1).all()
    assert (shown["floor"] - shown["to zero"]).sub(0.05).abs().max() < 1e-6
    assert (shown["to zero"][:, 20] < 0.1).all()
    assert {"texts", "Filter", "mix", "Model"} <= set(window.page())


def test_predict():
    assert solution("ex-conv-predict")["counts"] == {1024: 275, 1298: 1, 1299: 0}


def test_derive():
    scope = solution("ex-conv-derive")
    assert scope["gap"] < 1e-12
    assert len(scope["one_filter"]) == 3 * (5 - 1) + 1


@pytest.mark.parametrize("cut", [1, 20, 39])
def test_code_prompt(cut):
    (v, x), w = hyena.example(40)
    y = solution("ex-conv-prompt")["prompt_then_write"](v, x, cut, **w)
    assert (y - hyena.recurrent(v, x, **w)[0]).abs().max() < 1e-9


@pytest.mark.parametrize(("T", "W", "block"), [(40, 40, 8), (37, 11, 5), (20, 50, 64), (9, 9, 1)])
def test_code_online(T, W, block):
    scope = solution("ex-conv-online")
    h, v = random(W), random(T, seed=1)
    assert np.abs(scope["online"](h, v, block) - np.convolve(h, v)[:T]).max() < 1e-10
    assert scope["best"] == 1024
    assert scope["saved"] == pytest.approx(7, abs=0.5)


def test_explore():
    assert solution("ex-conv-explore")["within"] == {1: 6, 2: 0, 3: 0, 5: 0, 10: 0}
