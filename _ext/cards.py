"""The picture that a shared link to a chapter shows: its title over its first figure, which is its central one.

Made at build from the notebook's committed output, so a chapter whose figure changes has a new card.
"""

import base64
import io
import textwrap
from importlib.util import find_spec
from pathlib import Path

import nbformat
from PIL import Image, ImageDraw, ImageFont
from sphinx.application import Sphinx

SIZE = (1200, 630)  # what the services that show cards ask for
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
    scale = min((SIZE[0] - 2 * EDGE) / picture.width, (bottom - top) / picture.height)
    fitted = picture.resize((round(picture.width * scale), round(picture.height * scale)), Image.Resampling.LANCZOS)
    place = ((SIZE[0] - fitted.width) // 2, top + (bottom - top - fitted.height) // 2)
    card.paste(fitted, place, fitted)
    return card.quantize(64)


def write(app: Sphinx, pagename: str, title: str) -> tuple[str, str] | None:
    """Write the card of a chapter; its address in the book and its alt text, or None where there is no figure."""
    source = Path(app.env.doc2path(pagename))
    found = first_figure(source) if source.suffix == ".ipynb" else None
    if found is None:
        return None
    name = f"_static/cards/{source.stem}.png"
    target = Path(app.outdir) / name
    target.parent.mkdir(parents=True, exist_ok=True)
    draw(title, found[0], app.config.html_title).save(target, optimize=True)
    return name, found[1]
