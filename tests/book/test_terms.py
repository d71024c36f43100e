"""A chapter's first mention of a term leads to its line of the glossary, and a page carries no more than it uses."""

import json
import re
from html.parser import HTMLParser

import pytest
from sphinx.application import Sphinx

from _ext import terms
from postx.shapes import LETTERS

GLOSSARY = """# Glossary

```{glossary}
gate
  A door.

latent attention (MLA)
  Small keys.

attention
  A look back, see {term}`gate`.

S4
  A model.
```
"""
PAGE = """# A gate

Gates close. A second gate, latent attention, MLA and *attention* with attention.
`attention` is code, s4 is no S4, state-attention is none. [attention](https://example.org) leads elsewhere.

```python
q_BTHK = S_BHKV + os.O_WRONLY
```
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    book = tmp_path_factory.mktemp("book")
    (book / "chapters").mkdir()
    for name, text in {"01_page": PAGE, "glossary": GLOSSARY, "notation": "# Notation\n", "other": PAGE}.items():
        (book / "chapters" / f"{name}.md").write_text(text)
    (book / "index.md").write_text("# Book\n\n```{toctree}\n:glob:\nchapters/*\n```\n")
    overrides = {"extensions": ["myst_parser", "_ext.terms"], "root_doc": "index"}
    Sphinx(book, None, book / "out", book / "trees", "html", overrides, status=None, warning=None).build()
    return {path.stem: path.read_text(encoding="utf8") for path in (book / "out" / "chapters").glob("*.html")}


def mentions(html):
    return re.findall(r'<a class="px-term[^>]*href="([^"]*)"[^>]*>([^<]*)</a>', html)


def test_the_first_mention_of_a_term_in_prose_leads_to_its_line(built):
    assert mentions(built["01_page"]) == [
        ("glossary.html#term-gate", "Gates"),
        ("glossary.html#term-latent-attention-MLA", "latent attention"),
        ("glossary.html#term-attention", "attention"),
        ("glossary.html#term-S4", "S4"),
    ]
    assert mentions(built["other"]) == [], "only chapters are marked"


class Store(HTMLParser):
    text, here = "", False

    def handle_starttag(self, tag, attributes):
        self.here = dict(attributes).get("id") == "px-terms"

    def handle_data(self, data):
        self.text += data * self.here


def carried(html):
    store = Store()
    store.feed(html)
    return json.loads(store.text.strip()) if store.text else None


def test_a_page_carries_the_lines_and_letters_that_it_uses(built):
    data = carried(built["01_page"])
    assert data["terms"] == {
        "term-gate": ["gate", "A door."],
        "term-latent-attention-MLA": ["latent attention (MLA)", "Small keys."],
        "term-attention": ["attention", "A look back, see gate."],
        "term-S4": ["S4", "A model."],
    }
    assert data["names"] == ["S_BHKV", "q_BTHK"]
    assert data["letters"] == {letter: LETTERS[letter] for letter in "BHKVT"}
    assert data["notation"] == "notation.html"
    assert carried(built["glossary"])["names"] == []
    assert carried(built["notation"]) is None


def test_a_term_is_found_whole_and_the_longest_first():
    found = terms.pattern(["attention", "linear attention", "state-space model (SSM)", "GLA"])
    words = "Linear attention, SSMs, ssm, gla, GLA, Attentions, attentional, self-attention, state-space models"
    assert found.findall(words) == ["Linear attention", "SSMs", "GLA", "Attentions", "state-space models"]
