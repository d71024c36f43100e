"""HiPPO-LegS is what it says: its matrix, its exactness on polynomials, its split, and S4D's three starts."""

import math

import contract
import numpy as np
import pytest
import torch
from numpy.polynomial import Polynomial, legendre

from postx.mixers import s4d

N = 8


def coefficients(f, t, N=N):
    """c_n = integral over u in [0, 1] of f(t u) sqrt(2n+1) P_n(2u - 1), by Gauss-Legendre quadrature, exact here."""
    nodes, weights = legendre.leggauss(2 * N)
    values = f(t * (nodes + 1) / 2)
    return np.array(
        [
            math.sqrt(2 * n + 1) * (weights * values * legendre.Legendre.basis(n)(nodes)).sum() / 2
            for n in range(N)
        ]
    )


def test_matrix_entries_and_eigenvalues():
    A, B = s4d.hippo_legs(N)
    assert A[1, 0].item() == pytest.approx(-1.7320508, abs=1e-6)
    assert A[2, 1].item() == pytest.approx(-3.8729833, abs=1e-6)
    assert torch.equal(A, A.tril())
    assert torch.equal(
        A.diagonal(), -torch.arange(1.0, N + 1).double()
    )  # triangular: these are the eigenvalues
    assert contract.close(B.square(), 2.0 * torch.arange(N).double() + 1) <= contract.TOLERANCE


def test_ode_is_exact_for_polynomials():
    """d/dt c = (A c + B f) / t on both sides: c' by an exact difference of a polynomial in t, of degree 3 here."""
    A, B = (x.numpy() for x in s4d.hippo_legs(N))
    f = Polynomial([1, -2, 0, 3])
    for t in (0.3, 1.0, 2.5):
        steps = np.array([1, -1, 2, -2]) * 0.1
        weights = np.array([8, -8, -1, 1]) / (12 * 0.1)  # fourth order: no error up to degree 4
        slope = sum(w * coefficients(f, t + h) for w, h in zip(weights, steps, strict=True))
        residual = np.abs(slope - (A @ coefficients(f, t) + B * f(t)) / t).max()
        assert residual < 1e-8


def test_the_coefficients_are_exact_above_the_degree_and_the_reading_is_not():
    """A is triangular, so coefficients 0..N-1 never need those that were dropped: the loss is only in reading back."""
    A, B = (x.numpy() for x in s4d.hippo_legs(3))
    f = Polynomial([0, 0, 0, 1.0])
    c = coefficients(f, 1.0, 3)
    slope = 3 * c  # c(t) = t^3 c(1)
    assert np.abs(slope - (A @ c + B * f(1.0))).max() < 1e-12
    u = np.linspace(0, 1, 50)
    back = sum(c[n] * math.sqrt(2 * n + 1) * legendre.Legendre.basis(n)(2 * u - 1) for n in range(3))
    assert np.abs(back - f(u)).max() > 0.01


def test_a_signal_is_read_back_from_the_state():
    f = Polynomial([1, -2, 0, 3])
    c, u = coefficients(f, 2.0), np.linspace(0, 1, 50)
    back = sum(c[n] * math.sqrt(2 * n + 1) * legendre.Legendre.basis(n)(2 * u - 1) for n in range(N))
    assert np.abs(back - f(2.0 * u)).max() < 1e-10


@pytest.mark.parametrize("N", [1, 4, 64, 256])
def test_normal_plus_low_rank_is_the_matrix(N):
    A, _ = s4d.hippo_legs(N)
    eigenvalues, V, P = s4d.normal_plus_low_rank(N)
    again = (V * eigenvalues) @ V.mH - torch.outer(P, P)
    assert contract.close(again, A.to(again.dtype)) <= contract.TOLERANCE
    assert contract.close(V @ V.mH, torch.eye(N, dtype=V.dtype)) <= contract.TOLERANCE
    assert torch.equal(eigenvalues.real, torch.full((N,), -0.5, dtype=torch.float64))


@pytest.mark.parametrize("N", [1, 4, 32])
def test_legs_frequencies_are_one_of_each_pair(N):
    """And they are the eigenvalues that a general eigensolver finds."""
    kept = s4d.legs(1, N)[0]
    assert (kept.imag > 0).all()
    A, B = s4d.hippo_legs(2 * N)
    all_of_them = torch.linalg.eigvals(A + torch.outer(B, B) / 2)
    want = all_of_them.imag.sort(descending=True).values[:N]
    assert contract.close(kept.imag, want, 1e-8) <= 1e-8


def test_inv_follows_legs_and_lin_does_not():
    """Gu et al. 2022: over the faster half the inverse law is within a quarter; the linear one never is."""
    N = 32
    legs, inv, lin = (getattr(s4d, name)(1, N)[0].imag for name in ("legs", "inv", "lin"))
    assert inv[0].item() == pytest.approx(64 / math.pi * 63)
    assert lin[5].item() == pytest.approx(5 * math.pi)
    half = slice(0, N // 2)
    assert (inv / legs - 1)[half].abs().max() < 0.25
    fast = slice(0, N // 8)
    assert (lin.flip(0) / legs - 1)[fast].abs().min() > 0.3


def test_zero_order_hold_is_the_exact_response_to_a_held_input():
    """exp of the augmented matrix [[A, B], [0, 0]] steps state and held input together: Abar and Bbar are its top."""
    delta = torch.tensor([1e-6, 0.1, 3.0], dtype=torch.float64)
    A = s4d.inv(3, 4)
    turn, push = s4d._discretize(delta, A, A.dtype)
    for d in range(3):
        whole = torch.zeros(5, 5, dtype=A.dtype)
        whole[:4, :4], whole[:4, 4] = torch.diag(A[d]), 1.0
        whole = torch.matrix_exp(delta[d] * whole)
        got = torch.stack([turn[d], push[d]])
        assert contract.close(got, torch.stack([whole[:4, :4].diagonal(), whole[:4, 4]]), 1e-12) <= 1e-12


def test_kernel_is_the_powers_and_the_convolution_is_the_recurrence():
    """K_l = 2 Re(C Abar^l Bbar); a causal sum with it equals the state, carried a token at a time."""
    (u,), w = s4d.example(30, N=6)
    kernel = s4d.kernel(30, **{key: w[key] for key in ("delta_D", "A_DN", "C_DN")})
    turn, push = s4d._discretize(w["delta_D"], w["A_DN"], w["A_DN"].dtype)
    powers = torch.stack([2 * (w["C_DN"] * turn**l * push).sum(-1).real for l in range(30)], 1)
    assert contract.close(kernel, powers, 1e-12) <= 1e-12
    want = torch.stack([(kernel[:, : t + 1].flip(1).T * u[:, : t + 1]).sum(1) for t in range(30)], 1)
    y, _ = s4d.recurrent(u, **w)
    assert contract.close(y - w["skip_D"] * u, want, 1e-12) <= 1e-12


@pytest.mark.parametrize("init", ["lin", "inv", "legs"])
def test_layer_starts_where_it_is_told(init):
    layer = s4d.Layer(3, N=5, init=init).double()
    got = layer.weights()["A_DN"]
    assert contract.close(got, getattr(s4d, init)(3, 5), 1e-5) <= 1e-5
    y, _ = layer(torch.randn(2, 7, 3, dtype=torch.float64))
    assert torch.isfinite(y).all()


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="init: expected one of 'lin', 'inv', 'legs', got 'fourier'"):
        s4d.Layer(3, init="fourier")
    for function in (
        s4d.hippo_legs,
        s4d.normal_plus_low_rank,
        lambda N: s4d.legs(1, N),
        lambda N: s4d.inv(1, N),
    ):
        with pytest.raises(ValueError, match="N: expected at least 1 state, got 0"):
            function(0)
