"""The built book as one PDF, printed by Chromium: python -m _ext.pdf FILE.pdf (`make pdf`).

Every page is printed as a reader would print it (_static/print.js opens answers, shows a slider's ends, writes out
addresses); pages follow each other in the order of the book, with a bookmark each. Links between pages are dropped,
since they would lead to the server that printed them.
"""

import os
import shutil
import sys
import tempfile
from pathlib import Path

import yaml
from playwright.sync_api import sync_playwright
from pypdf import PdfWriter

ROOT = Path(__file__).resolve().parent.parent
FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update")
NAMES = ("chromium", "chromium-browser", "google-chrome")
FOOT = """<div style="width:100%;padding:0 15mm;font:7pt sans-serif;display:flex;justify-content:space-between">
<span class="title"></span><span><span class="pageNumber"></span> / <span class="totalPages"></span></span></div>"""
READY = """async () => {
  await window.MathJax?.startup?.promise;
  await document.fonts.ready;
  document.documentElement.dataset.theme = 'light';
  document.querySelectorAll('.bd-article a[href]:not([href^="http"]):not([href^="#"])')
    .forEach(link => link.removeAttribute('href'));
}"""


def order(root: Path = ROOT) -> list[str]:
    """The pages of the book in their order, relative to its root."""
    toc = yaml.safe_load((root / "_toc.yml").read_text(encoding="utf8"))
    return [toc["root"], *(page["file"] for part in toc["parts"] for page in part["chapters"])]


def printed(browser, html: Path, to: Path, names: list[str]) -> dict[str, int]:
    """Print the pages of a built book into one file with Playwright's Chromium; the number of sheets of each.

    Raises FileNotFoundError for a page that is not built.
    """
    if missing := [name for name in names if not (html / f"{name}.html").exists()]:
        raise FileNotFoundError(f"not built: {', '.join(missing)}; run `make book` first")
    book, sheets = PdfWriter(), {}
    with tempfile.TemporaryDirectory() as folder:
        page = browser.new_page()
        for name in names:
            page.goto((html / f"{name}.html").resolve().as_uri())
            page.evaluate(READY)
            one = Path(folder) / "page.pdf"
            page.pdf(path=one, format="A4", tagged=True, display_header_footer=True, header_template="<span></span>",
                     footer_template=FOOT, print_background=True,
                     margin={"top": "15mm", "bottom": "15mm", "left": "15mm", "right": "15mm"})  # fmt: skip
            before = len(book.pages)
            book.append(one, outline_item=page.title().split(" — ")[0])
            sheets[name] = len(book.pages) - before
            print(f"{name}: {sheets[name]} sheets", flush=True)
        page.close()
    book.compress_identical_objects()
    book.write(to)
    return sheets


def find() -> str | None:
    """Path of $POSTX_CHROMIUM or of the first Chromium that is installed, or None."""
    return os.environ.get("POSTX_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)


def main():
    if len(sys.argv) != 2 or not sys.argv[1].endswith(".pdf"):
        sys.exit("which file? python -m _ext.pdf _build/postx.pdf")
    chromium = find()
    if chromium is None:
        sys.exit("no Chromium on this machine: set POSTX_CHROMIUM or install one")
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=chromium, args=list(FLAGS))
        sheets = printed(browser, ROOT / "_build" / "html", Path(sys.argv[1]), order())
    print(f"{sum(sheets.values())} sheets in {sys.argv[1]}")


if __name__ == "__main__":
    main()
