"""The grids of the hybrid experiments: equal sizes, patterns, bytes of keys and values; files of kept models."""

import argparse
import json

import numpy as np
import pytest
import torch

from experiments import families, hybrids, small_models
from experiments.runner import corpus
from experiments.runner.equal import config, kv_bytes, parameters, spread, state_floats, widen
from experiments.runner.sweep import MODEL, key, sweep
from postx import text as texts
from postx.models import checkpoints
from postx.models.lm import LM, count


@pytest.mark.parametrize(("n", "where", "expected"), [
    (0, "spread", "SSSSSSSS"), (1, "first", "ASSSSSSS"), (1, "middle", "SSSSASSS"), (1, "last", "SSSSSSSA"),
    (2, "spread", "SSASSSAS"), (4, "spread", "SASASASA"), (8, "spread", "AAAAAAAA"),
])
def test_attention_stands_where_the_pattern_says(n, where, expected):
    assert spread("S", "A", 8, n, where) == expected


@pytest.mark.parametrize(("n", "where", "message"), [(9, "spread", "n: expected 0 to 8"), (2, "last", "n is 2")])
def test_an_impossible_place_is_named(n, where, message):
    with pytest.raises(ValueError, match=message):
        spread("S", "A", 8, n, where)


def test_every_hybrid_has_equal_parameters():
    for name, run in hybrids.runs().items():
        size = hybrids.SIZES[name.split("-")[0]]
        assert run["Y"] == (256 if name.startswith("text") else 4 + 64 + 64 + 16)
        if name.startswith("recall") and run["pattern"] not in ("SSSSSSSS", "RRRRRRRR"):
            continue  # the same grid, narrower
        with torch.device("meta"):
            total = count(LM(**{key: run[key] for key in MODEL if key in run})).total
        assert abs(total - size["target"]) < 0.05 * size["target"], name


def test_states_on_recall_are_equal_but_for_rglru():
    for pattern, table in (("SS", 512), ("GG", 512), ("RR", 64)):
        options = {letter: hybrids.TABLES["recall"][letter] for letter in set(pattern)}
        with torch.device("meta"):
            found = LM(pattern, 64, 8, options=options).state_floats(128) / 2
        assert table <= found <= table + 3 * 192 * 2, pattern  # what is beyond the table: the convolution's past


def test_every_family_has_equal_parameters():
    for script in (families, small_models):
        for name, run in script.runs().items():
            with torch.device("meta"):
                total = count(LM(**{key: run[key] for key in MODEL if key in run})).total
            assert abs(total - script.TARGET) < 0.05 * script.TARGET, name
            assert total <= 3_000_000


def test_the_grid_has_every_place_once():
    points = [point for points in hybrids.patterns().values() for point in points]
    assert len(points) == len(set(points)) == len(hybrids.FAMILIES) * len(hybrids.PLACES)
    assert set(hybrids.patterns()["AAAAAAAA"]) == {("ssd", 8, "spread"), ("gated_deltanet", 8, "spread")}
    for pattern, points in hybrids.patterns().items():
        for _, n, _ in points:
            assert sum(letter in "AL" for letter in pattern) == n


def test_the_width_is_the_closest_one():
    table = {"S": {"K": 16, "V": 64}, "A": {"H": 4}}
    F = widen("SSAS", 64, 256, 200_000, table)
    gap = {f: abs(parameters("SSAS", 64, 256, f, table) - 200_000) for f in (F - 8, F, F + 8)}
    assert min(gap, key=gap.get) == F
    with pytest.raises(ValueError, match="not 10 within 5%"):
        widen("SSAS", 64, 256, 10, table)


def test_kv_bytes_are_those_of_the_state():
    """Attention's state is keys and values and no other floats: two counts that do not share code."""
    for T in (128, 300):  # from the window on: its ring is as long as the window from the first token
        built = config("AALA", 64, 256, 250_000, {"L": {"window": 128}})
        assert kv_bytes("AALA", T, 64, {"L": {"window": 128}}) == 2 * state_floats(built, T)
    assert kv_bytes("SSSSASSS", 32_768, 128, hybrids.TABLES["text"]) == 2 * 128 * 32_768 * 2
    assert kv_bytes("SSSSSSSS", 32_768, 128, hybrids.TABLES["text"]) == 0


def test_a_kept_model_comes_back(tmp_path):
    built = config("SA", 16, 256, 20_000, {"S": {"K": 8}})
    torch.manual_seed(0)
    lm = LM(**built)
    path = checkpoints.save("tiny", lm, built, {"loss": 1.0}, tmp_path)
    again = checkpoints.load("tiny", tmp_path)
    ids = torch.arange(24).view(1, 24)
    with torch.no_grad():
        rounded = LM(**built)
        rounded.load_state_dict({key: x.bfloat16().float() for key, x in lm.state_dict().items()})
        assert torch.equal(again(ids)[0], rounded(ids)[0])
        assert not torch.equal(again(ids)[0], lm(ids)[0])  # what is stored is rounded
    assert checkpoints.record("tiny", tmp_path)["loss"] == 1.0
    assert json.loads(path.with_suffix(".json").read_text())["config"] == built
    assert checkpoints.kept(tmp_path) == ["tiny"]


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nobody\.safetensors is not in .*kept models there: none"):
        checkpoints.load("nobody", tmp_path)


def test_a_config_that_does_not_fit_is_refused(tmp_path):
    built = config("SA", 16, 256, 20_000, {"S": {"K": 8}})
    with pytest.raises(ValueError, match="does not build the model given"):
        checkpoints.save("tiny", LM(**built), built | {"pattern": "SAS"}, {}, tmp_path)


def text_of(n=200):
    """A text that a table of bytes knows by heart: 0, 1, 2, ... in every split."""
    return texts.Text(*(np.arange(n, dtype=np.uint8) for _ in texts.SPLITS), source="a count")


def test_a_text_survives_its_file(tmp_path):
    corpus.write(tmp_path / "t.npz", text_of(), "3.11.7")
    text, about = corpus.load(tmp_path / "t.npz")
    assert about["sha256"] == text_of().sha256
    assert about["python"] == "3.11.7"
    assert corpus.load(tmp_path / "t.npz", most=50)[0].sizes == {"train": 200, "validation": 50, "test": 50}


def test_batches_are_stretches_of_the_text():
    ids, targets = corpus.batches(text_of(250), {"B": 3, "T": 7, "steps": 5, "seed": 0})
    assert ids.shape == targets.shape == (5, 3, 7)
    assert torch.equal(ids + 1, targets)
    assert len(ids[:, :, 0].unique()) > 5


def test_the_best_point_of_a_curve_is_kept(tmp_path):
    """A curve whose minimum is in the middle: its weights are written, rounded to bf16, and not the last ones."""
    run = {**config("A", 16, 256, 20_000, {}), "name": "attention", "T": 16, "B": 2, "seed": 0, "steps": 3}
    keeper = small_models.Keeper(tmp_path, text_of())
    torch.manual_seed(0)
    lm, curve = LM(**{name: run[name] for name in MODEL if name in run}), []
    for step, scale in ((1, 1.0), (2, 0.0), (3, 2.0)):  # no weight, no logit: 8 bits a byte, below a random guess
        with torch.no_grad():
            for p in lm.parameters():
                p.copy_(torch.randn(p.shape) * scale)
        curve.append(keeper.watch(lm, run, step)["validation_bits"])
    found = keeper.score(lm, run)
    assert found["step"] == 2
    assert min(curve) == found["validation_bits"] == pytest.approx(8)
    assert not any(p.any() for p in checkpoints.load("attention", tmp_path).parameters())
    assert [point["step"] for point in checkpoints.record("attention", tmp_path)["curve"]] == [1, 2, 3]


def test_the_runner_draws_the_curve(tmp_path):
    run = {**config("A", 16, 256, 20_000, {}), "name": "a", "T": 8, "B": 2, "seed": 0, "steps": 5, "lr": 1e-3,
           "watch": 2, "task": {"name": "text"}}  # fmt: skip
    args = argparse.Namespace(shard="0/1", only=None, have=[], out=tmp_path / "a.jsonl", list=False, device="cpu",
                              seconds=60.0)  # fmt: skip

    def study():
        yield [run]

    (record,) = sweep({"a": study()}, data=lambda run: corpus.batches(text_of(), run), args=args,
                      score=lambda lm, run: {"done": True}, watch=lambda lm, run, step: {"seen": step})  # fmt: skip
    assert record["curve"] == [{"step": 2, "seen": 2}, {"step": 4, "seen": 4}, {"step": 5, "seen": 5}]
    assert len(record["loss"]) == 5


@pytest.mark.parametrize(("rival", "beaten"), [(9.0, True), (0.1, False)])
def test_only_what_beats_counting_is_published(tmp_path, monkeypatch, rival, beaten):
    text = text_of()
    about = {"name": "text", "sha256": text.sha256}
    run = {**config("A", 16, 256, 20_000, {}), "name": "attention", "T": 16, "B": 2, "seed": 0, "steps": 3,
           "task": about}  # fmt: skip
    lm = LM(**{name: run[name] for name in MODEL if name in run})
    keeper = small_models.Keeper(tmp_path, text)
    keeper.watch(lm, run, 3)
    keeper.score(lm, run)
    out = tmp_path / "small_models.jsonl"
    out.write_text(json.dumps({"key": key(run), "loss": [1.0], "loss_every": 3, "device": "CPU"}) + "\n")
    monkeypatch.setattr(small_models, "PATTERNS", {"attention": "A"})
    monkeypatch.setattr(small_models, "baseline", lambda text, orders: {"order": 2, "test": rival, "validation": {}})
    if not beaten:
        with pytest.raises(ValueError, match="attention: .* does not beat Kneser-Ney"):
            small_models.publish(out, text, about, tmp_path / "weights")
        return
    assert small_models.publish(out, text, about, tmp_path / "weights") == ["attention"]
    record = checkpoints.record("attention", tmp_path / "weights")
    reloaded = checkpoints.load("attention", tmp_path / "weights")
    assert record["test_bits"] == pytest.approx(corpus.bits(reloaded, text, "test", 16), abs=1e-4)
    assert record["train_loss"] == [1.0]
    with pytest.raises(ValueError, match="text: attention was trained on"):
        small_models.publish(out, text, about | {"sha256": "0"}, tmp_path / "weights")


PUBLISHED = [name for name in checkpoints.kept() if name in small_models.PATTERNS]


@pytest.mark.skipif(not PUBLISHED, reason="no models are published yet: experiments.small_models makes them")
def test_the_kept_models_are_what_they_say():
    assert set(small_models.PATTERNS) == set(PUBLISHED)
    known = {name: checkpoints.record(name) for name in PUBLISHED}
    total = [record["parameters"] for record in known.values()]
    assert max(total) <= min(3_000_000, 1.05 * min(total))
    for name, record in known.items():
        lm = checkpoints.load(name)
        assert count(lm).total == record["parameters"]
        assert (checkpoints.FOLDER / f"{name}.safetensors").stat().st_size < 8_000_000
        rival = record["kneser_ney"]
        assert len(rival["validation"]) >= 6
        assert rival["validation"][str(rival["order"])] == min(rival["validation"].values())
        assert record["test_bits"] < rival["test"]
        text, about = corpus.load(most=small_models.SLICE)
        if about["sizes"]["train"] == record["run"]["task"]["sizes"]["train"]:  # the same Python's text
            found = corpus.bits(lm, text, "validation", record["run"]["T"])
            assert found == pytest.approx(record["slice_bits"], abs=1e-3)
