"""The head of every page: what a shared link shows, and scripts that do not hold up the text.

The theme's own head is trimmed in templates/layout.html.
"""

import re
from html import escape
from urllib.parse import urljoin

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.builders.html._assets import _JavaScript

from _ext import cards

# What the figures call while the page is still being read, in the order in which one needs the other.
NOW = ("documentation_options.js", "postx.js", "handles.js", "live.js")
# Files that only those pages load whose body has this in it.
ONLY = {"live.js": "postx?.live", "guess.js": "px-guess", "guess.css": "px-guess", "aim.js": ' data-axis="'}
ONLY |= {"terms.js": "px-terms", "terms.css": "px-terms"}
SEARCH = "search.js"
PAGE_ALT = "A page of the book: a slider moves, and the bill of attention with it"
WIDGETS = re.compile(r'<figure class="px-fig px-widget" data-widget="([a-z_]+)"')


def describe(app: Sphinx, pagename: str, templatename: str, context: dict, doctree) -> None:
    """Title, first paragraph and a picture for whoever shares a link to the page."""
    if doctree is None:
        return
    first = next((p for p in doctree.findall(nodes.paragraph) if len(p.astext()) > 40), None)
    words = " ".join(first.astext().split())[:200] if first else app.config.html_title
    title = next((t.astext() for t in doctree.findall(nodes.title)), pagename)
    card, alt = cards.write(app, pagename, title) or ("_static/page.png", PAGE_ALT)
    picture = context["pathto"](card, True)
    if app.config.html_baseurl:  # a crawler wants the whole address; without one it may try the page's own
        picture = urljoin(app.config.html_baseurl, card)
    tags = {
        "og:type": "article",
        "og:site_name": app.config.html_title,
        "og:title": title,
        "og:description": words,
        "og:image": picture,
        "og:image:alt": " ".join(alt.split())[:400],
    }
    if app.config.html_baseurl:
        tags["og:url"] = urljoin(app.config.html_baseurl, f"{pagename}.html")
    meta = [f'<meta property="{k}" content="{escape(v, quote=True)}" />' for k, v in tags.items()]
    meta += [f'<meta name="description" content="{escape(words, quote=True)}" />']
    meta += ['<meta name="twitter:card" content="summary_large_image" />']
    own = re.sub(r'<meta name="viewport"[^>]*>', "", context.get("metatags", ""))  # Sphinx writes it a second time
    context["metatags"] = own + "\n".join(meta)


def defer(app: Sphinx, pagename: str, templatename: str, context: dict, doctree) -> None:
    """Scripts run in their order behind the text; on the page of the search at once, as its own are not deferred.

    Those of a widget, and its styles, are there on its pages only.
    """
    on_search = pagename == "search"
    body = context.get("body", "")
    used = {*WIDGETS.findall(body), *(name for name, mark in ONLY.items() if mark in body)}
    context["css_files"] = [file for file in context.get("css_files", []) if _wanted(file, used)]
    kept = []
    for script in context.get("script_files", []):
        name = name_of(script)
        if (name == SEARCH and not on_search) or not _wanted(script, used):
            continue
        if name and name not in NOW and not on_search and "async" not in script.attributes:
            # A copy: the same object stands in the list of every page.
            attributes = {"priority": script.priority, **script.attributes, "defer": "defer"}
            script = _JavaScript(script.filename, **attributes)
        kept.append(script)
    place = {name: i for i, name in enumerate(NOW)}
    context["script_files"] = sorted(kept, key=lambda script: place.get(name_of(script), -1))


def name_of(file) -> str:
    return str(file.filename or "").split("?")[0].rpartition("/")[2]


def _wanted(file, used: set) -> bool:
    """A widget NAME has widgets/NAME.js and NAME.css, and perhaps NAME-part.js, NAME.part.js or a folder NAME."""
    if of := re.search(r"(?:^|/)widgets/([^/.-]+)", str(file.filename or "")):
        return of[1] in used
    name = name_of(file)
    return name not in ONLY or name in used


def setup(app: Sphinx) -> None:
    app.connect("html-page-context", describe)
    app.connect("html-page-context", defer, priority=900)  # behind those that add scripts
