"""The planner: what a model costs on a device, and which models do what is asked.

    plan("Llama-3-8B", context=65536, batch=16, weight_bits=4, device="H100").found["tokens_a_second"]
    plan("SSSSSSSA" * 4, width=4096)                       a pattern of one's own (`postx.planner.rows.own`)
    survivors(memory=24e9, context=65536, users=16, recall=True)

Floors, not forecasts: the arithmetic and its conventions are in `postx.planner.formulas`, figures that others published
in facts.toml, each with its source and date.
"""

from dataclasses import dataclass

from postx.planner import facts, formulas, rows, words

DEFAULTS = {"context": 8192, "batch": 1, "weight_bits": 16, "cache_bits": 16, "state_bits": 32}
BITS = (16, 8, 4)  # of weights that `survivors` tries, the finest first
DEVICE = "H100, 80 GB"


@dataclass(frozen=True)
class Plan:
    """One model on one device: the row, what was chosen, the device, all formulas' values, and sentences on them.

    `found` is {name: value} by the names of `postx.planner.formulas.FORMULAS`: bytes, FLOPs, seconds, tokens, dollars.
    """

    row: rows.Row
    choices: dict
    device: dict
    found: dict

    @property
    def fits(self):
        return self.found["total_bytes"] <= self.found["usable"]

    @property
    def binds(self):
        """What sets the time of a written token: "capacity" where it does not fit, "compute" or "bandwidth"."""
        if not self.fits:
            return "capacity"
        return "compute" if self.found["compute_seconds"] > self.found["memory_seconds"] else "bandwidth"

    def sentences(self):
        return words.told(self.found, self.choices)


def row(model, *, width=None, layers=None, window=None):
    """The row of a published model, with other layers where they are given, or of a pattern of one's own.

    Raises ValueError for a name that is neither, and for a width or layers that do not go with it.
    """
    name = next((name for name in rows.catalogue() if name.lower() == model.lower()), None)
    if name:
        found = rows.of(name)
        if width is not None:
            raise ValueError(f"width: {name} has its own, {found.D}")
        return found if layers is None and window is None else found.edited(layers or found.layers, window)
    if layers is not None:
        raise ValueError("layers: they go with a published model; a pattern is itself its layers")
    known = rows.letters(width or 4096)
    if not model or set(model) - set(known) - set("()"):
        names = ", ".join(rows.catalogue())
        raise ValueError(f"model {model!r} is neither published nor a pattern; there are {names}; "
                         f"a pattern has letters out of {' '.join(known)}")  # fmt: skip
    return rows.own(model, width or 4096, window)


def plan(model, *, device=DEVICE, price=None, memory=None, share=facts.SHARE, width=None, layers=None, window=None,
         **choices):  # fmt: skip
    """What a model costs on a device, as a `Plan`.

    context: tokens of each text; batch: texts at once; weight_bits, cache_bits, state_bits: bits a number, scales
    included; share: of the memory that is planned with. device: the beginning of a name in facts.toml; price (dollars
    an hour) and memory (bytes) replace its own. width, layers, window: see `row`. Raises ValueError for what it does
    not know, and for numbers out of range.
    """
    if unknown := set(choices) - set(DEFAULTS):
        raise ValueError(f"choices: no {', '.join(sorted(unknown))}; there are {', '.join(DEFAULTS)}")
    found = row(model, width=width, layers=layers, window=window)
    told = facts.device(device)
    ceilings = {"flops": told["flops"], "bandwidth": told["bandwidth"], "share": share,
                "memory": told["memory"] if memory is None else memory,
                "price": told["price"] if price is None else price}  # fmt: skip
    choices = DEFAULTS | choices
    return Plan(found, choices, told | ceilings, formulas.evaluate(found.numbers(), choices, ceilings))


@dataclass(frozen=True)
class Verdict:
    """Whether a model survives, at the most bits a weight that fit, else at the fewest; `reasons` say why not."""

    name: str
    weight_bits: float
    plan: Plan
    reasons: tuple

    @property
    def survives(self):
        return not self.reasons


def survivors(*, memory, context, users, recall=False, bits=BITS, device=DEVICE, share=facts.SHARE, names=None,
              **choices):  # fmt: skip
    """A `Verdict` on every published model: does it hold `users` texts of `context` tokens in `memory` bytes?

    recall=True asks for a layer that keeps every token, because a state of fixed size cannot hold an arbitrary text
    (chapter 9; Jelassi et al. 2024, arXiv 2402.01032); it promises nothing more, so published figures of recall stand
    beside. A model whose publisher names a shorter text fails; one that names none does not. Weights are tried at each
    of `bits`. The device gives speeds only. Raises ValueError as `plan` does.
    """
    bits = tuple(sorted(bits, reverse=True))
    if not bits:
        raise ValueError("bits: expected at least one number of bits a weight")
    found = []
    for name in rows.catalogue() if names is None else names:
        for each in bits:
            one = plan(name, device=device, memory=memory, share=share, context=context, batch=users, weight_bits=each,
                       **choices)  # fmt: skip
            if one.fits:
                break
        found.append(Verdict(name, each, one, tuple(_reasons(name, one, recall))))
    return found


def _reasons(name, one, recall):
    values, choices = one.found, one.choices
    context = words.whole(choices["context"])
    if not one.fits:
        needs = words.SENTENCES["needs"].format(
            bits=words.three(choices["weight_bits"]), usable=words.say(values["usable"], "bytes"),
            weights=words.say(values["weight_bytes"], "bytes"),
            **{key: words.say(values[f"{key}_bytes"], "bytes") for key in ("total", "cache", "state")},
        )  # fmt: skip
        users, longest = values["most_users"], values["longest"]
        rest = ("enough" if users else "enough_tokens") if longest else None
        yield words.SENTENCES[rest].format(
            needs=needs, users=words.three(users), longest=words.three(longest)) if rest else needs  # fmt: skip
    told = facts.context(name)
    if told and told["tokens"] < choices["context"]:
        yield words.SENTENCES["short"].format(tokens=words.whole(told["tokens"]), context=context)
    if recall and not one.row.numbers()["grow"]:
        kept = words.say(values["each_cache"] + values["each_state"], "bytes")
        yield words.SENTENCES["forgets"].format(kept=kept, context=context)
