"""The models to keep: a hybrid of at most 3 million parameters on the text, and its twins of equal size.

    python -m experiments.small_models --out FOLDER/small_models.jsonl [--text FILE.npz] [--shard 0/2] [--small]
    python -m experiments.small_models --out FOLDER/small_models.jsonl --text FILE.npz --publish 1

`hybrid` is SSD with two attention layers of eight, `attention` and `ssd` have one kind of mixer; an MLP after every
mixer makes the parameters equal to 5%. Each is trained on the same batches at every point of GRID, and the best point
of all those curves on validation is kept: the text is small, so that dropout, weight decay and stopping early matter
more than anything else. It is written in bf16, read back, and measured: what is quoted belongs to the file. The first
command trains, on a GPU; the second, on a CPU, measures the files again, holds them against an interpolated
Kneser-Ney model of bytes whose order validation chose, and puts them into postx/weights. Take --streams 1 for runs
that can be repeated to the digit: dropout's random numbers are shared by what runs at the same time.
"""

import dataclasses
import datetime
import platform

import torch

from experiments.runner import corpus
from experiments.runner.equal import config, spread
from experiments.runner.sweep import MODEL, arguments, key, read, sweep
from postx.models import checkpoints
from postx.ngram import baseline

DEPTH, D, T, TARGET = 8, 192, 512, 2_900_000
TABLE = {"A": {"H": 4}, "S": {"K": 64}}
PATTERNS = {"hybrid": spread("S", "A", DEPTH, 2), "attention": "A" * DEPTH, "ssd": "S" * DEPTH}
RATE = 2e-3
GRID = (
    {"steps": 1000, "decay": 0.1, "drop": 0.0}, {"steps": 1600, "decay": 0.1, "drop": 0.1},
    {"steps": 2400, "decay": 0.1, "drop": 0.2}, {"steps": 1600, "decay": 1.0, "drop": 0.1},
)  # fmt: skip
ORDERS = (*range(1, 13), 14, 16, 20, 24, 28, 32)  # of the byte model; validation chooses
SLICE = 8192  # the first bytes of validation, whose loss is quoted too: a test measures it again in a second


def runs(small=False):
    """{name: its run}, but for the steps and the weight decay."""
    width, target, T_ = (32, 40_000, 64) if small else (D, TARGET, T)
    table = {"A": {"H": 4}, "S": {"K": 8, "V": 16}} if small else TABLE
    size = {"B": 8, "watch": 10} if small else {"B": 32, "watch": 100}
    patterns = {"hybrid": "SA", "attention": "AA", "ssd": "SS"} if small else PATTERNS
    return {
        name: {**config(pattern, width, 256, target, table), "name": name, "T": T_, "seed": 0, "lr": RATE,
               "precision": "bf16", **size}
        for name, pattern in patterns.items()
    }  # fmt: skip


def study(run, grid=GRID):
    """Every point of the grid; which is best is decided by `Keeper`."""
    yield [run | point for point in grid]


class Keeper:
    """Remembers the weights of the best point of a curve, and writes the best of a name's runs to its file."""

    def __init__(self, folder, text):
        self.folder, self.text = folder, text
        self.points = {}  # key of a run: (bits, step, weights on the CPU, curve)

    def watch(self, lm, run, step):
        """A point of the curve: bits per byte on validation; the weights are kept if it is the lowest."""
        bits = corpus.bits(lm, self.text, "validation", run["T"])
        best = self.points.get(key(run))
        curve = [*(best[3] if best else []), {"step": step, "validation_bits": bits}]
        if best is None or bits < best[0]:
            weights = {name: x.detach().to("cpu", copy=True) for name, x in lm.state_dict().items()}
            best = bits, step, weights
        self.points[key(run)] = (*best[:3], curve)
        return {"validation_bits": bits}

    def score(self, lm, run):
        """Round the best weights as the file does; keep the file if no run of this name has a better one."""
        bits, step, weights, curve = self.points.pop(key(run))
        lm.load_state_dict({name: x.bfloat16().to(x.dtype) for name, x in weights.items()})
        valid = corpus.bits(lm, self.text, "validation", run["T"])
        found = {"validation_bits": valid, "step": step, "validation_bits_before_rounding": bits}
        name = run["name"]
        before = checkpoints.record(name, self.folder) if name in checkpoints.kept(self.folder) else None
        if before is None or valid < before["validation_bits"]:
            about = {
                "parameters": sum(p.numel() for p in lm.parameters()), "validation_bits": valid, "step": step,
                "curve": curve, "key": key(run), "run": run, "torch": torch.__version__,
                "date": datetime.date.today().isoformat(), "device": str(next(lm.parameters()).device),
            }  # fmt: skip
            built = {name: run[name] for name in MODEL if name in run}
            checkpoints.save(name, lm, built, about, self.folder)
        return found


def main():
    args = arguments(__doc__, text="", publish=0)
    text, about = corpus.load(args.text or None, 4_000 if args.small else None)
    if args.publish:
        return publish(args.out, text, about)
    found = runs(args.small)
    for run in found.values():
        run["task"] = about
        if torch.device(args.device).type == "cpu":
            run["precision"] = "float32"
    keeper = Keeper(args.out.parent, text)
    grid = ({"steps": 20, "decay": 0.1, "drop": 0.1},) if args.small else GRID
    sweep({name: study(run, grid) for name, run in found.items()}, args=args, watch=keeper.watch,
          score=keeper.score, data=lambda run: corpus.batches(text, run))  # fmt: skip


def publish(out, text, about, folder=checkpoints.FOLDER):
    """Measure the files in out's folder, hold them against Kneser-Ney, write them to `folder` with all that is known.

    Raises ValueError where the text is not the one they were trained on, or one does not beat the byte model.
    """
    byte_model = baseline(text, ORDERS)
    print(f"Kneser-Ney of order {byte_model['order']}: {byte_model}")
    losses = {r["key"]: r for r in read(out)}
    for name in PATTERNS:
        lm, known = checkpoints.load(name, out.parent), checkpoints.record(name, out.parent)
        if known["run"]["task"] != about:
            raise ValueError(f"text: {name} was trained on {known['run']['task']}, this is {about}")
        T_ = known["run"]["T"]
        found = {f"{part}_bits": round(corpus.bits(lm, text, part, T_), 4) for part in ("validation", "test")}
        beginning = dataclasses.replace(text, validation=text.validation[:SLICE])
        found["slice_bits"] = corpus.bits(lm, beginning, "validation", T_)
        print(f"{name:10} {known['parameters']:,} parameters, step {known['step']}: {found}", flush=True)
        if not found["test_bits"] < byte_model["test"]:
            raise ValueError(f"{name}: {found} does not beat Kneser-Ney's {byte_model}")
        trained = losses[known["key"]]
        known |= found | {
            "measured": f"float32, CPU ({platform.machine()}), these bf16 weights read back; windows of {T_} bytes, "
            f"each byte after at least {T_ // 2} others where there are as many",
            "train_loss": trained["loss"], "train_loss_every": trained["loss_every"], "device": trained["device"],
            "kneser_ney": byte_model,
        }  # fmt: skip
        built = known.pop("config")
        known.pop("name")
        checkpoints.save(name, lm, built, known, folder)
    return checkpoints.kept(folder)


if __name__ == "__main__":
    main()
