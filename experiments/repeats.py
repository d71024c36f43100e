"""Where do the kept models differ: at strings that repeat within the window, or elsewhere? Zoology's lens, on bytes.

    python -m experiments.repeats --out experiments/results/repeats.json

Half of the test text's bytes, every second stretch of 2,048, are asked for once, with 256 to 511 bytes of context in a
window of 512. A byte falls, for each length n, into one of four classes by the string of n bytes that ends with it:

    new         its n - 1 bytes have not stood in the window before
    changed     they have, but never with this byte after them
    known       the string has stood in the window, and stands in the training text too
    looked up   the string has stood in the window, and nowhere in the training text

Per window and class: how many bytes, and how many bits each model needs for them. Recorded are, for each n, shares,
bits a byte, and for pairs of models the part of their gap that lies in each class, with standard errors over windows
(ratios of sums, linearized). A reader who repeats what followed last time says which n is worth asking about: `copy`
is how often that is right, counted on the validation text. Arora et al. (2023) ask the same of pairs of tokens and
count as known what stands in their training text more than 1,250 times. Minutes on a CPU.
"""

import argparse
import datetime
import itertools
import json
import math
import platform
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from postx import scans, text
from postx.models import checkpoints

MODELS, LENGTHS, T, CONTEXT = ("attention", "hybrid", "ssd"), (3, 4, 5, 6, 8, 10, 12), 512, 256
B, EVERY = 8, 2  # windows at once, and which batch of them is taken
CLASSES = ("new", "changed", "known", "looked up")


def classes(window, n, trained=frozenset()):
    """The class of each byte, as a number in CLASSES, and whether what followed last time is right (-1: nothing did).

    window: bytes; trained: all strings of n bytes of the training text.
    """
    kind, copied = np.zeros(len(window), np.int64), np.full(len(window), -1)
    followed = {}
    for t in range(n - 1, len(window)):
        before, byte = window[t - n + 1 : t], window[t]
        seen = followed.setdefault(before, [])
        if seen:
            copied[t] = seen[-1] == byte
            kind[t] = 1 if byte not in seen else 2 if window[t - n + 1 : t + 1] in trained else 3
        seen.append(byte)
    return kind, copied


def strings(data, n):
    """All strings of n bytes that stand in the text."""
    whole = data.tobytes()
    return {whole[i : i + n] for i in range(len(whole) - n + 1)}


def batches(words, split):
    """Every second batch of windows: ids and targets, the byte to come."""
    return itertools.islice(words.windows(split, B, T, context=CONTEXT), 0, None, EVERY)


def windows(words, split):
    """(the bytes of a window, which of them are asked for), in order."""
    for ids_BT, targets_BT in batches(words, split):
        for ids, targets in zip(ids_BT, targets_BT, strict=True):
            asked = targets != -100
            last = int(asked.nonzero().max())
            yield bytes(ids[1 : last + 1].tolist() + [int(targets[last])]), asked[: last + 1].numpy()


@torch.no_grad()
def bits(name, words, split):
    """[N, CONTEXT]: bits of each byte that is asked for; NaN behind the end of the text."""
    lm, found = checkpoints.load(name), []
    for ids, targets in batches(words, split):
        nats = functional.cross_entropy(lm(ids)[0].flatten(0, 1), targets.flatten(), reduction="none")
        found.append((nats.view_as(targets) / math.log(2)).masked_fill(targets == -100, torch.nan)[:, CONTEXT:])
    return torch.cat(found).double().numpy()


def ratio(a_N, b_N):
    """sum a / sum b and its standard error over windows."""
    r, N = a_N.sum() / b_N.sum(), len(a_N)
    return float(r), float(np.sqrt(N / (N - 1) * ((a_N - r * b_N) ** 2).sum()) / abs(b_N.sum()))


def summary(kind_NT, bits_of):
    """What is recorded of one n: shares, bits a byte, and where the gaps are. kind: -1 where nothing is asked."""
    asked = kind_NT >= 0
    found = {"share": {}, "bits": {}, "gap": {}}
    for c, name in enumerate(CLASSES):
        mine = kind_NT == c
        found["share"][name] = round(float(mine.sum() / asked.sum()), 4)
        found["bits"][name] = {
            m: [round(x, 4) for x in ratio(np.where(mine, b, 0).sum(1), mine.sum(1))] for m, b in bits_of.items()
        } if mine.any() else {}  # fmt: skip
    for worse, better in (("ssd", "attention"), ("hybrid", "attention"), ("ssd", "hybrid")):
        gap = bits_of[worse] - bits_of[better]
        total = np.where(asked, gap, 0).sum(1)
        found["gap"][f"{worse} - {better}"] = {"bits": [round(x, 4) for x in ratio(total, asked.sum(1))]} | {
            name: {"part": [round(x, 4) for x in ratio(np.where(kind_NT == c, gap, 0).sum(1), total)],
                   "bits": [round(x, 4) for x in ratio(np.where(kind_NT == c, gap, 0).sum(1), (kind_NT == c).sum(1))]}
            for c, name in enumerate(CLASSES) if (kind_NT == c).any()
        }  # fmt: skip
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    scans.set_threads(1)
    words = text.load()
    rows = list(windows(words, "test"))
    bits_of = {name: bits(name, words, "test") for name in MODELS}
    found = {}
    for n in LENGTHS:
        trained = strings(words.train, n)
        kinds = np.full((len(rows), CONTEXT), -1)
        for i, (window, asked) in enumerate(rows):
            kind, _ = classes(window, n, trained)
            kinds[i, : asked.sum()] = kind[asked]
        right = [c[a] for c, a in ((classes(w, n)[1], a) for w, a in windows(words, "validation"))]
        right = np.concatenate(right)
        found[str(n)] = {"copy": round(float((right[right >= 0] == 1).mean()), 4)} | summary(kinds, bits_of)
        print(n, json.dumps(found[str(n)]), flush=True)
    record = {"n": found, "windows": len(rows), "T": T, "context": CONTEXT, "sha256": words.sha256,
              "models": {name: checkpoints.record(name)["key"] for name in MODELS}, "torch": torch.__version__,
              "device": f"CPU ({platform.machine()})", "date": datetime.date.today().isoformat()}  # fmt: skip
    args.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf8")


if __name__ == "__main__":
    main()
