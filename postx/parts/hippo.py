"""Where a state space model starts: matrices that keep a history as Legendre coefficients, and their diagonals.

Gu et al. 2020, "HiPPO" (arXiv 2008.07669): hold the past f on [0, t] as its coefficients on orthonormal Legendre
polynomials stretched over [0, t] (LegS). They obey  d/dt c = (A c + B f) / t.  S4 drops the 1 / t and learns from
there. Since A has no well-conditioned eigenvectors, S4 splits it: A + P P' is normal, with all real parts -1/2.
S4D (Gu et al. 2022, arXiv 2206.11893) keeps that diagonal alone, or a formula near it.
"""

import math

import torch


def hippo_legs(N):
    """The matrices of HiPPO-LegS, (A [N, N], B [N]) in float64, so that d/dt c = (A c + B f) / t.

    A_nk = -sqrt((2n+1)(2k+1)) below the diagonal, -(n+1) on it, 0 above; B_n = sqrt(2n+1). Its eigenvalues are
    -1..-N. Gu et al. 2020, theorem 2, with the sign inside A. Raises ValueError for N below 1.
    """
    _positive(N)
    n = torch.arange(N, dtype=torch.float64)
    B = torch.sqrt(2 * n + 1)
    return -torch.outer(B, B).tril(-1) - torch.diag(n + 1), B


def normal_plus_low_rank(N):
    """HiPPO-LegS as a normal matrix minus rank one: (eigenvalues [N], eigenvectors V [N, N], P [N]).

        A = V diag(eigenvalues) V* - P P'        P_n = sqrt(n + 1/2)

    V is unitary, eigenvalues are -1/2 + i omega, sorted by omega. A + P P' is -1/2 plus a skew matrix, so i times
    that part is Hermitian, and eigh finds omega without loss. Gu et al. 2021 (S4, arXiv 2111.00396).
    complex128.
    """
    A, B = hippo_legs(N)
    P = B * math.sqrt(0.5)
    normal = A + torch.outer(P, P)
    skew = (normal - normal.T) / 2
    omega, V = torch.linalg.eigh(-1j * skew)
    return torch.complex(torch.full_like(omega, -0.5), omega), V, P


def lin(D, N, dtype=torch.complex128):
    """The S4D-Lin frequencies, A_n = -1/2 + i pi n, for every channel (Gu et al. 2022, eq. 9)."""
    _positive(N)
    n = torch.arange(N, dtype=torch.float64)
    return torch.complex(torch.full((D, N), -0.5, dtype=n.dtype), math.pi * n.expand(D, N)).to(dtype)


def inv(D, N, dtype=torch.complex128):
    """The S4D-Inv frequencies, A_n = -1/2 + i (M / pi) (M / (2n+1) - 1) with M = 2 N, for every channel.

    Follows the spectrum of LegS: a few fast oscillators, many slow ones. The paper's state is M, conjugates
    counted; n runs over the N that are kept (Gu et al. 2022, sec. 4).
    """
    _positive(N)
    n = torch.arange(N, dtype=torch.float64)
    omega = 2 * N / math.pi * (2 * N / (2 * n + 1) - 1)
    return torch.complex(torch.full((D, N), -0.5, dtype=n.dtype), omega.expand(D, N)).to(dtype)


def legs(D, N, dtype=torch.complex128):
    """The S4D-LegS frequencies, for every channel: the N with omega > 0 of the 2 N of HiPPO-LegS, fastest first.

    They come in conjugate pairs, of which S4D keeps one. Leaving out P P' is exact only in the limit of a large N.
    """
    _positive(N)
    eigenvalues, _, _ = normal_plus_low_rank(2 * N)
    return eigenvalues[N:].flip(0).expand(D, N).to(dtype)


INITS = {"lin": lin, "inv": inv, "legs": legs}


def _positive(N):
    if N < 1:
        raise ValueError(f"N: expected at least 1 state, got {N}")
