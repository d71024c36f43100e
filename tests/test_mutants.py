"""Broken mixers that the contract must catch: each is one textual change to a module's own source.

If a change no longer applies, the test fails and asks for a new one: a mutant that mutates nothing proves nothing.
"""

import sys
import types

import contract
import pytest
import torch

from postx import mixers, scans

# (mixer, form, what is broken, source before, source after)
MUTANTS = [
    ("attention", "recurrent", "own token unread", "after = seen.cached + t + 1", "after = seen.cached + max(t, 1)"),
    ("attention", "parallel", "state lost", "seen, S = _look(q_BTHK, k_BTGK, v_BTGV, S, lengths_B, **w)\n    mask",
     "seen, S = _look(q_BTHK, k_BTGK, v_BTGV, None, lengths_B, **w)\n    mask"),
    ("attention", "parallel", "read off by one", "_cache.visible(seen.position_BT, seen.position_BM",
     "_cache.visible(seen.position_BT + 1, seen.position_BM"),
    ("attention", "parallel", "wrong group", "visible_BTM, scale=None):\n",
     "visible_BTM, scale=None):\n    k_BMGK = k_BMGK.flip(2) if q_BTHK.shape[1] > 1 else k_BMGK\n"),
    ("attention", "chunked", "positions off by one", "_tiles.attend(*seen,",
     "_tiles.attend(*seen._replace(position_BT=seen.position_BT - 1),"),
    ("linear", "recurrent", "wrong group", ".unflatten(2, (G, -1)).unbind(3)", ".unflatten(2, (-1, G)).unbind(2)"),
    ("linear", "recurrent", "state lost", "None, S, lengths_B=lengths_B, impl=impl)",
     "None, None, lengths_B=lengths_B, impl=impl)"),
    ("linear", "parallel", "wrong group", "z = phi(q_BTHK), phi(k_BTGK),", "z = phi(q_BTHK), phi(k_BTGK).flip(2),"),
    ("linear", "parallel", "state lost", "decay_chunked(*z, None, S,", "decay_chunked(*z, None, None,"),
    ("linear", "chunked", "read off by one", "lengths_B=lengths_B, chunk=chunk)",
     "lengths_B=lengths_B, chunk=chunk, read=\"before\")"),
    ("linear", "chunked", "padding written", "S, lengths_B=lengths_B, chunk=chunk)", "S, chunk=chunk)"),
    ("s4d", "recurrent", "decay dropped", "scans.diagonal(u_BTD, delta_D, A_DN,",
     "scans.diagonal(u_BTD, delta_D, A_DN.imag * 1j,"),
    ("s4d", "recurrent", "Euler for zero-order hold", "torch.special.expm1(z) / z  #", "torch.ones_like(z)  #"),
    ("s4d", "parallel", "convolution wraps", "n = 2 * T\n", "n = T\n"),
    ("s4d", "parallel", "read off by one", "powers_DNT[..., :T]).real", "powers_DNT[..., 1:]).real"),
    ("s4d", "parallel", "state off by one", "C_DN * S, powers_DNT[..., 1:]", "C_DN * S, powers_DNT[..., :-1]"),
    ("s4d", "chunked", "state lost", "delta_D, A_DN, C_DN, skip_D, S, left)",
     "delta_D, A_DN, C_DN, skip_D, None, left)"),
    ("mla", "recurrent", "own token unread", "after = seen.cached + t + 1", "after = seen.cached + max(t, 1)"),
    ("mla", "recurrent", "rotary key unrotated", "return torch.cat([q[..., :nope], turned], -1), rope.rotate(",
     "return torch.cat([q[..., :nope], turned], -1), r if r.dim() == 3 else rope.rotate("),
    ("mla", "parallel", "read off by one", "_cache.visible(seen.position_BT, seen.position_BM, None)",
     "_cache.visible(seen.position_BT + 1, seen.position_BM, None)"),
    ("mla", "parallel", "state lost", "    if S is None:\n        S = init(*(x.new_empty",
     "    if True:\n        S = init(*(x.new_empty"),
    ("mla", "chunked", "scale dropped", "_tiles.attend(*seen, scale=scale,", "_tiles.attend(*seen, scale=1.0,"),
    ("hyena", "recurrent", "filter backwards", "response_DW.flip(1), S, lengths_B, impl)",
     "response_DW, S, lengths_B, impl)"),
    ("hyena", "recurrent", "state lost", "response_DW.flip(1), S, lengths_B, impl)",
     "response_DW.flip(1), None, lengths_B, impl)"),
    ("hyena", "parallel", "skip dropped", "z = x_BTLD[:, :, n] * (y + skip_LD[n] * z)", "z = x_BTLD[:, :, n] * y"),
    ("hyena", "parallel", "first level's past for every level", "None if S is None else S[:, n])",
     "None if S is None else S[:, 0])"),
    ("hyena", "parallel", "one filter for every level", "convolve(z, response_LDW[n],",
     "convolve(z, response_LDW[0],"),
    ("hyena", "chunked", "state lost", "_by_fft(v, x, response_LDW, skip_LD, S, left)",
     "_by_fft(v, x, response_LDW, skip_LD, None, left)"),
    ("hyena", "chunked", "lengths of the first chunk for all", "(lengths_B - t).clamp(0, v.shape[1])",
     "lengths_B.clamp(0, v.shape[1])"),
    ("rglru", "recurrent", "decay dropped", "scans.affine(g, b, h, lengths_B", "scans.affine(0 * g, b, h, lengths_B"),
    ("rglru", "recurrent", "state lost", "scans.affine(g, b, h, lengths_B", "scans.affine(g, b, None, lengths_B"),
    ("rglru", "recurrent", "every call begins anew", "begins_BT = (started == 0)[:, None] & (token == 0)",
     "begins_BT = (started > -1)[:, None] & (token == 0)"),
    ("rglru", "parallel", "one round too few", "while reach < T:", "while 2 * reach < T:"),
    ("rglru", "parallel", "decays not added up", "g[..., reach:, :] + before_g]", "g[..., reach:, :]]"),
    ("rglru", "parallel", "state does not fade", "y + G.exp() * h[:, None]", "y + h[:, None]"),
    ("rglru", "parallel", "state lost", "y + G.exp() * h[:, None]", "y"),
    ("rglru", "chunked", "state not passed on", "h = fade_BD * h + y_BD", "h = y_BD"),
    ("rglru", "chunked", "state does not fade", "y + fade * torch.stack", "y + torch.stack"),
    ("rglru", "chunked", "filled up in front", "(0, 0, 0, -T % chunk)", "(0, 0, -T % chunk, 0)"),
    ("shortconv", "recurrent", "state lost", "x_BTD, weight_DW, S, lengths_B, impl)",
     "x_BTD, weight_DW, None, lengths_B, impl)"),
    ("shortconv", "recurrent", "in gate dropped", "_conv.scan(b_BTD.to(state_dtype(x_BTD.dtype)) * x_BTD,",
     "_conv.scan(x_BTD,"),
    ("shortconv", "parallel", "taps in the wrong order", "short_convolution(written, weight_DW,",
     "short_convolution(written, weight_DW.flip(1),"),
    ("shortconv", "parallel", "state lost", "None, S, lengths_B, impl=\"torch\")",
     "None, None, lengths_B, impl=\"torch\")"),
    ("retnet", "recurrent", "decay dropped", "v_BTHV, g_H, S, lengths_B=lengths_B, impl=impl)",
     "v_BTHV, 0 * g_H, S, lengths_B=lengths_B, impl=impl)"),
    ("retnet", "recurrent", "scale dropped", "return scans.decay(_scaled(q_BTHK)",
     "return scans.decay((q_BTHK)"),
    ("retnet", "parallel", "read off by one", "_fade(g_H, token[:, None] - token)",
     "_fade(g_H, token[:, None] - token - 1)"),
    ("retnet", "parallel", "state fades one step less", "_fade(g, token + 1), S)", "_fade(g, token), S)"),
    ("retnet", "parallel", "writes fade one step more", "ends[:, None] - 1 - token)",
     "ends[:, None] - token)"),
    ("retnet", "chunked", "state lost", "v_BTHV, g_H, S, lengths_B=lengths_B, chunk=chunk)",
     "v_BTHV, g_H, None, lengths_B=lengths_B, chunk=chunk)"),
    ("retnet", "chunked", "wrong head", "v_BTHV, g_H, S, lengths_B=lengths_B, chunk=chunk)",
     "v_BTHV, g_H.flip(0), S, lengths_B=lengths_B, chunk=chunk)"),
    ("gla", "recurrent", "decay of the token before", "v_BTHV, g_BTHK, S, lengths_B=lengths_B, impl=impl)",
     "v_BTHV, g_BTHK.roll(1, 1), S, lengths_B=lengths_B, impl=impl)"),
    ("gla", "parallel", "scale dropped", "z = _scaled(q_BTHK), k_BTHK", "z = q_BTHK, k_BTHK"),
    ("gla", "parallel", "one decay for all keys", "k_BTHK, v_BTHV, g_BTHK\n",
     "k_BTHK, v_BTHV, g_BTHK.mean(-1)\n"),
    ("gla", "chunked", "decay dropped", "v_BTHV, g_BTHK, S, lengths_B=lengths_B, chunk=chunk)",
     "v_BTHV, None, S, lengths_B=lengths_B, chunk=chunk)"),
    ("gla", "chunked", "state lost", "v_BTHV, g_BTHK, S, lengths_B=lengths_B, chunk=chunk)",
     "v_BTHV, g_BTHK, None, lengths_B=lengths_B, chunk=chunk)"),
    ("rwkv4", "recurrent", "bonus lost", "scans.logspace(k_BTD, v_BTD, g_D, u_D,",
     "scans.logspace(k_BTD, v_BTD, g_D, 0 * u_D,"),
    ("rwkv4", "recurrent", "read after the update", "scans.logspace(k_BTD, v_BTD, g_D, u_D,",
     "scans.logspace(k_BTD, v_BTD, g_D, None,"),
    ("rwkv4", "parallel", "a round fades by one token", "reach * g)", "g)"),
    ("rwkv4", "parallel", "read off by one", "before = tuple(x[:, :-1] for x in sums)",
     "before = tuple(x[:, 1:] for x in sums)"),
    ("rwkv4", "chunked", "state lost", "_by_doubling(k, v, g_D, u_D, S, left)",
     "_by_doubling(k, v, g_D, u_D, None, left)"),
    ("rwkv4", "chunked", "row's end off by a chunk", "(lengths_B - i * chunk)",
     "(lengths_B - i * chunk - chunk)"),
    ("rwkv6", "recurrent", "read after the update",
     "read=\"before\", u_HK=u_HK, lengths_B=lengths_B, impl=impl)",
     "read=\"after\", lengths_B=lengths_B, impl=impl)"),
    ("rwkv6", "parallel", "bonus lost", "u_HK=u_HK, lengths_B=lengths_B, chunk=T)",
     "lengths_B=lengths_B, chunk=T)"),
    ("rwkv6", "chunked", "bonus is one", "u_HK=u_HK, lengths_B=lengths_B, chunk=chunk)",
     "u_HK=torch.ones_like(u_HK), lengths_B=lengths_B, chunk=chunk)"),
    ("rwkv6", "chunked", "state lost",
     "decay_chunked(*z, S, read=\"before\", u_HK=u_HK, lengths_B=lengths_B, chunk=chunk)",
     "decay_chunked(*z, None, read=\"before\", u_HK=u_HK, lengths_B=lengths_B, chunk=chunk)"),
    ("deltanet", "recurrent", "state lost", "scans.delta(*terms, None, S,", "scans.delta(*terms, None, None,"),
    ("deltanet", "recurrent", "read off by one", "scans.delta(*terms, None, S,",
     "scans.delta(*terms, None, S, read='before',"),
    ("deltanet", "recurrent", "all of v written", "k, v * beta[..., None], beta)", "k, v, beta)"),
    ("deltanet", "chunked", "state lost", "in_chunks(*terms, None, S,", "in_chunks(*terms, None, 0 * S,"),
    ("deltanet", "chunked", "nothing erased", "in_chunks(*terms, None, S,",
     "in_chunks(*terms[:3], 0 * terms[3], None, S,"),
    ("gated_deltanet", "recurrent", "error of the table before it faded", "beta * g.exp(), g)", "beta, g)"),
    ("gated_deltanet", "recurrent", "wrong group", "** -0.5, k, v * beta", "** -0.5, k.flip(2), v * beta"),
    ("gated_deltanet", "recurrent", "state lost", "scans.delta(*terms, S,", "scans.delta(*terms, None,"),
    ("gated_deltanet", "chunked", "decay dropped", "in_chunks(*terms, S,", "in_chunks(*terms[:4], None, S,"),
    ("gated_deltanet", "chunked", "scale dropped", 'return (q * sizes["K"] ** -0.5,', "return (q,"),
    ("rwkv7", "recurrent", "learning rate lost", '"b_BTHK": removal * a,', '"b_BTHK": removal,'),
    ("rwkv7", "recurrent", "removal and write swapped", '{"b_BTHK": removal * a, "c_BTHK": removal}',
     '{"b_BTHK": removal, "c_BTHK": removal * a}'),
    ("rwkv7", "recurrent", "state lost", "scans.delta(*terms, S,", "scans.delta(*terms, None,"),
    ("rwkv7", "chunked", "state lost", "in_chunks(*terms, S,", "in_chunks(*terms, 0 * S,"),
    ("rwkv7", "chunked", "decay dropped", "in_chunks(*terms, S,", "in_chunks(*terms[:4], None, S,"),
    ("mamba", "recurrent", "write and read swapped", "A_DN, write_BTN, read_BTN, S, lengths_B=",
     "A_DN, read_BTN, write_BTN, S, lengths_B="),
    ("mamba", "recurrent", "state lost", "write_BTN, read_BTN, S, lengths_B=", "write_BTN, read_BTN, None, lengths_B="),
    ("mamba", "parallel", "padding fades the state", "delta = _mask(delta, lengths_B)  #", "delta = delta  #"),
    ("mamba", "parallel", "a round too few", "while shift < T:", "while 2 * shift < T:"),
    ("mamba", "chunked", "state off by one", "S = h[:, -1]", "S = h[:, max(0, h.shape[1] - 2)]"),
    ("mamba", "chunked", "decay dropped", "torch.exp(d[..., None] * A_DN), x[",
     "torch.ones_like(d[..., None] * A_DN), x["),
    ("ssd", "recurrent", "decay dropped", "v_BTHV, g_BTH, S, lengths_B=lengths_B, impl",
     "v_BTHV, None, S, lengths_B=lengths_B, impl"),
    ("ssd", "recurrent", "wrong group", "scans.decay(q_BTGK,", "scans.decay(q_BTGK.flip(2),"),
    ("ssd", "parallel", "decay counts its own token", ".masked_fill(~below, 0)", ".masked_fill(~below & ~below.mT, 0)"),
    ("ssd", "parallel", "mask lost", "sums.masked_fill(below.mT, -torch.inf)", "sums"),
    ("ssd", "parallel", "padding writes", "k, g = k * real_BT[..., None, None],", "k, g = k,"),
    ("ssd", "chunked", "state passed on undecayed", "S = seen[:, n, ..., -1, None, None] * S +", "S = S +"),
    ("ssd", "chunked", "padding fades the state", "torch.where(real_BT[..., None], g, torch.zeros_like(g))", "g"),
    ("ssd", "chunked", "wrong group", "q, k, v, g = (x.to(kind) for x in (q_BTGK,",
     "q, k, v, g = (x.to(kind) for x in (q_BTGK.flip(2),"),
]  # fmt: skip


def mutate(name, old, new):
    """The mixer module of that name with one place in its source changed."""
    original = mixers.load(name)
    with open(original.__file__) as file:
        source = file.read()
    assert source.count(old) == 1, (
        f"{name}: {old!r} stands {source.count(old)} times in the source; write a new mutant"
    )
    mutant = types.ModuleType(f"postx.mixers._mutant_{name}")
    mutant.__file__ = original.__file__
    sys.modules[mutant.__name__] = mutant
    exec(compile(source.replace(old, new), original.__file__, "exec"), mutant.__dict__)
    return mutant


def survives(mixer, form):
    """Whether the contract's checks of one form find nothing wrong."""
    try:
        for T in (1, 37, 48):
            contract.form_equals_step(mixer, form, T)
        contract.cut_and_resume(mixer, form)
        contract.ragged(mixer, form)
        contract.causal(mixer, form)
    except AssertionError:
        return False
    return True


@pytest.mark.parametrize(("name", "form"), sorted({(m[0], m[1]) for m in MUTANTS}))
def test_the_unbroken_survive(name, form):
    assert survives(mixers.load(name), form)


@pytest.mark.parametrize(
    ("name", "form", "broken", "old", "new"), MUTANTS, ids=[f"{m[0]}-{m[1]}-{m[2]}" for m in MUTANTS]
)
def test_mutant_is_caught(name, form, broken, old, new):
    assert not survives(mutate(name, old, new), form), f"{name}.{form} with {broken!r} passes the contract"


def test_every_form_has_a_mutant():
    covered = {(m[0], m[1]) for m in MUTANTS}
    assert covered == {(name, form) for name in mixers.names() for form in mixers.forms(mixers.load(name))}


def test_mutant_steps_are_caught():
    """A step that writes into the state that it was given."""
    impure = mutate("linear", "S.add_(written) if inplace else S + written", "S.add_(written)")
    with pytest.raises(AssertionError):
        contract.step_is_pure(impure)


# Broken recurrences, seen through the mixers that use them: (scan, mixer, what is broken, change of the arguments)
BROKEN_SCANS = [
    ("decay", "linear", "decay applied",
     lambda q, k, v, g, S, **kw: ((q, k, v, v.new_full(v.shape[2:3], -0.1), S), kw)),
    ("decay", "linear", "read before the update", lambda *a, **kw: (a, kw | {"read": "before"})),
    ("decay", "linear", "state lost", lambda q, k, v, g, S, **kw: ((q, k, v, g, None), kw)),
    ("fir", "shortconv", "off by one", lambda x, w, **kw: ((torch.roll(x, 1, 1), w), kw)),
    ("fir", "hyena", "last tap lost", lambda x, w, **kw: ((x, torch.cat([w[:, :-1], 0 * w[:, -1:]], 1)), kw)),
    ("delta", "deltanet", "nothing erased",
     lambda q, k, v, beta, *a, **kw: ((q, k, v, 0 * beta, *a), kw)),
    ("delta", "gated_deltanet", "read before the update", lambda *a, **kw: (a, kw | {"read": "before"})),
    ("delta", "rwkv7", "b taken for k", lambda *a, b_BTHK, **kw: (a, kw)),
    ("delta", "rwkv7", "c taken for k", lambda *a, c_BTHK, **kw: (a, kw)),
    ("diagonal", "mamba", "delta off by one", lambda u, d, *a, **kw: ((u, torch.roll(d, 1, 1), *a), kw)),
    ("diagonal", "s4d", "decay dropped", lambda u, d, A, *a, **kw: ((u, d, 1j * A.imag, *a), kw)),
    ("affine", "rglru", "decay dropped", lambda g, *a, **kw: ((0 * g, *a), kw)),
    ("affine", "rglru", "write off by one", lambda g, b, S, **kw: ((g, torch.roll(b, 1, 1), S), kw)),
    ("affine", "rglru", "state lost", lambda g, b, S, **kw: ((g, b, None), kw)),
    ("diagonal", "s4d", "write off by one", lambda u, *a, **kw: ((torch.roll(u, 1, 1), *a), kw)),
]  # fmt: skip


@pytest.mark.parametrize(
    ("scan", "name", "broken", "change"), BROKEN_SCANS, ids=[f"{s[0]}-{s[2]}" for s in BROKEN_SCANS]
)
def test_broken_scan_is_caught(scan, name, broken, change, monkeypatch):
    whole = getattr(scans, scan)

    def mutant(*args, **more):
        args, more = change(*args, **more)
        return whole(*args, **more)

    monkeypatch.setattr(scans, scan, mutant)
    assert not survives(mixers.load(name), "recurrent"), f"{scan} with {broken!r} passes the contract"
