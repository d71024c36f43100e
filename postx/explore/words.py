"""Words of a picture that a phone makes too small: there, and only there, the page writes them larger."""

import math
import re

SIZE = re.compile(r"(<text [^>]*?font-size:)([\d.]+)px")  # mathematics, whose glyphs have places of their own, is left
PHONE = 383  # pixels: how wide a picture is on a phone of 390 (_static/postx.css)
LEAST = 8.5  # pixels: what can be read there


def least(wide: float) -> float:
    """The smallest size of words, in the units of a picture that is `wide`."""
    return math.ceil(LEAST * wide / PHONE * 100) / 100


def readable(svg: str, small: float) -> str:
    """Give words below the size `small` the variable that the page's style sheet sets on phones."""

    def told(match):
        size = float(match[2])
        return match[0] if size >= small else f"{match[1]}max({match[2]}px,var(--px-least,0px))"

    return SIZE.sub(told, svg)
