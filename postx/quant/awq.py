"""AWQ: make the inputs that fire hardest larger before rounding, and divide them back afterwards.

    W ~ Q(W diag(s)) diag(s)^-1        s_i = (mean |x_i|)^r / sqrt(max s min s)

The step of a group hardly changes when a few columns grow, so their relative error falls by s. The exponent r is
searched on 0, 1/20, ..., 19/20 for the least error of the layer's output; r = 0 is plain rounding. In a network
diag(s)^-1 is folded into the layer before; here s is stored in float16 and counted. Source: Lin et al. (2024), AWQ,
sec. 3.2, and its authors' code, which never tries r = 1.
"""

import torch

from postx.quant import Quantized, check_inputs, check_weight, second_moment, uniform

CALIBRATED = "needed"
EXPONENTS = [r / 20 for r in range(20)]
LEAST = 1e-4  # of a mean |x|: an input that never fires is not blown up


def quantize(
    W_OI,
    bits: int,
    x_TI,
    *,
    group: int | str = "row",
    grid="asymmetric",
    clip="max",
    scale_dtype=torch.float16,
) -> Quantized:
    """Round W diag(s) to nearest, for the exponent that serves the inputs x_TI best.

    Arguments as `uniform.quantize`, whose parts are stored, and 16 bits an input for s. Errors: ValueError.
    """
    W_OI = check_weight(W_OI, bits)
    x_TI = check_inputs(x_TI, W_OI.shape[1]).to(W_OI.dtype)
    H, strength = second_moment(x_TI), x_TI.abs().mean(0).clamp(min=LEAST)
    plain = {"group": group, "grid": grid, "clip": clip, "scale_dtype": scale_dtype}
    best = None
    for r in EXPONENTS:
        s = strength**r
        s = (s / (s.max() * s.min()).sqrt()).to(torch.float16)
        if not bool((torch.isfinite(s) & (s > 0)).all()):
            break  # inputs so unequal that float16 cannot hold s; a larger r spreads it further
        E = W_OI - uniform.round_trip(W_OI * s, bits, **plain) / s
        error = float(((E @ H) * E).sum())  # tr(E H E'), the squared error of the output
        if best is None or error < best[0]:
            best = error, r, s
    _, r, s = best
    q = uniform.quantize(W_OI * s, bits, **plain)
    return Quantized("awq", q.shape, {**q.parts, "s": s}, {**q.how, "exponent": r})


def dequantize(q: Quantized) -> torch.Tensor:
    """W_OI in float32: as `uniform`, each input divided by its s."""
    return uniform.dequantize(q) / q.parts["s"].float()
