"""How soon a page's sliders answer on a slow phone: python -m benchmarks.page_load [PAGE ...]

Needs a built book and Chromium. The profile: processor four times slower, 1.6 Mbit/s down, 150 ms round trip, nothing
cached, 390 pixels wide; the pages come gzipped from a server on this machine. Writes results/pages.json.
"""

import argparse
import datetime
import functools
import gzip
import json
import os
import platform
import statistics
import sys
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests" / "tools"))
import browser  # noqa: E402

PAGES = ("01_attention_cost", "04_ssd_duality", "11_quantization_error", "14_diffusion")  # the first, and the heaviest
NETWORK = {"offline": False, "latency": 150, "downloadThroughput": 1.6e6 / 8, "uploadThroughput": 0.75e6 / 8}
SLOWER = 4

# Looked at in every frame: when the first and when all sliders of what is parsed answer, and no more are to come.
WATCH = """
window.seen = {};
const look = () => {
  const sliders = [...document.querySelectorAll("figure.px-fig input[type=range]")];
  const alive = sliders.filter((slider) => !slider.disabled);
  const now = performance.now() / 1000;
  if (sliders.length) window.seen.parsed ??= now;
  if (alive.length) window.seen.first ??= now;
  if (alive.length < sliders.length) delete window.seen.all;
  else if (sliders.length) window.seen.all ??= now;
  requestAnimationFrame(look);
};
requestAnimationFrame(look);
new PerformanceObserver((list) => list.getEntries().forEach((e) => (window.seen.blocked = (window.seen.blocked ?? 0) +
  Math.max(0, e.duration - 50) / 1000))).observe({ type: "longtask", buffered: true });
"""
ASK = """() => {
  const [page] = performance.getEntriesByType("navigation");
  const paint = performance.getEntriesByName("first-contentful-paint")[0];
  return { ...window.seen, paint: paint.startTime / 1000, loaded: page.loadEventEnd / 1000 };
}"""


class Gzipped(SimpleHTTPRequestHandler):
    """Files as a web host sends them: text compressed."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            self.send_error(404)
            return
        body = path.read_bytes()
        self.send_response(200)
        self.send_header("Content-Type", self.guess_type(str(path)))
        if path.suffix in (".html", ".js", ".css", ".svg", ".json"):
            body = gzip.compress(body, 6)
            self.send_header("Content-Encoding", "gzip")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        """Say nothing."""


def serve(folder: Path) -> ThreadingHTTPServer:
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Gzipped, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def load(chrome, address: str) -> dict:
    """One visit with an empty cache, in seconds since the click, and the kilobytes it took."""
    context = chrome.new_context(viewport={"width": 390, "height": 844}, device_scale_factor=2, is_mobile=True)
    page = context.new_page()
    session = context.new_cdp_session(page)
    received = []
    session.on("Network.loadingFinished", lambda event: received.append(event["encodedDataLength"]))
    session.send("Network.enable")
    session.send("Network.setCacheDisabled", {"cacheDisabled": True})
    session.send("Network.emulateNetworkConditions", NETWORK)
    session.send("Emulation.setCPUThrottlingRate", {"rate": SLOWER})
    page.add_init_script(WATCH)
    page.goto(address, wait_until="load", timeout=120_000)
    page.evaluate("() => window.MathJax?.startup?.promise.then(() => null)")
    page.wait_for_timeout(1000)
    found = page.evaluate(ASK)
    found |= {"requests": len(received), "KiB": sum(received) / 1024}
    context.close()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pages", nargs="*", default=PAGES)
    parser.add_argument("--html", type=Path, default=browser.HTML, help="the folder of the built book")
    parser.add_argument("--repeat", type=int, default=3, help="visits to each page; the median is kept")
    parser.add_argument("--note", default="", help="what is measured, if not today's book")
    options = parser.parse_args()
    from playwright.sync_api import sync_playwright

    server = serve(options.html)
    rows = []
    with sync_playwright() as play:
        chrome = play.chromium.launch(executable_path=browser.chromium(), args=browser.FLAGS)
        for name in options.pages:
            address = f"http://127.0.0.1:{server.server_port}/chapters/{name}.html"
            visits = [load(chrome, address) for _ in range(options.repeat)]
            keys = dict.fromkeys(key for visit in visits for key in visit)
            row = {key: round(statistics.median(v.get(key, 0) for v in visits), 2) for key in keys}
            rows.append({"page": name, **row})
            print(json.dumps(rows[-1]))
        version = chrome.version
        chrome.close()
    server.shutdown()
    record = {
        "date": datetime.date.today().isoformat(),
        "device": f"{platform.machine()}, {os.cpu_count()} cores, slowed {SLOWER} times",
        "chromium": version,
        "network": "1.6 Mbit/s down, 150 ms round trip, gzip, no cache",
        "visits": options.repeat,
        "note": options.note,
        "seconds": rows,
    }
    target = ROOT / "benchmarks" / "results" / "pages.json"
    kept = json.loads(target.read_text()) if target.exists() else []
    kept = [old for old in kept if old["note"] != options.note] + [record]
    target.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf8")


if __name__ == "__main__":
    main()
