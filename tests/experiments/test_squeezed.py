import argparse
import json
import math

import pytest
import torch

from experiments import squeezed
from experiments.runner.results import read
from postx.models import checkpoints
from postx.models.lm import LM
from postx.quant import uniform
from postx.text import Text

OPTIONS = {"A": {"H": 2}, "S": {"K": 8, "V": 16}, "G": {"H": 2, "conv_size": 4}, "7": {"H": 2, "rank": 4}}
PATTERNS = {"attention": "AA", "hybrid": "SA", "ssd": "SS", "gated_deltanet": "GG", "rwkv7": "77"}
KEPT = {"attention": ["cache"], "hybrid": ["cache", "state"]}
CASES = [(name, what) for name in PATTERNS for what in KEPT.get(name, ["state"])]
STATE, TOP = squeezed.Rounding("state", 2), {"state": torch.full((3,), 3.0)}
IDS = torch.randint(256, (3, 40), generator=torch.Generator().manual_seed(1))


def config(name):
    letters = PATTERNS[name]
    return {"pattern": letters, "D": 16, "options": {x: OPTIONS[x] for x in set(letters)}, "mlp": "F", "std": 0.3}


def model(name):
    torch.manual_seed(0)
    return LM(**config(name)).eval()


def tables(lm, S, what):
    """Every tensor that `what` rounds."""
    parts = [(part, S_i) for block, S_B in zip(lm.blocks, S, strict=True)
             for part, S_i in zip(block.mix, S_B, strict=False)]  # fmt: skip
    if what == "state":
        return [S_i[0] for part, S_i in parts if not hasattr(part, "rope")]
    return [x[:, : int(S_i[2].max())] for part, S_i in parts if hasattr(part, "rope") for x in S_i[:2]]


@pytest.mark.parametrize("bits", [8, 3, 1])
def test_numbers_are_rounded_as_weights_are(bits):
    x = torch.randn(50, 12, generator=torch.Generator().manual_seed(0))
    x[0], x[1], x[2] = 0, x[1].abs(), -x[2].abs()
    want = uniform.round_trip(x, bits, scale_dtype=torch.float32)
    assert torch.allclose(squeezed.nearest(x, 2**bits - 1), want, atol=1e-6)
    top = torch.tensor([2.0**bits - 1, math.inf]).repeat(25)[:, None]  # by turns rounded and left alone
    assert torch.equal(squeezed.nearest(x, top), torch.where(top.isinf(), x, squeezed.nearest(x, 2**bits - 1)))


@pytest.mark.parametrize("name", PATTERNS)
def test_stepping_without_rounding_is_the_forward_pass(name):
    lm = model(name)
    assert squeezed.keeps(lm) == KEPT.get(name, ["state"])
    assert torch.allclose(squeezed.stepped(lm, IDS)[0][0], squeezed.whole(lm, IDS), atol=1e-4)


@pytest.mark.parametrize(("name", "what"), CASES)
def test_what_is_kept_is_rounded_after_every_token_and_nothing_else(name, what):
    lm = model(name)
    plain_B, S_plain = squeezed.stepped(lm, IDS)
    close_B, _ = squeezed.stepped(lm, IDS, [squeezed.Rounding(what, 16)])
    assert 0 < (close_B - plain_B).abs().max() < 1e-3
    rough_B, S = squeezed.stepped(lm, IDS, [squeezed.Rounding(what, 2)])
    assert (rough_B - plain_B).abs().min() > (close_B - plain_B).abs().max()
    found = tables(lm, S, what)
    assert found
    for x in found:  # every row of every token or head
        assert max(len(row.unique()) for row in x.flatten(0, -2)) <= 2**2
    for x in tables(lm, S_plain, what) + [y for other in {"cache", "state"} - {what} for y in tables(lm, S, other)]:
        assert max(len(row.unique()) for row in x.flatten(0, -2)) > 2**2
    width = found[0].shape[-1]
    assert squeezed.stored(lm, S, what, 2) == pytest.approx(2 + (32 + 2) / width)


def test_every_token_is_rounded_and_not_only_the_last():
    lm, S = model("ssd"), None
    for ids_B in IDS[:, :-1].T:  # the last byte is asked for and not read
        S = squeezed.rounded(lm, lm(ids_B[:, None], S)[1], TOP)
    got = squeezed.stepped(lm, IDS, [STATE])[1]
    once = squeezed.rounded(lm, squeezed.stepped(lm, IDS)[1], TOP)
    assert torch.allclose(got[1][0][0], S[1][0][0], atol=1e-6)
    assert not torch.allclose(got[1][0][0], once[1][0][0], atol=1e-2)
    assert len(got[0][0][1].unique()) > 2**8  # the convolution's last inputs are whole


def test_a_mixer_of_another_layout_is_refused():
    with pytest.raises(ValueError, match="keeps neither"):
        squeezed.keeps(LM("M", 16))


def test_runs_are_recorded_once_and_summarised(tmp_path, monkeypatch, capsys):
    rng = torch.Generator().manual_seed(0)
    data = torch.randint(1, 256, (500,), generator=rng).to(torch.uint8).numpy()
    monkeypatch.setattr(squeezed.texts, "packages_slice", lambda: Text(data[:0], data, data, "noise"))
    monkeypatch.setattr(squeezed, "T", 24)
    monkeypatch.setattr(squeezed.stretches, "__defaults__", (24,))
    for seed in (0, 1):
        torch.manual_seed(seed)
        checkpoints.save("hybrid", LM(**config("hybrid")), config("hybrid"), {}, tmp_path / f"s{seed}")
    args = argparse.Namespace(
        out=tmp_path / "it.jsonl", weights=tmp_path, text=None, only=["hybrid"], seconds=math.inf, stretches=3,
        device="cpu", seeds=None, what=["weights"], method=["uniform"], bits=[3, 2],
    )  # fmt: skip
    with monkeypatch.context() as other:
        other.setattr(squeezed, "stepped", None)  # rounded weights are judged without it
        assert squeezed.serve(args) == 0
    asked = [(r["run"]["seed"], r["run"]["what"], r["run"]["method"], r["run"]["bits"]) for r in read(args.out)]
    assert asked == [(seed, "weights", "uniform", bits) for seed in (0, 1) for bits in (3, 2)]
    args.what = args.method = args.bits = None
    assert squeezed.serve(args) == 0
    assert "hybrid seed 2: no such files" in capsys.readouterr().out
    lines = args.out.read_text().splitlines()
    assert len(lines) == 2 * (1 + 5 * len(squeezed.BITS))
    squeezed.serve(args)
    assert args.out.read_text().splitlines() == lines
    record = next(r for r in read(args.out) if r["run"]["what"] == "state" and r["run"]["bits"] == 2)
    assert record["run"]["seed"] == 0
    with args.out.open("a") as file:
        file.write(json.dumps(record | {"metrics": None}) + "\n")
    rows = {(r["what"], r["method"], r["bits"]): r for r in squeezed.table(args.out)}
    assert len(rows) == 1 + 5 * len(squeezed.BITS)
    state, full = rows["state", "min-max", 2], rows["nothing", "none", 32]
    assert (state["seeds"], state["diverged"], state["deviation"]) == (2, 1, 0.0)
    assert full["seeds"] == 2
    assert full["lost"] == 0
    other = [r["metrics"] for r in read(args.out) if r["run"]["what"] == "cache" and r["run"]["bits"] == 3]
    mean = sum(x["lost"] for x in other) / 2
    assert rows["cache", "min-max", 3]["lost"] == pytest.approx(mean)
    assert rows["cache", "min-max", 3]["bits_a_byte"] == pytest.approx(full["bits_a_byte"] + mean, abs=1e-4)
    args.out = tmp_path / "other.jsonl"
    monkeypatch.setattr(squeezed, "stepped", lambda lm, ids, _: (squeezed.whole(lm, ids)[None] + 0.01, None))
    assert squeezed.serve(args) == 2
    assert "ArithmeticError: stepped and whole forward passes are 0.01 bits a byte apart" in capsys.readouterr().out
    assert read(args.out) == []


@pytest.mark.parametrize("name", ["ssd", "hybrid", "rwkv7"])
def test_the_control_rounds_the_state_after_every_so_many_tokens(name):
    lm, S = model(name), None
    for t, ids_B in enumerate(IDS[:, :-1].T, 1):
        S = lm(ids_B[:, None], S)[1]
        S = squeezed.rounded(lm, S, TOP) if t % 8 == 0 else S
    got_B, got = squeezed.stepped(lm, IDS, [STATE._replace(every=8)])
    for x, y in zip(tables(lm, got, "state"), tables(lm, S, "state"), strict=True):
        assert torch.allclose(x, y, atol=1e-6)
    assert (got_B - squeezed.stepped(lm, IDS)[0]).abs().max() > 1e-4


def test_roundings_step_side_by_side_as_they_do_alone():
    """The hybrid keeps both: each has rows of its own, and none touches another's."""
    lm = model("hybrid")
    others = (squeezed.Rounding("cache", 2), STATE._replace(bits=4, every=8), STATE._replace(bits=3))
    asked = [squeezed.WHOLE, STATE, *others]
    together, S = squeezed.stepped(lm, IDS, asked)
    assert together.shape == (5, 3)
    for rounding, found_B in zip(asked, together, strict=True):
        assert torch.allclose(found_B, squeezed.stepped(lm, IDS, [rounding])[0][0], atol=1e-6)
    assert len({round(float(x), 5) for x in together[:, 0]}) == 5
    assert squeezed.stored(lm, S, "state", 2) == squeezed.stored(lm, squeezed.stepped(lm, IDS)[1], "state", 2)


def test_a_cache_has_no_control():
    with pytest.raises(ValueError, match="every"):
        squeezed.stepped(model("attention"), IDS, [squeezed.Rounding("cache", 2, every=8)])
