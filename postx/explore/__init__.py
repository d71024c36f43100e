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
import math
import os
import string
import sys
from contextlib import nullcontext
from functools import partial
from html import escape

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import PlaceHolderLayoutEngine

from postx import style
from postx.explore import html, svg
from postx.explore.sliders import Choice, Int, Log, Slider

__all__ = ["Choice", "Int", "Log", "explore", "show"]

MOST_FRAMES = 200
SHORTEST_ALT = 20


def explore(draw, /, *, alt, caption=None, height=3.3, **sliders):
    """Draw a picture once and move it with one to three sliders.

    draw(fig) builds the picture in an empty matplotlib Figure, 5.6 inches wide and `height` inches tall, and
    returns update(**values). From then on only update is called, with one value for each slider; it changes
    artists (set_data, set_text, set_xlim, ...) and may return a sentence, the readout under the picture.
    `alt` says what the picture shows, for those who do not see it; {name} in it becomes that slider's value.

    Raises TypeError or ValueError, saying which argument and what to do, when: there are no sliders or more
    than three; their values make more than 200 frames; `alt` is missing, too short or has a field that is no
    slider; the picture is empty; update is not callable, returns something other than a sentence, or adds,
    removes or reorders artists.
    """
    return Explorer(draw, alt, caption, height, sliders)


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

    def __init__(self, draw, alt, caption, height, sliders):
        _check_sliders(sliders, alt)
        if isinstance(height, Slider) or isinstance(caption, Slider):
            name = "height" if isinstance(height, Slider) else "caption"
            raise TypeError(f"{name} is an argument of explore; call the slider something else")
        if not isinstance(height, (int, float)) or not 1 <= height <= 12:
            raise ValueError(f"height must be between 1 and 12 inches, got {height!r}")
        if not callable(draw):
            raise TypeError(f"draw must be a function of a figure, got {type(draw).__name__}")
        self.sliders = sliders
        self.values = {name: slider.start for name, slider in sliders.items()}
        self.readout, self._artists, self._widget = None, None, None
        with style.look():
            fig = Figure(figsize=(style.RC["figure.figsize"][0], height))
            FigureCanvasAgg(fig)
            self._update = draw(fig)
            if not callable(self._update):
                got = type(self._update).__name__
                raise TypeError(f"draw must return the function update(**values), got {got}")
            self._artists = list(svg.leaves(fig))
            self._fig = fig
            self.move(**self.values)
            super().__init__(fig, alt, caption)
            self._page = self._build_page() if _static() else None

    @property
    def alt(self):
        texts = {name: slider.text(self.values[name]) for name, slider in self.sliders.items()}
        return self._alt.format(**texts)

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
        self.values, self.readout = values, readout
        return readout

    def _build_page(self):
        grid = list(itertools.product(*(slider.values for slider in self.sliders.values())))
        places = list(itertools.product(*(range(len(slider.values)) for slider in self.sliders.values())))
        start = dict(self.values)
        alts, readouts = [], []

        def move_to(point):
            readouts.append(self.move(**dict(zip(self.sliders, point, strict=True))) or "")
            alts.append(self.alt)

        moves = [lambda point=point: move_to(point) for point in grid]
        at = tuple(slider.index(start[name], name) for name, slider in self.sliders.items())
        frames = svg.frames(self._stage, moves, places.index(at))
        self.move(**start)
        return html.figure(frames, alts=alts, caption=self.caption, sliders=self.sliders, readouts=readouts)

    def _plain(self):
        settings = [f"{s.name(key)}: {s.text(self.values[key])}" for key, s in self.sliders.items()]
        return "\n".join([self.alt, *settings, *([self.readout] if self.readout else [])])

    def _repr_mimebundle_(self, include=None, exclude=None):
        data, metadata = super()._repr_mimebundle_()
        if _live():
            self._widget = self._widget or self._panel()
            view = "application/vnd.jupyter.widget-view+json"
            data[view] = self._widget._repr_mimebundle_()[view]
        return data, metadata

    def _panel(self):
        import ipywidgets  # slow to import, and a built page does not need it

        wide = ipywidgets.Layout(width="100%", max_width="640px")
        picture, readout = ipywidgets.HTML(layout=wide), ipywidgets.HTML(layout=wide)

        def refresh():
            # An <img>, as an Image widget cannot carry alt text. The ratio keeps its place while it loads.
            width, height = self._fig.get_size_inches()
            shape = f"width:100%;aspect-ratio:{width:g}/{height:g}"
            data = base64.b64encode(self.png()).decode()
            source = f"data:image/png;base64,{data}"
            picture.value = f'<img alt="{escape(self.alt)}" style="{shape}" src="{source}">'
            readout.value = f'<div role="status">{escape(self.readout or "")}</div>'

        def turned(name, change):
            value = self.sliders[name].values[change["new"]]
            if change["new"] == self.sliders[name].index(self.values[name], name):
                return
            try:
                self.move(**{name: value})
                refresh()
            except Exception as error:  # the front end hides what a callback raises: say it here as well
                readout.value = f'<div role="alert">update failed: {escape(str(error))}</div>'
                raise

        handles = []
        for name, slider in self.sliders.items():
            handle = ipywidgets.SelectionSlider(
                options=[(slider.text(value), place) for place, value in enumerate(slider.values)],
                value=slider.index(self.values[name], name),
                description=slider.name(name),
                continuous_update=True,  # a new value is sent only when the kernel is done with the last
                style={"description_width": "initial"},
                layout=wide,
            )
            handle.observe(partial(turned, name), names="value")
            handles.append(handle)
        refresh()
        return ipywidgets.VBox([picture, *handles, readout])


def _check_sliders(sliders, alt):
    if not 1 <= len(sliders) <= 3:
        raise ValueError(
            f"explore takes one to three sliders, got {len(sliders)}: add e.g. n=Int(1, 8), "
            "or use show(fig) for a picture without any"
        )
    for name, slider in sliders.items():
        if name in ("draw", "fig"):
            raise ValueError(f"a slider cannot be called {name!r}: that is an argument of explore; rename it")
        if not isinstance(slider, Slider):
            raise TypeError(f"{name} must be Int(...), Log(...) or Choice(...), got {type(slider).__name__}")
    count = math.prod(len(slider.values) for slider in sliders.values())
    if count > MOST_FRAMES:
        shares = " x ".join(f"{name} {len(slider.values)}" for name, slider in sliders.items())
        widest = max(sliders, key=lambda name: len(sliders[name].values))
        raise ValueError(
            f"{shares} = {count} frames, and a page holds at most {MOST_FRAMES}: make a grid coarser "
            f"(a larger step, a smaller per_octave, fewer options), first that of {widest}"
        )
    if isinstance(alt, str):
        for _, field, spec, conversion in string.Formatter().parse(alt):
            if field is not None and (field not in sliders or spec or conversion):
                raise ValueError(
                    f"alt has the field {{{field}}}, which is no slider; a field is a bare name of "
                    f"{', '.join(sliders)} (write {{{{ and }}}} for braces)"
                )
