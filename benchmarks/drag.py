"""How a slider feels on a slow phone: python -m benchmarks.drag [--html _build/html]

Needs Chromium. A mouse drags a handle across its slider in 100 moves, at the processor's own speed and at a quarter,
for frames that are swapped and for a formula that the page computes; with a built book also for its three heaviest
figures, each on its own page. Writes results/drag.json: milliseconds from a move to the frame after it (median and
most), how many pictures the drag showed, and the kilobytes of the figure.
"""

import argparse
import datetime
import gzip
import json
import os
import platform
import re
import statistics
import sys
import tempfile
from pathlib import Path

import sympy as sp

from _ext import pages as pages_by
from benchmarks.explore_bench import curves
from postx import style
from postx.explore import Log, explore
from postx.explore.live import Live

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests" / "tools"))
import browser  # noqa: E402

ALT = "A picture made to be timed, at {tokens} and width {width}."
WATCH = """
window.times = []; window.pictures = new Set();
addEventListener("input", ({ target }) => {
  const began = performance.now();
  requestAnimationFrame(() => setTimeout(() => {
    times.push(performance.now() - began);
    pictures.add(target.closest("figure").querySelector("svg").innerHTML);
  }));
}, true);
"""
HEAVY = re.compile(r'<figure class="px-fig"(?:(?!</figure>).)*?</figure>', re.S)
HEAVIEST = 3


def formula(fig):
    """The three curves of explore_bench as formulas."""
    ax = fig.subplots()
    style.log2_ticks(ax.xaxis, 512, 2**20, every=2)
    style.log10_ticks(ax.yaxis, 1e6, 1e16, every=2)
    n, tokens, width = sp.symbols("n tokens width", positive=True)
    share = 1 / (1 + (n / tokens) ** 2)
    costs = [n**2 * width + 4 * n * width**2, 64 * n * width, n**2 * width * share + 64 * n * width]
    names = ("attention", "ssm", "hybrid")
    lines = [ax.plot([512, 2**20], [1e7, 1e7], color=style.FAMILY[name])[0] for name in names]
    labels = [style.label(ax, 2**20, 1e7, name, style.FAMILY[name]) for name in names]
    ends = [(2**20, cost.subs(n, 2**20)) for cost in costs]
    return Live(dict(zip(lines, costs, strict=True)) | dict(zip(labels, ends, strict=True)), over=(n, 512, 2**20),
                say="At {tokens} tokens attention does {times:,.0f} times the work of the scan.",
                times=(tokens + 4 * width) / 64)  # fmt: skip


def pages():
    """Name and HTML of each figure."""
    os.environ["POSTX_STATIC"] = "1"
    width = Log(64, 256, start=128)
    figures = {
        "frames, 12 stops": explore(curves, alt=ALT, tokens=Log(512, 2**20, start=4096), width=width),
        "formula, 441 stops": explore(formula, alt=ALT, tokens=Log(512, 2**20, start=4096, per_octave=40), width=width),
    }
    return {name: figure._repr_mimebundle_()[0]["text/html"] for name, figure in figures.items()}


def heaviest(folder):
    """(page, number of the figure on it, its HTML) of the book's heaviest figures with a slider."""
    found = [(path, number, html)
             for path in folder.glob("chapters/*.html")
             for number, html in enumerate(HEAVY.findall(path.read_text(encoding="utf8")))
             if 'type="range"' in html]  # fmt: skip
    return sorted(found, key=lambda figure: -len(figure[2]))[:HEAVIEST]


def drag(chrome, html, slower):
    """A figure on a page of its own."""
    engine = ("postx.js", "handles.js", "live.js")
    scripts = "".join(f'<script src="{(ROOT / "_static" / s).as_uri()}"></script>' for s in engine)
    style_sheet = f'<link rel="stylesheet" href="{(ROOT / "_static" / "postx.css").as_uri()}">'
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "page.html"
        path.write_text(f'<!doctype html><meta charset="utf-8">{style_sheet}{scripts}{html}', encoding="utf8")
        return drag_on(chrome, path, 0, slower)


def drag_on(chrome, path, number, slower):
    """The first slider of a page's figure, which is dragged from end to end."""
    page = chrome.new_page(viewport={"width": 760, "height": 700})
    page.add_init_script(WATCH)
    page.goto(path.as_uri())
    page.evaluate("() => window.MathJax?.startup?.promise.then(() => null)")
    page.context.new_cdp_session(page).send("Emulation.setCPUThrottlingRate", {"rate": slower})
    slider = page.locator('figure[class="px-fig"]').nth(number).locator("input[type=range]").first
    slider.evaluate("slider => slider.closest('figure').scrollIntoView({ block: 'end' })")
    box = slider.bounding_box()
    page.mouse.move(box["x"] + 8, box["y"] + box["height"] / 2)
    page.mouse.down()
    for step in range(100):
        page.mouse.move(box["x"] + 8 + step * (box["width"] - 16) / 99, box["y"] + 12)
        page.wait_for_timeout(16)
    page.mouse.up()
    page.wait_for_timeout(500 * slower)
    times, seen = page.evaluate("[times, pictures.size]")
    page.close()
    return {"median ms": round(statistics.median(times), 1), "most ms": round(max(times), 1), "pictures": seen}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--html", type=Path, help="the folder of a built book, for its heaviest figures")
    folder = parser.parse_args().html
    from playwright.sync_api import sync_playwright

    rows = []
    with sync_playwright() as play:
        chrome = play.chromium.launch(executable_path=browser.chromium(), args=browser.FLAGS)
        for name, html in pages().items():
            for slower in (1, 4):
                row = {"figure": name, "slower": slower, **drag(chrome, html, slower)}
                rows.append(row | {"kB gzipped": round(len(gzip.compress(html.encode())) / 1e3, 1)})
                print(json.dumps(rows[-1]))
        for path, number, html in heaviest(folder) if folder else ():
            name = f"{pages_by.name(path.stem)}, figure {number + 1}"
            for slower in (1, 4):
                row = {"figure": name, "slower": slower, **drag_on(chrome, path, number, slower)}
                rows.append(row | {"kB gzipped": round(len(gzip.compress(html.encode())) / 1e3, 1)})
                print(json.dumps(rows[-1]))
        version = chrome.version
        chrome.close()
    device = f"{platform.machine()}, {os.cpu_count()} cores"
    record = {"date": datetime.date.today().isoformat(), "device": device, "chromium": version, "drags": rows}
    target = ROOT / "benchmarks" / "results" / "drag.json"
    target.write_text(json.dumps(record, indent=1) + "\n", encoding="utf8")


if __name__ == "__main__":
    main()
