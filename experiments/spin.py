"""SpinQuant: rotations of the stream of the kept attention model, at random and learned, and what is left in few bits.

    python -m experiments.spin --out FOLDER/spin.jsonl [--text FILE.npz] [--small]

R1 turns the residual stream and is folded into the weights (`postx.models.quantized.turn`): without rounding the
model's output is the same for every R1. Then weights are rounded to nearest, a scale and zero point a row, and the
input of every linear layer of the blocks to its own bits, one step a token. The hidden units of the MLPs, which R1
does not reach, are turned by one fixed Hadamard matrix before they are rounded wherever the stream is turned (R4 of
the paper). Scored: bits per byte of validation, of the same bytes for

    none         the model as it is, no rotation at all
    hidden       R1 is the identity: the norms' scales are folded and the hidden units turned, no more
    hadamard     random signs and a Hadamard matrix, one for each seed: the spread over seeds is the paper's motive
    orthogonal   a dense random rotation, one for each seed
    learned      started at a Hadamard rotation, Cayley steps down the loss of the rounded network on other bytes of
                 validation, at two rates; `table` takes the one whose loss on those was lower at the end

Training text would not do: the model knows it half by heart, and has another loss there.

Source: Liu et al. (2024), SpinQuant, sec. 3. Deviations: R2 (heads) and R3 (cached keys) are left out, the embedding,
the head and attention's own products are not rounded, weights are rounded to nearest and not by GPTQ; `rotate.learn`
takes steps of a fixed angle that falls linearly to 0, where the authors' script has 1.5 times the gradient and a
cosine, over 50 steps where they take 100.
"""

import copy
import dataclasses
import datetime
import itertools
import json
import platform
import statistics
import time

import torch
from torch.func import functional_call

from experiments.runner import corpus
from experiments.runner.sweep import arguments, key, read
from postx.models import checkpoints, quantized
from postx.quant import rotate, uniform
from postx.quant.ternary import through

BITS = ((4, 4), (3, 8), (3, 3))  # of weights and of inputs
SEEDS, LEARNED, DENSE = 8, 1, 2  # Hadamard rotations; those that learning starts from; dense rotations
STEPS, B, T = 50, 16, 256  # of learning; rows of new text at each step
RATES = (0.1, 0.3)  # the angle of the first step
MOST = 16_384  # bytes of validation that are scored


class Rounded:
    """The model's loss in few bits as a function of R1, differentiable straight through the roundings."""

    def __init__(self, lm, weight_bits, input_bits):
        self.lm, self.bits = lm, weight_bits
        self.hidden = {
            f"{name}.weight": layer for name, layer in quantized.linears(lm).items() if name.endswith("mlp.out")
        }
        F = next(iter(self.hidden.values())).in_features
        self.R4 = rotate.spin(torch.eye(F), 999).to(lm.embed.weight)
        like = torch.eye(lm.embed.weight.shape[1]).to(lm.embed.weight)
        self.body = {True: quantized.turn(lm, like), False: copy.deepcopy(lm)}
        for layer in self.hidden:
            self.body[True].get_submodule(layer.removesuffix(".weight")).register_forward_pre_hook(self._turn)
        for body in self.body.values():
            quantized.round_inputs(body, input_bits).requires_grad_(False).eval()
        self.exact = {f"{name}.weight" for name in quantized.linears(lm)}

    def _turn(self, _, args):
        return (args[0] @ self.R4,)

    def weights(self, R):
        """{name: weight} of the turned and rounded model; R None: not turned."""
        found = {name: x for name, x in self.lm.state_dict().items() if R is None or name in self.exact}
        if R is not None:
            found |= quantized.turned(self.lm, R)
            found |= {name: found[name] @ self.R4 for name in self.hidden}
        return {
            name: through(x, uniform.round_trip(x, self.bits)) if name in self.exact else x
            for name, x in found.items()
        }

    def loss(self, R, ids, targets):
        return functional_call(
            _Loss(self.body[True]), {f"lm.{k}": x for k, x in self.weights(R).items()}, (ids, targets)
        )

    @torch.no_grad()
    def score(self, R, text):
        """Bits per byte of the validation text."""
        body = self.body[R is not None]  # `loss` brings weights of its own
        body.load_state_dict(body.state_dict() | self.weights(R))
        return corpus.bits(body, text, "validation", 2 * T)


class _Loss(torch.nn.Module):
    def __init__(self, lm):
        super().__init__()
        self.lm = lm

    def forward(self, ids, targets):
        return self.lm.loss(ids, targets)


def learn(rounded, R, text, steps, rate, device):
    """(last R, losses): Cayley steps, each on new stretches of text.train, and the loss before each."""
    draw, seen = text.batches("train", B, T, seed=1), []

    def loss(R):
        value = rounded.loss(R, *(x.to(device) for x in draw(len(seen))))
        seen.append(value.item())
        return value

    return rotate.learn(loss, R, steps, rate, keep="last"), seen


def rotations(D, small):
    """(kind, seed, rotation) of every run that is not learned."""
    seeds, dense = (2, 1) if small else (SEEDS, DENSE)
    yield "none", 0, None
    yield "hidden", 0, torch.eye(D)
    for seed in range(seeds):
        yield "hadamard", seed, rotate.spin(torch.eye(D), seed)
    for seed in range(dense):
        yield "orthogonal", seed, rotate.orthogonal(D, seed).float()


def main():
    args = arguments(__doc__, text="")
    text, about = corpus.load(args.text or None)
    whole = text.sizes["validation"]
    most = 4_096 if args.small else MOST
    rest = dataclasses.replace(text, train=text.validation[most:])  # to learn from
    text = dataclasses.replace(text, validation=text.validation[:most])
    device, started = torch.device(args.device), time.monotonic()
    lm = checkpoints.load("attention", device=device)
    have = {r["key"] for r in read(args.out, *args.have)}
    steps, D = (3 if args.small else STEPS), lm.embed.weight.shape[1]
    common = {
        "model": "attention", "task": about, "scored": len(text.validation), "of": whole,
        "full_bits": corpus.bits(lm, text, "validation", 2 * T),
    }  # fmt: skip

    def record(run, R, make=None):
        """Write the line of one rotation; `make` first learns it."""
        k = key({"model": "attention", "sha256": about["sha256"], "scored": len(text.validation)} | run)
        if k in have or time.monotonic() - started > args.seconds:
            return
        began = time.monotonic()
        R, more = make(R) if make else (R, {})
        found = rounded.score(R, text)
        line = {
            "key": k, "run": run, "metrics": {"validation_bits": found}, **more, **common,
            "seconds": round(time.monotonic() - began, 1), "torch": torch.__version__,
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU ({platform.machine()})",
            "date": datetime.date.today().isoformat(),
        }  # fmt: skip
        args.out.parent.mkdir(parents=True, exist_ok=True)
        with args.out.open("a", encoding="utf8") as file:
            file.write(json.dumps(line) + "\n")
        print(
            f"W{run['weights']}A{run['inputs']} {run['kind']:10} seed {run['seed']:2}: {found:.4f}",
            flush=True,
        )

    for weights, inputs in BITS[:1] if args.small else BITS:
        rounded = Rounded(lm, weights, inputs)
        bits = {"weights": weights, "inputs": inputs}
        for kind, seed, R in rotations(D, args.small):
            record(bits | {"kind": kind, "seed": seed}, None if R is None else R.to(device))
        for seed, rate in itertools.product(
            range(1 if args.small else LEARNED), RATES[: 1 if args.small else None]
        ):

            def make(R):
                R, losses = learn(rounded, R, rest, steps, rate, device)  # noqa: B023, called at once
                off = (R @ R.T - torch.eye(len(R), device=device)).abs().max().item()
                return R, {"losses": [round(x, 4) for x in losses], "off_orthogonal": off}

            start = rotate.spin(torch.eye(D), seed).to(device)
            record(bits | {"kind": "learned", "seed": seed, "steps": steps, "rate": rate}, start, make)


def table(path):
    """{(weight bits, input bits): {kind: bits per byte of every seed}}, and "full" for the model in full.

    Of the rates that were tried with a seed, the one whose last 20 losses while learning are lowest: the scored text
    chooses nothing.
    """
    chosen, full = {}, {}
    for r in read(path):
        bits, kind, seed = (r["run"]["weights"], r["run"]["inputs"]), r["run"]["kind"], r["run"]["seed"]
        loss = statistics.fmean(r["losses"][-20:]) if "losses" in r else 0.0
        best = chosen.setdefault(bits, {}).setdefault(kind, {})
        if seed not in best or loss < best[seed][0]:
            best[seed] = loss, r["metrics"]["validation_bits"]
        full[bits] = r["full_bits"]
    return {
        bits: {"full": [full[bits]]} | {kind: [x for _, x in seeds.values()] for kind, seeds in row.items()}
        for bits, row in chosen.items()
    }


if __name__ == "__main__":
    main()
