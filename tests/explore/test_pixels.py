"""A heat map of few colors becomes a smaller file with the same pixels."""

import base64
import io

import numpy as np
import pytest
from matplotlib import colormaps
from PIL import Image

from postx.explore import pixels


def address(picture):
    target = io.BytesIO()
    Image.fromarray(picture, "RGBA").save(target, "png")
    return pixels.HEAD + base64.b64encode(target.getvalue()).decode()


def seen(told):
    return np.array(Image.open(io.BytesIO(base64.b64decode(told.removeprefix(pixels.HEAD)))).convert("RGBA"))


@pytest.fixture
def table():
    picture = (colormaps["viridis"](np.random.default_rng(0).random((40, 40))) * 255).astype(np.uint8)
    picture[np.triu_indices(40, 1)] = 255, 0, 0, 0  # a color that nobody sees
    return picture


def test_what_is_seen_stays_and_the_file_shrinks(table):
    table[3, 1, 3] = 100  # half transparent
    old, new = address(table), pixels.small(address(table))
    assert len(new) < 0.7 * len(old)
    assert (seen(new)[..., 3] == table[..., 3]).all()
    shown = table[..., 3] > 0
    assert (seen(new)[shown] == table[shown]).all()


def test_many_colors_and_other_addresses_stay(table):
    table[..., :3] = np.random.default_rng(1).integers(0, 256, (40, 40, 3))
    table[..., 3] = 255
    assert pixels.small(address(table)) == address(table)
    assert pixels.small("https://example.org/a.png") == "https://example.org/a.png"
