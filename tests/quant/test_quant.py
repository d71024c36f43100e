"""The contract of the quantizers, held for every module in postx/quant that has `quantize`."""

import subprocess
import sys

import pytest
import torch

from postx import quant

INPUTS = {name for name in quant.names() if getattr(quant.load(name), "CALIBRATED", False) == "needed"}
BITS = {name: quant.load(name).BITS for name in quant.names() if hasattr(quant.load(name), "BITS")}


def weight(O=24, I=72, seed=0):
    return torch.randn(O, I, generator=torch.Generator().manual_seed(seed))


def run(name, W, bits, **kw):
    if name in INPUTS:
        kw["x_TI"] = torch.randn(128, W.shape[1], generator=torch.Generator().manual_seed(1))
    if BITS.get(name) == ():
        return quant.load(name).quantize(W, **kw)
    return quant.load(name).quantize(W, bits, **kw)


def cases(*bits):
    return [(name, b) for name in quant.names() for b in BITS.get(name, bits) or (None,)]


@pytest.mark.parametrize(("name", "bits"), cases(2, 3, 4, 8))
def test_shape_count_and_repeat(name, bits):
    W = weight()
    q, again = run(name, W, bits), run(name, W, bits)
    back = q.dequantize()
    assert back.shape == W.shape
    assert back.dtype == torch.float32
    assert torch.equal(back, again.dequantize())
    stored = sum(part.numel() * part.element_size() for part in q.parts.values())
    assert q.bits_per_weight == pytest.approx(8 * stored / W.numel())
    assert q.bits_per_weight >= (bits or {"ternary": 1.58}.get(name, 1))
    assert all(isinstance(v, str | int | float | bool | None | list) for v in q.how.values())


@pytest.mark.parametrize("name", [n for n in quant.names() if n not in BITS])
def test_a_bit_more_is_better(name):
    W = weight(32, 128)
    errors = [float((run(name, W, b).dequantize() - W).square().mean()) for b in (2, 3, 4, 5, 6, 8)]
    assert all(b < a / 2 for a, b in zip(errors, errors[1:], strict=False)), errors


@pytest.mark.parametrize(("name", "bits"), cases(3))
def test_zeros_stay_zeros(name, bits):
    W = weight()
    W[:, 5] = 0
    W[3] = 0
    back = run(name, W, bits).dequantize()
    assert torch.isfinite(back).all()
    assert float(back[3].abs().max()) < 1  # a turned code smears errors of other rows over it
    zero = run(name, torch.zeros(4, 16), bits).dequantize()
    assert torch.equal(zero, torch.zeros(4, 16))


@pytest.mark.parametrize(("name", "bits"), cases(3))
def test_half_precision_and_strides(name, bits):
    W = weight(64, 32).bfloat16()
    want = run(name, W.t().contiguous(), bits).dequantize()
    assert torch.equal(run(name, W.t(), bits).dequantize(), want)


@pytest.mark.parametrize(("name", "bits"), cases(3))
def test_bad_weights_are_refused(name, bits):
    W = weight()
    W[2, 7] = float("nan")
    with pytest.raises(ValueError, match=r"W_OI: 1 weights are not finite, the first at \(2, 7\)"):
        run(name, W, bits)
    with pytest.raises(ValueError, match="W_OI: expected 2 axes"):
        run(name, torch.zeros(4, 4, 4), bits)
    with pytest.raises(ValueError, match="W_OI: expected floating point"):
        run(name, torch.ones(4, 16, dtype=torch.int64), bits)
    if bits is not None:
        for bad in (0, 9, True, 2.5):
            with pytest.raises(ValueError, match="bits: expected an integer"):
                run(name, weight(), bad)


def test_names_imports_nothing():
    """Reading one packed weight back must not import every quantizer."""
    code = "import sys; from postx import quant; quant.names(); print(*(m for m in sys.modules if 'postx.quant.' in m))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "\n"


def test_unknown_names():
    with pytest.raises(ValueError, match="quantizer 'gqtp' does not exist; there are .*uniform"):
        quant.load("gqtp")


def test_inputs_are_checked():
    assert quant.check_inputs(torch.ones(3, 4).half(), 4).dtype == torch.float32
    with pytest.raises(ValueError, match=r"x_TI: expected axes \[T, I\] with I=4"):
        quant.check_inputs(torch.ones(3, 5), 4)
    with pytest.raises(ValueError, match="x_TI: expected at least one"):
        quant.check_inputs(torch.ones(0, 4), 4)
    with pytest.raises(ValueError, match="finite"):
        quant.check_inputs(torch.full((1, 4), torch.inf), 4)


@pytest.mark.parametrize("group", ["tensor", "row", 1, 7, 64, 1000])
def test_split_and_join(group):
    W = weight()
    groups = quant.split(W, group)
    assert torch.equal(quant.join(groups, W.shape), W)
    assert groups.shape[1] == {"tensor": 1, "row": 1, 1: 72, 7: 11, 64: 2, 1000: 1}[group]


def test_bad_groups():
    for bad in (0, -1, 2.0, "column", True):
        with pytest.raises(ValueError, match="group: expected"):
            quant.split(weight(), bad)
