"""The one way to break a module in a test: a copy of it with one place of its source changed."""

import sys
import types
from pathlib import Path


def mutant(module, old, new):
    """A copy of `module` in whose source `old`, which must stand there once, is `new`.

    A change that no longer applies is an AssertionError that asks for another: a mutant that mutates nothing proves
    nothing.
    """
    source = Path(module.__file__).read_text(encoding="utf8")
    assert source.count(old) == 1, (
        f"{module.__name__}: {old!r} stands {source.count(old)} times in the source; write a new mutant"
    )
    room, _, name = module.__name__.rpartition(".")
    made = types.ModuleType(f"{room}._mutant_{name}")
    made.__file__, made.__package__ = module.__file__, module.__spec__.parent
    sys.modules[made.__name__] = made
    exec(compile(source.replace(old, new), module.__file__, "exec"), made.__dict__)
    return made
