"""The planner's rows and formulas against published figures, the package's own costs, and counted models."""

import math
from datetime import date

import pytest
import torch

from postx import planner
from postx.mixers import mla
from postx.models import published
from postx.models.lm import LM, count
from postx.planner import facts, formulas, rows, words

ONE = {"flops": 1e12, "bandwidth": 1e12, "memory": 1e12, "share": 1, "price": 0}
CHOICES = {"context": 1, "batch": 1, "weight_bits": 16, "cache_bits": 16, "state_bits": 16}


def found(model, device=ONE, **choices):
    return formulas.evaluate(rows.of(model).numbers(), CHOICES | choices, device)


@pytest.mark.parametrize(
    ("model", "key", "choices", "published"),
    [
        ("Llama-3-8B", "each_cache", {}, 131072),  # jax-ml/scaling-book, inference.md
        ("Llama-3-70B", "each_cache", {}, 327680),
        ("Llama-3-70B", "each_cache", {"cache_bits": 8}, 163840),
        ("Llama-3-8B", "weight_bytes", {}, 16060522496),  # the header of its safetensors
        ("DeepSeek-V3", "each_cache", {}, 70272),  # arXiv 2412.19437: (512 + 64) 61 numbers
        ("Mixtral-8x7B", "each_cache", {"context": 262144}, 32 * 2**30),  # arXiv 2408.12570, table 1
        ("Jamba", "each_cache", {"context": 262144}, 4 * 2**30),  # arXiv 2403.19887, table 1
        ("RWKV-7-0.4B", "each_state", {"state_bits": 8}, 1622016),  # BlinkDL/RWKV-LM, README.md
    ],
)
def test_published_bytes(model, key, choices, published):
    assert found(model, **choices)[key] == published


@pytest.mark.parametrize(("model", "config"), [("Llama-3-8B", "LLAMA3_8B"), ("Llama-3-70B", "LLAMA3_70B")])
@pytest.mark.parametrize("n", [1, 777, 8192, 1000000])
def test_dense_models_cost_what_their_config_costs(model, config, n):
    config, mine = getattr(published, config), found(model, context=n)
    assert mine["token_flops"] == config.decode(n).flops
    assert mine["prompt_flops"] == config.prefill(n).flops
    assert mine["pairs_crossing"] == config.crossover()
    assert math.isclose(mine["token_bytes"], config.decode(n).bytes, rel_tol=2e-3)  # which counts activations
    assert found(model, context=n, batch=7)["token_flops"] == config.decode(n, B=7).flops


@pytest.mark.parametrize("name", rows.catalogue())
def test_a_row_counts_every_weight_and_number_of_state(name):
    row, lm = rows.of(name).numbers(), published.build(name)
    counted = count(lm)
    assert row["weights"] == counted.total
    if row["chosen"]:
        assert counted.total - counted.active == row["routed"] * (1 - row["chosen"])
    one, two = lm.state_floats(1), lm.state_floats(2)
    assert two - one == row["grow"]
    assert one == row["grow"] + row["state"] + row["slide"] * row["window"]


def test_a_window_stops_the_cache():
    before, at, after = (found("RecurrentGemma-2B", context=n) for n in (1024, 2048, 10**6))
    assert 2 * before["each_cache"] == at["each_cache"] == after["each_cache"]
    assert after["token_flops"] == at["token_flops"]
    pairs = sum(min(2048, i + 1) for i in range(5000))
    assert found("RecurrentGemma-2B", context=5000)["seen_pairs"] == pairs
    assert found("RecurrentGemma-2B", context=100)["seen_pairs"] == 5050


def test_latents_are_read_unexpanded():
    """facts of postx.mixers.mla: 0.28 million FLOPs for each cached token and layer; a prompt expands them."""
    row, sizes = rows.of("DeepSeek-V3").numbers(), {"B": 1, "H": 128, "nope": 128, "rotary": 64, "R": 512, "V": 128}
    for form, key in (("absorbed", "read_pair"), ("expanded", "pair")):
        one, two = (mla.cost(1, past=past, form=form, **sizes) for past in (0, 1))
        up = 2 * 128 * 512 * 256 if form == "expanded" else 0  # of the one more latent that is expanded
        assert row[key] == 61 * (two.flops - one.flops - up)


def test_more_users_touch_more_experts():
    row = rows.of("Mixtral-8x7B").numbers()
    for users, share in ((1, 1 / 4), (2, 1 - (3 / 4) ** 2), (1000, 1)):
        bytes_ = found("Mixtral-8x7B", batch=users, cache_bits=0)["token_bytes"]
        assert math.isclose(bytes_, 2 * (row["matrix"] + row["routed"] * share), rel_tol=1e-12)


@pytest.mark.parametrize("layers", ["SSSA", "MLWC", "(AS)FG7", "KR"])
def test_a_pattern_of_ones_own_is_counted_as_a_model(layers):
    D, H = 512, 4
    heads = {"H": H, "G": 4, "K": 128}
    options = {
        "A": heads, "L": heads | {"window": 4096}, "R": {"H": H},
        "G": {"H": 8, "G": H, "K": 128, "V": 128, "conv_size": 4},
        "K": {"H": H, "R": 512, "Rq": 1536, "nope": 128, "rotary": 64, "V": 128},
        "7": {"ranks": (64, 64, 128), "value_rank": 32},
    }  # fmt: skip
    with torch.device("meta"):
        if "7" in layers:  # the first of RWKV's layers hands its values on, and has no matrix to blend them in
            options["7"] = options["7"] | {"value_rank": 0}
        lm = LM(layers, D, rows.VOCABULARY, tied=False, options={k: o for k, o in options.items() if k in layers})
    mine = rows.own(layers, D)
    built = sum(p.numel() for p in lm.blocks[-1].mix[0].parameters())
    blend = rows.letters(D)["7"].weights - built if "7" in layers else 0
    assert mine.numbers()["weights"] - blend == count(lm).total
    assert mine.window == (4096 if "L" in layers else 0)


def test_an_edited_model_keeps_its_mlps():
    before, after = rows.of("Llama-3-8B"), rows.of("Llama-3-8B").edited("S" * 3 + "A" * 29)
    ours, new = rows.letters(4096), after.numbers()
    attention = before.parts[0]
    for key in ("weights", "matrix", "grow", "state"):
        change = 3 * (getattr(ours["S"], key) - getattr(attention, key))
        assert new[key] == before.numbers()[key] + change
    assert before.edited("A" * 32).numbers() == before.numbers()
    assert before.edited("L" + "A" * 31, 512).window == 512


def test_crossings_are_where_things_cross():
    at = found("Jamba", device=ONE | {"memory": 80e9}, context=4096, batch=3, weight_bits=8)
    n = at["cache_crossing"]
    there = found("Jamba", context=round(n), batch=3, weight_bits=8)
    assert math.isclose(there["cache_bytes"], there["weight_bytes"], rel_tol=1e-5)
    full = found("Jamba", device=ONE | {"memory": 80e9}, context=at["longest"], batch=3, weight_bits=8)
    assert 0 <= full["usable"] - full["total_bytes"] < 3 * 8192 * 2
    users = found("Jamba", device=ONE | {"memory": 80e9}, context=4096, batch=at["most_users"], weight_bits=8)
    assert 0 <= users["spare"] - users["cache_bytes"] - users["state_bytes"] < users["each_cache"] + users["each_state"]
    slow = ONE | {"flops": 1e14}
    many = found("Mamba-2.8b", device=slow)["compute_users"]
    busy = found("Mamba-2.8b", device=slow, batch=many)
    assert math.isclose(busy["compute_seconds"], busy["memory_seconds"], rel_tol=1e-9)
    window = found("RecurrentGemma-2B", device=ONE | {"memory": 80e9})
    assert math.isinf(window["longest"])
    assert math.isinf(window["cache_crossing"])
    assert found("Llama-3-8B", device=ONE | {"memory": 1e9})["longest"] == 0


def test_no_published_measurement_is_faster_than_the_floor():
    for row in facts.table()["measured"]:
        plan = planner.plan(row["model"], device=row["device"], context=row["context"], weight_bits=row["weight_bits"])
        assert 0.3 < row["tokens_a_second"] / plan.found["tokens_a_second"] < 1, row


def test_the_question_turned_round():
    ask = {"memory": 24e9, "context": 65536, "users": 16, "recall": True}
    verdicts = {v.name: v for v in planner.survivors(**ask)}
    assert [name for name, v in verdicts.items() if v.survives] == ["Falcon-H1-0.5B"]
    assert verdicts["Nemotron-3-Nano-30B-A3B"].reasons == (
        "needs 23 GB at 4 bits: weights 15.8 GB, cache 6.44 GB, state 799 MB; 21.6 GB can be used, "
        "enough for 12 users or 51,000 tokens each",
    )
    assert verdicts["Mamba-2.8b"].reasons == (
        "published for 2,048 tokens, 65,536 are asked", "no layer keeps every token: 24.9 MB stand for 65,536"
    )  # fmt: skip
    smaller = {v.name for v in planner.survivors(**ask | {"users": 12}) if v.survives}
    assert "Nemotron-3-Nano-30B-A3B" in smaller
    easy = {v.name: v for v in planner.survivors(**ask | {"recall": False})}
    assert easy["Mamba-2-2.7b"].survives
    assert easy["Mamba-2-2.7b"].weight_bits == 16
    long = planner.survivors(memory=1128e9, context=1048576, users=1, recall=True, device="8 x H200")
    assert {v.name for v in long if v.survives} == {"Zamba-7B", "Nemotron-3-Nano-30B-A3B"}


def test_a_plan_says_what_binds():
    big = planner.plan("Llama-3-70B", device="H100")
    assert (big.fits, big.binds) == (False, "capacity")
    assert planner.plan("llama-3-8b", device="H100").binds == "bandwidth"
    assert planner.plan("Mamba-2.8b", device="RTX 3090", batch=512, weight_bits=4).binds == "compute"
    assert planner.plan("Mamba-2.8b", price=3.6).found["written_cost"] == pytest.approx(
        1e3 / planner.plan("Mamba-2.8b").found["tokens_a_second"])  # fmt: skip


def test_every_fact_has_a_source_and_a_date():
    table, names = facts.table(), set(rows.catalogue())
    checked = date.fromisoformat(table["checked"])
    for kind in ("device", "context", "quality", "measured", "server"):
        assert table[kind]
        for row in table[kind]:
            assert len(row["source"]) > 8, row
            assert date.fromisoformat(row["date"]) <= checked, row
            assert row.get("model") in names | {None}, row
    assert {row["kind"] for row in table["quality"]} <= {"recall", "benchmark", "perplexity", "compression"}
    assert all(("value" in row) != ("text" in row) for row in table["quality"])
    assert {row["device"] for row in table["measured"]} <= set(facts.devices())
    assert sorted(name for row in table["served"] for name in row["models"]) == sorted(names)
    assert all(len(row["names"]) == len(table["server"]) for row in table["served"])


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda: planner.plan("GPT-5"), "model 'GPT-5' is neither published nor a pattern; there are Llama-3-8B"),
        (lambda: planner.plan("SSQ"), "a pattern has letters out of A L K"),
        (lambda: planner.plan("S(A"), "pattern: cannot read"),
        (lambda: planner.plan("SSA", width=100), "width: expected a multiple of 128, got 100"),
        (lambda: planner.plan("Jamba", width=4096), "width: Jamba has its own, 4096"),
        (lambda: planner.plan("SSA", layers="SSS"), "layers: they go with a published model"),
        (lambda: planner.plan("Jamba", layers="A"), "layers: Jamba has 32 places, got 1"),
        (lambda: planner.plan("Nemotron-H-8B", layers="A" * 52), "layers: F cannot become A"),
        (lambda: planner.plan("Jamba", device="TPU"), "device 'TPU' is not here; there are Phone"),
        (lambda: planner.plan("Jamba", device=""), "device '' is not here"),
        (lambda: planner.plan("Jamba", batch=0), "batch: expected a number from 1 up, got 0"),
        (lambda: planner.plan("Jamba", weight_bits=0), "weight_bits: expected a number above 0"),
        (lambda: planner.plan("Jamba", cache_bits=-1), "cache_bits: expected a number from 0 up, got -1"),
        (lambda: planner.plan("Jamba", context=math.nan), "context: expected a number from 1 up, got nan"),
        (lambda: planner.plan("Jamba", users=3), "choices: no users; there are context, batch"),
        (lambda: planner.survivors(memory=1e9, context=1, users=1, bits=()), "bits: expected at least one"),
        (lambda: formulas.evaluate({}, CHOICES, ONE), "row: expected weights, matrix"),
        (lambda: words.amount("--context", "many"), "--context: expected a number such as 8192, 64k or 24 GB"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(call, told):
    with pytest.raises(ValueError, match=told.replace("(", r"\(")):
        call()


def test_numbers_in_words():
    assert [words.three(x) for x in (0, 1.125, 1235, 0.04565, 999.6, 65536, 1e9)] == [
        "0", "1.13", "1,240", "0.0457", "1,000", "65,500", "1,000,000,000"]  # fmt: skip
    said = [words.say(x, "bytes") for x in (0, 999, 1e3, 16.06e9, 3e15)]
    assert said == ["0 B", "999 B", "1 kB", "16.1 GB", "3,000 TB"]
    assert [words.money(x) for x in (0, 0.0413, 0.125, 1234.5)] == ["$0", "$0.0413", "$0.13", "$1,234.50"]
    asked = [words.amount("x", text) for text in ("64k", "1,000", "1.5 M", "24 GB", "1GiB")]
    assert asked == [65536, 1000, 1572864, 24e9, 2**30]
