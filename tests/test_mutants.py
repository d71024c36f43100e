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
    ("linear", "parallel", "read off by one", ".tril()", ".tril(-1)"),
    ("linear", "parallel", "mask lost", ".tril()", ""),
    ("linear", "chunked", "state not passed on", "S = S + torch.einsum(\"bmgk", "S = torch.einsum(\"bmgk"),
    ("linear", "chunked", "wrong group", "q = phi(q_BTHK).unflatten(2, (G, -1))",
     "q = phi(q_BTHK).unflatten(2, (-1, G)).transpose(2, 3)"),
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
    ("rglru", "parallel", "decays not added up", "g[:, reach:] + g[:, :-reach]", "g[:, reach:]"),
    ("rglru", "parallel", "state off by one", "g[:, :1].exp() * h[:, None]", "h[:, None]"),
    ("rglru", "chunked", "state not passed on", "h = outputs[-1][:, -1]", "pass"),
    ("rglru", "chunked", "own token decayed", "~one.tril(-1)[..., None], 0)", "~one.tril()[..., None], 0)"),
    ("rglru", "chunked", "future not masked", "~one.tril()[..., None], -math.inf)", "~one[..., None], -math.inf)"),
    ("shortconv", "recurrent", "state lost", "x_BTD, weight_DW, S, lengths_B, impl)",
     "x_BTD, weight_DW, None, lengths_B, impl)"),
    ("shortconv", "recurrent", "in gate dropped", "_conv.scan(b_BTD.to(state_dtype(x_BTD.dtype)) * x_BTD,",
     "_conv.scan(x_BTD,"),
    ("shortconv", "parallel", "taps in the wrong order", "short_convolution(written, weight_DW,",
     "short_convolution(written, weight_DW.flip(1),"),
    ("shortconv", "parallel", "state lost", "None, S, lengths_B, impl=\"torch\")",
     "None, None, lengths_B, impl=\"torch\")"),
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
