"""A chapter's first figure, which is its central one: under its title as the picture of a shared link, and small on the
first page, where ``{postx-cards}`` has a card for each of its lines, `name of a page: what it is about`.

Made at build from the notebook's committed output, so a chapter whose figure changes has a new card.
"""

import base64
import io
import posixpath
import textwrap
from importlib.util import find_spec
from pathlib import Path

import nbformat
from docutils import nodes
from PIL import Image, ImageDraw, ImageFont
from sphinx.application import Sphinx

from _ext import pages
from _ext.evidence_page import Drawing, PageLink

SIZE = (1200, 630)  # what the services that show cards ask for
SMALL, COLORS = (360, 216), 16  # all of them together are a tenth of a megabyte
EDGE = 48
FONTS = Path(find_spec("matplotlib").origin).parent / "mpl-data" / "fonts" / "ttf"
INK, SOFT, PAPER = "#1c1c1c", "#5c5c5c", "#ffffff"


def first_figure(path: Path) -> tuple[Image.Image, str] | None:
    """The first figure of a notebook and what its alt text says, or None where no cell shows one."""
    for cell in nbformat.read(path, as_version=4).cells:
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if "image/png" in data:
                picture = Image.open(io.BytesIO(base64.b64decode(data["image/png"]))).convert("RGBA")
                return picture, data.get("text/plain", "")
    return None


def draw(title: str, picture: Image.Image, book: str) -> Image.Image:
    """A card of SIZE: the title, the picture as large as fits, the name of the book."""
    card = Image.new("RGB", SIZE, PAPER)
    pen = ImageDraw.Draw(card)
    lines = textwrap.wrap(title, 36)
    pen.multiline_text((EDGE, EDGE - 12), "\n".join(lines), INK, ImageFont.truetype(FONTS / "DejaVuSans-Bold.ttf", 50))
    pen.text((EDGE, SIZE[1] - EDGE - 12), book, SOFT, ImageFont.truetype(FONTS / "DejaVuSans.ttf", 24))
    top, bottom = EDGE + 64 * len(lines), SIZE[1] - EDGE - 24
    _paste(card, picture, (EDGE, top, SIZE[0] - EDGE, bottom))
    return card.quantize(64)


def small(picture: Image.Image) -> Image.Image:
    """The picture alone, for a card among others."""
    card = Image.new("RGB", SMALL, PAPER)
    _paste(card, picture, (0, 0, *SMALL))
    return card.quantize(COLORS)


def _paste(card, picture, box):
    """The picture in the middle of the box, as large as fits."""
    left, top, right, bottom = box
    scale = min((right - left) / picture.width, (bottom - top) / picture.height)
    fitted = picture.resize((round(picture.width * scale), round(picture.height * scale)), Image.Resampling.LANCZOS)
    card.paste(fitted, ((left + right - fitted.width) // 2, (top + bottom - fitted.height) // 2), fitted)


def write(app: Sphinx, pagename: str, title: str) -> tuple[str, str] | None:
    """Write both cards of a chapter; the large one's address in the book and its alt text, or None without a figure."""
    source = Path(app.env.doc2path(pagename))
    found = first_figure(source) if source.suffix == ".ipynb" else None
    if found is None:
        return None
    name = f"_static/cards/{source.stem}.png"
    made = {name: draw(title, found[0], app.config.html_title), little(source.stem): small(found[0])}
    for where, card in made.items():
        target = Path(app.outdir) / where
        target.parent.mkdir(parents=True, exist_ok=True)
        card.save(target, optimize=True)
    return name, found[1]


def little(stem: str) -> str:
    return f"_static/cards/small/{stem}.png"


class Cards(Drawing):
    has_content = True

    def draw(self):
        shown = nodes.bullet_list("", classes=["px-cards"])
        for line in self.content:
            name, _, about = line.partition(": ")
            docname = pages.docname(name, self.root)
            stem = posixpath.basename(docname)
            source = posixpath.relpath(little(stem), posixpath.dirname(self.env.docname))
            picture = (f'<img src="{source}" alt="" aria-hidden="true" loading="lazy" width="{SMALL[0]}" '
                       f'height="{SMALL[1]}">')  # fmt: skip
            title = nodes.strong("", f"{int(stem[:2])} ", PageLink("", docname=docname, label=""))
            words = nodes.paragraph("", "", title, nodes.Text(" "), *self.text(about))
            shown += nodes.list_item("", nodes.raw("", picture, format="html"), words)
        return [shown]


def setup(app: Sphinx) -> None:
    app.add_directive("postx-cards", Cards)
