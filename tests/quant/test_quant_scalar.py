"""Scalar codes: the published constants of uniform, Lloyd-Max and NF4, and their definitions on small cases."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from postx.quant import lloyd, nf4, uniform


def gauss(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# Max (1960), Table 1, recomputed by exact integrals (facts I1)
@pytest.mark.parametrize(
    ("bits", "want"), [(1, 0.363380), (2, 0.117482), (3, 0.034548), (4, 0.009501), (5, 0.002505)]
)
def test_lloyd_max_of_a_gaussian(bits, want):
    points, error = lloyd.gaussian_codebook(bits)
    assert error == pytest.approx(want, abs=6e-7)
    assert np.allclose(points, -np.array(points)[::-1], atol=1e-12)
    c = np.array(points)
    edges = np.concatenate([[-np.inf], (c[1:] + c[:-1]) / 2, [np.inf]])
    phi, Phi = stats.norm.pdf(edges), stats.norm.cdf(edges)
    assert np.allclose(
        c, (phi[:-1] - phi[1:]) / np.diff(Phi), atol=1e-10
    )  # each point is the mean of its cell


def test_one_bit_and_three_levels():
    assert lloyd.gaussian_codebook(1)[1] == pytest.approx(1 - 2 / math.pi, abs=1e-12)
    points, error = lloyd.codebook(3)
    assert error == pytest.approx(0.190174, abs=1e-6)
    assert np.allclose(points, [-1.2240, 0, 1.2240], atol=1e-4)


def test_many_levels_approach_panter_and_dite():
    ratios = [lloyd.gaussian_codebook(b)[1] * 4**b for b in range(1, 9)]
    assert all(a < b for a, b in zip(ratios, ratios[1:], strict=False))
    assert 2.69 < ratios[-1] < math.sqrt(3) * math.pi / 2


def test_other_densities():
    points, error = lloyd.codebook(8, pdf=np.ones_like, lo=0.0, hi=1.0)
    assert np.allclose(points, (np.arange(8) + 0.5) / 8, atol=1e-12)
    assert error == pytest.approx(1 / 64 / 12, rel=1e-10)
    with pytest.raises(ValueError, match="levels: expected at least 1"):
        lloyd.codebook(0)


def test_fit_reaches_the_code_of_the_density():
    x = gauss(200_000)
    points = lloyd.fit(x, 8)
    error = float((points[lloyd.nearest(x.double(), points).long()] - x).square().mean())
    assert error == pytest.approx(lloyd.gaussian_codebook(3)[1], rel=0.02)
    means = [float(x[lloyd.nearest(x.double(), points) == i].double().mean()) for i in range(8)]
    assert np.allclose(points, means, atol=1e-9)
    assert lloyd.fit(torch.tensor([3.0]), 4).tolist() == [3.0] * 4


# Max (1960), Table 2, recomputed (facts I2)
@pytest.mark.parametrize(
    ("bits", "step", "error"),
    [
        (1, 1.5958, 0.36338),
        (2, 0.9957, 0.11885),
        (3, 0.5860, 0.03744),
        (4, 0.3352, 0.01154),
        (5, 0.1881, 0.003495),
    ],
)
def test_best_uniform_step(bits, step, error):
    got = uniform.gaussian_step(bits)
    assert got[0] == pytest.approx(step, abs=6e-5)
    assert got[1] == pytest.approx(error, abs=6e-6)
    q = uniform.quantize(gauss(64, 4096), bits, grid="midrise", clip="gaussian")
    assert float((q.dequantize() - gauss(64, 4096)).square().mean()) == pytest.approx(error, rel=0.03)


def test_grids_on_a_small_case():
    W = torch.tensor([[-1.0, -0.5, 0.0, 0.25, 2.0, 0.0, 0.0, 0.0]])
    asym = uniform.quantize(W, 2, scale_dtype=torch.float32)
    assert asym.dequantize().tolist() == [
        [-1, 0, 0, 0, 2, 0, 0, 0]
    ]  # scale 1, zero point 1; -0.5 rounds to even
    sym = uniform.quantize(W, 3, grid="symmetric", scale_dtype=torch.float32)
    third = 2 / 3
    want = [[-2 * third, -third, 0, 0, 2, 0, 0, 0]]
    assert torch.allclose(sym.dequantize(), torch.tensor(want), atol=1e-6)
    mid = uniform.quantize(W[:, [0, 1, 3, 4]], 1, grid="midrise", scale_dtype=torch.float32)
    assert mid.dequantize().tolist() == [[-2, -2, 2, 2]]


@pytest.mark.parametrize("grid", uniform.GRIDS)
def test_round_trip_is_quantize_and_dequantize(grid):
    kw = {"grid": grid, "group": 20, "clip": "search"}
    want = uniform.quantize(gauss(8, 70), 3, **kw).dequantize()
    assert torch.equal(uniform.round_trip(gauss(8, 70), 3, **kw), want)


def test_bits_are_counted():
    W = gauss(16, 256)
    assert uniform.quantize(W, 4, grid="symmetric", group=128).bits_per_weight == 4 + 16 / 128
    assert uniform.quantize(W, 3, group=32).bits_per_weight == 3 + (16 + 3) / 32
    assert uniform.quantize(W, 3).bits_per_weight == 3 + (16 + 3) / 256
    assert uniform.quantize(W, 4, grid="symmetric", group="tensor").bits_per_weight == 4 + 16 / W.numel()
    assert lloyd.quantize(W, 2, group="tensor", code="fit").bits_per_weight == 2 + (16 + 4 * 16) / W.numel()
    assert nf4.quantize(W, double=False).bits_per_weight == 4.5
    assert nf4.quantize(gauss(128, 1024)).bits_per_weight == pytest.approx(
        4 + 8 / 64 + 32 / 64 / 256, abs=1e-3
    )


def test_error_of_rounding_is_half_a_step():
    W = gauss(8, 100)
    for grid in ("asymmetric", "symmetric"):
        q = uniform.quantize(W, 6, grid=grid, group=20, scale_dtype=torch.float32)
        step = q.parts["scale"].repeat_interleave(20, 1)
        assert bool(((q.dequantize() - W).abs() <= step * 0.5001).all())


def test_search_is_never_worse_and_helps_at_three_bits():
    W = gauss(32, 512)
    errors = {
        c: float((uniform.quantize(W, 3, clip=c).dequantize() - W).square().mean()) for c in ("max", "search")
    }
    assert errors["search"] < 0.75 * errors["max"]


# facts I4, the definition evaluated with scipy's quantiles
def test_nf4_code():
    positive = stats.norm.ppf(np.linspace(nf4.OFFSET, 0.5, 9)[:-1])
    negative = -stats.norm.ppf(np.linspace(nf4.OFFSET, 0.5, 8)[:-1])
    want = np.sort(np.concatenate([negative, [0], positive])) / positive.max()
    assert np.allclose(nf4.code(), want, atol=1e-12)
    assert nf4.code()[1] == pytest.approx(-0.696193, abs=1e-6)
    assert nf4.code()[8] == pytest.approx(0.079580, abs=1e-6)


def test_nf4_keeps_the_largest_weight_of_a_block():
    W = gauss(4, 64)
    back = nf4.quantize(W, double=False).dequantize()
    at = W.abs().argmax(1)
    assert torch.allclose(back[range(4), at].abs(), W[range(4), at].abs())
    for double in (True, False):  # a last block that is shorter
        assert nf4.quantize(gauss(3, 37), double=double).dequantize().shape == (3, 37)


def test_errors_name_the_argument():
    W = gauss(4, 8)
    for kw, message in [
        (dict(grid="log"), "grid: expected one of asymmetric"),
        (dict(clip=1.5), "clip: expected"),
        (dict(clip="gaussian"), "clip: .*midrise"),
        (dict(group=0), "group: expected"),
    ]:
        with pytest.raises(ValueError, match=message):
            uniform.quantize(W, 4, **kw)
    with pytest.raises(ValueError, match="bits: a symmetric grid of 1 bit"):
        uniform.quantize(W, 1, grid="symmetric")
    with pytest.raises(ValueError, match="code: expected"):
        lloyd.quantize(W, 2, code="best")
    with pytest.raises(ValueError, match="bits: expected an integer from 4 to 4"):
        nf4.quantize(W, 3)
    with pytest.raises(ValueError, match="block: expected"):
        nf4.quantize(W, block=0)
    with pytest.raises(ValueError, match="scale_dtype: a scale of .*overflows torch.float16"):
        uniform.quantize(W * 1e7, 4)


@pytest.mark.parametrize("points", [1, 2, 16, 32, 33, 256])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nearest_is_the_binary_search(points, dtype):
    code = torch.linspace(-2, 2, points, dtype=dtype)
    x = torch.randn(3, 1500, dtype=dtype, generator=torch.Generator().manual_seed(0))
    x[0, :points] = code
    x[1, : points - 1] = (code[1:] + code[:-1]) / 2  # half-way: the lower one
    want = torch.bucketize(x, (code[1:] + code[:-1]) / 2).to(torch.uint8)
    assert torch.equal(lloyd.nearest(x, code), want)
    assert torch.equal(lloyd.nearest(x.T, code), want.T)
    assert torch.equal(want[0, :points], torch.arange(points).to(torch.uint8))
