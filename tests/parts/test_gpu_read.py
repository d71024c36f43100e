"""One query over a cache on a GPU equals the softmax by hand; here in Triton's interpreter, compiled where a GPU is."""

import json

import interpreter
import pytest
import torch

from postx import scans
from postx.mixers import attention
from postx.parts import cache

MISSING = "triton is not installed (there are builds of it for Linux only)"
SIZES = [  # B, M, H, G, K, V, and how many slots are filled
    (2, 70, 4, 2, 8, 5, (70, 1)), (1, 600, 3, 1, 20, 33, (599,)), (3, 16, 2, 2, 16, 16, (40, 16, 7)),
]  # fmt: skip


def by_hand(q, k, v, position, scale):
    """In float64, row by row and head by head."""
    y, share = torch.zeros(*q.shape[:2], v.shape[-1], dtype=torch.float64), q.shape[1] // k.shape[2]
    for b, filled in enumerate(position.tolist()):
        for h in range(q.shape[1]):
            keys, values = k[b, :filled, h // share].double(), v[b, :filled, h // share].double()
            y[b, h] = (scale * keys @ q[b, h].double()).softmax(0) @ values
    return y


def difference(size, dtype, device):
    from postx.parts.gpu_read import read

    B, M, H, G, K, V, filled = size
    draw = torch.Generator().manual_seed(M)
    q, k, v = (torch.randn(*s, generator=draw).to(dtype) for s in ((B, H, K), (B, M, G, K), (B, M, G, V)))
    for b, n in enumerate(filled):
        k[b, n:], v[b, n:] = 1e4, 1e4  # what is not filled must not be seen
    position = torch.tensor(filled)
    y = read(*(x.to(device) for x in (2 * q, k, v, position)), 0.3)
    return float((y.cpu().double() - by_hand(2 * q, k, v, position, 0.3)).abs().max())


@pytest.mark.skipif(not scans.has_triton(), reason=MISSING)
def test_interpreted_it_is_the_softmax():
    assert max(interpreter.differences(__file__)) <= 2e-6


@pytest.mark.skipif(not (torch.cuda.is_available() and scans.has_triton()), reason="no CUDA device on this machine")
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 5e-6), (torch.bfloat16, 2e-2), (torch.float16, 3e-3)])
@pytest.mark.parametrize("size", [*SIZES, (2, 5000, 16, 4, 64, 64, (5000, 4097)), (1, 300, 8, 8, 128, 128, (300,))])
def test_compiled_it_is_the_softmax(size, dtype, bound):
    assert difference(size, dtype, "cuda") <= bound


def test_with_room_the_next_step_is_the_same_and_asks_nobody(monkeypatch):
    """All slots are read, those not filled masked: as a captured graph does."""
    z, w = attention.example(9)
    first, (q, k, v) = [x[:, :8] for x in z], [x[:, 8] for x in z]
    _, S = attention.recurrent(*first, **w)
    want, after = attention.step(S, q, k, v, **w)
    S = *cache.grown(S[:2], 12), S[2]
    monkeypatch.setattr(torch.Tensor, "__int__", lambda x: pytest.fail("asked"))
    with cache.roomy():
        got, S = attention.step(S, q, k, v, inplace=True, **w)
    monkeypatch.undo()
    assert (got - want).abs().max() <= 1e-12
    assert torch.equal(S[2], after[2])
    assert torch.equal(S[0][:, :9], after[0])


if __name__ == "__main__":
    interpreter.install()
    print(json.dumps([difference(size, torch.float32, "cpu") for size in SIZES]))
