"""The chunked decay recurrence: equal to `scans.decay`, gradients too; extremes; what it must never build."""

import itertools

import contract
import pytest
import torch
from broken import mutant
from test_scans import outputs_and_gradients, randn
from torch.utils._python_dispatch import TorchDispatchMode

from postx import scans
from postx.scans import decay_chunked as module
from postx.scans.decay_chunked import decay_chunked

B, T, H, K, V = 2, 37, 4, 5, 6
LENGTHS = torch.tensor([33, 0])
G_SHAPES = [None, (H,), (2, K), (H, K), (B, T, 1), (B, T, H), (B, T, 2, K), (B, T, H, K)]


def inputs(g_shape, groups=2, bonus=False):
    """q, k, v, g, S, u."""
    g = None if g_shape is None else -randn(*g_shape, seed=9).abs()
    q, k, v = randn(B, T, groups, K), randn(B, T, 1, K, seed=1), randn(B, T, H, V, seed=2)
    return q, k, v, g, randn(B, H, K, V, seed=3), randn(H, K, seed=4) if bonus else None


def difference(tensors, function=decay_chunked, chunk=16, read="after", lengths=None, tolerance=1e-9):
    """Largest difference from the reference, over outputs, states and gradients."""

    def run(scan, **more):
        return lambda q, k, v, g, S, u: scan(q, k, v, g, S, read=read, u_HK=u, lengths_B=lengths, **more)

    got = outputs_and_gradients(run(function, chunk=chunk), tensors)
    want = outputs_and_gradients(run(scans.decay, impl="reference"), tensors)
    return contract.close(got, want, tolerance)


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["whole", "ragged"])
@pytest.mark.parametrize(("read", "bonus"), [("after", False), ("before", False), ("before", True)])
@pytest.mark.parametrize("g_shape", G_SHAPES, ids=str)
def test_equals_the_recurrence_and_its_gradients(g_shape, read, bonus, lengths):
    for chunk in (1, 3, 16, 64):
        assert difference(inputs(g_shape, bonus=bonus), chunk=chunk, read=read, lengths=lengths) <= 1e-9


@pytest.mark.parametrize("g_shape", [None, (H,), (B, T, H, K)], ids=str)
def test_more_readers_than_tables(g_shape):
    """Reader h reads table h // (Hq / H), as if the tables had been repeated."""
    q, k, v, g, S, _ = inputs(g_shape)
    q = randn(B, T, 2 * H, K)
    y, last = decay_chunked(q, k, v, g, S, chunk=16)
    wide = [x.repeat_interleave(2 * H // x.shape[2], 2) for x in (k, v)]
    g_wide = None if g is None else g.repeat_interleave(2, 0 if g.dim() == 1 else 2)
    want, last_wide = scans.decay(q, *wide, g_wide, S.repeat_interleave(2, 1), impl="reference")
    assert contract.close((y, last), (want, last_wide[:, ::2])) <= 1e-9


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("rate", [-torch.inf, -1e4, -1e-12, 0.0])
@pytest.mark.parametrize("g_shape", [(H,), (B, T, H), (B, T, H, K)], ids=str)
def test_rates_at_the_ends(g_shape, rate, dtype):
    """Everywhere, and at every third token only: finite, equal, and with finite equal gradients."""
    tolerance = 1e-9 if dtype == torch.float64 else 1e-5
    q, k, v, g, S, _ = (None if x is None else x.to(dtype) for x in inputs(g_shape))
    g_third = g.clone()
    g_third[(slice(None), slice(None, None, 3)) if g.dim() > 1 else slice(None, None, 3)] = rate
    for rates, read in itertools.product((torch.full_like(g, rate), g_third), ("after", "before")):
        assert difference((q, k, v, rates, S, None), read=read, tolerance=tolerance) <= tolerance


@pytest.mark.parametrize("keys", [None, K], ids=["per head", "per key"])
def test_strong_decay_in_front_costs_weak_decay_no_digits(keys):
    """Running sums that are subtracted lose what follows a g of -1e4; sums over each stretch do not."""
    q, k, v, _, _, _ = (None if x is None else x.float() for x in inputs(None))
    g = torch.full((B, T, H, keys or 1), -1e-3)
    g[:, 0] = -1e4
    g = g if keys else g[..., 0]
    want, _ = scans.decay(*(x.double() for x in (q, k, v, g)), impl="reference")
    y, _ = decay_chunked(q, k, v, g, chunk=64)
    assert contract.close(y, want, 1e-5) <= 1e-5

    total = (g if keys else g[..., None]).cumsum(1)  # the failed attempt, in the same precision
    D = (total[:, :, None] - total[:, None]).masked_fill(
        ~torch.ones(T, T).tril().bool()[..., None, None], -torch.inf
    )
    heads = (x.repeat_interleave(H // x.shape[2], 2) for x in (q, k))
    naive = torch.einsum("bthk,bmhk,btmhk,bmhv->bthv", *heads, D.exp().expand(-1, -1, -1, -1, K), v)
    assert contract.error(naive, want) > 1e-4


def test_total_decay_that_no_quotient_survives():
    """exp(-sum g) over a chunk is inf in float32: whoever divides by the running product gets NaN."""
    q, k, v, _, S, _ = (None if x is None else x.float() for x in inputs(None))
    g = torch.full((B, T, H, K), -20.0)
    assert not torch.exp(-g.cumsum(1)).isfinite().all()
    y, _ = decay_chunked(q, k, v, g, S, chunk=64)
    want, _ = scans.decay(*(x.double() for x in (q, k, v, g, S)), impl="reference")
    assert contract.close(y, want, 1e-5) <= 1e-5


class Largest(TorchDispatchMode):
    """The most numbers in any tensor that an operation returns."""

    numbers = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for x in result if isinstance(result, tuple | list) else (result,):
            if isinstance(x, torch.Tensor):
                self.numbers = max(self.numbers, x.numel())
        return result


@pytest.mark.parametrize("tokens", [256, 1024])
def test_no_table_of_all_pairs_and_keys(tokens):
    """Per-key decays at chunk 64: no tensor beyond the inputs' own size, where pairs times keys is 64 of them."""
    shape = (1, tokens, 2, 32)
    q, k, v = (randn(*shape, seed=i) for i in range(3))
    with Largest() as seen:
        decay_chunked(q, k, v, -randn(*shape).abs(), chunk=64)
    assert seen.numbers <= max(q.numel(), module.TOGETHER * 2 * 64 * 64)


def test_backward_is_linear_in_time():
    """Numbers that the backward pass writes, T = 512 against 2048: a slice's gradient would make this 16, not 4."""

    class Written(TorchDispatchMode):
        numbers = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            self.numbers += sum(x.numel() for x in (result,) if isinstance(x, torch.Tensor))
            return result

    def written(tokens):
        q = randn(1, tokens, 1, 4).requires_grad_()
        y, _ = decay_chunked(q, q, q, -q.abs(), chunk=4)
        with Written() as seen:
            y.sum().backward()
        return seen.numbers

    assert written(2048) < 5 * written(512)


def test_half_precision_keeps_the_state_in_float32():
    q, k, v, g, S, _ = (None if x is None else x.bfloat16() for x in inputs((B, T, H)))
    y, last = decay_chunked(q, k, v, g, S)
    assert y.dtype == torch.bfloat16
    assert last.dtype == torch.float32
    want, _ = scans.decay(*(x.double() for x in (q, k, v, g, S)))
    assert contract.close(y, want, contract.BOUNDS[torch.bfloat16]) <= contract.BOUNDS[torch.bfloat16]


def test_bad_input_is_named():
    q, k, v, g, S, _ = inputs((H,))
    with pytest.raises(ValueError, match="chunk: expected a whole number >= 1, got 0"):
        decay_chunked(q, k, v, g, S, chunk=0)
    with pytest.raises(ValueError, match="q_BTHK: 3 heads do not divide the 4"):
        decay_chunked(q[:, :, [0, 0, 0]], k, v, g, S)
    with pytest.raises(ValueError, match=r"g_BTH: expected axes \[B, T, H\] with T=37"):
        decay_chunked(q, k, v, randn(B, 3, H), S)
    with pytest.raises(ValueError, match="u_HK: a bonus .* needs read='before'"):
        decay_chunked(q, k, v, g, S, u_HK=randn(H, K))


# (what is broken, source before, source after)
MUTANTS = [
    ("padding forgets", "(real(x.expand(-1, T, -1, -1), lengths_B) for x in (k, v, g))",
     "(real(k, lengths_B), v, g.expand(-1, T, -1, -1))"),
    ("padding writes", "(real(x.expand(-1, T, -1, -1), lengths_B) for x in (k, v, g))",
     "(k, v, real(g.expand(-1, T, -1, -1), lengths_B))"),
    ("mask lost", ".masked_fill(~ones.tril(-behind), -torch.inf)", ""),
    ("own decay in the segment", ".masked_fill(~ones.tril(-1 - behind), 0)", ".masked_fill(~ones.tril(-behind), 0)"),
    ("read before, per head", "pad(g[..., :-1], (1, 0))", "g"),
    ("state fades twice", "S = keep * S + new", "S = keep * keep * S + new"),
    ("state lost", "S = keep * S + new", "S = new"),
    ("wrong group", "x.repeat_interleave(heads // x.shape[1], 1)", "torch.cat([x] * (heads // x.shape[1]), 1)"),
    ("first block does not fade", "from1 + over2", "from1"),
    ("second block does not fade", "to2 + over1", "to2"),
    ("blocks swapped", "(q2 * _heads(to2.exp(), heads)) @ (k1 * _heads(from1.exp(), heads))",
     "(q2 * _heads(from1.exp(), heads)) @ (k1 * _heads(to2.exp(), heads))"),
    ("bonus is one more", "q * _heads(u, heads)", "q * (1 + _heads(u, heads))"),
    ("bonus lost", "_heads(A, heads) + _heads(own, heads)", "_heads(A, heads) + 0 * _heads(own, heads)"),
]  # fmt: skip


def survives(function):
    try:
        for shape, bonus in itertools.product([(H,), (B, T, H), (B, T, 2, K)], [False, True]):
            read = "before" if bonus else "after"
            difference(inputs(shape, bonus=bonus), function, 8, read, LENGTHS)
    except AssertionError:
        return False
    return True


def test_the_unbroken_survives():
    assert survives(decay_chunked)


@pytest.mark.parametrize(("broken", "old", "new"), MUTANTS, ids=[m[0] for m in MUTANTS])
def test_mutant_is_caught(broken, old, new):
    assert not survives(mutant(module, old, new).decay_chunked), f"{broken!r} passes"
