"""One training on several ranks: each reads rows of its own, and the step is that of the whole batch.

"ddp" keeps all weights on every rank and averages the gradients (torch's DistributedDataParallel). "fsdp" cuts weights,
gradients and moments up between the ranks, and fetches a block's weights when it is its turn (torch's fully_shard).

The loss of a batch is a mean over the targets that are asked. Ranks may have asked different numbers of them, so each
weighs its own mean by its share: then the step is the same on every number of ranks, but for rounding. (A mixture of
experts adds a balance loss that is of each rank's rows; a model that draws numbers draws others.)
"""

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from postx.distributed.mesh import require, watched

WAYS = ("", "ddp", "fsdp")


class Alone:
    """One process: the loss as it is."""

    rank, first = 0, True

    def __init__(self, loss):
        self.loss = loss

    def __call__(self, ids_BT, targets_BT):
        return self.loss(ids_BT, targets_BT)

    def mean(self, x):
        return x

    def any(self, x):
        return x

    def wait(self):
        pass


class Shares(Alone):
    """The same loss from this rank's rows, whose gradient is the mean over the ranks. The model is wrapped in place."""

    def __init__(self, model, loss, way):
        require()
        super().__init__(loss)
        self.rank, self.ranks = dist.get_rank(), dist.get_world_size()
        self.first = self.rank == 0
        if way == "ddp":
            self.loss = DistributedDataParallel(_Objective(model, loss))

    def __call__(self, ids_BT, targets_BT):
        rows = torch.arange(len(ids_BT)).tensor_split(self.ranks)
        asked = [int((targets_BT[r] != -100).sum()) for r in rows]
        if not all(asked):
            raise ValueError(f"batch: each of {self.ranks} ranks needs rows that ask something, they ask {asked}")
        mine = rows[self.rank].to(ids_BT.device)
        weight = self.ranks * asked[self.rank] / sum(asked)
        return weight * self.loss(ids_BT[mine], targets_BT[mine])

    def mean(self, x):
        """The mean over the ranks."""
        with watched():
            dist.all_reduce(x := x.clone())
        return x / self.ranks

    def any(self, x):
        """True where it is on any rank."""
        with watched():
            dist.all_reduce(x := x.float(), dist.ReduceOp.MAX)
        return x > 0

    def wait(self):
        """Until every rank is here."""
        with watched():
            dist.barrier()


class _Objective(nn.Module):
    def __init__(self, model, loss):
        super().__init__()
        self.model, self.call = model, loss

    def forward(self, ids_BT, targets_BT):
        return self.call(ids_BT, targets_BT)


def cut(model):
    """Cut the weights of a model up between the ranks, block by block. They become DTensors, in place."""
    from torch.distributed.fsdp import fully_shard  # a second to import, which others need not wait for

    require()
    for block in getattr(model, "blocks", ()):
        fully_shard(block)
    fully_shard(model)


def whole(x):
    """A tensor that is cut up between the ranks, put together on each of them; others as they are."""
    return x.full_tensor() if _is_cut(x) else x


def put(place, x):
    """Copy x into `place`, or each rank's part of it where that is cut up."""
    if _is_cut(place):
        from torch.distributed.tensor import distribute_tensor

        x = distribute_tensor(x.to(place.device), place.device_mesh, place.placements)
    place.copy_(x)


def _is_cut(x):
    return hasattr(x, "full_tensor")  # a DTensor, which is imported only where one is made
