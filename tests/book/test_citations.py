"""A citation says who and when, in one form, and shows its work at the pointer and at a tap."""

import re

import browser
import pytest
from pybtex.database import parse_file, parse_string
from test_browser import CHAPTER, bases, contexts, opened  # noqa: F401  (fixtures)

from _ext import citations

ENTRY = "@misc{%s, author = {%s}, title = {{A $O(n)$ {\\L}ine}}, year = {2024}}\n"
FORM = re.compile(r"[^\[\]]+ (?:19|20)\d\d[a-z]?")


def entries(*written):
    text = "".join(ENTRY % (f"k{i}", who) for i, who in enumerate(written))
    return list(parse_string(text, "bibtex").entries.values())


def test_a_label_is_one_name_or_two_and_the_year():
    some = entries("Gu, Albert", "Gu, Albert and Dao, Tri", "{Qwen Team}", "Gu, A. and Dao, T. and B, C", "van Dam, X")
    assert citations.labels(some) == ["Gu 2024", "Gu & Dao 2024", "Qwen Team 2024", "Gu et al. 2024", "van Dam 2024"]
    assert citations.labels(entries("A, B", "C, D", "A, E")) == ["A 2024a", "C 2024", "A 2024b"]
    del some[0].fields["year"]
    with pytest.raises(ValueError, match=r"references.bib: k0 has no year"):
        citations.labels(some)


def test_fields_are_plain_text():
    assert citations.plain(entries("A, B")[0].fields["title"]) == "A $O(n)$ Łine"
    assert citations.decoded("a " + "".join(chr(0xE000 + ord(c)) for c in "n^2") + " b") == "a n^2 b"


def test_no_two_works_of_the_book_have_one_label():
    works = list(parse_file(browser.ROOT / "chapters" / "references.bib").entries.values())
    found = citations.labels(works)
    assert len(set(found)) == len(works) > 100
    assert [label for label in found if not FORM.fullmatch(label) or re.search(r"[{}\\$]", label)] == []


def test_a_citation_opens_its_work(opened):  # noqa: F811
    page = opened(CHAPTER, "file")
    cited = page.locator(".bd-article a[href*='references.html#work-']")
    shown = cited.evaluate_all("all => all.map(e => [e.textContent, e.title])")
    assert len(shown) > 5
    assert [label for label, title in shown if not FORM.fullmatch(label) or len(title) < 20] == []
    assert not re.search("[\ue000-\ue0ff]", str(shown))
    cited.first.click()
    box = page.locator("#px-line:popover-open")
    assert box.locator("strong").text_content() == shown[0][0]
    assert box.locator("p").text_content() == shown[0][1]
    assert box.locator("a").text_content() == "References"
    assert "references.html#work-" in box.locator("a").get_attribute("href")
    page.keyboard.press("Escape")
    assert box.count() == 0
