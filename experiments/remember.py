"""Who remembers? Three models of two layers, trained to be told pairs and asked for one: the playground has them.

    python -m experiments.remember [--only recall_ssd] [--steps 800]

Attention, SSD, and one layer of each; equal parameters (to 5%), a short convolution in every mixer, the same texts,
steps and rate, one seed. `postx.tasks.recall`: 2, 4, 8 or 16 pairs, questions, and later in the training 0, 100, 400 or
1,000 other tokens between them: from the start, hybrid and SSD stayed at naming any digit of the row. An SSD layer
keeps 8 times 64 numbers, few on purpose. A CPU takes half a minute for each. They are written in bf16 to
postx/weights/recall, read back, and measured: what is kept beside them belongs to the files.
"""

import argparse
import datetime
import time

import torch

from experiments.runner.equal import config
from postx import scans, tasks
from postx.models import checkpoints
from postx.models.lm import LM

FOLDER = checkpoints.FOLDER / "recall"
PATTERNS = {"recall_attention": "AA", "recall_hybrid": "SA", "recall_ssd": "SS"}
ALPHABETS = {"keys": 26, "values": 10, "fillers": 8}  # letters, digits, and tokens that mean nothing
D, PARAMETERS = 32, 18_500
TABLE = {"A": {"H": 1, "conv_size": 4}, "S": {"K": 8, "V": 32}}
PAIRS, GAPS, ROWS = (2, 4, 8, 16), (0, 100, 400, 1000), 100
STEPS, NEAR, RATE = 700, 455, 2e-2  # NEAR: steps without a gap, before those with one
TOKENS = 4096  # of a batch, in at most 64 rows


def train(pattern, steps=STEPS, seed=0):
    """A model, and how it is built. Pairs take turns, and after NEAR steps gaps; a row asks for all of its pairs."""
    torch.manual_seed(seed)
    built = config(pattern, D, tasks.vocabulary(**ALPHABETS), PARAMETERS, TABLE)
    lm = LM(**built, std=0.1)
    adam = torch.optim.AdamW(lm.parameters(), fused=True)
    pace = torch.optim.lr_scheduler.OneCycleLR(adam, RATE, total_steps=steps)
    for step in range(steps):
        pairs, gap = PAIRS[step % len(PAIRS)], GAPS[step // len(PAIRS) % len(GAPS)] if step >= NEAR else 0
        T = 4 * pairs + gap
        text = tasks.recall(min(64, max(4, TOKENS // T)), T, pairs=pairs, gap=gap, **ALPHABETS, seed=(seed, step))
        lm.loss(*text).backward()
        torch.nn.utils.clip_grad_norm_(lm.parameters(), 1.0)
        adam.step(), pace.step(), adam.zero_grad()
    return lm.eval(), built


@torch.no_grad()
def share(lm, pairs, gap, rows=ROWS):
    """Right answers to one question, of texts that no training saw."""
    ids, answers = tasks.recall(rows, 2 * pairs + gap + 1, pairs=pairs, gap=gap, questions=1, **ALPHABETS,
                                seed=(10**6, pairs, gap))  # fmt: skip
    return round(float((lm(ids)[0][:, -1].argmax(-1) == answers[:, -1]).float().mean()), 2)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=PATTERNS, choices=PATTERNS)
    parser.add_argument("--steps", type=int, default=STEPS)
    args = parser.parse_args()
    torch.set_num_threads(1)  # so that every machine adds up alike
    scans.set_threads(1)
    for name in args.only:
        begun = time.perf_counter()
        lm, built = train(PATTERNS[name], args.steps)
        about = {
            "parameters": sum(p.numel() for p in lm.parameters()), "steps": args.steps, "near": NEAR, "rate": RATE,
            "seed": 0, "task": {"name": "recall", "pairs": PAIRS, "gaps": GAPS, **ALPHABETS},
            "torch": torch.__version__, "seconds": round(time.perf_counter() - begun),
            "date": datetime.date.today().isoformat(),
        }  # fmt: skip
        checkpoints.save(name, lm, built, about, FOLDER)
        kept = checkpoints.load(name, FOLDER)
        about["right"] = {str(pairs): {str(gap): share(kept, pairs, gap) for gap in GAPS} for pairs in PAIRS}
        checkpoints.save(name, kept, built, about, FOLDER)
        print(name, about, flush=True)


if __name__ == "__main__":
    main()
