"""The files beside the pages, the buttons to the source, one PDF, and pages without a network."""

import io
import re
from types import SimpleNamespace

import browser
import nbformat
import pytest
from PIL import Image
from playwright.sync_api import Error
from pypdf import PdfReader
from sphinx.application import Sphinx
from test_browser import CHAPTER

from _ext import cards, icons, pages, pdf, site


def config(address):
    return SimpleNamespace(postx_repository=address, html_theme_options={"logo": {}}, html_baseurl="")


def test_one_address_switches_on_the_buttons():
    known = config("https://github.com/owner/postx/")
    site.buttons(None, known)
    options = known.html_theme_options
    assert options["repository_url"] == "https://github.com/owner/postx"
    assert options["use_issues_button"]
    assert known.html_baseurl == "https://owner.github.io/postx/"
    assert set(options["launch_buttons"]) == {"colab_url", "binderhub_url", "notebook_interface"}
    none = config("")
    site.buttons(None, none)
    assert none.html_theme_options == {"logo": {}}
    assert none.html_baseurl == ""


def test_icons_are_found_in_the_theme():
    css = '.fa-a:before,.fa-bars:before{content:"\\f0c9"}' + "".join(
        f'.fa-{name}:before{{content:"\\f{i:03x}"}}' for i, name in enumerate(icons.NAMES) if name != "bars")
    assert {0xF0C9, 0xF000} <= icons.points(css)
    with pytest.raises(ValueError, match="the theme's icons have no bars"):
        icons.points(css.replace("fa-bars", "fa-rabs"))


def test_a_page_leads_to_its_source_its_issue_and_a_kernel(tmp_path):
    """A book of two pages, drawn with an address: what the theme makes of the options."""
    notebook = nbformat.read(pages.find("linear_attention"), as_version=4)
    notebook.cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    said = "A first paragraph that says what is on this page."
    notebook.cells.insert(0, nbformat.v4.new_markdown_cell(f"# One\n\n{said}"))
    (tmp_path / "chapters").mkdir()
    nbformat.write(notebook, tmp_path / "chapters" / "one.ipynb")
    head = "---\njupytext:\n  text_representation:\n    format_name: myst\nkernelspec:\n  name: python3\n---\n"
    (tmp_path / "intro.md").write_text(head + "# Book\n\n```{toctree}\nchapters/one\n```\n")
    options = {"extensions": ["myst_nb", "sphinx_book_theme", "_ext.site", "_ext.head"],
               "html_theme": "sphinx_book_theme", "nb_execution_mode": "off", "root_doc": "intro",
               "source_suffix": {".rst": "restructuredtext"},  # myst_nb writes into it, else into Sphinx's own default
               "postx_repository": "https://github.com/Owner/postx"}  # fmt: skip
    out, silent = tmp_path / "out", io.StringIO()
    Sphinx(tmp_path, None, out, tmp_path / "tree", "html", options, status=None, warning=silent).build()
    one, intro = ((out / f"{name}.html").read_text(encoding="utf8") for name in ("chapters/one", "intro"))
    where = "Owner/postx/blob/main/chapters/one.ipynb"
    assert f"https://colab.research.google.com/github/{where}" in one
    assert f"https://github.com/{where}?plain=1" in one
    assert "https://mybinder.org/v2/gh/Owner/postx/main?urlpath=lab/tree/chapters/one.ipynb" in one
    assert re.search(r"https://github.com/Owner/postx/issues/new\?title=[^\"]*chapters/one.html", one)
    assert "colab" not in intro
    assert "mybinder" not in intro
    assert "issues/new?" in intro
    assert '<link rel="canonical" href="https://owner.github.io/postx/chapters/one.html"' in one
    assert 'href="https://github.com/Owner/postx"' in one
    assert '<meta property="og:url" content="https://owner.github.io/postx/chapters/one.html" />' in one
    assert f'<meta name="description" content="{said}" />' in one
    assert '<meta property="og:image" content="https://owner.github.io/postx/_static/cards/one.png" />' in one
    assert "https://owner.github.io/postx/chapters/one.html</loc>" in (out / "sitemap.xml").read_text()
    card = Image.open(out / "_static" / "cards" / "one.png")
    assert card.size == cards.SIZE
    assert len(card.getcolors(256)) > 20, "a title alone is black and white"


@pytest.mark.skipif(not browser.HTML.exists(), reason="no built book: run `make book`")
def test_every_chapter_has_a_card_of_its_own():
    shown = {}
    first = (browser.HTML / "chapters" / "intro.html").read_text(encoding="utf8")
    small = re.findall(r'<img src="\.\./(_static/cards/small/[^"]*)"[^>]* loading="lazy"', first)
    assert {cards.little(path.stem) for path in pages.files().values() if path.suffix == ".ipynb"} == set(small)
    assert len(small) == len(set(small))
    assert all(Image.open(browser.HTML / card).size == cards.SMALL for card in small)
    for path in (path for path in pages.files().values() if path.suffix == ".ipynb"):
        text = (browser.HTML / "chapters" / f"{path.stem}.html").read_text(encoding="utf8")
        (card,) = re.findall(r'property="og:image" content="[^"]*(_static/cards/[^"]*)"', text)
        (alt,) = re.findall(r'property="og:image:alt" content="([^"]*)"', text)
        (said,) = re.findall(r'<meta name="description" content="([^"]*)"', text)
        assert len(alt) > 15
        assert len(said) > 40
        picture = (browser.HTML / card).read_bytes()
        assert len(picture) < 200_000
        shown[picture] = path.stem
    assert len(shown) == sum(path.suffix == ".ipynb" for path in pages.files().values())


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
