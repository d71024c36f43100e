"""The packed format is what its description says: a reader of that alone finds every weight again."""

import packed_reader
import pytest
import torch

from postx.models import checkpoints, packed
from postx.models.lm import LM
from postx.quant import load

X = torch.randn(80, 20, generator=torch.Generator().manual_seed(1))
CASES = [
    *[("uniform", bits, {"grid": grid, "group": group}) for bits in (2, 3, 4) for grid, group in
      (("asymmetric", 7), ("symmetric", "row"), ("midrise", "tensor"), ("asymmetric", "row"), ("midrise", 16))],
    *[("uniform", bits, {}) for bits in (1, 5, 6, 7, 8)], ("uniform", 3, {"scale_dtype": torch.float32}),
    ("uniform", 3, {"scale_dtype": torch.bfloat16}), ("gptq", 3, {"x_TI": X, "group": 8, "act_order": True}),
    ("gptq", 4, {"x_TI": X, "act_order": True}), ("gptq", 2, {"x_TI": X, "group": 8}),
    ("awq", 4, {"x_TI": X * torch.linspace(1, 3, 20), "group": 8}), ("ternary", None, {}),
    ("nf4", 4, {"block": 8}), ("nf4", 4, {"block": 16, "double": False}),
    ("microscaling", 4, {"form": "mxfp4"}), ("microscaling", 4, {"form": "nvfp4"}),
]  # fmt: skip


def written(tmp_path, W, method, bits, kw):
    """(what the reader finds of one packed layer, what the package says)."""
    args = () if bits is None else (bits,)
    q = load(method).quantize(W, *args, **kw)
    path = tmp_path / "x.safetensors"
    packed.write(path, {"D": 1}, {"a.weight": W, "b": torch.arange(3.0).bfloat16()}, {"a": q})
    config, tensors, layers = packed_reader.read(path)
    assert config == {"D": 1}
    assert tensors == {"b": (0, 1, 2)}
    return torch.tensor(layers["a"]), q.dequantize()


@pytest.mark.parametrize(("method", "bits", "kw"), CASES)
def test_a_reader_of_the_description_finds_the_weight(method, bits, kw, tmp_path):
    """20 inputs: neither words of eight codes, nor five trits with a byte over, nor groups of 8 and 7 come out even."""
    W = torch.randn(6, 20, generator=torch.Generator().manual_seed(0))
    found, want = written(tmp_path, W, method, bits, kw)
    torch.testing.assert_close(found, want, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("base", ["uniform", "gptq"])
def test_turned_weights_too(base, tmp_path):
    W = torch.randn(6, 32, generator=torch.Generator().manual_seed(0))
    more = {"x_TI": torch.randn(80, 32)} if base == "gptq" else {}
    found, want = written(tmp_path, W, "rotate", 3, {"base": base, "seed": 11, "group": 8} | more)
    torch.testing.assert_close(found, want, rtol=1e-5, atol=1e-6)


def test_a_whole_model(tmp_path):
    """Kept and packed weights of a model in one file, with what builds it."""
    torch.manual_seed(0)
    config = {"pattern": "A", "D": 16, "Y": 32, "options": {"A": {"H": 2}, "F": {"F": 24}}}
    lm = LM(**config)
    q = {"blocks.0.mlp.up": load("uniform").quantize(lm.blocks[0].mlp.up.weight, 3, group=8)}
    path = checkpoints.save("x", lm, config, {}, tmp_path, packed=q)
    told, tensors, layers = packed_reader.read(path)
    assert told == config
    again = checkpoints.load("x", tmp_path).state_dict()
    flat = tensors | {f"{name}.weight": sum(rows, []) for name, rows in layers.items()}
    assert set(flat) == set(again)
    for name, x in again.items():
        torch.testing.assert_close(torch.tensor(flat[name]), x.flatten(), rtol=1e-6, atol=1e-7)
