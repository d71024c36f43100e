"""What each of two ranks runs: a training cut up between them, a shared one, and one in which rank 1 is killed."""

import dataclasses
import json
import os
import signal
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from postx import distributed, tasks
from postx.models.lm import LM
from postx.train import Config, train

SMALL = Config(steps=8, B=5, lr=3e-3, warmup=2, log_every=1, clip=0.5, quiet=True, data="recall")


def model(way):
    torch.manual_seed(1)
    return LM("ASR" if way == "ddp" else "AS", 16, 32, options={"A": {"H": 2}, "S": {"K": 4, "V": 8}})


def batch(step):
    return tasks.recall(5, 16, pairs=3, keys=8, values=8, fillers=4, seed=(3, step))


def stop_at(step, action):
    """`batch`, but that `action` is called where it is asked for that step."""

    def ask(now):
        if now == step:
            action()
        return batch(now)

    return ask


def main(folder):
    distributed.start(timeout=60)
    torch.set_num_threads(1)
    rank, found, lms = dist.get_rank(), {}, {way: model(way) for way in ("ddp", "fsdp")}
    cut = dataclasses.replace(SMALL, ranks="fsdp", checkpoint=str(folder / "cut.safetensors"))
    found["fsdp"] = train(lms["fsdp"], batch, cut)  # goes on from what one process wrote
    found["ddp"] = train(lms["ddp"], batch, dataclasses.replace(SMALL, ranks="ddp"))
    if rank == 0:
        (folder / "found.json").write_text(json.dumps(found), encoding="utf8")
    config = dataclasses.replace(
        SMALL, ranks="ddp", checkpoint=str(folder / "killed.safetensors"), checkpoint_every=3
    )
    die = stop_at(5, lambda: os.kill(os.getpid(), signal.SIGKILL))
    train(model("ddp"), die if rank == 1 else batch, config)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
