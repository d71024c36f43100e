"""A captured step writes what calls of the model write, on a GPU; without one, why there is no graph."""

import pytest
import torch

from postx import mixers
from postx.models import graph
from postx.models.lm import LM, generate
from postx.shapes import map_state, trusted

on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")
SMALL = {"ssd": {"K": 16}, "mamba3": {"K": 16}}


def by_calls(lm, S, ids_BT):
    """The definition, token by token, which writes into nothing: (logits_BTY, S)."""
    logits = []
    for ids_B in ids_BT.unbind(1):
        with trusted():
            y, S = lm(ids_B[:, None], S)
        logits.append(y[:, -1])
    return torch.stack(logits, 1), S


@on_gpu
@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", mixers.names())
def test_a_graph_writes_what_the_model_writes(name, dtype):
    torch.manual_seed(0)
    options = {name: SMALL.get(name, {})}
    lm = LM([name, "attention", (name, "L")], 64, 50, options=options | {"L": {"window": 8}}).cuda().to(dtype)
    ids = torch.randint(50, (3, 30), device="cuda")
    lengths = torch.tensor([10, 4, 7], device="cuda")
    S = lm(ids[:, :10], lengths_B=lengths)[1]
    want, last = by_calls(lm, S, ids[:, 10:])
    fast = graph.Graph(lm, S, 20)
    got = torch.stack([fast(ids_B).clone() for ids_B in ids[:, 10:].unbind(1)], 1)
    bound = 1e-4 if dtype == torch.float32 else 6e-2
    assert (got - want).abs().max() <= bound * want.abs().max()
    for a, b in zip(flat(last), flat(fast.state()), strict=True):
        assert a.dtype != torch.int64 or torch.equal(a, b)  # positions
    again, _ = by_calls(lm, fast.state(), ids[:, :3])  # what it leaves is a state as any other
    assert (again - by_calls(lm, last, ids[:, :3])[0]).abs().max() <= bound * want.abs().max()
    with pytest.raises(ValueError, match="room: 20 tokens were written"):
        fast(ids[:, 0])


def flat(S):
    found = []
    map_state(found.append, S)
    return found


@on_gpu
def test_generate_takes_the_graph_and_the_same_tokens(monkeypatch):
    torch.manual_seed(0)
    lm = LM("SAL", 64, 50, options={"S": {"K": 16}}).cuda()
    prompt = torch.randint(50, (2, 5), device="cuda")
    built, whole = [], graph.Graph.__init__
    monkeypatch.setattr(graph.Graph, "__init__", lambda self, *args: built.append(1) or whole(self, *args))
    for choice in ({"temperature": 0.0}, {"temperature": 1.0}):
        draw = [torch.Generator("cuda").manual_seed(3) for _ in range(2)]
        got, S = generate(lm, prompt, 40, generator=draw[0], **choice)
        with monkeypatch.context() as without:
            without.setattr(graph, "refused", lambda *args: "not now")
            want, _ = generate(lm, prompt, 40, generator=draw[1], **choice)
        assert torch.equal(got, want)
        assert int(S[1][0][2].max()) == 5 + 39
    assert len(built) == 2


def test_a_graph_says_why_not():
    lm = LM("S", 16, 20, options={"S": {"K": 8}})
    assert graph.refused(lm, 100) == "a graph is for a CUDA device"
    assert graph.refused(LM("V", 16, 20), 100) == "a graph is for a CUDA device"
    assert "without a state" in graph.refused(LM("F", 16, 20), 100)
    with pytest.raises(ValueError, match="lm: a graph is for a CUDA device"):
        graph.Graph(lm, lm(torch.zeros(1, 2, dtype=torch.int64))[1], 100)


@on_gpu
def test_a_graph_says_why_not_on_a_gpu():
    lm = LM("S", 16, 20, options={"S": {"K": 8}}).cuda()
    assert graph.refused(lm, 100) is None
    assert "from 8 tokens" in graph.refused(lm, 7)
    assert "rows that end" in graph.refused(lm, 100, eos=0, B=2)
    lm.norm.register_forward_hook(lambda *_: None)
    assert "run only once" in graph.refused(lm, 100)


@on_gpu
@pytest.mark.parametrize("name", [n for n in mixers.names() if hasattr(mixers.load(n), "AUTO")])
def test_a_layer_in_bfloat16_is_close_to_itself_in_float32(name):
    """Forward and gradients, through the half-precision kernels; of a loss whose sums over tokens do not cancel."""
    torch.manual_seed(0)
    layer = mixers.load(name).Layer(64).cuda()
    x = torch.randn(2, 200, 64, device="cuda", requires_grad=True)
    seed, results = layer(x)[0].detach(), []
    for dtype in (torch.float32, torch.bfloat16):
        with torch.autocast("cuda", torch.bfloat16, enabled=dtype == torch.bfloat16):
            y, _ = layer(x)
        grads = torch.autograd.grad((y.float() * seed).sum(), [x, *layer.parameters()], allow_unused=True)
        results.append([y.float(), *(g for g in grads if g is not None)])
    for want, got in zip(*results, strict=True):
        assert got.isfinite().all()
        assert (got - want).norm() <= 0.08 * want.norm() + 1e-3
