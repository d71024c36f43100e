"""``{postx-mixers}``: every mixer of the package as a row, read from its docstring, its `cost` and the agreement file.

Nothing is listed by hand: a mixer that is added to postx/mixers/ gets its rows by being there.
"""

import inspect
import re
from collections import Counter
from pathlib import Path

import nbformat
from docutils import nodes
from sphinx.application import Sphinx

from _ext import evidence, pages
from _ext.evidence_page import BREAK, Drawing

T = 8192
# One layer of width 1,024 for all, by the names that the cost functions use. A filter is as long as the text.
SIZES = {"B": 1, "H": 16, "G": 16, "K": 64, "V": 64, "D": 1024, "N": 16, "nope": 64, "rotary": 32, "R": 256}
DTYPES = ("float64", "float32", "bfloat16", "float16")
READS = "What each mixer computes, in the notation of its file: S or h is the state, a prime transposes."
COSTS = (
    f"One layer of width 1,024 (16 heads of 64; N = 16 where channels keep a state; filters as long as the text) on "
    f"{T:,} tokens: FLOPs of the mixer alone, without its projections, a token; numbers of state for one sequence; and "
    "the largest error of any form against step, by dtype."
)


def bill(mixer):
    """The mixer's own cost at the common sizes; what it does not take is left out."""
    known = inspect.signature(mixer.cost).parameters
    sizes = {key: size for key, size in SIZES.items() if key in known}
    if hasattr(mixer, "GROWS"):
        sizes[mixer.GROWS] = T
    return mixer.cost(T, **sizes)


def formula(mixer) -> list[str]:
    """The equations on the first indented line of the docstring, which wide gaps set apart."""
    lines = [line.strip() for line in mixer.__doc__.splitlines() if line.startswith("    ")]
    if not lines:
        raise evidence.EvidenceError(f"{mixer.__name__}: its docstring has no indented line with the recurrence")
    return [part.rstrip(",") for part in re.split(r"\s{3,}", lines[0])]


def treated(names: list[str], root: Path) -> dict[str, str]:
    """The page of each mixer: the one whose cells call it most often. A mixer that no page calls is left out."""
    called: dict[str, Counter] = {name: Counter() for name in names}
    for page, path in pages.files(root).items():
        if path.suffix == ".ipynb":
            cells = nbformat.read(path, as_version=4).cells
            words = Counter(re.findall(r"\b([a-z]\w*)\.", "\n".join(c.source for c in cells if c.cell_type == "code")))
            for name in names:
                called[name][page] += words[name]
    return {name: counts.most_common(1)[0][0] for name, counts in called.items() if counts.total()}


class Mixers(Drawing):
    def draw(self):
        from postx import mixers  # imports torch: only where the page is drawn
        from postx.style import FAMILY

        self.env.note_dependency(str(self.root / "evidence" / "agreement.json"))
        worst: dict[tuple, float] = {}
        for row in evidence.agreement(self.root) or []:
            key = row["mixer"], row["dtype"]
            worst[key] = max(worst.get(key, 0.0), float(row["error"]))
        reads, costs = [], []
        order, page_of = list(FAMILY), treated(mixers.names(), self.root)
        for name in sorted(mixers.names(), key=lambda name: (order.index(mixers.load(name).FAMILY), name)):
            mixer = mixers.load(name)
            missing = [dtype for dtype in DTYPES if (name, dtype) not in worst]
            if missing:
                raise evidence.EvidenceError(
                    f"{name} has no agreement in {', '.join(missing)}: run `make ledger`"
                )
            words = [nodes.Text(mixer.__doc__.splitlines()[0])]
            if name in page_of:
                words += [BREAK.deepcopy(), *self.link(page_of[name])]
            mark = nodes.inline(text="▮ ", classes=["px-lane", f"px-lane-{mixer.FAMILY}"])
            forms = ", ".join(["step", *mixers.forms(mixer)])
            reads.append([[mark, nodes.strong(text=name)], words, self.lines(formula(mixer)), forms])
            cost = bill(mixer)
            errors = [evidence.decade(worst[name, dtype]) for dtype in DTYPES]
            kept = f"{cost.state_floats:,.0f}" + ("" if cost.bounded else " (grows with the text)")
            costs.append([[nodes.strong(text=name)], f"{cost.flops / T:,.0f}", kept, *errors])
        return [
            self.section("What they compute", nodes.paragraph(text=READS),
                         self.table(["Mixer", "In words", "Recurrence", "Forms"], reads, "mixers")),
            self.section("What they cost, and how well their forms agree", nodes.paragraph(text=COSTS),
                         self.table(["Mixer", "FLOPs a token", "State", *DTYPES], costs, "bills")),
        ]  # fmt: skip


def setup(app: Sphinx) -> None:
    app.add_directive("postx-mixers", Mixers)
