"""What holds up the first paint of a page comes in three files and not in twenty: styles, the page's own, scripts.

Each file is a trip to the server, and a style that imports another is two. Of the theme's styles two thirds are for
what no page here has, 1,900 icons for one: those stay out, since a slow phone paints nothing before they are read
(benchmarks/page_load.py). A bundle is named after the files in it and says so in its first line, because an unchanged
page is not written again and still has to find today's styles in it.
"""

import posixpath
import re
import zlib
from pathlib import Path

import tinycss2
from sphinx.application import Sphinx
from sphinx.builders.html._assets import _CascadingStyleSheet, _JavaScript

from _ext.head import NOW, ONLY, name_of

FOLDER = "_static/bundles"
THEME = ("_static/styles/theme.css", "_static/styles/pydata-sphinx-theme.css")  # templates/layout.html leaves them out
IMPORT = re.compile(r'@import "([^"]+)";')
CLASS = re.compile(r' class="([^"]*)"')
WORD = re.compile(r"[A-Za-z_][\w-]*")
# A script puts together the name of a class from its beginning, in quotes, and a rest. No script here does so with an
# icon's name: icons are in the pages (icons.py).
BEGINNING = re.compile(r"""["'`\s]((?!fa-)[a-z][\w-]*-)(?=["'`$])""")
URL = re.compile(r"""url\((["']?)(?!["']?(?:data:|https?:|#))([^"')]+)\1\)""")


def styles(out: Path, name: str) -> str:
    """A style sheet with those that it imports, its addresses as seen from the bundle's folder."""
    path, folder = out / name, posixpath.dirname(name)
    text = IMPORT.sub(lambda m: styles(out, posixpath.normpath(posixpath.join(folder, m[1]))), path.read_text("utf8"))

    def moved(match):
        return f"url({match[1]}{posixpath.relpath(posixpath.join(folder, match[2]), FOLDER)}{match[1]})"

    return re.sub(r'@charset "[^"]*";|/\*# sourceMappingURL=.*?\*/', "", URL.sub(moved, text))


def names_of(out: Path) -> tuple[set[str], tuple[str, ...]]:
    """Every class of a page and every word of a script; and with what the classes begin that scripts put together."""
    pages = (path.read_text("utf8") for path in out.rglob("*.html"))
    names = {name for page in pages for found in CLASS.findall(page) for name in found.split()}
    scripts = [path for path in (out / "_static").rglob("*.js") if "mathjax" not in path.parts]
    scripts = [path.read_text("utf8") for path in scripts if path.name != "fontawesome.js"]  # no page loads it
    return names.union(*map(WORD.findall, scripts)), tuple({b for text in scripts for b in BEGINNING.findall(text)})


def used(rules: list, known: set[str], beginnings: tuple[str, ...]) -> str:
    """These rules without those that only meet elements of a class that there is not."""
    kept = []
    for rule in rules:
        if rule.type == "qualified-rule":
            selectors = [[]]
            for token in rule.prelude:
                if token == ",":
                    selectors.append([])
                else:
                    selectors[-1].append(token)
            selectors = [s for s in selectors if all(n in known or n.startswith(beginnings) for n in classes(s))]
            if selectors:
                head = ",".join(tinycss2.serialize(s).strip() for s in selectors)
                kept.append(f"{head}{{{tinycss2.serialize(rule.content).strip()}}}")
        elif rule.type == "at-rule" and rule.at_keyword in ("media", "supports") and rule.content is not None:
            inside = used(tinycss2.parse_rule_list(rule.content, True, True), known, beginnings)
            if inside:
                kept.append(f"@{rule.at_keyword}{tinycss2.serialize(rule.prelude)}{{{inside}}}")
        else:
            kept.append(rule.serialize())
    return "\n".join(kept)


def classes(selector: list) -> list[str]:
    """The classes that an element needs for a selector; what stands in :not() or :is() is not asked for."""
    pairs = zip(selector, selector[1:], strict=False)
    return [token.value for dot, token in pairs if dot == "." and token.type == "ident"]


def write(out: Path, names: list[str], ending: str, known=None) -> str:
    """Make the bundle of those of these files that are there, without what is not `known`, and return its name."""
    name = f"{FOLDER}/{zlib.crc32(' '.join(names).encode()):08x}.{ending}"
    read = styles if ending == "css" else lambda out, name: (out / name).read_text("utf8") + ";"
    text = "\n".join(read(out, each) for each in names if (out / each).exists())
    if known and ending == "css":
        text = used(tinycss2.parse_stylesheet(text, True, True), *known)
    text = f"/* {' '.join(names)} */\n{text}"
    path = out / name
    path.parent.mkdir(exist_ok=True)
    if not path.exists() or path.read_text("utf8") != text:
        path.write_text(text, encoding="utf8")
    return name


def gather(app: Sphinx, pagename: str, templatename: str, context: dict, doctree) -> None:
    """Replace a page's styles, and those of its scripts that run before the text is read, by bundles.

    What every page has is a bundle of its own: whoever turns to the next page has it already.
    """
    if app.builder.format != "html":
        return
    out = Path(app.outdir)
    names = [str(file.filename) for file in context["css_files"]]
    own = [name for name in names if "/widgets/" in name or posixpath.basename(name) in ONLY]
    every = [*THEME, *(name for name in names if name not in own)]
    context["css_files"] = [_CascadingStyleSheet(write(out, part, "css")) for part in (every, own) if part]
    now = [script for script in context["script_files"] if name_of(script) in NOW]
    if now:
        first = min(script.priority for script in now)  # what stands in the page after them uses them
        one = _JavaScript(write(out, [str(script.filename) for script in now], "js"), priority=first)
        context["script_files"] = [one, *(script for script in context["script_files"] if script not in now)]


def renew(app: Sphinx, exception) -> None:
    """Write every bundle again: for the pages that were not, and with the styles that myst-nb brings last of all."""
    if exception is None and app.builder.format == "html":
        known = names_of(Path(app.outdir))
        for path in (Path(app.outdir) / FOLDER).glob("*"):
            names = path.read_text("utf8").partition("\n")[0].removeprefix("/* ").removesuffix(" */").split()
            write(Path(app.outdir), names, path.suffix[1:], known)


def setup(app: Sphinx) -> None:
    app.connect("html-page-context", gather, priority=950)  # behind head.defer
    app.connect("build-finished", renew, priority=900)  # behind those that bring files
