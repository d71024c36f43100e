"""The sliders of explore(): a list of values, where it starts, and how a value is written."""

import math
import re
import string
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Number

import numpy as np

MOST_BUTTONS = 5  # numbers, whose order a slider shows
MOST_LETTERS = 100  # words, which have none: two lines of a page, four of a phone
MOST_SLIDERS = 6


def _equal(a, b):
    """a == b as one answer, also where it is asked of every number of an array."""
    same = a == b
    return same if isinstance(same, bool) else bool(np.shape(a) == np.shape(b) and np.all(np.asarray(same)))


@dataclass(frozen=True)
class Slider:
    """The values of a slider, in order; `start` is one; `fmt` writes a value and `unit` follows it.

    `play` gives a slider that is time a button. `axis="x"` lets the reader drag in the picture: a value is then a
    place on the x axis of the first axes; a function in its place says where a value lies there.
    """

    values: tuple
    start: object = None
    label: str | None = None
    unit: str = ""
    fmt: Callable[[object], str] | str | None = None
    play: bool = False
    axis: Callable[[object], float] | str | None = None

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
        if not (self.axis in (None, "x") or callable(self.axis)):
            raise ValueError(f"{kind} axis must be 'x' or a function from a value to a place, got {self.axis!r}")
        if self.buttons and (self.play or self.axis):
            raise ValueError(f"{kind} of {len(self.values)} options is a row of buttons: no play or axis there")
        texts = [self.text(value) for value in self.values]
        if len(set(texts)) < len(texts):
            raise ValueError(f"{kind} fmt writes two values alike: {', '.join(texts)}")

    @property
    def buttons(self):
        """Whether the reader sees all options at once, as a row of radio buttons, in place of a slider."""
        if not isinstance(self, Choice):
            return False
        texts = [self.text(value) for value in self.values]
        words = not any(isinstance(value, Number) for value in self.values)
        return len(texts) <= MOST_BUTTONS or (words and sum(len(text) + 3 for text in texts) <= MOST_LETTERS)

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

    def __init__(self, lo, hi, *, start=None, step=1, **look):
        _whole(lo=lo, hi=hi, step=step)
        if step < 1 or hi <= lo or (hi - lo) % step:
            got = f"got {lo}, {hi}, step={step}"
            raise ValueError(f"Int needs lo < hi, and hi a whole number of steps from lo; {got}")
        super().__init__(tuple(range(lo, hi + 1, step)), start, **look)


class Log(Slider):
    """Whole numbers lo * 2^(k / per_octave), rounded, up to hi. ValueError when hi or start is not one."""

    def __init__(self, lo, hi, *, start=None, per_octave=1, **look):
        _whole(lo=lo, hi=hi, per_octave=per_octave)
        if lo < 1 or hi <= lo or per_octave < 1:
            got = f"got {lo}, {hi}, per_octave={per_octave}"
            raise ValueError(f"Log needs 1 <= lo < hi and per_octave >= 1; {got}")
        steps = math.ceil(math.log2(hi / lo) * per_octave - 1e-9)
        grid = tuple(dict.fromkeys(round(lo * 2 ** (k / per_octave)) for k in range(steps + 1)))
        if hi not in grid:
            raise ValueError(f"Log hi = {hi} is not on the grid; use {grid[-2]} or {grid[-1]}")
        super().__init__(grid[: grid.index(hi) + 1], start, **look)


class Choice(Slider):
    """One of a few options, in the order given. Raises ValueError when start is not one of them."""

    def __init__(self, *options, start=None, **look):
        super().__init__(options, start, **look)


class Real(Slider):
    """`stops` numbers from lo to hi, evenly or, with log, by equal factors, each rounded to 3 significant digits.

    Raises ValueError when start is not one of them.
    """

    def __init__(self, lo, hi, *, start=None, stops=501, log=False, **look):
        _whole(stops=stops)
        if not lo < hi or stops < 2 or (log and lo <= 0):
            raise ValueError(f"Real needs lo < hi (0 < lo with log) and stops >= 2; got {lo}, {hi}, stops={stops}")
        shares = [k / (stops - 1) for k in range(stops)]
        grid = [lo * (hi / lo) ** share if log else lo + (hi - lo) * share for share in shares]
        grid = dict.fromkeys(float(f"{value:.3g}") for value in grid)
        start = start if start is None else float(start)
        super().__init__(tuple(grid), start, **({"fmt": "{:.3g}"} | look))
        object.__setattr__(self, "rule", {"low": lo, "high": hi, "n": stops, "log": log})  # a page need not list them


def singular(text, sliders, values):
    """The text with "1 bit" where it says "1 bits", for the words that name a slider which stands at 1."""
    for key, slider in sliders.items():
        if slider.text(values[key]) == "1":
            for word in {key, *slider.name(key).split()}:
                if word.endswith("s"):
                    text = re.sub(rf"(?<![\w.,])1 {re.escape(word)}\b", f"1 {word[:-1]}", text)
    return text


def check(sliders, alt):
    """Raise unless there are one to six sliders, well named, and every field of the alt text is one of them."""
    if not 1 <= len(sliders) <= MOST_SLIDERS:
        raise ValueError(
            f"explore takes one to six sliders, got {len(sliders)}: add e.g. n=Int(1, 8), "
            "or use show(fig) for a picture without any"
        )
    for name, slider in sliders.items():
        if name in ("draw", "fig"):
            raise ValueError(f"a slider cannot be called {name!r}: that is an argument of explore; rename it")
        if not isinstance(slider, Slider):
            raise TypeError(f"{name} must be Int(...), Log(...), Real(...) or Choice(...), got {type(slider).__name__}")
    if sum(slider.axis is not None for slider in sliders.values()) > 1:
        raise ValueError("axis: one slider at most can be dragged along the x axis")
    if isinstance(alt, str):
        for _, field, spec, conversion in string.Formatter().parse(alt):
            if field is not None and (field not in sliders or spec or conversion):
                raise ValueError(
                    f"alt has the field {{{field}}}, which is no slider; a field is a bare name of "
                    f"{', '.join(sliders)} (write {{{{ and }}}} for braces)"
                )


def check_frames(sliders, most):
    """Raise where the sliders' values make more pictures than a page holds."""
    count = math.prod(len(slider.values) for slider in sliders.values())
    if count > most:
        shares = " x ".join(f"{name} {len(slider.values)}" for name, slider in sliders.items())
        widest = max(sliders, key=lambda name: len(sliders[name].values))
        raise ValueError(
            f"{shares} = {count} frames, and a page holds at most {most}: make a grid coarser "
            f"(a larger step, a smaller per_octave, fewer options), first that of {widest}"
        )
