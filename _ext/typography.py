"""Small things of typesetting that neither Markdown nor the theme gets right."""

import re

from docutils import nodes
from sphinx.application import Sphinx

AFTER = re.compile(r"\S{1,12}(?=\s|$)")  # punctuation, or the rest of a word: $n$-th
BEFORE = re.compile(r"(?:(?<=\s)|^)\S{1,3}$")  # an opening bracket
DOLLARS = re.compile(r"(?<!\\)\$([^$]+)\$")
APART = "notation"  # the page without a number that has numbered equations
MARK = re.compile("[\ue000-\ue0ff]+")  # a formula in private characters, which neither TeX nor Markdown reads


def hold_together(app: Sphinx, doctree) -> None:
    """A browser may break a line between a formula and the comma behind it: tie what touches a formula to it."""
    for formula in list(doctree.findall(nodes.math)):
        parent = formula.parent
        if not isinstance(parent, nodes.paragraph | nodes.inline | nodes.emphasis | nodes.strong):
            continue
        at = parent.index(formula)
        tied = [formula]
        after = parent[at + 1] if at + 1 < len(parent) else None
        before = parent[at - 1] if at else None
        if isinstance(after, nodes.Text) and (found := AFTER.match(after)):
            parent.replace(after, nodes.Text(after[found.end() :]))
            tied.append(nodes.Text(found[0]))
        if isinstance(before, nodes.Text) and (found := BEFORE.search(before)):
            parent.replace(before, nodes.Text(before[: found.start()]))
            tied.insert(0, nodes.Text(found[0]))
        if len(tied) > 1:
            parent.replace(formula, nodes.inline("", "", *tied, classes=["px-tied"]))


def mark_maths(app: Sphinx, env, docnames) -> None:
    """BibTeX's reader takes the braces out of TeX and knows no formulas: a mark stands for each while it reads."""
    for entry in env.get_domain("cite").bibdata.data.entries.values():
        for name, value in entry.fields.items():
            if name != "url" and DOLLARS.search(value):
                entry.fields[name] = DOLLARS.sub(lambda m: "".join(chr(0xE000 + ord(c)) for c in m[1]), value)


def set_maths(app: Sphinx, doctree, docname: str) -> None:
    """Put the formulas back in place of their marks, as formulas."""
    for text in list(doctree.findall(nodes.Text)):
        if not MARK.search(text):
            continue
        parts, end = [], 0
        for mark in MARK.finditer(text):
            tex = "".join(chr(ord(c) - 0xE000) for c in mark[0])
            parts += [nodes.Text(text[end : mark.start()]), nodes.math(tex, tex)]
            end = mark.end()
        text.parent.replace(text, [*parts, nodes.Text(text[end:])])
        app.env.get_domain("math").data["has_equations"][docname] = True  # or the page goes without MathJax


def number_apart(app: Sphinx, env) -> None:
    """Equations of a page without a number would be (1), (2) amid (3.1): they are N.1, N.2, of the notation."""
    numbered = env.toc_fignumbers.get(f"chapters/{APART}", {}).get("displaymath", {})
    for name, number in numbered.items():
        numbered[name] = ("N", number[-1])


def setup(app: Sphinx) -> None:
    app.connect("doctree-read", hold_together)
    app.connect("env-before-read-docs", mark_maths)
    app.connect("doctree-resolved", set_maths)
    app.connect("env-check-consistency", number_apart)  # once Sphinx has numbered, before it writes
