"""``{postx-mixers}``: every mixer of the package as a row, read from its docstring, its `cost` and the agreement file.

Nothing is listed by hand: a mixer that is added to postx/mixers/ gets its rows by being there.
"""

import inspect
import math
import re
from collections import Counter
from pathlib import Path

import nbformat
from docutils import nodes
from sphinx.application import Sphinx

from _ext import evidence, pages, recurrences
from _ext.evidence_page import BREAK, Drawing

T = 8192
# One layer of width 1,024 for all, by the names that the cost functions use. A filter is as long as the text.
SIZES = {"B": 1, "H": 16, "G": 16, "K": 64, "V": 64, "D": 1024, "N": 16, "nope": 64, "rotary": 32, "R": 256}
# What prose calls a mixer: a word with two capitals (LFM2, mLSTM, RWKV-6), or its module.
NAME = re.compile(r"\b(?:(?<=mixers\.)[a-z]\w*|\w*[A-Z]\w*[A-Z]\w*(?:-\d\b(?!\.\d))?)")
DTYPES = ("float64", "float32", "bfloat16", "float16")
READS = (
    "What each mixer computes, in the letters of its file: S, C or h is the state, an arrow says what it becomes, and "
    "a word is what the file calls it."
)
COSTS = (
    f"One layer of width 1,024 (16 heads of 64; N = 16 where channels keep a state; filters as long as the text) on "
    f"{T:,} tokens: FLOPs of the mixer alone, without its projections, a token; numbers of state for one sequence; and "
    "the largest error of any form against step, by dtype. The bar of a state is as long as its size has digits."
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
    """The page of each mixer: the one whose cells call it most often, or else that which says its name most often.

    A mixer's names are that of its file and those in the first line of its docstring: xLSTM, RWKV-6. One that no page
    has is left out.
    """
    calls: dict[str, Counter] = {name: Counter() for name in names}
    says: dict[str, Counter] = {name: Counter() for name in names}
    for page, path in pages.files(root).items():
        if path.suffix == ".ipynb":
            cells = nbformat.read(path, as_version=4).cells
            code, prose = ("\n".join(c.source for c in cells if c.cell_type == kind) for kind in ("code", "markdown"))
            called, said = Counter(re.findall(r"\b([a-z]\w*)\.", code)), Counter(NAME.findall(prose))
            for name in names:
                calls[name][page] += called[name]
                says[name][page] += sum(said[word] for word in own_names(name))
    best = {name: (calls[name] if calls[name].total() else says[name]).most_common(1)[0] for name in names}
    return {name: page for name, (page, count) in best.items() if count}


def own_names(name: str) -> set[str]:
    """What prose may call a mixer."""
    from postx import mixers

    return {name, name.upper(), *NAME.findall(mixers.load(name).__doc__.splitlines()[0])}


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
            for part in formula(mixer):
                words += [BREAK.deepcopy(), *(nodes.math("", piece) for piece in recurrences.pieces(part))]
            made = nodes.inline(text=forms, classes=["px-made-by"])
            reads.append([[mark, nodes.strong(text=name), BREAK.deepcopy(), made], words])
            cost = bill(mixer)
            errors = [evidence.decade(worst[name, dtype]) for dtype in DTYPES]
            kept = f"{cost.state_floats:,.0f}" + ("" if cost.bounded else " (grows with the text)")
            kind, size = f"px-lane px-lane-{mixer.FAMILY} px-size", f"--digits:{math.log10(cost.state_floats):.1f}"
            bar = f'<br><span class="{kind}" style="{size}"></span>'
            state = [nodes.Text(kept), nodes.raw("", bar, format="html")]
            costs.append([[nodes.strong(text=name)], f"{cost.flops / T:,.0f}", state, *errors])
        return [
            self.section("What they compute", nodes.paragraph(text=READS),
                         self.table(["Mixer, and its forms", "In words, and its recurrence"], reads, "mixers")),
            self.section("What they cost, and how well their forms agree", nodes.paragraph(text=COSTS),
                         self.table(["Mixer", "FLOPs a token", "State", *DTYPES], costs, "bills")),
        ]  # fmt: skip


def setup(app: Sphinx) -> None:
    app.add_directive("postx-mixers", Mixers)
