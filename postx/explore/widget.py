"""A tool of the page's own: alive on a built page, where its script runs; its still picture everywhere else.

    widget("memory", {"K": 8}, alt="A table of 64 numbers that holds two pictures.", still=fig)

The script is _static/widgets/NAME.js, with _static/widgets/NAME.css beside it if it needs one, and NAME-PART.js, which
run before it; they are loaded on the pages that use them and on no other (_ext/head.py). The script says what it makes
of the figure and the data:

    postx.widget("memory", (figure, data) => { ... });
"""

import re
from html import escape

from postx import explore
from postx.explore import html


def widget(name, data=None, *, alt, still, caption=None):
    """Show the page's tool `name`, fed with `data` (whatever JSON can say), over a still picture of it.

    `alt` says what the still picture shows; `still` is a finished matplotlib Figure. Raises ValueError for a name
    that is no file name and for data that JSON has no word for (NaN, infinity), TypeError for what it cannot say.
    """
    if not re.fullmatch(r"[a-z_]+", name):
        raise ValueError(f"name must be that of a script in _static/widgets: small letters and _, got {name!r}")
    return Widget(name, html.json_of(data), still, alt, caption)


class Widget(explore.Picture):
    """A still picture whose built page carries a name and data for a script."""

    def __init__(self, name, told, still, alt, caption):
        super().__init__(still, alt, caption)
        self.name, self._told = name, told
        self._page = self._build_page() if explore._static() else None

    def _build_page(self):
        figure = super()._build_page()
        start = f'<figure class="px-fig px-widget" data-widget="{escape(self.name)}"'
        told = f'<script type="application/json">{self._told}</script></figure>'
        return figure.replace('<figure class="px-fig"', start, 1).removesuffix("</figure>") + told
