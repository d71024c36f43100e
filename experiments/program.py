"""One training as a program that needs nothing from the host: `step()` does everything, also as one CUDA graph.

Batches lie on the device and are picked by a counter there; the learning rate comes from a table by the same counter;
losses are written to a tensor. So a step can be captured once and replayed, and many programs can run side by side.
"""

import math
import time

import torch

WARM = 3  # steps before a capture: kernels are loaded and the optimizer's state exists. They count as training


class Program:
    """AdamW with warm-up, cosine and clipping on batches `step mod N`; precision float32, tf32 or bf16."""

    def __init__(self, lm, ids_NBT, targets_NBT, run, device):
        self.lm, self.device = lm.to(device), device
        self.ids_NBT, self.targets_NBT = ids_NBT.to(device), targets_NBT.to(device)
        self.precision, self.clip = run.get("precision", "float32"), run.get("clip", 1.0)
        steps, warm = run["steps"], max(1, round(run["steps"] * run.get("warm", 0.1)))
        at = torch.arange(steps, dtype=torch.float64)
        cosine = 0.5 * (1 + torch.cos(math.pi * (at - warm).clamp(min=0) / max(1, steps - warm)))
        table = run["lr"] * torch.minimum((at + 1) / warm, 0.01 + 0.99 * cosine)
        self.rate_N = table.float().to(device)
        self.loss_N = torch.zeros(steps, device=device)
        self.at = torch.zeros(1, dtype=torch.int64, device=device)
        self.rate = self.rate_N[0].clone()
        wide = [p for p in lm.parameters() if p.dim() >= 2]
        other = [p for p in lm.parameters() if p.dim() < 2]
        groups = [{"params": wide, "weight_decay": run.get("decay", 0.1)}, {"params": other, "weight_decay": 0.0}]
        on_gpu = device.type == "cuda"
        self.optimizer = torch.optim.AdamW(
            groups, lr=self.rate, betas=(0.9, 0.95), fused=on_gpu or None, capturable=on_gpu, foreach=None
        )
        self.graph, self.started = None, time.monotonic()

    def step(self):
        """One step: a replay of the captured one, or the operations themselves."""
        if self.graph is not None:
            self.graph.replay()
        else:
            self._step()

    def _step(self):
        batch = (self.at % len(self.ids_NBT)).view(1)
        ids = self.ids_NBT.index_select(0, batch)[0]
        targets = self.targets_NBT.index_select(0, batch)[0].long()
        self.rate.copy_(self.rate_N.index_select(0, self.at)[0])
        bf16 = self.precision == "bf16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=bf16, cache_enabled=False):
            loss = self.lm.loss(ids, targets)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.lm.parameters(), self.clip)
        self.optimizer.step()
        self.loss_N.index_copy_(0, self.at, loss.detach().float().view(1))
        self.at.add_(1)

    def capture(self):
        """Train WARM steps on the current stream, capture the next into a graph; returns the steps taken."""
        torch.set_float32_matmul_precision("high" if self.precision == "tf32" else "highest")
        for _ in range(WARM):
            self._step()
        graph = torch.cuda.CUDAGraph()
        # Not torch.cuda.graph: it waits for the whole device, where other programs are running.
        graph.capture_begin(capture_error_mode="thread_local")
        try:
            self._step()
        finally:
            graph.capture_end()
        self.graph = graph
        return WARM

    def losses(self):
        """The loss of every step, on the CPU."""
        return self.loss_N.cpu()

    def seconds(self):
        """Since the beginning; beside other programs on a GPU, their time is in it."""
        return time.monotonic() - self.started
