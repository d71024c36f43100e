import numpy as np
import pytest
import torch

from experiments import one_recipe
from experiments.runner import corpus
from postx.models import checkpoints
from postx.text import Text

RNG = np.random.default_rng(0)


def text(train=4 * 64 * 8 + 1):
    parts = {split: RNG.integers(1, 256, 2000, dtype=np.uint8) for split in ("validation", "test")}
    return Text(train=(np.arange(train) % 256).astype(np.uint8), **parts, source="numbers")


def test_every_byte_is_asked_for_once_and_seeds_give_the_order():
    run = {"B": 4, "T": 8, "seed": 0, "steps": 3}
    told = Text(np.arange(97, dtype=np.uint8), np.ones(9, np.uint8), np.ones(9, np.uint8), "97 bytes, all different")
    ids, targets = one_recipe.once(told, run)
    assert ids.shape == targets.shape == (3, 4, 8)
    assert sorted(targets.flatten().tolist()) == list(range(1, 97))
    assert torch.equal(targets, ids + 1)
    again, other = (one_recipe.once(told, run | {"seed": seed})[0] for seed in (0, 1))
    assert torch.equal(ids, again)
    assert not torch.equal(ids, other)
    with pytest.raises(ValueError, match="steps: 4 of 4 windows of 8 bytes are 16, and the text has 12"):
        one_recipe.once(told, run | {"steps": 4})


def test_models_have_equal_parameters():
    found = one_recipe.runs()
    counts = {}
    for name, run in found.items():
        with torch.device("meta"):
            counts[name] = sum(p.numel() for p in one_recipe.make(run | {"seed": 0}).parameters())
    assert max(counts.values()) < 1.05 * one_recipe.TARGET
    assert min(counts.values()) > 0.95 * one_recipe.TARGET
    assert found["ternary"]["pattern"] == found["attention"]["pattern"]


def test_a_study_tries_rates_on_a_share_and_reads_the_whole_with_every_seed():
    told, run = text(), one_recipe.runs(small=True)["attention"]
    study = one_recipe.study(run, told)
    tried = study.send(None)
    assert {r["steps"] for r in tried} == {1}
    assert {r["seed"] for r in tried} == {0}
    records = [{"run": r, "metrics": {"score": -abs(r["lr"] - 2e-3)}} for r in tried]
    whole = study.send(records)
    assert [(r["steps"], r["seed"], r["lr"]) for r in whole] == [(8, seed, 2e-3) for seed in one_recipe.SEEDS]
    assert all("share" not in r for r in whole)


@pytest.mark.parametrize("name", ["hybrid", "ternary", "masked"])
def test_the_best_seed_is_kept_as_it_was_judged(tmp_path, name):
    told, run = text(), one_recipe.runs(small=True)[name] | {"steps": 8, "lr": 1e-3}
    judge = one_recipe.Judge(tmp_path, told)
    found = {}
    with torch.no_grad():
        for seed in (0, 1):
            lm = one_recipe.make(run | {"seed": seed}).eval()
            found[seed] = judge.score(lm, run | {"seed": seed})
            assert found[seed]["score"] == -found[seed]["validation_bits"]
    best = min(found, key=lambda seed: found[seed]["validation_bits"])
    known = checkpoints.record(name, tmp_path)
    assert known["run"]["seed"] == best
    assert known["validation_bits"] == found[best]["validation_bits"]
    net = checkpoints.load(name, tmp_path)
    if name == "hybrid":  # a ternary file holds what trits are rounded from; a bound is drawn
        assert judge.bits(net, run, told)["test_bits"] == pytest.approx(found[best]["test_bits"], abs=1e-6)


def test_a_text_is_cut_in_even_stretches():
    told = text(400_000)
    short = corpus.cut(told, 200_000)
    assert len(short.train) == 3 * 65_536
    assert np.array_equal(short.train[:100], told.train[:100])
    assert np.array_equal(short.train[-100:], told.train[-100:])
    with pytest.raises(ValueError, match="most: expected 65536 bytes or more, got 9"):
        corpus.cut(told, 9)
