"""A figure of a built page: the picture, native sliders, and the frames that _static/postx.js swaps in."""

import json
import re
from html import escape


def figure(frames, *, alts, caption=None, sliders=None, readouts=(), pages=None):
    """The HTML of one figure. `alts` and `readouts` hold one text for each frame, or one for all of them.

    `pages` names the addresses that its artists link to (`links`).
    """
    sliders = sliders or {}
    start = 0
    for slider in sliders.values():
        start = start * len(slider.values) + slider.index(slider.start, "start")
    names = " and ".join(slider.name(key) for key, slider in sliders.items())
    name = f' aria-label="{escape("Figure with sliders for " + names)}"' if sliders else ""
    parts = [f'<figure class="px-fig" role="group"{name}>']
    picture = frames.svg.replace("\0alt\0", escape(alts[start] if len(alts) > 1 else alts[0]))
    parts.append(links(picture, pages) if pages else picture)
    if sliders:
        parts.append('<div class="px-controls">')
        parts += [_control(slider.name(key), key, slider) for key, slider in sliders.items()]
        parts.append("</div>")
    if any(readouts):
        parts.append(f'<output class="px-readout" aria-live="polite">{escape(readouts[start])}</output>')
    if caption:
        parts.append(f"<figcaption>{escape(caption)}</figcaption>")
    if sliders:
        parts.append(f'<script type="application/json">{_data(frames, alts, sliders, readouts)}</script>')
        # Alive as soon as it is parsed; what the page loads further on may take seconds.
        parts.append("<script>window.postx?.(document.currentScript.parentElement)</script>")
    return "".join([*parts, "</figure>"])


def links(picture, pages):
    """The picture with its links for the keyboard: the first to each address, by its name in `pages` {address: name}.

    Raises ValueError where the addresses in the picture are not those of `pages`.
    """
    met = set()

    def told(link):
        stop = 'tabindex="-1"' if link[1] in met else f'aria-label="{escape(pages.get(link[1], ""))}"'
        met.add(link[1])
        return f'<a href="{link[1]}" {stop}>'

    picture = re.sub(r'<a href="([^"]*)"[^>]*>', told, picture)  # in the same window
    if met != set(pages):
        raise ValueError(f"pages: only one of pages and picture has {', '.join(sorted(met ^ set(pages)))}")
    return picture.replace('role="img"', 'role="group"', 1)  # what is inside an img is no link


def _control(name, key, slider):
    # Disabled until the script is there to answer: without it the reader sees the value, not a dead slider.
    now, place = slider.text(slider.start), slider.index(slider.start, "start")
    width = max(len(slider.text(value)) for value in slider.values)
    return (
        f'<label><span class="px-name">{escape(name)}</span>'
        f'<input type="range" name="{escape(key)}" min="0" max="{len(slider.values) - 1}" step="1" '
        f'value="{place}" aria-label="{escape(name)}" aria-valuetext="{escape(now)}" disabled>'
        f'<span class="px-value" style="min-width:{width}ch">{escape(now)}</span></label>'
    )


def _data(frames, alts, sliders, readouts):
    def once(texts):
        return texts[:1] if len(set(texts)) == 1 else list(texts)

    data = {
        "texts": [[slider.text(value) for value in slider.values] for slider in sliders.values()],
        "alts": once(alts),
        "readouts": once(readouts) if any(readouts) else [],
        "slots": [{"slot": slot, "looks": looks, "picks": picks} for slot, looks, picks in frames.changing],
    }
    return json_of(data)


def json_of(data):
    """Data as a script element may hold it: one ends at the first "</script", so no "<" leaves here."""
    told = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return told.replace("<", "\\u003c")
