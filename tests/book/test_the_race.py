"""Chapter 16: what its page computes, its equations, and its exercise solutions."""

import copy
import itertools
import json
import math
import statistics
import tomllib
from pathlib import Path

import pytest
import torch
from page import Page

from experiments import scorecard
from experiments.runner import results
from postx import planner
from postx.models import capabilities, checkpoints, lm, published, stripes
from postx.models.published import LLAMA3_8B
from postx.planner import facts, formulas
from postx.planner import rows as counted

ROOT = Path(__file__).resolve().parents[2]
PAGE = Page("the_race", torch=torch, math=math, lm=lm, published=published, planner=planner)
solution = PAGE.solution
H100, SAME = facts.device("H100, 80 GB"), {"share": 1, "state_bits": 32}


@pytest.mark.equation("eq-race-state")
@pytest.mark.parametrize("name", ["LFM2-1.2B", "Nemotron-H-8B", "Zamba-7B", "RecurrentGemma-2B"])
def test_the_line_is_the_state_of_the_model(name, residual):
    """Beyond all windows, against the numbers that the built model keeps: a cache's in 16 bits, a table's in 32."""
    a, c = PAGE.function("growth")(name)
    net, row = published.build(name), planner.row(name).numbers()
    for T in (4096, 9000):
        small = net.state_floats(1) - row["grow"] - row["slide"] * row["window"]  # a ring is allocated at once
        assert a + c * T == 2 * (row["grow"] * T + row["slide"] * row["window"]) + 4 * small
    assert net.state_floats(2) - net.state_floats(1) == row["grow"]
    residual(0.0)


@pytest.mark.equation("eq-race-state")
def test_the_growing_part_is_keys_and_values_of_16_bits(residual):
    growth = PAGE.function("growth")
    assert growth("Llama-3-8B")[1] == LLAMA3_8B.kv_bytes(1) == 131_072
    assert growth("Jamba")[1] == published.JAMBA.kv_bytes(1)
    assert growth("Mamba-2-2.7b")[1] == growth("RWKV-7-0.4B")[1] == growth("RecurrentGemma-2B")[1] == 0
    assert growth("Falcon-H1-0.5B")[1] == 36 * 2 * 2 * 64 * 2  # attention beside SSD in each of 36 layers
    assert growth("DeepSeek-V3")[1] == published.DEEPSEEK_V3.kv_bytes(1)  # MLA
    assert growth("RWKV-7-0.4B")[0] == 4 * (24 * 64 * 1024 + 2 * 24 * 1024)  # tables, and two inputs a layer
    residual(0.0)


@pytest.mark.equation("eq-race-fit")
@pytest.mark.parametrize("name", ["Llama-3-8B", "Nemotron-H-8B", "Mamba-2-2.7b"])
@pytest.mark.parametrize(("memory", "bits"), list(itertools.product((4e9, 24e9, 80e9), (16, 8.125, 4.125))))
@pytest.mark.parametrize("batch", [1, 16])
def test_the_longest_text_is_the_formulas_and_one_token_more_does_not_fit(name, memory, bits, batch, residual):
    a, c = PAGE.function("growth")(name)
    left = (memory - planner.row(name).numbers()["weights"] * bits / 8) / batch - a
    asked = {"memory": memory, "weight_bits": bits, "batch": batch} | SAME
    want = 0 if left < 0 else math.floor(left / c) if c else math.inf
    assert planner.plan(name, **asked).found["longest"] == want
    if 0 < want < math.inf:
        assert [planner.plan(name, context=T, **asked).fits for T in (want, want + 1)] == [True, False]
    residual(0.0)


def test_the_program_of_the_page_counts_what_the_text_counts():
    """By hand for Llama-3-8B: what 16 texts keep, the longest that fits, a step's least time and price."""
    count = PAGE.function("count", M=72e9, beta=3.35e12, p=1.99)
    total, longest, ms, dollars = count(8.030e9, 7.505e9, 0, 131_072, b=16, B=16, T=2048)
    assert [round(total, 1), longest, round(ms, 2), round(dollars, 2)] == [20.4, 26_674, 5.76, 0.20]
    a, c = PAGE.function("growth")("Nemotron-H-8B")
    assert [round(a / 1e6, 1), c] == [103.6, 4 * 2 * 8 * 128 * 2]
    assert round(24 * 8192 * 128 * 4 / 1e6) == 101  # the tables alone; the rest are inputs of convolutions


@pytest.mark.equation("eq-race-token")
@pytest.mark.parametrize(
    ("name", "T", "batch"),
    [("Llama-3-8B", 1024, 1), ("Llama-3-8B", 65_536, 16), ("Nemotron-H-8B", 8192, 16), ("Mamba-2-2.7b", 10**6, 40)],
)
def test_the_floor_of_a_token_is_what_is_read_and_written_back(name, T, batch, residual):
    """Nothing of these models is an expert; the embedding is read where it is the head."""
    a, c = PAGE.function("growth")(name)
    row = planner.row(name).numbers()
    found = planner.plan(name, context=T, batch=batch, device="H100, 80 GB").found
    by_hand = (2 * row["matrix"] + batch * (2 * a + c * T)) / H100["bandwidth"]
    off = abs(found["memory_seconds"] / by_hand - 1)
    assert off < 1e-12
    price = 1e6 * found["token_seconds"] * H100["price"] / 3600 / batch
    assert found["written_cost"] == pytest.approx(price)
    residual(off)


@pytest.mark.equation("eq-race-token")
def test_the_floor_is_the_roofline_of_the_blocks(residual):
    """Against the bytes that postx.cost counts operation by operation; those include activations, under 1%."""
    found = planner.plan("Llama-3-8B", context=8192, batch=16, device="H100, 80 GB").found
    off = abs(found["token_bytes"] / LLAMA3_8B.decode(8192, B=16).bytes - 1)
    assert off < 0.01
    residual(off)


def test_what_the_page_says_about_memory():
    def fit(name, memory, bits):
        return planner.plan(name, memory=memory, weight_bits=bits).found["longest"]

    llama, hybrid = "Llama-3-8B", "Nemotron-H-8B"
    assert round(fit(llama, 24e9, 4.125) / fit(llama, 24e9, 16), 1) == 3.2
    assert round(fit(hybrid, 24e9, 16) / fit(llama, 24e9, 16), 1) == 7.6
    assert round(fit(llama, 80e9, 4.125) / fit(llama, 80e9, 16), 1) == 1.2
    assert round(fit(hybrid, 80e9, 16) / fit(llama, 80e9, 16)) == 8
    crossing = solution("ex-race-derive")["crossing"]  # of what is read, the embedding not among it
    read = {name: planner.row(name).numbers()["matrix"] for name in (llama, hybrid)}
    bend = {b: crossing(read[llama], 0, 131_072, 16, b) for b in (16, 4)}
    assert [round(bend[16], -2), round(bend[4], -2)] == [7200, 1800]
    later = crossing(read[hybrid], *PAGE.function("growth")(hybrid), 16, 16)
    assert [round(2 * read[llama] / 1e9), round(later, -3)] == [15, 45_000]
    h100 = next(d for d in facts.table()["device"] if d["name"] == "H100, 80 GB")
    assert round(h100["flops"] / h100["bandwidth"]) == 295  # the batch from which on arithmetic is the longer
    assert round(h100["flops"] / h100["bandwidth"] * 4.125 / 16) == 76  # of weights of 4 bits
    copies = PAGE.function("growth")(hybrid)
    assert round(copies[0] / 1e6) == 104
    assert round(copies[0] / copies[1], -2) == 6300


def test_a_larger_base_leaves_four_pairs_turning_farther_than_in_training():
    slow = [2 * i / 48 for i in range(24) if 512 * 10_000 ** (-2 * i / 48) < 2 * math.pi]  # the others saw every angle
    turned = [(512 * 10_000**-x, 1024 * 30_000**-x) for x in slow]
    assert sum(far > known for known, far in turned) == 4


def test_the_table_of_decisions_agrees_with_those_who_survive():
    """What it says of cards, bits and families, against the planner: the uses of the page, asked again."""

    def alive(memory, device, context, users, recall=True):
        found = planner.survivors(memory=memory, device=device, context=context, users=users, recall=recall,
                                  bits=(16, 8.125, 4.125))  # fmt: skip
        return {v.name: v for v in found if v.survives}

    one = alive(24e9, "RTX 4090", 8192, 1)
    assert one["Llama-3-8B"].weight_bits == 16
    speed = {name: round(verdict.plan.found["tokens_a_second"]) for name, verdict in one.items()}
    assert [speed[name] for name in ("Llama-3-8B", "Nemotron-H-8B", "Nemotron-3-Nano-30B-A3B")] == [63, 65, 556]
    many = alive(24e9, "RTX 4090", 16384, 32)
    assert not {"Llama-3-8B", "Llama-3-70B", "Mixtral-8x7B"} & set(many)
    assert many["Nemotron-3-Nano-30B-A3B"].weight_bits == 4.125
    assert set(alive(80e9, "H100, 80 GB", 2**20, 1)) == {"Nemotron-3-Nano-30B-A3B"}
    streams = alive(24e9, "RTX 4090", 2**20, 64, recall=False)
    assert streams
    assert not any(planner.row(name).numbers()["grow"] for name in streams)
    assert {"LFM2-1.2B", "LFM2-350M"} <= set(alive(8e9, "Phone, 8 GB", 32768, 1))


def test_every_cell_of_the_table_of_decisions_is_filled():
    table = next(c.source for c in PAGE.cells if "## Whom to choose" in c.source).split("## Whom to choose")[1]
    cells = [[x.strip() for x in line.strip("|").split("|")] for line in table.splitlines() if line.startswith("|")]
    assert len(cells) == 2 + 8
    assert all(len(row) == 5 and all(row) and "–" not in row for row in cells)


def test_the_floors_of_the_scorecard_are_below_its_times():
    """And the ceilings are those of a processor: more than what any recorded row reached."""
    peak = json.loads((results.RESULTS / "ceilings.json").read_text(encoding="utf8"))
    _, rows = scorecard.table()
    for name in scorecard.NAMES:
        row = counted.counted(copy.deepcopy(scorecard.model(name)).to("meta"), name).numbers()
        flat = {"flops": peak["flops"], "bandwidth": peak["bandwidth"], "memory": 1e12, "share": 1, "price": 0}
        for T in (512, 2048):
            for what, batch, key in (("prefill_ms", 1, "prompt_seconds"), ("token_ms_1", 1, "token_seconds"),
                                     ("token_ms_16", 16, "token_seconds")):  # fmt: skip
                bits = dict.fromkeys(("weight_bits", "cache_bits", "state_bits"), 32)
                least = formulas.evaluate(row, {"context": T, "batch": batch} | bits, flat)[key]
                over = rows["time", name, T][what][1] / 1e3 / least
                assert over > 1
                assert not what.startswith("prefill") or 1.2 < over < 3


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


def test_the_models_of_the_page_say_who_can_go_back():
    """As the page prints it: attention alone; from there it reads on as if it had never been further."""
    can = {name: checkpoints.load(name).capabilities for name in checkpoints.kept()}
    assert [name for name in ("attention", "hybrid", "ssd") if can[name].rewinds] == ["attention"]
    assert can["masked"].fills_gap
    assert not can["masked"].streams
    net, ids = checkpoints.load("attention"), torch.arange(30)[None]
    with torch.no_grad():
        S = capabilities.rewound(net, net(ids)[1], 10)
        again = net(ids[:, 20:], S)[0], net(ids)[0][:, 20:]
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
    assert all(n in checkpoints.kept() for n in scorecard.NAMES if about["models"][n]["kept"])
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
    assert [round(bits[n, 512], 2) for n in ("attention", "hybrid", "ssd")] == [1.84, 1.92, 1.95]
    assert bits["attention", 1024] > 2 * bits["attention", 512]
    assert abs(bits["ssd", longest] / bits["ssd", 512] - 1) < 0.02
    assert bits["hybrid", longest] < bits["attention", 1024] / 2
    assert bits["ssd", 512] - bits["attention", 512] == pytest.approx(0.11, abs=0.005)
    slow, fast = (rows["time", name, 2048]["token_ms_16"] for name in ("attention", "ssd"))
    assert round(slow[0] / fast[0], 1) == 8.7
    assert slow[1] / fast[1] > 10
    for name in ("ssd", "gated_deltanet", "rwkv7"):
        near, far = (rows["time", name, T]["token_ms_16"] for T in (512, 2048))
        assert max(near[1], far[1]) <= min(near[2], far[2])


ALONE, ALIKE = scorecard.table(results.RESULTS / "scorecard_gpu.jsonl")


def test_the_scorecard_of_models_trained_alike_has_no_hole_but_the_longest():
    """Five models, three seeds, to 65,536 bytes; RWKV-7's loss and recall end at half of that."""
    lengths = [2**k for k in range(8, 17)]
    assert {m["trained"] for m in ALONE["models"].values()} == {2048}
    weights = [m["parameters"] for m in ALONE["models"].values()]
    assert max(weights) < 1.05 * min(weights)
    missing = {
        (kind, name, T) for kind in ("time", "loss", "recall") for name in ALONE["models"] for T in lengths
    } - set(ALIKE)
    assert missing == {("loss", "rwkv7", 65536), ("recall", "rwkv7", 65536)}
    assert all(len(r["bits"]) == 3 for (kind, *_), r in ALIKE.items() if kind != "time")


def test_what_the_scorecard_says_of_loss_and_recall():
    loss = {(n, T): statistics.fmean(r["bits"]) for (k, n, T), r in ALIKE.items() if k == "loss"}
    fixed, names = ("ssd", "gated_deltanet", "rwkv7"), tuple(ALONE["models"])
    for T in (256, 512, 1024, 2048):
        assert min(names, key=lambda n: loss[n, T]) == "hybrid"
    assert all(abs(loss[n, 32768] - loss[n, 2048]) < 0.002 for n in fixed)
    assert loss["attention", 4096] > 2 * loss["attention", 2048]
    assert loss["hybrid", 2048] + 0.3 < loss["hybrid", 65536] < 1.5
    saved = {
        (n, T): statistics.fmean(r["untold"]) - statistics.fmean(r["bits"])
        for (k, n, T), r in ALIKE.items() if k == "recall"
    }  # fmt: skip
    assert [round(saved[n, 256], 1) for n in ("hybrid", "gated_deltanet", "rwkv7", "attention")] == [1.4, 0.4, 0.5, 0.3]
    assert 0 < saved["ssd", 256] < 0.1
    assert all(abs(x) < 0.03 for (n, T), x in saved.items() if T >= 2048)
    assert all(abs(x) < 0.02 for (n, T), x in saved.items() if T >= 4096)


def test_what_the_scorecard_says_of_time():
    """A millisecond or a little more for 16 texts up to 4,096 bytes, ten times what must be read and more."""
    ms = {(n, T): r["token_ms_16"] for (k, n, T), r in ALIKE.items() if k == "time"}
    read = {(n, T): 16 * r["state_bytes"] / 4.8e9 for (k, n, T), r in ALIKE.items() if k == "time"}
    short = [key for key in ms if key[1] <= 4096]
    assert all(0.9 < ms[key][0] < 1.4 for key in short)
    assert all(read[key] < 0.1 * ms[key][0] for key in short)
    for name in ("ssd", "gated_deltanet", "rwkv7"):
        assert ms[name, 65536][0] < 1.1 * ms[name, 2048][0]
    assert ms["attention", 65536][1] > 3 * ms["ssd", 65536][2]
    assert ms["attention", 8192][1] > ms["attention", 2048][2]


def test_the_cache_is_counted_at_the_length_that_was_asked():
    state = PAGE.function("state")
    lab = {(row["name"], row["D"]): row for row in results.table(results.RESULTS / "recall.jsonl")}
    assert [state(lab["attention + conv", D]) for D in (16, 32)] == [8480, 16960]
    assert state(lab["Mamba-2", 16]) == lab["Mamba-2", 16]["state_floats"]


def test_predict():
    scope = solution("ex-race-predict")
    assert scope["nemotron"] == pytest.approx(16.1e9, rel=0.01)
    assert round((0.9 * 24e9 - scope["nemotron"]) / 1e9, 1) == 5.5
    assert scope["llama"] == pytest.approx(72.8e9, rel=0.01)


def test_derive():
    scope = solution("ex-race-derive")
    assert scope["moved"] == pytest.approx(4.125 / 16)
    assert round(scope["batch"], 1) == 18.8
    assert round(planner.row("Nemotron-H-8B").numbers()["matrix"] / 1e9, 2) == 7.56
    T = scope["crossing"](8.03e9, 256, 131_072, 16, 16)
    assert pytest.approx(2 * 8.03e9) == 16 * (2 * 256 + 131_072 * T)


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
    undo.back(15)  # onto a kept point: nothing to read again, and the answers of that place
    with torch.no_grad():
        direct = net(ids[:, :16])[0][:, -1:]
    assert undo.seen.shape[1] == 16
    assert (undo.logits - direct).abs().max() < 1e-3


def test_explore_the_field():
    scope = solution("ex-race-explore")
    shares = sorted(scope["share"].values())
    assert shares[0] == pytest.approx(min(s.count("attention") / len(s.mixers) for s in scope["recent"]))
    assert shares[-1] == 1
    assert len(shares) == 14
    assert [len(scope["bands"][low]) for low in (1 / 2, 1 / 4, 1 / 8)] == [3, 8, 13]
    assert sum(0.24 < share < 0.26 for share in shares) == 4
    assert all(s.date >= "2025" for s in scope["recent"])
    assert len(stripes.FIELD) == 21
