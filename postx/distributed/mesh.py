"""Joining the ranks that torchrun started, and saying clearly when one of them is gone.

    python -m torch.distributed.run --nproc-per-node 2 script.py

starts `script.py` twice; each process calls `start()` and becomes a rank. Gloo carries messages between CPUs, NCCL
between GPUs.
"""

import datetime
import os
import re
import signal
import threading
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

COMMAND = "python -m torch.distributed.run --nproc-per-node 2 your_script.py"
LOST = ("gloo", "NCCL", "Connection closed", "Connection reset", "Timed out", "timed out", "Broken pipe")


class RankLost(ConnectionError):
    """A message did not come or go: a rank has died, or stood still for longer than the timeout."""


def start(data=1, *, device="cpu", timeout=300):
    """Join the group: a device mesh [data, sequence] over all ranks; `data` of them read rows of their own.

    device: "cpu" (gloo) or "cuda" (NCCL, the GPU of this process' local rank). timeout: seconds that a rank waits for
    a message before it raises. Raises RuntimeError where no torchrun started this process, ValueError where `data`
    does not divide the ranks.
    """
    if missing := [name for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]:
        raise RuntimeError(f"no ranks here ({', '.join(missing)} not set); start the script by: {COMMAND}")
    ranks = int(os.environ["WORLD_SIZE"])
    if data < 1 or ranks % data:
        raise ValueError(f"data: expected a divisor of the {ranks} ranks, got {data}")
    if device == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    if not dist.is_initialized():
        backend = "nccl" if device == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=datetime.timedelta(seconds=timeout))
    return init_device_mesh(device, (data, ranks // data), mesh_dim_names=("data", "sequence"))


def require():
    """Raise RuntimeError unless this process has joined a group."""
    if not dist.is_available() or not dist.is_initialized():
        raise RuntimeError(
            f"this process is no rank of a group; start it by: {COMMAND}, and call distributed.start() in it"
        )


@contextmanager
def watched(hint=str):
    """Within, a message that fails raises `RankLost`, which says who waited, and what `hint()` says; others stay."""
    try:
        yield
    except RankLost as error:
        if not (more := hint()):
            raise
        raise RankLost(f"{error} {more}") from error
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and not any(word in str(error) for word in LOST):
            raise
        rank, ranks = dist.get_rank(), dist.get_world_size()
        what = re.sub(r"^\[\S*\] ", "", str(error).strip()).split(". ")[0]
        raise RankLost(f"rank {rank} of {ranks} lost another rank ({what[:200]}). {hint()}".rstrip()) from error


@contextmanager
def stoppable():
    """Within, the SIGTERM by which torchrun ends the others when a rank has died raises `RankLost`: last words."""
    if threading.current_thread() is not threading.main_thread():  # signals are the main thread's
        yield
        return

    def stop(*_):
        raise RankLost(f"rank {dist.get_rank()} of {dist.get_world_size()} is stopped, because another rank is lost.")

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
