"""One training that needs nothing from the host: postx's training loop with its data and learning rates on the device.

Batches are picked by the loop's own counter, the learning rate comes from a table by the same counter, and the
running loss is written to a tensor, all on the device. A step can so be captured once as a CUDA graph and replayed,
and many programs can run side by side on streams of their own.
"""

import time

import torch

from postx.train import Config, NotFinite
from postx.train.loop import Loop

WARM = 3  # steps before a capture: kernels are loaded, workspaces exist. They count as training


class Program:
    """A run on a device: `step()` is one step of `postx.train`, `losses()` what came of them.

    ids_NBT and targets_NBT are the batches of steps 0, 1, ...; step t takes batch t mod N.
    """

    def __init__(self, lm, ids_NBT, targets_NBT, run, device):
        if ids_NBT.shape != targets_NBT.shape or ids_NBT.shape[1:] != (run["B"], run["T"]):
            shapes = tuple(ids_NBT.shape), tuple(targets_NBT.shape)
            raise ValueError(f"batches: expected [N, {run['B']}, {run['T']}] twice, got {shapes}")
        self.lm, self.run, self.device = lm.to(device), run, device
        self.ids_NBT, self.targets_NBT = ids_NBT.to(device), targets_NBT.to(device)
        on_gpu, steps = device.type == "cuda", run["steps"]
        self.config = Config(
            steps=steps, B=run["B"], lr=run["lr"], warmup=run.get("warmup", max(1, steps // 10)), seed=run["seed"],
            floor=run.get("floor", 0.1), weight_decay=run.get("decay", 0.1), clip=run.get("clip", 1.0), quiet=True,
            device=str(device), cuda_graph=on_gpu, dtype="bfloat16" if run.get("precision") == "bf16" else "float32",
        )  # fmt: skip
        self.loop = Loop(self.lm, self.config)
        self.rate_N = torch.tensor([self.config.rate(step) for step in range(steps)], device=device)
        self.total_N = torch.zeros(steps, dtype=torch.float64, device=device)
        self.graph, self.started = None, time.monotonic()

    def step(self):
        """One step: a replay of the captured one, or its operations themselves."""
        if self.graph is not None:
            self.graph.replay()
        else:
            self._step()

    def _step(self):
        at = self.loop.step.view(1)
        batch = at % len(self.ids_NBT)
        ids, targets = (x.index_select(0, batch)[0].long() for x in (self.ids_NBT, self.targets_NBT))
        self.loop.lr.copy_(self.rate_N.index_select(0, at)[0])
        self.loop.total.zero_()
        at = at.clone()  # the loop counts on in place
        self.loop.update(ids, targets)
        self.total_N.index_copy_(0, at, self.loop.total.double().view(1))

    def capture(self):
        """Train WARM steps on the current stream and capture the step into a graph; returns the steps taken.

        Not `torch.cuda.graph`: that waits for the whole device, where other programs are running.
        """
        torch.set_float32_matmul_precision("high" if self.run.get("precision") == "tf32" else "highest")
        for _ in range(min(WARM, self.run["steps"])):
            self._step()
        self.loop.optimizer.zero_grad(set_to_none=True)  # gradients are to be made in the graph's own memory
        graph = torch.cuda.CUDAGraph()
        graph.capture_begin(capture_error_mode="thread_local")
        try:
            self._step()
        finally:
            graph.capture_end()
        self.graph = graph
        return min(WARM, self.run["steps"])

    def losses(self):
        """The loss of every step, on the CPU."""
        return self.total_N.cpu()

    def hold(self):
        """None where every step was finite, else {"nonfinite_step", "nonfinite"}: the step, and what the loop says."""
        try:
            self.loop.hold(lambda step: [x[step % len(x)].long() for x in (self.ids_NBT, self.targets_NBT)])
        except NotFinite as error:
            return {"nonfinite_step": int(self.loop.bad), "nonfinite": str(error)}
        return None

    def seconds(self):
        """Since the beginning; beside other programs on a GPU, their time is in it."""
        return time.monotonic() - self.started
