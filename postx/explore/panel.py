"""The live panel of a figure with sliders: ipywidgets, for who has a kernel."""

import base64
from functools import partial
from html import escape

import ipywidgets

TICK = 500  # milliseconds between two stops while a slider plays
WIDE = {"width": "100%", "max_width": "640px"}


def make(explorer):
    """The picture of an Explorer, its handles and its readout, as one widget."""
    wide = ipywidgets.Layout(**WIDE)
    picture, readout = ipywidgets.HTML(layout=wide), ipywidgets.HTML(layout=wide)

    def refresh():
        # An <img>, as an Image widget cannot carry alt text. The ratio keeps its place while it loads.
        width, height = explorer.size
        shape = f"width:100%;aspect-ratio:{width:g}/{height:g}"
        data = base64.b64encode(explorer.png()).decode()
        source = f"data:image/png;base64,{data}"
        picture.value = f'<img alt="{escape(explorer.alt)}" style="{shape}" src="{source}">'
        readout.value = f'<div role="status">{escape(explorer.readout or "")}</div>'

    def turned(name, change):
        slider = explorer.sliders[name]
        if change["new"] == slider.index(explorer.values[name], name):
            return
        try:
            explorer.move(**{name: slider.values[change["new"]]})
            refresh()
        except Exception as error:  # the front end hides what a callback raises: say it here as well
            readout.value = f'<div role="alert">update failed: {escape(str(error))}</div>'
            raise

    rows = []
    for name, slider in explorer.sliders.items():
        handle = _handle(name, slider, slider.index(explorer.values[name], name), wide)
        handle.observe(partial(turned, name), names="value")
        rows.append(_playing(handle) if slider.play else handle)
    refresh()
    return ipywidgets.VBox([picture, *rows, readout])


def _handle(name, slider, start, wide):
    options = [(slider.text(value), place) for place, value in enumerate(slider.values)]
    common = {"options": options, "value": start, "description": slider.name(name), "layout": wide}
    common["style"] = {"description_width": "initial"}
    if slider.buttons:
        return ipywidgets.RadioButtons(orientation="horizontal", **common)
    # Dragged, it sends a new value only when the kernel is done with the last.
    return ipywidgets.SelectionSlider(continuous_update=True, **common)


def _playing(handle):
    """The handle behind a button that moves it, in the front end."""
    clock = ipywidgets.Play(min=0, max=len(handle.options) - 1, value=handle.index, interval=TICK)
    ipywidgets.jslink((clock, "value"), (handle, "index"))
    return ipywidgets.HBox([clock, handle], layout=ipywidgets.Layout(**WIDE))
