"""Chapter 16: what its page computes, its equations, and its exercise solutions."""

import functools
import itertools
import math
import tomllib
from pathlib import Path

import pytest
import torch
from page import Page

from experiments import scorecard
from experiments.runner import results
from postx.models import checkpoints, lm, published, stripes
from postx.models.published import H100, LLAMA3_8B

ROOT = Path(__file__).resolve().parents[2]
PAGE = Page("the_race", torch=torch, math=math, lm=lm, published=published, H100=H100)
solution = PAGE.solution


@functools.cache
def planner():
    """growth, longest and token_floor of the page; the regular expression drops the page's own cache."""
    layer_bytes = functools.cache(PAGE.function("layer_bytes"))
    return PAGE.functions("growth", "longest", "token_floor", layer_bytes=layer_bytes)


@pytest.mark.equation("eq-race-state")
@pytest.mark.parametrize("name", ["LFM2-1.2B", "Nemotron-H-8B", "Zamba-7B"])
def test_layers_one_by_one_are_the_state_of_the_model(name, residual):
    a, c = planner()[0](name)
    net = published.build(name).bfloat16()
    for T in (1, 9):
        assert net.state_bytes(T) == a + c * T
    residual(0.0)


@pytest.mark.equation("eq-race-state")
def test_the_growing_part_is_keys_and_values_of_16_bits(residual):
    growth = planner()[0]
    assert growth("Llama-3-8B")[1] == LLAMA3_8B.kv_bytes(1) == 131_072
    assert growth("Jamba")[1] == published.JAMBA.kv_bytes(1)
    assert growth("Mamba-2-2.7b")[1] == growth("RWKV-7-0.4B")[1] == growth("RecurrentGemma-2B")[1] == 0
    assert growth("Falcon-H1-0.5B")[1] == 36 * 2 * 2 * 64 * 2  # attention beside SSD in each of 36 layers
    assert growth("DeepSeek-V3")[1] == published.DEEPSEEK_V3.kv_bytes(1)  # MLA
    assert (
        growth("RWKV-7-0.4B")[0] == 4 * 24 * 64 * 1024 + 2 * 2 * 24 * 1024
    )  # tables in 32 bits, two inputs in 16
    residual(0.0)


@pytest.mark.equation("eq-race-fit")
@pytest.mark.parametrize(("memory", "bits"), list(itertools.product((4e9, 24e9, 80e9), (16, 8, 4))))
def test_the_longest_text_fits_and_one_token_more_does_not(memory, bits, residual):
    _, longest, _ = planner()
    effective = {16: 16, 8: 8.125, 4: 4.125}[bits]
    for P, a, c in ((8.03e9, 256, 131_072), (8.1e9, 103_612_448, 16_384), (2.7e9, 171_900_928, 0)):
        T, weights = longest(P, a, c, memory, bits), P * effective / 8
        if T == -1:
            assert weights + a > memory
        elif c == 0:
            assert math.isinf(T)
            assert weights + a <= memory
        else:
            assert weights + a + c * T <= memory < weights + a + c * (T + 1)
    residual(0.0)


@pytest.mark.equation("eq-race-token")
@pytest.mark.parametrize(("T", "batch"), [(1024, 1), (65_536, 1), (8192, 16)])
def test_the_floor_of_a_token_is_the_roofline_of_the_blocks(T, batch, residual):
    """Against the bytes that postx.cost counts operation by operation; those include activations, under 1%."""
    growth, _, token_floor = planner()
    P = LLAMA3_8B.matrix_weights()  # the embedding table is not read
    seconds, fits = token_floor(P, *growth("Llama-3-8B"), T, batch, 16)
    off = seconds / (LLAMA3_8B.decode(T, B=batch).bytes / H100.bandwidth) - 1
    assert abs(off) < 0.01
    assert fits == (2 * P + batch * T * 131_072 < 80e9)
    residual(abs(off))


def counted(name):
    """All weights of a published model, as the page counts them."""
    return lm.count(published.build(name)).total


def test_what_the_page_says_about_memory():
    growth, longest, token_floor = planner()
    llama, hybrid = (counted(n) for n in ("Llama-3-8B", "Nemotron-H-8B"))
    plan = {"llama": (llama, *growth("Llama-3-8B")), "hybrid": (hybrid, *growth("Nemotron-H-8B"))}
    fit = {(n, m, b): longest(*plan[n], m * 1e9, b) for n in plan for m in (24, 80) for b in (16, 4)}
    assert fit["llama", 24, 4] / fit["llama", 24, 16] == pytest.approx(2.5, abs=0.05)
    assert fit["hybrid", 24, 16] / fit["llama", 24, 16] == pytest.approx(7.8, abs=0.1)
    assert fit["llama", 80, 4] / fit["llama", 80, 16] == pytest.approx(1.2, abs=0.05)
    equal = (llama * 2 / 16 - plan["llama"][1]) / plan["llama"][2]
    assert equal == pytest.approx(7658, abs=5)
    small = (longest(counted(n), *growth(n), 4e9, 4) for n in ("RecurrentGemma-2B", "Mamba-2-2.7b"))
    assert longest(counted("Zamba-7B"), *growth("Zamba-7B"), 4e9, 4) == 590
    assert list(small) == [math.inf, math.inf]
    assert all(longest(*x, 4e9, 4) == -1 for x in plan.values())
    assert token_floor(*plan["llama"], 30_000, 16, 16)[1]
    assert not token_floor(*plan["llama"], 32_000, 16, 16)[1]


def test_a_stream_is_greedy_text_and_its_bits_are_the_models():
    scope = PAGE.scope | {"LeftToRight": type("LeftToRight", (), {})}
    exact_bits = PAGE.function("exact_bits", **scope)
    net = checkpoints.load("ssd")
    prompt, asked = torch.arange(40, 60)[None], torch.arange(97, 110)[None]
    ids = torch.cat([prompt, asked], 1)
    targets = ids[:, 1:].clone()
    targets[:, :19] = -100
    with torch.no_grad():
        nats = net.loss(ids[:, :-1], targets).item() * 13
    assert exact_bits(net, prompt, asked) == pytest.approx(nats / math.log(2), rel=1e-5)


def test_a_cut_cache_is_the_earlier_one():
    cut = PAGE.function("cut")
    net, ids = checkpoints.load("attention"), torch.arange(30)[None]
    with torch.no_grad():
        S, early = net(ids)[1], net(ids[:, :20])[1]
        late = lm.leaves(cut(S, 20))
        again = net(ids[:, 20:], cut(S, 20))[0], net(ids)[0][:, 20:]
    assert all((a - b).abs().max() < 1e-4 for a, b in zip(late, lm.leaves(early), strict=True))
    assert (again[0] - again[1]).abs().max() < 1e-3


def test_the_forecasts_of_the_page_have_a_date_and_can_fail():
    with (ROOT / "evidence" / "claims.toml").open("rb") as file:
        claims = {c["id"]: c for c in tomllib.load(file)["claim"]}
    (source,) = [c.source for c in PAGE.cells if c.cell_type == "code" and "ASKED = " in c.source]
    scope = {}
    exec(source[source.index("ASKED") : source.index("for name in ASKED")], scope)
    assert len(scope["ASKED"]) >= 6
    for name in scope["ASKED"]:
        assert claims[name]["status"] == "forecast"
        assert claims[name]["date"]
        assert claims[name]["falsified_by"]
        assert claims[name]["link"] == "the_race"


def test_the_recorded_scorecard_says_what_the_page_says():
    about, rows = scorecard.table()
    assert set(about["models"]) == set(scorecard.NAMES)
    assert all(about["models"][n]["kept"] == (n in checkpoints.kept()) for n in scorecard.NAMES)
    state = {
        n: {T: r["state_bytes"] for (k, m, T), r in rows.items() if (k, m) == ("time", n)}
        for n in scorecard.NAMES
    }
    for name in ("ssd", "gated_deltanet", "rwkv7"):
        assert len(set(state[name].values())) == 1
    item = 2 if about["dtype"] == "bfloat16" else 4
    for T, size in state["attention"].items():
        assert size == 8 * (T * 2 * 192 * item + 8)  # keys and values of eight layers, and a counter each
    for T in state["hybrid"]:
        assert state["hybrid"][T] - state["hybrid"][256] == 2 * (T - 256) * 2 * 192 * item
    bits = {(n, T): r["bits"] for (k, n, T), r in rows.items() if k == "loss"}
    longest = max(T for _, T in bits)
    assert longest == 4096
    assert bits["attention", 512] < bits["hybrid", 512] < bits["ssd", 512]
    assert bits["attention", 1024] > 2 * bits["attention", 512]
    assert abs(bits["ssd", longest] / bits["ssd", 512] - 1) < 0.02
    assert bits["hybrid", longest] < bits["attention", 1024] / 2
    assert bits["ssd", 512] - bits["attention", 512] == pytest.approx(0.11, abs=0.005)


def test_the_two_full_rows_of_the_four_axes():
    """SSD is ahead of attention in all four columns at 2,048, and in two of them at 512."""
    _, rows = scorecard.table()
    found = {row["name"]: row["mean"] for row in results.table(results.RESULTS / "induction.jsonl")}
    asked = {"attention": "attention, rotary", "ssd": "Mamba-2"}

    def cells(name, T):
        timed = rows["time", name, T]
        loss, recall = rows["loss", name, T]["bits"], found[asked[name]][str(T)]
        return timed["token_ms_16"][1], timed["state_bytes"], loss, -recall

    def ahead(T):
        return [a < b for a, b in zip(cells("ssd", T), cells("attention", T), strict=True)]

    assert ahead(512) == [True, True, False, False]
    assert ahead(2048) == [True] * 4
    assert found["attention, rotary"]["512"] == found["Mamba-2"]["512"] == 1
    free, rotary = (found[f"attention, {kind}"]["4096"] for kind in ("no positions", "rotary"))
    assert [round(free, 2), round(rotary, 2)] == [0.83, 0.21]
    by_rate = [
        r["metrics"]["4096"]
        for r in results.read(results.RESULTS / "induction.jsonl")
        if r["run"]["name"] == "Mamba-2" and r["run"]["seed"] == 0
    ]
    assert sorted(round(x, 2) for x in by_rate) == [0.5, 0.61, 0.94]


def test_the_cache_is_counted_at_the_length_that_was_asked():
    state = PAGE.function("state")
    lab = {(row["name"], row["D"]): row for row in results.table(results.RESULTS / "recall.jsonl")}
    assert [state(lab["attention + conv", D]) for D in (16, 32)] == [8480, 16960]
    assert state(lab["Mamba-2", 16]) == lab["Mamba-2", 16]["state_floats"]


def test_predict():
    scope = solution("ex-race-predict")
    assert scope["nemotron"] == pytest.approx(16.1e9, rel=0.01)
    assert scope["llama"] == pytest.approx(72.8e9, rel=0.01)


def test_derive():
    scope = solution("ex-race-derive")
    assert scope["moved"] == pytest.approx(4.125 / 16)
    assert 40 < scope["batch"] < 41
    _, _, token_floor = planner()
    T = scope["crossing"](8.03e9, 256, 131_072, 16, 16)
    whole = token_floor(8.03e9, 256, 131_072, T, 16, 16)[0]
    assert whole == pytest.approx(2 * token_floor(8.03e9, 0, 0, T, 16, 16)[0])


@pytest.mark.parametrize("name", ["ssd", "attention"])
def test_code_going_back(name):
    Undo = solution("ex-race-code")["Undo"]
    net, ids = (
        checkpoints.load(name),
        torch.randint(32, 100, (1, 40), generator=torch.Generator().manual_seed(0)),
    )
    undo = Undo(net)
    undo.read(ids)
    undo.back(13)
    assert undo.seen.shape[1] == 27
    undo.read(ids[:, 5:9])
    with torch.no_grad():
        direct = net(torch.cat([ids[:, :27], ids[:, 5:9]], 1))[0][:, -1:]
    assert (undo.logits - direct).abs().max() < 1e-3


def test_explore_the_field():
    scope = solution("ex-race-explore")
    shares = sorted(scope["share"].values())
    assert shares[0] == pytest.approx(min(s.count("attention") / len(s.mixers) for s in scope["recent"]))
    assert shares[-1] == 1
    assert all(s.date >= "2025" for s in scope["recent"])
    assert len(stripes.FIELD) == 18
