"""One look for every figure of the book: one small matplotlib style, one color per architecture family.

Exact black and exact white become the ink and the paper of the page, so that a figure reads in light and in
dark mode; words in the color of a family take its shade there. Write `INK_FIXED` or `PAPER_FIXED` where a color
must stay (a number printed on a heatmap).
"""

import math
from contextlib import contextmanager

import matplotlib
from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator
from matplotlib.transforms import ScaledTranslation

# Found by search: at least 3:1 against white and against the theme's dark page, and far apart in CIELAB for
# normal, deuteranopic and protanopic eyes (tests/test_style.py holds both).
FAMILY = {
    "attention": "#cd0a5f",
    "ssm": "#4b5ff6",
    "linear": "#2ca800",
    "conv": "#4e7118",
    "hybrid": "#b221b8",
    "liquid": "#1194f7",
    "diffusion": "#d87561",
    "quant": "#b67bc1",
    "neutral": "#7f858c",
}

# For series that are no family (rules of discretization, granularities): teal, gold, slate, brick.
SERIES = ("#0a8f8f", "#b58200", "#6c6cd9", "#a04b4b")

# What reads as a line (3:1) is too pale as a word (4.5:1): a page writes words in a shade of the color, one for light
# and one for dark mode, which _static/postx.css holds under these names.
SHADES = {color: f"--px-{name}" for name, color in FAMILY.items()}
SHADES |= dict(zip(SERIES, ("--px-teal", "--px-gold", "--px-slate", "--px-brick"), strict=True))

INK_FIXED = "#010101"
PAPER_FIXED = "#fefefe"

# 5.6 inches (403 points) wide: a tick label is 9 pixels tall on a phone of 390 pixels, 16 on a desktop page.
RC = {
    "figure.figsize": (5.6, 3.3),
    "figure.dpi": 144,
    "figure.constrained_layout.use": True,
    "savefig.dpi": "figure",
    "font.size": 10.5,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 10.5,
    "xtick.labelsize": 10,
    "ytick.labelsize": 10,
    "legend.fontsize": 10,
    "legend.frameon": False,
    "lines.linewidth": 2.0,
    "lines.markersize": 6,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#808080",
    "grid.alpha": 0.25,
    "grid.linewidth": 0.6,
    "axes.facecolor": "none",
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "axes.prop_cycle": matplotlib.cycler(color=list(FAMILY.values())),
    "image.interpolation": "none",  # a heatmap is stored as its cells, not as screen pixels
    "image.cmap": "viridis",
}


# Everything else is matplotlib's own, not the reader's: but for what belongs to the machine, not to the look.
MACHINE = ("backend", "interactive", "toolbar", "webagg.", "tk.", "timezone", "date.epoch", "docstring.", "animation.",
           "savefig.directory", "figure.max_open_warning", "figure.raise_window")  # fmt: skip
WHOLE = {k: v for k, v in matplotlib.rcParamsDefault.items() if not k.startswith(MACHINE)} | RC


def use():
    """Make the book's style the default of matplotlib in this process."""
    _set()


@contextmanager
def look():
    """The book's style while it is open, whatever the reader's own settings are."""
    with matplotlib.rc_context():
        _set()
        yield


def _set():
    known = matplotlib.rcParams
    known.update({key: value for key, value in WHOLE.items() if known[key] != value})  # to set one costs much more


def label(ax, x, y, text, color="black", *, side="right", **style):
    """Write `text` 4 points from the data point (x, y), on `side` of it; set_position((x, y)) moves it later.

    Raises ValueError when `side` is not right, left, above or below.
    """
    sides = {
        "right": (4, 0, "left", "center"),
        "left": (-4, 0, "right", "center"),
        "above": (0, 4, "center", "bottom"),
        "below": (0, -4, "center", "top"),
    }
    if side not in sides:
        raise ValueError(f"side must be one of {', '.join(sides)}, got {side!r}")
    dx, dy, ha, va = sides[side]
    shift = ScaledTranslation(dx / 72, dy / 72, ax.figure.dpi_scale_trans)
    style = {"weight": "bold", **style}
    return ax.text(x, y, text, color=color, ha=ha, va=va, transform=ax.transData + shift, **style)


def _short(number, base, units):
    for power in range(len(units) - 1, 0, -1):
        scaled = number / base**power
        if abs(scaled) >= 1:
            return f"{scaled:.3g}{units[power]}"
    return f"{number:.3g}"


def binary(number):
    """A count in powers of 1024, as token counts are spoken: 512, 4k, 1M (4k is 4,096)."""
    return _short(number, 1024, ("", "k", "M", "G", "T", "P"))


def decimal(number, digits=2):
    """A number in powers of 1000: 0.05, 512, 4.1k, 1M; from 10^15 up and below 10^-3 as a power of ten.

    `digits` says how many digits stand, at most, before a power of ten: decimal(1.6e-7, 1) is 2·10⁻⁷.
    """
    if number > 0 and (number >= 1e15 or number < 1e-3):
        lead, power = f"{number:.{digits - 1}e}".split("e")
        raised = str(int(power)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
        return f"10{raised}" if float(lead) == 1 else f"{float(lead):g}·10{raised}"
    return _short(number, 1000, ("", "k", "M", "G", "T"))


def _ticks(axis, low, high, base, every, write):
    if not 0 < low < high:
        raise ValueError(f"a log axis needs 0 < low < high, got low={low}, high={high}")
    if not isinstance(every, int) or every < 1:
        raise ValueError(f"every must be a whole number of at least 1, got {every!r}")
    first = math.ceil(math.log(low, base) - 1e-9)
    last = math.floor(math.log(high, base) + 1e-9)
    places = [float(base) ** power for power in range(first, last + 1, every)]
    setter = axis.axes.set_xscale if axis.axis_name == "x" else axis.axes.set_yscale
    setter("log", base=base)
    axis.set_major_locator(FixedLocator(places))
    axis.set_major_formatter(FixedFormatter([write(place) for place in places]))
    axis.set_minor_locator(NullLocator())
    (axis.axes.set_xlim if axis.axis_name == "x" else axis.axes.set_ylim)(low, high)


def log2_ticks(axis, low, high, every=1):
    """Make `axis` (ax.xaxis or ax.yaxis) a log axis from low to high, ticked at powers of two: 512, 4k, 1M.

    `every` = 2 ticks every second power. The ticks are fixed, as matplotlib's own log locator costs more than
    the rest of the picture. Raises ValueError unless 0 < low < high and `every` is a whole number from 1 up.
    """
    _ticks(axis, low, high, 2, every, binary)


def log10_ticks(axis, low, high, every=1):
    """Make `axis` a log axis from low to high, ticked at powers of ten: 10⁻⁶, 0.01, 1, 1k. As log2_ticks."""
    _ticks(axis, low, high, 10, every, decimal)


def from_zero(color):
    """A color map for shares from 0 to 1: a breath of neutral gray at 0, `color` at 1, the page shining through.

    Zero is quiet in light and in dark mode, where the dark end of a common map would look like much or like nothing.
    """
    gray, rgb = (matplotlib.colors.to_rgb(one) for one in (FAMILY["neutral"], color))
    stops = [(0, (*gray, 0.15)), (0.1, (*rgb, 0.28)), (1, (*rgb, 1))]  # a tenth is told from nothing in dark mode, too
    return matplotlib.colors.LinearSegmentedColormap.from_list("from zero", stops)
