"""Sliders over one picture: live with a kernel, pre-drawn frames on a built page, a PNG everywhere else.

    def draw(fig):
        ax = fig.subplots()
        (line,) = ax.plot(x, x**2)
        def update(power):
            line.set_ydata(x**power)
            return f"At x = 2 the curve is at {2**power}."
        return update

    explore(draw, alt="The curve x to the power {power}, steeper as it grows.", power=Int(1, 4, start=2))

The environment variable POSTX_STATIC=1 (set while the book is built) chooses the built page; POSTX_STATIC=both
gives the live sliders too, for a test that executes a page once and judges both.
"""

import base64
import itertools
import os
import sys
from contextlib import nullcontext

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import PlaceHolderLayoutEngine

from postx import style
from postx.explore import axes, html, svg
from postx.explore.sliders import Choice, Int, Log, Real, Slider, check, check_frames, singular

__all__ = ["Choice", "Int", "Log", "Real", "explore", "show"]

MOST_FRAMES = 200
SHORTEST_ALT = 20


def explore(draw, /, *, alt, caption=None, height=3.3, ghost=False, **sliders):
    """Draw a picture once and move it with one to six sliders.

    draw(fig) builds the picture in an empty matplotlib Figure, 5.6 inches wide and `height` inches tall, and
    returns update(**values). From then on only update is called, with one value for each slider; it changes
    artists (set_data, set_text, set_xlim, ...) and may return a sentence, the readout under the picture.
    `alt` says what the picture shows, for those who do not see it; {name} in it becomes that slider's value.
    With `ghost` the page leaves the picture that a move began with behind the new one, pale and without its words.

    Where all that moves is a formula of the sliders, draw returns Live(...) of postx.explore.live in place of update:
    the page then computes it, at as many stops as one likes.

    Raises TypeError or ValueError, saying which argument and what to do, when: there are no sliders or more
    than six; their values make more than 200 frames; `alt` is missing, too short or has a field that is no
    slider; the picture is empty; update is not callable, returns something other than a sentence, or adds,
    removes or reorders artists; a slider's axis is dragged and its stops are not on it.
    """
    return Explorer(draw, alt, caption, height, sliders, ghost)


def show(fig, *, alt, caption=None, pages=None):
    """Show a finished matplotlib figure with its alt text, and close it so that it is not shown twice.

    Artists with an address (set_url) become links on a built page; `pages` then has the name of each address.
    Raises TypeError when `fig` is no Figure, ValueError when it is empty or `alt` is too short.
    """
    if not isinstance(fig, Figure):
        raise TypeError(f"fig must be a matplotlib Figure, got {type(fig).__name__}")
    picture = Picture(fig, alt, caption, pages)
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close(fig)
    return picture


def _static():
    return os.environ.get("POSTX_STATIC") in ("1", "both")


def _live():
    return os.environ.get("POSTX_STATIC") != "1"


class Picture:
    """A figure without sliders, ready to be displayed."""

    def __init__(self, fig, alt, caption, pages=None):
        if isinstance(alt, Slider):
            raise TypeError("alt is the alt text; call the slider something else")
        if not isinstance(alt, str):
            raise TypeError(f"alt must be a sentence on what the picture shows, got {type(alt).__name__}")
        if len(alt.strip()) < SHORTEST_ALT:
            raise ValueError(
                f"alt is too short ({alt!r}): say what the picture shows in {SHORTEST_ALT} characters"
            )
        if caption is not None and not isinstance(caption, str):
            raise TypeError(f"caption must be text or None, got {type(caption).__name__}")
        if not any(ax.has_data() or ax.texts or ax.artists or ax.tables for ax in fig.axes) and not fig.texts:
            raise ValueError("the figure is empty: draw into it, e.g. ax = fig.subplots(); ax.plot(...)")
        self._alt, self.caption, self._pages = alt, caption, pages
        # The layout is made once, here: margins that followed the text would make the frames jump.
        fig.draw_without_rendering()
        if fig.get_layout_engine() is None:  # savefig would put that of the style in the place of none
            fig.set_layout_engine(PlaceHolderLayoutEngine(adjust_compatible=True, colorbar_gridspec=True))
        else:
            fig.set_layout_engine("none")
        self._stage = svg.Stage(fig)
        self._page = self._build_page() if _static() and type(self) is Picture else None

    def _look(self):
        """The settings of matplotlib to draw with: a finished figure was made in its owner's."""
        return nullcontext()

    @property
    def alt(self):
        """What the picture shows now."""
        return self._alt

    def png(self):
        """The picture as it is now: the bytes of a PNG whose description is the alt text."""
        with self._look():
            return self._stage.png(self.alt)

    def _build_page(self):
        frames = svg.frames(self._stage, [lambda: None], 0)
        return html.figure(frames, alts=[self.alt], caption=self.caption, pages=self._pages)

    def _plain(self):
        return self.alt

    def _repr_mimebundle_(self, include=None, exclude=None):
        with self._look():
            png = base64.b64encode(self._stage.small_png(self.alt)).decode()
        data = {"text/plain": self._plain(), "image/png": png}
        if self._page is not None:
            data["text/html"] = self._page
        return data, {"image/png": {"alt": self.alt}}


class Explorer(Picture):
    """A figure with sliders. `values` are the present ones; `move` sets them as the sliders do."""

    def __init__(self, draw, alt, caption, height, sliders, ghost):
        check(sliders, alt)
        for name, own in {"height": height, "caption": caption, "ghost": ghost}.items():
            if isinstance(own, Slider):
                raise TypeError(f"{name} is an argument of explore; call the slider something else")
        if not isinstance(height, (int, float)) or not 1 <= height <= 12:
            raise ValueError(f"height must be between 1 and 12 inches, got {height!r}")
        if not callable(draw):
            raise TypeError(f"draw must be a function of a figure, got {type(draw).__name__}")
        self.sliders, self._ghost = sliders, ghost
        self.values = {name: slider.start for name, slider in sliders.items()}
        self.readout, self._artists, self._widget = None, None, None
        with style.look():
            fig = Figure(figsize=(style.RC["figure.figsize"][0], height))
            FigureCanvasAgg(fig)
            self._update = draw(fig)
            if not callable(self._update):
                got = type(self._update).__name__
                raise TypeError(f"draw must return the function update(**values), got {got}")
            if hasattr(self._update, "bind"):  # a Live of live.py, which is not imported here: SymPy is slow to load
                self._update.bind(sliders)
            else:
                check_frames(sliders, MOST_FRAMES)
            self._artists = list(svg.leaves(fig))
            self._fig = fig
            self.move(**self.values)
            super().__init__(fig, alt, caption)
            self._page = self._build_page() if _static() else None

    @property
    def alt(self):
        texts = {name: slider.text(self.values[name]) for name, slider in self.sliders.items()}
        return singular(self._alt.format(**texts), self.sliders, self.values)

    @property
    def size(self):
        """Width and height in inches."""
        return self._fig.get_size_inches()

    def _look(self):
        return style.look()

    def move(self, **values):
        """Set some or all sliders and return the readout; ValueError for a value off the grid."""
        for name, value in values.items():
            if name not in self.sliders:
                raise ValueError(f"there is no slider {name!r}; there are {', '.join(self.sliders)}")
            self.sliders[name].index(value, name)
        values = {**self.values, **values}
        try:
            with style.look():
                readout = self._update(**values)
        except Exception as error:
            error.add_note(f"in update({', '.join(f'{name}={value!r}' for name, value in values.items())})")
            raise
        now = list(svg.leaves(self._fig))
        if len(now) != len(self._artists) or any(a is not b for a, b in zip(now, self._artists, strict=True)):
            raise ValueError(
                f"update must change artists, not add or remove them: draw made {len(self._artists)}, after "
                f"update there are {len(now)}; make all in draw, then use set_data, set_text, set_visible"
            )
        if readout is not None and not isinstance(readout, str):
            raise TypeError(f"update must return a sentence or None, got {type(readout).__name__}")
        self.values, self.readout = values, readout and singular(readout, self.sliders, values)
        return self.readout

    def _build_page(self):
        start, drag = dict(self.values), self._drag()
        if hasattr(self._update, "bind"):
            marked = [slot for slot, artist in enumerate(self._stage.artists) if artist in self._update.moves]
            frames = svg.frames(self._stage, [lambda: self.move(**start)], 0, marked)
            told = self._update.told(self._stage, self._alt)
            if drag and list(self.sliders.values())[drag["slider"]].axis == "x":
                drag = {**drag, "x": [], "axis": axes.axis(self._fig.axes[0], 0)}  # the page knows the numbers
            return html.live(frames, told, self.alt, self.readout, self.caption, self.sliders, drag, self._ghost,
                             self._update.latex())  # fmt: skip
        grid = list(itertools.product(*(slider.values for slider in self.sliders.values())))
        places = list(itertools.product(*(range(len(slider.values)) for slider in self.sliders.values())))
        alts, readouts = [], []

        def move_to(point):
            readouts.append(self.move(**dict(zip(self.sliders, point, strict=True))) or "")
            alts.append(self.alt)
            if self._drag() != drag:
                raise ValueError("axis: the x axis that a slider is dragged along must not change")

        moves = [lambda point=point: move_to(point) for point in grid]
        at = tuple(slider.index(start[name], name) for name, slider in self.sliders.items())
        frames = svg.frames(self._stage, moves, places.index(at))
        self.move(**start)
        return html.figure(frames, alts=alts, caption=self.caption, sliders=self.sliders, readouts=readouts, drag=drag,
                           ghost=self._ghost)  # fmt: skip

    def _drag(self):
        """Which slider is dragged in the picture: where its stops lie, and the box of the axes, in points."""
        for number, slider in enumerate(self.sliders.values()):
            if slider.axis is not None:
                ax, scale = self._fig.axes[0], 72 / self._fig.dpi
                at = slider.values if slider.axis == "x" else [slider.axis(value) for value in slider.values]
                x = ax.transData.transform([(value, ax.get_ylim()[0]) for value in at])[:, 0] * scale
                left, _, width, _ = box = [round(n, 1) for n in axes.box(ax)]
                if not (left - 1 <= x.min() and x.max() <= left + width + 1):
                    raise ValueError(f"axis: {slider.text(slider.values[x.argmax()])} or another stop is not on it")
                return {"slider": number, "x": [round(float(n), 1) for n in x], "box": box}
        return None

    def _plain(self):
        settings = [f"{s.name(key)}: {s.text(self.values[key])}" for key, s in self.sliders.items()]
        return "\n".join([self.alt, *settings, *([self.readout] if self.readout else [])])

    def _repr_mimebundle_(self, include=None, exclude=None):
        data, metadata = super()._repr_mimebundle_()
        if _live():
            if self._widget is None:
                from postx.explore import panel  # slow to import, and a built page does not need it

                self._widget = panel.make(self)
            view = "application/vnd.jupyter.widget-view+json"
            data[view] = self._widget._repr_mimebundle_()[view]
        return data, metadata
