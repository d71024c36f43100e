"""Several gloo ranks give what one process gives, forward and backward, and send as many bytes as the formula says."""

from pathlib import Path

import cases
import pytest
import ranks
import torch

from postx import distributed, mixers
from postx.distributed import bill
from postx.models.states import leaves

EVERY = (1, 2, 3, 4)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return ranks.start(Path(cases.__file__), cases.RANKS, tmp_path_factory.mktemp("equal"))


@pytest.mark.parametrize("P", EVERY)
@pytest.mark.parametrize("name", cases.PASSED)
def test_a_passed_state_is_one_process(found, name, P):
    assert found[f"passed {name} turn auto T23 P{P}"]["error"] < 1e-9
    if P > 2 and hasattr(mixers.load(name), "operator"):
        assert found[f"passed {name} log auto T23 P{P}"]["error"] < 1e-9


@pytest.mark.parametrize("P", EVERY)
def test_the_ring_is_one_process(found, P):
    mine = {name: row for name, row in found.items() if name.startswith("ring") and name.endswith(f"P{P}")}
    assert len(mine) == 2 * 10
    assert {name: row["error"] for name, row in mine.items() if not row["error"] < 1e-9} == {}


@pytest.mark.parametrize("P", EVERY)
def test_a_whole_layer_is_one_process(found, P):
    mine = {name: row for name, row in found.items() if name.startswith("layer") and name.endswith(f"P{P}")}
    some = {"attention", "gla", "retnet", "mamba"}
    assert {name.split()[1] for name in mine} == ({*cases.PASSED, "attention"} if P % 2 == 0 else some)
    assert {name: row["error"] for name, row in mine.items() if not row["error"] < 1e-9} == {}


@pytest.mark.parametrize("P", EVERY)
@pytest.mark.parametrize("kind", ["straight", "zigzag"])
def test_the_ring_sends_the_keys_of_a_length(found, kind, P):
    """To the byte, on every rank, forward and in all; a text twice as long is twice the bytes."""
    sizes = {"kind": kind, "B": 2, "G": 2, "K": 8, "item": 8, "grads": 8}
    short, long = (found[f"ring {kind} T{T} WNone H4 G2 V8 torch P{P}"]["bytes"] for T in (24, 48))
    assert long == [[bill.ring(48, P, r, **sizes), bill.ring(48, P, r, backward=True, **sizes)] for r in range(P)]
    assert long == [[2 * n for n in row] for row in short]


def test_a_window_stops_what_is_out_of_sight(found):
    """Under a window of 5 a piece of 6 tokens goes one rank further; under one of 1 nothing is sent."""
    near = found["ring straight T24 W5 H4 G2 V8 torch P4"]["bytes"]
    whole = found["ring straight T24 WNone H4 G2 V8 torch P4"]["bytes"]
    assert [row[0] for row in near] == [whole[0][0]] * 3 + [0]
    for kind in ("straight", "zigzag"):
        assert found[f"ring {kind} T24 W1 H4 G2 V8 torch P4"]["bytes"] == [[0, 0]] * 4


@pytest.mark.parametrize("P", EVERY)
def test_the_passed_state_sends_one_state(found, P):
    """Whatever T is, and of every mixer that is passed in turn: one state forth and one gradient back."""
    for T, form in ((P, "chunked"), (23, "auto"), (40, "chunked")):
        got = found[f"passed ssd turn {form} T{T} P{P}"]["bytes"]
        state = 2 * 4 * 8 * 6
        assert got == [
            [bill.passed(state, item=8, rank=r, ranks=P), bill.passed(state, item=8, backward=True, rank=r, ranks=P)]
            for r in range(P)
        ]
    for name in cases.PASSED:
        mixer = mixers.load(name)
        z, w = mixer.example(1)
        S = leaves(mixer.init(*(x[:, 0] for x in z), **w))
        size = sum(x.numel() * x.element_size() for x in S)
        got = [row[0] for row in found[f"passed {name} turn auto T23 P{P}"]["bytes"]]
        assert got == [size] * (P - 1) + [0], name


def test_rounds_send_operators(found):
    """Of a delta rule an operator is a table of K x K beside the state; the first rank sends a state each round."""
    state, table = 2 * 2 * 6 * 5 * 8, 2 * 2 * 6 * 6 * 8
    sent = [row[0] for row in found["passed deltanet log auto T23 P4"]["bytes"]]
    assert sent == [2 * state, 2 * state + table, state + table, 0]


def test_what_is_refused():
    wire = type("Alone", (), {"rank": 0, "ranks": 2})()
    layout = distributed.Layout(8, 2)
    for name, word in (("attention", "ring"), ("mla", "ring"), ("hyena", "as long as the text")):
        mixer = mixers.load(name)
        with pytest.raises(ValueError, match=word):
            distributed.run(mixer, *mixer.example(4)[0], layout=layout, wire=wire)
    ssd = mixers.load("ssd")
    z, _ = ssd.example(4)
    with pytest.raises(ValueError, match="'straight' over 2 ranks, got 'zigzag'"):
        distributed.run(ssd, *z, layout=distributed.Layout(8, 2, "zigzag"), wire=wire)
    with pytest.raises(ValueError, match="rank 0 of 2 holds 4 of T=8 tokens"):
        distributed.run(ssd, *ssd.example(5)[0], layout=layout, wire=wire)
    with pytest.raises(ValueError, match="how: expected one of 'turn', 'log', got 'tree'"):
        distributed.run(ssd, *z, layout=layout, wire=wire, how="tree")
    with pytest.raises(ValueError, match="holds 4 of T=8"):
        distributed.attend(*mixers.load("attention").example(5)[0], layout, wire)
    with pytest.raises(ValueError, match="for 2 ranks, the group has 3"):
        distributed.attend(*mixers.load("attention").example(4)[0], layout, type("A", (), {"rank": 0, "ranks": 3})())
    with pytest.raises(ValueError, match="every rank needs as many"):
        distributed.layer(ssd.Layer(8), torch.zeros(1, 2, 8), distributed.Layout(4, 2), wire)
    part = mixers.load("attention").Layer(8, causal=False)
    with pytest.raises(ValueError, match="causal=False"):
        distributed.layer(part, torch.zeros(1, 4, 8), layout, wire)


@pytest.mark.parametrize("kind", ["straight", "zigzag"])
def test_a_layout_deals_out_every_token_once(kind):
    x = torch.arange(17)[None]
    layout = distributed.Layout(17, 4, kind)
    parts = [layout.split(x, rank) for rank in range(4)]
    assert [part[0].tolist() for part in parts] == [layout.positions(rank).tolist() for rank in range(4)]
    assert torch.equal(layout.join(parts), x)
    assert max(map(layout.size, range(4))) - min(map(layout.size, range(4))) <= (1 if kind == "straight" else 2)
    with pytest.raises(ValueError, match="needs a token for each"):
        distributed.Layout(3, 4, kind)
    with pytest.raises(ValueError, match="kind: expected"):
        distributed.Layout(9, 4, "spiral")


def test_without_ranks_the_command_is_named(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(RuntimeError, match="torch.distributed.run --nproc-per-node"):
        distributed.start()
    with pytest.raises(RuntimeError, match="torch.distributed.run --nproc-per-node"):
        distributed.Wire()
