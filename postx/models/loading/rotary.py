"""Rotary positions as `config.json` says them: the base, the share of channels, and how they were stretched afterwards.

A model trained on T tokens is made to read s T by slowing down its rotary pairs: all of them ("linear"), or only those
that turn so slowly that they never came round in training ("llama3", "yarn"), with a ramp between. Sources: Chen et
al. 2023 (position interpolation); Peng et al. 2023 (YaRN), sec. 3; Grattafiori et al. 2024 (Llama 3), whose numbers
are in its public code.
"""

import math

from postx.parts.rope import Rope


def rope(c, K, share=1.0, pairing="half"):
    """(Rope, what the scores are multiplied by) of a Config whose heads are K wide.

    share: of the channels that turn, where the config does not say. Raises ValueError for a stretch it does not know.
    """
    about = dict(c.get("rope_scaling") or {}) | dict(c.get("rope_parameters") or {})
    base = about.get("rope_theta", c.get("rope_theta", 10000.0))
    share = about.get("partial_rotary_factor", c.get("partial_rotary_factor", share))
    kind = about.get("rope_type", about.get("type", "default"))
    dims = int(K * share)
    whole = {"base": float(base), "pairing": pairing, "dims": None if dims == K else dims}
    if kind == "default":
        return Rope(**whole), 1.0
    if kind not in STRETCHES:
        raise ValueError(f"config.json: rope_type {kind!r} is not known; there are default, {', '.join(STRETCHES)}")
    plain = [float(base) ** (-2 * i / dims) for i in range(dims // 2)]
    trained = about.get("original_max_position_embeddings", c.get("max_position_embeddings"))
    try:
        slowed = STRETCHES[kind](plain, about, base, dims, trained)
        return Rope(**whole, frequencies=tuple(slowed)), _sharper(about) ** 2 if kind == "yarn" else 1.0
    except KeyError as error:
        raise ValueError(f"config.json: rope_type {kind!r} needs {error}") from error


def _linear(plain, about, *_):
    return [f / about["factor"] for f in plain]


def _llama3(plain, about, base, dims, trained):
    low, high = about["low_freq_factor"], about["high_freq_factor"]

    def slowed(f):
        rounds = trained * f / (2 * math.pi)  # how often the pair turned round in the trained length
        keep = min(1.0, max(0.0, (rounds - low) / (high - low)))
        return (1 - keep) * f / about["factor"] + keep * f

    return [slowed(f) for f in plain]


def _yarn(plain, about, base, dims, trained):
    def pair(rounds):  # the pair that turns round so often in the trained length
        return dims * math.log(trained / (rounds * 2 * math.pi)) / (2 * math.log(base))

    first, last = pair(about.get("beta_fast") or 32), pair(about.get("beta_slow") or 1)
    if about.get("truncate", True):
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, dims - 1)
    last += 0.001 if first == last else 0
    slow = [min(1.0, max(0.0, (i - first) / (last - first))) for i in range(dims // 2)]
    return [s * f / about["factor"] + (1 - s) * f for s, f in zip(slow, plain, strict=True)]


def magnitude(factor, weight=1.0):
    """YaRN's factor on the rotated vectors of a text that is `factor` times longer: 0.1 w ln(factor) + 1."""
    return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0


def _sharper(about):
    if about.get("attention_factor") is not None:
        return about["attention_factor"]
    one, all_ = about.get("mscale"), about.get("mscale_all_dim")
    if one and all_:
        return magnitude(about["factor"], one) / magnitude(about["factor"], all_)
    return magnitude(about["factor"])


STRETCHES = {"linear": _linear, "llama3": _llama3, "yarn": _yarn}
