"""Marks and boxes say what the registers say."""

import re
from pathlib import Path

import pytest
from sphinx.application import Sphinx

from _ext import evidence

ROOT = Path(__file__).resolve().parents[2]
CLAIMS = {row["id"]: row for row in evidence.claims(ROOT)}
BOXES = [(page, names.replace(",", " ").split()) for page, text in evidence.pages(ROOT).items()
         for names in re.findall(r"^`{3,}\{claim\} (.+)$", text, re.M)]  # fmt: skip


def test_every_box_names_claims_of_the_register_that_can_be_answered():
    assert len(BOXES) >= 15
    for page, names in BOXES:
        assert set(names) <= set(CLAIMS), page
        assert {CLAIMS[name]["status"] for name in names} - {"reproduced"}, f"{page}: a claim that is right gets no box"


def test_the_source_of_a_claim_is_in_the_bibliography():
    """A key that nobody knows would be printed as a word."""
    bib = (ROOT / "chapters" / "references.bib").read_text(encoding="utf8")
    known = set(re.findall(r"^@\w+\{([\w:-]+),", bib, re.M))
    keys = {key for row in CLAIMS.values() for key in re.findall(r"\b[a-z]+\d{4}\w*", row["source"])}
    assert len(keys) >= 50
    assert keys - known == set()


def test_no_box_states_a_claim_by_hand():
    for page, text in evidence.pages(ROOT).items():
        assert not re.search(r"\{admonition\}[^\n]*(document|claim)", text, re.I), page


CLAIMED = """[[claim]]
id = "c1"
text = "All swans are *white*."
by = "first document"
where = "opening"
status = "wrong as stated"
link = "page"
source = "s"
note = "n"
"""
CLAIMED += CLAIMED.replace('"c1"', '"c3"').replace("wrong as stated", "cited").replace("swans", "geese")
FOUND = """[[finding]]
id = "{name}"
sentence = "s"
refuted_by = "r"
{control}
[[finding.test]]
kind = "interval"
file = "runs.jsonl"
value = "metrics.score"
of = {{}}
low = 0
high = 1
"""
PAGE = """# Page

One. {finding}`tested` Two. {finding}`untested` Three. {finding}`gone`

```{claim} c1
Some are black.
```

```{claim} c1, c3
Geese too.
```

```{claim} c2
x
```
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    book = tmp_path_factory.mktemp("book")
    for folder in ("chapters", "evidence"):
        (book / folder).mkdir()
    (book / "evidence" / "claims.toml").write_text(CLAIMED)
    rows = FOUND.format(name="tested", control='control = "c"') + FOUND.format(name="untested", control="")
    (book / "evidence" / "findings.toml").write_text(rows)
    (book / "chapters" / "01_page.md").write_text(PAGE)
    (book / "chapters" / "evidence.md").write_text("# Evidence\n")
    (book / "index.md").write_text("# Book\n\n```{toctree}\nchapters/01_page\nchapters/evidence\n```\n")
    overrides = {"extensions": ["myst_parser", "_ext.marks"], "root_doc": "index"}
    warnings = open(book / "warnings", "w+")  # noqa: SIM115
    app = Sphinx(book, None, book / "out", book / "trees", "html", overrides, status=None, warning=warnings)
    app.build()
    warnings.seek(0)
    return (book / "out" / "chapters" / "01_page.html").read_text(encoding="utf8"), warnings.read()


def test_a_mark_leads_to_its_record(built):
    html, warned = built
    marks = re.findall(r'<a class="px-finding[^>]*href="([^"]*)"[^>]*>(\w+)</a>', html)
    assert marks == [("evidence.html#finding-tested", "record"), ("evidence.html#finding-untested", "seen")]
    assert "no finding 'gone' in findings.toml" in warned


def test_a_box_shows_the_claim_and_the_verdict_of_the_register(built):
    html, warned = built
    box, both = html.split('px-claim')[1:]
    assert "Check the claim: wrong as stated" in box
    assert "px-status" not in box, "the title says it"
    assert "Check the claims: wrong as stated, cited" in both
    assert "All swans are <em>white</em>." in box
    assert "first document, opening" in box
    verdicts = re.findall(r'px-said.*?<span class="px-status [^"]*">([^<]*)</span>', both, re.S)
    assert verdicts == ["wrong as stated", "cited"]
    assert box.index("white") < box.index("Some are black.")
    assert "no claim c2 in claims.toml" in warned
