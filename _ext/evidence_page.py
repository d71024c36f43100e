"""Two directives: ``postx-evidence`` draws the evidence page, ``postx-tests`` lists what holds its own page.

Both draw files of evidence/ and nothing else; what is missing or unknown there fails the build by a warning
that says what to do.
"""

from functools import cached_property
from pathlib import Path

from docutils import nodes
from pybtex.database import parse_file
from pybtex.richtext import Text
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

from _ext import cells, evidence, findings, pages
from _ext.keys import code_digest

log = logging.getLogger(__name__)

RESIDUAL = (
    "The residual is the largest absolute difference that the tests measured, rounded up to a power of ten; "
    "0 means that the two sides were equal bit for bit."
)
COVERAGE = (
    "Where this book treats each section and each numbered equation of the two documents that it grew from."
)
AGREEMENT = (
    "The largest difference between each form of each mixer and its step, token by token, relative to the "
    "largest output or 1, rounded up to a power of ten."
)
FINDINGS = (
    "Sentences of this book that rank, explain or order measurements. Each is evaluated on its records at every build; "
    "in brackets the 95% interval over pairs (mostly seeds), or the smallest and largest ratio of two times."
)
BREAK = nodes.raw("", "<br>", format="html")


# What the page reads besides the code, in many small files; each finding is evaluated on records in these folders.
SOURCES = ("evidence", "chapters", "tests", "benchmarks")
DRAWN = "postx_evidence"


def drawn_from(root: Path) -> str:
    return code_digest(root, SOURCES)


def outdated(app: Sphinx, env, added: set, changed: set, removed: set) -> list[str]:
    """Pages of evidence that were drawn from other files than today's."""
    drawn = {docname: about[DRAWN] for docname, about in env.metadata.items() if DRAWN in about}
    today = drawn_from(Path(app.srcdir)) if drawn else ""
    return [docname for docname, files in drawn.items() if files != today]


class PageLink(nodes.General, nodes.Inline, nodes.Element):
    """A link to ``docname#label``; its words are known only once all pages have been read."""


class Drawing(SphinxDirective):
    def run(self):
        self.root = Path(self.env.srcdir)
        try:
            return self.draw()
        except evidence.EvidenceError as error:
            log.warning("evidence: %s", error, location=self.get_location())
            return []

    @cached_property
    def known(self) -> dict[str, str]:
        return evidence.equations(self.root)

    @cached_property
    def works(self) -> dict:
        path = self.root / "chapters" / "references.bib"
        return parse_file(str(path)).entries if path.exists() else {}

    def text(self, source: str) -> list[nodes.Node]:
        """Inline MyST: `code`, $math$ and *emphasis* work in the data files."""
        return self.parse_inline(source)[0] if source else []

    def equation(self, label: str) -> nodes.Node:
        words = nodes.literal(text=label, classes=["xref", "eq"])
        target = {"refdomain": "math", "reftype": "eq", "reftarget": label, "refdoc": self.env.docname}
        return addnodes.pending_xref("", words, refexplicit=False, refwarn=True, **target)

    def link(self, link: str) -> list[nodes.Node]:
        if link == evidence.LATER:
            return [nodes.emphasis(text="later")]
        page, _, label = link.partition("#")
        if label in self.known:
            return [nodes.Text("equation "), self.equation(label)]
        return [PageLink("", docname=pages.docname(page, self.root), label=label)]

    def table(self, headers: list[str], rows: list[list], name: str) -> nodes.table:
        """A table whose cells are lists of inline nodes, or text."""
        group = nodes.tgroup("", *[nodes.colspec(colwidth=1) for _ in headers], cols=len(headers))
        head = nodes.row("", *[nodes.entry("", nodes.paragraph(text=h)) for h in headers])
        group += nodes.thead("", head)
        group += nodes.tbody("", *[nodes.row("", *[self.cell(c) for c in row]) for row in rows])
        return nodes.table("", group, classes=["px-evidence", f"px-{name}"])

    @staticmethod
    def cell(content) -> nodes.entry:
        content = [nodes.Text(content)] if isinstance(content, str) else content
        return nodes.entry("", nodes.paragraph("", "", *content))

    @staticmethod
    def lines(texts: list[str]) -> list[nodes.Node]:
        """Each text as code on a line of its own."""
        return [node for text in texts for node in (nodes.literal(text=text), BREAK.deepcopy())][:-1]

    def test_ids(self, tests: dict[str, str]) -> list[nodes.Node]:
        """One test id a line; the zero-width spaces let a long one break after a slash or a colon."""
        return self.lines([test.replace("/", "/\u200b").replace("::", "::\u200b") for test in tests])

    def section(self, title: str, *body: nodes.Node) -> nodes.section:
        return nodes.section("", nodes.title(text=title), *body, ids=[nodes.make_id(f"evidence-{title}")])

    def equations(self, rows: dict[str, dict]) -> nodes.table:
        cells = [
            [[self.equation(e)], [nodes.literal(text=e)], r["residual"], self.test_ids(r["tests"])]
            for e, r in rows.items()
        ]
        return self.table(["Equation", "Label", "Residual", "Held by"], cells, "equations")


class Evidence(Drawing):
    """``{postx-evidence}``: what is said first, then what holds it: the two tables of the tests are folded."""

    def draw(self):
        self.env.metadata[self.env.docname][DRAWN] = drawn_from(self.root)
        parts = [self.draw_claims(), self.draw_findings(), *self.draw_coverage(), self.draw_equations()]
        rows = evidence.agreement(self.root)
        return parts if rows is None else [*parts, self.draw_agreement(rows)]

    def draw_equations(self) -> nodes.section:
        for fault in evidence.ledger_faults(self.root):
            log.warning("evidence: %s", fault, location=self.get_location())
        ledger = evidence.read_ledger(self.root)
        rows = {label: ledger[label] for label in self.known if label in ledger}
        table = cells.details(f"{len(rows)} equations and their tests", "px-fold", self.equations(rows))
        return self.section("Equations", nodes.paragraph(text=RESIDUAL), *table)

    def draw_findings(self) -> nodes.section:
        found, stale = findings.read(self.root)
        for lost in findings.orphans(self.root):
            log.warning("evidence: %s", lost, location=self.get_location())
        marked, rows = findings.marks(self.root), []
        for row in found:
            target = nodes.target("", "", ids=[f"finding-{row['id']}"])
            links = [n for page in sorted(marked.get(row["id"], ())) for n in (BREAK.deepcopy(), *self.link(page))]
            held = findings.evaluate(self.root, row, stale)
            said = [f"{test['value']}: {kind} [{low:.3g}, {high:.3g}], {n} pair{'s' * (n > 1)}"
                    for test, (kind, low, high, n) in zip(row["test"], held, strict=True)]  # fmt: skip
            tests = [n for words in said for n in (nodes.Text(words), BREAK.deepcopy())]
            files = self.lines(sorted({test["file"] for test in row["test"]}))
            control = self.text(row.get("control", findings.SEEN))
            refuted = self.text(" Refuted by: " + row["refuted_by"])
            rows.append([[target, *self.text(row["sentence"]), *links], [*tests, *files], control + refuted])
        table = self.table(["Finding, and where", "Test and records", "Control"], rows, "findings")
        return self.section("Findings", nodes.paragraph(text=FINDINGS), table)

    def draw_claims(self) -> nodes.section:
        claims, rows = evidence.claims(self.root), []
        for claim in claims:
            kind = f"px-{nodes.make_id(claim['status'])}"
            made = nodes.inline(
                "", "", *self.text(f"{claim['by']}, {claim['where']}"), classes=["px-made-by"]
            )
            said = [*self.text(claim["text"]), BREAK.deepcopy(), made]
            status = [nodes.inline(text=claim["status"], classes=["px-status", kind]), BREAK.deepcopy()]
            note = self.text(claim.get("note", ""))
            if claim["status"] == "forecast":
                note += self.text(f" Made {claim['date']}; falsified by: {claim['falsified_by']}")
            note += [BREAK.deepcopy()] if note else []
            source = nodes.inline("", "", *self.source(claim["source"]), classes=["px-made-by"])
            rows.append([said, status + self.link(claim["link"]), [*note, source]])
        count = {s: sum(c["status"] == s for c in claims) for s in evidence.STATUSES}
        lead = f"{len(claims)} claims: " + ", ".join(f"{n} {s}" for s, n in count.items() if n) + "."
        headers = ["Claim, and who makes it", "Status, and where", "Correction or proof, and source"]
        table = self.table(headers, rows, "claims")
        for row, claim in zip(table[0][-1], claims, strict=True):
            row["classes"].append(f"px-row-{nodes.make_id(claim['status'])}")
        return self.section("Claims", nodes.paragraph(text=lead), self.tally(count), table)

    @staticmethod
    def tally(count: dict[str, int]) -> nodes.raw:
        """A bar of the counts whose parts are buttons: each leaves the claims of its status (in _static/book.css)."""
        total = sum(count.values())
        parts = [(total, "all", "all", " checked")]
        parts += [(n, nodes.make_id(s), s, "") for s, n in count.items() if n]
        buttons = "".join(
            f'<label class="px-{kind}" style="flex-grow:{n}"><input type="radio" name="px-status" value="{kind}"{on}> '
            f"<strong>{n}</strong> {words}</label>"
            for n, kind, words, on in parts
        )
        html = f'<fieldset class="px-tally"><legend>Show the claims that are</legend>{buttons}</fieldset>'
        return nodes.raw("", html, format="html")

    def source(self, source: str) -> list[nodes.Node]:
        """Bib keys become "Author (year)" with the work's own link; anything else is text."""
        keys = [key.strip() for key in source.split(",")]
        if not all(key in self.works for key in keys):
            return self.text(source)
        parts = []
        for key in keys:
            entry = self.works[key]
            names = [" ".join(map(str, p.rich_last_names)) for p in entry.persons.get("author", [])] or [
                str(Text.from_latex(entry.fields.get("title", key)))
            ]
            short = (
                names[0]
                if len(names) == 1
                else " and ".join(names)
                if len(names) == 2
                else f"{names[0]} et al."
            )
            words = f"{short} ({entry.fields.get('year', 'n.d.')})"
            url = entry.fields.get("url") or (
                f"https://doi.org/{entry.fields['doi']}" if "doi" in entry.fields else ""
            )
            parts += [nodes.reference("", words, refuri=url) if url else nodes.Text(words), nodes.Text("; ")]
        return parts[:-1]

    def draw_coverage(self) -> list[nodes.section]:
        sections, numbered = evidence.coverage(self.root)
        rows = [
            [r["document"], self.text(r["section"]), self.link(r["treated"]), self.text(r.get("note", ""))]
            for r in sections
        ]
        table = self.table(["Document", "Section", "Treated in", "Note"], rows, "coverage")
        rows = []
        for r in numbered:
            ours = [n for label in r["label"] for n in (nodes.Text(" "), self.eq_or_later(label))][1:]
            rows.append([r["document"], r["eq"], ours, self.text(r.get("note", ""))])
        theirs = self.table(["Document", "Their number", "Ours", "Note"], rows, "coverage")
        return [self.section("Coverage", nodes.paragraph(text=COVERAGE), table, theirs)]

    def eq_or_later(self, label: str) -> nodes.Node:
        return nodes.emphasis(text="later") if label == evidence.LATER else self.equation(label)

    def draw_agreement(self, rows: list[dict]) -> nodes.section:
        lengths = sorted({r["T"] for r in rows})
        errors = {(r["mixer"], r["form"], r["dtype"], r["T"]): r["error"] for r in rows}
        found = []
        for kind in sorted({key[:3] for key in errors}):
            found.append([*kind, *[errors.get((*kind, T), "") for T in lengths]])
        table = self.table(["Mixer", "Form", "Type", *[f"T = {T:,}" for T in lengths]], found, "agreement")
        folded = cells.details(f"{len(found)} forms and their errors", "px-fold", table)
        return self.section("Agreement", nodes.paragraph(text=AGREEMENT), *folded)


class Tests(Drawing):
    """``{postx-tests}``: the equations of this page, the tests that hold them, and the residuals."""

    def draw(self):
        self.env.note_dependency(str(self.root / "evidence" / "ledger.json"))
        here = [e for e, page in self.known.items() if page == pages.name(self.env.docname)]
        if not here:
            raise evidence.EvidenceError("postx-tests stands on a page without a numbered equation")
        ledger = evidence.read_ledger(self.root)
        if missing := [e for e in here if e not in ledger]:
            raise evidence.EvidenceError(
                f"{', '.join(missing)} not in evidence/ledger.json: run `make ledger`"
            )
        table = self.equations({e: ledger[e] for e in here})
        table["classes"].append("px-own-tests")  # _ext/cells.py folds it
        return [table]


def resolve_links(app: Sphinx, doctree, docname: str) -> None:
    """Give every PageLink its address, and as words the title of the section or page that it leads to."""
    std = app.env.get_domain("std")
    for node in list(doctree.findall(PageLink)):
        target, label = node["docname"], node["label"]
        words = app.env.titles[target].astext() if target in app.env.titles else target
        uri = app.builder.get_relative_uri(docname, target) if target in app.env.all_docs else ""
        if not uri:
            log.warning("evidence: page %r is not in _toc.yml", target, location=docname)
        if label:
            found = std.labels.get(label) or std.anonlabels.get(label)
            if found is None:
                log.warning(
                    "evidence: %s has no target %r in the built book", target, label, location=docname
                )
                found = (target, label)
            uri += f"#{found[1]}"
            words = found[2] if len(found) == 3 and found[2] else words
        node.replace_self(nodes.reference("", words, refuri=uri, internal=True))


def setup(app: Sphinx) -> None:
    app.add_node(PageLink)
    app.add_directive("postx-evidence", Evidence)
    app.add_directive("postx-tests", Tests)
    app.connect("env-get-outdated", outdated)
    app.connect("doctree-resolved", resolve_links)
