"""Rotations of a rounded model: what learning sees is what is scored, and it goes down."""

import json

import numpy as np
import pytest
import torch

from experiments import spin
from experiments.runner import corpus
from postx import text as texts
from postx.models import quantized
from postx.models.lm import LM
from postx.quant import rotate

WORDS = np.frombuffer(b"a wall below four bits is a choice of range and of basis. ", np.uint8)
TEXT = texts.Text(*(np.tile(WORDS, 20) for _ in texts.SPLITS), source="one sentence")


def model():
    torch.manual_seed(0)
    lm = LM("AA", 16, 256, options={"A": {"H": 2}, "F": {"F": 24}}, mlp="F", std=0.3)
    for name, p in lm.named_parameters():
        if "norm" in name:
            p.data.uniform_(0.5, 1.5)
    return lm


@pytest.fixture
def short(monkeypatch):
    monkeypatch.setattr(spin, "B", 2)
    monkeypatch.setattr(spin, "T", 24)


def test_with_many_bits_no_rotation_changes_anything(short):
    lm, R = model(), rotate.orthogonal(16, 0).float()
    fine, coarse = spin.Rounded(lm, 8, 8), spin.Rounded(lm, 3, 4)
    want = corpus.bits(lm, TEXT, "validation", 48)
    assert fine.score(R, TEXT) == pytest.approx(want, abs=0.02)
    assert fine.score(None, TEXT) == pytest.approx(want, abs=0.02)
    assert abs(coarse.score(R, TEXT) - want) > 0.05
    assert coarse.score(R, TEXT) != coarse.score(rotate.orthogonal(16, 1).float(), TEXT)


def test_what_is_learned_on_is_what_is_scored(short):
    """The loss that is differentiated, on one window, is that of the scored weights."""
    lm, R = model(), rotate.orthogonal(16, 0).float()
    rounded = spin.Rounded(lm, 3, 4)
    ids, targets = TEXT.batches("train", 2, 24)(0)
    body = rounded.body[True]
    body.load_state_dict(body.state_dict() | rounded.weights(R))
    with torch.no_grad():
        assert rounded.loss(R, ids, targets) == body.loss(ids, targets)


def test_learning_lowers_the_loss_and_stays_orthogonal(short):
    rounded, start = spin.Rounded(model(), 3, 4), rotate.spin(torch.eye(16), 0)
    R, losses = spin.learn(rounded, start, TEXT, 16, 0.1, torch.device("cpu"))
    assert len(losses) == 17
    assert torch.allclose(R @ R.T, torch.eye(16), atol=1e-5)
    ids, targets = TEXT.batches("train", 2, 24, seed=1)(0)
    with torch.no_grad():
        assert rounded.loss(R, ids, targets) < rounded.loss(start, ids, targets)


def test_the_turned_weights_can_be_differentiated():
    lm = model()
    R = rotate.orthogonal(16, 0).float().requires_grad_()
    weights = quantized.turned(lm, R)
    sum(x.sin().sum() for x in weights.values()).backward()
    assert float(R.grad.norm()) > 0
    assert set(weights) <= set(lm.state_dict()) | {"head.weight"}


def test_the_last_rotation_or_the_best():
    target = rotate.orthogonal(8, 1)
    calls = []

    def loss(R):  # the same distance, and an offset that grows: the first is the "best"
        calls.append(R)
        return (R - target).square().sum() + 1000 * len(calls)

    start = rotate.orthogonal(8, 0)
    assert torch.equal(rotate.learn(loss, start, 5, 0.3), start)
    last = rotate.learn(loss, start, 5, 0.3, keep="last")
    assert (last - target).norm() < (start - target).norm()
    with pytest.raises(ValueError, match='keep: expected "best" or "last"'):
        rotate.learn(loss, start, keep="first")


def test_the_scored_text_does_not_choose_the_rate(tmp_path):
    def line(key, kind, bits, losses=None, **run):
        more = {} if losses is None else {"losses": losses}
        run = {"weights": 4, "inputs": 4, "kind": kind, "seed": 0} | run
        return json.dumps(
            {"key": key, "run": run, "metrics": {"validation_bits": bits}, "full_bits": 1.9} | more
        )

    path = tmp_path / "spin.jsonl"
    lines = [line("a", "hadamard", 2.1), line("b", "hadamard", 2.2, seed=1), line("c", "learned", 2.0, [3.0, 1.5]),
             line("d", "learned", 1.95, [3.0, 1.6], rate=0.3)]  # fmt: skip
    path.write_text("\n".join(lines))
    assert spin.table(path) == {(4, 4): {"full": [1.9], "hadamard": [2.1, 2.2], "learned": [2.0]}}
