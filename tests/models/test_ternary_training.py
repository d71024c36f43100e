"""Trits that are trained: the layer's product, its gradients, the packed file, and the experiment in miniature."""

import argparse
import json
import math

import numpy as np
import pytest
import torch
from tiny import NoHost

from experiments import ternary as experiment
from experiments.runner.sweep import build, sweep
from postx import text as texts
from postx.models import checkpoints, quantized
from postx.models.lm import LM
from postx.quant import ternary

CONFIG = {"pattern": "AA", "D": 16, "options": {"A": {"H": 2}}, "mlp": "F"}
IDS = torch.randint(0, 256, (2, 24), generator=torch.Generator().manual_seed(1))


def gauss(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def layer(O=12, I=40):
    made = ternary.Linear(I, O)
    made.weight.data, made.bias.data = gauss(O, I), gauss(O, seed=1)
    return made


def test_the_product_is_that_of_integers():
    """In float64 by hand; and under autocast, where both factors become bfloat16, nothing but y is rounded."""
    net, x = layer(), gauss(3, 5, 40, seed=2)
    codes = (x.double() * 127 / x.double().abs().amax(-1, keepdim=True)).round()
    trits, s = ternary.absmean(net.weight.detach())
    step = x.abs().amax(-1, keepdim=True) / 127
    whole = codes @ trits.double().T
    want = whole * step * s + net.bias
    assert whole.abs().max() > 256  # not a bfloat16 integer: the sum is not rounded on the way
    assert torch.allclose(net(x).double(), want.double(), rtol=1e-4, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        low = net(x)
    assert low.dtype == torch.bfloat16
    assert torch.allclose(low.double(), want.double(), rtol=0.02, atol=0.02)


def test_gradients_pass_straight_through():
    """They are those of x and W themselves at the rounded values."""
    net, x = layer(), gauss(7, 40, seed=2).requires_grad_()
    net(x).sin().sum().backward()
    trits, s = ternary.absmean(net.weight.detach())
    rounded, W = ternary.absmax(x.detach()).requires_grad_(), (trits * s).requires_grad_()
    (rounded @ W.T + net.bias.detach()).sin().sum().backward()
    assert torch.allclose(x.grad, rounded.grad, atol=1e-4)
    assert torch.allclose(net.weight.grad, W.grad, atol=1e-4)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_inputs_round_to_their_levels(bits):
    codes, step = ternary.integers(gauss(50, 64), bits)
    assert int(codes.abs().max()) == 2 ** (bits - 1) - 1
    assert step.shape == (50, 1)
    assert ternary.integers(gauss(4, 4).bfloat16())[0].dtype == torch.float32


def test_a_step_asks_nothing_of_the_host():
    with torch.device("meta"):
        lm = quantized.train_trits(LM("SA", 32, 40, options={"S": {"K": 8}, "A": {"H": 2}}, mlp="F"))
        ids = torch.zeros(2, 70, dtype=torch.int64)
    with NoHost():
        lm.loss(ids, ids).backward()
    assert all(p.grad is not None for p in lm.parameters())


def test_every_linear_layer_of_the_blocks_is_replaced():
    torch.manual_seed(0)
    lm = LM(**CONFIG)
    before = {name: p for name, p in lm.named_parameters()}
    quantized.train_trits(lm)
    assert all(isinstance(m, ternary.Linear) for m in quantized.linears(lm).values())
    assert {name: p for name, p in lm.named_parameters()} == before  # the same objects under the same names


def test_what_is_packed_is_what_was_trained(tmp_path):
    """Trained form, packed and read back with rounded inputs, through a file: one function three times."""
    torch.manual_seed(0)
    lm = LM(**CONFIG, std=0.2)
    lm.load_state_dict({name: x.bfloat16().float() for name, x in lm.state_dict().items()})
    small, report = quantized.quantized(lm, "ternary", None, IDS, feed=False)
    assert 1.6 < report.bits_per_weight < 2.1  # rows of 16 trits fill 4 bytes; a scale a layer
    path = checkpoints.save("tiny", lm, CONFIG, {}, tmp_path, packed=report.stored)
    again = checkpoints.load("tiny", tmp_path)
    with torch.no_grad():
        trained = quantized.train_trits(lm)(IDS)[0]
        assert torch.equal(again(IDS)[0], small(IDS)[0])
        far = [float((again(IDS)[0] - trained).square().mean())]
        far += [float((quantized.round_inputs(again)(IDS)[0] - trained).square().mean())]
    assert far[1] < far[0] / 4  # scales are float16 now: now and then an input falls on the next level
    assert far[1] < 1e-5 * float(trained.square().mean())
    back = checkpoints.packed("tiny", tmp_path)
    assert back.keys() == report.stored.keys()
    assert all(torch.equal(back[name].parts["codes"], q.parts["codes"]) for name, q in report.stored.items())
    assert path.stat().st_size < 2 * report.kept + sum(q.nbytes for q in report.stored.values()) + 6000


def test_gradients_reach_what_stands_before_rounded_inputs():
    lm = quantized.round_inputs(LM(**CONFIG), 4)
    lm.loss(IDS).backward()
    assert float(lm.embed.weight.grad.norm()) > 0


def test_the_experiment_in_miniature(tmp_path):
    rng = np.random.default_rng(0)
    words = np.frombuffer(b"the state of a model is what it keeps. ", np.uint8)
    text = texts.Text(*(np.tile(words, n) + rng.integers(0, 2, n * len(words)).astype(np.uint8) for n in (40, 9, 9)),
                      source="a made-up text")  # fmt: skip
    about = {"sizes": text.sizes}
    found = experiment.runs(small=True)
    for run in found.values():
        run |= {"task": about, "steps": 30, "T": 32, "watch": 15, "precision": "float32"}
    assert [bool(run.get("trits")) for run in found.values()] == [True, False]
    assert build(found["ternary-32"]).loss(IDS) != build(found["full-32"]).loss(IDS)
    args = argparse.Namespace(shard="0/1", only=None, have=[], out=tmp_path / "ternary.jsonl", list=False, device="cpu",
                              seconds=math.inf)  # fmt: skip
    keeper = experiment.Keeper(tmp_path, text, "ternary-32")
    sweep({name: experiment.study(run, experiment.GRID[:1]) for name, run in found.items()}, args=args,
          watch=keeper.watch, score=keeper.score,
          data=lambda run: [x.int() for x in map(torch.stack, zip(*map(text.batches("train", 8, 32), range(30)),
                                                                  strict=True))])  # fmt: skip
    best = {name: r["metrics"] for name, r in experiment.table(args.out).items()}
    assert set(best) == {"ternary-32", "full-32"}
    one = best["ternary-32"]
    assert one["validation_bits"] == pytest.approx(one["in_training"], abs=0.01)
    assert one["bytes"] < best["full-32"]["bytes"] / 3
    calls = one["operations"]
    assert calls["additions"] < calls["full additions"] * (1 - one["zeros"]) * 1.01
    path = experiment.publish(args.out, text, about, tmp_path / "weights")
    record = json.loads(path.with_suffix(".json").read_text())
    assert record["validation_bits"] == pytest.approx(one["validation_bits"], abs=1e-3)
    with pytest.raises(ValueError, match="text: ternary was trained on"):
        experiment.publish(args.out, text, {}, tmp_path / "weights")


def test_the_published_model_is_trits_and_reads_the_text():
    record, stored = checkpoints.record("ternary"), checkpoints.packed("ternary")
    lm = checkpoints.load("ternary")
    assert set(stored) == set(quantized.linears(lm))
    weights = sum(q.shape[0] * q.shape[1] for q in stored.values())
    assert sum(q.bits_per_weight * q.shape[0] * q.shape[1] for q in stored.values()) / weights == pytest.approx(
        record["bits_per_weight"], abs=1e-9
    )
    for name, q in stored.items():
        assert len(lm.get_submodule(name).weight.unique()) == 3, name
        assert q.shape == tuple(lm.get_submodule(name).weight.shape)
    size = (checkpoints.FOLDER / "ternary.safetensors").stat().st_size
    assert record["bytes"] < size < 1.04 * record["bytes"]
    words = texts.load()
    rows = words.windows("validation", 8, 512, context=256)
    ids, targets = next(iter(rows))
    with torch.no_grad():
        bits = quantized.round_inputs(lm).loss(ids, targets).item() / math.log(2)
    assert 1.5 < bits < 2.5  # the same model rounded to trits after training: 4.7
