"""What the browser tests share: a browser, the built pages, and a page that remembers what went wrong."""

import functools
import os
import shutil
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

ROOT = Path(__file__).resolve().parents[2]
HTML = ROOT / "_build" / "html"
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
    """Every page of the built book, relative to its root; the redirect at the root has nothing to look at."""
    found = [p.relative_to(HTML).as_posix() for p in HTML.rglob("*.html") if "_static" not in p.parts]
    return sorted(name for name in found if name not in ("index.html", "genindex.html"))


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
    page.on("requestfailed", lambda r: faults.append(f"failed: {r.url} {r.failure}"))

    def judge(request):
        url = urlsplit(request.url)
        home = urlsplit(base)
        if url.scheme not in ("data", "blob") and (url.scheme, url.netloc) != (home.scheme, home.netloc):
            faults.append(f"request to another place: {request.url}")

    page.on("request", judge)
    return page, faults


def typeset(page) -> None:
    """Wait until MathJax has finished with the page, if the page has it."""
    page.wait_for_load_state("load")
    page.evaluate("() => window.MathJax?.startup?.promise ?? null")
