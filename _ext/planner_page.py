"""``{postx-planner}``: the planner, and what a page without scripts shows of it: its still picture and the facts."""

from docutils import nodes
from sphinx.application import Sphinx

from _ext.evidence_page import Drawing

PUBLISHED = "What is published of each model. “Not published”: no figure was found by {checked}."
SERVED = (
    "The name under which a server lists the architecture, on the day that the list was read. None of it was run here."
)
DEVICES = "Published ceilings, and the low end of what an hour costs."


class Planner(Drawing):
    def draw(self):
        from postx.planner import facts, page, rows  # imports torch: only where the page is drawn
        from postx.planner.words import money, say, three, whole

        told, names = facts.table(), rows.catalogue()
        self.env.note_dependency(str(facts.FILE))
        figure = page.show()._repr_mimebundle_()[0]["text/html"]
        published, served = [], []
        for name in names:
            length, quality = facts.context(name), facts.quality(name)
            lines = [self.sourced(facts.figure(row), row) for row in quality] or [nodes.Text(facts.NONE)]
            kept = self.sourced(f"{whole(length['tokens'])} tokens", length) if length else nodes.Text(facts.UNKNOWN)
            published.append([[nodes.strong(text=name)], [kept], self.broken(lines)])
        for row in told["served"]:
            served.append([", ".join(row["models"]), *([nodes.literal(text=name)] for name in row["names"])])
        devices = [
            [[nodes.strong(text=row["name"])], say(row["memory"], "bytes"), f"{three(row['bandwidth'] / 1e9)} GB/s",
             f"{three(row['flops'] / 1e12)} TFLOP/s", money(row["price"]) if row["price"] else "-",
             f"{row['source']}, {row['date']}"] for row in told["device"]
        ]  # fmt: skip
        servers = [f"{server['name']} ({server['source']}, {server['date']})" for server in told["server"]]
        return [
            nodes.raw("", figure, format="html"),
            self.section("Quality and length", nodes.paragraph(text=PUBLISHED.format(checked=told["checked"])),
                         self.table(["Model", "Longest text", "Figures"], published, "published")),
            self.section("What serves it", nodes.paragraph(text=f"{SERVED} Read: {'; '.join(servers)}."),
                         self.table(["Models", *(server["name"] for server in told["server"])], served, "served")),
            self.section("Devices", nodes.paragraph(text=DEVICES),
                         self.table(["Device", "Memory", "Bandwidth", "Arithmetic", "$ an hour", "Source"], devices,
                                    "devices")),
        ]  # fmt: skip

    @staticmethod
    def sourced(words, row):
        return nodes.inline(text=f"{words} ({row['source']}, {row['date']})")

    @staticmethod
    def broken(lines):
        return [node for line in lines for node in (line, nodes.raw("", "<br>", format="html"))][:-1]

    def section(self, title: str, *body: nodes.Node) -> nodes.section:
        return nodes.section("", nodes.title(text=title), *body, ids=[nodes.make_id(f"planner-{title}")])


def setup(app: Sphinx) -> None:
    app.add_directive("postx-planner", Planner)
