"""The text of the experiments as three arrays of bytes in a file, so that every machine trains on the same one.

    python -m experiments.corpus FILE.npz

What the interpreter ships differs a little between Python versions. The file is written where the published numbers
belong (Python 3.11) and carried to the GPU; its hash stands in every record.
"""

import hashlib
import json
import math
import platform
import sys
from pathlib import Path

import numpy as np
import torch

SPLITS = ("train", "valid", "test")


def load(path=None):
    """{"train", "valid", "test": bytes as a uint8 tensor} and what they are, from a file or the running interpreter."""
    if path:
        with np.load(path) as file:
            parts, about = {name: file[name] for name in SPLITS}, json.loads(str(file["about"]))
    else:
        parts, about = interpreter()
    return {name: torch.from_numpy(part) for name, part in parts.items()}, about


def write(path, parts, about):
    """Store the splits; an .npz of three arrays and a line of JSON."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, about=json.dumps(about), **parts)


def batches(text_N, run, most=None):
    """(ids_NBT, targets_NBT) of every step: windows that begin at places drawn anew for each step by the run's seed."""
    B, T, steps = run["B"], run["T"], min(run["steps"], most or run["steps"])
    rng = np.random.default_rng([run["seed"], 1])
    start = rng.integers(0, len(text_N) - T, (steps, B, 1))
    window = text_N.numpy()[start + np.arange(T + 1)]
    return tuple(torch.from_numpy(x.astype(np.int32)) for x in (window[..., :-1], window[..., 1:]))


@torch.no_grad()
def bits_per_byte(lm, text_N, T, *, stride=None, rows=64, most=None):
    """Mean of -log2 p(byte) over every byte of a text but its first, each from at least `stride` bytes before it.

    Windows of T bytes begin `stride` apart (T / 2 unless told); of each only the predictions that the window before
    it did not make are counted, so the context is between T - stride and T. `most` reads only so many first bytes.
    """
    stride, text = stride or T // 2, text_N[:most]
    if not 1 <= stride <= T:
        raise ValueError(f"stride: expected 1 to T={T}, got {stride}")
    device, last = next(lm.parameters()).device, len(text) - 1  # the number of predictions
    T = min(T, last)
    starts = [*range(0, last - T, stride), last - T]
    known, lost = 0, torch.zeros((), dtype=torch.float64, device=device)
    fresh = []  # of each window, the first prediction that is counted
    for start in starts:
        fresh.append(known - start)
        known = start + T
    text = text.to(device).long()
    offset = torch.arange(T + 1, device=device)
    for i in range(0, len(starts), rows):
        start_B1 = torch.tensor(starts[i : i + rows], device=device)[:, None]
        fresh_B1 = torch.tensor(fresh[i : i + rows], device=device)[:, None]
        window = text[start_B1 + offset]
        logits = lm(window[:, :-1])[0].float()
        nats = torch.nn.functional.cross_entropy(logits.flatten(0, 1), window[:, 1:].flatten(), reduction="none")
        lost += torch.where(offset[:-1] >= fresh_B1, nats.view(len(window), T), 0.0).double().sum()
    return lost.item() / last / math.log(2)
