"""Put trained models into postx/weights with linear layers and experts as rows of 8 bits, and say what that loses.

    python -m experiments.eight_bits FOLDER NAME ... [--windows N]

FOLDER holds NAME.safetensors in bf16 and NAME.json, as `experiments.one_recipe` keeps them. Rounding is to nearest, one
scale a row, on the grid that the page's files have (`export.RANGE`); the rest stays in bf16. The record gets
"eight_bits": bits a byte of the committed slice of unseen text before and after, in windows of the trained length, and
of its first window alone, which a test reads again.
"""

import argparse
import json
import math
from pathlib import Path

import torch

from postx import export, text
from postx.models import checkpoints, quantized

BITS = 8


@torch.no_grad()
def bits(lm, T, windows=None, form=None):
    """Bits a byte of windows of T bytes, evenly taken from the slice of unseen text, of all but each window's first."""
    data = torch.from_numpy(text.packages_slice().test.astype("int64"))
    all_NT = data[: len(data) // T * T].view(-1, 1, T)
    for ids in all_NT[:: len(all_NT) // (windows or len(all_NT))]:
        logits = lm(ids[:, :-1], form=form)[0]
        yield torch.nn.functional.cross_entropy(logits.mT, ids[:, 1:]).item() / math.log(2)


def pack(name, source, folder=checkpoints.FOLDER, windows=None):
    """Write one model with rows of 8 bits; returns the path."""
    known = checkpoints.record(name, source)
    config, T = known["config"], known["run"]["T"]
    lm = checkpoints.load(name, source)
    any_ids = torch.zeros(1, 8, dtype=torch.int64)  # nothing is calibrated
    small, report = quantized.quantized(lm, "uniform", BITS, any_ids, feed=False, judged=1, **export.RANGE)
    losses = [list(bits(net, T, windows)) for net in (lm, small)]
    before, after = (sum(x) / len(x) for x in losses)
    about = {
        "method": f"uniform, {export.RANGE['grid']}, one scale a row", "bits_per_weight": report.bits_per_weight,
        "measured_on": f"{len(losses[0])} windows of {T} bytes, {text.packages_slice().source}, test",
        "before": before, "after": after, "first_window_before": losses[0][0], "first_window_after": losses[1][0],
    }  # fmt: skip
    record = {key: value for key, value in known.items() if key not in ("name", "config")}
    return checkpoints.save(name, small, config, record | {"eight_bits": about}, folder, packed=report.stored)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("names", nargs="+", metavar="NAME")
    parser.add_argument("--windows", type=int, help="of the slice (default: all)")
    args = parser.parse_args()
    for name in args.names:
        path = pack(name, args.source, windows=args.windows)
        print(name, path.stat().st_size, json.dumps(checkpoints.record(name)["eight_bits"], indent=1), flush=True)


if __name__ == "__main__":
    main()
