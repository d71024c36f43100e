"""Faults of files and of the loop that writes them: damaged ones are named, evaluate()'s answers stay apart."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch as st
import torch
from safetensors import safe_open

from postx import cost, tasks
from postx.explore import Choice, Int
from postx.models import checkpoints
from postx.models.lm import LM
from postx.train import Config, measure, train


def batch(step):
    ids = torch.randint(0, 11, (2, 9), generator=torch.Generator().manual_seed(step))
    return ids[:, :-1], ids[:, 1:]


def lm():
    torch.manual_seed(0)
    return LM("A", 16, 11)


def run(path=None, evaluate=None, steps=3, **kw):
    config = Config(steps=steps, B=2, warmup=1, quiet=True, log_every=1, checkpoint=path and str(path), **kw)
    return train(lm(), batch, config, evaluate=evaluate)


def test_the_training_loss_stays_what_it_is():
    plain = run()
    measured = run(evaluate=lambda m: measure(m, [batch(99)]), evaluate_every=1)
    assert [row["loss"] for row in measured] == [row["loss"] for row in plain]
    assert all(row["evaluate_loss"] != row["loss"] and "accuracy" in row for row in measured)
    every = run(evaluate=lambda m: dict.fromkeys(plain[0], 7.0))[-1]
    assert {every[f"evaluate_{key}"] for key in plain[0]} == {7.0}
    assert every["step"] == 3


@pytest.mark.parametrize(
    "value",
    [0.5, np.float64(0.5), np.float32(0.5), np.int64(3), torch.tensor(0.5), torch.tensor([0.5]), np.arange(3),
     torch.ones(2, 2), [np.float32(1), torch.tensor(2)], {"a": np.bool_(True)}, None, "word", (1, 2)],
    ids=repr,
)  # fmt: skip
def test_what_evaluate_says_survives_its_checkpoint(value, tmp_path):
    path = tmp_path / "run.safetensors"
    log = run(path, evaluate=lambda m: {"found": value})
    assert path.exists()
    json.dumps(log)
    assert run(path, evaluate=lambda m: {"found": value}) == log


def test_what_no_checkpoint_holds_is_refused_at_the_first_evaluation():
    for said, name in (({"found": object()}, "'found' is a object"), ({3: 1.0}, "keys, got 3"), (7, "a dict, got int")):
        with pytest.raises(TypeError, match=f"evaluate: .*{name}"):
            run(evaluate=lambda m, said=said: said, evaluate_every=1)


def broken_runs(path):
    with safe_open(path, "pt") as file:
        head, held = file.metadata(), {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
    whole = path.read_bytes()
    run = json.loads(head["run"])

    def rewritten(tensors, head):
        return lambda to: st.save_file(tensors, to, metadata=head)

    return {
        "no random state": rewritten({k: v for k, v in held.items() if k != "rng.cpu"}, head),
        "another random state": rewritten(held | {"rng.cpu": torch.zeros(3, dtype=torch.uint8)}, head),
        "no step": rewritten(held, head | {"run": "{}"}),
        "a step in words": rewritten(held, head | {"run": json.dumps(run | {"step": "two"})}),
        "no JSON": rewritten(held, head | {"run": "{"}),
        "a config that is a list": rewritten(held, head | {"config": "[]"}),
        "no head": rewritten(held, None),
        "half": lambda to: to.write_bytes(whole[: len(whole) // 2]),
        "empty": lambda to: to.write_bytes(b""),
        "a folder": lambda to: to.mkdir(),
        "text": lambda to: to.write_text("not a checkpoint", encoding="utf8"),
    }


def test_damaged_checkpoints_are_named(tmp_path):
    run(tmp_path / "good")
    for i, (what, spoil) in enumerate(broken_runs(tmp_path / "good").items()):
        path = tmp_path / f"bad{i}"
        spoil(path)
        with pytest.raises(ValueError, match="^checkpoint: ") as raised:
            run(path)
        assert str(path) in str(raised.value), what


def test_damaged_and_foreign_models_are_named(tmp_path):
    source = checkpoints.FOLDER / "ssd.safetensors"
    with safe_open(source, "pt") as file:
        head, held = file.metadata(), {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
    config = json.loads(head["config"])
    other = lambda **more: {"config": json.dumps(config | more)}  # noqa: E731
    spoiled = {
        "half": lambda to: to.write_bytes(source.read_bytes()[:5000]),
        "empty": lambda to: to.write_bytes(b""),
        "a folder": lambda to: to.mkdir(),
        "no head": lambda to: st.save_file(held, to),
        "another program's head": lambda to: st.save_file(held, to, metadata={"format": "pt"}),
        "no config": lambda to: st.save_file(held, to, metadata={"config": "{}"}),
        "no JSON": lambda to: st.save_file(held, to, metadata={"config": "{"}),
        "a config that is a list": lambda to: st.save_file(held, to, metadata={"config": "[1]"}),
        "an unknown argument": lambda to: st.save_file(held, to, metadata=other(depth=3)),
        "another network": lambda to: st.save_file(held, to, metadata=other(network="X")),
        "another width": lambda to: st.save_file(held, to, metadata=other(D=8)),
        "a weight missing": lambda to: st.save_file(dict(list(held.items())[1:]), to, metadata=head),
        "packed by nobody": lambda to: st.save_file(held, to, metadata=head | {"packed": '{"blocks.0": {}}'}),
    }
    for i, (what, spoil) in enumerate(spoiled.items()):
        folder = tmp_path / str(i)
        folder.mkdir()
        shutil.copy(source.with_suffix(".json"), folder)
        spoil(folder / "ssd.safetensors")
        with pytest.raises(ValueError, match="^name: ") as raised:
            checkpoints.load("ssd", folder)
        assert str(folder / "ssd.safetensors") in str(raised.value), what
    (tmp_path / "ssd.json").write_text("{", encoding="utf8")
    with pytest.raises(ValueError, match="name: .*ssd.json is damaged"):
        checkpoints.record("ssd", tmp_path)
    with pytest.raises(ValueError, match="config: .* does not build a LM"):
        checkpoints.save("x", lm(), {"pattern": "A"}, {}, folder=tmp_path)


def test_a_kept_model_does_not_depend_on_the_process():
    want = checkpoints.load("ternary").state_dict()
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        before = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            got = checkpoints.load("ternary").state_dict()
        finally:
            torch.set_default_dtype(before)
        assert all(torch.equal(got[key], want[key]) and got[key].dtype == want[key].dtype for key in want)


# Sizes, alphabets, options: what is refused says its name


@pytest.mark.parametrize("bad", [2.5, float("nan"), float("inf"), True, "8", None, 0, -3, 1j])
def test_costs_refuse_what_is_no_size(bad):
    for call in (
        lambda: cost.softmax_attention(bad, K=8),
        lambda: cost.matmul(bad, 2, 2),
        lambda: cost.ssm_scan(4, D=4, N=bad),
        lambda: cost.chunked_recurrence(9, K=4, chunk=bad),
    ):
        with pytest.raises(ValueError, match=r"^\w+: expected a whole number >= 1"):
            call()
    with pytest.raises(ValueError, match="past: "):
        cost.softmax_attention(4, K=8, past=-1)


def test_costs_take_sizes_of_any_kind_of_number():
    for form in ("tiled", "naive"):
        for causal in (True, False):
            want = cost.softmax_attention(3000, K=8, form=form, causal=causal)
            for T in (3000.0, np.int64(3000), np.float32(3000), 3e3):
                assert cost.softmax_attention(T, K=8, form=form, causal=causal) == want


def test_tasks_refuse_what_is_no_size():
    for call, name in (
        (lambda: tasks.phone_book(1, 400, pairs=3, name=14), "name"),
        (lambda: tasks.recall(1, 40, pairs=2.0), "pairs"),
        (lambda: tasks.recall(1, None, pairs=2), "T"),
        (lambda: tasks.recall(1, 40, pairs=2, questions=1.5), "questions"),
        (lambda: tasks.recall(1, 40, pairs=2, power=float("inf")), "power"),
        (lambda: tasks.copying(1, 9.0), "T"),
        (lambda: tasks.copying(1, 9, tokens=3.0), "tokens"),
        (lambda: tasks.copying(1, 9, tokens=(1, 2, 3)), "tokens"),
        (lambda: tasks.induction(1, 9, distance=2.5), "distance"),
        (lambda: tasks.selective_copying(1, 9, tokens=2, symbols=1.5), "symbols"),
        (lambda: tasks.parity(True, 3), "B"),
    ):
        with pytest.raises(ValueError, match=f"^{name}: "):
            call()
    ids, targets = tasks.phone_book(2, 400, pairs=3, name=13)  # 26^13 fits
    assert ids.shape == targets.shape == (2, 400)


def test_options_may_be_arrays():
    options = np.zeros(2), np.ones(2), np.zeros((2, 1))
    choice = Choice(*options)
    assert [choice.index(x.copy(), "x") for x in options] == [0, 1, 2]
    tensors = Choice(torch.zeros(2), torch.ones(2), start=torch.ones(2))
    assert tensors.index(tensors.start, "start") == 1
    with pytest.raises(ValueError, match="is not on the grid"):
        choice.index(np.full(2, 3.0), "x")
    assert Int(1, 3).index(2, "n") == 1


def test_the_scripts_of_these_faults_left_nothing_behind(tmp_path):
    """A run that stops in evaluate leaves no half-written checkpoint."""
    path = Path(tmp_path, "run.safetensors")
    with pytest.raises(TypeError):
        run(path, evaluate=lambda m: {"found": object()})
    assert not list(tmp_path.glob("*.part"))
