"""Products that read packed weights: equal to the unpacked ones, for every layout they take."""

import pytest
import torch

from postx.quant import gptq, nf4, ternary, uniform
from postx.quant._matvec import matvec


def gauss(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def near(q, x):
    want = q.dequantize().double() @ x.double()
    scale = q.dequantize().double().abs() @ x.double().abs()
    assert ((matvec(q, x) - want).abs() <= 3e-6 * scale).all()
    assert torch.equal(q.matvec(x), matvec(q, x))


@pytest.mark.parametrize("I", [1, 2, 7, 64, 203, 320, 508, 512])
@pytest.mark.parametrize("grid", uniform.GRIDS)
@pytest.mark.parametrize("group", ["row", "tensor", 128, 64, 6])
def test_four_bits(I, grid, group):
    near(uniform.quantize(gauss(9, I), 4, grid=grid, group=group), gauss(I, seed=1))


@pytest.mark.parametrize("act_order", [False, True])
def test_gptq_in_its_own_order(act_order):
    x = gauss(200, 72) * torch.linspace(1, 3, 72)
    near(gptq.quantize(gauss(9, 72), 4, x_TI=x, group=16, act_order=act_order), gauss(72, seed=1))


@pytest.mark.parametrize("I", [1, 4, 5, 6, 100, 641])
def test_trits(I):
    near(ternary.quantize(gauss(9, I)), gauss(I, seed=1))


def test_every_byte_of_trits_is_read_right():
    """One input at a time is 1, so that each digit of each of the 243 bytes is asked for."""
    digits = torch.cartesian_prod(*[torch.tensor([-1.0, 0.0, 1.0])] * 5)
    q = ternary.quantize(digits * 2)
    for i in range(5):
        assert torch.equal(matvec(q, torch.eye(5)[i]), q.dequantize()[:, i])


def test_other_dtypes_are_read_as_float32():
    q, x = uniform.quantize(gauss(4, 16), 4), gauss(16, seed=1)
    assert torch.equal(matvec(q, x.double()), matvec(q, x))
    assert matvec(q, x.bfloat16()).dtype == torch.float32


def test_what_has_no_kernel_says_so():
    with pytest.raises(
        ValueError, match="q: no kernel for 'uniform' of 3 bits; there are uniform and gptq of 4 bits"
    ):
        matvec(uniform.quantize(gauss(4, 16), 3), gauss(16))
    with pytest.raises(ValueError, match="q: no kernel for 'nf4'"):
        matvec(nf4.quantize(gauss(4, 16)), gauss(16))
    with pytest.raises(ValueError, match="q: groups of 7 inputs share bytes"):
        matvec(uniform.quantize(gauss(4, 16), 4, group=7), gauss(16))
    with pytest.raises(ValueError, match=r"x_I: expected axes \[I\] with I=16, got shape \(4,\)"):
        matvec(ternary.quantize(gauss(4, 16)), gauss(4))
    with pytest.raises(ValueError, match="the kernels are for a CPU, got meta"):
        matvec(ternary.quantize(gauss(4, 16)).to("meta"), gauss(16))
