"""A chapter's first mention of a glossary term leads to its line, and so do the letters of a tensor's name in code and
those of a formula that mean an axis (_ext/letters.py).

Without scripts the mention is a link to the glossary. With them a tap opens the line beside the word
(_static/terms.js), from what the page carries: only the terms and the letters that it uses.
"""

import re
from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx

from _ext import letters, pages

NAME = r'(?:(?<=class="n">)|(?<=class="pre">))[A-Za-z]\w*_([%s]{2,})(?=</span>)'
NO_TENSORS = ("O_WRONLY", "read_MB")


def forms(term: str) -> list[str]:
    """How a term is written in a text: "latent attention (MLA)" is itself without its sign, or the sign alone.

    >>> forms("latent attention (MLA)")
    ['latent attention', 'MLA']
    """
    found = re.fullmatch(r"(.+?) \((\w+)\)", term)
    return list(found.groups()) if found else [term]


def pattern(terms) -> re.Pattern:
    """One expression for all terms, the longest first; a small letter may be a capital, a capital stays one."""

    def written(form):
        return "".join(f"[{c.lower()}{c.upper()}]" if c.islower() else re.escape(c) for c in form)

    every = sorted((form for term in terms for form in forms(term)), key=len, reverse=True)
    return re.compile(rf"(?<![\w-])(?:{'|'.join(map(written, every))})(?:s?)(?![\w-])")


def lines(app: Sphinx) -> dict:
    """Every term of the glossary: its address on the page and its line."""
    if not hasattr(app, "postx_terms"):
        doctree = app.env.get_doctree(pages.docname("glossary", Path(app.srcdir)))
        app.postx_terms = {
            item.next_node(nodes.term).astext(): (
                item.next_node(nodes.term)["ids"][0],
                " ".join(item.next_node(nodes.definition).astext().split()),
            )
            for item in doctree.findall(nodes.definition_list_item)
        }
    return app.postx_terms


def link(app: Sphinx, doctree, docname: str) -> None:
    """Make a link of the first mention of each term in the prose of a chapter."""
    if not pages.NUMBER.match(docname.rpartition("/")[2]):
        return
    letters.mark(doctree)
    known = lines(app)
    names = {form.lower(): term for term in known for form in forms(term)}
    expression, seen = pattern(known), set()
    home = app.builder.get_relative_uri(docname, pages.docname("glossary", Path(app.srcdir)))
    for paragraph in list(doctree.findall(nodes.paragraph)):
        for text in [child for child in paragraph.children if isinstance(child, nodes.Text)]:
            parts, end = [], 0
            for found in expression.finditer(text):
                word = found[0].lower()
                term = names.get(word) or names.get(word.removesuffix("s"))
                if term is None or term in seen:
                    continue
                seen.add(term)
                uri = f"{home}#{known[term][0]}"
                mention = nodes.reference("", found[0], refuri=uri, internal=True, classes=["px-term"])
                parts += [nodes.Text(text[end : found.start()]), mention]
                end = found.end()
            if parts:
                paragraph.replace(text, [*parts, nodes.Text(text[end:])])


def carry(app: Sphinx, pagename: str, templatename: str, context: dict, doctree) -> None:
    """Put the lines of a page's terms and letters on the page."""
    if doctree is None:
        return
    body, known = context.get("body", ""), letters.axes()
    names = sorted({m[0] for m in re.finditer(NAME % "".join(known), body)} - set(NO_TENSORS))
    used = set(re.findall(r'href="[^"]*#(term-[\w-]+)"', body))
    sizes = sorted(letters.known(doctree)) if pages.NUMBER.match(pagename.rpartition("/")[2]) else []
    if not (names or used or sizes):
        return
    axes = {letter: known[letter] for letter in (*sizes, *"".join(name.rpartition("_")[2] for name in names))}
    told = {own: [term, line] for term, (own, line) in lines(app).items() if own in used}
    notation = app.builder.get_relative_uri(pagename, pages.docname("notation", Path(app.srcdir)))
    from postx.explore.html import json_of  # imports matplotlib

    data = json_of({"terms": told, "names": names, "sizes": sizes, "letters": axes, "notation": notation})
    context["body"] = f'{body}<script type="application/json" id="px-terms">{data}</script>'


def setup(app: Sphinx) -> None:
    app.connect("doctree-resolved", link)
    app.connect("html-page-context", carry)
