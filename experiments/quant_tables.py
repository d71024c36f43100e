"""The kept models in fewer bits: architecture x bits x method, which layers hurt, outliers, a rounded KV cache.

    python -m experiments.quant_tables --out FILE [--shard 0/2] [--only table cache ...] [--small]

One line a run; runs whose key is in the file are not made again. Asked are 40 stretches of 512 bytes, evenly spaced in
the test split (no context before a stretch). `bits` is bits a byte; `lost` is against the model as it is kept, in 16
bits a weight, with its standard error over stretches; `apart` is the divergence of the full model's predictions from
the rounded one's, in bits a byte. Calibrated methods read 8 stretches of the train split, 4,096 tokens; for the others
output errors are measured on the first two of them.

parts: table (every method), kinds (one kind of layer at 2 bits, all others full), planted (four channels of every MLP
32 times larger, the same function: synthetic), cache (TurboQuant).
"""

import argparse
import copy
import datetime
import json
import math
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import torch

from experiments.runner.results import read
from postx import scans, text
from postx.models import checkpoints, lm, quantized, quantized_cache
from postx.quant import rotate

MODELS, BITS, T, ASKED, READ = ("attention", "ssd", "hybrid"), (4, 3, 2), 512, 40, 8
RANGE = {"grid": "midrise", "clip": "search"}
METHODS = {  # name: (quantizer, its arguments, whether it is fed inputs, the bits at which it exists)
    "nearest, full range": ("uniform", {"grid": "midrise"}, False, BITS),
    "nearest, full range, groups of 64": ("uniform", {"group": 64}, False, BITS),  # asymmetric: with a zero point
    "nearest, best range, groups of 64": ("uniform", RANGE | {"group": 64}, False, BITS),
    "nearest": ("uniform", RANGE, False, BITS),
    "lloyd": ("lloyd", {}, False, BITS),
    "nf4": ("nf4", {}, False, (4,)),
    "awq": (
        "awq",
        {"grid": "midrise", "clip": "gaussian"},
        True,
        BITS,
    ),  # "search" in its search takes too long
    "gptq": ("gptq", RANGE, True, BITS),
    "turn": ("rotate", {"base": "uniform"} | RANGE, False, BITS),
    "turn, gptq": ("rotate", {"base": "gptq"} | RANGE, True, BITS),
    "lattice, not fed": ("lattice", {}, False, (4, 2)),
    "lattice": ("lattice", {}, True, (4, 2)),
    "stream turned": ("uniform", RANGE, False, BITS),  # of the model that quantized.turn gives
}
GROUPS = ("nearest, full range, groups of 64", "nearest, best range, groups of 64")
ONCE = (*GROUPS, "lloyd", "turn", "lattice, not fed", "stream turned")  # on one model only
PLANTED = ("nearest, full range", "nearest", "nf4", "awq", "gptq", "turn", "turn, gptq", "lattice")
CHANNELS, FACTOR = 4, 32
PROMPT = b"The following functions are defined: "
SSD_ROWS = {"gate": 384, "value": 384, "key and query": 128, "step": 6}  # of `inward`, at D = 192 and K = 64


def stretches(data, n):
    """n stretches of T + 1 bytes, evenly spaced."""
    at = np.linspace(0, len(data) - T - 1, n).astype(int)
    return torch.from_numpy(data[at[:, None] + np.arange(T + 1)].astype(np.int64))


@torch.no_grad()
def guesses(model, ids_BT):
    """log2 of the probabilities, [B, T, 256], eight stretches at a time."""
    parts = [torch.log_softmax(model(some[:, :-1])[0], -1) for some in ids_BT.split(8)]
    return torch.cat(parts) / math.log(2)


class Judge:
    """The full model's guesses, kept, and what another model's guesses are worth beside them."""

    def __init__(self, model, asked):
        self.asked, self.full = asked, guesses(model, asked)
        self.bits_B = self._bits(self.full)

    def _bits(self, guess):
        return -guess.gather(-1, self.asked[:, 1:, None])[..., 0].mean(1)

    def __call__(self, model):
        guess = guesses(model, self.asked)
        lost_B = self._bits(guess) - self.bits_B
        apart = (torch.exp2(self.full) * (self.full - guess)).sum(-1).mean()
        return {
            "bits": float(self._bits(guess).mean()), "lost": float(lost_B.mean()),
            "lost_error": float(lost_B.std() / len(lost_B) ** 0.5), "apart": float(apart),
        }  # fmt: skip


@torch.no_grad()
def planted(model):
    """The same function, with CHANNELS input columns of every MLP's `out` FACTOR times larger (a power of two)."""
    twin = copy.deepcopy(model)
    for block in twin.blocks:
        width = block.mlp.out.in_features
        at = torch.arange(CHANNELS) * (width // CHANNELS) + 7
        block.mlp.up.weight[at] /= FACTOR
        block.mlp.out.weight[:, at] *= FACTOR
    return twin


def kinds(model):
    """{kind: [(layer, rows)]}: what a layer does in its mixer or MLP; `inward` of an SSD layer by its parts."""
    found = {}
    for name, layer in quantized.linears(model).items():
        place, part = name.split(".", 2)[2].rsplit(".", 1)
        if part == "inward":
            start = 0
            for kind, rows in SSD_ROWS.items():
                found.setdefault(f"SSD {kind}", []).append((name, slice(start, start + rows)))
                start += rows
            continue
        if place == "mlp":
            who = "MLP"
        else:
            who = "SSD" if hasattr(model.get_submodule(name.rsplit(".", 1)[0]), "inward") else "attention"
        found.setdefault(f"{who} {part}", []).append((name, slice(0, layer.out_features)))
    return found


def sample(model):
    """160 bytes after PROMPT, temperature 0.7, seed 0."""
    prompt = torch.tensor([list(b"\0" + PROMPT)])
    rng = torch.Generator().manual_seed(0)
    ids, _ = lm.generate(model, prompt, 160, temperature=0.7, generator=rng)
    return bytes(ids[0].tolist()).decode("utf8", "replace")


def rounded(model, run, ids):
    """(the model in fewer bits, what is known of its layers): errors are means over layers, each relative."""
    method, bits, config = run["method"], run["bits"], checkpoints.record(run["model"])["config"]
    name, kw, fed, _ = METHODS[method]
    if method == "stream turned":
        config = config | {"tied": False}
        model = quantized.turn(model, rotate.spin(torch.eye(192, dtype=torch.float64), 0))
    start = time.perf_counter()
    small, report = quantized.quantized(model, name, bits, (ids if fed else ids[:2])[:, :-1], feed=fed, **kw)
    seconds = time.perf_counter() - start
    with tempfile.TemporaryDirectory() as folder:
        size = checkpoints.save("small", small, config, {}, folder, packed=report.stored).stat().st_size
    weights = sum(r.weights for r in report.rows)
    return small, {
        "bits_per_weight": report.bits_per_weight, "weights": weights, "kept": report.kept, "file_bytes": size,
        "weight_error": sum(r.weight_error for r in report.rows) / len(report.rows),
        "output_error": sum(r.output_error for r in report.rows) / len(report.rows),
        "layers": {r.name: [round(r.weight_error, 6), round(r.output_error, 6)] for r in report.rows},
        "quantize_seconds": round(seconds, 1),
    }  # fmt: skip


def only(model, small, places):
    """The model with those rows of those layers taken from `small`."""
    mixed = copy.deepcopy(model)
    with torch.no_grad():
        for name, rows in places:
            mixed.get_submodule(name).weight[rows] = small.get_submodule(name).weight[rows]
    return mixed


def runs():
    """Every run: what it is called by, in an order in which the first ones are worth most."""
    for model in MODELS:
        yield {"part": "table", "model": model, "method": "full", "bits": 16}
    for bits in (2, 4, 3):
        for model in MODELS:
            for method, (*_, there) in METHODS.items():
                if bits in there and (model == "attention" or method not in ONCE):
                    yield {"part": "table", "model": model, "method": method, "bits": bits}
    for model in ("attention", "hybrid"):
        for bits in (1, 2, 3, 4):
            for form in ("mse", "prod", "prod keys, mse values"):
                yield {"part": "cache", "model": model, "method": form, "bits": bits, "parts": "kv"}
        for part in "kv":
            yield {"part": "cache", "model": model, "method": "mse", "bits": 2, "parts": part}
    for model in MODELS:
        for kind in kinds(checkpoints.load(model)):
            yield {"part": "kinds", "model": model, "method": "nearest", "bits": 2, "kind": kind}
    for bits in (4, 2):
        for method in PLANTED:
            if bits in METHODS[method][3]:
                yield {"part": "planted", "model": "attention", "method": method, "bits": bits}


def key(run):
    return "|".join(str(x) for x in run.values())


def make(run, model, judge, ids):
    """The metrics of a run."""
    part, method, bits = run["part"], run["method"], run["bits"]
    if method == "full":
        error = float(judge.bits_B.std() / len(judge.bits_B) ** 0.5)
        return judge(model) | {"bits_error": error, "text": sample(model),
                               "parameters": sum(p.numel() for p in model.parameters())}  # fmt: skip
    if part == "table":
        small, found = rounded(model, run, ids)
        return judge(small) | found | ({"text": sample(small)} if run["model"] == "attention" else {})
    if part == "planted":
        small, found = rounded(planted(model), run, ids)
        return judge(small) | found
    if part == "kinds":
        places = kinds(model)[run["kind"]]
        small, _ = quantized.quantized(model, "uniform", bits, ids[:1, :64], **RANGE)
        mixed = only(model, small, places)
        weights = sum(model.get_submodule(name).weight[rows].numel() for name, rows in places)
        return judge(mixed) | {"weights": weights}
    with ExitStack() as stack:
        if method == "prod keys, mse values":
            kept = stack.enter_context(quantized_cache.rounded(model, bits, form="prod", parts=("k",)))
            stack.enter_context(quantized_cache.rounded(model, bits, form="mse", parts=("v",)))
        else:
            kept = stack.enter_context(quantized_cache.rounded(model, bits, form=method, parts=tuple(run["parts"])))
        return judge(model) | {
            "bits_per_number": kept.bits_per_number,
            "error": kept.error,
            "vectors": kept.vectors,
        }


def table(path, part):
    """The records of one part, each run's fields and metrics in one dict; bits a byte are `bits_a_byte`."""
    found = [(r["metrics"] | r["run"], r["metrics"]["bits"]) for r in read(path) if r["run"]["part"] == part]
    return [row | {"bits_a_byte": bits} for row, bits in found]


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--shard", default="0/1")
    parser.add_argument("--only", nargs="*", help="parts; all without it")
    parser.add_argument("--small", action="store_true", help="three stretches, and one run in twelve of one model")
    args = parser.parse_args()
    torch.set_num_threads(1)
    scans.set_threads(1)
    words = text.load()
    asked, ids = stretches(words.test, 3 if args.small else ASKED), stretches(words.train, READ)
    mine, of = map(int, args.shard.split("/"))
    done, models, judges = {r["key"] for r in read(args.out)}, {}, {}
    todo = [run for run in runs() if run["model"] == "attention"][::12] if args.small else runs()
    for i, run in enumerate(todo):
        name_of_run = ("small|" if args.small else "") + key(run)
        if i % of != mine or name_of_run in done or (args.only and run["part"] not in args.only):
            continue
        name = run["model"]
        if name not in models:
            models[name] = checkpoints.load(name)
            judges[name] = Judge(models[name], asked)
        start = time.perf_counter()
        found = make(run, models[name], judges[name], ids)
        record = {
            "key": name_of_run, "run": run | {"seed": 0, "sha256": words.sha256, "asked": asked[:, 1:].numel()},
            "metrics": found, "seconds": round(time.perf_counter() - start, 1), "device": "CPU, 1 thread",
            "torch": torch.__version__, "date": datetime.date.today().isoformat(),
        }  # fmt: skip
        with args.out.open("a", encoding="utf8") as file:
            file.write(json.dumps(record) + "\n")
        print(
            key(run), record["seconds"], {k: v for k, v in found.items() if isinstance(v, float)}, flush=True
        )


if __name__ == "__main__":
    main()
