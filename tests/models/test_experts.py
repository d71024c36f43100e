"""Experts in fewer bits: the same tables, each expert repaired for its own tokens, one place on disk."""

import pytest
import torch

from postx.models import checkpoints, experts, quantized
from postx.models.lm import LM
from postx.models.nn import MoE
from postx.quant import gptq, uniform

CONFIG = {"pattern": "SA", "D": 24, "Y": 40, "mlp": "E",
          "options": {"A": {"H": 2}, "S": {"K": 8, "V": 8}, "E": {"E": 4, "k": 2, "F": 16}}}  # fmt: skip
RNG = torch.Generator().manual_seed(0)
W = torch.randn(3, 10, 6, generator=RNG)


def model():
    torch.manual_seed(0)
    return LM(**CONFIG, std=0.2).eval()


IDS = torch.randint(0, 40, (3, 64), generator=RNG)


def test_rows_are_the_transposes_and_come_back():
    assert torch.equal(experts.rows(W)[6 + 2], W[1, :, 2])
    assert torch.equal(experts.table(experts.rows(W), 3), W)


@pytest.mark.parametrize("grid", ["midrise", "asymmetric"])
def test_together_is_one_by_one(grid):
    inputs = [torch.randn(n, 10, generator=RNG) for n in (50, 40, 0)]
    both = experts.calibrated(W, 4, inputs, grid=grid), experts.quantize(W, 4, grid=grid)
    for e in range(3):
        H = {"x_TI": inputs[e]} if e < 2 else {"H_II": torch.eye(10)}
        apart = gptq.quantize(W[e].T, 4, grid=grid, **H), uniform.quantize(W[e].T, 4, grid=grid)
        for q, one in zip(both, apart, strict=True):
            assert torch.equal(experts.table(q.dequantize(), 3)[e], one.dequantize().T)
    assert torch.equal(both[0].dequantize()[12:], both[1].dequantize()[12:])  # nobody's tokens: to nearest


def test_an_expert_reads_what_the_layer_gives_it():
    torch.manual_seed(0)
    moe, x = MoE(12, 5, E=4, k=2).double(), torch.randn(2, 9, 12, dtype=torch.float64)
    read = experts.inputs(moe, x)
    assert sum(map(len, read["up_EDF"])) == 2 * 18
    y = sum((h @ W).sum(0) for h, W in zip(read["out_EFD"], moe.out_EFD, strict=True))
    torch.testing.assert_close(y, moe(x)[0].sum((0, 1)))


@pytest.mark.parametrize("method", ["uniform", "gptq"])
def test_a_whole_model_is_rounded_kept_and_read_back(method, tmp_path):
    lm = model()
    small, report = quantized.quantized(lm, method, 4, IDS)
    names = {row.name for row in report.rows}
    assert {name.removesuffix(".weight") for name in names} >= set(experts.tables(lm))
    assert not any("router" in name for name in names)
    assert report.kept + sum(row.weights for row in report.rows) == sum(p.numel() for p in lm.parameters())
    checkpoints.save("x", small, CONFIG, {}, tmp_path, dtype=torch.float32, packed=report.stored)
    again = checkpoints.load("x", tmp_path)
    torch.testing.assert_close(again(IDS)[0], small(IDS)[0], rtol=0, atol=0)
    assert all(0 < row.output_error < 0.05 for row in report.rows)


def test_repairs_pay_on_the_text_that_they_were_made_for():
    lm = model()
    errors = {}
    for method in experts.METHODS:
        report = quantized.quantized(lm, method, 3, IDS, grid="midrise")[1]
        errors[method] = sum(row.output_error for row in report.rows if "EDF" in row.name or "EFD" in row.name)
    assert errors["gptq"] < errors["uniform"]


def test_other_methods_leave_experts_and_say_so():
    lm = model()
    small, report = quantized.quantized(lm, "nf4", 4, IDS)
    for name, table in experts.tables(lm).items():
        assert torch.equal(table, experts.tables(small)[name])
        assert name not in report.stored


def test_errors_name_the_argument():
    with pytest.raises(ValueError, match='group: experts are scaled by rows or parts of rows, got "tensor"'):
        experts.quantize(W, 4, group="tensor")
    with pytest.raises(ValueError, match="inputs: expected those of 3 experts, got 1"):
        experts.calibrated(W, 4, [torch.ones(2, 10)])
    with pytest.raises(ValueError, match="act_order"):
        experts.calibrated(W, 4, [torch.randn(40, 10)] * 3, group=5, act_order=True)
