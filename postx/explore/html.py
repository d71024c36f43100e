"""A figure of a built page: the picture, native controls, and what the page's scripts move it with."""

import hashlib
import json
import re
from html import escape


def figure(frames, *, alts, caption=None, sliders=None, readouts=(), drag=None, ghost=False, pages=None):
    """The HTML of one figure. `alts` and `readouts` hold one text for each frame, or one for all of them.

    `pages` names the addresses that its artists link to (`links`).
    """
    sliders = sliders or {}
    start = 0
    for slider in sliders.values():
        start = start * len(slider.values) + slider.index(slider.start, "start")
    alt = alts[start] if len(alts) > 1 else alts[0]
    if not sliders:
        return _figure(frames, alt, None, caption, sliders, pages=pages)
    data = json_of(_data(frames, alts, sliders, readouts) | _more(drag, ghost))
    # Alive as soon as it is parsed; what the page loads further on may take seconds.
    script = "window.postx?.(document.currentScript.parentElement)"
    return _figure(frames, alt, readouts[start] if any(readouts) else None, caption, sliders, data, script)


def live(frames, told, alt, readout, caption, sliders, drag, ghost, latex=()):
    """The HTML of a figure whose formulas the page computes; `told` is its data and its functions (live.py)."""
    data, code = told
    script = f"window.postx?.live?.(document.currentScript.parentElement,{code})"
    return _figure(frames, alt, readout, caption, sliders, json_of(data | _more(drag, ghost)), script, latex)


def _figure(frames, alt, readout, caption, sliders, data=None, script=None, latex=(), pages=None):
    names = " and ".join(slider.name(key) for key, slider in sliders.items())
    name = f' aria-label="{escape("Figure with sliders for " + names)}"' if sliders else ""
    picture = frames.svg.replace("\0alt\0", escape(alt))
    axes = f' data-axes="{json_of(frames.axes)}"' if frames.axes else ""  # for the marks of a guess
    parts = [f'<figure class="px-fig" role="group"{name}{axes}>', links(picture, pages) if pages else picture]
    if sliders:
        own = "px" + hashlib.sha256(frames.svg.encode()).hexdigest()[:6]  # a name in one figure is one on the page
        parts += ['<div class="px-controls">', *(_row(own, key, s) for key, s in sliders.items()), "</div>"]
    if readout is not None:
        parts.append(f'<output class="px-readout" aria-live="polite">{escape(readout)}</output>')
    parts += [f'<div class="math notranslate nohighlight">\\[{escape(line)}\\]</div>' for line in latex]
    if caption:
        parts.append(f"<figcaption>{escape(caption)}</figcaption>")
    if sliders:
        parts.append(f'<script type="application/json">{data}</script><script>{script}</script>')
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


def _row(own, key, slider):
    # Disabled until the script is there to answer: without it the reader sees the value, not a dead slider.
    name, place = escape(slider.name(key)), slider.index(slider.start, "start")
    if slider.buttons:
        options = "".join(
            f'<label><input type="radio" name="{own}-{escape(key)}" value="{i}"{" checked" * (i == place)} disabled>'
            f"{escape(slider.text(value))}</label>"
            for i, value in enumerate(slider.values)
        )
        return (f'<div class="px-row px-choice" role="radiogroup" aria-label="{name}">'
                f'<span class="px-name">{name}</span><span class="px-options">{options}</span></div>')  # fmt: skip
    now = escape(slider.text(slider.start))
    width = max(len(slider.text(value)) for value in slider.values)
    button = f'<button type="button" class="px-play" aria-label="Play: {name}" disabled>▶</button>'
    return (
        f'<div class="px-row"><label class="px-name" for="{own}-{escape(key)}">{name}</label>{button * slider.play}'
        f'<input type="range" id="{own}-{escape(key)}" name="{escape(key)}" min="0" max="{len(slider.values) - 1}" '
        f'step="1" value="{place}" aria-label="{name}" aria-valuetext="{now}" disabled>'
        f'<span class="px-value" style="min-width:{width}ch">{now}</span></div>'
    )


def _more(drag, ghost):
    return ({"drag": drag} if drag else {}) | ({"ghost": 1} if ghost else {})


def _data(frames, alts, sliders, readouts):
    def once(texts):
        return texts[:1] if len(set(texts)) == 1 else list(texts)

    return {
        "texts": [[slider.text(value) for value in slider.values] for slider in sliders.values()],
        "alts": once(alts),
        "readouts": once(readouts) if any(readouts) else [],
        "slots": [{"slot": slot, "looks": looks, "picks": picks} for slot, looks, picks in frames.changing],
    }


def json_of(data):
    """Data as a script element may hold it: one ends at the first "</script", so no "<" leaves here."""
    told = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return told.replace("<", "\\u003c")
