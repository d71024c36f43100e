"""A model of 2,000 weights, its data and its run, for the tests of the training loop."""

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from postx import tasks
from postx.train import Config


class Tiny(nn.Module):
    """An embedding, a linear attention without frills, an MLP, tied logits, dropout: (logits_BTY, None)."""

    def __init__(self, Y=32, D=16, seed=0, dropout=0.1):
        super().__init__()
        torch.manual_seed(seed)
        self.embed, self.norm = nn.Embedding(Y, D), nn.RMSNorm(D)
        self.mix, self.drop = nn.Linear(D, 3 * D), nn.Dropout(dropout)
        self.wide, self.narrow = nn.Linear(D, 2 * D), nn.Linear(2 * D, D)
        self.head = nn.Linear(D, Y, bias=False)
        self.head.weight = self.embed.weight
        nn.init.normal_(self.embed.weight, std=0.1)

    def forward(self, ids_BT, S=None):
        x = self.embed(ids_BT)
        q, k, v = self.mix(self.norm(x)).chunk(3, -1)
        x = x + self.drop((q @ k.mT).tril() @ v / ids_BT.shape[1])
        return self.head(x + self.narrow(self.wide(x).relu())), S


SMALL = Config(steps=12, B=8, lr=1e-2, warmup=3, log_every=1, quiet=True)
SIZES = {"pairs": 3, "keys": 8, "values": 8, "fillers": 4}


def batch(step):
    return tasks.recall(8, 16, **SIZES, seed=(0, step))


def weights(model):
    return {name: x.clone() for name, x in model.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def numbers(log):
    return [{key: x for key, x in row.items() if key != "seconds"} for row in log]


@pytest.fixture(autouse=True)
def one_thread():
    """The models are too small to share out; and the order of a sum depends on the number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


NEEDS_HOST = (
    "_local_scalar_dense", "nonzero", "masked_select", "lift_fresh", "equal.", "unique", "is_pinned",
)  # fmt: skip


class NoHost(TorchDispatchMode):
    """Refuse every operation that would make a GPU wait for the host, or the other way round."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if any(name in str(function) for name in NEEDS_HOST):
            raise AssertionError(f"{function} cannot be captured in a CUDA graph")
        return function(*args, **kwargs or {})
