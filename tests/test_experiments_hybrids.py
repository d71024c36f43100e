"""The grids of the hybrid experiments: equal sizes, patterns, bytes of keys and values; and the files of kept models."""

import json

import pytest
import torch

from experiments import families, hybrids
from experiments.equal import config, kv_bytes, parameters, spread, state_floats, widen
from postx import checkpoints
from postx.lm import LM, count


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
    for Y in (256, 4 + hybrids.RECALL["keys"] + hybrids.RECALL["values"] + hybrids.RECALL["fillers"]):
        for pattern in hybrids.patterns():
            built = config(pattern, hybrids.D, Y, hybrids.TARGET, hybrids.TABLE)
            with torch.device("meta"):
                total = count(LM(**built)).total
            assert abs(total - hybrids.TARGET) < 0.05 * hybrids.TARGET, pattern


def test_every_family_has_equal_parameters():
    for name in families.FAMILIES:
        built = config(families.pattern(name), families.D, 256, families.TARGET, families.TABLE)
        with torch.device("meta"):
            total = count(LM(**built)).total
        assert abs(total - families.TARGET) < 0.05 * families.TARGET, name


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
    assert kv_bytes("SSSSASSS", 32_768, 128, hybrids.TABLE) == 2 * 128 * 32_768 * 2
    assert kv_bytes("SSSSSSSS", 32_768, 128, hybrids.TABLE) == 0


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
