"""How fast a slider moves with a kernel, and how long and heavy the frames of a built page are.

    python -m benchmarks.explore_bench

Prints medians, for a figure of three curves on log axes, one of two panels whose limits move, and a heatmap.
"""

import gzip
import os
import statistics
import time

import numpy as np

from postx import style
from postx.explore import Int, Log, explore

MOVES = 30


def curves(fig):
    ax = fig.subplots()
    n = np.geomspace(512, 2**20, 300)
    style.log2_ticks(ax.xaxis, 512, 2**20, every=2)
    style.log10_ticks(ax.yaxis, 1e6, 1e16, every=2)
    names = ("attention", "ssm", "hybrid")
    lines = [ax.plot(n, n, color=style.FAMILY[name])[0] for name in names]
    labels = [style.label(ax, n[-1], n[-1], name, style.FAMILY[name]) for name in names]
    (dot,) = ax.plot([512], [512], "o", color="black")
    ax.set(xlabel="tokens n", ylabel="FLOPs of one layer", title="The price of a long prompt")

    def update(tokens, width):
        share = 1 / (1 + (n / tokens) ** 2)
        costs = [n**2 * width + 4 * n * width**2, 64 * n * width, n**2 * width * share + 64 * n * width]
        for line, name, cost in zip(lines, labels, costs, strict=True):
            line.set_ydata(cost)
            name.set_position((n[-1], cost[-1]))
        dot.set_data([tokens], [tokens**2 * width])
        return f"At {tokens:,} tokens attention does {(tokens + 4 * width) / 64:,.0f} times the work of the scan."

    return update


def panels(fig):
    ax, bx = fig.subplots(1, 2)
    t = np.linspace(0, 6, 400)
    (wave,) = ax.plot(t, t, color=style.FAMILY["liquid"])
    bars = bx.bar(range(8), range(8), color=style.FAMILY["conv"])
    ax.set(xlabel="time (s)", ylabel="state", ylim=(-1.1, 1.1), title="signal")
    bx.set(xlabel="lag", title="filter")

    def update(tokens, width):
        rate = np.log2(tokens) / 3
        wave.set_ydata(np.sin(rate * t) * np.exp(-t * 64 / width / 6))
        for lag, bar in enumerate(bars):
            bar.set_height(width * 0.8**lag)
        bx.set_ylim(0, width)

    return update


def heatmap(fig):
    ax = fig.subplots()
    weights = np.random.default_rng(0).standard_normal((32, 32))
    image = ax.imshow(weights, vmin=-3, vmax=3)
    fig.colorbar(image, label="weight")
    ax.grid(False)
    ax.set(xlabel="column", ylabel="row")

    def update(tokens, width):
        step = 64 / width / np.log2(tokens)
        image.set_data(np.round(weights / step) * step)

    return update


def build(draw):
    alt = "A picture made to be timed, at {tokens} and width {width}."
    return explore(draw, alt=alt, tokens=Log(512, 2**20, start=4096), width=Int(64, 320, step=64, start=128))


def live(draw):
    """Median milliseconds and kilobytes of one move of the widget, from the new value to the new picture."""
    picture = build(draw)
    picture._repr_mimebundle_()
    handle = picture._widget.children[1]
    times = []
    for move in range(MOVES):
        began = time.perf_counter()
        handle.value = (move * 5 + 4) % 12
        times.append(time.perf_counter() - began)
    return 1e3 * statistics.median(times), len(picture.png()) / 1e3


def page(draw):
    """Median seconds and gzipped kilobytes of a page figure of 60 frames."""
    os.environ["POSTX_STATIC"] = "1"
    times = []
    for _ in range(3):
        began = time.perf_counter()
        html = build(draw)._repr_mimebundle_()[0]["text/html"]
        times.append(time.perf_counter() - began)
    del os.environ["POSTX_STATIC"]
    return statistics.median(times), len(gzip.compress(html.encode())) / 1e3


def main(small=False):
    print("figure    live move   PNG      60 frames   gzipped")
    for draw in (curves, panels, heatmap):
        move, png = live(draw)
        seconds, weight = page(draw)
        print(f"{draw.__name__:<9} {move:5.0f} ms  {png:4.0f} kB    {seconds:5.2f} s  {weight:6.1f} kB")


if __name__ == "__main__":
    main()
