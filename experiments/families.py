"""One model of each family with equal parameters, on the same text: loss against tokens and against time.

    python -m experiments.families --out FILE [--text FILE.npz] [--small] [--shard 0/2] [--seconds N]
    python -m experiments.families --out FILE --times 1     step times instead, each model alone on the device

Eight layers of width 192, each a mixer and a gated MLP whose width makes the parameters equal to 5%; otherwise each
mixer has its Layer's defaults (TABLE says what else). Batches, steps, schedule and optimizer are the same; of three
learning rates every family keeps its best. Curves are bits per byte on unseen topics and modules, at the rate that
the schedule has reached. Trainings overlap on a GPU, so their wall time means nothing: the second command times
steps with nothing beside them, captured as a CUDA graph, and its `seconds_per_step` turns tokens into seconds.
"""

import statistics
import time

import torch

from experiments.runner import corpus
from experiments.runner.equal import config, spread
from experiments.runner.program import Program
from experiments.runner.sweep import arguments, best, build, sweep

DEPTH, D, T, TARGET = 8, 192, 512, 2_800_000
TABLE = {
    "A": {"H": 4}, "H": {"W": 512}, "T": {"H": 4}, "D": {"H": 4, "conv_size": 4}, "G": {"conv_size": 4}, "7": {"H": 4},
    "S": {"K": 64},
}  # fmt: skip
FAMILIES = {
    "attention": "A", "linear": "N", "retnet": "T", "gla": "W", "deltanet": "D", "gated_deltanet": "G",
    "mamba": "M", "ssd": "S", "rwkv6": "6", "rwkv7": "7", "hyena": "H", "rglru": "R", "hybrid": None,
}  # fmt: skip
RATES = 1e-3, 2e-3, 4e-3  # the kernels of some came late: they were trained at the middle one alone


def pattern(name, depth=DEPTH):
    """The pattern of a family; the hybrid is SSD with a quarter of attention layers."""
    letter = FAMILIES[name]
    return letter * depth if letter else spread("S", "A", depth, depth // 4)


def runs(small=False):
    """{family: its run}."""
    depth, width, target, T_ = (4, 32, 60_000, 64) if small else (DEPTH, D, TARGET, T)
    tiny = {"H": {"W": 64, "hidden": 16}, "S": {"K": 8}, "W": {"rank": 4}, "6": {"rank": 4}, "7": {"H": 4, "rank": 4}}
    table = TABLE | tiny if small else TABLE
    size = {"B": 8, "steps": 12, "watch": 6} if small else {"B": 32, "steps": 640, "watch": 64}
    return {
        name: {**config(pattern(name, depth), width, 256, target, table), "name": name, "T": T_, "seed": 0,
               "precision": "bf16", **size}
        for name in FAMILIES
    }  # fmt: skip


def study(run, rates=RATES):
    """The learning rates, then nothing: the page shows the best run of each family, and keeps the others."""
    best((yield [run | {"lr": lr} for lr in rates]), "score")


def main():
    args = arguments(__doc__, text="", times=0)
    text, about = corpus.load(args.text or None, 4_000 if args.small else None)
    found = runs(args.small)
    for run in found.values():
        run["task"] = about
        if torch.device(args.device).type == "cpu":
            run["precision"] = "float32"
    def watch(lm, run, step):
        return {"tokens": step * run["B"] * run["T"], "validation_bits": corpus.bits(lm, text, "validation", run["T"])}

    def score(lm, run):
        found = {f"{split}_bits": corpus.bits(lm, text, split, run["T"]) for split in ("validation", "test")}
        return found | {"score": -found["validation_bits"]}

    def data(run):
        return corpus.batches(text, run)

    if args.times:
        score, watch = timed(data, torch.device(args.device)), None
        found = {name: run | {"steps": 4, "name": f"time-{name}", "watch": 0} for name, run in found.items()}
        args.streams = 1
    rates = RATES[:1] if args.small or args.times else RATES
    sweep({name: study(run, rates) for name, run in found.items()}, data=data, score=score, args=args, watch=watch)


def timed(data, device, repeats=20):
    """A score that times a run's step: median seconds of single steps, each waited for, nothing else running."""

    def score(lm, run):
        with torch.enable_grad():
            program = Program(build(run), *data(run | {"steps": 64}), run | {"steps": 64}, device)
            on_gpu = device.type == "cuda"
            if on_gpu:
                program.capture()
            for _ in range(3 if on_gpu else 1):
                program.step()
            times = []
            for _ in range(repeats if on_gpu else 3):
                if on_gpu:
                    torch.cuda.synchronize(device)
                start = time.perf_counter()
                program.step()
                if on_gpu:
                    torch.cuda.synchronize(device)
                times.append(time.perf_counter() - start)
        seconds = statistics.median(times)
        return {"seconds_per_step": seconds, "tokens_per_second": run["B"] * run["T"] / seconds, "score": 0.0,
                "spread": [min(times), max(times)]}  # fmt: skip

    return score


if __name__ == "__main__":
    main()
