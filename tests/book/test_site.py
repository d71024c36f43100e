"""The files beside the pages, the buttons to the source, one PDF, and pages without a network."""

from types import SimpleNamespace

import browser
import pytest
from playwright.sync_api import Error
from pypdf import PdfReader
from test_browser import CHAPTER

from _ext import pdf, site


def config(address):
    return SimpleNamespace(postx_repository=address, html_theme_options={"logo": {}})


def test_one_address_switches_on_the_buttons():
    known = config("https://github.com/owner/postx/")
    site.buttons(None, known)
    options = known.html_theme_options
    assert options["repository_url"] == "https://github.com/owner/postx"
    assert options["use_issues_button"]
    assert set(options["launch_buttons"]) == {"colab_url", "binderhub_url", "notebook_interface"}
    none = config("")
    site.buttons(None, none)
    assert none.html_theme_options == {"logo": {}}


@pytest.mark.parametrize("address", ["github.com/owner/postx", "https://github.com/owner", "https://example.org/a/b"])
def test_what_is_no_address_of_a_repository_is_named(address):
    with pytest.raises(ValueError, match="postx_repository: expected https://github.com/OWNER/NAME"):
        site.buttons(None, config(address))


@pytest.mark.skipif(not browser.HTML.exists(), reason="no built book: run `make book`")
def test_files_beside_the_pages():
    index, missing = ((browser.HTML / name).read_text(encoding="utf8") for name in ("index.html", "404.html"))
    assert 'url=chapters/intro.html"' in index
    assert '<html lang="en">' in index
    assert "<title>" in index
    assert "no such page" in missing
    assert (browser.HTML / ".nojekyll").read_text() == ""
    assert (browser.HTML / "robots.txt").read_text().startswith("User-agent: *")


@pytest.mark.skipif(not browser.HTML.exists(), reason="no built book: run `make book`")
def test_what_was_read_is_there_without_a_network(reader):
    server = browser.serve()
    context = reader.new_context()
    page = context.new_page()
    base = f"http://127.0.0.1:{server.server_port}/"
    page.goto(base + CHAPTER)
    page.wait_for_function("() => navigator.serviceWorker.controller")
    page.reload()  # now it goes through the worker
    browser.typeset(page)
    server.shutdown()
    server.server_close()
    page.reload()
    browser.typeset(page)
    assert page.title().startswith("1. ")
    assert page.locator("mjx-container").count() > 0
    assert page.locator(".px-controls input:enabled").count() > 0
    with pytest.raises(Error, match="ERR_FAILED|ERR_CONNECTION"):
        page.goto(base + "chapters/references.html")
    context.close()


@pytest.mark.skipif(not browser.HTML.exists(), reason="no built book: run `make book`")
def test_pages_are_printed_into_one_file(reader, tmp_path):
    names = ["chapters/intro", "chapters/notation"]
    assert pdf.order()[0] == names[0]
    assert set(names) < set(pdf.order())
    sheets = pdf.printed(reader, browser.HTML, tmp_path / "book.pdf", names)
    book = PdfReader(tmp_path / "book.pdf")
    assert len(book.pages) == sum(sheets.values())
    assert [mark.title for mark in book.outline if not isinstance(mark, list)] == [
        "What comes after the Transformer", "Notation"
    ]  # fmt: skip
    assert "What comes after the Transformer" in book.pages[0].extract_text()
    with pytest.raises(FileNotFoundError, match="not built: chapters/no_page"):
        pdf.printed(reader, browser.HTML, tmp_path / "book.pdf", ["chapters/no_page"])


@pytest.mark.skipif(not browser.HTML.exists(), reason="no built book: run `make book`")
def test_the_first_page_knows_where_a_reader_stopped(reader):
    server = browser.serve()
    context = reader.new_context(service_workers="block")
    page = context.new_page()
    base = f"http://127.0.0.1:{server.server_port}/chapters/"
    page.goto(base + "intro.html")
    assert page.locator(".px-place").count() == 0
    page.goto(f"http://127.0.0.1:{server.server_port}/{CHAPTER}")
    heading = page.locator(".bd-article h2").nth(2)
    heading.evaluate("h2 => h2.scrollIntoView()")
    name = heading.evaluate("h2 => h2.firstChild.textContent")
    page.goto(base + "intro.html")
    link = page.locator(".px-place a")
    assert link.text_content().endswith(f": {name}")
    link.click()
    page.wait_for_url("**/" + CHAPTER + "#*")
    assert page.locator(f'{page.evaluate("location.hash")} > h2').evaluate("h2 => h2.firstChild.textContent") == name
    context.close()
    server.shutdown()
