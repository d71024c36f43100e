"""The planner's arithmetic: one table of expressions, which Python and the page both evaluate as they stand.

An expression is arithmetic on earlier names, on the numbers of a row (`postx.planner.rows.Part`), on the choices and on
the device; + - * / and the functions of `KNOWN`. It means the same in Python and in JavaScript: `_static/widgets/
planner.js` is handed this table and compiles it, and a test holds what it finds to what `evaluate` finds.

Counted: weights, cache and state; every matrix once a token, 2 FLOPs a weight; every pair of tokens of attention; the
recurrences. Bytes are what must be read or written at least once: weights, cache, state. Not counted: activations,
norms, the links between devices, keys and values that a tiled kernel reads again. Hence a floor, not a forecast.
"""

import ast
import math

KNOWN = {
    "min": min,
    "max": max,
    "pow": math.pow,
    "floor": lambda x: x if math.isinf(x) else math.floor(x),
    # JavaScript divides by zero; 0 / 0 is made infinite too: what no token adds to never overflows.
    "over": lambda a, b: a / b if b else (math.inf if a >= 0 else -math.inf),
}

ROW = ("weights", "matrix", "routed", "grow", "slide", "state", "pair", "read_pair", "slide_pair", "recur",
       "head", "chosen", "window")  # fmt: skip
CHOICES = ("context", "batch", "weight_bits", "cache_bits", "state_bits")
DEVICE = ("flops", "bandwidth", "memory", "share", "price")

FORMULAS = {
    # Bytes that are kept. `kept`: tokens in the window.
    "kept": "min(context, window)",
    "weight_bytes": "weights * weight_bits / 8",
    "each_cache": "(grow * context + slide * kept) * cache_bits / 8",
    "each_state": "state * state_bits / 8",
    "cache_bytes": "batch * each_cache",
    "state_bytes": "batch * each_state",
    "total_bytes": "weight_bytes + cache_bytes + state_bytes",
    "usable": "memory * share",
    # One written token for each of the batch. `touched`: the experts that some token of the batch takes, on average,
    # if the router spreads them evenly.
    "active": "matrix + routed * chosen",
    "touched": "1 - pow(1 - chosen, batch)",
    "token_flops": "batch * (2 * active + read_pair * context + slide_pair * kept + recur)",
    "token_bytes": "(matrix + routed * touched) * weight_bits / 8 + cache_bytes + 2 * state_bytes",
    "compute_seconds": "token_flops / flops",
    "memory_seconds": "token_bytes / bandwidth",
    "token_seconds": "max(compute_seconds, memory_seconds)",
    "tokens_a_second": "batch / token_seconds",
    "written_cost": "1000000 / tokens_a_second * price / 3600",
    # One prompt of `context` tokens, read by itself; the head scores its last token only.
    "seen_pairs": "kept * (kept + 1) / 2 + (context - kept) * kept",
    "prompt_flops": "2 * (active - head) * context + 2 * head + pair * context * (context + 1) / 2"
    " + slide_pair * seen_pairs + recur * context",
    "prompt_bytes": "(matrix + routed * (1 - pow(1 - chosen, context))) * weight_bits / 8 + each_cache + each_state",
    "prompt_seconds": "max(prompt_flops / flops, prompt_bytes / bandwidth)",
    "prompt_cost": "1000000 / context * prompt_seconds * price / 3600",
    # Where one thing overtakes another. A cache is the lesser of two lines in n: (grow + slide) n, and beyond the
    # window grow n + slide window; it reaches a height where both have.
    "spare": "usable - weight_bytes",
    "most_users": "floor(max(0, over(spare, each_cache + each_state)))",
    "room": "over(spare, batch) - each_state",
    "longest": "floor(max(0, max(over(room, (grow + slide) * cache_bits / 8),"
    " over(room - slide * window * cache_bits / 8, grow * cache_bits / 8))))",
    "cache_crossing": "max(over(weight_bytes / batch, (grow + slide) * cache_bits / 8),"
    " over(weight_bytes / batch - slide * window * cache_bits / 8, grow * cache_bits / 8))",
    "pairs_crossing": "max(over(2 * active, read_pair + slide_pair),"
    " over(2 * active - slide_pair * window, read_pair))",
    # Users beyond whom the arithmetic takes longer than the reading; all experts are then read.
    "compute_users": "max(1, over((matrix + routed) * weight_bits / 8 / bandwidth,"
    " max(0, token_flops / batch / flops - (each_cache + 2 * each_state) / bandwidth)))",
}


def _compiled():
    known, found = set(KNOWN) | set(ROW) | set(CHOICES) | set(DEVICE), {}
    for name, text in FORMULAS.items():
        tree = ast.parse(text, mode="eval")
        if unknown := {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)} - known:
            raise ValueError(f"formula {name}: {', '.join(sorted(unknown))} stands before it is known")
        known.add(name)
        found[name] = compile(tree, f"<{name}>", "eval")
    return found


_CODE = _compiled()


def evaluate(row, choices, device):
    """{name: value} of all formulas. The arguments are {name: number} with the names of ROW, CHOICES and DEVICE.

    Raises ValueError for a name that is missing or one too many, and for a number below zero (a choice: below one).
    """
    known = {}
    for told, names, given in (("row", ROW, row), ("choices", CHOICES, choices), ("device", DEVICE, device)):
        if set(given) != set(names):
            raise ValueError(f"{told}: expected {', '.join(names)}, got {', '.join(given)}")
        known |= {name: float(x) for name, x in given.items()}
    for name in (*ROW, *CHOICES, *DEVICE):
        least = 1 if name in ("context", "batch") else 0
        if not math.isfinite(known[name]) or known[name] < least:
            raise ValueError(f"{name}: expected a number from {least} up, got {known[name]:g}")
    if bad := [name for name in ("flops", "bandwidth", "weight_bits") if not known[name]]:
        raise ValueError(f"{bad[0]}: expected a number above 0")
    found = {}
    for name, code in _CODE.items():
        found[name] = known[name] = eval(code, {"__builtins__": {}} | KNOWN, known)
    return found
