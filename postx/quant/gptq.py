"""GPTQ: round one input column at a time, and let the columns still to come repair the output.

The squared error of a layer's output is tr(E H E'), E = W - Q, H = x'x. With U the upper Cholesky factor of H^-1
(H^-1 = U'U), rounding column i leaves e = (w_i - q_i) / U_ii, and the best repair of the later columns is

    w_j <- w_j - e U_ij        j > i

Source: Frantar et al. (2023), GPTQ, algorithm 1, as its authors' code does it: 1% of the mean of H's diagonal is added
to it, inputs that were always zero lose their weights, a group's scale is taken when its first column is reached.
Rows do not speak to each other, so each is one loop over numbers that stay in the cache; the columns after a segment
are repaired by one matrix product.
"""

import numba
import numpy as np
import torch

from postx.quant import Quantized, check_inputs, check_weight, not_zero, second_moment, split, uniform
from postx.quant._pack import pack
from postx.scans.runtime import jit
from postx.shapes import check

CALIBRATED = "needed"
SEGMENT = 128  # columns between two matrix products


@jit
def _segment(w, U, scale, zero, top, codes, errors):
    """Round a segment of columns in every row; w is used up, errors are what later columns must repair."""
    rows, width = w.shape
    for o in numba.prange(rows):
        for i in range(width):
            s, z = scale[o, i], zero[o, i]
            half = z - np.floor(z)
            code = min(max(np.rint(w[o, i] / s + half) + z - half, 0.0), top)
            e = (w[o, i] - (code - z) * s) / U[i, i]
            codes[o, i] = np.uint8(code)
            errors[o, i] = e
            for j in range(i + 1, width):
                w[o, j] -= e * U[i, j]


def quantize(
    W_OI,
    bits: int,
    x_TI=None,
    *,
    H_II=None,
    group: int | str = "row",
    grid="asymmetric",
    clip="max",
    act_order=False,
    static_groups=False,
    damp=0.01,
    scale_dtype=torch.float16,
) -> Quantized:
    """Round to nearest with error feedback, for the inputs x_TI or their second moment H_II.

    Arguments as `uniform.quantize`, but for group "tensor", which is not offered. act_order rounds the inputs of
    largest H_ii first; where groups follow that order it is stored, 32 bits an input. static_groups takes each group's
    scale before anything is rounded, from neighbouring inputs whatever the order of rounding is, so that no order is
    stored (the authors' `static_groups`). damp is a share of H's mean diagonal. Stored otherwise: as `uniform`. Inputs
    that never fire lose their weights, as in the authors' code. Errors: ValueError names the argument.
    """
    W_OI = check_weight(W_OI, bits)
    O, I = W_OI.shape
    if (x_TI is None) == (H_II is None):
        raise ValueError("x_TI, H_II: expected exactly one of the calibration inputs and their second moment")
    if group == "tensor":
        raise ValueError('group: GPTQ scales rows or groups of a row, got "tensor"')
    if not damp > 0:
        raise ValueError(f"damp: expected a positive share of H's mean diagonal, got {damp!r}")
    H = second_moment(check_inputs(x_TI, I)) if H_II is None else H_II
    check({"I": I}, H_II=H)
    H = H.to(W_OI.dtype)
    U, dead, order = factor(H, damp, act_order)
    w = W_OI.clone()
    w[:, dead] = 0
    groups = split(w, group)
    size = groups.shape[-1]
    if static_groups:
        fixed = uniform.scales(groups, split(torch.ones_like(w), group), bits, grid, clip, scale_dtype)
    w = w[:, order]
    codes, chosen = torch.empty_like(w, dtype=torch.uint8), []
    for start in range(0, I, I if static_groups else size):
        stop = I if static_groups else min(start + size, I)
        if static_groups:
            scale, zero = fixed
            chosen.append((scale[:, :, 0], zero))
            scale, zero = (None if part is None else part[:, order // size, 0][:, None] for part in fixed)
        else:
            ahead = w[:, start:stop][:, None]  # one group, already repaired
            scale, zero = uniform.scales(ahead, torch.ones_like(ahead), bits, grid, clip, scale_dtype)
            chosen.append((scale[:, :, 0], zero))
        z = uniform.origin(scale, zero, bits, grid).to(w.dtype)[:, 0]
        s = not_zero(scale, w.dtype)[:, 0]
        for a in range(start, stop, SEGMENT):
            b = min(a + SEGMENT, stop)
            mine = slice(a, b) if static_groups else slice(None)
            codes[:, a:b], errors = _round(w[:, a:b], U[a:b, a:b], s[:, mine], z[:, mine], 2**bits - 1)
            w[:, b:] -= errors @ U[a:b, b:]
    parts = {"scale": torch.cat([scale for scale, _ in chosen], 1)}
    if grid == "asymmetric":
        parts["zero"] = uniform.pack_zero(torch.cat([zero for _, zero in chosen], 1), bits)
    if act_order and size < I and not static_groups:
        parts["order"] = order.int()  # the groups follow it
    elif act_order:
        codes = codes[:, order.argsort()]
    how = {"bits": bits, "group": group, "grid": grid}
    return Quantized("gptq", (O, I), {"codes": pack(codes, bits), **parts}, how)


def dequantize(q: Quantized) -> torch.Tensor:
    """W_OI in float32: as `uniform`, the inputs put back in their order."""
    W_OI = uniform.dequantize(q)
    return W_OI[:, q.parts["order"].long().argsort()] if "order" in q.parts else W_OI


def factor(H_II, damp: float, act_order: bool):
    """(U, dead, order): the upper Cholesky factor of H^-1, inputs that never fire, the order of rounding.

    Raises ValueError where H is not finite, or not positive definite even with the damping.
    """
    if H_II.is_complex() or not bool(torch.isfinite(H_II).all()):
        raise ValueError("H_II: expected finite real numbers")
    H = H_II.detach().clone()
    diagonal = H.diagonal()
    dead = diagonal == 0
    diagonal[dead] = 1
    order = (
        diagonal.argsort(descending=True, stable=True) if act_order else torch.arange(len(H), device=H.device)
    )
    diagonal += damp * diagonal.mean()
    lower, info = torch.linalg.cholesky_ex(H[order][:, order])
    if int(info):
        raise ValueError(
            f"H_II: not positive definite with damp={damp}; is it x'x, and are the inputs finite?"
        )
    return torch.linalg.cholesky(torch.cholesky_inverse(lower), upper=True), dead, order


def _round(w, U, s, z, top):
    """Codes of a segment of columns, and the errors that later columns must repair, both of w's shape.

    s and z have one column, or one for each of w's.
    """
    if w.device.type == "cpu":
        w, U, s, z = (x.contiguous() for x in (w, U, s.expand_as(w), z.expand_as(w)))
        codes, errors = torch.empty_like(w, dtype=torch.uint8), torch.empty_like(w)
        _segment(*(x.numpy() for x in (w.clone(), U, s, z)), float(top), codes.numpy(), errors.numpy())
        return codes, errors
    return _round_torch(w, U, s, z, top)


def _round_torch(w, U, s, z, top):
    w, codes, errors = w.clone(), torch.empty_like(w, dtype=torch.uint8), torch.empty_like(w)
    s, z = s.expand_as(w), z.expand_as(w)
    for i in range(w.shape[1]):
        now = w[:, i : i + 1]
        s_i, z_i = s[:, i : i + 1], z[:, i : i + 1]
        half = z_i - torch.floor(z_i)
        code = (torch.round(now / s_i + half) + z_i - half).clamp(0, top)
        errors[:, i : i + 1] = (now - (code - z_i) * s_i) / U[i, i]
        codes[:, i : i + 1] = code.to(torch.uint8)
        w[:, i + 1 :] -= errors[:, i : i + 1] * U[i, i + 1 :]
    return codes, errors
