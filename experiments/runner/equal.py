"""Models of equal size: patterns of one depth, and the MLP width that gives each the same number of parameters.

With experts (mlp="E") the parameters that one token reads are counted: that is what dense models have all of.
"""

import torch

from postx.models.lm import LM, count


def spread(mixer, attention, layers, n, where="spread"):
    """A pattern of `layers` letters of which n are attention, placed evenly, or one "first", "middle" or "last".

    spread("S", "A", 8, 2) == "SSASSSAS": each attention layer stands in the middle of its share of the depth.
    Raises ValueError for more attention layers than layers, or a place named for any number but one.
    """
    if not 0 <= n <= layers:
        raise ValueError(f"n: expected 0 to {layers} attention layers, got {n}")
    if where == "spread":
        taken = {int((i + 0.5) * layers / n) for i in range(n)}
    elif n == 1 and where in ("first", "middle", "last"):
        taken = {{"first": 0, "middle": layers // 2, "last": layers - 1}[where]}
    else:
        raise ValueError(f"where: {where!r} names the place of one layer, of 'first', 'middle', 'last'; n is {n}")
    return "".join(attention if i in taken else mixer for i in range(layers))


def options_of(pattern, F, table, mlp="F"):
    """The options of a pattern: those of its own letters, and the width of its MLPs."""
    return {letter: table[letter] for letter in set(pattern) & set(table)} | {mlp: {**table.get(mlp, {}), "F": F}}


def parameters(pattern, D, Y, F, table, mlp="F"):
    """Parameters that a token reads in the model with an MLP of width F after every mixer; built without memory."""
    with torch.device("meta"):
        return count(LM(pattern, D=D, Y=Y, mlp=mlp, options=options_of(pattern, F, table, mlp))).active


def widen(pattern, D, Y, target, table, step=8, mlp="F"):
    """The MLP width, a multiple of `step`, whose model comes closest to `target` parameters.

    Parameters are linear in the width, so two counts give it. Raises ValueError where even the narrowest MLP is
    too much: within 5% is what the comparisons promise.
    """
    low, high = (parameters(pattern, D, Y, F, table, mlp) for F in (step, 2 * step))
    F = step * max(1, 1 + round((target - low) / (high - low)))
    found = low + (F // step - 1) * (high - low)
    if abs(found - target) > 0.05 * target:
        raise ValueError(f"target: {pattern} of width {D} has {found} parameters at F={F}, not {target} within 5%")
    return F


def config(pattern, D, Y, target, table, mlp="F"):
    """The keyword arguments of an `LM` of that pattern with `target` parameters, to 5%."""
    F = widen(pattern, D, Y, target, table, mlp=mlp)
    return {
        "pattern": pattern, "D": D, "Y": Y, "mlp": mlp, "options": options_of(pattern, F, table, mlp),
    }


def kv_bytes(pattern, T, D, table, item=2):
    """Bytes of keys and values after T tokens: 2 G K a token and attention layer, at most its window of tokens.

    `item` bytes a number (2: bf16). What bounded layers hold is not in it.
    """
    total = 0
    for letter in pattern:
        if letter in "AL":
            o = table.get(letter, {})
            heads = o.get("H", 4)
            width = o.get("K") or D // heads
            kept = min(T, o["window"]) if o.get("window") else T
            total += 2 * (o.get("G") or heads) * width * kept * item
    return total


def state_floats(lm_config, T):
    """Floats of the whole state after T tokens, keys and values included; computes nothing."""
    with torch.device("meta"):
        return LM(**lm_config).state_floats(T)
