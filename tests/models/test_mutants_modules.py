"""Broken norms, models, tasks and training loops, each of which a named test must catch.

As in test_mutants.py a mutant is one textual change to a module's source; mutants/modules/NAME.toml says which test
sees it, and with which arguments. That test runs with the mutant's functions and classes in place of the module's.
"""

import importlib
import sys
import tomllib
from pathlib import Path

import pytest
from broken import mutant
from tiny import one_thread

TESTS = Path(__file__).parents[1]
FOLDER = TESTS / "mutants" / "modules"
MUTANTS = [
    pytest.param(path.stem, m, id=f"{path.stem}-{m['broken']}")
    for path in sorted(FOLDER.glob("*.toml"))
    for m in tomllib.loads(path.read_text(encoding="utf8"))["mutant"]
]
pytestmark = pytest.mark.usefixtures(one_thread.__name__)


def run(name, change, new, monkeypatch):
    """The named test, where every name bound to something of the module is bound to the mutant's."""
    file, test = change["caught_by"].split("::")
    monkeypatch.syspath_prepend(next(TESTS.rglob(f"{file}.py")).parent)
    tests = importlib.import_module(file)
    original = importlib.import_module(f"postx.{name}")
    broken = mutant(original, change["old"], new)
    own = {
        id(x): vars(broken)[key]
        for key, x in vars(original).items()
        if getattr(x, "__module__", None) == original.__name__
    }
    own[id(original)] = broken
    for module in [tests, *(m for key, m in sys.modules.items() if key.startswith("postx."))]:
        if module is not broken and module is not original:
            for key, x in list(vars(module).items()):
                if id(x) in own:
                    monkeypatch.setattr(module, key, own[id(x)])
    kept = [x for x in vars(tests).values() if hasattr(x, "cache_clear")]
    for function in kept:
        function.cache_clear()
    try:
        getattr(tests, test)(**change.get("arguments", {}))
    finally:
        for function in kept:
            function.cache_clear()


@pytest.mark.parametrize(("name", "change"), MUTANTS)
def test_mutant_is_caught_and_the_unbroken_is_not(name, change, monkeypatch):
    run(name, change, change["old"], monkeypatch)
    monkeypatch.undo()
    with pytest.raises(AssertionError):
        run(name, change, change["new"], monkeypatch)
