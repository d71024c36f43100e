"""A whole model in fewer bits, and turned without a change."""

import pytest
import torch

from postx.models import checkpoints, quantized
from postx.models.lm import LM
from postx.quant import output_error, rotate

OPTIONS = {"A": {"H": 2}, "S": {"K": 8, "V": 16}, "G": {"H": 2, "K": 8}}


def model(pattern="SAG", D=32, **kw):
    torch.manual_seed(0)
    options = {letter: o for letter, o in OPTIONS.items() if letter in pattern}
    lm = LM(pattern, D, 64, options=options, std=0.2, **kw)
    for name, p in lm.named_parameters():
        if "norm" in name:
            p.data.uniform_(0.5, 1.5)
    return lm.double()


IDS = torch.randint(0, 64, (2, 24), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("pattern", ["A", "S", "G", "SAG", "(AS)F", "M"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_turned_model_says_the_same(pattern, dtype):
    lm = model(pattern).to(dtype)
    turned = quantized.turn(lm, rotate.spin(torch.eye(32, dtype=torch.float64), 3))
    want, got = lm(IDS)[0], turned(IDS)[0]
    assert float((got - want).detach().abs().max() / want.detach().abs().max()) < (
        1e-10 if dtype == torch.float64 else 1e-5
    )
    first = next(iter(quantized.linears(lm)))
    assert not torch.allclose(lm.get_submodule(first).weight, turned.get_submodule(first).weight, atol=0.1)


def test_what_cannot_be_turned_says_so():
    with pytest.raises(ValueError, match="R: expected an orthogonal matrix"):
        quantized.turn(model("A"), torch.ones(32, 32))
    with pytest.raises(ValueError, match="lm: only RMS norms"):
        quantized.turn(model("A", norm="layer"), torch.eye(32))
    lm = LM("6", 32, 64).double()
    for p in lm.parameters():
        p.data.normal_(std=0.2, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match="lm: "):
        quantized.turn(lm, rotate.orthogonal(32, 0))


@pytest.mark.parametrize(
    ("method", "kw"), [("uniform", {}), ("gptq", {}), ("rotate", {"base": "gptq"}), ("awq", {})]
)
def test_more_bits_are_nearer_and_the_model_is_not_touched(method, kw):
    lm = model()
    want = lm(IDS)[0]
    far = []
    for bits in (3, 8):
        small, report = quantized.quantized(lm, method, bits, IDS, **kw)
        far.append(float((small(IDS)[0] - want).detach().square().mean()))
        assert bits < report.bits_per_weight < bits + 1.5
        assert len(report.rows) == len(quantized.linears(lm))
        assert report.kept + sum(r.weights for r in report.rows) == sum(p.numel() for p in lm.parameters())
    assert far[1] < far[0] / 50
    assert torch.equal(lm(IDS)[0], want)


def test_feedback_needs_the_inputs():
    lm = model()
    fed = quantized.quantized(lm, "gptq", 3, IDS)[1].rows
    near = quantized.quantized(lm, "uniform", 3, IDS)[1].rows
    assert sum(r.output_error for r in fed) < 0.8 * sum(r.output_error for r in near)
    assert sum(r.weight_error for r in fed) > sum(r.weight_error for r in near)


@pytest.mark.parametrize(
    ("method", "bits", "kw"),
    [
        ("uniform", 3, {"group": 16}),
        ("nf4", 4, {}),
        ("awq", 3, {}),
        ("rotate", 2, {"base": "gptq"}),
        ("lattice", 2, {}),
    ],
)
def test_a_file_holds_what_is_counted_and_gives_the_model_back(method, bits, kw, tmp_path):
    lm = model(D=64).float()
    small, report = quantized.quantized(lm, method, bits, IDS, **kw)
    config = {"pattern": "SAG", "D": 64, "Y": 64, "options": OPTIONS}
    path = checkpoints.save("small", small, config, {}, tmp_path, torch.float32, packed=report.stored)
    packed = sum(r.bits_per_weight * r.weights for r in report.rows) / 8
    assert packed == sum(q.nbytes for q in report.stored.values())
    header = path.stat().st_size - packed - 4 * report.kept
    assert 0 < header < 400 * 4 * len(report.rows)  # names and offsets
    again = checkpoints.load("small", tmp_path)
    assert torch.equal(again(IDS)[0], small(IDS)[0])


def test_output_errors_can_be_measured_on_fewer_inputs():
    """The weights that come out are the same; the first layer's error is that on every tenth of its 48 inputs."""
    lm = model("A")
    first = next(iter(quantized.linears(lm)))
    (all_, whole), (fewer, some) = (quantized.quantized(lm, "gptq", 3, IDS, **kw) for kw in ({}, {"judged": 5}))
    assert all(torch.equal(a, b) for a, b in zip(all_.parameters(), fewer.parameters(), strict=True))
    x = quantized.inputs(lm, IDS, [first])[first]
    back = whole.stored[first].dequantize()
    assert some.rows[0].output_error == output_error(lm.get_submodule(first).weight, back, x[::10])
    assert some.rows[0].output_error != whole.rows[0].output_error
