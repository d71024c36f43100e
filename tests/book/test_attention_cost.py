"""Chapter 1: the code that stands on its page, the equations that no other file holds, and its exercise solutions."""

import json
import math
from pathlib import Path

import pytest
import torch
from page import Page

from postx import cost
from postx.mixers import attention
from postx.models import published
from postx.widgets import bill

PAGE = Page("attention_cost", torch=torch)
CELLS, solution, page_function = PAGE.cells, PAGE.solution, PAGE.function


def one_head(T, K=8, V=6, scale=1.0, seed=0):
    z, _ = attention.example(T, B=1, H=1, G=1, K=K, V=V, seed=seed)
    z = (scale * z[0], *z[1:])
    return z, [x[0, :, 0] for x in z]


@pytest.mark.equation("eq-softmax-attention")
def test_the_loop_of_the_page_is_softmax_attention(residual):
    attend = page_function("attend")
    (q, k, v), (q_TK, k_TK, v_TV) = one_head(17)
    y = attend(q_TK, k_TK, v_TV)
    expected = attention.parallel(q, k, v)[0][0, :, 0]
    error = (y - expected).abs().max()
    assert error < 1e-12
    # the first token has only itself to look at; a token cannot see what comes after it
    assert torch.equal(attend(q_TK[:1], k_TK[:1], v_TV[:1])[0], v_TV[0])
    later = v_TV.clone()
    later[9:] += 1
    assert torch.equal(attend(q_TK, k_TK, later)[:9], y[:9])
    residual(error)


@pytest.mark.equation("eq-online-softmax")
@pytest.mark.parametrize("tile", [1, 5, 32, 100])
def test_the_tiles_of_the_page_are_exact_where_the_loop_overflows(tile, residual):
    attend, attend_in_tiles = page_function("attend"), page_function("attend_in_tiles")
    z, (q_TK, k_TK, v_TV) = one_head(64, scale=36)
    assert attend(*(x.float() for x in (q_TK, k_TK, v_TV))).isnan().any()
    exact = attention.parallel(*z)[0][0, -1, 0]
    error = (attend_in_tiles(q_TK[-1], k_TK, v_TV, tile) - exact).abs().max()
    assert error < 1e-12
    residual(error)


@pytest.mark.equation("eq-window-reach")
@pytest.mark.parametrize(("layers", "window"), [(1, 5), (3, 4), (4, 2), (3, 1)])
def test_reach_of_a_stack_of_windows(layers, window, residual):
    T = 24
    x = torch.randn(1, T, 1, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    h = x
    for _ in range(layers):
        h, _ = attention.chunked(h, h, h, window=window)
    h[0, -1].sum().backward()
    touched = x.grad[0, :, 0].abs().sum(-1).nonzero().flatten()
    assert T - 1 - touched.min().item() == layers * (window - 1)
    residual(0.0)


def test_predict():
    scope = solution("ex-bill-predict")
    assert round(scope["small"], 2) == 2.27
    assert round(scope["large"], 2) == 3.82


def test_derive():
    assert solution("ex-bill-derive")["attention_share"] == pytest.approx(0.5, abs=1e-4)


@pytest.mark.parametrize(("T", "W"), [(1, 1), (1, 4), (9, 3), (20, 20), (20, 50)])
def test_code_window(T, W):
    windowed = solution("ex-bill-window")["windowed"]
    z, parts = one_head(T)
    expected = attention.parallel(*z, window=W)[0][0, :, 0]
    assert torch.allclose(windowed(*parts, W), expected, rtol=0, atol=1e-12)


def test_code_merge_in_any_order():
    scope = solution("ex-bill-merge")
    partial, merge = scope["partial"], scope["merge"]
    z, (q_TK, k_TK, v_TV) = one_head(30, scale=36)
    exact = attention.parallel(*z)[0][0, -1, 0]
    a, b, c = (partial(q_TK[-1], k_TK[cut], v_TV[cut]) for cut in (slice(0, 4), slice(4, 19), slice(19, 30)))
    for num, den, _ in (merge(merge(a, b), c), merge(a, merge(b, c)), merge(merge(c, a), b)):
        assert torch.allclose(num / den, exact, rtol=0, atol=1e-12)


def test_explore():
    chips = solution("ex-bill-explore")["chips"]
    assert chips == {"Llama-2-7B": 215, "Llama-3-8B": 54, "DeepSeek-V3": 29, "Mistral-7B": 7, "Jamba": 7}


def test_explore_the_batch():
    scope = solution("ex-bill-batch")
    assert {name: round(texts) for name, texts in scope["texts"].items()} == {
        "Llama-2-7B": 3, "Llama-3-8B": 14, "Llama-3-70B": 52
    }  # fmt: skip
    assert round(scope["ridge"]) == 295
    assert scope["intensity"] == 1
    llama = published.LLAMA3_8B
    assert 4 * llama.L * llama.H * llama.K / llama.kv_bytes(1) == 4


@pytest.mark.equation("eq-decode-batch")
@pytest.mark.parametrize(("T", "B"), [(1024, 1), (8192, 14), (131072, 3)])
def test_a_batch_shares_the_weights_and_not_the_caches(T, B, residual):
    llama, chip = published.LLAMA3_8B, published.H100
    P, c = llama.matrix_weights(), llama.kv_bytes(1)
    arithmetic = B * (2 * P + 4 * llama.L * llama.H * llama.K * T) / chip.flops
    traffic = (2 * P + B * c * T) / chip.bandwidth
    work = llama.decode(T, B=B)
    floor = cost.roofline(work, chip)
    assert max(arithmetic, traffic) == pytest.approx(floor.seconds, rel=0.01)  # activations are left out
    assert work.flops == pytest.approx(arithmetic * chip.flops, rel=1e-12)
    assert floor.binds == "memory"
    residual(abs(work.flops - arithmetic * chip.flops) / work.flops)


def test_the_answer_under_the_drawn_bill():
    def floors(kept, batch):
        found = bill.lines(kept, 0, 0, 16, 32768, batch)
        need = (float(found.cache) + 2 * bill.SHAPE.weights()) / 1e9
        return [float(second) for second in bill.floors(found)], need

    one, room = floors(bill.GROUPED, 1)
    assert one[0] > one[1]
    assert one[3] > one[2]
    assert (round(one[0], 2), round(1e3 * one[3], 1), round(1 / one[3])) == (0.75, 5.8, 174)
    assert room < 80
    weights, cache = 2 * bill.SHAPE.matrix_weights(), bill.SHAPE.kv_bytes(32768)
    assert [round(1e3 * part / published.H100.bandwidth, 1) for part in (weights, cache)] == [4.5, 1.3]
    many, room = floors(bill.GROUPED, 64)
    assert (round(64 / max(many[2:])), round(room)) == (740, 291)
    many, room = floors(bill.STATE, 64)
    assert (round(64 / max(many[2:])), round(room)) == (4271, 34)
    text = next(cell.source for cell in CELLS if cell.id == "bill-answer")
    parts = "5.8 ms: 4.5 to read the weights, 1.3"
    for said in ("0.75 s", parts, "740 tokens", "gave 174", "291 GB", "4,271 tokens", "34 GB"):
        assert said in text


def test_the_batch_that_is_worked_by_hand():
    llama, chip = published.LLAMA3_8B, published.H100
    weights, cache = 2 * llama.matrix_weights(), llama.kv_bytes(8192)
    assert 2 * 2 * llama.L * llama.G * llama.K == llama.kv_bytes(1) == 131_072
    assert [round(weights / 2e9, 1), round(weights / 1e9), round(cache / 1e9, 2)] == [7.5, 15, 1.07]
    assert round((weights + cache) / 1e9, 1) == 16.1
    assert round(1e3 * (weights + cache) / chip.bandwidth, 1) == 4.8
    assert round(weights / cache) == 14


def test_the_mixer_reports_the_cost_of_the_page():
    work = attention.cost(100, B=1, H=4, G=2, K=8, V=8, window=10)
    assert work == cost.softmax_attention(100, H=4, G=2, K=8, window=10)


def test_the_recorded_gpu_run_says_what_it_is_and_obeys_the_arithmetic():
    path = Path(__file__).resolve().parents[2] / "experiments" / "results" / "attention_gpu.json"
    record = json.loads(path.read_text(encoding="utf8"))
    assert {"seed", "device", "torch", "cuda", "date", "dtype", "heads", "width"} <= set(record)
    rows = {(row["form"], row["tokens"]): row for row in record["rows"]}
    for (_, T), row in rows.items():
        floor = cost.roofline(cost.softmax_attention(T, H=record["heads"], K=record["width"]), published.H100)
        assert row["ms"] / 1e3 > floor.seconds
    assert ("stored", 16384) in rows
    assert ("stored", 32768) not in rows
    for form, first, last, power in (("stored", 2048, 16384, 2), ("cudnn", 2048, 262144, 1)):
        growth = rows[form, last]["peak_bytes"] / rows[form, first]["peak_bytes"]
        assert math.log(growth, last / first) == pytest.approx(power, abs=0.02)


def test_the_numbers_in_the_prose():
    d, chip = 4096, published.H100
    assert chip.flops / 3.9e12 / (4 * 128) == pytest.approx(0.5, rel=0.02)  # one exp to the FLOPs of a pair
    attention_at_a_million = cost.softmax_attention(10**6, H=32, K=128).flops
    assert attention_at_a_million / (attention_at_a_million + 24 * d**2 * 10**6) == pytest.approx(0.95, abs=0.01)
    latent = published.DEEPSEEK_V3
    assert [latent.latent, latent.rotary, latent.K] == [512, 64, 128]
    one_by_one = [math.exp(1 - 3), 1 + math.exp(1 - 3), 1 + math.exp(3 - 5) * (1 + math.exp(1 - 3))]
    assert [round(x, 3) for x in one_by_one[:2]] == [0.135, 1.135]
    assert round(one_by_one[2], 2) == round(1.135 * 0.135 + 1, 2) == 1.15
    assert one_by_one[-1] == pytest.approx(sum(math.exp(s - 5) for s in (1, 3, 5)))
    path = Path(__file__).resolve().parents[2] / "experiments" / "results" / "attention_gpu.json"
    ms = {(row["form"], row["tokens"]): row["ms"] for row in json.loads(path.read_text(encoding="utf8"))["rows"]}
    assert round(ms["stored", 16384] / ms["cudnn", 16384]) == 18
    floor = cost.roofline(cost.softmax_attention(131072, H=32, K=128), chip).seconds
    assert 1.3 < 1e-3 * ms["cudnn", 131072] / floor < 2


def test_where_the_weights_stop_being_most_of_the_bill():
    llama, T = published.LLAMA3_8B, 131_072
    blocks = llama.matrix_weights() - llama.Y * llama.D
    assert int(llama.crossover() / 1e3) == 28
    assert llama.crossover("prefill", weights=blocks) == 53_248
    assert int(2 * llama.matrix_weights() / llama.kv_bytes(1) / 1e3) == 114
    for model in (published.LLAMA2_7B, llama, published.LLAMA3_70B):
        longest = model.crossover("prefill", weights=model.matrix_weights() - model.Y * model.D)
        assert 12 <= longest / model.D <= 13
    two = 2 * cost.mamba_block(2048, D=4096).flops / 2048 / (24 * 4096**2)
    assert [round(two, 2), round(2 * 2048 * 4096 / (24 * 4096**2), 2)] == [1.05, 0.04]
    many = bill.lines(bill.STATE, 0, 0, 16, 32768, 64)
    assert [round(float(x) / 1e9, 1) for x in (many.cache, many.write_bytes)] == [17.6, 50.2]
    keys, whole = T**2 / 2048 * published.LLAMA2_7B.kv_bytes(1), bill.lines(bill.OWN, 0, 0, 16, T, 1).read_bytes
    stored = bill.lines(bill.OWN, 1, 0, 16, T, 1).read_bytes
    assert [round(float(x) / 1e12, 1) for x in (keys, whole)] == [4.4, 4.5]
    assert round(8 * 1024 * T**2 / 1e12) == 141
    assert round(float(stored / whole)) == 31


def test_the_recorded_blocks_say_what_the_page_says():
    """Below 4,096 tokens the host's launches are timed, and nothing is ordered."""
    path = Path(__file__).resolve().parents[2] / "benchmarks" / "results" / "gpu_lengths.json"
    rows = [row for row in json.loads(path.read_text())["rows"] if row["part"] == "blocks"]
    ms = {(row["who"], row["T"]): row["forward_ms"] for row in rows}
    ratio = {T: ms["attention and MLP", T] / ms["two Mamba-2", T] for _, T in ms}
    counted = cost.transformer_block(131_072, D=2048).flops / (2 * cost.mamba2_block(131_072, D=2048).flops)
    assert ratio[2048] < 1 < ratio[4096] < ratio[16_384] < ratio[131_072]
    assert [round(ms[who, 131_072]) for who in ("attention and MLP", "two Mamba-2")] == [252, 85]
    assert [round(ratio[4096], 2), round(ratio[131_072], 1), round(counted, 1)] == [1.25, 3.0, 5.3]
    assert round(counted / ratio[131_072], 1) == 1.8  # the rates of FLOPs, one over the other
