"""Rotation: turn the inputs of a layer by a known orthogonal matrix, and its weights the other way.

    x W' = (x R) (W R)'        R R' = I

The product is the same, but W R is a mixture of all inputs: no weight is large because one input is, and the numbers
look Gaussian (they do not look uniform). R is a Hadamard matrix behind random signs, so it costs n log n additions and
is stored as a seed. Sources: Chee et al. (2023), QuIP (incoherence); Tseng et al. (2024), QuIP# (random Hadamard
transform); Ashkboos et al. (2024), QuaRot; Liu et al. (2024), SpinQuant (learned rotations).

A Hadamard matrix of size 2^k is Sylvester's, in natural order, over sqrt(n). For n = 2^k m, m is the size of one of
Paley's two constructions (12, 20, 28, 44, ...) and the matrix is their Kronecker product. Where no such m exists,
`hadamard` says so, and `spin` takes `orthogonal`, a dense random rotation of any size: n^2 products, still a seed.
"""

import functools
import math

import numba
import torch

from postx.quant import Quantized, check_inputs, check_weight, load
from postx.scans.runtime import jit


def _prime(m: int) -> tuple[int, int] | None:
    """(q, 3 or 1): the prime behind a Paley matrix of size m and which construction it is; None where both miss m."""
    for q, kind in ((m - 1, 3), (m // 2 - 1, 1)):
        if (m % 2 == 0 and q >= 3) and q % 4 == kind and all(q % d for d in range(2, math.isqrt(q) + 1)):
            return q, kind
    return None


@functools.lru_cache
def paley(m: int) -> torch.Tensor | None:
    """A Hadamard matrix of size m by one of Paley's constructions for a prime q, or None where both miss m.

    m = q + 1 for q = 3 mod 4; m = 2 (q + 1) for q = 1 mod 4. Entries +1 and -1, int8. Source: Paley (1933).
    """
    if (found := _prime(m)) is None:
        return None
    q, kind = found
    squares = {i * i % q for i in range(1, q)}
    chi = torch.tensor([0] + [1 if i in squares else -1 for i in range(1, q)])
    at = torch.arange(q)
    core = chi[(at[:, None] - at[None]) % q]
    border = torch.zeros(q + 1, q + 1, dtype=torch.long)
    border[0, 1:], border[1:, 0], border[1:, 1:] = 1, (-1 if kind == 3 else 1), core
    if kind == 3:
        return (border + torch.eye(q + 1, dtype=torch.long)).to(torch.int8)
    plus, minus = torch.tensor([[1, 1], [1, -1]]), torch.tensor([[1, -1], [-1, -1]])
    return (torch.kron(border, plus) + torch.kron(torch.eye(q + 1, dtype=torch.long), minus)).to(torch.int8)


def factors(n: int) -> tuple[int, int]:
    """(2^k, m) with n = 2^k m and m = 1 or Paley's, the smallest such m. Raises ValueError where there is none."""
    m = n & -n if n > 0 else 0  # from the odd part of n upwards, and no matrix is made to know that there is one
    m = n // m if m else n + 1
    while m <= n:
        if m == 1 or _prime(m) is not None:
            return n // m, m
        m *= 2
    raise ValueError(f"n: no Hadamard matrix of size {n} by 2^k times Paley's sizes; use `orthogonal`")


@jit
def _butterflies(x, inner):
    """In place, every row: the transform of size 2^k on the axis of stride `inner`."""
    rows, n = x.shape
    for row in numba.prange(rows):
        step = inner
        if inner == 1 and n >= 8:
            # The three smallest steps in registers: their own loops would be too short to be vectorised.
            for block in range(n // 8):
                v = x[row, 8 * block : 8 * block + 8]
                a, b, c, d = v[0] + v[1], v[0] - v[1], v[2] + v[3], v[2] - v[3]
                e, f, g, h = v[4] + v[5], v[4] - v[5], v[6] + v[7], v[6] - v[7]
                a, b, c, d = a + c, b + d, a - c, b - d
                e, f, g, h = e + g, f + h, e - g, f - h
                v[0], v[1], v[2], v[3] = a + e, b + f, c + g, d + h
                v[4], v[5], v[6], v[7] = a - e, b - f, c - g, d - h
            step = 8
        while step < n:
            for start in range(0, n, 2 * step):
                low, high = x[row, start : start + step], x[row, start + step : start + 2 * step]
                for i in range(step):
                    low[i], high[i] = low[i] + high[i], low[i] - high[i]
            step *= 2


def hadamard(x: torch.Tensor) -> torch.Tensor:
    """x H / sqrt(n) along the last axis, n log2 n additions instead of n^2 products.

    x [..., n], any strides, float32 or float64 (half precision is computed in float32 and returned as it came). For a
    size that is not a power of two, H is the Kronecker product of Sylvester's and Paley's matrix: it need not be
    symmetric, so `unhadamard` undoes this. Raises ValueError for a size that has no such matrix.
    """
    return _transform(x, transpose=False)


def unhadamard(x: torch.Tensor) -> torch.Tensor:
    """x H' / sqrt(n): undoes `hadamard`. The same for powers of two."""
    return _transform(x, transpose=True)


def _transform(x, transpose):
    n = _width(x)
    power, m = factors(n)
    wide = x if x.dtype == torch.float64 else x.float()
    flat = wide.reshape(-1, n)
    if m > 1:
        P = paley(m).to(flat)
        flat = (flat.unflatten(1, (power, m)) @ (P.T if transpose else P)).flatten(1)
    if flat.device.type == "cpu" and not flat.requires_grad:
        flat = flat.clone(memory_format=torch.contiguous_format)  # in place, but never in the caller's memory
        _butterflies(flat.numpy(), m)
    else:
        step = m
        while step < n:
            a, b = flat.unflatten(1, (-1, 2, step)).unbind(2)
            flat = torch.stack((a + b, a - b), 2).flatten(1)
            step *= 2
    return (flat / math.sqrt(n)).view(x.shape).to(x.dtype)


def _width(x):
    """The last axis of x, whose numbers must not be whole: an orthogonal matrix would be cut to zeros."""
    if not x.is_floating_point():
        raise ValueError(f"x: expected floating point numbers, got {x.dtype}")
    return x.shape[-1]


def signs(n: int, seed: int) -> torch.Tensor:
    """n random signs, float32, the same on every machine for a seed."""
    drawn = torch.randint(0, 2, (n,), generator=torch.Generator().manual_seed(seed), device="cpu")
    return 2 * drawn.to(torch.float32) - 1


def orthogonal(n: int, seed: int) -> torch.Tensor:
    """A random rotation, dense, uniform over the orthogonal group (QR of a Gaussian, signs fixed), float64 [n, n]."""
    Q, R = torch.linalg.qr(
        torch.randn(n, n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed), device="cpu")
    )
    return Q * R.diagonal().sign()


@functools.lru_cache
def has_hadamard(n: int) -> bool:
    """Whether `hadamard` knows a matrix of this size."""
    try:
        factors(n)
    except ValueError:
        return False
    return True


_dense = functools.lru_cache(maxsize=16)(orthogonal)


def spin(x: torch.Tensor, seed: int) -> torch.Tensor:
    """x R along the last axis: random signs, then Hadamard; for a size that `hadamard` does not know, `orthogonal`."""
    n = _width(x)
    return hadamard(x * signs(n, seed).to(x)) if has_hadamard(n) else x @ _dense(n, seed).to(x)


def unspin(x: torch.Tensor, seed: int) -> torch.Tensor:
    """x R': undoes `spin`."""
    n = _width(x)
    return unhadamard(x) * signs(n, seed).to(x) if has_hadamard(n) else x @ _dense(n, seed).to(x).T


def quantize(W_OI, bits: int, x_TI=None, *, base: str = "uniform", seed: int = 0, **kw) -> Quantized:
    """Quantize W R with another quantizer; its inputs, where it wants some, are turned as well.

    base names any quantizer of this folder, kw goes to it. Stored: what it stores; R is the seed. In a network the
    inputs must be turned by `spin(x, seed)`, or the turn be folded into the layer before. Errors: ValueError.
    """
    if base == "rotate":
        raise ValueError('base: expected another quantizer than "rotate"')
    W_OI = check_weight(W_OI, bits)
    if x_TI is not None:
        kw["x_TI"] = spin(check_inputs(x_TI, W_OI.shape[1]), seed)
    q = load(base).quantize(spin(W_OI, seed), bits, **kw)
    return Quantized("rotate", q.shape, q.parts, {**q.how, "base": base, "seed": seed})


def dequantize(q: Quantized) -> torch.Tensor:
    """W_OI in float32, turned back."""
    inner = Quantized(q.how["base"], q.shape, q.parts, q.how)
    return unspin(inner.dequantize(), q.how["seed"])


def learn(loss, R: torch.Tensor, steps: int = 100, lr: float = 0.05, keep: str = "best") -> torch.Tensor:
    """A rotation that lowers `loss(R)`, started at R: SpinQuant's idea, Riemannian descent by Cayley steps.

    At each step the gradient G gives the skew matrix A = G R' - R G', scaled to norm 1, and
    R <- (I + lr/2 A)^-1 (I - lr/2 A) R stays orthogonal; lr falls linearly to 0. Rounded values are constant almost
    everywhere: a weight error may take them so, the loss of a network needs `ternary.through`. Returned is the best R
    seen, or the "last" one where `loss` draws new data at each call and cannot be compared. Source: Li et al. (2020),
    Cayley SGD; Liu et al. (2024), SpinQuant, sec. 3.2. Raises ValueError for another `keep`.
    """
    if keep not in ("best", "last"):
        raise ValueError(f'keep: expected "best" or "last", got {keep!r}')
    best, eye = None, torch.eye(len(R), dtype=R.dtype, device=R.device)
    for step in range(steps + 1):
        R = R.detach().requires_grad_()
        value = loss(R)
        if best is None or keep == "last" or value.item() < best[0]:
            best = value.item(), R.detach()
        (G,) = torch.autograd.grad(value, R)
        with torch.no_grad():
            A = G @ R.T - R @ G.T
            A = A * (0.5 * lr * (1 - step / steps) / A.norm().clamp(min=1e-30))
            R = torch.linalg.solve(eye + A, (eye - A) @ R)
    return best[1]
