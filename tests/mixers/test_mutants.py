"""Broken mixers that the contract must catch: each is one textual change to a module's own source.

They stand in mutants/NAME.toml, a file for each mixer, which says what is broken, the source before and after.
If a change no longer applies, the test fails and asks for a new one: a mutant that mutates nothing proves nothing.
"""

import tomllib
from pathlib import Path

import contract
import pytest
import torch
from broken import mutant
from contract import survives

from postx import mixers, scans
from postx.mixers import linear

FOLDER = Path(__file__).parents[1] / "mutants"
MUTANTS = [
    (path.stem, m["form"], m["broken"], m["old"], m["new"])
    for path in sorted(FOLDER.glob("*.toml"))
    for m in tomllib.loads(path.read_text(encoding="utf8"))["mutant"]
]


@pytest.mark.parametrize(("name", "form"), sorted({(m[0], m[1]) for m in MUTANTS}))
def test_the_unbroken_survive(name, form):
    assert survives(mixers.load(name), form)


@pytest.mark.parametrize(
    ("name", "form", "broken", "old", "new"), MUTANTS, ids=[f"{m[0]}-{m[1]}-{m[2]}" for m in MUTANTS]
)
def test_mutant_is_caught(name, form, broken, old, new):
    assert not survives(mutant(mixers.load(name), old, new), form), f"{name}.{form} with {broken!r} passes the contract"


def test_every_form_has_a_mutant():
    covered = {(m[0], m[1]) for m in MUTANTS}
    assert covered == {(name, form) for name in mixers.names() for form in mixers.forms(mixers.load(name))}


def test_mutant_steps_are_caught():
    """A step that writes into the state that it was given."""
    impure = mutant(linear, "S.add_(written) if inplace else S + written", "S.add_(written)")
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
