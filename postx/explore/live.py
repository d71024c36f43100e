"""Figures that are a formula: one SymPy expression is the text shown, the Python function and the page's function.

    n, K = symbols("n K", positive=True)

    def draw(fig):
        ax = fig.subplots()
        (line,) = ax.plot([1, 1000], [1, 1])
        (dot,) = ax.plot([1], [1], "o")
        return Live({line: 2 * n * K, dot: (2 * K, 4 * K**2)}, over=(n, 1, 1000),
                    say="They meet at {meet:,.0f} tokens.", meet=2 * K, shows={"c(n)": line})

    explore(draw, alt="...", K=Real(1, 256))

matplotlib draws the picture once; _static/live.js moves what moves. With a kernel the same expressions run in NumPy.
"""

import re
import string

import numpy as np
import sympy
from matplotlib.lines import Line2D
from matplotlib.text import Text

from postx.explore.axes import axis

POINTS = 161  # of a curve
SPEC = re.compile(r",?\.\d+[fg%]")


class Live:
    """The update of a picture in which all that moves is a formula; each symbol is a slider of the same name.

    `moves` gives each Line2D or Text its place (x, y), where None leaves a coordinate as it was drawn, or a Line2D one
    expression, the curve over the symbol of over=(symbol, low, high): POINTS points, evenly along the axis. `say` is
    the readout, or a list of (condition, readout) of which the first that holds is said; {name} in it is a slider's
    text, {name:,.0f} one of the `values` (.Nf, .Ng or .N%, with a comma or without). `shows` gives a curve or a value
    its sign in LaTeX: its formula then stands under the picture.

    Raises TypeError or ValueError for anything else: an unknown symbol, an artist of another kind, a format that the
    page's script does not have, a function that JavaScript does not have.
    """

    def __init__(self, moves, *, over=None, say=(), shows=None, **values):
        self.over = over
        if over is not None and not (isinstance(over[0], sympy.Symbol) and over[1] < over[2]):
            raise ValueError(f"over must be (symbol, low, high), got {over!r}")
        self.moves = {artist: self._place(artist, place) for artist, place in moves.items()}
        self.values = {name: sympy.sympify(value) for name, value in values.items()}
        said = [(True, say)] if isinstance(say, str) else list(say)
        self.says = [(sympy.sympify(condition), text) for condition, text in said]
        self.shows = shows or {}

    def _place(self, artist, place):
        if not isinstance(artist, Line2D | Text):
            raise TypeError(f"moves: a Line2D or a Text can follow a formula, not a {type(artist).__name__}")
        if isinstance(place, tuple):
            return tuple(None if one is None else sympy.sympify(one) for one in place)
        if self.over is None or isinstance(artist, Text):
            raise ValueError("moves: one expression is a curve and needs over=(symbol, low, high); else give (x, y)")
        return self.over[0], sympy.sympify(place)

    def bind(self, sliders):
        """Make the functions, once the sliders are known. Raises ValueError for a symbol that is none of them."""
        self.sliders = sliders
        free = ([self.over[0].name] if self.over else []) + [*sliders]
        letters = [sympy.Symbol(letter) for letter in ("u" if self.over else "") + "abcdef"[: len(sliders)]]
        known = dict(zip(free, letters, strict=True))

        def ours(expression):
            names = {symbol: symbol.name for symbol in expression.free_symbols}
            if strange := sorted(set(names.values()) - set(known)):
                raise ValueError(f"{strange[0]} in {expression} is no slider; there are {', '.join(free)}")
            return expression.xreplace({symbol: known[name] for symbol, name in names.items()})

        cases = [(case, ours(condition)) for case, (condition, _) in enumerate(self.says)]
        case = sympy.Piecewise(*cases, (-1, True)) if cases else sympy.Integer(-1)
        self.places = {
            artist: tuple(None if one is None else _Function(letters, ours(one)) for one in place)
            for artist, place in self.moves.items()
        }
        self.numbers = {name: _Function(letters, ours(value)) for name, value in self.values.items()}
        self.case = _Function(letters, case)
        self.parts = [_parts(text, [*sliders], [*self.values]) for _, text in self.says]
        if self.over:
            _, low, high = self.over
            self.log = any(artist.axes.get_xscale() == "log" for artist in self.moves)
            self.grid = np.geomspace(low, high, POINTS) if self.log else np.linspace(low, high, POINTS)

    def at(self, values):
        """What each function is given: the points of a curve, and the sliders; a word is no number."""
        sliders = [float(value) if isinstance(value, int | float) else np.nan for value in values.values()]
        return ([self.grid] if self.over else []) + sliders

    def __call__(self, **values):
        given = self.at({name: values[name] for name in self.sliders})
        for artist, (x, y) in self.places.items():
            if isinstance(artist, Text):
                old = artist.get_position()
                artist.set_position([old[i] if f is None else float(f(given)) for i, f in enumerate((x, y))])
                continue
            if any(f is not None and f.curve for f in (x, y)):
                size = POINTS
            else:
                size = 1 if None not in (x, y) else len(artist.get_xdata())
            old = artist.get_data()
            artist.set_data(*(old[i] if f is None else np.full(size, f(given)) for i, f in enumerate((x, y))))
        case = int(self.case(given))
        if case < 0:
            return None
        texts = {name: slider.text(values[name]) for name, slider in self.sliders.items()}
        numbers = {name: float(number(given)) for name, number in self.numbers.items()}
        return self.says[case][1].format(**texts, **numbers)

    def latex(self):
        """The formulas shown, each as LaTeX: the very expressions that move."""
        what = {**self.values, **{artist: place[1] for artist, place in self.moves.items()}}
        return [f"{sign} = {sympy.latex(what[it])}" for sign, it in self.shows.items()]

    def told(self, stage, alt):
        """What the page's script is told: the data, and its functions as JavaScript."""
        height = stage.fig.get_size_inches()[1] * 72
        moves = []
        for artist, (x, y) in self.places.items():
            axes = [axis(artist.axes, i) for i in range(2)]
            one = {"slot": stage.artists.index(artist), "axes": axes}
            if isinstance(artist, Text):
                one["from"] = [float(n) for n in artist.get_position()]
            elif None in (x, y):
                drawn = artist.get_transform().transform(artist.get_xydata()) * 72 / stage.fig.dpi
                one["drawn"] = [[round(float(px), 2), round(float(height - py), 2)] for px, py in drawn]
            elif any(f.curve for f in (x, y)):
                one["curve"] = 1
            moves.append(one)
        sliders = [_stops(slider) for slider in self.sliders.values()]
        data = {"sliders": sliders, "moves": moves, "says": self.parts, "alt": _parts(alt, [*self.sliders], [])}
        if self.over:
            data["over"] = {"low": float(self.over[1]), "high": float(self.over[2]), "n": POINTS, "log": self.log}
        places = ",".join("[" + ",".join(_code(f) for f in place) + "]" for place in self.places.values())
        numbers = ",".join(map(_code, self.numbers.values()))
        return data, f"{{moves:[{places}],values:[{numbers}],says:{_code(self.case)}}}"


class _Function:
    """One expression as a function of the grid and the sliders, here and on the page."""

    def __init__(self, letters, expression):
        self.curve, self.text = sympy.Symbol("u") in expression.free_symbols, str(expression)
        self.python = sympy.lambdify(letters, expression, "numpy")
        try:
            code = re.sub(r"\s+", " ", sympy.jscode(expression))
        except NotImplementedError as error:
            raise ValueError(f"JavaScript has no word for {expression}") from error
        self.code = f"({','.join(map(str, letters))})=>{code}"

    def __call__(self, given):
        with np.errstate(all="ignore"):
            return self.python(*given)


def _code(function):
    return "null" if function is None else function.code


def _parts(text, sliders, values):
    """A readout as words, [slider] and [value, format]. Raises ValueError for a field that is neither."""
    parts = []
    for words, field, spec, conversion in string.Formatter().parse(text):
        parts += [words] * bool(words)
        if field is None:
            continue
        if field in values and SPEC.fullmatch(spec) and not conversion:
            parts.append([values.index(field), spec])
        elif field in sliders and not spec and not conversion:
            parts.append([sliders.index(field)])
        else:
            raise ValueError(f"{{{field}:{spec}}} in {text!r}: name a slider, or a value and its format, as {{n:,.0f}}")
    return parts


def _stops(slider):
    """A slider's numbers (a rule, or null for a word) and how they are written: a format and a unit, or all texts."""
    numbers = [value if isinstance(value, int | float) else None for value in slider.values]
    spec = slider.fmt[2:-1] if isinstance(slider.fmt, str) and slider.fmt[:2] == "{:" else slider.fmt
    if spec is None and all(type(n) is int for n in numbers):
        spec = ",.0f"
    if isinstance(spec, str) and SPEC.fullmatch(spec):
        return {"values": getattr(slider, "rule", numbers), "spec": spec, "unit": slider.unit}
    return {"values": numbers, "texts": [slider.text(value) for value in slider.values]}
