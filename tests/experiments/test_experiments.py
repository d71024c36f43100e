"""The experiments' runner: studies, records, resuming, and steps that a CUDA graph can hold."""

import argparse
import dataclasses
import importlib
import json
import math
from pathlib import Path

import pytest
import torch
from tiny import NoHost

from experiments import induction, recall, tracking
from experiments.runner import results, sweep
from experiments.runner.program import Program
from postx import tasks, train
from postx.models.lm import LM

CPU = torch.device("cpu")


def arguments(out, **more):
    known = {"out": out, "have": [], "device": "cpu", "shard": "0/1", "seconds": math.inf, "streams": 2}
    return argparse.Namespace(**known | {"small": True, "only": None, "list": False} | more)


def run(**more):
    known = {
        "name": "toy",
        "pattern": "C",
        "D": 8,
        "Y": 12,
        "task": {},
        "B": 2,
        "T": 6,
        "steps": 4,
        "lr": 1e-2,
        "seed": 0,
    }
    return known | more


def batches(run):
    rng = torch.Generator().manual_seed(run["seed"])
    ids = torch.randint(run["Y"], (run["steps"], run["B"], run["T"]), generator=rng)
    return ids, ids


def wide(lm, run):
    """A made-up score with its best learning rate at 0.1."""
    return {"score": -abs(math.log10(run["lr"]) + 1)}


def test_each_rank_has_a_gpu_and_a_share_of_the_studies():
    assert sweep.place({}, 0) == ("cpu", "0/1")
    assert sweep.place({}, 8) == ("cuda", "0/1")
    ranks = [{"RANK": str(r), "LOCAL_RANK": str(r % 4), "WORLD_SIZE": "8"} for r in range(8)]
    assert [sweep.place(rank, 4) for rank in ranks] == [(f"cuda:{r % 4}", f"{r}/8") for r in range(8)]
    assert sweep.place(ranks[3], 0) == ("cpu", "3/8")


def test_a_grid_is_extended_until_its_best_rate_is_interior(tmp_path):
    def study():
        best = yield from sweep.tune(run(), (1e-3, 1e-2), "score")
        assert best["run"]["lr"] == 0.1
        yield [best["run"] | {"seed": seed} for seed in (0, 1)]

    out = tmp_path / "out.jsonl"
    records = sweep.sweep({"toy": study()}, data=batches, score=wide, args=arguments(out))
    assert [(r["run"]["lr"], r["run"]["seed"]) for r in records[:4]] == [
        (1e-3, 0),
        (1e-2, 0),
        (0.1, 0),
        (1.0, 0),
    ]
    (row,) = results.table(out)
    assert (row["lr"], row["lr_interior"], row["seeds"]) == (0.1, True, 2)
    assert row["parameters"] == sum(p.numel() for p in LM("C", 8, 12).parameters())
    assert "0.000" in results.show([row], ["score"])


def test_what_is_on_file_is_not_trained_again_and_failures_are(tmp_path):
    out, asked = tmp_path / "out.jsonl", []

    def score(lm, run):
        asked.append(run["seed"])
        if run["seed"] == 1 and len(asked) < 3:
            raise RuntimeError("planted")
        return {"score": 1.0}

    def study():
        yield [run(seed=seed) for seed in (0, 1, 2)]

    for _ in range(2):
        sweep.sweep({"toy": study()}, data=batches, score=score, args=arguments(out))
    assert asked == [0, 1, 2, 1]
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert ["planted" in line.get("error", "") for line in lines] == [False, True, False, False]
    assert all(line["metrics"] for line in results.read(out))


def test_a_run_that_diverges_is_recorded_as_such(tmp_path):
    def study():
        records = yield [run(lr=1e30, clip=1e30, steps=30, warmup=0), run()]
        assert records[0]["metrics"] is None
        assert records[0]["nonfinite_step"] >= 0
        assert sweep.best(records, "score") is records[1]

    records = sweep.sweep({"toy": study()}, data=batches, score=wide, args=arguments(tmp_path / "out.jsonl"))
    assert len(records) == 2


def test_shards_share_the_studies_out_and_time_stops_new_runs(tmp_path):
    def study(name):
        yield [run(name=name)]

    made = []
    for part in ("0/2", "1/2"):
        args = arguments(tmp_path / f"{part[0]}.jsonl", shard=part)
        made += [
            r["run"]["name"]
            for r in sweep.sweep({n: study(n) for n in "abc"}, data=batches, score=wide, args=args)
        ]
    assert sorted(made) == ["a", "b", "c"]
    assert not sweep.sweep(
        {"a": study("a")}, data=batches, score=wide, args=arguments(tmp_path / "x", seconds=0)
    )


def test_a_program_is_the_training_loop():
    """Losses and weights of `Program` on the CPU are those of `postx.train.train` on the same batches."""
    spec = run(steps=6)
    ids, targets = batches(spec)
    program = Program(sweep.build(spec), ids, targets, spec, CPU)
    for _ in range(spec["steps"]):
        program.step()
    lm = sweep.build(spec)
    log = train.train(lm, train.stored(ids, targets), dataclasses.replace(program.config, log_every=1))
    assert torch.allclose(program.losses(), torch.tensor([row["loss"] for row in log], dtype=torch.float64))
    assert all(torch.equal(a, b) for a, b in zip(lm.parameters(), program.lm.parameters(), strict=True))


@pytest.mark.parametrize("name", sorted(recall.MIXERS))
def test_a_step_asks_nothing_of_the_host(name):
    """On torch's meta device the Layers choose what they choose on a GPU, and a value cannot be read at all."""
    letter, options = recall.MIXERS[name]
    with torch.device("meta"):
        lm = LM([letter] * 2, 32, 40, options={letter: options})
        ids = torch.zeros(2, 70, dtype=torch.int64)
    with NoHost():
        lm.loss(ids, ids).backward()
    assert all(p.grad is not None for p in lm.parameters())


def test_the_guard_sees_a_read():
    with NoHost(), pytest.raises(AssertionError, match="_local_scalar_dense"):
        torch.zeros(1).item()


@pytest.mark.parametrize("name", ["attention, ALiBi", "attention, window 64", "Gated DeltaNet", "Hyena"])
def test_long_rows_are_read_in_blocks(name):
    """The answer after blocks through the state is that of one call."""
    spec = next(induction.study(name, width=16))[0]
    lm = sweep.build(spec).double().eval()
    whole, blocks = (induction.at_length(lm, 100, rows=16, block=n) for n in (100, 32))
    assert whole == blocks
    ids = torch.randint(20, (1, 100))
    with torch.no_grad():
        want, S = lm(ids)[0], None
        for piece in ids.split(32, 1):
            got, S = lm(piece, S)
    assert (got[:, -1] - want[:, -1]).abs().max() < 1e-9


def test_a_row_that_is_asked_again_has_one_answer_everywhere():
    ids, targets = tasks.induction(32, 40, symbols=16, seed=1)
    before = ids.clone()
    induction.asked_again(ids, targets, 3, seed=0)
    first = (before == tasks.ASK).int().argmax(1)
    for row, asked, start in zip(ids, targets, first, strict=True):
        places = torch.nonzero(asked >= 0).flatten()
        assert 1 <= len(places) <= 4
        assert (row[places] == tasks.ASK).all()
        assert (asked[places] == row[start + 1]).all()
        assert (row[places[:-1] + 1] == row[start + 1]).all()
        assert (row == tasks.ASK).sum() == len(places) + 1
    assert ((targets >= 0).sum(1) > 1).any()
    assert (ids[:, : int(first.min()) + 2] == before[:, : int(first.min()) + 2]).all()


@pytest.mark.parametrize("script", ["recall", "induction", "copying"])
def test_the_data_of_an_experiment(script):
    module = importlib.import_module(f"experiments.{script}")
    study = module.study(next(iter(getattr(module, "MIXERS", None) or module.MODELS)), steps=8, B=4)
    spec = next(study)[0]
    ids, targets = module.data(spec)
    assert ids.shape == targets.shape == (8, 4, spec["T"])
    assert ids.min() >= 0
    assert max(ids.max(), targets.max()) < spec["Y"]
    assert ((targets == -100) | (targets >= 4)).all()
    assert (targets >= 0).any(-1).all()
    assert not torch.equal(ids[0], ids[1])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")
def test_runs_side_by_side_on_a_gpu_equal_the_cpu(tmp_path):
    def study(pattern):
        yield [run(name=pattern, pattern=pattern, steps=20, seed=seed) for seed in (0, 1)]

    found = []
    for device in ("cpu", "cuda"):
        args = arguments(tmp_path / f"{device}.jsonl", device=device, streams=3)
        found.append(sweep.sweep({p: study(p) for p in "AC"}, data=batches, score=wide, args=args))
    losses = [{(r["run"]["name"], r["run"]["seed"]): r["loss"] for r in records} for records in found]
    assert losses[0].keys() == losses[1].keys()
    assert len(losses[0]) == 4
    for name, on_cpu in losses[0].items():
        assert max(abs(a - b) for a, b in zip(on_cpu, losses[1][name], strict=True)) < 1e-3


def test_a_file_of_further_seeds_alone_has_no_rows(tmp_path):
    """Its rates were tried in another file, so nothing here says which rate won; beside it a swept name has its row."""

    def line(name, lr, seed):
        spec = run(name=name, lr=lr, seed=seed)
        return {"key": sweep.key(spec), "run": spec, "metrics": {"score": lr}, "parameters": 1, "state_floats": 1}

    further = [line("seeds alone", 1e-2, seed) for seed in (1, 2)]
    swept = [line("swept", lr, 0) for lr in (1e-3, 1e-2)]
    for lines, names in ((further, []), (further + swept, ["swept"])):
        path = tmp_path / f"{len(lines)}.jsonl"
        path.write_text("".join(json.dumps(x) + "\n" for x in lines))
        rows = results.table(path)
        assert [row["name"] for row in rows] == names
        assert len(results.show(rows, ["score"]).splitlines()) == 2 + len(names)


def test_the_results_in_the_repository_are_complete():
    """Whatever results are kept can be read, and no failed run hides among them."""
    for path in Path(results.RESULTS).glob("*.jsonl"):
        records = results.read(path)
        assert records, path.name
        assert all("error" not in r for r in records), path.name


def test_the_large_recall_study_asks_beyond_what_it_trained_and_leaves_the_small_ones_keys():
    small = next(recall.study("attention"))
    known = {r["key"] for r in results.read(results.RESULTS / "recall.jsonl")}
    assert {sweep.key(r) for r in small} <= known
    tiny = recall.LARGE | {"keys": 40, "values": 30, "fillers": 6, "pairs": [2, 4], "longer": [[48, 8], [96, 16]]}
    (spec, *_) = next(recall.study("KDA", widths=(16,), steps=3, B=4, T=24, task=tiny))
    assert spec["Y"] == tasks.vocabulary(keys=40, values=30, fillers=6)
    ids, targets = recall.data(spec)
    assert ids.shape == (3, 4, 24)
    assert int(ids.max()) < spec["Y"]
    lm = sweep.build(spec).eval()
    found = recall.score(lm, spec)
    assert set(found) == {"2", "4", "8", "16", "score"}
    assert found["score"] == pytest.approx(sum(found[n] for n in ("2", "4", "8", "16")) / 4)
    assert recall.LARGE["longer"][-1][1] >= 1024


@pytest.mark.parametrize("task", tracking.TASKS)
def test_tracking_asks_what_it_says(task):
    for name in tracking.MODELS:
        (spec, *_) = next(tracking.study(name, task, steps=2, B=4, width=16))
        ids, targets = tracking.data(spec)
        assert ids.shape == targets.shape == (2, 4, 64)
        assert max(int(ids.max()), int(targets.max())) < spec["Y"]
        assert sweep.build(spec)(ids[0].long())[0].shape == (4, 64, spec["Y"])
    if task == "rewriting":
        asked = (targets >= 0).sum(-1)
        assert (asked == 8).all()
        first = {int((row >= 0).nonzero()[0]) for row in targets.flatten(0, 1)}
        assert first == {2 * 8, 2 * 24}  # both kinds of rows are trained
    found = tracking.score(sweep.build(spec).eval(), spec | {"task": spec["task"] | {"longer": [80]}})
    assert set(found) == ({"rewritten", "once", "score"} if task == "rewriting" else {"64", "80", "score"})


def test_one_option_is_the_difference_within_a_pair():
    for name, (letter, options) in tracking.MODELS.items():
        if name.endswith(", beta to 2"):
            assert tracking.MODELS[name.removesuffix(", beta to 2")] == (
                letter, {k: v for k, v in options.items() if k != "negative_eigenvalues"}
            )  # fmt: skip
