"""TurboQuant: turn a vector at random, then round each coordinate with the code that is best for a coordinate.

A coordinate of a random unit vector in d dimensions has the exact density

    p(x) = Gamma(d/2) / (sqrt(pi) Gamma((d-1)/2)) (1 - x^2)^((d-3)/2)        -1 <= x <= 1

and its Lloyd-Max code needs no data, so vectors can be encoded one by one as they come: a KV cache, an index.

    mse    x ~ |x| R' c[codes]                          least error, but <y, x> comes out too small on average
    prod   b - 1 bits of mse, and one bit for the rest r: signs of G r, G Gaussian (QJL);
           r ~ |r| sqrt(pi/2) / d  G' sign(G r)         <y, x> is right on average, and noisier

Source: Zandieh et al. (2025), TurboQuant, algorithms 1 and 2; Zandieh et al. (2024), QJL, for the sign sketch. R and G
are seeds. R is dense by default, as in the paper; "hadamard" turns in d log d, and its coordinates follow p nearly.
"""

import functools
import math

import torch

from postx.quant import Quantized, check_weight, lloyd, not_zero, store
from postx.quant._pack import pack, unpack
from postx.quant.rotate import orthogonal, spin, unspin

FORMS, TURNS = ("mse", "prod"), ("dense", "hadamard")


@functools.lru_cache
def codebook(d: int, bits: int) -> tuple[tuple[float, ...], float]:
    """Lloyd-Max points for a coordinate of a random unit vector, and the squared error of a whole vector.

    Raises ValueError for d < 3, where the density has no bound.
    """
    if d < 3:
        raise ValueError(f"d: the code is for vectors of at least 3 coordinates, got {d}")
    if bits == 0:
        return (0.0,), 1.0
    # The density beyond 14 standard deviations weighs less than 1e-40.
    reach = min(1.0, 14 / math.sqrt(d))
    points, error = lloyd.codebook(2**bits, lambda x: (1 - x * x) ** ((d - 3) / 2), -reach, reach)
    return tuple(points.tolist()), d * error


@functools.lru_cache(maxsize=8)
def _dense(d, seed, gaussian):
    if gaussian:
        return torch.randn(d, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float32, device="cpu")
    return orthogonal(d, seed).float()


def quantize(
    W_OI, bits: int, *, form="mse", turn="dense", seed: int = 0, scale_dtype=torch.float16
) -> Quantized:
    """Each row of W_OI is a vector: its norm is kept, its direction turned and rounded.

    form "mse" or "prod", see the module; prod spends one of the bits on the sign sketch, so 1 bit is the sketch alone.
    Stored: `bits` a coordinate and the norm of each row, and for prod the norm of what is left. Errors: ValueError.
    """
    W_OI = check_weight(W_OI, bits).float()
    for name, value, known in (("form", form, FORMS), ("turn", turn, TURNS)):
        if value not in known:
            raise ValueError(f"{name}: expected one of {', '.join(known)}, got {value!r}")
    d = W_OI.shape[1]
    coarse = bits if form == "mse" else bits - 1
    points = torch.tensor(codebook(d, coarse)[0], dtype=torch.float32, device=W_OI.device)
    norm = store(W_OI.norm(dim=1, keepdim=True), scale_dtype)
    unit = W_OI / not_zero(norm, W_OI.dtype)
    codes = lloyd.nearest(_turn(unit, turn, seed), points) if coarse else None
    parts = {"norm": norm}
    if coarse:
        parts["codes"] = pack(codes, coarse)
    if form == "prod":
        rest = unit - (_back(points[codes.long()], turn, seed) if coarse else 0)
        parts["rest"] = store(rest.norm(dim=1, keepdim=True), scale_dtype)
        sketch = rest @ _dense(d, seed + 1, True).to(rest).T
        parts["signs"] = pack((sketch > 0).to(torch.uint8), 1)
    how = {"bits": bits, "form": form, "turn": turn, "seed": seed}
    return Quantized("turbo", tuple(W_OI.shape), parts, how)


def dequantize(q: Quantized) -> torch.Tensor:
    """The vectors again, float32 [O, I]. For "prod", a dot product with them is right on average over seeds."""
    d, how = q.shape[1], q.how
    norm = q.parts["norm"].float()
    unit = torch.zeros(q.shape, dtype=torch.float32, device=norm.device)
    if "codes" in q.parts:
        coarse = how["bits"] - (how["form"] == "prod")
        points = torch.tensor(codebook(d, coarse)[0], dtype=torch.float32, device=norm.device)
        unit = _back(points[unpack(q.parts["codes"], coarse, d).long()], how["turn"], how["seed"])
    if how["form"] == "prod":
        signs = 2.0 * unpack(q.parts["signs"], 1, d).float() - 1
        G = _dense(d, how["seed"] + 1, True).to(signs)
        unit = unit + math.sqrt(math.pi / 2) / d * q.parts["rest"].float() * (signs @ G)
    return unit * norm


def _turn(x, turn, seed):
    return spin(x, seed) if turn == "hadamard" else x @ _dense(x.shape[1], seed, False).to(x)


def _back(x, turn, seed):
    return unspin(x, seed) if turn == "hadamard" else x @ _dense(x.shape[1], seed, False).to(x).T
