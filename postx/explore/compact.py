"""SVG as few bytes and few elements: what matplotlib writes, in the page's colors and font, and in short numbers."""

import copy
import hashlib
import itertools
import re
from xml.etree import ElementTree
from xml.sax.saxutils import escape, quoteattr

from postx.explore import pixels
from postx.style import SHADES

XLINK = "{http://www.w3.org/1999/xlink}"
FEW = 8  # markers in a row that are elements of their own
NUMBER = re.compile(r"-?\d*\.?\d+(?:e-?\d+)?")


def dots(tree):
    """Many equal markers in a row as one line that is not drawn but has them at its corners.

    A browser makes a tree of elements for every `use`: a cloud of dots is what a drag waits for (benchmarks/drag.py).
    """
    shapes = {item.get("id"): item for defs in tree.iter() if tag_of(defs) == "defs" for item in defs}
    for parent in list(tree.iter()):
        kind = lambda e: (tag_of(e), e.get(XLINK + "href"), e.get("style"))  # noqa: E731
        for (tag, target, style), run in [(k, list(run)) for k, run in itertools.groupby(list(parent), kind)]:
            if tag != "use" or len(run) < FEW:
                continue
            name = target[1:] + hashlib.sha256(style.encode()).hexdigest()[:6]
            space = run[0].tag.removesuffix("use")
            marker = ElementTree.Element(f"{space}marker", id=name, overflow="visible", markerUnits="userSpaceOnUse")
            shape = copy.deepcopy(shapes[target[1:]])
            del shape.attrib["id"]
            ElementTree.SubElement(marker, f"{space}g", style=style).append(shape)
            corners = " ".join(f"{_digits(float(e.get('x')), 2)} {_digits(float(e.get('y')), 2)}" for e in run)
            line = ElementTree.Element(f"{space}polyline", points=corners, style=f"fill:none;marker:url(#{name})")
            at = list(parent).index(run[0])
            for e in run:
                parent.remove(e)
            parent.insert(at, line)
            defs = ElementTree.Element(f"{space}defs")
            defs.append(marker)
            parent.insert(at, defs)


def tag_of(element):
    """Its name without the namespace."""
    return element.tag.rpartition("}")[2]


def write(element, names, slots=None):
    """An element as compact SVG: colors and font of the page, short numbers, only the names that are used."""
    tag = tag_of(element)
    if tag == "metadata":
        return ""
    own = element.get("id", "")
    if slots is not None and own in slots:
        return slots[own]
    inside = "".join(write(child, names, slots) for child in element)
    attributes = {}
    for key, value in element.attrib.items():
        if key == "id":
            continue
        if key == XLINK + "href":
            key = "href"
            value = "#" + _known(names, value[1:], tag) if value.startswith("#") else pixels.small(value)
        elif key == "style":
            value = _style(value, any(tag_of(e) in ("text", "tspan") for e in (element, *element)))
        elif key == "d":
            value = _path(value)
        elif key in ("x", "y", "width", "height") or value.startswith(("translate(", "rotate(")):
            value = NUMBER.sub(lambda m: _digits(float(m[0]), 2), value)
            value = re.sub(r" ?rotate\(0[^)]*\)", "", value)
        for old in re.findall(r"url\(#([^)]+)\)", value):
            value = value.replace(old, _known(names, old, tag))
        if value:
            attributes[key.rpartition("}")[2]] = value
    if tag == "g" and (not inside or not attributes):
        return inside
    text = escape(element.text) if tag in ("text", "tspan") and element.text else ""
    head = tag + "".join(f" {key}={quoteattr(value)}" for key, value in attributes.items())
    return f"<{head}>{text}{inside}</{tag}>" if text or inside else f"<{head}/>"


def _known(names, old, tag):
    if old in names:
        return names[old]
    raise ValueError(f"fig: a <{tag}> of it refers to {old!r}, which no page has; try set_rasterized(True)")


def _style(value, is_text):
    rules = [rule.partition(":")[::2] for rule in value.split(";") if rule.strip()]
    kept = []
    for key, setting in ((key.strip(), setting.strip()) for key, setting in rules):
        if key == "font-family":  # the page's own font, but keep code as code
            if "monospace" in setting:
                kept.append("font-family:monospace")
            continue
        setting = {"#000000": "currentColor", "#ffffff": "var(--px-paper,#fff)"}.get(setting, setting)
        if is_text and setting in SHADES:
            setting = f"var({SHADES[setting]},{setting})"
        kept.append(f"{key}:{setting}")
    return ";".join(kept)


def _digits(number, places):
    text = f"{number:.{places}f}".rstrip("0").rstrip(".") if places else str(round(number))
    return {"-0": "0", "": "0"}.get(text, text).replace("0.", ".", 1) if abs(number) < 1 else text


def _path(data):
    """Lines as steps of a tenth of a point, which compress well; curves and small markers only rounded."""
    tokens = data.split()
    if set(re.findall("[A-Za-z]", data)) - set("MLz") or len(tokens) < 24:
        rounded = NUMBER.sub(lambda m: _digits(float(m[0]), 2), " ".join(tokens))
        return re.sub(r" ?([A-Za-z]) ?", r"\1", rounded)
    out, at, i = [], (0, 0), 0
    while i < len(tokens):
        if tokens[i] == "z":
            out.append("z")
            i += 1
            continue
        to = round(float(tokens[i + 1]) * 10), round(float(tokens[i + 2]) * 10)
        if tokens[i] == "M":
            out.append(f"M{_digits(to[0] / 10, 1)} {_digits(to[1] / 10, 1)}")
        elif to != at:
            step = _digits((to[0] - at[0]) / 10, 1), _digits((to[1] - at[1]) / 10, 1)
            out.append("l" + step[0] + ("" if step[1].startswith("-") else " ") + step[1])
        at, i = to, i + 3
    return "".join(out)
