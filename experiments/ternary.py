"""BitNet b1.58 from scratch, beside a twin in full precision that had the same tuning.

    python -m experiments.ternary --out FOLDER/ternary.jsonl [--text FILE.npz] [--small]
    python -m experiments.ternary --out FOLDER/ternary.jsonl --text FILE.npz --publish 1

The attention model of `experiments.small_models` at two widths; `ternary-W` trains every linear layer of the blocks as
trits with inputs of 8 bits (`postx.quant.ternary`), `full-W` trains them as they are, in bfloat16. Both are trained on
the same batches at every point of GRID, and of each run the point of its curve that is best on validation is scored:
the ternary one on trits packed five a byte and read back, the full one in bf16, and once more after its weights were
rounded to trits without training. The embedding, which is also the head, and the norms stay in bf16 in both.

Ma et al. (2024) train their ternary models with a weight decay that ends half-way; here it is one number a run, and the
grid tries two for both. The best ternary model is kept in packed form beside the lines; --publish measures it again on
a CPU and writes it to postx/weights.
"""

import datetime

import torch

from experiments.runner import corpus
from experiments.runner.equal import config
from experiments.runner.results import read
from experiments.runner.sweep import MODEL, arguments, key, sweep
from postx.models import checkpoints, quantized
from postx.models.lm import LM
from postx.quant import ternary

DEPTH, T, OPTIONS = 8, 512, {"A": {"H": 4}}
WIDTHS = {192: 2_900_000, 96: 725_000}  # width of the stream: parameters
STEPS, WATCH = 1000, 200
GRID = tuple({"lr": lr, "decay": decay} for lr in (2e-3, 4e-3) for decay in (1.0, 0.1))
KEPT = "ternary"  # the best of `ternary-192` in postx/weights


def runs(small=False):
    """{name: its run}, but for the learning rate and the weight decay."""
    if small:
        widths, more = {32: 40_000}, {"B": 8, "T": 64, "steps": 600, "watch": 100}
    else:
        widths, more = WIDTHS, {"B": 32, "T": T, "steps": STEPS, "watch": WATCH}
    found = {}
    for width, target in widths.items():
        model = config("A" * (2 if small else DEPTH), width, 256, target, OPTIONS)
        for name in ("ternary", "full"):
            run = {**model, "name": f"{name}-{width}", "seed": 0, "drop": 0.1, "precision": "bf16", **more}
            found[run["name"]] = run | ({"trits": True} if name == "ternary" else {})
    return found


def study(run, grid=GRID):
    """Every point of the grid."""
    yield [run | point for point in grid]


class Keeper:
    """Remembers the weights of the best point of each curve, scores them, and writes the best ternary model."""

    def __init__(self, folder, text, keep):
        """keep: the name of the runs whose best is written."""
        self.folder, self.text, self.keep = folder, text, keep
        self.points = {}  # key of a run: (bits, step, weights on the CPU)

    def watch(self, lm, run, step):
        """A point of the curve: bits per byte on validation; the weights are kept if it is the lowest."""
        bits = corpus.bits(lm, self.text, "validation", run["T"])
        if key(run) not in self.points or bits < self.points[key(run)][0]:
            weights = {name: x.detach().to("cpu", copy=True) for name, x in lm.state_dict().items()}
            self.points[key(run)] = bits, step, weights
        return {"validation_bits": bits}

    def score(self, lm, run):
        """Bits per byte of what would be stored, its size, and what its products take."""
        bits, step, weights = self.points.pop(key(run))
        device = next(lm.parameters()).device
        lm = plain(run, weights).to(device)
        found = {"step": step, "in_training": bits}
        packed, report = in_trits(lm, self.text, run["T"])
        if run.get("trits"):
            found |= self.bits(packed, run["T"]) | counts(report, run)
            self.write(packed, report, run, found)
        else:
            found |= self.bits(lm, run["T"])
            found["rounded_validation_bits"] = self.bits(packed, run["T"], "validation")["validation_bits"]
            found["bytes"] = 2 * sum(p.numel() for p in lm.parameters())
        return found

    def bits(self, lm, T_, *splits):
        return {
            f"{split}_bits": corpus.bits(lm, self.text, split, T_)
            for split in splits or ("validation", "test")
        }

    def write(self, lm, report, run, found):
        """Keep the packed model if no run of this name has a better one."""
        if run["name"] != self.keep:
            return
        known = checkpoints.record(KEPT, self.folder) if KEPT in checkpoints.kept(self.folder) else None
        if known is None or found["validation_bits"] < known["validation_bits"]:
            about = {
                "parameters": sum(p.numel() for p in lm.parameters()), **found, "run": run, "key": key(run),
                "torch": torch.__version__, "date": datetime.date.today().isoformat(),
                "device": str(next(lm.parameters()).device),
            }  # fmt: skip
            checkpoints.save(KEPT, lm, built(run), about, self.folder, packed=report.stored)


def built(run):
    """The keyword arguments of the run's model."""
    return {name: run[name] for name in MODEL if name in run}


def plain(run, weights):
    """The run's model with ordinary linear layers, and those weights in bf16, as a file would hold them.

    For a ternary run the linear layers keep all their digits: they are about to become trits.
    """
    lm = LM(**built(run))
    kept = quantized.linears(lm) if run.get("trits") else {}
    exact = {f"{name}.weight" for name in kept}
    lm.load_state_dict(
        {name: x if name in exact else x.bfloat16().to(x.dtype) for name, x in weights.items()}
    )
    return lm.eval()


def in_trits(lm, text, T_):
    """(model, report): every linear layer of the blocks packed as trits and read back, inputs in 8 bits."""
    ids, _ = text.batches("train", 2, T_)(0)
    small, report = quantized.quantized(lm, "ternary", None, ids.to(next(lm.parameters()).device), feed=False)
    return quantized.round_inputs(small), report


def counts(report, run):
    """Bytes, bits a weight, and what one token costs: in the ternary layers, and in the head that is none."""
    total = {}
    for q in report.stored.values():
        one = ternary.operations(q) | {"rounded inputs": q.shape[1]}
        total = {name: total.get(name, 0) + n for name, n in one.items()}
    weights = sum(row.weights for row in report.rows)
    nonzero = sum(int((q.dequantize() != 0).sum()) for q in report.stored.values())
    return {
        "bytes": sum(q.nbytes for q in report.stored.values()) + 2 * report.kept,
        "bits_per_weight": report.bits_per_weight, "kept_weights": report.kept, "zeros": 1 - nonzero / weights,
        "operations": total | {"head multiplications": run["D"] * run["Y"]},
    }  # fmt: skip


def table(path):
    """{name: the best run's record on validation}. A run that diverged has no metrics and is passed over."""
    best = {}
    for record in read(path):
        name = record["run"]["name"]
        if record.get("metrics") and (
            name not in best
            or record["metrics"]["validation_bits"] < best[name]["metrics"]["validation_bits"]
        ):
            best[name] = record
    return best


def publish(out, text, about, folder=checkpoints.FOLDER):
    """Measure the packed model in out's folder on a CPU and write it to `folder` with all that is known.

    Raises ValueError where the text is not the one it was trained on.
    """
    source = out.parent
    known = checkpoints.record(KEPT, source)
    if known["run"]["task"] != about:
        raise ValueError(f"text: {KEPT} was trained on {known['run']['task']}, this is {about}")
    lm, packed = checkpoints.load(KEPT, source), checkpoints.packed(KEPT, source)
    T_ = known["run"]["T"]
    quantized.round_inputs(lm)
    found = {f"{split}_bits": round(corpus.bits(lm, text, split, T_), 4) for split in ("validation", "test")}
    twin = table(out)[known["run"]["name"].replace("ternary", "full")]
    known |= found | {
        "inputs": "8 bits a token: postx.models.quantized.round_inputs(lm)",
        "measured": f"float32, CPU, these trits read back, inputs in 8 bits; windows of {T_} bytes, each byte after at "
        f"least {T_ // 2} others where there are as many",
        "twin": {"lr": twin["run"]["lr"], "decay": twin["run"]["decay"], **twin["metrics"]},
    }  # fmt: skip
    config_ = known.pop("config")
    known.pop("name")
    path = checkpoints.save(KEPT, checkpoints.load(KEPT, source), config_, known, folder, packed=packed)
    print(f"{path}: {path.stat().st_size:,} bytes, {found}")
    return path


def main():
    args = arguments(__doc__, text="", publish=0)
    text, about = corpus.load(args.text or None, 4_000 if args.small else None)
    if args.publish:
        publish(args.out, text, about)
        return
    found = runs(args.small)
    for run in found.values():
        run["task"] = about
        if torch.device(args.device).type == "cpu":
            run["precision"] = "float32"
    keeper = Keeper(args.out.parent, text, next(iter(found)))
    sweep({name: study(run, GRID[::2] if args.small else GRID) for name, run in found.items()}, args=args,
          watch=keeper.watch, score=keeper.score, data=lambda run: corpus.batches(text, run))  # fmt: skip
    for name, record in table(args.out).items():
        shown = {k: v for k, v in record["metrics"].items() if k != "operations"}
        print(f"{name:12} lr {record['run']['lr']:.0e} decay {record['run']['decay']}: {shown}")


if __name__ == "__main__":
    main()
