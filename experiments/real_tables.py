"""Which sentences of chapter 12, found on models of 2.9 million weights, survive on a model that people use.

    python -m experiments.real_tables [FOLDER]      prints the table; FOLDER is experiments/results if nothing is said

The twin is the book's attention model (quant.jsonl, spin.jsonl), the real ones are SmolLM2 and MiniLM
(real_models.jsonl). A sentence is one number of a model, its standard error and a rule; the verdict follows from them:
"holds" or "does not" where two standard errors lie on one side, "open" where they do not, "not tested" where there is
no number. That something does nothing is shown by an interval inside 0.05 bits, not by one that reaches 0. Differences
on SmolLM2 are paired over its 16 windows where they were kept, as on the twin they were not.
Ratios of layers are means over layers, with the standard error over layers.
"""

import math
import statistics
import sys
from pathlib import Path
from typing import NamedTuple

from experiments.runner.results import RESULTS, read

TWIN = {"full range": "nearest, full range", "range": "nearest", "feedback": "gptq", "turn": "turn", "awq": "awq",
        "turn, feedback": "turn, gptq", "lattice": "lattice"}  # fmt: skip
REAL = {"full range": "full range, row", "range": "nearest, row", "feedback": "gptq, row", "turn": "turn, row",
        "turn, feedback": "turn, gptq, row", "lattice": "lattice (E8P)", "groups": "nearest, 128", "awq": "awq",
        "groups, feedback": "gptq, 128", "groups, turn, feedback": "turn, gptq, 128"}  # fmt: skip
WEIGHT, OUTPUT = 0, 1  # places in what is kept of a layer
FIELD = {"nearest": "RTN", "lloyd": "Lloyd-Max", "nf4": "NF4", "awq": "AWQ", "gptq": "GPTQ", "turn": "rotation",
         "lattice": "E8P", "lattice (E8P)": "E8P", "not fed": "no inputs", "stream turned": "rotated stream (R1)",
         "turned": "rotated", "smoothed": "SmoothQuant", "mxfp4": "MXFP4", "nvfp4": "NVFP4",
         "groups of 64": "groups"}  # fmt: skip
DECIDE = ("A rotation before GPTQ changes nothing", "A cache of 3 bits loses less than 0.05",
          "In 4 bits every method loses less than 0.015")  # whose verdicts change what one would do: they stand first


def field(method):
    """A method's name in the words of the field: "turn, gptq" is "rotation, GPTQ"."""
    return ", ".join(FIELD.get(word, word) for word in method.split(", "))


class Number(NamedTuple):
    """A value and its standard error; the error is nan where none was recorded."""

    value: float
    error: float


class Row(NamedTuple):
    """One sentence: its unit, the number of each model, None where there is none; what follows here, and for the real
    one. MiniLM's number is always a ratio of output errors."""

    sentence: str
    unit: str
    twin: Number | None
    real: Number | None
    minilm: Number | None
    here: str
    verdict: str


def mean(values):
    values = list(values)
    return Number(statistics.fmean(values), statistics.stdev(values) / math.sqrt(len(values)))


class Model:
    """The rounded weights of one model: {(method, bits): metrics}, methods called by what they do."""

    def __init__(self, found, names):
        self.found = {(name, bits): found[method, bits] for name, method in names.items()
                      for bits in (2, 3, 4) if (method, bits) in found}  # fmt: skip

    def gap(self, more, less, bits=2):
        """What `more` loses beyond `less`, bits a byte: paired over windows where both have them."""
        a, b = self.found.get((more, bits)), self.found.get((less, bits))
        if a is None or b is None:
            return None
        if "windows" in a and "windows" in b:
            return mean(a["windows"][i] - b["windows"][i] for i in a["windows"])
        return Number(a["lost"] - b["lost"], math.hypot(a["lost_error"], b["lost_error"]))

    def layers(self, over, under, which, bits=2):
        """The ratio of the errors of `over` and `under`, mean over layers."""
        a, b = self.found.get((over, bits)), self.found.get((under, bits))
        if a is None or b is None:
            return None
        return mean(a["layers"][name][which] / b["layers"][name][which] for name in a["layers"])

    def growth(self):
        """The least that a method's loss grows from 3 to 2 bits: a factor."""
        factors = []
        for name, bits in self.found:
            if bits == 2 and (name, 3) in self.found:
                two, three = self.found[name, 2], self.found[name, 3]
                factor = two["lost"] / three["lost"]
                error = math.hypot(two["lost_error"] / two["lost"], three["lost_error"] / three["lost"])
                factors.append(Number(factor, factor * error))
        return min(factors, default=None)


class MiniLM:
    """Its layers under each method, on inputs that no method has seen: only ratios of errors."""

    def __init__(self, layers):
        self.rows = layers.values()

    def layers(self, over, under, which=OUTPUT, bits=2):
        a, b = (f"{REAL[name]}|{bits}" for name in (over, under))
        if any(a not in row or b not in row for row in self.rows):
            return None
        return mean(row[a][1 + which] / row[b][1 + which] for row in self.rows)


def one(part, folder=RESULTS):
    """The metrics of a part of real_models.jsonl that is one run: minilm, outliers or attention."""
    (found,) = (r["metrics"] for r in read(Path(folder) / "real_models.jsonl") if r["run"]["part"] == part)
    return found


class Records:
    """What the three files say."""

    def __init__(self, folder=RESULTS):
        rows = read(Path(folder) / "real_models.jsonl")
        by = {part: [r for r in rows if r["run"]["part"] == part] for part in {r["run"]["part"] for r in rows}}
        self.by = by
        weights = {(r["run"]["method"], r["run"]["bits"]): r["metrics"] for r in by["weights"]}
        self.full = weights["full", 16]
        self.real, self.minilm = Model(weights, REAL), MiniLM(one("minilm", folder)["layers"])
        self.inputs = {(r["run"]["bits"], r["run"]["inputs"], r["run"]["method"]): r["metrics"]
                       for r in by.get("activations", [])}  # fmt: skip
        self.cache = {(r["run"]["method"], r["run"]["bits"]): r["metrics"] for r in by.get("cache", [])}
        quant = [r for r in read(Path(folder) / "quant.jsonl") if r["run"]["model"] == "attention"]
        self.twin = Model({(r["run"]["method"], r["run"]["bits"]): r["metrics"] for r in quant
                           if r["run"]["part"] == "table"}, TWIN)  # fmt: skip
        self.twin_cache = {(r["run"]["method"], r["run"]["bits"]): r["metrics"] for r in quant
                           if r["run"]["part"] == "cache" and r["run"]["parts"] == "kv"}  # fmt: skip
        spin = {r["run"]["kind"]: r["metrics"]["validation_bits"] for r in read(Path(folder) / "spin.jsonl")
                if (r["run"]["weights"], r["run"]["inputs"]) == (4, 4)}  # fmt: skip
        self.twin_turned = Number(spin["none"] - spin["hidden"], math.nan)

    def texts(self):
        """(setting, 32 tokens that SmolLM2 writes) of what is recorded, from many bits to few."""
        rows = [r for part in ("weights", "activations") for r in self.by.get(part, []) if "text" in r["metrics"]]
        for r in sorted(rows, key=lambda r: (-r["run"]["bits"], r["run"]["part"], r["metrics"]["lost"])):
            inputs = f", inputs {r['run']['inputs']}" if "inputs" in r["run"] else ""
            yield f"{field(r['run']['method'])}, {r['run']['bits']} bits{inputs}", r["metrics"]["text"]

    def turned_inputs(self, W, A):
        """What turning inputs and weights saves, of W and A bits."""
        plain, turned = (self.inputs.get((W, A, how)) for how in ("plain", "turned"))
        return plain and turned and mean(plain["windows"][i] - turned["windows"][i] for i in plain["windows"])


def more(x, than=0.0):
    """Whether a number is larger: by two standard errors."""
    reach = 2 * x.error if math.isfinite(x.error) else 0
    return "holds" if x.value - reach > than else "does not" if x.value + reach < than else "open"


def less(x, than):
    return {"holds": "does not", "does not": "holds"}.get(more(x, than), "open")


def within(x, low, high):
    """Whether it lies between: both ends, by two standard errors."""
    ends = {more(x, low), less(x, high)}
    return "does not" if "does not" in ends else "open" if "open" in ends else "holds"


def level(x, by=0.05):
    """Whether there is no difference worth a name: less than `by` either way. A wide error shows none, and is open."""
    return within(x, -by, by)


def lost(metrics):
    return metrics and Number(metrics["lost"], metrics["lost_error"])


def table(folder=RESULTS):
    """The rows: those that change a decision (`DECIDE`), then the others in the order of the chapter."""
    r = Records(folder)
    twin, real, small = r.twin, r.real, r.minilm

    def row(sentence, rule, ours, theirs, third=None, unit="bits a byte"):
        verdicts = ("not tested" if x is None else rule(x) for x in (ours, theirs))
        return Row(sentence, unit, ours, theirs, third, *verdicts)

    def step(sentence, rule, a, b):
        return row(sentence, rule, twin.gap(a, b), real.gap(a, b), small.layers(b, a))

    def ratio(sentence, rule, which):
        return row(sentence, rule, *(m.layers("feedback", "range", which) for m in (twin, real, small)), "ratio")

    at4 = [[lost(m) for (_, bits), m in model.found.items() if bits == 4] for model in (twin, real)]
    rows = [
        step("A good range instead of the full one lowers the loss", more, "full range", "range"),
        step("GPTQ instead of RTN lowers the loss", more, "range", "feedback"),
        ratio("GPTQ leaves 0.4 to 0.7 of RTN's output error", lambda x: within(x, 0.4, 0.7), OUTPUT),
        ratio("GPTQ makes the error of the weights larger", lambda x: more(x, 1), WEIGHT),
        step("A rotation alone changes nothing", level, "range", "turn"),
        step("A rotation before GPTQ changes nothing", level, "feedback", "turn, feedback"),
        step("E8P on top of both lowers the loss again", more, "turn, feedback", "lattice"),
        row("AWQ instead of RTN saves nothing at 3 bits", lambda x: less(x, 0.05),
            twin.gap("range", "awq", 3), real.gap("groups", "awq", 3), small.layers("awq", "groups", bits=3)),
        row("From 3 to 2 bits every loss grows three times", lambda x: more(x, 3), twin.growth(), real.growth(),
            unit="ratio"),
        row("With inputs of 4 bits a rotation lowers the loss", more, r.twin_turned, r.turned_inputs(4, 4)),
        row("A cache of 3 bits loses less than 0.05", lambda x: less(x, 0.05), lost(r.twin_cache.get(("mse", 3))),
            lost(r.cache.get(("mse", 3)))),
        row("In 4 bits every method loses less than 0.015", lambda x: less(x, 0.015),
            *(max(found, default=None) for found in at4)),
    ]  # fmt: skip
    return sorted(rows, key=lambda row: row.sentence not in DECIDE)


class Head(NamedTuple):
    """A head of SmolLM2, layer and number counted from 0: p[t][m] is the weight that token t gives to token m.

    repeated is what it gives, on random tokens read twice, to the token after the first of two places.
    """

    layer: int
    number: int
    p: list[list[float]]
    repeated: float


def heads(folder=RESULTS):
    """(the tokens of a sentence, {what it does: the head that does most of it})."""
    found, most = one("attention", folder), {}
    for name, head in sorted(found["heads"].items(), key=lambda pair: -pair[1]["score"]):
        most.setdefault(head["why"], Head(*map(int, name.split(".")), head["p"], head["repeated"]))
    return found["tokens"], most


def cells(row):
    """A row for a table: sentence, unit, the numbers of both models, the verdict, MiniLM's ratio of output errors."""

    def said(x):
        if x is None:
            return "-"
        return f"{x.value:.2f}" + (f" ± {x.error:.2f}" if math.isfinite(x.error) else "")

    verdict = "does not hold" if row.verdict == "does not" else row.verdict
    return row.sentence, row.unit, said(row.twin), said(row.real), verdict, said(row.minilm)


def markdown(rows):
    """The rows as a table in Markdown."""
    head = ("Claim", "Unit", "Ours", "SmolLM2", "Verdict", "MiniLM, output ratio")
    lines = [head, ["---"] * len(head), *map(cells, rows)]
    return "\n".join(f"| {' | '.join(found)} |" for found in lines)


def main():
    print(markdown(table(*sys.argv[1:])))


if __name__ == "__main__":
    main()
