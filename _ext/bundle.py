"""What holds up the first paint of a page comes in three files and not in twenty: styles, the page's own, scripts.

Each file is a trip to the server, and a style that imports another is two: on a slow phone that was half a second
(benchmarks/page_load.py). A bundle is named after the files in it and says so in its first line, because an unchanged
page is not written again and still has to find today's styles in it.
"""

import posixpath
import re
import zlib
from pathlib import Path

from sphinx.application import Sphinx
from sphinx.builders.html._assets import _CascadingStyleSheet, _JavaScript

from _ext.head import NOW, ONLY, name_of

FOLDER = "_static/bundles"
THEME = ("_static/styles/theme.css", "_static/styles/pydata-sphinx-theme.css")  # templates/layout.html leaves them out
IMPORT = re.compile(r'@import "([^"]+)";')
URL = re.compile(r"""url\((["']?)(?!["']?(?:data:|https?:|#))([^"')]+)\1\)""")


def styles(out: Path, name: str) -> str:
    """A style sheet with those that it imports, its addresses as seen from the bundle's folder."""
    path, folder = out / name, posixpath.dirname(name)
    text = IMPORT.sub(lambda m: styles(out, posixpath.normpath(posixpath.join(folder, m[1]))), path.read_text("utf8"))

    def moved(match):
        return f"url({match[1]}{posixpath.relpath(posixpath.join(folder, match[2]), FOLDER)}{match[1]})"

    return re.sub(r'@charset "[^"]*";|/\*# sourceMappingURL=.*?\*/', "", URL.sub(moved, text))


def write(out: Path, names: list[str], ending: str) -> str:
    """Make the bundle of those of these files that are there, and return its name."""
    name = f"{FOLDER}/{zlib.crc32(' '.join(names).encode()):08x}.{ending}"
    read = styles if ending == "css" else lambda out, name: (out / name).read_text("utf8") + ";"
    text = "\n".join([f"/* {' '.join(names)} */", *(read(out, each) for each in names if (out / each).exists())])
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
        for path in (Path(app.outdir) / FOLDER).glob("*"):
            names = path.read_text("utf8").partition("\n")[0].removeprefix("/* ").removesuffix(" */").split()
            write(Path(app.outdir), names, path.suffix[1:])


def setup(app: Sphinx) -> None:
    app.connect("html-page-context", gather, priority=950)  # behind head.defer
    app.connect("build-finished", renew, priority=900)  # behind those that bring files
