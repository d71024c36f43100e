"""What the browser tests share: a browser, the built pages, and a page that remembers what went wrong."""

import functools
import json
import os
import shutil
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import figures

ROOT = Path(__file__).resolve().parents[2]
HTML = ROOT / os.environ.get("POSTX_HTML", "_build/html")  # `make page` has a book of its own
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
NAMES = ("chromium", "chromium-browser", "google-chrome")


def chromium() -> str | None:
    """Path of $POSTX_CHROMIUM or of the first Chromium that is installed, or None."""
    return os.environ.get("POSTX_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)


def pages() -> list[str]:
    """Every page of the built book, relative to its root; redirects and the 404 page have nothing to look at."""
    found = {p.relative_to(HTML).as_posix() for p in HTML.rglob("*.html") if "_static" not in p.parts}
    stubs = {f"chapters/{old}.html" for old in json.loads((ROOT / "_ext" / "redirects.json").read_text())}
    return sorted(found - stubs - {"index.html", "genindex.html", "404.html"})


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args):
        """Say nothing: the browser reports what fails."""


def serve() -> ThreadingHTTPServer:
    """The built book on a free port of 127.0.0.1, in a thread that ends with the tests."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Quiet, directory=str(HTML)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def watch(context, base: str):
    """A new page and the list of its faults: script errors, failed loads, requests to another host."""
    page, faults = context.new_page(), []
    page.on("console", lambda m: m.type == "error" and faults.append(f"console: {m.text}"))
    page.on("pageerror", lambda e: faults.append(f"script error: {e}"))
    page.on("response", lambda r: r.status >= 400 and faults.append(f"status {r.status}: {r.url}"))
    given_up = "net::ERR_ABORTED"  # by a page that is left; what is not there says another thing
    page.on("requestfailed", lambda r: r.failure != given_up and faults.append(f"failed: {r.url} {r.failure}"))

    def judge(request):
        url = urlsplit(request.url)
        home = urlsplit(base)
        if url.scheme not in ("data", "blob") and (url.scheme, url.netloc) != (home.scheme, home.netloc):
            faults.append(f"request to another place: {request.url}")

    page.on("request", judge)
    return page, faults


def typeset(page) -> None:
    """Wait until MathJax has finished with the page, if the page has it, and wide.js with what MathJax made."""
    page.wait_for_load_state("load")
    page.evaluate("() => window.MathJax?.startup?.promise.then(() => null)")
    drawn(page)


def drawn(page) -> None:
    """Wait until the page has been laid out and drawn as it is now."""
    page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done())))")


def stop_time(page) -> None:
    """From here on the page's timers and clock go on by page.clock.run_for alone, however busy the machine is."""
    page.clock.install(time=0)
    page.clock.pause_at(3600)


# ---- What a reader would stumble over, each as a list of words for the message of a test ---------------------

VISIBLE = "e => e.checkVisibility() && e.clientWidth > 0"

# A formula, code or an output that is cut must say so: it scrolls, and its edge fades.
CUT = f"""() => [...document.querySelectorAll('mjx-container[display=true], .bd-article pre')].filter({VISIBLE})
    .filter(e => e.scrollWidth - e.clientWidth > 1)
    .filter(e => getComputedStyle(e).maskImage === 'none' || !/auto|scroll/.test(getComputedStyle(e).overflowX))
    .map(e => `${{e.scrollWidth - e.clientWidth}} px cut: ${{e.textContent.slice(0, 60)}} ${{e.parentElement.id}}`)"""

# A formula that is wider than the column and does not scroll in a box of its own: both its ends are lost.
OUTSIDE = """() => [...document.querySelectorAll('div.math > mjx-container[display=true]')]
    .filter(e => { const [a, b] = [e, e.parentElement].map(x => x.getBoundingClientRect());
                   return a.left < b.left - 1 || a.right > b.right + 1; })
    .map(e => `sticks out of the column: ${e.parentElement.id || e.textContent.slice(0, 60)}`)"""

COVERED = """() => [...document.querySelectorAll('div.math > .eqno')].filter(number => {
    const a = number.getBoundingClientRect();
    const box = number.parentElement.querySelector('mjx-container')?.getBoundingClientRect();
    return box && a.left < box.right - 1 && box.left < a.right - 1 && a.top < box.bottom - 1 && box.top < a.bottom - 1;
  }).map(number => `the number covers ${number.parentElement.id}`)"""

SMALLEST = 0.8  # of the size of the text: MathJax sets formulas at 1.13 or more, and 0.72 of that is the floor
SHRUNK = """() => [...document.querySelectorAll('mjx-container[display=true]')]
    .map(e => [parseFloat(getComputedStyle(e).fontSize) / parseFloat(getComputedStyle(e.parentElement).fontSize),
               e.parentElement.id])"""

# Only code that is no check, and no comment to a tool; function bodies may assert.
TOOLS = """() => [...document.querySelectorAll('.cell_input pre')].filter(e => !e.closest('.px-checks'))
    .flatMap(e => e.textContent.split('\\n')).filter(line => /^(assert\\b|# NBVAL)/.test(line))"""

# A line of prose has at most some 80 letters, its title aside; a keyboard stops at no copy button and at no mark of
# a heading.
TIRING = """() => [...document.querySelectorAll('.bd-article p:not(.admonition-title)')]
    .filter(e => e.clientWidth > 44.5 * parseFloat(getComputedStyle(document.documentElement).fontSize))
    .map(e => `${e.clientWidth} px wide: ${e.textContent.slice(0, 50)}`)
    .concat([...document.querySelectorAll('button.copybtn, a.headerlink')].filter(e => e.tabIndex >= 0)
      .map(e => e.outerHTML).slice(0, 1))"""

# A higher heading looks stronger than a lower one; links have one color and no line under a space; a slider's value
# stands beside its handle; a small number in a picture is 10⁻⁵, not 1e-05; a recurrence
# is typeset, and breaks where it is too long.
LOOKS = """() => {
    const all = (what) => [...document.querySelectorAll(`.bd-article ${what}`)].filter(e => e.checkVisibility());
    const [h2, h3] = ['section > h2', 'section > h3'].map(h => all(h)[0]).map(h => h && getComputedStyle(h));
    const weak = h2 && h3 && (parseFloat(h2.fontSize) <= parseFloat(h3.fontSize) || +h2.fontWeight < +h3.fontWeight);
    const links = all(':is(p, td, li) a.reference:not(.px-term)').filter(e => !e.closest('figure'));
    const colors = new Set(links.map(e => getComputedStyle(e).color));
    const far = all('.px-row:has(> input[type=range])').filter(row => {
      const [handle, value] = ['input', '.px-value'].map(e => row.querySelector(e).getBoundingClientRect());
      const words = document.createRange();
      words.selectNodeContents(row.querySelector('.px-value'));
      const apart = words.getBoundingClientRect().left - handle.right;
      return value.top < handle.bottom && handle.top < value.bottom && apart > 24; });
    return [...(weak ? ['h3 looks stronger than h2'] : []),
      ...(colors.size > 1 ? [`links in ${[...colors].join(' and ')}`] : []),
      ...links.filter(e => /^\\s|\\s$/.test(e.textContent)).map(e => `underlined space: ${e.textContent}`),
      ...far.map(row => `its value is far from its handle: ${row.textContent.trim().slice(0, 40)}`),
      ...all('.px-mixers td code').map(e => `not typeset: ${e.textContent}`),
      ...all('.pst-scrollable-table-container:has(.px-mixers)').filter(e => e.scrollWidth > e.clientWidth + 1)
        .map(e => `the recurrences are cut: ${e.scrollWidth - e.clientWidth} px`),
      ...all('figure.px-fig svg text').filter(e => /\\de[-+]\\d\\d$/.test(e.textContent.trim()))
        .map(e => `a number of a computer in a picture: ${e.textContent}`)]; }"""

# Code and outputs that would fit a little smaller do (wide.js).
UNFIT = f"""() => [...document.querySelectorAll('.bd-article .cell pre')].filter({VISIBLE}).filter(e => {{
    const {{ paddingLeft, paddingRight }} = getComputedStyle(e), left = parseFloat(paddingLeft);
    const share = (e.clientWidth - left - parseFloat(paddingRight)) / (e.scrollWidth - left);
    return e.scrollWidth - e.clientWidth > 1 && share > (e.closest('.cell_output') ? 0.79 : 0.83); }})
    .map(e => `would fit a little smaller: ${{e.textContent.slice(0, 50)}}`)"""

# Code that a cell prints breaks its lines where it is too wide to shrink; only columns scroll.
PRINTED_CODE = f"""() => [...document.querySelectorAll('.cell_output pre')].filter({VISIBLE})
    .filter(e => e.scrollWidth - e.clientWidth > 1 && /^(def|class) \\w+.*:$/m.test(e.textContent))
    .map(e => `printed code scrolls: ${{e.textContent.slice(0, 60)}}`)"""

# A number of an equation says which page it is from.
LOOSE = """() => [...document.querySelectorAll('.bd-article a.reference.internal, .bd-article .eqno')]
    .map(e => e.textContent.replace('#', '').trim()).filter(text => /^\\(\\d+\\)$/.test(text))
    .map(text => `${text} is an equation's number without a page`)"""

HEAVY = ("fontawesome.js", "searchtools.js", "language_data.js", "searchindex.js", "search.js")
SCRIPTS = "() => [...document.scripts].map(s => s.src.split('?')[0].split('/').pop())"
FONTS = """async () => { await document.fonts.ready;
    return performance.getEntriesByType('resource').filter(({ name }) => /fa-solid-900/.test(name))
    .map(() => 'loads the font of all icons: name those of the page in _ext/icons.py') }"""

# Icons come from the web font: a glyph in front of the element, in a font that has arrived.
ICONLESS = """async () => { await document.fonts.ready;
    const there = [...document.fonts].filter(face => face.status === 'loaded' && /Font ?Awesome/.test(face.family))
      .flatMap(face => face.unicodeRange.split(', '))
      .map(span => span.slice(2).split('-').map(end => parseInt(end, 16)));
    return [...document.querySelectorAll('i, span')].filter(e => /(^| )fa[srb]?( |-)/.test(e.className))
    .filter(e => e.checkVisibility()).filter(e => {
      const { content, fontFamily } = getComputedStyle(e, '::before');
      const point = content.codePointAt(1);
      return content === 'none' || !/Font ?Awesome/.test(fontFamily)
        || !there.some(([first, last = first]) => first <= point && point <= last); })
    .map(e => `no icon: ${e.outerHTML}`) }"""

# Words in figures against the page; a word that is made transparent is meant to step back, but not to vanish. Numbers
# printed on a heat map have a fixed ink and are not meant.
PALE = """() => {
    const rgb = text => text.match(/[\\d.]+/g).map(Number);
    const light = c => [0.2126, 0.7152, 0.0722].reduce((sum, share, i) => { const v = c[i] / 255;
      return sum + share * (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4); }, 0);
    const paper = rgb(getComputedStyle(document.body).backgroundColor);
    const found = new Map();
    for (const e of document.querySelectorAll('figure.px-fig svg text')) {
      if (!e.checkVisibility()) continue;
      const [r, g, b] = rgb(getComputedStyle(e).fill);
      if (r === g && g === b && [1, 254].includes(r)) continue;
      let solid = 1;
      for (let at = e; at.localName !== 'figure'; at = at.parentElement)
        solid *= getComputedStyle(at).opacity * getComputedStyle(at).fillOpacity ** (at === e);
      const seen = [r, g, b].map((v, i) => v * solid + paper[i] * (1 - solid));
      const [low, high] = [light(seen), light(paper)].sort((a, b) => a - b);
      const ratio = (high + 0.05) / (low + 0.05);
      if (ratio < (solid < 1 ? 2 : 4.5)) found.set(`${ratio.toFixed(2)}:1 ${[r, g, b]} ${solid}`, e.textContent);
    }
    return [...found].map(([how, what]) => `${how} ${what}`); }"""

NARROW = {"width": 320, "height": 700}  # the narrowest phones
LEAST = 8.5  # pixels on a phone of 390; what is raised or lowered in a formula has 6.5
SMALL = """least => [...document.querySelectorAll('figure.px-fig svg')].filter(e => e.checkVisibility())
    .flatMap((svg, i) => {
    const scale = svg.getBoundingClientRect().width / svg.viewBox.baseVal.width;
    const size = e => parseFloat(getComputedStyle(e).fontSize) * scale;
    return [...svg.querySelectorAll('text')].filter(e => e.textContent.trim()).filter(e => {
      const sizes = [...e.querySelectorAll('tspan')].filter(e => e.textContent.trim()).map(size);
      return (sizes.length ? Math.max(...sizes) : size(e)) < least || Math.min(...sizes) < least * 6.5 / 8.5;
    }).map(e => `figure ${i + 1}: too small: ${e.textContent.trim()}`); })"""

def phone_faults(page, walk=True) -> list[str]:
    """What is cut without a cue, covered by its number or (`walk`: at any stop) a word, or too small to read."""
    tiny = [f"{at} is at {size:.2f} of its size" for size, at in page.evaluate(SHRUNK) if size < SMALLEST]
    looked = map(page.evaluate, (CUT, OUTSIDE, COVERED, PRINTED_CODE, *[figures.FRAMES] * walk))
    return sum(looked, tiny) + page.evaluate(SMALL, LEAST)


def page_faults(page, on_search: bool) -> list[str]:
    """What no page should load or show."""
    loaded = set(page.evaluate(SCRIPTS)) & set(HEAVY[:1] if on_search else HEAVY)
    looked = map(page.evaluate, (ICONLESS, FONTS, TOOLS, TIRING, LOOSE, LOOKS, UNFIT))
    return [f"loads {name}" for name in sorted(loaded)] + sum(looked, [])
