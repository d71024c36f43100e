"""The guess before the answer: ``{guess}`` in place of a folded answer asks for a number first.

    ```{guess} 49,152 tokens
    :ask: length at which the curves cross
    At three times the width, so ...
    ```

The page shows a field; what was typed then stands beside the number (_static/guess.js). Without scripts, and in every
other format, it is the folded answer and nothing more. The answer must say the number, so that the two cannot part.
"""

import hashlib
import json
import re
from html import escape

from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx_design.dropdown import DropdownDirective

from _ext import pages

log = logging.getLogger(__name__)
NUMBER = re.compile(r"(\d[\d,]*(?:\.\d+)?)(%?)(?:\s+(\S.*))?")


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
    option_spec = {"ask": directives.unchanged_required}

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
        field = f'<div class="px-guess" data-guess="{escape(data)}" hidden></div>'
        return [nodes.raw("", field, format="html"), *super().run_with_defaults()]


def setup(app: Sphinx) -> None:
    app.add_directive("guess", Guess)
