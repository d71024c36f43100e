"""The sliders of explore(): a list of values, where it starts, and how a value is written."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


def _equal(a, b):
    """a == b as one answer, also where it is asked of every number of an array."""
    same = a == b
    return same if isinstance(same, bool) else bool(np.shape(a) == np.shape(b) and np.all(np.asarray(same)))


@dataclass(frozen=True)
class Slider:
    """The values of a slider, in order; `start` is one; `fmt` writes a value and `unit` follows it."""

    values: tuple
    start: object = None
    label: str | None = None
    unit: str = ""
    fmt: Callable[[object], str] | str | None = None

    def __post_init__(self):
        kind = type(self).__name__
        if len(self.values) < 2:
            raise ValueError(f"{kind} has {len(self.values)} value: a slider needs at least two")
        if self.start is None:
            object.__setattr__(self, "start", self.values[0])
        self.index(self.start, f"{kind} start")
        if self.label is not None and (not isinstance(self.label, str) or not self.label.strip()):
            raise ValueError(f"{kind} label must be text, got {self.label!r}")
        if not isinstance(self.unit, str):
            raise TypeError(f"{kind} unit must be text, got {type(self.unit).__name__}")
        if not (self.fmt is None or isinstance(self.fmt, str) or callable(self.fmt)):
            raise TypeError(f"{kind} fmt must be a format such as '{{:,}}' or a function, got {self.fmt!r}")
        texts = [self.text(value) for value in self.values]
        if len(set(texts)) < len(texts):
            raise ValueError(f"{kind} fmt writes two values alike: {', '.join(texts)}")

    def index(self, value, name):
        """The place of `value` on the grid; ValueError when it is not there."""
        for place, one in enumerate(self.values):
            if one is value or type(one) is type(value) and _equal(one, value):
                return place
        near = ""
        if all(isinstance(v, (int, float)) for v in (*self.values, value)):
            near = f"; the nearest is {min(self.values, key=lambda v: abs(v - value))}"
        grid = ", ".join(repr(v) for v in self.values[:12]) + (", ..." if len(self.values) > 12 else "")
        raise ValueError(f"{name} = {value!r} is not on the grid ({grid}){near}")

    def name(self, keyword):
        """What the reader sees beside the slider: the label, or else the keyword of update."""
        return self.label or keyword.replace("_", " ")

    def text(self, value):
        """How the reader sees a value, with its unit."""
        if isinstance(self.fmt, str):
            written = self.fmt.format(value)
        elif self.fmt is not None:
            written = str(self.fmt(value))
        else:
            written = f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
        return f"{written} {self.unit}" if self.unit else written


def _whole(**numbers):
    for name, number in numbers.items():
        if isinstance(number, bool) or not isinstance(number, int):
            raise TypeError(f"{name} must be a whole number, got {number!r}")


class Int(Slider):
    """Whole numbers lo, lo + step, ..., hi. Raises ValueError when hi or start is not among them."""

    def __init__(self, lo, hi, *, start=None, step=1, label=None, unit="", fmt=None):
        _whole(lo=lo, hi=hi, step=step)
        if step < 1 or hi <= lo or (hi - lo) % step:
            got = f"got {lo}, {hi}, step={step}"
            raise ValueError(f"Int needs lo < hi, and hi a whole number of steps from lo; {got}")
        super().__init__(tuple(range(lo, hi + 1, step)), start, label, unit, fmt)


class Log(Slider):
    """Whole numbers lo * 2^(k / per_octave), rounded, up to hi. ValueError when hi or start is not one."""

    def __init__(self, lo, hi, *, start=None, per_octave=1, label=None, unit="", fmt=None):
        _whole(lo=lo, hi=hi, per_octave=per_octave)
        if lo < 1 or hi <= lo or per_octave < 1:
            got = f"got {lo}, {hi}, per_octave={per_octave}"
            raise ValueError(f"Log needs 1 <= lo < hi and per_octave >= 1; {got}")
        steps = math.ceil(math.log2(hi / lo) * per_octave - 1e-9)
        grid = tuple(dict.fromkeys(round(lo * 2 ** (k / per_octave)) for k in range(steps + 1)))
        if hi not in grid:
            raise ValueError(f"Log hi = {hi} is not on the grid; use {grid[-2]} or {grid[-1]}")
        super().__init__(grid[: grid.index(hi) + 1], start, label, unit, fmt)


class Choice(Slider):
    """One of a few options, in the order given. Raises ValueError when start is not one of them."""

    def __init__(self, *options, start=None, label=None, unit="", fmt=None):
        super().__init__(options, start, label, unit, fmt)
