"""Heat maps as small files: a picture of few colors is stored with a palette, pixel for pixel the same."""

import base64
import io

import numpy as np
from PIL import Image

HEAD = "data:image/png;base64,"
MOST = 256  # colors that a palette holds; a color map of matplotlib has as many


def small(address: str) -> str:
    """A PNG in a data address with a palette, where it has few colors and gets smaller; any other address as it is."""
    address = "".join(address.split())
    if not address.startswith(HEAD):
        return address
    pixels = np.array(Image.open(io.BytesIO(base64.b64decode(address.removeprefix(HEAD)))).convert("RGBA"))
    pixels[pixels[..., 3] == 0] = 0  # what cannot be seen needs no color
    colors, places = np.unique(pixels.reshape(-1, 4), axis=0, return_inverse=True)
    if len(colors) > MOST:
        return address
    picture = Image.fromarray(places.reshape(pixels.shape[:2]).astype(np.uint8), "P")
    picture.putpalette(colors[:, :3].tobytes())
    target = io.BytesIO()
    picture.save(target, "png", optimize=True, transparency=colors[:, 3].tobytes())
    return min(address, HEAD + base64.b64encode(target.getvalue()).decode(), key=len)
