"""One byte's way through a model of S, A and experts: a drawing through which a slider moves the byte (stops.py).

    walk(stops(net, byte, S), read, byte, moved, came)
"""

import numpy as np
import torch
from matplotlib.colors import LinearSegmentedColormap, to_rgb
from matplotlib.patches import Polygon, Rectangle

from postx.explore import Int, explore
from postx.style import FAMILY, PAPER_FIXED, SERIES, from_zero

COLOR = {"SSD": FAMILY["ssm"], "attention": FAMILY["attention"], "experts": SERIES[1]}
TITLE = {"SSD": "one head's table", "attention": "heads look most at", "experts": "the router's shares",
         "embedding": "a row of a table", "logits": "the same table"}  # fmt: skip
ROW, LIKELY, LEVELS = 42, 5, 25  # characters in a line of text, next bytes that are shown, shades of a number
# The way, the text, the part, the vectors, the next byte: left, bottom, width and height as shares of the figure.
PLACES = ([0, 0.29, 1, 0.58], [0.01, 0.88, 0.98, 0.115], [0.01, 0.005, 0.37, 0.265], [0.42, 0.005, 0.28, 0.265],
          [0.745, 0.005, 0.25, 0.265])  # fmt: skip
SIGNED = LinearSegmentedColormap.from_list("signed", [
    (0, (*to_rgb(SERIES[3]), 1)), (0.5, (*to_rgb(SERIES[3]), 0)), (0.5, (*to_rgb(SERIES[0]), 0)),
    (1, (*to_rgb(SERIES[0]), 1))], N=LEVELS)  # fmt: skip


def sign(byte):
    """A byte as one character: ␣ for a space, ↵ for a new line."""
    return {10: "↵", 32: "␣"}.get(byte, chr(byte) if 32 < byte < 127 else "·")


def walk(found, read, byte, moved, came):
    """The drawing: `read` is the text before `byte`, `came` the byte after it.

    `moved` has for each stop how many bytes it moves: (of weights, of what is kept of the text).
    """
    names, wide = [stop.name for stop in found], [float(stop.x_D.norm()) for stop in found]

    def draw(fig):
        fig.set_layout_engine("none")  # every part has its place
        way, text, part, vectors, early = (fig.add_axes(place) for place in PLACES)
        updates = [_way(way, found, wide, moved, byte), _text(text, found, read, byte),
                   _part(part, found, read, byte), _vectors(vectors, found, wide),
                   _early(early, found, came)]  # fmt: skip

        def update(stop):
            for each in updates:
                each(stop)
            return told(stop)

        return update

    def told(n):
        stop, (weights, kept) = found[n], moved[n]
        held = {"SSD": "of state, read and written", "attention": "of keys and values"}.get(stop.kind)
        also = f" and {kept / 1000:,.0f} kB {held}" if held else ""
        best = int(stop.early_Y.argmax())
        how = "The next byte" if stop.kind == "logits" else "Read early, the next byte"
        return (f"{stop.name}: {does(stop, read, byte)}. It reads {weights / 1000:,.1f} kB of weights{also}; "
                f"{_so_far(moved, n)} so far. {how} is {sign(best)} with {stop.early_Y[best]:.0%}.")  # fmt: skip

    last = len(found) - 1
    return explore(
        draw, height=5.2, stop=Int(0, last, fmt=lambda n: names[n], play=True, axis="x"),
        alt="The machine from left to right, the byte at {stop}: a band, the stream, which widens; above it the mixer "
            "of each block, S or A; below it eight experts, of which two fill as the byte passes; bars of the bytes "
            "that each part fetches; at the bottom what this part does, what it adds, the stream after it as colored "
            "cells, and the next byte read early.",
        caption="The gray band is the stream, as wide as its vector is long. Above it S and A, the mixers; below it "
                "the experts, filled where they answer. Bars: bytes that are fetched, full of weights, pale of what "
                "is kept of the text. At the bottom, for this stop: what the part does; what it adds, and the stream "
                "after it, each number a cell, teal above zero and red below; the next bytes, read early by the last "
                "norm and the head, as if the machine ended there.")  # fmt: skip


def does(stop, read, byte):
    """What a part does at this byte, in words."""
    if stop.kind == "SSD":
        return f"of the first head's table {stop.shown[0]:.1%} stays, and the product of a key and a value is added"
    if stop.kind == "attention":
        share_HM = stop.shown[0][:, :-1]  # without the byte's look at itself
        head, at = divmod(int(share_HM.argmax()), share_HM.shape[1])
        text = "".join(map(sign, read[max(0, at - 5) : at + 1]))
        back = len(read) - at
        return (f"head {head + 1} puts {share_HM[head, at]:.0%} of its look on the end of {text}, "
                f"{back} byte{'s' if back > 1 else ''} back")  # fmt: skip
    if stop.kind == "experts":
        ranked = sorted(((w, e) for e, w in enumerate(stop.shown[1].tolist(), 1) if w), reverse=True)
        return "experts " + " and ".join(f"{e} ({w:.0%})" for w, e in ranked) + f" of {len(stop.shown[1])} answer"
    if stop.kind == "embedding":
        return f"row {byte} of a table, the one of {sign(byte)}, becomes the stream"
    return f"the stream is compared with all {len(stop.early_Y)} rows of that table"


def _write(ax, x, y, text, **more):
    return ax.text(x, y, text, **{"size": 10, "ha": "left", "va": "center"} | more)


def _way(ax, found, wide, moved, byte):
    """The machine itself, which the byte passes from left to right, and what each stop moves."""
    half = [0.1 + 0.5 * w / max(wide) for w in wide]  # of the stream, as wide as its vector is long
    tall, floor = 1.4 / max(map(sum, moved)), -5.25
    across = lambda n: [*zip(range(n + 1), half, strict=False), *((m, -half[m]) for m in range(n, -1, -1))]  # noqa: E731
    ax.add_patch(Polygon(across(len(found) - 1), color=FAMILY["neutral"], alpha=0.2, lw=0))
    river = ax.add_patch(Polygon(across(0), color=FAMILY["neutral"], alpha=0.7, lw=0))
    parts, answers, bars = [], [], []
    for n, (stop, fetched) in enumerate(zip(found, moved, strict=True)):
        color = COLOR.get(stop.kind, FAMILY["neutral"])
        if stop.kind == "experts":
            for e, weight in enumerate(stop.shown[1].tolist()):
                place = (n - 0.42 + 0.44 * (e % 2), -1.3 - 0.45 * (e // 2)), 0.4, 0.36
                ax.add_patch(Rectangle(*place, fc="none", ec=color, lw=0.8))
                if weight:
                    answers.append((n, ax.add_patch(Rectangle(*place, fc=color, lw=0)), 0.35 + 0.65 * weight))
            box = Rectangle((n - 0.5, -2.8), 0.98, 2.0, fc="none", lw=1.6)
        elif stop.kind in COLOR:
            ax.plot([n, n], [0.5 * half[n], 0.9], color=color, lw=2, zorder=1)
            ax.add_patch(Rectangle((n - 0.48, -2.95), 1.92, 5.55, fc=FAMILY["neutral"], alpha=0.1, lw=0, zorder=0))
            _write(ax, n + 0.5, 2.25, stop.name.split()[0], ha="center", color=FAMILY["neutral"])
            _write(ax, n, 1.4, stop.kind[0].upper(), ha="center", size=12, weight="bold", color=PAPER_FIXED)
            box = Rectangle((n - 0.46, 0.9), 0.92, 1.0, fc=color, lw=1.6)
        else:
            word = "head" if n else "embedding"
            _write(ax, n, -0.88, word, ha="center", va="top", rotation=90, size=9.5, color=FAMILY["neutral"])
            box = Rectangle((n - 0.45, -0.8), 0.9, 1.6, fc="none", lw=1.6)
        parts.append(ax.add_patch(box))
        place = floor
        for part in fetched:
            bar = Rectangle((n - 0.38, place), 0.76, part * tall, fc=color, lw=0)
            bars.append((n, ax.add_patch(bar), len(bars) % 2))
            place += part * tall
    (dot,) = ax.plot([0], [0], "o", ms=16, mfc="white", mec="black", mew=1.4)
    letter = _write(ax, 0, 0, sign(byte), size=11, weight="bold", ha="center")
    here = _write(ax, -0.85, -3.5, "")
    ax.set(xlim=(-0.95, len(found) - 0.05), ylim=(-6.1, 2.65))
    ax.axis("off")

    def update(n):
        river.set_xy(across(n))
        dot.set_xdata([n])
        letter.set_x(n)
        for m, part in enumerate(parts):
            part.set_alpha(None if m <= n or found[m].kind not in ("SSD", "attention") else 0.4)
            part.set_edgecolor("black" if m == n else "none")
        for m, answer, alpha in answers:
            answer.set_alpha(alpha if m <= n else 0)
        for m, bar, kept in bars:
            bar.set_alpha((0.45 if kept else 1) if m <= n else 0.2)
        here.set_text(f"fetched here {sum(moved[n]) / 1000:.3g} kB, so far {_so_far(moved, n)}")

    return update


def _text(ax, found, read, byte):
    """The end of the text, how much attention looks at it, and the next byte as far as one can say."""
    cells = [*read, byte][-2 * ROW :]
    for n, one in enumerate(cells, 2 * ROW - len(cells)):
        _write(ax, n % ROW + 0.5, 1 - n // ROW, sign(one), size=11, ha="center", family="monospace")
    marked = np.full((2, ROW), np.nan)
    image = ax.imshow(marked, extent=(0, ROW, -0.5, 1.5), cmap=from_zero(FAMILY["attention"]), vmin=0, vmax=1,
                      aspect="auto")  # fmt: skip
    ax.add_patch(Rectangle((ROW - 1, -0.45), 1, 0.9, fc="none", ec="black", lw=1.2))
    _write(ax, ROW + 0.25, 0, "→", size=11)
    guess = _write(ax, ROW + 2, 0, "", size=13, ha="center", weight="bold", family="monospace")
    ax.set(xlim=(0, ROW + 3), ylim=(-0.5, 1.5))
    ax.axis("off")

    def update(n):
        stop = found[n]
        best = np.full(2 * ROW, np.nan)
        if stop.kind == "attention":
            best[-len(cells) :] = stop.shown[0].amax(0)[-len(cells) :]
            best[best < 0.02] = np.nan
        image.set_data(best.reshape(2, ROW))
        guess.set_text(sign(int(stop.early_Y.argmax())))
        guess.set_alpha(0.4 + 0.6 * float(stop.early_Y.max()))

    return update


def _part(ax, found, read, byte):
    """A close look at the part: its table, its looks, or its router."""
    title = _write(ax, 0, 0.93, "", weight="bold")
    # the table as it fades, what is written, and the key and the value whose product that is
    tables = [ax.imshow(np.zeros((2, 2)), extent=place, cmap=SIGNED, vmin=-1, vmax=1, aspect="auto")
              for place in ((0, 0.42, 0.14, 0.78), (0.58, 1, 0.14, 0.78), (0.53, 0.56, 0.14, 0.78),
                            (0.58, 1, 0.81, 0.86))]  # fmt: skip
    under = [_write(ax, x, 0.05, "", size=9.5, ha=ha) for x, ha in ((0, "left"), (0.77, "center"))]
    plus = _write(ax, 0.475, 0.46, "", size=13, ha="center")
    most = max(len(stop.shown[-1]) for stop in found if stop.kind in ("attention", "experts"))
    bars = [ax.add_patch(Rectangle((0.12, 0), 0, 0, lw=0)) for _ in range(most)]
    names, words = ([_write(ax, x, 0, "", size=9.5) for _ in range(most)] for x in (0, 0.2))
    ax.set(xlim=(0, 1), ylim=(0, 1))
    ax.axis("off")

    def rows(lines, color="black"):
        """Lines of (name, share, whether it counts, what to say of it)."""
        lines = [*lines]
        tall = min(0.84 / max(1, len(lines)), 0.2)
        for i, (bar, name, word) in enumerate(zip(bars, names, words, strict=True)):
            first, share, counts, said = lines[i] if i < len(lines) else ("", 0, True, "")
            y = 0.85 - (i + 0.5) * tall
            bar.set(bounds=(0.12, y - 0.4 * tall, 0.5 * share, 0.8 * tall), color=color, alpha=1 if counts else 0.35)
            name.set(text=first, y=y)
            word.set(text=said, position=(0.15 + 0.5 * share if first else 0, y))

    def update(n):
        stop = found[n]
        title.set_text(TITLE[stop.kind])
        written = ("", "", "")
        grids = [np.full((2, 2), np.nan)] * 4
        if stop.kind == "SSD":
            share, before, key, value = stop.shown
            grids = [_scaled(x) for x in (share * before, torch.outer(key, value), key[:, None], value[None])]
            written = f"{share:.3f} × before", "key × value", "+"
            rows([])
        elif stop.kind == "attention":
            best = [(h, int(p[:-1].argmax())) for h, p in enumerate(stop.shown[0])]
            rows([(str(h + 1), float(stop.shown[0][h, at]), True,
                   f"{stop.shown[0][h, at]:.0%} " + "".join(map(sign, read[max(0, at - 5) : at + 1])))
                  for h, at in best], COLOR["attention"])  # fmt: skip
        elif stop.kind == "experts":
            rows([(str(e + 1), float(p), bool(w), f"answers {w:.0%}" if w else "")
                  for e, (p, w) in enumerate(zip(*stop.shown, strict=True))], COLOR["experts"])  # fmt: skip
        else:
            Y, D = len(stop.early_Y), len(stop.x_D)
            said = ("each row times the", "stream is a score,", f"softmax of the {Y}", "scores gives shares")
            rows([("", 0, True, line) for line in (said if n else (f"row {byte} of {Y}:", f"{D} numbers"))])
        for table, values in zip(tables, grids, strict=True):
            table.set_data(values)
        for each, text in zip((*under, plus), written, strict=True):
            each.set_text(text)

    return update


def _scaled(values):
    """Numbers as their signed square roots, the largest 1: what is small can be seen beside what is large."""
    return (values.sign() * values.abs().sqrt() / values.abs().max().sqrt()).numpy()


def _vectors(ax, found, wide):
    """What the part adds, and the stream after it: all numbers of both, in the same colors."""
    D = len(found[0].x_D)
    rows = max(k for k in range(1, 9) if D % k == 0)
    images, words = [], []
    for y in (0.54, 0):
        images.append(ax.imshow(np.zeros((2, 2)), extent=(0, 1, y, y + 0.32), cmap=SIGNED, vmin=-2, vmax=2,
                                aspect="auto"))  # fmt: skip
        ax.add_patch(Rectangle((0, y), 1, 0.32, fc="none", ec=FAMILY["neutral"], lw=0.8))
        words.append(_write(ax, 0, y + 0.39, ""))
    ax.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1))
    ax.axis("off")

    def update(n):
        added, now = found[n].added_D, found[n].x_D
        for image, v in zip(images, (added, now), strict=True):
            image.set_data((v / (wide[n] / D**0.5)).view(rows, -1).numpy())
        words[0].set_text(f"it adds: {added.norm():.1f} long" if added.any() else "it adds nothing")
        words[1].set_text(f"stream: {wide[n]:.1f} long")

    return update


def _early(ax, found, came):
    """The likeliest next bytes, read at this stop; the one that came in ink."""
    title = _write(ax, 0, 0.93, "", weight="bold")
    bars = [ax.add_patch(Rectangle((0.16, 0.7 - 0.17 * i), 0, 0.12, lw=0)) for i in range(LIKELY)]
    names = [_write(ax, 0.06, 0.76 - 0.17 * i, "", ha="center", family="monospace", size=11) for i in range(LIKELY)]
    shares = [_write(ax, 0, 0.76 - 0.17 * i, "", size=9.5) for i in range(LIKELY)]
    ax.set(xlim=(0, 1), ylim=(0, 1))
    ax.axis("off")

    def update(n):
        title.set_text("next byte" if found[n].kind == "logits" else "read early")
        ranked = (x.tolist() for x in found[n].early_Y.topk(LIKELY))
        for bar, name, share, p, one in zip(bars, names, shares, *ranked, strict=True):
            bar.set(width=0.5 * p, color="black" if one == came else FAMILY["neutral"])
            name.set(text=sign(one), weight="bold" if one == came else "normal")
            share.set(text=f"{p:.0%}" if p >= 0.005 else "<1%", x=0.2 + 0.5 * p)

    return update


def _so_far(moved, n):
    """What the stops up to n move, of what all do."""
    return f"{sum(map(sum, moved[: n + 1])) / 1e6:.2f} of {sum(map(sum, moved)) / 1e6:.2f} MB"
