"""Where numbers lie in a picture: what a page needs to know to draw on an axis."""

import numpy as np


def axis(ax, i):
    """From data to points of the picture, y down: [1 on a log axis, a, b], for a + b times number or log."""
    scale = (ax.get_xscale, ax.get_yscale)[i]()
    if scale not in ("linear", "log"):
        raise ValueError(f"a Live picture has linear and log axes, got {scale}")
    ends = np.array([ax.get_xlim(), ax.get_ylim()])
    pixels = ax.transData.transform(ends.T)[:, i] * 72 / ax.figure.dpi
    if i:
        pixels = 72 * ax.figure.get_size_inches()[1] - pixels
    t = np.log10(ends[i]) if scale == "log" else ends[i]
    slope = float((pixels[1] - pixels[0]) / (t[1] - t[0]))
    return [int(scale == "log"), round(float(pixels[0]) - slope * float(t[0]), 5), round(slope, 5)]


def box(ax):
    """Left, top, width and height of the axes, in points of the picture."""
    scale, height = 72 / ax.figure.dpi, 72 * ax.figure.get_size_inches()[1]
    extent = ax.get_window_extent()
    return [float(n) for n in (extent.x0 * scale, height - extent.y1 * scale, extent.width * scale,
                               extent.height * scale)]  # fmt: skip


def told(fig):
    """The x and the y axis of a figure's first axes, and their box; None for what has no numbers to point at."""
    ax = fig.axes[0] if fig.axes else None
    if ax is None or ax.name != "rectilinear" or not ax.axison:
        return None, None, None
    scales = ax.get_xscale(), ax.get_yscale()
    pair = [axis(ax, i) if scale in ("linear", "log") else None for i, scale in enumerate(scales)]
    return *pair, [round(n, 1) for n in box(ax)]


def fixed(seen):
    """What is the same in all frames, as `told` told them; None in the place of what moves, and if nothing is left."""
    first = [one if all(frame[i] == one for frame in seen) else None for i, one in enumerate(seen[0])]
    return first if first[2] and any(first[:2]) else None
