"""Sixteen channels a register: the vector helper keeps its stated bounds, and the scan built on it is right."""

import contract
import numba
import numpy as np
import pytest
import torch

from postx import scans
from postx.scans import cpu_selective, lanes, numba_ops
from postx.scans.lanes import LANES
from postx.scans.runtime import FASTMATH


@numba.njit(fastmath=FASTMATH)
def powers(x, out):
    for i in range(0, x.size, LANES):
        lanes.store(out, i, lanes.exp2(lanes.load(x, i)))


def exp2(x):
    out = np.empty_like(x)
    powers(x, out)
    return out


def test_exp2_keeps_its_stated_bound():
    """Every float32 of a dense grid, and the neighbours of all half integers, where the rounding turns."""
    grid = np.linspace(-126, 127.99, 16 * 200_000)
    turns = np.arange(-125.5, 127)
    near = np.concatenate([np.nextafter(turns.astype(np.float32), side) for side in (-np.inf, np.inf)])
    near = np.resize(near, -(-near.size // LANES) * LANES)
    for x in (grid.astype(np.float32), near):
        error = np.abs(exp2(x) / np.exp2(x.astype(np.float64)) - 1).max()
        assert error < 2e-7


def test_exp2_at_the_ends():
    x = np.array([0, -0.0, 1, -1, 10, -126, -127, -1e9, -np.inf, 128, 1e9, np.inf, np.nan, -1e-9, 1e-9, -20])
    x = x.astype(np.float32)
    with np.errstate(over="ignore", under="ignore"):
        want = np.exp2(x)
    want[6] = 0  # from -127 on
    np.testing.assert_array_equal(exp2(x), want)
    assert np.abs(exp2(np.linspace(-128, -126, 1600).astype(np.float32))).max() <= 1.2e-38


def test_exp2_in_float64_is_the_library():
    x = np.random.default_rng(0).uniform(-700, 700, 1600)
    assert np.abs(exp2(x) / np.exp2(x) - 1).max() < 1e-15


@numba.njit
def arithmetic(x, out):
    v = lanes.load(x, 1)
    lanes.store(out, 0, lanes.fma(v, 2, lanes.mul(v, lanes.number(x, 3))))
    lanes.store(out, LANES, lanes.add(v, 1))
    return lanes.total(v)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_arithmetic_lane_by_lane(dtype):
    x, out = np.arange(20, dtype=dtype), np.empty(2 * LANES, dtype)
    assert arithmetic(x, out) == x[1:17].sum()
    np.testing.assert_array_equal(out, np.concatenate([x[1:17] * 2 + x[1:17] * 3, x[1:17] + 1]))


@numba.njit
def sums(x, out):
    lanes.store(out, 0, lanes.totals(x, 1))
    wide = lanes.load4(x, 3)
    lanes.store(out, LANES, lanes.dot(wide, lanes.add(wide, 1)))
    return lanes.total(lanes.load2(x, 2))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_sums_of_lanes(dtype):
    """Whole numbers, so that no order of summation rounds."""
    x, out = np.random.default_rng(0).integers(-9, 9, 300).astype(dtype), np.empty(2 * LANES, dtype)
    assert sums(x, out) == x[2:34].sum()
    np.testing.assert_array_equal(out[:LANES], x[1:257].reshape(LANES, LANES).sum(1))
    assert out[LANES:].sum() == (x[3:67] * (x[3:67] + 1)).sum()


def inputs(B, T, D, N, dtype, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    A_DN = -randn(D, N).abs() * 4
    return randn(B, T, D), randn(B, T, D).abs() / 4, A_DN, randn(B, T, N), randn(B, T, N), randn(B, D, N)


def run(x, impl, lengths=None, seed=5):
    """Outputs and the gradients of a random linear loss, in float64."""
    x = [part.detach().clone().requires_grad_(True) for part in x]
    outputs = scans.diagonal(*x, lengths_B=lengths, impl=impl)
    generator = torch.Generator().manual_seed(seed)
    loss = sum((y * torch.randn(y.shape, generator=generator, dtype=torch.float64)).sum() for y in outputs)
    return tuple(outputs) + torch.autograd.grad(loss, x)


# One channel, a whole register and one more; tiles of 64 tokens cut at their edges; more rows than threads and fewer.
SHAPES = [(1, 1, 1, 1), (2, 64, 16, 3), (3, 65, 17, 16), (1, 130, 40, 5), (2, 200, 300, 2)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_float64_equals_the_reference(shape):
    x = inputs(*shape, torch.float64)
    assert contract.close(run(x, "numba"), run(x, "reference")) <= contract.TOLERANCE
    lengths = torch.arange(shape[0]) * shape[1] // max(1, shape[0] - 1)  # from none to all
    assert contract.close(run(x, "numba", lengths), run(x, "reference", lengths)) <= contract.TOLERANCE


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_float32_gradients_stay_within_the_bound(shape):
    """Against float64 on the same rounded inputs: outputs, state and every gradient, each by its own scale."""
    x = inputs(*shape, torch.float32)
    want = run([part.double() for part in x], "reference")
    for got, exact in zip(run(x, "numba"), want, strict=True):
        assert got.dtype == torch.float32
        assert contract.close(got, exact, 2e-5) <= 2e-5


def test_no_decay_is_exact_however_long():
    """delta 0 for 100,000 tokens: a factor of 1 - 6e-8 would have lost half a percent of the state."""
    T, D, N = 100_000, 16, 2
    zeros = torch.zeros(1, T, D)
    S = torch.ones(1, D, N)
    y, last = scans.diagonal(zeros, zeros, -torch.ones(D, N), torch.ones(1, T, N), torch.ones(1, T, N), S)
    assert torch.equal(last, S)
    assert torch.equal(y, torch.full_like(y, 2.0))


def test_a_growing_state_overflows_to_infinity_and_nan_is_not_hidden():
    u, delta, A, write, read, S = (x.float() for x in inputs(1, 3, 2, 2, torch.float64))
    y, _ = scans.diagonal(u, delta, torch.full_like(A, torch.inf), write.abs(), read.abs(), S.abs() + 1)
    assert y.isinf().all()
    A[0, 0] = torch.nan
    y, _ = scans.diagonal(u, delta, A, write, read, S)
    assert y[..., 0].isnan().all()
    assert y[..., 1].isfinite().all()


def test_threads_change_nothing_but_rounding():
    x = inputs(2, 70, 50, 3, torch.float64)
    before = numba.get_num_threads()
    try:
        results = []
        for threads in {1, before}:
            scans.set_threads(threads)
            results.append(run(x, "numba"))
    finally:
        scans.set_threads(before)
    assert contract.close(results[-1], results[0], 1e-12) <= 1e-12


@pytest.mark.parametrize("keep_gradients", [True, False])
def test_time_cut_into_pieces_equals_the_serial_scan(monkeypatch, keep_gradients):
    """Two rows of one block of channels, one of them ragged, for four threads: 3 pieces, cut inside a tile's length."""
    x, lengths = inputs(2, 400, 5, 3, torch.float64), torch.tensor([397, 70])
    want = run(x, "reference", lengths) if keep_gradients else scans.diagonal(*x, lengths_B=lengths, impl="reference")
    monkeypatch.setattr(cpu_selective, "SHORTEST", 64)
    calls, kernel = [], cpu_selective._forward
    monkeypatch.setattr(numba_ops.numba, "get_num_threads", lambda: 4)
    monkeypatch.setattr(cpu_selective, "_forward", lambda *a: (calls.append(a[6].size), kernel(*a)))
    got = run(x, "numba", lengths) if keep_gradients else scans.diagonal(*x, lengths_B=lengths, impl="numba")
    assert calls == [4, 4]  # two of the pieces, of both rows, at a time
    assert contract.close(got, want) <= contract.TOLERANCE
