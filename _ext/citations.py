"""Citations that can be read where they stand: [Vaswani et al. 2017], and the work's title at the pointer or a tap.

A label is the first author's name and the year, or two names, in the text and in the list of references alike; a letter
tells works apart that would have the same. The link has its work as a title, which terms.js opens beside it.
"""

import re
from collections import Counter
from string import ascii_lowercase

from docutils import nodes
from pybtex.plugin import register_plugin
from pybtex.richtext import Text
from pybtex.style.formatting.unsrt import Style as Unsorted
from pybtex.style.labels import BaseLabelStyle
from sphinx.application import Sphinx

NAME = "postx"
MARK = re.compile("[\ue000-\ue0ff]+")  # a formula, as typography.py writes it while BibTeX's reader is at work


def decoded(text: str) -> str:
    return MARK.sub(lambda mark: "".join(chr(ord(c) - 0xE000) for c in mark[0]), text)


def plain(latex: str) -> str:
    """A field as text; of formulas their TeX."""
    return " ".join(decoded(str(Text.from_latex(latex))).split())


def names(entry) -> str:
    """Who wrote it: one name, two, or the first and the others."""
    people = entry.persons.get("author") or entry.persons.get("editor") or []
    last = [plain(" ".join([*person.prelast_names, *person.last_names])) for person in people]
    if not last:
        return plain(entry.fields.get("title", entry.key)).split(":")[0]
    return last[0] if len(last) == 1 else " & ".join(last) if len(last) == 2 else f"{last[0]} et al."


def labels(entries) -> list[str]:
    """The label of each work, in order: Gu & Dao 2023, or 2023a and 2023b.

    Raises ValueError for a work without a year.
    """
    for entry in entries:
        if "year" not in entry.fields:
            raise ValueError(f"references.bib: {entry.key} has no year")
    bare = [f"{names(entry)} {entry.fields['year']}" for entry in entries]
    often, seen = Counter(bare), Counter()
    found = []
    for label in bare:
        found.append(label + ascii_lowercase[seen[label]] if often[label] > 1 else label)
        seen[label] += 1
    return found


class Labels(BaseLabelStyle):
    def format_labels(self, sorted_entries):
        return labels(sorted_entries)


class Style(Unsorted):
    default_label_style = NAME
    default_sorting_style = "author_year_title"


def write_formulas(app: Sphinx, doctree, docname: str) -> None:
    """The title of a citation's link is plain text: put the TeX of a formula back."""
    for link in doctree.findall(nodes.reference):
        if MARK.search(link.get("reftitle", "")):
            link["reftitle"] = decoded(link["reftitle"])


def setup(app: Sphinx) -> None:
    register_plugin("pybtex.style.labels", NAME, Labels)
    register_plugin("pybtex.style.formatting", NAME, Style)
    app.connect("doctree-resolved", write_formulas)
