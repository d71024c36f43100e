"""The guess before the answer: ``{guess}`` in place of a folded answer asks for a number first.

    ```{guess} 49,152 tokens
    :ask: length at which the curves cross
    At three times the width, so ...
    ```

The page shows a field; what was typed then stands beside the number (_static/guess.js). With ``:axis: x`` (or y) the
question belongs to the figure before it: the guess may be put there by hand, and both marks stand on that axis of the
figure's first axes (_static/aim.js). Without scripts, and in every other format, it is the folded answer and nothing
more. The answer must say the number, so that the two cannot part.
"""

import hashlib
import json
import math
import re
from html import escape, unescape

from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx_design.dropdown import DropdownDirective

from _ext import pages

log = logging.getLogger(__name__)
NUMBER = re.compile(r"(\d[\d,]*(?:\.\d+)?)(%?)(?:\s+(\S.*))?")

BOX = re.compile(r'<div class="px-guess" data-guess="([^"]*)" data-axis="([xy])"')
FIGURE = re.compile(r'<figure class="px-fig"[^>]*>')
AXES = re.compile(r'data-axes="([^"]*)"')


def read(argument: str) -> tuple[float, str, str]:
    """The number, as it is written, and its unit: "49,152 tokens". Raises ValueError for anything else.

    >>> read("49,152 tokens")
    (49152.0, '49,152', 'tokens')
    """
    found = NUMBER.fullmatch(argument.strip())
    if not found or not float(found[1].replace(",", "")):
        raise ValueError(f"{{guess}} needs a number above 0 and its unit, such as 49,152 tokens; got {argument!r}")
    return float(found[1].replace(",", "")), found[1], found[2] or found[3] or ""


def says(text: str, written: str) -> bool:
    """Whether an answer has the number in it, as a number of its own, with or without commas."""
    forms = "|".join(re.escape(form) for form in (written, written.replace(",", ""), written.replace(",", "{,}")))
    return re.search(rf"(?<![\d.,])(?:{forms})(?!\d|[.,]\d)", text) is not None


class Guess(DropdownDirective):
    """A folded answer with a field in front of it."""

    required_arguments, optional_arguments = 1, 0
    option_spec = {"ask": directives.unchanged_required, "axis": lambda which: directives.choice(which, ("x", "y"))}

    def run_with_defaults(self) -> list[nodes.Node]:
        try:
            answer, written, unit = read(self.arguments[0])
        except ValueError as error:
            raise self.error(str(error)) from None
        if not says("\n".join(self.content), written):
            log.warning("guess: the answer does not say %s", written, location=self.get_location())
        ask = self.options.pop("ask", "Your guess")
        page = pages.name(self.env.docname)
        own = hashlib.sha256(f"{page} {ask} {written} {unit}".encode()).hexdigest()[:8]  # a new question, a new guess
        data = json.dumps({"id": own, "answer": answer, "written": written, "unit": unit, "ask": ask})
        self.arguments[0] = "Answer"
        axis = f' data-axis="{which}"' if (which := self.options.pop("axis", None)) else ""
        field = f'<div class="px-guess" data-guess="{escape(data)}"{axis} hidden></div>'
        return [nodes.raw("", field, format="html"), *super().run_with_defaults()]


def unplaced(body: str) -> list[str]:
    """Questions whose number is on no such axis of the figure before them, each as a sentence."""
    found = []
    for box in BOX.finditer(body):
        question, which = json.loads(unescape(box[1])), box[2]
        figure = [*FIGURE.finditer(body, 0, box.start())][-1:]
        told = AXES.search(figure[0][0]) if figure else None
        x, y, area = json.loads(unescape(told[1])) if told else (None, None, None)
        scale = {"x": x, "y": y}[which]
        if scale is None:
            found.append(f"{question['ask']}: the figure before it has no fixed {which} axis")
            continue
        log, a, b = scale
        low, size = (area[0], area[2]) if which == "x" else (area[1], area[3])
        if not low <= a + b * (math.log10(question["answer"]) if log else question["answer"]) <= low + size:
            found.append(f"{question['ask']}: {question['written']} is not on the {which} axis of the figure before it")
    return found


def check(app: Sphinx, pagename: str, templatename: str, context: dict, doctree) -> None:
    """Warn of a question that cannot stand in its picture; a page of committed outputs has no pictures to ask."""
    body = context.get("body", "")
    if FIGURE.search(body):
        for fault in unplaced(body):
            log.warning("guess: %s", fault, location=pagename)


def setup(app: Sphinx) -> None:
    app.add_directive("guess", Guess)
    app.connect("html-page-context", check)
