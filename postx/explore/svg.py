"""Many frames of one matplotlib figure as one small SVG: each part is stored once per look.

Every artist draws inside its own numbered group, a slot. A frame is the list of what its slots hold; two frames that
agree in a slot share it. The x and y axes cost the most time, so they are drawn again only when they changed.
"""

import hashlib
import io
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from xml.etree import ElementTree

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import RendererAgg
from matplotlib.collections import TriMesh
from matplotlib.figure import SubFigure
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from postx.explore import axes, compact, words

SLOT = "px-slot-"
RC = {key: x for key, x in matplotlib.rcParamsDefault.items() if key.startswith(("savefig.", "svg."))}  # not the user's
RC |= {"svg.fonttype": "none", "svg.hashsalt": "postx", "image.composite_image": False}


def leaves(parent):
    """Every artist that draws itself: the children of the figure, of its subfigures and of their axes."""
    for child in parent.get_children():
        if isinstance(child, (Axes, SubFigure)):
            yield from leaves(child)
        else:
            yield child


def _look(axis):
    """What the drawing of an Axis depends on: its place, limits and scales, and what was touched since."""
    ax = axis.axes
    touched = frozenset(id(artist) for artist in axis.findobj() if artist.stale)
    return ax.get_position().bounds, ax.get_xlim(), ax.get_ylim(), ax.get_xscale(), ax.get_yscale(), touched


class Stage:
    """A figure whose artists draw in numbered slots, and whose unchanged x and y axes are not drawn twice."""

    def __init__(self, fig):
        self.fig = fig
        self.artists = list(leaves(fig))
        for artist in self.artists:
            if isinstance(artist, TriMesh) or getattr(artist, "_shading", "") == "gouraud":
                artist.set_rasterized(True)  # matplotlib's SVG of it needs a filter that browsers do not have
        self.axes = {slot: artist for slot, artist in enumerate(self.artists) if isinstance(artist, Axis)}
        self.looks = {"png": {}, "svg": {}}  # slot -> how an Axis looked when it was last drawn
        self.pixels = {}  # slot -> (left, bottom, image) of an Axis in the bitmap

    @contextmanager
    def _slots(self, kind):
        """Give every artist its slot for one drawing; yields the slots of the axes that are skipped."""
        known = self.looks[kind]
        same = {slot for slot, axis in self.axes.items() if known.get(slot) == _look(axis)}
        # An attribute of the instance shadows the method that matplotlib calls.
        for slot, artist in enumerate(self.artists):
            artist.draw = partial(self._draw, slot, artist.draw, same)
        try:
            yield same
        finally:
            for artist in self.artists:
                del artist.draw
        for slot in self.axes.keys() - same:
            for looks in self.looks.values():  # a drawing clears the marks of what was touched
                looks.pop(slot, None)
            known[slot] = _look(self.axes[slot])

    def _draw(self, slot, draw, same, renderer):
        renderer.open_group("slot", SLOT + str(slot))
        if isinstance(renderer, RendererAgg) and slot in self.axes:
            if slot not in same:
                self._keep_pixels(slot, draw, renderer)
            left, bottom, image = self.pixels[slot]
            renderer.draw_image(renderer.new_gc(), left, bottom, image)
        elif slot not in same:
            draw(renderer)
        renderer.close_group("slot")

    def _keep_pixels(self, slot, draw, renderer):
        layer = RendererAgg(renderer.width, renderer.height, renderer.dpi)
        draw(layer)
        image = np.asarray(layer.buffer_rgba())
        rows, columns = np.nonzero(image[..., 3])
        if rows.size == 0:
            rows = columns = np.zeros(1, dtype=int)
        top, bottom, left, right = rows.min(), rows.max() + 1, columns.min(), columns.max() + 1
        # draw_image wants the rows from the bottom up, and the lower left corner.
        self.pixels[slot] = left, image.shape[0] - bottom, image[top:bottom, left:right][::-1].copy()

    def png(self, alt):
        """The figure as it is now, as the bytes of a PNG that carries `alt` as its description."""
        target = io.BytesIO()
        with matplotlib.rc_context(RC), self._slots("png"):
            self.fig.savefig(target, format="png", dpi="figure", facecolor="white", pil_kwargs={"compress_level": 3},
                             metadata={"Software": None, "Description": alt})  # fmt: skip
        return target.getvalue()

    def small_png(self, alt):
        """The same with 256 colors and a third of the bytes, for a file that is kept; slower to write."""
        image = Image.open(io.BytesIO(self.png(alt)))
        about = PngInfo()
        about.add_itxt("Description", alt)
        target = io.BytesIO()
        few = image.convert("RGB").quantize(256, dither=Image.Dither.NONE)
        few.save(target, "png", optimize=True, pnginfo=about)
        return target.getvalue()

    def svg(self):
        """The figure as it is now: its elements, and the slots left empty as they repeat the last one."""
        target = io.BytesIO()
        paper = self.fig.patch
        shown = paper.get_visible()
        paper.set_visible(False)
        with matplotlib.rc_context(RC), self._slots("svg") as same:
            self.fig.savefig(target, format="svg", metadata={"Date": None})
        paper.set_visible(shown)
        return ElementTree.fromstring(target.getvalue()), {SLOT + str(slot) for slot in same}


@dataclass(frozen=True)
class Frames:
    """The picture with its first frame in it, per changing slot number, looks, look of each frame, and fixed axes."""

    svg: str
    changing: tuple[tuple[int, list[str], list[int]], ...]
    axes: list | None


def frames(stage, moves, start, marked=()):
    """Draw one frame after each of `moves` (functions without arguments); keep what differs, name `marked` slots too.

    Raises ValueError when the drawing order of the artists changes from frame to frame.
    """
    looks, picks, last, seen = {}, {}, {}, []
    order, first, definitions = None, None, {}
    for move in moves:
        move()
        seen.append(axes.told(stage.fig))
        tree, same = stage.svg()
        compact.dots(tree)
        names = _definitions(tree, definitions)
        groups = {g.get("id"): g for g in tree.iter() if g.get("id", "").startswith(SLOT)}
        if order is None:
            order, first, first_names = list(groups), tree, names
        elif order != list(groups):
            raise ValueError("update must not change the drawing order (zorder, or the axes an artist is in)")
        for name, group in groups.items():
            if name not in same:
                last[name] = "".join(compact.write(child, names) for child in group)
            variants = looks.setdefault(name, {})
            picks.setdefault(name, []).append(variants.setdefault(last[name], len(variants)))
    inside = {name: list(looks[name])[picks[name][start]] for name in order}
    changing = []
    for run in _runs(first, {name for name in order if len(looks[name]) > 1 or _number(name) in marked}, marked):
        for names, run_looks, run_picks in _joined(run, {name: (list(looks[name]), picks[name]) for name in run}):
            number = _number(names[0])
            inside |= dict.fromkeys(names, "")
            inside[names[0]] = f'<g data-slot="{number}">{run_looks[run_picks[start]]}</g>'
            if len(run_looks) > 1:
                changing.append((number, run_looks, run_picks))
    body = "".join(compact.write(child, first_names, inside) for child in first)
    drawn = "".join([body, *(look for _, looks, _ in changing for look in looks)])
    definitions = {name: content for name, content in definitions.items() if name in drawn}
    least = words.least(float(first.get("viewBox").split()[2]))
    prefix = "px" + hashlib.sha256((body + "".join(definitions.values())).encode()).hexdigest()[:8]
    changing = tuple(
        (number, [words.readable(_named(look, prefix), least) for look in looks], picks)
        for number, looks, picks in changing
    )
    shared = f"<defs>{''.join(definitions.values())}</defs>" if definitions else ""
    head = f'<svg viewBox="{first.get("viewBox")}" style="--px-small:{least}px" xmlns="http://www.w3.org/2000/svg" '
    head += 'role="img" aria-label="\0alt\0" fill="currentColor" stroke-linejoin="round" stroke-linecap="butt">'
    svg = words.readable(_named(f"{head}{shared}{body}</svg>", prefix), least)
    return Frames(svg, changing, axes.fixed(seen))


def _runs(tree, wanted, marked):
    """The wanted slots in order, in lists of those with nothing between them; a marked slot is a list of its own."""
    runs = []
    for parent in tree.iter():
        near = False
        for child in parent:
            name = child.get("id", "")
            if name in wanted:
                alone = _number(name) in marked
                if near and not alone:
                    runs[-1].append(name)
                else:
                    runs.append([name])
                near = not alone
            else:
                near = False
    return runs


def _joined(run, known):
    """Neighbors that change together as one slot, which a page swaps at once: as long as that costs no bytes.

    `known` has the looks and picks of each name; yields the names, looks and picks of each slot that is left.
    """
    names, (looks, picks) = run[:1], known[run[0]]
    for name in run[1:]:
        more, choices = known[name]
        pairs = {}
        both = [pairs.setdefault(pair, len(pairs)) for pair in zip(picks, choices, strict=True)]
        new = [looks[i] + more[j] for i, j in pairs]
        if sum(map(len, new)) <= sum(map(len, looks)) + sum(map(len, more)) + 2 * len(picks):  # a list of picks less
            names, looks, picks = [*names, name], new, both
        else:
            yield names, looks, picks
            names, looks, picks = [name], more, choices
    yield names, looks, picks


def _number(name):
    return int(name.removeprefix(SLOT))


def _named(text, prefix):
    # Two figures on one page must not share a name; NUL cannot occur in XML, so it marks ours.
    return text.replace("\0#", prefix + "-")


def _definitions(tree, kept):
    """Move a frame's definitions (clips, markers, hatches) into `kept`; return our name for each of theirs.

    Ours is a hash of the content: what a slot of one frame refers to is then there in every frame.
    """
    names = {}
    for parent in list(tree.iter()):
        for defs in [child for child in parent if compact.tag_of(child) == "defs"]:
            parent.remove(defs)
            for item in defs:
                old = item.attrib.pop("id", None)
                if old is None:  # matplotlib's style element, which would restyle the whole page
                    continue
                content = compact.write(item, names)
                names[old] = "\0#" + hashlib.sha256(content.encode()).hexdigest()[:6]
                tag = compact.tag_of(item)
                kept[names[old]] = content.replace(f"<{tag}", f'<{tag} id="{names[old]}"', 1)
    return names
