"""The same code on ranks that are threads: what the mutants are held to, and what a page shows."""

import pytest
import torch

from postx import distributed, mixers
from postx.distributed.rehearsal import rehearse
from postx.mixers import attention

MIXERS = {name: mixers.load(name) for name in mixers.names()}  # imported before a mutant takes the place of a module


def leaf(x):
    return x.detach().clone().requires_grad_()


def apart(a, b):
    return ((a - b).abs().max() / b.abs().max().clamp(min=1)).item()


def grads(tensors):
    return [torch.zeros_like(x) if x.grad is None else x.grad for x in tensors]


def worst(layout, inputs, run, run_alone):
    """The largest difference from one process, of the outputs and of the gradients of the inputs."""
    whole = [leaf(x) for x in inputs]
    y = run_alone(*whole)
    weight = torch.randn(y.shape, generator=torch.Generator().manual_seed(5), dtype=y.dtype)
    (y * weight).sum().backward()

    def work(wire):
        mine = [leaf(layout.split(x, wire.rank)) for x in inputs]
        y = run(wire, *mine)
        (y * layout.split(weight, wire.rank)).sum().backward()
        return y.detach(), *grads(mine)

    parts = zip(*rehearse(layout.ranks, work, seconds=20), strict=True)
    return max(apart(layout.join(p), x) for p, x in zip(parts, (y.detach(), *grads(whole)), strict=True))


@pytest.mark.parametrize("kind", ["straight", "zigzag"])
@pytest.mark.parametrize(("P", "window"), [(3, 0), (4, 0), (3, 5), (4, 11)])
def test_the_ring(kind, P, window):
    window = window or None
    layout, (z, _) = distributed.Layout(26, P, kind), attention.example(26, H=4, G=2, K=8, V=8)
    for impl in ("torch", "flash"):
        error = worst(
            layout, z, lambda wire, *z, impl=impl: distributed.attend(*z, layout, wire, window=window, impl=impl),
            lambda *z: attention.parallel(*z, window=window)[0],
        )  # fmt: skip
        assert error < 1e-12


@pytest.mark.parametrize("how", ["turn", "log"])
@pytest.mark.parametrize("name", ["ssd", "deltanet", "rglru", "shortconv"])
def test_a_passed_state(name, how):
    mixer, layout = MIXERS[name], distributed.Layout(12, 5)
    z, w = mixer.example(12)
    error = worst(
        layout, z, lambda wire, *z: distributed.run(mixer, *z, layout=layout, wire=wire, how=how, **w)[0],
        lambda *z: mixer.recurrent(*z, **w)[0],
    )  # fmt: skip
    assert error < 1e-10


def test_a_passed_state_teaches_the_decay():
    """RWKV-4's sums are stored by their maximum, which has no gradient; the decay's must come all the same."""
    mixer, layout = MIXERS["rwkv4"], distributed.Layout(12, 3)
    z, w = mixer.example(12)

    def gradient(run, first):
        constants = {name: leaf(x) for name, x in w.items()}
        y = run(constants)
        (y * torch.arange(first, first + y.shape[1])[:, None].cos()).sum().backward()
        return constants["g_D"].grad

    def work(wire):
        mine, first = [layout.split(x, wire.rank) for x in z], layout.pieces[wire.rank].first
        return gradient(lambda w: distributed.run(mixer, *mine, layout=layout, wire=wire, **w)[0], first)

    want = gradient(lambda w: mixer.recurrent(*z, **w)[0], 0)
    assert apart(sum(rehearse(3, work, seconds=20)), want) < 1e-10


@pytest.mark.parametrize("name", ["ssd", "retnet", "rwkv6", "attention"])
def test_a_whole_layer(name):
    torch.manual_seed(0)
    part = MIXERS[name].Layer(16, **({"K": 4, "V": 4} if name == "ssd" else {})).double()
    layout, x = distributed.Layout(14, 3), torch.randn(2, 14, 16, dtype=torch.float64)
    error = worst(layout, [x], lambda wire, x: distributed.layer(part, x, layout, wire), lambda x: part(x)[0])
    assert error < 1e-10


def test_a_rank_that_fails_ends_the_others():
    def work(wire):
        if wire.rank == 1:
            raise KeyError("broken")
        return wire.exchange(receives=[(torch.zeros(1), 1)])()

    with pytest.raises(KeyError, match="broken"):
        rehearse(2, work, seconds=1)
    with pytest.raises(distributed.RankLost, match="rank 0 of 2 waits for rank 1"):
        rehearse(2, lambda wire: wire.rank or wire.exchange(receives=[(torch.zeros(1), 1)])(), seconds=1)
