"""One training loop: AdamW, warm-up and cosine, clipping, bfloat16, checkpoints that resume to the same numbers.

    log = train(lm, batch, Config(steps=2000, lr=1e-3, device="cuda", dtype="bfloat16", cuda_graph=True))

`batch(step) -> (ids_BT, targets_BT)` is a function of the step alone, so a resumed run sees what it would have
seen; `stored` makes one from tensors that lie on the device. The model is any module whose call returns
(logits_BTY, state); where it has a method `loss(ids, targets)`, that is minimised, else the mean cross-entropy over
the targets that are not -100.

On several ranks (`python -m torch.distributed.run`) the same call with ranks="ddp" or "fsdp" trains on the rows of each
batch in turn: see `postx.distributed.data`. A checkpoint goes on with any number of ranks. Where a rank is lost, the
others raise `RankLost`, which names the checkpoint.

A loss or gradient that is not finite moves no weight: the step is marked on the device, every later one is passed
over (so nothing waits for the GPU), and at the next report `NotFinite` names the step and the layer.
"""

import dataclasses
import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

from postx.distributed.data import WAYS
from postx.distributed.mesh import RankLost, stoppable, watched
from postx.train.blame import NotFinite
from postx.train.loop import DTYPES, Loop, autocast, decayed
from postx.train.progress import Progress

__all__ = ["Config", "NotFinite", "RankLost", "decayed", "measure", "stored", "train"]


@dataclasses.dataclass(frozen=True)
class Config:
    """All that a run depends on, but for the model and the data. Steps count from 0; log_every=1 logs each."""

    steps: int = 1000
    B: int = 32  # rows of a batch; what `batch` gives is held to it
    lr: float = 1e-3
    warmup: int = 100  # steps to reach lr, in a straight line
    floor: float = 0.1  # the last step's rate, as a part of lr
    weight_decay: float = 0.1  # of matrices; see `decayed`
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    clip: float = 1.0  # largest norm of the whole gradient; math.inf for none
    seed: int = 0
    data: str = ""  # what the batches are, in words: a checkpoint of other data is refused
    device: str = "cpu"
    dtype: str = "float32"  # or "bfloat16": autocast; weights, states and sums stay float32
    cuda_graph: bool = False  # capture one step, replay it: no launch costs; every batch must have one shape
    log_every: int = 50
    evaluate_every: int = 0  # 0: after the last step only
    checkpoint: str | None = None  # a file; where it exists, the run goes on from it
    checkpoint_every: int = 0  # 0: after the last step only
    quiet: bool = False
    ranks: str = ""  # "ddp" or "fsdp": this process is one of several that train one model; B is of all of them

    def __post_init__(self):
        object.__setattr__(self, "betas", tuple(self.betas))
        for name in ("steps", "B", "log_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        for name in ("lr", "clip", "eps"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: expected a number above 0, got {getattr(self, name)}")
        for name in ("warmup", "weight_decay", "evaluate_every", "checkpoint_every"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name}: expected 0 or more, got {getattr(self, name)}")
        if not 0 <= self.floor <= 1:
            raise ValueError(f"floor: expected a part of lr from 0 to 1, got {self.floor}")
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype: expected one of {', '.join(DTYPES)}, got {self.dtype!r}")
        if self.ranks not in WAYS:
            raise ValueError(f"ranks: expected one of {', '.join(map(repr, WAYS))}, got {self.ranks!r}")
        if self.cuda_graph and (torch.device(self.device).type != "cuda" or self.ranks):
            raise ValueError(f"cuda_graph: needs device='cuda' and ranks='', got {self.device!r} and {self.ranks!r}")

    def rate(self, step: int) -> float:
        """The learning rate: lr (step + 1) / warmup, then a half cosine from lr down to floor lr at the last step."""
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        done = (step - self.warmup) / max(1, self.steps - 1 - self.warmup)
        return self.lr * (self.floor + (1 - self.floor) * (1 + math.cos(math.pi * done)) / 2)


def train(
    model: nn.Module, batch: Callable, config: Config, *, evaluate: Callable | None = None
) -> list[dict]:
    """Train the model in place; return the log, one dict every `log_every` steps and at each evaluation.

    A row has step (steps done), loss (mean since the row before, nats), norm (of the last gradient), lr, tokens
    and seconds, and what `evaluate(model) -> dict` said: numbers, words, lists and dicts of them, under its names, or
    as "evaluate_loss" where the loop has that name itself. The caller's random state is left alone.

    Raises NotFinite; RankLost; TypeError for an answer of `evaluate` that no checkpoint can hold; ValueError where a
    batch is not [B, T], a parameter is complex, or a checkpoint belongs to another run.
    """
    if not config.ranks:
        return _train(model, batch, config, evaluate)
    with watched(lambda: _held(config)), stoppable():
        return _train(model, batch, config, evaluate)


def _held(config):
    """What is left of a run that lost a rank."""
    if not config.checkpoint or not Path(config.checkpoint).exists():
        return "No checkpoint was written: the run begins again"
    return f"The same command, with any number of ranks, goes on from {config.checkpoint}"


def _train(model, batch, config, evaluate):
    if config.ranks and config.device == "cuda":  # the GPU that `distributed.start` gave this rank
        config = dataclasses.replace(config, device=f"cuda:{torch.cuda.current_device()}")
    device = torch.device(config.device)
    model.to(device).train()
    cuda = (
        [torch.cuda.current_device() if device.index is None else device.index]
        if device.type == "cuda"
        else []
    )
    here = torch.cuda.device(cuda[0]) if cuda else nullcontext()
    with here, torch.random.fork_rng(devices=cuda), Progress(config) as progress:
        torch.manual_seed(config.seed)
        loop, log, start = Loop(model, config), [], 0
        progress.quiet |= not loop.share.first
        if config.checkpoint and Path(config.checkpoint).exists():
            start, log, tokens, seconds = loop.load()
        else:
            tokens, seconds = 0, 0.0
        clock = time.perf_counter() - seconds
        for step in range(start, config.steps):
            ids, targets = batch(step)
            _check_batch(ids, targets, config)
            loop.run(step, ids, targets)
            tokens, done, last = tokens + ids.numel(), step + 1, step + 1 == config.steps
            measures = evaluate is not None and (last or _due(done, config.evaluate_every))
            saves = config.checkpoint and (last or _due(done, config.checkpoint_every))
            if measures or saves or _due(done, config.log_every) or last or device.type == "cpu":
                loop.hold(batch)
            if measures or _due(done, config.log_every) or last:
                row = {"step": done, **loop.report(), "lr": config.rate(step), "tokens": tokens}
                row["seconds"] = time.perf_counter() - clock
                found = _evaluated(model, evaluate, cuda) if measures else {}
                log.append(row | {f"evaluate_{key}" if key in row else key: x for key, x in found.items()})
                progress.show(log[-1])
            if saves:
                loop.save(done, log, tokens, time.perf_counter() - clock)
    return log


def stored(ids_NBT: torch.Tensor, targets_NBT: torch.Tensor) -> Callable:
    """A `batch` function that serves N batches in turn, from where they lie: put them on the GPU beforehand."""
    return lambda step: (ids_NBT[step % len(ids_NBT)], targets_NBT[step % len(ids_NBT)])


@torch.no_grad()
def measure(model: nn.Module, batches, *, dtype: str = "float32") -> dict:
    """Over all batches: loss (nats for each asked token), bits (the same in bits), accuracy (of the likeliest), asked.

    Raises ValueError where nothing is asked.
    """
    device = next(model.parameters()).device
    sums = torch.zeros(3, dtype=torch.float64, device=device)
    was_training = model.training
    model.eval()
    for ids, targets in batches:
        targets = targets.to(device)
        with autocast(device, dtype):
            logits = model(ids.to(device))[0]
        asked = targets != -100
        logits, targets = logits[asked].float(), targets[asked]
        lost = functional.cross_entropy(logits, targets, reduction="sum")
        sums += torch.stack(
            [lost.double(), (logits.argmax(-1) == targets).sum().double(), asked.sum().double()]
        )
    model.train(was_training)
    lost, right, asked = sums.tolist()
    if not asked:
        raise ValueError("batches: no target that is not -100")
    return {
        "loss": lost / asked,
        "bits": lost / asked / math.log(2),
        "accuracy": right / asked,
        "asked": int(asked),
    }


def _due(done, every):
    return every > 0 and done % every == 0


def _evaluated(model, evaluate, cuda):
    with torch.random.fork_rng(devices=cuda), torch.no_grad():
        model.eval()
        found = evaluate(model)
        model.train()
    if not isinstance(found, dict):
        raise TypeError(f"evaluate: expected a dict, got {type(found).__name__}")
    return {key: _plain(key, x) for key, x in found.items()}


def _plain(key, x):
    """x as JSON holds it: numbers of numpy and torch as Python's, arrays as lists."""
    if not isinstance(key, str):
        raise TypeError(f"evaluate: expected names as keys, got {key!r}")
    if isinstance(x, dict):
        return {inner: _plain(inner, y) for inner, y in x.items()}
    if isinstance(x, list | tuple):
        return [_plain(key, y) for y in x]
    if hasattr(x, "tolist"):  # arrays and tensors, and their single numbers
        return _plain(key, x.item() if math.prod(x.shape) == 1 else x.tolist())
    if x is None or isinstance(x, bool | int | float | str):
        return x
    raise TypeError(f"evaluate: {key!r} is a {type(x).__name__}, which no checkpoint can hold; give a number")


def _check_batch(ids, targets, config):
    if ids.ndim != 2 or ids.shape != targets.shape or len(ids) != config.B:
        raise ValueError(
            f"batch: expected ids_BT and targets_BT with B={config.B}, got {tuple(ids.shape)}, {tuple(targets.shape)}"
        )
