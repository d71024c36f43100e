"""A KV cache in fewer bits: each key and value is a vector, encoded when its token comes (`turbo`).

    with rounded(lm, 3) as kept:
        logits, S = lm(ids)          # every score is with a rounded key, every answer a sum of rounded values
    kept.bits_per_number, kept.error

A key is rounded before its rotary position turns it, and turned when it is read: a turn keeps lengths, so the error is
the same on either side. Queries stay as they are. Nothing is faster here: the rounded vectors stay in floating point,
and what is measured is what they do to the model. Source of the idea: Zandieh et al. (2025), TurboQuant, who round a
KV cache.
"""

from contextlib import contextmanager
from dataclasses import dataclass

from torch import nn

from postx.mixers import attention
from postx.quant import turbo, uniform


@dataclass
class Kept:
    """What went through the cache: vectors, their numbers, the bytes stored, and their squared error."""

    vectors: int = 0
    numbers: int = 0
    nbytes: int = 0
    wrong: float = 0.0
    total: float = 0.0

    @property
    def bits_per_number(self) -> float:
        return 8 * self.nbytes / self.numbers

    @property
    def error(self) -> float:
        """Relative squared error of all vectors together."""
        return self.wrong / self.total


@contextmanager
def rounded(lm: nn.Module, bits: int, *, form="mse", parts=("k", "v"), **how):
    """While it is open, the attention layers of lm keep their keys and values in `bits` bits a coordinate.

    form and how go to `turbo.quantize`; form "plain" is `uniform.quantize`, a scale for each vector or for each `group`
    of its coordinates. parts: "k", "v" or both. Yields the `Kept` of all of them. Raises ValueError
    for a model without such a layer, other parts, or a layer whose cache is not what its projections give (a short
    convolution or a norm stands between).
    """
    if not parts or not set(parts) <= {"k", "v"}:
        raise ValueError(f'parts: expected "k", "v" or both, got {parts!r}')
    layers = [m for m in lm.modules() if isinstance(m, attention.Layer)]
    if not layers:
        raise ValueError("lm: no attention layer, so there is no cache of keys and values")
    if any(m.norms is not None or m.conv.taps_DW is not None for m in layers):
        raise ValueError("lm: a convolution or a norm stands between the projections and the cache")
    kept, hooks = Kept(), []
    for layer in layers:
        for part, (heads, width) in zip(("k", "v"), layer.heads[1:], strict=True):
            if part in parts:
                hooks.append(
                    getattr(layer, part).register_forward_hook(_rounding(kept, heads, width, bits, form, how))
                )
    try:
        yield kept
    finally:
        for hook in hooks:
            hook.remove()


def _rounding(kept, heads, width, bits, form, how):
    def hook(module, args, y):
        x = y.detach().reshape(-1, width)
        q = uniform.quantize(x, bits, **how) if form == "plain" else turbo.quantize(x, bits, form=form, **how)
        back = q.dequantize()
        kept.vectors, kept.numbers, kept.nbytes = (
            kept.vectors + len(x),
            kept.numbers + x.numel(),
            kept.nbytes + q.nbytes,
        )
        kept.wrong += float((x - back).square().sum())
        kept.total += float(x.square().sum())
        return back.view(y.shape).to(y.dtype)

    return hook
