"""The theme's icons that this book shows, as a font of their own: 5 kB before a page instead of 150.

The theme's font stays where it is. The rules of CSS let ours stand before it for the characters that it names, so a
browser fetches the large one only where a page shows an icon that is not in the list.
"""

import re
from pathlib import Path

import pydata_sphinx_theme
from fontTools import subset
from sphinx.application import Sphinx

THEME = Path(pydata_sphinx_theme.__file__).parent / "theme" / "pydata_sphinx_theme" / "static"
NAMES = ("angle-left", "angle-right", "arrow-up", "bars", "circle-half-stroke", "code", "download", "file", "file-pdf",
         "lightbulb", "list", "magnifying-glass", "moon", "rocket", "sun")  # fmt: skip
RULE = """@font-face {{
  font-family: "Font Awesome 6 Free";
  font-style: normal;
  font-weight: 900;
  font-display: block;
  src: url("icons.woff") format("woff");
  unicode-range: {range};
}}
"""


def points(css: str) -> set[int]:
    """The characters of NAMES, and those that the theme's own rules (--pst-icon-...) show."""
    known = {}
    for names, code in re.findall(r'((?:\.fa-[\w-]+:before,?)+){content:"\\([0-9a-f]+)"}', css):
        known |= dict.fromkeys(re.findall(r"\.fa-([\w-]+)", names), int(code, 16))
    if missing := [name for name in NAMES if name not in known]:
        raise ValueError(f"the theme's icons have no {', '.join(missing)}")
    own = re.findall('--pst-icon-[a-z-]+:"([\\ue000-\\uf8ff])"', css)
    return {known[name] for name in NAMES} | set(map(ord, own))


def write(app: Sphinx) -> None:
    """Write icons.woff and icons.css beside the other static files."""
    if app.builder.format != "html":
        return
    wanted = points((THEME / "styles" / "pydata-sphinx-theme.css").read_text(encoding="utf8"))
    options = subset.Options(flavor="woff", layout_features=[], notdef_outline=True)
    font = subset.load_font(str(THEME / "vendor" / "fontawesome" / "webfonts" / "fa-solid-900.ttf"), options)
    cut = subset.Subsetter(options)
    cut.populate(unicodes=wanted)
    cut.subset(font)
    out = Path(app.outdir) / "_static"
    out.mkdir(parents=True, exist_ok=True)
    subset.save_font(font, str(out / "icons.woff"), options)
    there = sorted(set(font.getBestCmap()) & wanted)  # of brands, some are in another font
    (out / "icons.css").write_text(RULE.format(range=", ".join(f"U+{point:X}" for point in there)), encoding="utf8")


def setup(app: Sphinx) -> None:
    app.add_css_file("icons.css", priority=900)  # behind the theme's
    app.connect("builder-inited", write)
