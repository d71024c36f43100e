"""One step of training, as it is or as a captured CUDA graph, and what it keeps on the device."""

from contextlib import nullcontext

import torch
from torch import nn
from torch.nn import functional

from postx.distributed import data
from postx.mixers import Still
from postx.train import resume
from postx.train.blame import NotFinite, blame

DTYPES = {"float32": None, "bfloat16": torch.bfloat16}


def decayed(parameter: torch.Tensor) -> bool:
    """Whether weight decay pulls on it: on matrices, but for what is `Still` (rates, bonuses, decays of the mixers)."""
    return parameter.ndim >= 2 and not isinstance(parameter, Still)


class Loop:
    """The model, its optimizer, and one step, which runs as it is or as a captured graph."""

    def __init__(self, model, config):
        self.model, self.config, self.device = model, config, torch.device(config.device)
        pulls = {name: decayed(p) for name, p in model.named_parameters()}
        if config.ranks == "fsdp":
            data.cut(model)
        self.named = {name: p for name, p in model.named_parameters() if p.requires_grad}
        for name, p in self.named.items():
            if p.is_complex():
                raise ValueError(f"{name}: complex parameter; keep a real one with a last axis of 2")
        self.lr, self.total, self.norm, self.found = (
            torch.zeros((), dtype=torch.float32, device=self.device) for _ in range(4)
        )
        self.step, self.count, self.bad = (
            torch.tensor(n, dtype=torch.int64, device=self.device) for n in (0, 0, -1)
        )
        groups = [
            {"params": [p for name, p in self.named.items() if pulls[name] == pull], "weight_decay": decay}
            for pull, decay in ((True, config.weight_decay), (False, 0.0))
        ]
        # The fused kernel passes over the step where found is 1, weights, moments and counters alike.
        self.optimizer = torch.optim.AdamW(
            [g for g in groups if g["params"]], lr=self.lr, betas=config.betas, eps=config.eps,
            fused=True, capturable=config.cuda_graph,
        )  # fmt: skip
        self.optimizer.grad_scale, self.optimizer.found_inf = None, self.found
        self.optimizer._warned_capturable_if_run_uncaptured = True  # it is, on purpose, while warming up
        for p in self.named.values():  # AdamW would make these at its first step: too late to load or capture
            step = torch.zeros((), dtype=torch.float32, device=p.device)
            moments = {key: torch.zeros_like(p) for key in ("exp_avg", "exp_avg_sq")}
            self.optimizer.state[p] = {"step": step} | moments
        self.graph = self.ids = self.targets = None
        self.share = data.Shares(model, self.loss, config.ranks) if config.ranks else data.Alone(self.loss)

    def loss(self, ids, targets):
        with autocast(self.device, self.config.dtype, cache=not self.config.cuda_graph):
            if hasattr(self.model, "loss"):
                return self.model.loss(ids, targets)
            logits = self.model(ids)[0]
            return functional.cross_entropy(
                logits.flatten(0, 1).float(), targets.flatten(), ignore_index=-100
            )

    def update(self, ids, targets):
        """One step; nothing in it waits for the device, so that it can be captured."""
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.share(ids, targets)
        loss.backward()
        norm = data.whole(nn.utils.clip_grad_norm_(self.named.values(), self.config.clip))
        wrong = self.share.any(~(loss.detach().isfinite() & norm.isfinite()))
        self.bad.copy_(torch.where(wrong & (self.found == 0), self.step, self.bad))
        self.found.copy_(torch.maximum(self.found, wrong.float()))
        self.optimizer.step()
        self.total.add_(loss.detach().float().nan_to_num(0, 0, 0) * (1 - self.found))
        self.count.add_(1)
        self.norm.copy_(norm)
        self.step.add_(1)

    def run(self, step, ids, targets):
        self.lr.fill_(self.config.rate(step))
        if not self.config.cuda_graph:
            self.update(ids.to(self.device), targets.to(self.device))
            return
        if self.graph is None:
            self.capture(ids, targets)
        if ids.shape != self.ids.shape:
            raise ValueError(
                f"ids_BT: a captured step takes one shape, {tuple(self.ids.shape)}, got {tuple(ids.shape)}"
            )
        self.ids.copy_(ids, non_blocking=True)
        self.targets.copy_(targets, non_blocking=True)
        self.graph.replay()

    def capture(self, ids, targets):
        """Warm up on a side stream, as capture asks, then record one step. With found = 1 neither moves anything."""
        self.ids, self.targets = (x.to(self.device, copy=True) for x in (ids, targets))
        kept = [(x, x.clone()) for x in (self.step, self.count, self.norm, *self.model.buffers())]
        random, stream = torch.cuda.get_rng_state(self.device), torch.cuda.Stream(self.device)
        self.found.fill_(1)
        stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(stream):
            for _ in range(3):
                self.update(self.ids, self.targets)
        torch.cuda.current_stream(self.device).wait_stream(stream)
        torch.cuda.set_rng_state(random, self.device)
        self.optimizer.zero_grad(set_to_none=True)  # gradients are to be made in the graph's own memory
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.update(self.ids, self.targets)
        self.found.zero_()
        with torch.no_grad():
            for x, before in kept:
                x.copy_(before)

    def hold(self, batch):
        """Stop the run where a step was not finite. The weights are still those that the step began with."""
        step = int(self.bad)
        if step >= 0:
            ids, targets = batch(step)
            raise NotFinite(
                step, *blame(self.model, lambda: self.loss(ids.to(self.device), targets.to(self.device)))
            )

    def report(self):
        """The mean loss since the last report, and the norm of the last gradient."""
        row = {"loss": float(self.share.mean(self.total)) / int(self.count), "norm": float(self.norm)}
        self.total.zero_()
        self.count.zero_()
        return row

    def save(self, step, log, tokens, seconds):
        self.total.copy_(self.share.mean(self.total))
        more = {"total": self.total, "count": self.count}
        run = {"step": step, "log": log, "tokens": tokens, "seconds": seconds}
        write = self.share.first
        resume.save(self.config.checkpoint, self.model, self.named, self.optimizer, more, self.config, run, write)
        self.share.wait()

    def load(self):
        more = {"total": self.total, "count": self.count}
        run = resume.load(self.config.checkpoint, self.model, self.named, self.optimizer, more, self.config)
        self.step.fill_(run["step"])
        return run["step"], run["log"], run["tokens"], run["seconds"]


def autocast(device, dtype, cache=True):
    if DTYPES[dtype] is None:
        return nullcontext()
    return torch.autocast(device.type, DTYPES[dtype], cache_enabled=cache)
