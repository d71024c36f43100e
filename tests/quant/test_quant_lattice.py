"""Lattices: nearest points by brute force, published constants, the 16-bit code, feedback eight columns at a time."""

import itertools

import pytest
import torch

from postx.quant import lattice, output_error


def gauss(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_nearest_point_of_d4_by_brute_force():
    x = 2 * torch.rand(200, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64) - 1
    grid = [p for p in itertools.product(range(-2, 3), repeat=4) if sum(p) % 2 == 0]
    grid = torch.tensor(grid, dtype=torch.float64)
    want = torch.cdist(x, grid).amin(1)
    assert torch.allclose((x - lattice.nearest_d(x)).norm(dim=1), want, atol=1e-12)


def test_nearest_point_of_e8_is_in_e8_and_no_neighbour_is_nearer():
    x = 4 * torch.rand(50, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    near = lattice.nearest_e8(x)
    assert ((2 * near) % 1 == 0).all()
    assert (near.sum(1) % 2 == 0).all()
    pairs = [(i, j, a, b) for i, j in itertools.combinations(range(8), 2) for a in (1, -1) for b in (1, -1)]
    roots = torch.zeros(len(pairs), 8, dtype=torch.float64)
    for row, (i, j, a, b) in enumerate(pairs):
        roots[row, i], roots[row, j] = a, b
    half = torch.tensor(
        [s for s in itertools.product((0.5, -0.5), repeat=8) if sum(s) % 2 == 0], dtype=torch.float64
    )
    roots = torch.cat([roots, half])
    assert len(roots) == 240  # the neighbours of 0, whose bisectors bound the cell
    others = (x[:, None] - near[:, None] - roots).norm(dim=2).amin(1)
    assert ((x - near).norm(dim=1) <= others + 1e-12).all()


# Conway & Sloane (facts I6); D4 has volume 2, E8 volume 1
@pytest.mark.parametrize(("name", "n", "volume", "want"), [("d", 4, 2, 0.076603), ("e8", 8, 1, 0.0716821)])
def test_second_moments(name, n, volume, want):
    x = 8 * torch.rand(400_000, n, generator=torch.Generator().manual_seed(0))
    error = (getattr(lattice, f"nearest_{name}")(x) - x).square().mean() / volume ** (2 / n)
    assert float(error) == pytest.approx(want, rel=3e-3)


def test_e8p_is_what_its_rule_says():
    p = lattice.patterns()
    squares = (p**2).sum(1)
    assert (squares <= 10).sum() == 227
    assert (squares == 12).sum() == 29
    points = lattice.points()
    assert len(torch.unique(points, dim=0)) == 65536
    in_e8 = points.double() - 0.25
    assert ((2 * in_e8) % 1 == 0).all()
    assert (in_e8.sum(1) % 2 == 0).all()
    whole = (in_e8 % 1 == 0).all(1)
    assert (whole | (in_e8 % 1 == 0.5).all(1)).all()


def test_encoding_is_exact():
    x = gauss(500, 8)
    points = lattice.points().double()
    want = torch.cdist(x.double(), points).amin(1)
    got = (x - points[lattice.encode(x).long()]).norm(dim=1)
    assert torch.allclose(got, want, atol=1e-6)
    every = torch.randperm(65536, generator=torch.Generator().manual_seed(0))[:500]
    assert torch.equal(lattice.encode(lattice.points()[every]).long(), every)


def test_error_on_a_gaussian():
    x = gauss(50_000, 8)
    two = lattice.points()[lattice.encode(lattice.GAUSS * x).long()] / lattice.GAUSS
    error = float((two - x).square().mean())
    assert 0.088 < error < 0.093  # published 0.089; Lloyd-Max of 2 bits has 0.1175, Shannon's bound is 0.0625
    four = lattice.round_e8p(lattice.GAUSS * x[:5000], 4)[1] / lattice.GAUSS
    assert float((four - x[:5000]).square().mean()) < error / 8


def test_feedback_and_turns():
    W, x = gauss(32, 64), gauss(400, 64, seed=1) @ gauss(64, 64, seed=2)
    plain, fed = lattice.quantize(W), lattice.quantize(W, 2, x)
    assert output_error(W, fed.dequantize(), x) < 0.75 * output_error(W, plain.dequantize(), x)
    assert plain.bits_per_weight == 2 + 16 / 64
    W[:, 3] *= 30
    turned, still = lattice.quantize(W), lattice.quantize(W, seed=None)
    assert output_error(W, turned.dequantize(), x) < 0.5 * output_error(W, still.dequantize(), x)


def test_widths_that_eight_does_not_divide():
    W, x = gauss(16, 12), gauss(100, 12, seed=1)
    q = lattice.quantize(W, 2, x)
    assert q.bits_per_weight == (2 * 16 + 16) / 12
    assert output_error(W, q.dequantize(), x) < 0.15


def test_errors():
    W = gauss(8, 16)
    with pytest.raises(ValueError, match="bits: expected an integer from 2 or 4, got 3"):
        lattice.quantize(W, 3)
    with pytest.raises(ValueError, match="x_TI, H_II: expected at most one"):
        lattice.quantize(W, 2, gauss(4, 16), H_II=torch.eye(16))
