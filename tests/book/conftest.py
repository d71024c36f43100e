"""What the browser tests of the book share: one browser for a file of tests, and the book that must be there first."""

import os

import browser
import pytest


def missing(what: str) -> None:
    """Skip, or fail where the browser tests are required (POSTX_BROWSER=1)."""
    pytest.fail(what) if os.environ.get("POSTX_BROWSER") == "1" else pytest.skip(what)


@pytest.fixture(scope="module")
def chrome():
    """Chromium, for as long as the tests of one file run."""
    path = browser.chromium()
    if not path:
        missing("no Chromium on this machine: set POSTX_CHROMIUM or install one")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        chrome = play.chromium.launch(executable_path=path, args=browser.FLAGS)
        yield chrome
        chrome.close()


@pytest.fixture(scope="module")
def reader(chrome):
    """The same, where the book has been built: it reads its pages."""
    if not browser.HTML.exists():
        missing("no built book: run `make book`")
    return chrome
