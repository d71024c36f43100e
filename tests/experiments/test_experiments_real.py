"""The experiment on real models, on a tiny one: what is rounded, what is asked, and that every run has its own name."""

import copy
import hashlib
import types

import pytest
import torch

from experiments import real_inside, real_models, real_speed
from postx.models import quantized
from postx.models.lm import LM

OPTIONS = {"A": {"H": 2, "G": 1}, "F": {"F": 48}}


@pytest.fixture
def models():
    torch.manual_seed(0)
    rng = torch.Generator().manual_seed(1)
    words = types.SimpleNamespace(encode=lambda text: [3, 7, 1, 9, 4], decode=lambda ids: " ".join(map(str, ids)))
    made = types.SimpleNamespace(lm=LM("AA", 32, 64, options=OPTIONS, std=0.2).eval(), words=words, full_B=None)
    made.ids, made.asked = torch.randint(0, 64, (2, 40), generator=rng), torch.randint(0, 64, (3, 41), generator=rng)
    made.bytes_B = torch.tensor([100, 110, 120])
    made.judged = types.MethodType(real_models.Models.judged, made)
    made._full = types.MethodType(real_models.Models._full, made)
    made.sample = lambda model: ""
    made.widest = real_inside.widest(made.lm, [row[None] for row in made.ids])
    return made


def test_the_prose_is_the_frozen_one():
    text = real_models.PROSE.read_text(encoding="utf8")
    assert hashlib.sha256(text.encode()).hexdigest().startswith("4834b4c7bf1df3db")
    assert len(text) > 40_000


def test_every_run_has_a_key_of_its_own():
    keys = [real_models.key(run) for run in real_models.runs()]
    assert len(keys) == len(set(keys)) > 45


@torch.no_grad()
def test_losses_are_differences_of_the_same_windows(models):
    full = models.judged(models.lm)
    assert full["lost"] == 0
    small, known = real_models.in_fewer_bits(models, "uniform", 2, {"group": 16})
    lost = models.judged(small)
    assert lost["lost"] == pytest.approx(lost["bits"] - full["bits"], abs=1e-9)
    assert 0 < known["output_error"] < 1
    logits = models.lm(models.asked[:1, :-1])[0].double().log_softmax(-1)
    first = -logits.gather(-1, models.asked[:1, 1:, None]).sum() / torch.log(torch.tensor(2.0)) / 100
    assert float(models.full_B[0]) == pytest.approx(float(first), rel=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("how", ["plain", "turned", "smoothed"])
def test_rounded_inputs(models, how):
    """In 8 bits nearly the same function; in 4 another one; and the inputs of a layer are what was asked for."""
    want = models.lm(models.ids)[0]
    far = {A: float((real_models.rounded_inputs(models, 8, A, how)(models.ids)[0] - want).norm() / want.norm())
           for A in (8, 4)}  # fmt: skip
    assert far[8] < 0.05 < far[4] < 0.6
    net = real_models.rounded_inputs(models, 8, 4, how)
    name = "blocks.1.mlp.up"
    (x,) = quantized.inputs(net, models.ids, [name]).values()  # behind the hook that rounds
    if how == "plain":
        steps = x / (x.abs().amax(-1, keepdim=True) / 7)
        assert float((steps - steps.round()).abs().max()) < 1e-4


@torch.no_grad()
@pytest.mark.parametrize("bits", [4, 3, 2])
def test_packed_layers_read_what_rounded_ones_read(models, bits):
    """The state that a prompt left, and tokens one by one behind it."""
    net, small = real_speed.packed(copy.deepcopy(models.lm), bits), copy.deepcopy(models.lm)
    assert real_speed.weights(net) < real_speed.weights(small)
    for name, layer in quantized.linears(small).items():
        layer.weight.copy_(net.get_submodule(name).q.dequantize())
    want = small(models.asked[:1, :20])[0][0, -1]
    S = net(models.asked[:1, :12])[1]
    for _ in range(2):  # the state is left as it was
        torch.testing.assert_close(real_speed.by_calls(net, S, models.asked[0, 12:20]), want, rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_kinds_read_the_same_and_take_turns(models):
    models.asked = torch.randint(0, 64, (1, 97), generator=torch.Generator().manual_seed(2))
    names = "float32", "float32, writer", "bfloat16", "4 bits", "4 bits, writer"
    kinds = {name: real_speed.Kind(name, models) for name in names}
    found = real_speed.measured(kinds, 2)
    assert all(len(rates) == 2 and min(rates) > 0 for rates in found.values())
    want = models.lm(models.asked[:, :96])[0][0, -1]
    assert set(kinds) < set(real_speed.KINDS)
    torch.testing.assert_close(kinds["4 bits, writer"].last, kinds["4 bits"].last, rtol=1e-3, atol=1e-4)
    for name, far in zip(kinds, (1e-4, 1e-4, 0.1, 2, 2), strict=True):
        assert float((kinds[name].last.float() - want).abs().max() / want.abs().max()) < far
    assert kinds["bfloat16"].bytes * 2 == kinds["float32"].bytes > kinds["4 bits"].bytes


def test_attention_is_a_share_of_the_past(models):
    found = real_models.attention(models)
    assert len(found["heads"]) >= 2
    for head in found["heads"].values():
        p = torch.tensor(head["p"])
        assert torch.equal(p.triu(1), torch.zeros_like(p))
        assert (p.sum(-1) - 1).abs().max() < 0.01


def test_outliers_are_found_where_they_were_planted(models):
    models.lm.blocks[0].norm.weight.data[5] = 80
    found = real_models.outliers(models)
    assert found["layers"]["blocks.0.mix.0.q"]["at"] == 5
    assert found["layers"]["blocks.0.mix.0.q"]["widest_channel"] > 20
    assert found["largest"]["channel"] == 5


def test_what_would_make_no_run_is_refused(tmp_path, monkeypatch, capsys):
    assert real_models.shard("1/2") == (1, 2)
    for told in ("2/2", "0/0", "1", "-1/2", "a/b"):
        with pytest.raises(ValueError, match="--shard: expected a number and of how many"):
            real_models.shard(told)
    monkeypatch.setattr("sys.argv", ["real_models", "--out", str(tmp_path / "x"), "--only", "wieghts"])
    with pytest.raises(SystemExit):
        real_models.main()
    assert "invalid choice: 'wieghts'" in capsys.readouterr().err
    with pytest.raises(ModuleNotFoundError, match="no_such_package is not installed: see requirements-real.txt"):
        real_models.home("no_such_package")
