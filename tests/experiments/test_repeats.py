"""Repeated strings of a text: which bytes they are, where a gap lies, and what was recorded of it."""

import json

import numpy as np
import pytest
import torch

from experiments import repeats
from experiments.runner import results
from postx import text
from postx.models import checkpoints
from postx.text import Text

RECORD = json.loads((results.RESULTS / "repeats.json").read_text(encoding="utf8"))
PAIRS = ("ssd - attention", "hybrid - attention", "ssd - hybrid")


def test_a_byte_has_one_class():
    kind, copied = repeats.classes(b"abcabcabd", 3, {b"abc"})
    assert [repeats.CLASSES[k] for k in kind[2:]] == ["new"] * 3 + ["known", "looked up", "looked up", "changed"]
    assert copied.tolist() == [-1] * 5 + [1, 1, 1, 0]
    kind, copied = repeats.classes(b"abxaby" + b"abx", 3)  # an older follower counts, the last one is what is copied
    assert (kind[8], copied[8]) == (3, 0)


def test_strings_are_all_there_are():
    assert repeats.strings(np.frombuffer(b"abcab", np.uint8), 2) == {b"ab", b"bc", b"ca"}


def test_windows_are_stretches_of_the_text_and_every_second_batch_is_asked():
    data = np.arange(6000, dtype=np.int64) % 251
    made = Text(train=data, validation=data, test=data.astype(np.uint8), source="counted")
    found = list(repeats.windows(made, "test"))
    assert len(found) == 16  # of 24 windows the first 8 and the last 8
    asked = [np.frombuffer(window, np.uint8)[mask] for window, mask in found]
    assert np.array_equal(np.concatenate(asked[:8]), data[:2048])
    assert np.array_equal(np.concatenate(asked[8:]), data[4096:])
    assert found[3][0] == bytes(data[512:1024].astype(np.uint8))


def test_the_error_of_a_ratio_is_that_of_many_draws():
    rng = np.random.default_rng(0)
    draws = []
    for _ in range(400):
        b = rng.uniform(1, 3, 200)
        draws.append(repeats.ratio(2 * b + rng.normal(size=200), b))
    values, errors = np.array(draws).T
    assert values.mean() == pytest.approx(2, abs=0.01)
    assert errors.mean() == pytest.approx(values.std(), rel=0.1)


def test_gaps_are_where_they_were_put():
    kind = np.random.default_rng(0).integers(0, 4, (50, 10))
    kind[3, 5:] = -1
    base = np.ones((50, 10))
    base[3, 5:] = np.nan
    found = repeats.summary(kind, {"attention": base, "hybrid": base + (kind == 3), "ssd": base + (kind == 3) * 2.0})
    gap = found["gap"]["ssd - attention"]
    assert gap["looked up"] == {"part": [1.0, 0.0], "bits": [2.0, 0.0]}
    assert gap["new"]["part"] == [0.0, 0.0]
    assert sum(found["share"].values()) == pytest.approx(1, abs=1e-3)


def test_the_record_adds_up():
    assert RECORD["models"] == {name: checkpoints.record(name)["key"] for name in repeats.MODELS}
    for found in RECORD["n"].values():
        share = found["share"]
        assert sum(share.values()) == pytest.approx(1, abs=1e-3)
        for model in repeats.MODELS:
            whole = sum(share[c] * found["bits"][c][model][0] for c in repeats.CLASSES if found["bits"][c])
            assert whole == pytest.approx(checkpoints.record(model)["test_bits"], abs=0.08)  # of all of the text
        for pair in PAIRS:
            parts = [found["gap"][pair][c]["part"][0] for c in repeats.CLASSES if c in found["gap"][pair]]
            assert sum(parts) == pytest.approx(1, abs=1e-3)
    copies = [RECORD["n"][str(n)]["copy"] for n in repeats.LENGTHS]
    assert copies == sorted(copies)


def test_the_recorded_shares_are_those_of_the_text():
    words = text.load()
    if words.sha256 != RECORD["sha256"]:
        pytest.skip("another Python, another text")
    rows = list(repeats.windows(words, "test"))
    assert len(rows) == RECORD["windows"]
    trained = repeats.strings(words.train, 8)
    kinds = np.concatenate([repeats.classes(window, 8, trained)[0][asked] for window, asked in rows])
    for c, name in enumerate(repeats.CLASSES):
        assert RECORD["n"]["8"]["share"][name] == pytest.approx(float((kinds == c).mean()), abs=1e-4)


def test_bits_are_those_of_the_model():
    data = np.random.default_rng(0).integers(32, 127, 600).astype(np.uint8)
    made = Text(train=data, validation=data, test=data, source="random")
    found = repeats.bits("ssd", made, "test")
    assert found.shape == (3, repeats.CONTEXT)
    assert np.isnan(found).sum() == 3 * repeats.CONTEXT - 600
    with torch.no_grad():
        ids = torch.zeros(1, 512, dtype=torch.int64)
        ids[0, 257:] = torch.from_numpy(data[:255].astype(np.int64))
        logits = checkpoints.load("ssd")(ids)[0][0, 256:]
        want = -logits.log_softmax(-1)[range(256), data[:256].tolist()] / np.log(2)
    assert np.allclose(found[0], want.numpy(), atol=1e-4)


def test_the_record_says_what_the_page_says():
    eight = RECORD["n"]["8"]
    gap = eight["gap"]["ssd - attention"]
    assert eight["share"]["looked up"] == pytest.approx(0.04, abs=0.005)
    assert gap["looked up"]["bits"][0] == pytest.approx(2 * gap["bits"][0], rel=0.15)
    assert gap["looked up"]["part"][0] == pytest.approx(1 / 12, abs=0.01)
    assert gap["new"]["part"][0] == pytest.approx(3 / 4, abs=0.03)
    for n in (5, 6, 8, 10, 12):  # the choice of n does not make it
        found = RECORD["n"][str(n)]["gap"]["ssd - attention"]
        mean, error = found["looked up"]["bits"]
        assert mean - 2 * error > found["bits"][0]
        assert found["new"]["part"][0] > 0.58
        assert found["looked up"]["part"][0] < 0.1
