"""Chapter 7: the code that stands on its page, the equations that no other file holds, and its exercise solutions."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from page import Page
from torch import nn

from postx import cost
from postx.mixers import attention, retnet, rwkv4, rwkv7
from postx.models import published

PAGE = Page(
    "rnn_comeback", torch=torch, math=math, nn=nn, replace=replace, published=published, cost=cost,
    attention=attention, retnet=retnet, rwkv4=rwkv4, rwkv7=rwkv7,
)  # fmt: skip
RESULTS = Path(__file__).resolve().parents[2] / "experiments" / "results"


@pytest.fixture(autouse=True)
def same_numbers_each_time():
    torch.manual_seed(0)


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
    assert record["width"] == 1024
    for T in (128, 16384):  # both ways
        assert ms["RWKV-4", T] > max(ms["RetNet", T], ms["attention", T])
    assert [round(step[T], 1) for T in (1024, 2048)] == [8.4, 8.4]
    chain = 128 * step[2048] / 1e3
    assert (round(chain, 1), round(ms["LSTM", 128] - chain)) == (1.1, 5)


@pytest.mark.parametrize(("T", "rounds"), [(128, 8), (16_384, 15)])
def test_doubling_takes_one_round_for_the_state_that_comes_in(monkeypatch, T, rounds):
    joins, merge = [], rwkv4.scans.merge
    monkeypatch.setattr(rwkv4.scans, "merge", lambda *pair: joins.append(1) or merge(*pair))
    z, w = rwkv4.example(T, B=1, D=1)
    rwkv4.parallel(*z, **w)
    assert len(joins) == rounds + 1  # the last join gives the current token its bonus


def test_the_fraction_by_hand_with_a_score_and_a_bonus():
    v, log2 = torch.tensor([8.0, 4, 6, 2])[None, :, None], torch.tensor([math.log(2)])
    k = torch.zeros_like(v)
    k[0, 0] = log2
    assert rwkv4.recurrent(k, v, g_D=-log2, u_D=log2)[0][0, 3].item() == pytest.approx(4)


def test_the_sums_by_hand_at_three_loud_tokens():
    k, v = torch.tensor([0.0, 100, 3])[None, :, None], torch.tensor([1.0, 2, 3])[None, :, None]
    held = []
    for n in (1, 2, 3):
        state = rwkv4.recurrent(k[:, :n], v[:, :n], g_D=torch.tensor([-0.1]), u_D=torch.tensor([0.5]))[1]
        held.append([round(x.item(), 2) for x in state])
    assert held == [[1, 1, 0], [2, 1, 100], [2, 1, 99.9]]


@pytest.mark.parametrize("m", [-20.0, 0.0, 4.0, 6.0, 8.0, 30.0])
def test_two_updates_are_one_and_a_cap_needs_a_third_number(m):
    assert (m / 2 + 6) / 2 + 2 == m / 4 + 5
    assert min(min(m / 2 + 6, 9) / 2 + 2, 9) == min(m / 4 + 5, 6.5)


def test_with_eight_texts_at_every_length_the_chain_keeps_its_pace():
    path = RESULTS.parents[1] / "benchmarks" / "results" / "gpu_lengths.json"
    rows = {row["T"]: row for row in json.loads(path.read_text())["rows"] if row["part"] == "lstm"}
    step = [1e3 * row["forward_ms"] / T for T, row in rows.items() if "forward_ms" in row]
    assert len(step) == 8
    assert all(11.5 < x < 12.5 for x in step)
    assert "CUDNN_STATUS_NOT_SUPPORTED" in rows[65_536]["refused"]


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


def test_predict():
    scope = solution("ex-rnn-predict")
    assert scope["chains"] == {"LSTM": 65_536, "chunks": 256, "doubling": 16}
    assert scope["best"] == 256


def test_derive():
    scope = solution("ex-rnn-derive")
    weights = [1.0] + [math.exp(-0.0067 * (back - 1)) for back in range(1, 10_000)]  # by tokens back
    assert sum(weights) == pytest.approx(scope["held"])
    assert weights[int(scope["gone"])] > 0.01 > weights[int(scope["gone"]) + 1]
    assert (round(scope["held"]), round(scope["gone"])) == (151, 688)


@pytest.mark.parametrize("cut", [1, 20, 59])
def test_code_two_workers(cut):
    (k, v), w = rwkv4.example(60)
    k = 200 * k  # louder than a float's exponent
    whole = rwkv4.recurrent(k, v, **w)[1]
    first, second = (rwkv4.recurrent(k[:, s], v[:, s], **w)[1] for s in (slice(cut), slice(cut, 60)))
    joined = solution("ex-rnn-workers")["join"](first, second, 60 - cut, w["g_D"])
    assert (joined[0] / joined[1] - whole[0] / whole[1]).abs().max() < 1e-12
    assert (joined[2] + joined[1].log() - whole[2] - whole[1].log()).abs().max() < 1e-9


def test_explore():
    scope = solution("ex-rnn-explore")
    assert (scope["grouped"], scope["multi"]) == (30_402, 7_600)
    assert round(scope["tokens"]) == 2048
    assert round(scope["state"] / 1e6) == 268


def solution(label):
    return PAGE.solution(label)
