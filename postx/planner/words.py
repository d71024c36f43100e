"""The planner's numbers and sentences in words; the page has the same sentences from the same `SENTENCES`.

A number is said to three digits. k and M of tokens are 1,024 and 1,024 squared, GB are 10^9 bytes.
"""

import math
import re
from decimal import ROUND_HALF_UP, Decimal

UNITS = {
    "bytes": (("B", 1), ("kB", 1e3), ("MB", 1e6), ("GB", 1e9), ("TB", 1e12)),
    "flops": (("FLOPs", 1), ("MFLOP", 1e6), ("GFLOP", 1e9), ("TFLOP", 1e12), ("PFLOP", 1e15), ("EFLOP", 1e18)),
    "seconds": (("µs", 1e-6), ("ms", 1e-3), ("s", 1), ("min", 60), ("h", 3600)),
}
SENTENCES = {
    "fits": "It fits: {total} of the {usable} that can be used.",
    "over": "It does not fit: {total} where {usable} can be used.",
    "bandwidth": "Bandwidth binds: reading {bytes} takes {memory}, the {flops} of arithmetic only {compute}.",
    "compute": "Compute binds: {flops} take {compute}, reading {bytes} only {memory}.",
    "users": "Texts of {context} tokens fit for {users}.",
    "no_users": "A text of {context} tokens does not fit even for one user.",
    "longest": "For {batch}, texts of up to {longest} tokens fit.",
    "any_length": "For {batch}, texts of any length fit.",
    "no_length": "For {batch}, no text fits.",
    "cache": "From {n} tokens on, the cache is larger than the weights.",
    "no_cache": "The cache never outgrows the weights: no layer keeps every token.",
    "pairs": "From {n} tokens on, attention takes more FLOPs for a written token than the matrices do.",
    "no_pairs": "Attention never takes more FLOPs than the matrices.",
    "compute_users": "From {n} at once on, compute binds instead of bandwidth.",
    "no_compute_users": "At {context} tokens no number of users makes compute bind: each brings a cache to be read.",
    "needs": "needs {total} at {bits} bits: weights {weights}, cache {cache}, state {state}; {usable} can be used",
    "enough": "{needs}, enough for {users} users or {longest} tokens each",
    "enough_tokens": "{needs}, enough for {longest} tokens each",
    "short": "published for {tokens} tokens, {context} are asked",
    "forgets": "no layer keeps every token: {kept} stand for {context}",
}
AMOUNT = re.compile(r"([\d,]*\.?\d+)\s*(k|m|g|kb|mb|gb|tb|gib|tib)?", re.I)
SIZES = {"k": 1024, "m": 1024**2, "g": 1e9, "kb": 1e3, "mb": 1e6, "gb": 1e9, "tb": 1e12, "gib": 2**30, "tib": 2**40}


def amount(name, text):
    """The number that "64k", "1,000", "24 GB" or "1.5M" says. Raises ValueError that names what was asked."""
    found = AMOUNT.fullmatch(str(text).strip())
    if not found:
        raise ValueError(f"{name}: expected a number such as 8192, 64k or 24 GB, got {text!r}")
    return float(found[1].replace(",", "")) * SIZES.get((found[2] or "").lower(), 1)


def three(x):
    """A number to three digits, halves away from zero: 1,230, 0.0456, 78.9."""
    if not x or math.isinf(x):
        return "0" if not x else "∞"
    exact = Decimal(x)
    rounded = exact.quantize(Decimal(1).scaleb(exact.adjusted() - 2), ROUND_HALF_UP)
    text = f"{rounded:,f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def say(x, kind):
    """A number with its unit: say(16.06e9, "bytes") is 16.1 GB."""
    units = UNITS[kind]
    unit, size = next((pair for pair in reversed(units) if x >= pair[1]), units[0])
    return f"{three(x / size)} {unit}"


def money(x):
    """Dollars: $3.33, and to three digits below ten cents."""
    return f"${Decimal(x).quantize(Decimal('0.01'), ROUND_HALF_UP):,f}" if x >= 0.1 else f"${three(x)}"


def whole(n):
    """A count as it stands, with commas: 65,536."""
    return f"{n:,.0f}"


def many(users):
    """A number of users in words."""
    return "any number of users" if math.isinf(users) else f"{three(users)} user{'s' if users != 1 else ''}"


def told(found, choices):
    """The sentences that belong to what `postx.planner.formulas.evaluate` found, in their order."""
    context = whole(choices["context"])
    fits = found["total_bytes"] <= found["usable"]
    binds = "compute" if found["compute_seconds"] > found["memory_seconds"] else "bandwidth"
    longest, users = found["longest"], found["most_users"]

    def n(key, missing):
        x = found[key]
        if math.isinf(x):
            return missing, {"context": context}
        return key.removesuffix("_crossing"), {"n": three(x) if "crossing" in key else many(x)}

    parts = [
        ("fits" if fits else "over",
         {"total": say(found["total_bytes"], "bytes"), "usable": say(found["usable"], "bytes")}),
        (binds, {"bytes": say(found["token_bytes"], "bytes"), "memory": say(found["memory_seconds"], "seconds"),
                 "flops": say(found["token_flops"], "flops"), "compute": say(found["compute_seconds"], "seconds")}),
        ("users" if users else "no_users", {"users": many(users),
                                            "context": context}),
        ("any_length" if math.isinf(longest) else "longest" if longest else "no_length",
         {"batch": many(choices["batch"]), "longest": three(longest)}),
        n("cache_crossing", "no_cache"), n("pairs_crossing", "no_pairs"), n("compute_users", "no_compute_users"),
    ]  # fmt: skip
    return [SENTENCES[key].format(**filled) for key, filled in parts]
