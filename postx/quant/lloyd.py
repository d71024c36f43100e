"""Lloyd-Max: the code whose points are the means of their cells and whose edges lie half-way between points.

    c_i = E[x | e_i < x < e_{i+1}]        e_i = (c_{i-1} + c_i) / 2

No code of as many points has a smaller mean squared error for that density. Source: Max (1960), "Quantizing for
minimum distortion"; Lloyd (1957, printed 1982). Max iterated by hand; here Newton's method solves both conditions
at once, started at the points that are best for many levels (density of points as p^(1/3); Panter and Dite, 1951).
"""

import functools
import math

import numba
import numpy as np
import torch

from postx.quant import Quantized, check_weight, join, not_zero, split, store
from postx.quant._pack import pack, unpack
from postx.scans.runtime import jit

SPAN = 12.0  # a Gaussian beyond 12 standard deviations weighs 1e-33
BLOCK, MOST = 1024, 31  # numbers looked at together; edges up to which counting beats a binary search
NODES, WEIGHTS = np.polynomial.legendre.leggauss(64)


def gaussian(x):
    """Density of the standard normal distribution."""
    return np.exp(-0.5 * np.square(x)) / math.sqrt(2 * math.pi)


def moments(pdf, edges):
    """Integrals of p, x p and x^2 p over each cell between neighbouring edges, [3, cells], by quadrature."""
    lo, hi = edges[:-1, None], edges[1:, None]
    x = (lo + hi) / 2 + (hi - lo) / 2 * NODES
    p = pdf(x) * WEIGHTS * (hi - lo) / 2
    return np.stack([p.sum(1), (x * p).sum(1), (x * x * p).sum(1)])


def codebook(levels: int, pdf=gaussian, lo: float = -SPAN, hi: float = SPAN) -> tuple[np.ndarray, float]:
    """The best `levels` points for a density on [lo, hi], and its mean squared error.

    `pdf` takes and gives arrays; it need not be normalised, but must be smooth and log-concave for the best code
    to be the only one (Fleischer 1964). Raises ValueError for levels < 1, an empty interval, or no convergence.
    """
    if levels < 1 or not lo < hi:
        raise ValueError(f"levels: expected at least 1 on an interval lo < hi, got {levels} on [{lo}, {hi}]")
    mass = moments(pdf, np.array([lo, 0.5 * (lo + hi), hi]))[0].sum()
    grid = np.linspace(lo, hi, 20_001)
    rank = np.cumsum(np.cbrt(pdf(grid)))
    c = np.interp((np.arange(levels) + 0.5) / levels, rank / rank[-1], grid)
    for _ in range(100):
        edges = np.concatenate([[lo], (c[1:] + c[:-1]) / 2, [hi]])
        P, M, _ = moments(pdf, edges)
        mean = M / P
        # d mean / d edge; an inner edge moves by half of what either neighbour moves, an outer one not at all
        left, right = pdf(edges[:-1]) * (mean - edges[:-1]) / P, pdf(edges[1:]) * (edges[1:] - mean) / P
        left[0] = right[-1] = 0.0
        slope = np.diag(left + right) / 2 + np.diag(left[1:], -1) / 2 + np.diag(right[:-1], 1) / 2
        step = np.linalg.solve(np.eye(levels) - slope, mean - c)
        while np.any(np.diff(c + step) <= 0) or c[0] + step[0] <= lo or c[-1] + step[-1] >= hi:
            step = step / 2  # a full step must not change the order of the points
        c = c + step
        if np.abs(step).max() < 1e-13 * (hi - lo):
            break
    else:
        raise ValueError("pdf: Newton's method did not settle; is the density smooth on [lo, hi]?")
    P, M, Q = moments(pdf, np.concatenate([[lo], (c[1:] + c[:-1]) / 2, [hi]]))
    return c, float((Q - 2 * c * M + c * c * P).sum() / mass)


@functools.lru_cache
def gaussian_codebook(bits: int) -> tuple[tuple[float, ...], float]:
    """Points and mean squared error of the best code of 2^bits points for a standard normal."""
    points, error = codebook(2**bits)
    return tuple(points.tolist()), error


def fit(x: torch.Tensor, levels: int, steps: int = 1000) -> torch.Tensor:
    """The code for a sample: Lloyd's iteration (k-means on a line) on the sorted values, [levels], sorted.

    Starts where many levels would stand at their best (density of points as p^(1/3), p from the sample's quantiles)
    and ends when no point moves. Points that no value is nearest to stay where they are. Raises ValueError for an
    empty or non-finite sample.
    """
    if x.numel() == 0 or not bool(torch.isfinite(x).all()):
        raise ValueError("x: expected a sample of finite numbers")
    values = x.detach().double().flatten().sort().values
    total = torch.cat([values.new_zeros(1), values.cumsum(0)])
    quantile = values[torch.linspace(0, len(values) - 1, 32 * levels + 1, device=x.device).round().long()]
    rank = (
        quantile.diff().pow(2 / 3).cumsum(0)
    )  # a cell of equal mass has p = 1 / width, so p^(1/3) dx = dx^(2/3)
    at = (torch.arange(levels, device=x.device) + 0.5) / levels * rank[-1]
    points = (quantile[1:] + quantile[:-1])[torch.searchsorted(rank, at).clamp(max=len(rank) - 1)] / 2
    for _ in range(steps):
        edges = torch.searchsorted(values, (points[1:] + points[:-1]) / 2)
        edges = torch.cat([edges.new_zeros(1), edges, edges.new_full((1,), len(values))])
        count = edges.diff()
        means = torch.where(count > 0, total[edges].diff() / count.clamp(min=1), points)
        if torch.equal(means, points):
            break
        points = means
    return points


@jit
def _count(x, edges, codes):
    """How many edges lie below each number: block by block, so that each edge meets a block in the cache."""
    for block in numba.prange(-(-x.size // BLOCK)):
        part = x[block * BLOCK : min(block * BLOCK + BLOCK, x.size)]
        out = codes[block * BLOCK : min(block * BLOCK + BLOCK, x.size)]
        out[:] = 0
        for edge in edges:
            for i in range(part.size):
                out[i] += np.uint8(part[i] > edge)


def nearest(x: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    """Index of the point nearest to each x, uint8; `points` sorted, at most 256. Half-way: the lower point."""
    if not x.is_floating_point() or not points.is_floating_point():
        raise ValueError(f"x, points: expected floating point numbers, got {x.dtype} and {points.dtype}")
    edges = (points[1:] + points[:-1]) / 2
    if x.device.type != "cpu" or len(edges) > MOST:
        return torch.bucketize(x.contiguous(), edges).to(torch.uint8)
    codes = torch.empty(x.shape, dtype=torch.uint8)
    _count(x.detach().contiguous().view(-1).numpy(), edges.numpy(), codes.view(-1).numpy())
    return codes


def quantize(
    W_OI, bits: int, *, group: int | str = "row", code: str = "gaussian", scale_dtype=torch.float16
) -> Quantized:
    """Each group is divided by its root mean square and rounded to a Lloyd-Max code of 2^bits points.

    code "gaussian": the fixed code of the standard normal, nothing stored; "fit": fitted to this tensor's own
    normalised weights, 2^bits numbers in float16 stored. group: "tensor", "row" or a number of inputs. Stored:
    `bits` a weight and one scale a group. Errors: ValueError names the argument.
    """
    W_OI = check_weight(W_OI, bits)
    if code not in ("gaussian", "fit"):
        raise ValueError(f'code: expected "gaussian" or "fit", got {code!r}')
    groups = split(W_OI, group)
    count = split(torch.ones_like(W_OI), group).sum(-1, keepdim=True)
    scale = store((groups.square().sum(-1, keepdim=True) / count).sqrt(), scale_dtype)
    unit = join(groups / not_zero(scale, W_OI.dtype), W_OI.shape)
    if code == "fit":
        points = fit(unit, 2**bits).to(torch.float16)
    else:
        points = torch.tensor(gaussian_codebook(bits)[0], dtype=torch.float32, device=W_OI.device)
    parts = {"codes": pack(nearest(unit, points.to(W_OI.dtype)), bits), "scale": scale.squeeze(-1)}
    if code == "fit":
        parts["points"] = points
    return Quantized("lloyd", tuple(W_OI.shape), parts, {"bits": bits, "group": group})


def dequantize(q: Quantized) -> torch.Tensor:
    """W_OI in float32: the point of each code times the scale of its group."""
    bits = q.how["bits"]
    points = q.parts.get("points")
    if points is None:
        points = torch.tensor(gaussian_codebook(bits)[0], dtype=torch.float32, device=q.parts["codes"].device)
    unit = points.float()[unpack(q.parts["codes"], bits, q.shape[1]).long()]
    return join(split(unit, q.how["group"]) * q.parts["scale"].float()[..., None], q.shape)
