"""The text of the experiments in one file, so that every machine trains on the same bytes.

    python -m experiments.runner.corpus FILE.npz [packages [BYTES]]

What an interpreter ships differs a little between Python versions. The file is written where the published numbers
belong (Python 3.11) and carried to the GPU; the text's hash stands in every run, and so in its key.
"""

import dataclasses
import platform
import sys
from pathlib import Path

import numpy as np
import torch

from postx import text as texts
from postx.train import measure


def load(path=None, most=None):
    """(text, what it is) from such a file, or from the running interpreter; `most` bytes of each unseen split."""
    if path:
        with np.load(path) as file:
            text = texts.Text(**{name: file[name] for name in texts.SPLITS}, source=str(file["source"]))
            python = str(file["python"])
    else:
        text, python = texts.load(), platform.python_version()
    if most:
        text = dataclasses.replace(text, validation=text.validation[:most], test=text.test[:most])
    return text, {"name": "text", "source": text.source, "python": python, "sha256": text.sha256, "sizes": text.sizes}


def write(path, text, python):
    """Store a text and the version of the Python whose it is."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, source=text.source, python=python, **{s: getattr(text, s) for s in texts.SPLITS})


def cut(text, most, long=65_536):
    """The text with about `most` bytes to train on: even stretches, so that every package keeps its share."""
    pieces = min(most, len(text.train)) // long
    if pieces < 1:
        raise ValueError(f"most: expected {long} bytes or more, got {most} of {len(text.train)}")
    at = np.linspace(0, len(text.train) - long, pieces).astype(int)
    return dataclasses.replace(text, train=np.concatenate([text.train[i : i + long] for i in at]))


def batches(text, run):
    """(ids_NBT, targets_NBT) of every step of a run: stretches at places drawn by the run's seed and the step."""
    batch = text.batches("train", run["B"], run["T"], seed=run["seed"])
    drawn = [batch(step) for step in range(run["steps"])]
    return tuple(torch.stack(x).int() for x in zip(*drawn, strict=True))


def bits(lm, text, split, T, rows=64):
    """Bits per byte of a split: windows of T bytes, each byte asked once, after at least T / 2 bytes of context."""
    return measure(lm, text.windows(split, rows, T, context=T // 2))["bits"]


if __name__ == "__main__":
    found = texts.load(*sys.argv[2:3])
    found = cut(found, int(sys.argv[3])) if len(sys.argv) > 3 else found
    write(sys.argv[1], found, platform.python_version())
    print(found.source, found.sizes, found.sha256)
