"""Faults of quantizers: overflow, process-wide settings, whole numbers, matrices nobody needs, published constants."""

import itertools
import time

import numpy as np
import pytest
import torch

from postx.quant import gptq as gptq_module
from postx.quant import (
    lattice,
    lloyd,
    load,
    microscaling,
    names,
    nf4,
    output_error,
    rotate,
    second_moment,
    ternary,
    turbo,
)

X = torch.randn(80, 32, generator=torch.Generator().manual_seed(1))


def gauss(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def run(name, W, **kw):
    module = load(name)
    if name in ("gptq", "awq"):
        kw = {"x_TI": X[:, : W.shape[1]]} | kw
    return module.quantize(W, **kw) if name == "ternary" else module.quantize(W, 2 if name == "lattice" else 4, **kw)


every = pytest.mark.parametrize("name", names())


@every
@pytest.mark.parametrize(
    "W",
    [
        1e39 * gauss(4, 32, dtype=torch.float64),
        1e300 * gauss(4, 32, dtype=torch.float64),
        3e38 * torch.rand(4, 32, generator=torch.Generator().manual_seed(0)),
        torch.full((4, 32), torch.finfo(torch.float32).max),
        1e-30 * gauss(4, 32),
        1e-44 * torch.ones(4, 32),
        torch.zeros(4, 32),
    ],
    ids=["1e39", "1e300", "3e38", "max", "1e-30", "1e-44", "zeros"],
)
def test_finite_weights_come_back_finite_or_are_refused(name, W):
    wide = {} if name in ("nf4", "microscaling") else {"scale_dtype": torch.float32}
    for kw in ({}, wide):
        try:
            back = run(name, W, **kw).dequantize()
        except ValueError as error:
            if "overflows" not in str(error) and "not finite" not in str(error):
                raise
        else:
            assert back.dtype == torch.float32
            assert torch.isfinite(back).all()
    for form in ("mxfp4", "nvfp4"):
        try:
            assert torch.isfinite(microscaling.quantize(W, form=form).dequantize()).all()
        except ValueError as error:
            if "overflows" not in str(error):
                raise


@every
def test_what_is_read_back_does_not_depend_on_the_process(name):
    forms = [{}] if name != "turbo" else [{}, {"form": "prod"}, {"turn": "hadamard"}]
    forms = [{"form": "mxfp4"}, {"form": "nvfp4"}] if name == "microscaling" else forms
    W, x = gauss(6, 32), gauss(32, seed=2)
    kept = [run(name, W, **kw) for kw in forms]
    plain = [q.dequantize() for q in kept]
    products = [q.matvec(x) if name in ("uniform", "gptq", "ternary") else None for q in kept]
    for dtype in (torch.bfloat16, torch.float64):
        tables = lattice.points, lattice.patterns, nf4.code, lloyd.gaussian_codebook
        for cached in (turbo._dense, rotate._dense, *tables):
            cached.cache_clear()  # as in a process that has just begun
        before = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            again = [q.dequantize() for q in kept]
            anew = [run(name, W, **kw) for kw in forms]
            y = [q.matvec(x) if p is not None else None for q, p in zip(kept, products, strict=True)]
        finally:
            torch.set_default_dtype(before)
        for a, b, q, old in zip(again, plain, anew, kept, strict=True):
            assert a.dtype == torch.float32
            assert torch.equal(a, b)
            assert all(torch.equal(q.parts[key], old.parts[key]) for key in old.parts)
        for a, b in zip(y, products, strict=True):
            assert a is None or (a.dtype == torch.float32 and torch.equal(a, b))


def test_calibration_that_overflows_is_refused_by_name():
    W = gauss(4, 32)
    for name in ("gptq", "awq", "lattice"):
        with pytest.raises(ValueError, match="x_TI: inputs up to"):
            run(name, W, x_TI=1e30 * X)
    for bad in (torch.inf, torch.nan):
        H = second_moment(X)
        H[3, 3] = bad
        for name in ("gptq", "lattice"):
            kw = {"x_TI": None} if name == "gptq" else {}
            with pytest.raises(ValueError, match="H_II: expected finite"):
                run(name, W, H_II=H, **kw)
    unequal = X * torch.logspace(-8, 8, 32)  # more than float16 can hold as scales
    assert torch.isfinite(run("awq", W, x_TI=unequal).dequantize()).all()
    assert output_error(torch.zeros(2, 32), torch.zeros(2, 32), X) == 0.0


def test_whole_numbers_are_refused_where_the_answer_would_be_cut():
    ones = torch.ones(3, 8, dtype=torch.int64)
    calls = {
        "hadamard": lambda: rotate.hadamard(ones),
        "unhadamard": lambda: rotate.unhadamard(ones),
        "spin": lambda: rotate.spin(ones, 0),
        "dense spin": lambda: rotate.spin(ones[:, :7], 0),
        "dense unspin": lambda: rotate.unspin(ones[:, :7], 0),
        "encode": lambda: microscaling.encode(ones),
        "round": lambda: lattice.round_e8p(ones, 2),
        "absmean": lambda: ternary.absmean(ones),
        "integers": lambda: ternary.integers(ones),
        "nearest": lambda: lloyd.nearest(torch.rand(3), torch.arange(4)),
    }
    for call in calls.values():
        with pytest.raises(ValueError, match="expected floating point"):
            call()


def test_matvec_names_its_vector():
    q = run("uniform", gauss(2, 8))
    with pytest.raises(TypeError, match="x_I: expected a torch.Tensor"):
        q.matvec(np.ones(8))
    with pytest.raises(ValueError, match="x_I: expected real"):
        q.matvec(torch.ones(8, dtype=torch.complex64))


# Hadamard matrices


def test_no_matrix_is_built_to_learn_that_it_exists(monkeypatch):
    built = []
    monkeypatch.setattr(rotate, "paley", lambda m: built.append(m))
    sizes = {4096: 4096, 8192: 8192, 16384: 16384, 5120: 256, 29568: 32, 131072: 131072, 2**40: 2**40}
    start = time.perf_counter()
    assert all(rotate.factors(n) == (power, n // power) for n, power in sizes.items())
    assert time.perf_counter() - start < 1
    assert not built


def test_factors_are_the_smallest_there_are():
    for n in range(1, 400):
        known = [m for m in range(1, n + 1) if n % m == 0 and (n // m).bit_count() == 1
                 and (m == 1 or rotate.paley(m) is not None)]  # fmt: skip
        if known:
            assert rotate.factors(n) == (n // known[0], known[0])
        else:
            with pytest.raises(ValueError, match=f"n: no Hadamard matrix of size {n}"):
                rotate.factors(n)
    for n in (0, -4):
        with pytest.raises(ValueError, match="n: no Hadamard"):
            rotate.factors(n)


# E8P, as Cornell-RelaxML/quip-sharp has it: lib/codebook/latticee8_padded12.py, and QuIP#, app. C.1 (twice the vectors)

PUBLISHED = """
31113333 13113333 11313333 11133333 33313311 33313131 33311331 33313113 33311313 33311133 33133311 33133131 33131331
33133113 33131313 33131133 31333311 31333131 31331331 31333113 31331313 13331133 13333311 13333131 13331331 13333113
13331313 11331333 33113331
"""


def quip_sharp():
    """All 65,536 codes by the published layout: a pattern, and eight bits: their parity the shift, signs by nibble."""
    low = sorted(p for p in itertools.product((0.5, 1.5, 2.5), repeat=8) if sum(v * v for v in p) <= 10)
    patterns = [*low, *([int(digit) / 2 for digit in row] for row in PUBLISHED.split())]
    nibbles = [0, 2, 4, 6, 1, 3, 5, 7]  # the coordinate in each nibble of a packed pattern
    grid = np.empty((2**16, 8), np.float32)
    for number, p in enumerate(patterns):
        packed = [p[i] for i in nibbles]
        packed[7] *= -1 if sum(p) % 2 else 1
        for bits in range(256):
            parity = bits.bit_count() % 2
            signs = bits ^ parity
            for nibble, coordinate in enumerate(nibbles):
                sign = -1 if signs >> nibble & 1 else 1
                grid[256 * number + bits, coordinate] = sign * packed[nibble] + (-0.25 if parity else 0.25)
    return torch.from_numpy(grid)


def test_every_code_of_e8p_is_quip_sharps():
    grid = quip_sharp()
    assert len(torch.unique(grid, dim=0)) == 2**16
    assert torch.equal(lattice.points(), grid)
    assert torch.equal(lattice.encode(grid), torch.arange(2**16, dtype=torch.int32))


# GPTQ's static groups, against a plain loop as its authors' code has it


def published(W, H, bits, group, act_order, damp=0.01):
    """IST-DASLab/gptq, gptq.py, fasterquant(static_groups=True) with symmetric scales, one column after the other."""
    W, H = W.clone(), H.clone()
    O, I = W.shape
    dead = H.diagonal() == 0
    H[dead, dead] = 1
    W[:, dead] = 0
    scale = [W[:, a : a + group].abs().amax(1) / (2 ** (bits - 1) - 1) for a in range(0, I, group)]
    perm = H.diagonal().argsort(descending=True, stable=True) if act_order else torch.arange(I)
    W, H = W[:, perm], H[perm][:, perm]
    H = H + damp * H.diagonal().mean() * torch.eye(I, dtype=H.dtype)
    U = torch.linalg.cholesky(torch.linalg.inv(H), upper=True)
    Q = torch.zeros_like(W)
    for i in range(I):
        s = scale[int(perm[i]) // group]
        Q[:, i] = (W[:, i] / s).round().clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) * s
        W[:, i:] -= ((W[:, i] - Q[:, i]) / U[i, i])[:, None] * U[i, i:]
    return Q[:, perm.argsort()]


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("group", [8, 12, 64])
def test_static_groups_are_the_authors(group, act_order):
    W, x = gauss(5, 150, dtype=torch.float64), gauss(400, 150, seed=3, dtype=torch.float64)
    x = x @ gauss(150, 150, seed=4, dtype=torch.float64)
    x[:, 7] = 0  # an input that never fires
    H = second_moment(x)
    kw = {"H_II": H, "group": group, "grid": "symmetric", "act_order": act_order, "scale_dtype": torch.float64}
    q = gptq_module.quantize(W, 4, static_groups=True, **kw)
    want = published(W, H, 4, group, act_order)
    assert (q.dequantize() - want).abs().max() < 1e-5 * want.abs().max()
    assert "order" not in q.parts
    plain = gptq_module.quantize(W, 4, **kw)
    assert (plain.dequantize() - want).abs().max() > 1e-3  # scales taken late are others
    x32 = gauss(150, seed=5)
    asymmetric = gptq_module.quantize(W, 4, static_groups=True, **kw | {"grid": "asymmetric"})
    if group % 2 == 0:
        assert torch.allclose(asymmetric.matvec(x32), asymmetric.dequantize() @ x32, atol=1e-3)
    off_cpu = gptq_module._round_torch
    assert output_error(W, asymmetric.dequantize(), x) < output_error(W, run("uniform", W, group=group).dequantize(), x)
    w, U = gauss(3, 9), torch.eye(9) + gauss(9, 9, seed=6).triu()
    s, z = gauss(3, 9, seed=7).abs() + 0.1, torch.full((3, 9), 7.0)
    for a, b in zip(off_cpu(w, U, s, z, 15), gptq_module._round(w, U, s, z, 15), strict=True):
        assert torch.allclose(a.float(), b.float(), atol=1e-5)


def test_static_groups_of_whole_rows_change_nothing():
    W, H = gauss(3, 32), second_moment(X)
    for act_order in (False, True):
        a, b = (gptq_module.quantize(W, 3, H_II=H, act_order=act_order, static_groups=s) for s in (False, True))
        assert all(torch.equal(a.parts[key], b.parts[key]) for key in a.parts)


# BitNet's floors: 1e-5 under the mean of the weights and under each token's largest value


def test_bitnets_floors_are_the_published_ones():
    for size in (1.0, 1e-3, 1e-5, 1e-6, 1e-9, 0.0):
        W = size * gauss(8, 16)
        s = W.abs().mean().clamp(min=1e-5)
        trits, scale = ternary.absmean(W)
        assert torch.equal(scale, s)
        assert torch.equal(trits, (W / s).round().clamp(-1, 1))
        want = (W / s).round().clamp(-1, 1) * s.half().float()
        assert torch.equal(ternary.quantize(W).dequantize(), want)
        x = size * gauss(4, 16, seed=1)
        step = x.abs().amax(-1, keepdim=True).clamp(min=1e-5) / 127
        assert torch.allclose(ternary.absmax(x), (x / step).round() * step)
    assert not ternary.absmean(1e-7 * gauss(8, 16))[0].any()
