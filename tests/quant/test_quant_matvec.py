"""Products that read packed weights: equal to the unpacked ones, for every layout they take."""

import pytest
import torch

from postx.quant import _matvec, awq, gptq, nf4, rotate, ternary, uniform
from postx.quant._matvec import matvec


def gauss(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def near(q, x):
    want = q.dequantize().double() @ x.double()
    scale = q.dequantize().double().abs() @ x.double().abs()
    assert ((matvec(q, x) - want).abs() <= 3e-6 * scale).all()
    assert torch.equal(q.matvec(x), matvec(q, x))


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("group", ["row", "tensor", 128, 64, 7, 1])
def test_codes_of_every_width(bits, group):
    """Rows shorter than a block, last groups shorter than others, groups that end within a byte, 1 to 9 outputs."""
    for O, I in enumerate((1, 2, 7, 64, 203, 320, 508, 512), 1):
        grid = uniform.GRIDS[2 if bits == 1 else O % 3]
        near(uniform.quantize(gauss(O, I), bits, grid=grid, group=group), gauss(I, seed=1))


def test_one_bit_with_a_zero_point():
    """A group may stand for zeros alone, s (q - 1) x with q = 1: what is left is rounding of its two sums."""
    q, x = uniform.quantize(gauss(9, 203), 1, group=64), gauss(203, seed=1)
    off = (q.matvec(x) - q.dequantize() @ x).abs()
    assert (off <= 1e-6 * q.parts["scale"].float().amax(1) * x.abs().sum()).all()


@pytest.mark.parametrize("grid", uniform.GRIDS)
@pytest.mark.parametrize("group", ["row", "tensor", 128])
def test_four_bits_on_every_grid(grid, group):
    near(uniform.quantize(gauss(9, 203), 4, grid=grid, group=group), gauss(203, seed=1))


@pytest.mark.parametrize("bits", range(1, 9))
def test_every_code_is_read_right(bits):
    """One input at a time is 1, and each of the eight places of a word holds each code."""
    codes = torch.arange(2**bits)[:, None] + 37 * torch.arange(11)
    q = uniform.quantize((codes % 2**bits) - (2 ** (bits - 1) - 0.5), bits, grid="midrise", group="tensor")
    assert torch.equal(q.dequantize().unique(), torch.arange(2**bits) - (2 ** (bits - 1) - 0.5))
    product = q.product()
    for i in range(11):
        assert torch.equal(product(torch.eye(11)[i]), q.dequantize()[:, i])


def test_inputs_of_other_groups_do_not_reach_a_group():
    q = uniform.quantize(gauss(5, 40), 3, group=7)
    for i in range(40):
        y = q.matvec(torch.eye(40)[i] * 1e6)
        assert ((y - 1e6 * q.dequantize()[:, i]).abs() <= 1e6 * 3e-6 * q.parts["scale"].float().max() * 8).all()


def test_without_the_compiler_the_same(monkeypatch):
    q, x = uniform.quantize(gauss(5, 100), 3, group=7), gauss(100, seed=1)
    want = q.matvec(x)
    monkeypatch.setattr(_matvec, "COMPILED", False)
    torch.testing.assert_close(q.matvec(x), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("act_order", [False, True])
def test_gptq_in_its_own_order(act_order, bits):
    x = gauss(200, 72) * torch.linspace(1, 3, 72)
    near(gptq.quantize(gauss(9, 72), bits, x_TI=x, group=16, act_order=act_order), gauss(72, seed=1))


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_what_turns_or_divides_its_inputs(bits):
    """Within 3e-6 of |W| |x|, as norms: a turn adds inputs of all sizes."""
    W, x, seen = gauss(9, 72), gauss(72, seed=1), gauss(200, 72, seed=2) * torch.linspace(1, 3, 72)
    near(awq.quantize(W, bits, seen, group=16), x)
    for q in (rotate.quantize(W, bits, group=16), rotate.quantize(W, bits, seen, base="gptq", group=16)):
        want = q.dequantize().double() @ x.double()
        assert float((q.matvec(x) - want).abs().max()) <= 3e-6 * float(q.dequantize().norm() * x.norm())


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
    with pytest.raises(ValueError, match="q: no kernel for 'nf4'; there are uniform, gptq and awq, rotate"):
        matvec(nf4.quantize(gauss(4, 16)), gauss(16))
    with pytest.raises(ValueError, match="q: no kernel for 'rotate' of 'nf4'"):
        matvec(rotate.quantize(gauss(4, 16), 4, base="nf4"), gauss(16))
    with pytest.raises(ValueError, match=r"x_I: expected axes \[I\] with I=16, got shape \(4,\)"):
        matvec(ternary.quantize(gauss(4, 16)), gauss(4))
    with pytest.raises(ValueError, match="the kernels are for a CPU, got meta"):
        matvec(ternary.quantize(gauss(4, 16)).to("meta"), gauss(16))
