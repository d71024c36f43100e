"""The loop on a tiny model, bit for bit."""

import copy
import dataclasses
import math

import pytest
import torch
from safetensors import safe_open
from tiny import SIZES, SMALL, Tiny, batch, numbers, one_thread, same, weights
from torch import nn

from postx import mixers, tasks
from postx.train import Config, decayed, measure, stored, train

pytestmark = pytest.mark.usefixtures(one_thread.__name__)


def test_the_loss_falls_and_the_answers_come():
    model = Tiny(dropout=0.0)
    held_out = [tasks.recall(64, 16, **SIZES, seed=(9, 9))]
    before = measure(model, held_out)
    log = train(model, batch, dataclasses.replace(SMALL, steps=150, log_every=50))
    after = measure(model, held_out)
    assert [row["step"] for row in log] == [50, 100, 150]
    assert log[-1]["loss"] < log[0]["loss"] < math.log(32) + 1
    assert after["loss"] < before["loss"] - 0.5
    assert after["bits"] == pytest.approx(after["loss"] / math.log(2))
    assert after["asked"] == 64 * 3
    assert log[-1]["tokens"] == 150 * 8 * 16


def test_equal_to_a_loop_written_out():
    """AdamW by its formula (Loshchilov and Hutter 2017), clipping and the schedule, in plain tensors."""
    model, mirror = Tiny(dropout=0.0), Tiny(dropout=0.0)
    config = dataclasses.replace(SMALL, clip=0.5)
    log = train(model, batch, config)
    moments = {name: (torch.zeros_like(p), torch.zeros_like(p)) for name, p in mirror.named_parameters()}
    for step in range(12):
        ids, targets = batch(step)
        loss = nn.functional.cross_entropy(mirror(ids)[0][targets != -100], targets[targets != -100])
        mirror.zero_grad()
        loss.backward()
        norm = math.sqrt(sum(float(p.grad.pow(2).sum()) for p in mirror.parameters()))
        assert log[step]["loss"] == pytest.approx(loss.item(), rel=1e-4)
        assert log[step]["norm"] == pytest.approx(norm, rel=1e-3)
        lr = 1e-2 * (step + 1) / 3
        if step >= 3:
            lr = 1e-2 * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * (step - 3) / 8)))
        assert log[step]["lr"] == pytest.approx(lr)
        with torch.no_grad():
            for name, p in mirror.named_parameters():
                m, v = moments[name]
                g = p.grad * min(1.0, 0.5 / norm)
                m.lerp_(g, 0.1)
                v.lerp_(g * g, 0.05)
                p.mul_(1 - lr * (0.1 if p.ndim == 2 else 0))
                p.sub_(lr * (m / (1 - 0.9 ** (step + 1))) / ((v / (1 - 0.95 ** (step + 1))).sqrt() + 1e-8))
    for (name, p), q in zip(model.named_parameters(), mirror.parameters(), strict=True):
        assert torch.allclose(p, q, rtol=0, atol=2e-4), name


def test_the_schedule_ends_on_its_floor():
    config = Config(steps=100, lr=2.0, warmup=10, floor=0.25)
    rates = [config.rate(step) for step in range(100)]
    assert rates[0] == 0.2
    assert rates[9] == rates[10] == 2.0
    assert rates[-1] == 0.5
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert Config(steps=1, warmup=0).rate(0) == Config().lr


def test_decay_pulls_on_matrices_only():
    for name in mixers.names():
        for path, p in mixers.load(name).Layer(16).named_parameters():
            last = path.split(".")[-1]
            if p.ndim < 2 or last.startswith(("bias", "log_", "decay_", "u_", "skip_")):
                assert not decayed(p), f"{name}.{path}"
            elif last == "weight":
                assert decayed(p), f"{name}.{path}"
    mixed = mixers.load("rwkv7").Layer(16)
    for p in (mixed.mix_6D, copy.deepcopy(mixed).double().mix_6D):
        assert not decayed(p)
    assert decayed(mixers.load("rwkv6").Layer(16).mix_up_5RD)


@pytest.mark.parametrize("killed", [1, 5, 11])
def test_killed_and_resumed_is_the_unbroken_run(tmp_path, killed):
    """Bit for bit: weights, moments, losses, and dropout's random numbers; the kill falls between two saves."""
    config = dataclasses.replace(
        SMALL, checkpoint=str(tmp_path / "run.safetensors"), checkpoint_every=2, log_every=3
    )

    def evaluate(model):
        return {"held": measure(model, [batch(100)])["loss"], "noise": torch.rand(()).item()}

    config = dataclasses.replace(config, evaluate_every=4)
    whole, broken = Tiny(), Tiny()
    log = train(whole, batch, dataclasses.replace(config, checkpoint=None), evaluate=evaluate)

    def until_killed(step):
        if step == killed:
            raise KeyboardInterrupt
        return batch(step)

    with pytest.raises(KeyboardInterrupt):
        train(broken, until_killed, config, evaluate=evaluate)
    assert not same(weights(whole), weights(broken))
    # Nothing is saved before step 2; after it, whatever weights the model has are replaced.
    resumed, steps = Tiny(seed=3 if killed > 2 else 0), []

    def watched(step):
        steps.append(step)
        return batch(step)

    again = train(resumed, watched, config, evaluate=evaluate)
    assert steps == list(range(killed // 2 * 2, 12))
    assert numbers(again) == numbers(log)
    assert same(weights(resumed), weights(whole))
    assert numbers(train(Tiny(seed=4), watched, config)) == numbers(log)  # finished: nothing is run again
    assert steps[-1] == 11


def test_evaluation_changes_no_number():
    one, two = Tiny(), Tiny()
    train(one, batch, SMALL)
    train(
        two,
        batch,
        dataclasses.replace(SMALL, evaluate_every=1),
        evaluate=lambda m: {"x": torch.rand(()).item()},
    )
    assert same(weights(one), weights(two))
    assert two.training


def test_the_callers_random_state_is_left_alone():
    torch.manual_seed(5)
    want = torch.rand(3)
    model = Tiny()
    torch.manual_seed(5)
    train(model, batch, SMALL)
    assert torch.equal(torch.rand(3), want)


def test_a_checkpoint_is_whole_and_readable(tmp_path):
    path = tmp_path / "deep" / "run.safetensors"
    model = Tiny()
    train(model, batch, dataclasses.replace(SMALL, checkpoint=str(path)))
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    with safe_open(path, "pt") as file:
        names = set(file.keys())
        assert torch.equal(file.get_tensor("model.embed.weight"), model.embed.weight)
        assert file.get_tensor("optimizer.wide.bias.step") == 12
        assert '"steps": 12' in file.metadata()["config"]
    assert "model.head.weight" not in names  # tied: stored once


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lr": 0.5}, "of a run with lr=0.01, this one has 0.5"),
        ({"data": "words"}, "data='', this one has 'words'"),
    ],
)
def test_another_runs_checkpoint_is_refused(tmp_path, change, message):
    config = dataclasses.replace(SMALL, steps=2, checkpoint=str(tmp_path / "run"))
    train(Tiny(), batch, config)
    with pytest.raises(ValueError, match=message):
        train(Tiny(), batch, dataclasses.replace(config, **change))
    with pytest.raises(ValueError, match="has shape .*, the model"):
        train(Tiny(D=32), batch, config)
    (tmp_path / "run").write_bytes((tmp_path / "run").read_bytes()[:500])
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        train(Tiny(), batch, config)


def test_progress_is_one_line_and_quiet_is_quiet(capsys):
    train(Tiny(), batch, dataclasses.replace(SMALL, steps=4, quiet=False))
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.count("\r") == 4
    assert shown.err.count("\n") == 1
    assert "4/4 [####################] loss" in shown.err
    train(Tiny(), batch, SMALL)
    assert capsys.readouterr() == ("", "")


def test_bfloat16_keeps_weights_in_float32():
    model = Tiny(dropout=0.0)
    log = train(model, batch, dataclasses.replace(SMALL, steps=60, dtype="bfloat16", log_every=20))
    assert log[-1]["loss"] < log[0]["loss"]
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    exact = train(Tiny(dropout=0.0), batch, dataclasses.replace(SMALL, steps=60, log_every=20))
    assert log[0]["loss"] != exact[0]["loss"]
    assert log[0]["loss"] == pytest.approx(exact[0]["loss"], rel=0.02)


def test_a_models_own_loss_is_what_is_minimised():
    model = Tiny(dropout=0.0)
    model.loss = lambda ids, targets: model(ids)[0].pow(2).mean()
    log = train(model, batch, SMALL)
    assert log[-1]["loss"] < 0.9 * log[0]["loss"]
    assert log[0]["loss"] < 1.0  # a cross-entropy over 32 tokens starts above 3


def test_stored_serves_in_turn():
    ids, targets = (torch.stack(x) for x in zip(*(batch(step) for step in range(3)), strict=True))
    serve = stored(ids, targets)
    assert torch.equal(serve(4)[0], ids[1])
    assert torch.equal(serve(5)[1], targets[2])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "steps: expected at least 1"),
        ({"lr": -1.0}, "lr: expected a number above 0"),
        ({"lr": math.nan}, "lr: expected a number above 0"),
        ({"floor": 1.5}, "floor: expected a part of lr"),
        ({"dtype": "float16"}, "dtype: expected one of float32, bfloat16"),
        ({"cuda_graph": True}, "cuda_graph: needs device='cuda'"),
        ({"B": 4}, r"batch: expected ids_BT and targets_BT with B=4, got \(8, 16\)"),
    ],
)
def test_bad_configs(change, message):
    with pytest.raises(ValueError, match=message):
        train(Tiny(), batch, dataclasses.replace(SMALL, **change))
