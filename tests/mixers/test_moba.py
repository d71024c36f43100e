"""Attention that skips against its definition in loops; its bill; what it refuses."""

import math

import contract
import pytest
import torch

from postx import mixers
from postx.mixers import attention, moba
from postx.parts.rope import Rope


def by_hand(q, k, v, block, keep):
    """Every token and head: rank the earlier blocks by q . mean key, softmax over the tokens of the chosen ones."""
    B, T, H, K = q.shape
    y = torch.zeros(B, T, H, v.shape[-1], dtype=q.dtype)
    for b in range(B):
        for t in range(T):
            for h in range(H):
                g = h // (H // k.shape[2])
                own = t // block
                score = {n: float(q[b, t, h] @ k[b, n * block : (n + 1) * block, g].mean(0)) for n in range(own)}
                chosen = {own, *sorted(score, key=score.get, reverse=True)[: keep - 1]}
                seen = [m for m in range(t + 1) if m // block in chosen]
                p = torch.stack([q[b, t, h] @ k[b, m, g] / math.sqrt(K) for m in seen]).softmax(0)
                y[b, t, h] = sum(w * v[b, m, g] for w, m in zip(p, seen, strict=True))
    return y


@pytest.mark.parametrize(("block", "keep"), [(4, 2), (3, 3), (1, 4), (5, 1)])
def test_every_form_is_the_definition(block, keep):
    z, _ = moba.example(18, B=1)
    want = by_hand(*z, block, keep)
    w = {"block": block, "keep": keep}
    for got in (moba.parallel(*z, **w), moba.recurrent(*z, **w), mixers.by_step(moba, *z, **w)):
        assert contract.close(got[0], want) <= contract.TOLERANCE


def test_with_room_for_all_blocks_it_is_attention():
    z, _ = moba.example(21)
    rope = Rope()
    want = attention.parallel(*z, rope=rope)[0]
    assert contract.close(moba.parallel(*z, block=4, keep=6, rope=rope)[0], want) <= contract.TOLERANCE


@pytest.mark.parametrize(("block", "keep"), [(4, 2), (3, 3), (1, 1), (8, 5)])
def test_the_bill_is_a_sum_over_tokens(block, keep):
    """Token t compares with t // C + 1 means and reads its own block so far and at most keep - 1 whole ones."""
    for past, T in ((0, 1), (0, 40), (13, 20)):
        means = sum(t // block + 1 for t in range(past, past + T))
        pairs = sum(t % block + 1 + block * min(t // block, keep - 1) for t in range(past, past + T))
        bill = moba.cost(T, B=2, H=4, G=2, K=8, V=6, block=block, keep=keep, past=past)
        assert bill.flops == 2 * 2 * 4 * (means * 8 + pairs * 14)
        assert bill.state_floats == 2 * 2 * (past + T) * 14
        assert not bill.bounded


@pytest.mark.parametrize(("name", "value"), [("block", 0), ("keep", 0), ("block", 2.0), ("keep", True)])
def test_bad_sizes_are_named(name, value):
    z, w = moba.example(3)
    for form in (moba.parallel, moba.recurrent):
        with pytest.raises(ValueError, match=f"{name}: expected an integer >= 1, got {value}"):
            form(*z, **(w | {name: value}))
