"""Chapter 10: the strips of its figure, the equations that no other file holds, and its exercise solutions."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from page import Page

from experiments import hybrids
from experiments.runner import results
from postx import cost, tasks
from postx.mixers import attention, gated_deltanet, moba, rglru
from postx.models import published, stripes
from postx.models.lm import LM, count

PAGE = Page("hybrids", torch=torch, np=np, math=math, LM=LM, tasks=tasks, cost=cost)
solution, page_function = PAGE.solution, PAGE.function
COSTS = {  # as the page sets them
    "S": cost.decay_recurrence(1, H=4, K=4, V=32),
    "G": gated_deltanet.cost(1, H=2, G=2, K=16, V=16),
    "R": rglru.cost(1, D=64),
}


@pytest.mark.equation("eq-hybrid-memory")
@pytest.mark.parametrize(("pattern", "window"), [("SSAS", None), ("RLRL", 8), ("AAAA", None), ("SLAG", 5)])
@pytest.mark.parametrize("T", [8, 20])
def test_memory_is_caches_and_states(pattern, window, T, residual):
    table = {"A": {"H": 4, "G": 2}, "L": {"H": 4, "G": 1, "window": window}, "S": {"K": 4}, "G": {"H": 2, "K": 4}}

    def floats(letters, T):
        options = {c: table[c] for c in set(letters) & set(table)}
        return LM(letters, 16, 32, options=options).state_floats(T)

    seen = {"A": T, "L": min(T, window or T)}
    cached = sum(2 * table[c]["G"] * 4 * seen[c] for c in pattern if c in seen)
    state = sum(floats(c, 1) for c in pattern if c not in seen)
    assert floats(pattern, T) == cached + state
    residual(0.0)


@pytest.mark.parametrize("pattern", ["SSAS", "RLRL", "AAAA", "GGAG"])
def test_the_memory_function_of_the_page(pattern):
    memory, table = page_function("memory", recurrent=COSTS, WINDOW=32), hybrids.TABLES["recall"]
    with torch.device("meta"):
        lm = LM(pattern, 64, 64, mlp="F", options={c: table[c] for c in set(pattern)})
    taps = {"S": 3 * (128 + 2 * 4), "G": 3 * 96, "R": 3 * 64, "A": 3 * 192, "L": 3 * 192}  # left out there
    for T in (32, 100):
        assert lm.state_floats(T) == sum(memory(pattern, T)) + sum(taps[c] for c in pattern)


@pytest.mark.equation("eq-hybrid-work")
@pytest.mark.parametrize("n", [1, 100, 4096])
def test_work_is_weights_and_memory(n, residual):
    flops = page_function("flops_a_token", recurrent=COSTS, WINDOW=32)
    for pattern in ("SSAS", "RRLR", "AAAA", "GAGG"):
        want = 2 * 1_600_000
        for c in pattern:
            window = {"window": 32} if c == "L" else {}
            attention = cost.softmax_attention(1, H=2, K=32, past=n - 1, **window).flops
            want += attention if c in "AL" else COSTS[c].flops
        assert flops(pattern, n, 1_600_000) == want
    residual(0.0)


def recorded():
    """{(family, attention layers, where): recall of 32 pairs by seed}."""
    runs = results.read(results.RESULTS / "hybrids.jsonl")
    found = {}
    for pattern, points in hybrids.patterns().items():
        mine = [r for r in runs if r["run"]["pattern"] == pattern]
        asked = [r for r in mine if r["run"]["task"]["name"] == "recall"]
        first = max((r for r in asked if r["run"]["seed"] == 0), key=lambda r: r["metrics"]["accuracy"])
        right = [r["metrics"]["by_pairs"]["32"] for r in asked if r["run"]["lr"] == first["run"]["lr"]]
        found |= dict.fromkeys(points, right)
    return found


def test_recorded_hybrids_say_what_the_page_says():
    found = recorded()
    assert all(len(right) == 2 for right in found.values())
    for family in ("ssd", "gated_deltanet"):
        for point in ((family, 1, "first"), (family, 2, "spread"), (family, 4, "spread"), (family, 8, "spread")):
            assert min(found[point]) > 0.99
        alone = max(found[family, 0, "spread"])
        assert alone < 0.7
        for where in ("middle", "last"):
            assert max(found[family, 1, where]) < alone + 0.05
    assert min(found["gated_deltanet", 0, "spread"]) > max(found["ssd", 0, "spread"]) + 0.4
    for n, where in hybrids.PLACES:
        assert max(found["rglru", n, where]) < 0.3


def test_the_recorded_rates_are_edges():
    """The page says so: of two rates the lower one won in 18 of 20 patterns, and chapter 9's Mamba-2 took a third."""
    runs = [r for r in results.read(results.RESULTS / "hybrids.jsonl") if r["run"]["task"]["name"] == "recall"]
    chosen = {}
    for r in runs:
        if r["run"]["seed"] == 0:
            chosen.setdefault(r["run"]["pattern"], []).append((r["metrics"]["accuracy"], -r["run"]["lr"]))
    assert len(chosen) == 20
    assert {len(tried) for tried in chosen.values()} == {2}
    lower = [-max(tried)[1] == hybrids.RATES["recall"][0] for tried in chosen.values()]
    assert sum(lower) == 18
    task8 = {(r["name"], r["D"]): r["lr"] for r in results.table(results.RESULTS / "recall.jsonl")}
    assert task8["Mamba-2", 32] == 0.032 > max(hybrids.RATES["recall"])
    text = hybrids.SIZES["text"]
    assert text["steps"] * text["B"] * text["T"] == pytest.approx(5.2e6, rel=0.01)


def share_right(pattern, few, taps=4):
    """The hook, at its seed and on one thread as the page."""
    table = {"keys": 12, "values": 12, "fillers": 2}
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    lm = page_function("trained", table=table, few=few)(pattern, taps)
    asked, answers = tasks.recall(256, 24, pairs=6, **table, seed=(9, 9))
    right = (lm(asked)[0].argmax(-1) == answers)[answers >= 0].float().mean()
    torch.set_num_threads(before)
    return right


def test_a_larger_state_or_more_attention_does_not_mend_the_hook():
    assert share_right("SSS", {"S": {"K": 16, "V": 16}}) < 0.6
    assert share_right("AAA", {"A": {"H": 1}}) < 0.6


def test_what_a_card_serves():
    """Memory by the equation; users fill the card; no more tokens than bandwidth, and fewer layers never write less."""
    serve = page_function("serve", **(scope := serving()))
    for T in (4096, 32768, 262144):
        rates = []
        for n in (0, 1, 2, 4, 8, 16, 32):
            each, users, rate = serve(n, T)
            assert each == 2 * n * 2 * 8 * 128 * T + 4 * (32 - n) * 128 * 128 * 64
            left = scope["card"].memory - scope["WEIGHTS"] - users * each
            assert 0 <= left < each
            assert rate * (scope["WEIGHTS"] + users * each) <= users * scope["card"].bandwidth
            rates.append(rate)
        assert rates == sorted(rates, reverse=True)
    page = "\n".join(cell.source for cell in PAGE.cells)
    assert f"{{guess}} {serve(4, 32768)[2] / serve(32, 32768)[2]:.1f} times" in page
    assert f"At 4k it is {serve(4, 4096)[2] / serve(32, 4096)[2]:.1f}," in page
    gains = [serve(0, T)[2] / serve(1, T)[2] for T in (4096, 32768, 262144)]
    assert max(gains) == gains[-1]
    assert f"none instead of one gives {gains[-1]:.1f} times" in page
    assert 28 * scope["STATE"] > 4 * 4096 * scope["KEYS"]


def serving():
    llama = published.LLAMA3_8B
    return {"llama": llama, "card": published.H100, "WEIGHTS": 2 * llama.weights(), "KEYS": 4 * llama.G * llama.K,
            "STATE": 4 * cost.decay_recurrence(1, H=128, K=128, V=64).state_floats}  # fmt: skip


@pytest.mark.equation("eq-skip-read")
@pytest.mark.parametrize(("n", "C", "r"), [(1, 4, 2), (8, 4, 2), (37, 4, 3), (200, 16, 4)])
def test_what_attention_that_skips_reads(n, C, r, residual):
    """The last of n tokens: stored, compared and read, from the bill and from what the mixer's output depends on."""
    bill = moba.cost(1, B=1, H=1, G=1, K=1, V=0, block=C, keep=r, past=n - 1)  # 2 FLOPs a key, nothing else
    own = (n - 1) % C + 1
    read = own + C * min(r - 1, (n - 1) // C)
    assert bill.flops == 2 * (math.ceil(n / C) + read)
    assert read <= r * C
    assert bill.state_floats == n
    (q, k, v), _ = moba.example(n, B=1, H=1, G=1)
    v.requires_grad_()
    y, S = moba.parallel(q, k, v, block=C, keep=r)
    y[0, -1].sum().backward()
    assert int((v.grad[0, :, 0, 0] != 0).sum()) == read
    assert S[0].shape[1] == n
    residual(0.0)


def test_attention_that_skips_nothing_is_attention():
    z, _ = moba.example(50)
    assert torch.allclose(moba.parallel(*z, block=8, keep=7)[0], attention.parallel(*z)[0])
    assert not torch.allclose(moba.parallel(*z, block=8, keep=6)[0], attention.parallel(*z)[0])


def test_two_or_four_windows_were_not_trained():
    """Never learned, at either rate and seed: they name the commonest value, as the page says; one window does not."""
    sizes = {"keys": 64, "values": 64, "fillers": 16}
    pattern = {points[0]: pattern for pattern, points in hybrids.patterns().items()}
    runs = [r for r in results.read(results.RESULTS / "hybrids.jsonl") if r["run"]["task"]["name"] == "recall"]
    for pairs in hybrids.PAIRS:
        rows = [row for i in range(4) for row in tasks.recall(64, 128, pairs=pairs, seed=(10**6, i), **sizes)[0]]
        common = np.mean([np.bincount(row.numpy()[1 : 2 * pairs : 2]).max() / pairs for row in rows])
        for n in (2, 4):
            asked = [r for r in runs if r["run"]["pattern"] == pattern["rglru", n, "spread"]]
            assert len(asked) == 3
            assert max(abs(r["metrics"]["by_pairs"][str(pairs)] - common) for r in asked) < 0.03
    assert round(np.mean([best["8"] for best in one_window()]), 2) == 0.71


def one_window():
    """Recall by pairs of the seeds with a single window, at the bottom, at the better rate."""
    pattern = {points[0]: pattern for pattern, points in hybrids.patterns().items()}["rglru", 1, "first"]
    runs = results.read(results.RESULTS / "hybrids.jsonl")
    asked = [r for r in runs if r["run"]["pattern"] == pattern and r["run"]["task"]["name"] == "recall"]
    first = max((r for r in asked if r["run"]["seed"] == 0), key=lambda r: r["metrics"]["accuracy"])
    return [r["metrics"]["by_pairs"] for r in asked if r["run"]["lr"] == first["run"]["lr"]]


def test_the_bound_that_is_worked_by_hand():
    scope, T = serving(), 32_768
    caches, states = 4 * T * scope["KEYS"], 28 * scope["STATE"]
    users = int((scope["card"].memory - scope["WEIGHTS"]) // (caches + states))
    moved = scope["WEIGHTS"] + users * (caches + 2 * states)
    assert [round(caches / 1e9, 2), round(states / 1e9, 2), users, round(moved / 1e9)] == [0.54, 0.12, 97, 91]
    assert round(1e3 * moved / scope["card"].bandwidth) == 27
    assert round(users / moved * scope["card"].bandwidth, -1) == 3570


@pytest.mark.equation("eq-shared-block")
@pytest.mark.parametrize("places", [1, 2, 5])
def test_a_shared_block_is_counted_once(places, residual):
    D, few = 32, {"S": {"K": 4}}
    lm = LM("SSZ" * places, D, 64, options=few)
    rest = count(LM("SS" * places, D, 64, options=few)).total
    block = sum(p.numel() for p in lm.shared.parameters())
    assert count(lm).total == rest + block + places * D * D
    residual(0.0)


@pytest.mark.equation("eq-rglru-scale")
@pytest.mark.parametrize("a", [0.3, 0.9, 0.97])
def test_the_root_keeps_the_variance(a, residual):
    variance = 1.0  # of the first token, which is taken as it is
    for _ in range(50):
        variance = a * a * variance + (1 - a * a)
    noise = np.random.default_rng(0).normal(size=(20000, 300))
    level = noise[:, 0]
    for x in noise.T[1:]:
        level = a * level + math.sqrt(1 - a * a) * x
    assert abs(level.var() - 1) < 0.03
    worst = abs(variance - 1)
    assert worst < 1e-12
    residual(worst)


@pytest.mark.equation("eq-moe-active")
@pytest.mark.parametrize(("E", "k", "shared"), [(4, 1, 0), (8, 2, 24), (3, 3, 0)])
def test_active_parameters_leave_the_unchosen_out(E, k, shared, residual):
    with torch.device("meta"):
        lm = LM("AAA", 16, 32, mlp="EFE", options={"A": {"H": 2}, "E": {"F": 24, "E": E, "k": k, "shared": shared}})
    total, active = count(lm)
    assert active == total - 2 * (E - k) * 3 * 16 * 24
    residual(0.0)


def test_the_strips_are_what_was_published():
    field = {strip.name: strip for strip in stripes.FIELD}
    assert len(field) == len(stripes.FIELD) == 21
    shares = {name: (strip.count("attention"), len(strip.mixers)) for name, strip in field.items()}
    assert shares["StripedHyena-7B"] == (16, 32)
    assert shares["Evo 2 7B"] == (5, 32)
    assert shares["NVIDIA study 8B"] == (4, 28)
    assert len(stripes.STUDY) == 56
    assert stripes.STUDY.count("F") == 28
    assert shares["Nemotron-H-8B"] == (4, 28)
    assert len(field["Nemotron-H-8B"].pattern) == 52
    assert shares["MiniMax-01"] == (10, 80)
    assert shares["Qwen3-Next-80B"] == (12, 48)
    assert shares["Kimi Linear 48B"] == (7, 27)
    assert shares["Kimi K3"] == (24, 93)
    assert shares["LFM2-1.2B"] == (6, 16)
    assert field["RecurrentGemma-2B"].share() == "8 local of 26"
    assert [strip.date for strip in stripes.FIELD] == sorted(strip.date for strip in stripes.FIELD)
    assert {name: shares[name] for name in ("Gemma-3-1B", "gpt-oss-20b", "Olmo-3-7B")} == {
        "Gemma-3-1B": (4, 26), "gpt-oss-20b": (12, 24), "Olmo-3-7B": (8, 32)
    }  # fmt: skip
    assert sum(not strip.seen for strip in stripes.FIELD) == 8


def test_experts_are_marked_where_they_are():
    field = {strip.name: strip for strip in stripes.FIELD}
    assert field["Jamba"].expert_layers() == list(range(1, 32, 2))
    assert [i for i, letter in enumerate(published.MODELS["Jamba"].mlp) if letter == "E"] == list(range(1, 32, 2))
    assert len(field["Nemotron-3-Nano-30B-A3B"].expert_layers()) == 23
    assert field["Kimi Linear 48B"].expert_layers() == list(range(1, 27))
    assert field["Zamba-7B"].expert_layers() == []


def test_the_figure_has_a_row_for_each_model():
    texts = [text.get_text() for text in stripes.draw().axes[0].texts]
    for strip in stripes.FIELD:
        assert strip.share() in texts
        assert strip.date in texts
        assert strip.name in stripes.alt()


def test_predict():
    scope = solution("ex-hybrid-predict")
    assert scope["crossing"] == 6144
    options = published.MODELS["Nemotron-H-8B"]
    assert options.pattern.count("A") == 4
    assert options.pattern.count("S") == 24


def test_derive():
    scope = solution("ex-hybrid-derive")
    assert scope["users"](scope["crossing"]) == pytest.approx(1)
    assert scope["ratios"] == sorted(scope["ratios"])
    assert 7.9 < scope["ratios"][-1] < 8


def test_code_spread():
    scope = solution("ex-hybrid-spread")
    assert scope["same"] == {"Jamba": True, "Granite": True}
    assert set(scope["ends"].values()) <= {"A", "K"}
    assert scope["longest"]("SSASSSAS") == 3
    assert scope["runs"] == {"Jamba": 7, "Granite-4.0-H-Micro": 9, "Kimi Linear 48B": 3}


def test_code_share():
    scope = solution("ex-hybrid-share")
    assert scope["moved"] == [False, False, True, True, True, True]
    assert scope["unshared"] - count(scope["lm"]).total == scope["shared"]


def test_explore():
    scope = solution("ex-hybrid-explore")
    assert scope["equal"] == 152
    short, long = ([scope["fits"][layers, T] for layers in (32, 4, 0)] for T in (8192, 262144))
    assert (short, long) == ([26, 187, 1426], [0, 6, 1426])
    assert replace(published.JAMBA, attention_layers=4) == published.JAMBA
