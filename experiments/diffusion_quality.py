"""What samples of the kept masked model are worth, by number of evaluations, and what they cost in time.

    python -m experiments.diffusion_quality --out FOLDER/diffusion_quality.jsonl --text FILE.npz [--weights FOLDER]

Two autoregressive judges, the kept attention model and the hybrid, read the samples: their bits per byte, counted from
byte 64 on. Samples that repeat themselves please a judge, so beside it stand the entropy of single bytes, the share
of different strings of 8 bytes, and the size after zlib; the same numbers of real text and of samples from the
attention model say what to aim at. Time is for one text on one device, eager calls, against that model with its cache.
"""

import datetime
import json
import platform
import time
import zlib

import torch

from experiments.diffusion import causal_bits, windows
from experiments.runner import corpus
from experiments.runner.results import read
from experiments.runner.sweep import arguments, key
from postx.diffusion import blank, masked
from postx.models import checkpoints
from postx.models.lm import generate

Y, T, SKIP, GRAM = 256, 512, 64, 8
STEPS = (8, 16, 32, 64, 128, 256, 512)
SAMPLERS = {  # name: (function, options, which steps)
    "ancestral": (masked.ancestral, {}, (*STEPS, 2048)),
    "random remasking": (masked.remask, {"rule": "random"}, STEPS),
    "low confidence": (masked.remask, {"rule": "low_confidence"}, STEPS),
    "low confidence, blocks of 32": (masked.remask, {"rule": "low_confidence", "block": 32}, STEPS[1:]),
    "low confidence, temperature 0.5": (masked.remask, {"rule": "low_confidence", "temperature": 0.5}, STEPS),
    "random, blocks of 32": (masked.remask, {"rule": "random", "block": 32}, STEPS[1:]),
    "ancestral, temperature 0.8": (masked.ancestral, {"temperature": 0.8}, STEPS),
}
LENGTHS = (64, 128, 256, 512, 1024, 2048)


def diversity(ids_NT):
    """{entropy of single bytes in bits, share of different strings of 8 bytes, zlib's bits per byte}."""
    p = torch.bincount(ids_NT.flatten(), minlength=Y).double()
    p = p[p > 0] / p.sum()
    grams = {bytes(g) for row in ids_NT.to(torch.uint8).unfold(1, GRAM, 1).tolist() for g in row}
    packed = sum(len(zlib.compress(bytes(row), 9)) for row in ids_NT.tolist())
    return {
        "entropy": round(float(-(p * p.log2()).sum()), 4),
        "different": round(len(grams) / (len(ids_NT) * (ids_NT.shape[1] - GRAM + 1)), 4),
        "zlib": round(8 * packed / ids_NT.numel(), 4),
    }


def judged(ids_NT, judges):
    """The judges' bits per byte and the diversity of these texts."""
    bits = {f"bits_{name}": round(causal_bits(lm, ids_NT, given=SKIP), 4) for name, lm in judges.items()}
    return bits | diversity(ids_NT.cpu())


def wall(function, device):
    """Seconds of the second call."""
    for _ in range(2):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        start = time.perf_counter()
        function()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    return round(time.perf_counter() - start, 4)


def main():
    args = arguments(__doc__, text="", weights=str(checkpoints.FOLDER), rows=128)
    device = torch.device(args.device)
    text, about = corpus.load(args.text or None, 4096 if args.small else None)
    net = checkpoints.load("masked", args.weights, device=device)
    judges = {name: checkpoints.load(name, device=device) for name in ("attention", "hybrid")}
    rows, long, lengths = (2, 128, LENGTHS[:1]) if args.small else (args.rows, T, LENGTHS)
    have = {r["key"] for r in read(args.out, *args.have)}
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU ({platform.machine()})"
    begun = time.monotonic()
    args.out.parent.mkdir(parents=True, exist_ok=True)

    def record(run, measured):
        run = {"rows": rows, "T": long, "seed": 0, "sha256": about["sha256"], "masked": known} | run
        if key(run) in have or time.monotonic() - begun > args.seconds:
            return
        line = {"key": key(run), "run": run, "metrics": measured(), "device": where, "torch": torch.__version__,
                "date": datetime.date.today().isoformat()}  # fmt: skip
        with args.out.open("a", encoding="utf8") as file:
            file.write(json.dumps(line) + "\n")
        print({n: run[n] for n in run if n not in ("sha256", "masked", "seed")}, line["metrics"], flush=True)

    known = checkpoints.record("masked", args.weights)["key"]
    real = windows(text.validation, long)
    record({"kind": "quality", "sampler": "text"}, lambda: judged(real[:rows], judges))
    for temperature in (1.0, 0.8):
        def causal(temperature=temperature):
            rng = torch.Generator(device).manual_seed(0)
            start = torch.zeros(rows, 1, dtype=torch.int64, device=device)
            ids, _ = generate(judges["attention"], start, long, temperature=temperature, generator=rng)
            return judged(ids.cpu(), judges) | {"nfe": long}

        name = "autoregressive" if temperature == 1 else f"autoregressive, temperature {temperature}"
        record({"kind": "quality", "sampler": name}, causal)
    for name, (sampler, options, counts) in SAMPLERS.items():
        for steps in counts[-2:] if args.small else counts:
            def diffused(sampler=sampler, options=options, steps=steps):
                rng = torch.Generator(device).manual_seed(0)
                found = sampler(net, blank(rows, long, device=device), Y, steps=steps, generator=rng, **options)
                nfe = {"nfe": round(float(found.nfe_B.double().mean()), 2), "calls": found.calls}
                return judged(found.ids_BT.cpu(), judges) | nfe

            record({"kind": "quality", "sampler": name, "steps": steps}, diffused)
    for length in lengths:
        def causal_time(length=length):
            start = torch.zeros(1, 1, dtype=torch.int64, device=device)
            rng = torch.Generator(device).manual_seed(0)
            return {"seconds": wall(lambda: generate(judges["attention"], start, length, generator=rng), device)}

        record({"kind": "time", "sampler": "autoregressive", "T": length, "rows": 1}, causal_time)
        for steps in (16, 64, 256):
            def timed(length=length, steps=steps):
                given, rng = blank(1, length, device=device), torch.Generator(device).manual_seed(0)
                return {"seconds": wall(lambda: masked.ancestral(net, given, Y, steps=steps, generator=rng), device)}

            record({"kind": "time", "sampler": "ancestral", "steps": steps, "T": length, "rows": 1}, timed)


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main()
