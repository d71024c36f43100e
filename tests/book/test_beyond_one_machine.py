"""Chapter "beyond one machine": the code on its page, its equations, and the solutions of its exercises."""

import pytest
import torch
from page import Page

from postx import distributed
from postx.distributed import bill, blocks
from postx.distributed.rehearsal import rehearse
from postx.mixers import attention, deltanet, ssd
from postx.models import published

PAGE = Page("beyond_one_machine", torch=torch, blocks=blocks, distributed=distributed)
solution = PAGE.solution
work, slowest = PAGE.functions("work", "slowest")


@pytest.mark.equation("eq-ring-balance")
@pytest.mark.parametrize("P", [2, 4, 8])
def test_the_time_of_a_ring_is_its_slowest_ranks(P, residual):
    c = 24
    straight, zigzag = (distributed.Layout(P * c, P, kind) for kind in ("straight", "zigzag"))
    errors = [slowest(straight) - (c * c / 2 + (P - 1) * c * c + c / 2), slowest(zigzag) - (P * c * c / 2 + c / 2)]
    for layout in (straight, zigzag):  # no pair is left out, none is looked at twice
        pairs = sum(sum(work(layout, rank, step).values()) for rank in range(P) for step in range(P))
        errors.append(pairs - P * c * (P * c + 1) / 2)
    assert errors == [0] * 4
    residual(max(map(abs, errors)))


@pytest.mark.equation("eq-block-merge")
def test_blocks_merge_to_the_whole_softmax(residual):
    (merge,) = PAGE.functions("merge")
    scores = 200 * torch.randn(6, 30, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    values = torch.randn(30, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    parts = [(s.softmax(1) @ v, s.logsumexp(1)) for s, v in zip(scores.split(9, 1), values.split(9), strict=True)]
    left, right = parts[0], parts[-1]
    for part in parts[1:]:
        left = merge(*left, *part)
    for part in parts[-2::-1]:
        right = merge(*part, *right)
    want = scores.softmax(1) @ values
    error = max((y - want).abs().max() for y in (left[0], right[0]))
    assert error < 1e-12
    package = blocks.merge(*(x[None, :, None] for x in parts[0]), *(x[None, :, None] for x in parts[1]))[0]
    assert (package[0, :, 0] - merge(*parts[0], *parts[1])[0]).abs().max() < 1e-12
    residual(error)


@pytest.mark.equation("eq-ring-bytes")
@pytest.mark.parametrize("P", [2, 3, 5])
def test_a_rank_sends_nearly_all_keys_and_values(P, residual):
    T, G, K = 12 * P, 2, 8
    z, _ = attention.example(T, B=1, H=4, G=G, K=K, V=K)
    layout = distributed.Layout(T, P, "zigzag")

    def a_rank(wire):
        distributed.attend(*(layout.split(x, wire.rank) for x in z), layout, wire)
        return wire.sent

    sent, formula = rehearse(P, a_rank), (P - 1) / P * T * 2 * G * K * 8
    assert sent[:-1] == [formula - 6 * 2 * G * K * 8] * (P - 1)
    residual(abs(sent[-1] - formula))
    assert sent[-1] == formula == bill.ring(T, P, G=G, K=K, item=8)


@pytest.mark.equation("eq-passed-state")
@pytest.mark.parametrize(("mixer", "table"), [(ssd, False), (deltanet, True)])
def test_the_sum_over_the_ranks_before_is_the_state(mixer, table, residual):
    """The right side written out, for a number a head and for a table."""
    z, _ = mixer.example(40)
    cuts, want = [0, 7, 19, 30, 40], mixer.recurrent(*z)[1]
    operators = [mixer.operator(*(x[:, a:b] for x in z)) for a, b in zip(cuts, cuts[1:], strict=False)]
    S = 0
    for i, operator in enumerate(operators):
        term = operator.b
        for later in operators[i + 1 :]:
            term = later.A @ term if table else later.A * term
        S = S + term
    error = (S - want).abs().max()
    assert error < 1e-12
    residual(error)


@pytest.mark.equation("eq-ring-hides")
@pytest.mark.parametrize("rate", [50e9, 450e9])
def test_from_the_shortest_block_on_arithmetic_sets_the_time(rate, residual):
    """Above it the ring takes its arithmetic, below it more; at it, a step's two times are the same."""
    model, P = published.LLAMA3_70B, 64
    shape = {"H": model.H, "G": model.G, "K": model.K, "flops": published.H100.flops}
    c = model.G / model.H * 2 * published.H100.flops / rate
    look, send = 2 * c * c * model.H * model.K / shape["flops"], 2 * c * model.G * model.K * 2 / rate
    assert look == pytest.approx(send)

    def over(c):
        T = P * round(c)
        return bill.ring_seconds(T, P, bandwidth=rate, **shape) / (2 * T * T * model.H * model.K / P / shape["flops"])

    assert over(1.01 * c) == pytest.approx(1)
    assert over(0.9 * c) > 1.05
    residual(abs(look / send - 1))


def test_predict():
    far = solution("ex-far-predict")["far"]
    assert far["straight"] == [1] * 7 + [0]
    assert far["zigzag"] == [2] * 6 + [1] + [7] * 8 + [0]


def test_derive():
    scope = solution("ex-far-derive")
    assert scope["ratio"] == 6
    assert scope["turn"] == 128 * 128


def test_code():
    decode = solution("ex-far-code")["decode"]
    random = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(*n, generator=random, dtype=torch.float64) for n in ((8,), (30, 8), (30, 5)))
    parts = list(zip(k.split([3, 20, 7]), v.split([3, 20, 7]), strict=True))
    want = (k @ q / 8**0.5).softmax(0) @ v
    assert (decode(q, parts) - want).abs().max() < 1e-12


def test_explore():
    scope = solution("ex-far-explore")
    assert 1.9 < scope["straight"] / scope["zigzag"] < 2.0
    assert scope["moving"] < 0.01 * scope["zigzag"]
