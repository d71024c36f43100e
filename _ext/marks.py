"""What marks a sentence or heads a box with what the registers say: ``{finding}`` in the text, ``{claim}`` around it.

    Four taps before the layer decide whether it learns to look up. {finding}`recall-link`

    ```{claim} double-quadruple
    The compute, yes. The memory only if the scores are stored.
    ```

The mark leads to the finding on the evidence page. The box shows each claim's whole text, who makes it and the verdict,
all from evidence/claims.toml, so that no page can say something else; what stands inside is the page's answer.
"""

from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective, SphinxRole

from _ext import evidence, findings, pages

log = logging.getLogger(__name__)


class Mark(nodes.General, nodes.Inline, nodes.Element):
    """A finding's mark; its address is known only when the builder is."""


class Finding(SphinxRole):
    """{finding}`id`: a small mark that leads to the record."""

    def run(self):
        root = Path(self.env.srcdir)
        self.env.note_dependency(str(root / "evidence" / "findings.toml"))
        known = {row["id"]: row for row in findings.read(root)[0]}
        if self.text not in known:
            log.warning("evidence: no finding %r in findings.toml", self.text, location=self.get_location())
            return [], []
        return [Mark("", name=self.text, seen="control" not in known[self.text])], []


class Claim(SphinxDirective):
    """```{claim} id, id: a box with each claim's text and verdict, and the page's answer."""

    required_arguments, final_argument_whitespace, has_content = 1, True, True

    def run(self):
        root = Path(self.env.srcdir)
        self.env.note_dependency(str(root / "evidence" / "claims.toml"))
        known = {row["id"]: row for row in evidence.claims(root)}
        names = self.arguments[0].replace(",", " ").split()
        if missing := [name for name in names if name not in known]:
            log.warning("evidence: no claim %s in claims.toml", ", ".join(missing), location=self.get_location())
            return []
        rows = [known[name] for name in names]
        verdicts = list(dict.fromkeys(row["status"] for row in rows))
        title = "Check the claim" + "s" * (len(rows) > 1) + ": " + ", ".join(verdicts)
        box = nodes.admonition("", nodes.title("", title), classes=["px-claim", "warning"])
        for row in rows:
            made = nodes.inline("", "", *self.words(f" {row['by']}, {row['where']} "), classes=["px-made-by"])
            said = nodes.paragraph("", "", *self.words(row["text"]), made, classes=["px-said"])
            if len(verdicts) > 1:  # else the title says it
                said += nodes.inline(text=row["status"], classes=["px-status", f"px-{nodes.make_id(row['status'])}"])
            box += said
        self.state.nested_parse(self.content, self.content_offset, box)
        return [box]

    def words(self, source):
        return self.parse_inline(source)[0]


def resolve(app: Sphinx, doctree, docname: str) -> None:
    """Give every mark its address on the evidence page."""
    for node in list(doctree.findall(Mark)):
        page = pages.docname("evidence", Path(app.srcdir))
        uri = f"{app.builder.get_relative_uri(docname, page)}#finding-{node['name']}"
        words = "seen" if node["seen"] else "record"
        link = nodes.reference("", words, refuri=uri, internal=True, classes=["px-finding"],
                               reftitle="the records and the test of this sentence")  # fmt: skip
        node.replace_self(link)


def setup(app: Sphinx) -> None:
    app.add_node(Mark)
    app.add_role("finding", Finding())
    app.add_directive("claim", Claim)
    app.connect("doctree-resolved", resolve)
