import base64
import io
import json
import re
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from postx import style
from postx.explore import Choice, Int, Log, Real, compact, explore, show, svg

ALT = "A curve to the power {power}, steeper as it grows."
X = np.linspace(0, 1, 50)
VIEW = "application/vnd.jupyter.widget-view+json"


def curve(fig):
    ax, bx = fig.subplots(1, 2)
    (line,) = ax.plot(X, X, "-", color=style.FAMILY["ssm"])
    (dots,) = bx.plot([0.5], [0.5], "o", color="black")
    name = style.label(bx, 0.5, 0.5, "start")
    ax.set(xlabel="x", ylabel="y", title="left & <right>")
    bx.set(ylim=(0, 1))

    def update(power, shape="round"):
        line.set_ydata(X**power)
        dots.set_data([0.5], [0.5**power])
        dots.set_marker("o" if shape == "round" else "s")
        name.set_text(f"{shape} <{power}>")
        bx.set_xlim(0, power)
        ax.set_xlabel(f"x, for power {power}")  # touches an axis, whose limits stay
        return f"The power is {power} & the shape {shape}."

    return update


def heat(fig):
    ax = fig.subplots()
    image = ax.imshow(np.arange(16.0).reshape(4, 4))
    number = ax.text(0, 0, "?", color=style.PAPER_FIXED)

    def update(power):
        image.set_data(np.arange(16.0).reshape(4, 4) ** power)
        number.set_text(str(power))

    return update


def make(draw=curve, alt=ALT, **sliders):
    return explore(draw, alt=alt, **(sliders or {"power": Int(1, 4, start=2)}))


@pytest.fixture
def page(monkeypatch):
    monkeypatch.setenv("POSTX_STATIC", "1")

    def build(*args, **kwargs):
        html = make(*args, **kwargs)._repr_mimebundle_()[0]["text/html"]
        store = re.search(r'<script type="application/json">(.*?)</script>', html)
        return html, json.loads(store[1])

    return build


@pytest.fixture(autouse=True)
def live(monkeypatch):
    monkeypatch.delenv("POSTX_STATIC", raising=False)


# Sliders


def test_grids():
    assert Int(2, 8, step=3).values == (2, 5, 8)
    assert Log(512, 4096).values == (512, 1024, 2048, 4096)
    assert Log(1, 4, per_octave=2).values == (1, 2, 3, 4)  # 1, 1.41, 2, 2.83, 4 rounded, each once
    assert Choice("a", "b").start == "a"
    assert Real(0, 1, stops=3).values == (0.0, 0.5, 1.0)
    assert Real(0.001, 10, start=1, stops=5, log=True).values == (0.001, 0.01, 0.1, 1.0, 10.0)


def test_text_of_values():
    assert Log(512, 4096, unit="tokens").text(4096) == "4,096 tokens"
    assert Log(512, 4096, fmt=style.binary).text(4096) == "4k"
    assert Int(1, 2, fmt="{:02d}", unit="bits").text(2) == "02 bits"
    assert Int(1, 2).name("head_count") == "head count"
    assert Int(1, 2, label="heads").name("h") == "heads"


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Int(1, 8, start=9), r"start = 9 is not on the grid .*nearest is 8"),
        (lambda: Int(1, 8, step=2), "whole number of steps"),
        (lambda: Int(5, 5), "lo < hi"),
        (lambda: Log(0, 8), "1 <= lo"),
        (lambda: Log(512, 1000), "use 512 or 1024"),
        (lambda: Log(512, 4096, start=1000), r"start = 1000 is not on the grid .*nearest is 1024"),
        (lambda: Choice("a"), "at least two"),
        (lambda: Choice("a", "b", start="c"), "start = 'c' is not on the grid"),
        (lambda: Choice(0.121, 0.123, fmt="{:.1f}"), "writes two values alike"),
        (lambda: Int(1, 2, label=" "), "label must be text"),
        (lambda: Int(1, 2, axis="y"), "axis must be 'x' or a function"),
        (lambda: Choice("a", "b", play=True), "row of buttons: no play"),
        (lambda: Real(2, 1), "lo < hi"),
        (lambda: Real(0, 1, log=True), "0 < lo with log"),
        (lambda: Real(0, 1, start=0.3141), "the nearest is 0.314"),
    ],
)
def test_sliders_refuse(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize("build", [lambda: Int(1, 2.5), lambda: Int(True, 4), lambda: Int(1, 2, fmt=3)])
def test_sliders_refuse_other_types(build):
    with pytest.raises(TypeError, match="must be"):
        build()


# Errors of explore and show


def only(update):
    def draw(fig):
        fig.subplots().plot(X, X)
        return update

    return draw


def leak(fig):
    ax = fig.subplots()
    ax.plot(X, X)
    return lambda power: ax.plot(X, X) if power > 2 else None


def swap(fig):
    ax = fig.subplots()
    lines = ax.plot(X, X)

    def update(power):
        lines.pop().remove()
        lines.extend(ax.plot(X, X**power))

    return update


@pytest.mark.parametrize(
    ("kind", "message", "build"),
    [
        (ValueError, "one to six sliders, got 0", lambda: explore(curve, alt="A long enough alt text.")),
        (ValueError, "got 7", lambda: make(**{name: Int(1, 2) for name in "abcdefg"})),
        (ValueError, r"power 8 x b 26 = 208 frames.*at most 200.*first that of b",
         lambda: make(power=Int(1, 8), b=Int(0, 25))),
        (ValueError, "alt is too short", lambda: make(alt="short {power}")),
        (TypeError, "alt must be a sentence", lambda: make(alt=None)),
        (TypeError, "call the slider something else", lambda: make(alt=Int(1, 2))),
        (TypeError, "call the slider something else", lambda: make(power=Int(1, 2), height=Int(1, 2))),
        (TypeError, "call the slider something else", lambda: make(power=Int(1, 2), caption=Int(1, 2))),
        (ValueError, "cannot be called 'draw'", lambda: explore(curve, alt="A long enough text.", draw=Int(1, 2))),
        (ValueError, r"field \{speed\}, which is no slider", lambda: make(alt="The curve at speed {speed} only.")),
        (ValueError, r"which is no slider", lambda: make(alt="The curve at power {power:.2f} only.")),
        (TypeError, "power must be Int", lambda: make(power=(1, 2, 3))),
        (ValueError, "height must be between", lambda: make(power=Int(1, 2), height=40)),
        (TypeError, "draw must be a function", lambda: make(draw=3)),
        (TypeError, r"must return the function update", lambda: make(draw=only(None))),
        (TypeError, "must return a sentence or None, got int", lambda: make(draw=only(lambda power: 3))),
        (ValueError, "figure is empty", lambda: make(draw=lambda fig: lambda power: None)),
        (ValueError, "figure is empty", lambda: make(draw=lambda fig: fig.subplots() and (lambda power: None))),
        (ValueError, "must change artists, not add", lambda: make(draw=leak).move(power=3)),
        (ValueError, "must change artists, not add", lambda: make(draw=swap)),
        (ValueError, "there is no slider 'q'", lambda: make().move(q=3)),
        (ValueError, "power = 9 is not on the grid", lambda: make().move(power=9)),
        (TypeError, "fig must be a matplotlib Figure", lambda: show(3, alt=ALT)),
        (ValueError, "figure is empty", lambda: show(Figure(), alt=ALT)),
    ],
)  # fmt: skip
def test_explore_refuses(kind, message, build):
    with pytest.raises(kind, match=message):
        build()


def test_a_built_page_finds_what_only_a_later_frame_does_wrong(page):
    with pytest.raises(ValueError, match="must change artists, not add"):
        page(draw=leak)

    def reorder(fig):
        one, two = fig.subplots().plot(X, np.c_[X, X**2])
        return lambda power: one.set_zorder(power)

    with pytest.raises(ValueError, match="drawing order"):
        page(draw=reorder)


def test_an_error_in_update_names_the_values():
    def broken(fig):
        fig.subplots().plot(X, X)
        return lambda power: 1 / (power - 2) and None

    with pytest.raises(ZeroDivisionError) as caught:
        make(draw=broken)
    assert caught.value.__notes__ == ["in update(power=2)"]


# Live


def test_update_is_all_that_is_called_and_no_artist_is_added():
    calls = []

    def draw(fig):
        calls.append("draw")
        update = curve(fig)
        return lambda **values: calls.append(values) or update(**values)

    picture = make(draw=draw)
    before = list(svg.leaves(picture._fig))
    for power in (3, 4, 1, 3):
        assert picture.move(power=power) == f"The power is {power} & the shape round."
        picture.png()
    assert all(one is other for one, other in zip(before, svg.leaves(picture._fig), strict=True))
    assert calls == ["draw", *({"power": power} for power in (2, 3, 4, 1, 3))]
    assert picture.values == {"power": 3}


def pixels(png):
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


@pytest.mark.parametrize("draw", [curve, heat])
def test_bitmap_with_kept_axes_equals_one_drawn_afresh(draw):
    picture = make(draw=draw)
    for power in (2, 4, 4, 1):
        picture.move(power=power)
        kept, plain = picture.png(), io.BytesIO()
        with matplotlib.rc_context(svg.RC):
            picture._fig.savefig(plain, format="png", dpi="figure")
        assert np.abs(pixels(kept) - pixels(plain.getvalue())).max() <= 2


def test_a_vector_drawing_in_between_does_not_leave_old_axes_in_the_bitmap():
    picture = make()
    picture.png()
    picture.move(power=3)
    picture._stage.svg()
    once = make(power=Int(1, 4, start=2))
    once.move(power=3)
    assert np.array_equal(pixels(picture.png()), pixels(once.png()))


def test_bundle_with_a_kernel():
    picture = make()
    data, metadata = picture._repr_mimebundle_()
    alt = "A curve to the power 2, steeper as it grows."
    assert set(data) == {"text/plain", "image/png", VIEW}
    assert data["text/plain"] == f"{alt}\npower: 2\nThe power is 2 & the shape round."
    assert metadata["image/png"]["alt"] == alt
    png = base64.b64decode(data["image/png"])
    assert Image.open(io.BytesIO(png)).text["Description"] == alt
    assert len(png) < 30_000 < len(picture.png()) < 60_000
    assert np.abs(pixels(png) - pixels(picture.png())).mean() < 1
    again = make()._repr_mimebundle_()[0]
    assert again["image/png"] == data["image/png"]
    assert again["text/plain"] == data["text/plain"]


def test_moving_the_widget_moves_the_picture():
    picture = make()
    picture._repr_mimebundle_()
    image, handle, readout = picture._widget.children
    assert handle.options == (("1", 0), ("2", 1), ("3", 2), ("4", 3))
    before = image.value
    handle.value = 3
    assert picture.values == {"power": 4}
    assert image.value != before
    assert 'alt="A curve to the power 4, steeper as it grows."' in image.value
    assert "The power is 4 &amp; the shape round." in readout.value


def test_options_are_buttons_and_time_has_a_clock_with_a_kernel():
    picture = make(power=Int(1, 4, start=2, play=True), shape=Choice("round", "square"))
    picture._repr_mimebundle_()
    _, playing, choice, readout = picture._widget.children
    clock, handle = playing.children
    assert (clock.min, clock.max, clock.value) == (0, 3, 1)
    assert type(choice).__name__ == "RadioButtons"
    choice.value = 1
    handle.value = 3
    assert picture.values == {"power": 4, "shape": "square"}
    assert "The power is 4 &amp; the shape square." in readout.value


@pytest.mark.parametrize(("options", "buttons"), [
    ((0.5, 1, 2, 4, 8), True), ((0.25, 0.5, 1, 2, 4, 8), False), (("a few words",) * 2, True),
    (("all", "queries", "keys", "values", "attention out", "MLP gate", "MLP up", "MLP out"), True),
    (("linear attention", "DeltaNet") * 4, False),
])  # fmt: skip
def test_words_are_buttons_wherever_they_fit_and_many_numbers_a_slider(options, buttons):
    options = [word if isinstance(word, (int, float)) else f"{word} {i}" for i, word in enumerate(options)]
    assert Choice(*options).buttons == buttons


def test_a_slider_may_lie_on_the_x_axis_of_the_picture(page):
    _, data = page(power=Int(1, 2, start=1, axis=lambda power: (power - 1) / 2))
    drag = data["drag"]
    left, top, width, height = drag["box"]
    assert drag["slider"] == 0
    # at 0 and 1/2 of an axis that runs from -0.05 to 1.05 (the margins of matplotlib)
    assert drag["x"] == pytest.approx([left + width * share / 1.1 for share in (0.05, 0.55)], abs=0.2)
    with pytest.raises(ValueError, match="axis: 4 or another stop is not on it"):
        page(power=Int(1, 4, axis="x"))
    with pytest.raises(ValueError, match="must not change"):
        page(draw=grows, power=Int(1, 4, axis="x"))
    with pytest.raises(ValueError, match="one slider at most"):
        page(power=Int(1, 4, axis="x"), shape=Int(1, 4, axis="x"))


def grows(fig):
    ax = fig.subplots()
    ax.plot([0, 5], [0, 5])
    return lambda power: ax.set_xlim(0, 5 + power) and None


def test_the_widget_says_when_update_fails():
    def fragile(fig):
        fig.subplots().plot(X, X)
        return lambda power: [None, None, "fine"][power]

    picture = make(draw=fragile)
    picture._repr_mimebundle_()
    _, handle, readout = picture._widget.children
    with pytest.raises(IndexError):
        handle.value = 3
    assert "update failed: list index out of range" in readout.value
    assert picture.values == {"power": 2}


@pytest.mark.filterwarnings("error")
def test_axes_that_were_placed_by_hand_stay_there():
    """savefig sets the style's layout engine where there was none, which would warn and may move the axes."""
    with matplotlib.rc_context({"figure.constrained_layout.use": True}):
        fig = Figure(layout="none")
        ax = fig.add_axes((0, 0, 1, 1))
        ax.plot([1, 2])
        picture = show(fig, alt="a rising line across the whole of the figure")
        first, second = (picture._repr_mimebundle_()[0]["image/png"] for _ in range(2))
    assert first == second
    assert ax.get_position().bounds == (0, 0, 1, 1)


def test_no_figure_is_left_with_pyplot():
    import matplotlib.pyplot as plt

    plt.close("all")
    make()._repr_mimebundle_()
    assert plt.get_fignums() == []
    fig, ax = plt.subplots()
    ax.plot(X, X)
    data, metadata = show(fig, alt="A straight line, rising.", caption="c")._repr_mimebundle_()
    assert plt.get_fignums() == []
    assert set(data) == {"text/plain", "image/png"}
    assert metadata["image/png"]["alt"] == data["text/plain"] == "A straight line, rising."


# On a page


@pytest.mark.parametrize("draw", [curve, heat])
def test_every_frame_equals_a_picture_drawn_afresh(draw):
    picture = make(draw=draw)
    powers = [1, 2, 3, 4]
    kept = svg.frames(picture._stage, [lambda p=p: picture.move(power=p) for p in powers], 1)
    assert 0 < len(kept.changing) < len(picture._artists)
    for frame, power in enumerate(powers):
        picture.move(power=power)
        fresh = ElementTree.fromstring(svg.frames(svg.Stage(picture._fig), [lambda: None], 0).svg.replace("\0", ""))
        tree = ElementTree.fromstring(kept.svg.replace("\0", ""))
        for slot, looks, picks in kept.changing:
            group = tree.find(f".//*[@data-slot='{slot}']")
            inside = f'<g xmlns="http://www.w3.org/2000/svg" data-slot="{slot}">{looks[picks[frame]]}</g>'
            group[:] = list(ElementTree.fromstring(inside))
        assert drawing(tree) == drawing(fresh)


def cloud(fig):
    ax = fig.subplots()
    lines = [ax.plot(X, X, mark, color=style.FAMILY["ssm"], ms=4, alpha=0.5)[0] for mark in ("o", "s")]
    words = style.label(ax, 0.5, 0.5, "start")

    def update(power):
        for line in lines:
            line.set_ydata(X**power)
        words.set_text(f"to the {power}")

    return update


def test_many_markers_are_the_corners_of_one_line_and_neighbors_change_at_once(page):
    html, data = page(draw=cloud)
    slot, words = data["slots"]  # the axis is drawn between them
    assert len(words["looks"]) == 4
    tree = ElementTree.fromstring(re.search("<svg.*?</svg>", html)[0])
    markers = {e.get("id"): e for e in tree.iter() if e.tag.endswith("marker")}
    assert len(markers) == 2
    for power, look in enumerate(slot["looks"], 1):
        lines = ElementTree.fromstring(f"<g>{look}</g>").findall(".//polyline")
        assert {line.get("style").split("#")[1].rstrip(")") for line in lines} == set(markers)
        for line in lines:
            x, y = np.array(line.get("points").split(), dtype=float).reshape(-1, 2).T
            assert len(x) == 50  # those that lie on each other too
            assert np.corrcoef(y, X**power)[0, 1] < -0.99999  # downward
            assert np.corrcoef(x, X)[0, 1] > 0.99999
    assert "<use" not in "".join(slot["looks"])


def test_neighbors_stay_apart_where_joining_them_would_repeat_what_is_long(page):
    def draw(fig):
        ax = fig.subplots()
        (line,) = ax.plot(X, X)
        (other,) = ax.plot([0, 1], [0, 1])

        def update(power, shape):
            line.set_ydata(X**power)
            other.set_ydata([0, 1] if shape == "round" else [1, 0])

        return update

    _, data = page(draw=draw, power=Int(1, 4, start=2), shape=Choice("round", "square"))
    assert [len(slot["looks"]) for slot in data["slots"]] == [4, 2]


def test_one_is_not_plural(page):
    def draw(fig):
        (line,) = fig.subplots().plot(X, X)

        def update(bits, n):
            line.set_ydata(X * bits * n)
            return f"{bits} bits, 11 bits, 1 bitsy, 0.1 bits, {n} spikes."

        return update

    sliders = {"bits": Int(1, 3), "n": Int(1, 2, label="spikes planted")}
    alt = "A straight line that rises at {bits} bits, {n} spikes."
    picture = make(draw, alt, **sliders)
    assert picture.readout == "1 bit, 11 bits, 1 bitsy, 0.1 bits, 1 spike."
    assert picture.alt == "A straight line that rises at 1 bit, 1 spike."
    assert picture.move(bits=2, n=2) == "2 bits, 11 bits, 1 bitsy, 0.1 bits, 2 spikes."
    _, data = page(draw, alt, **sliders)
    assert [text.split(",")[0] for text in data["readouts"]][::2] == ["1 bit", "2 bits", "3 bits"]


def drawing(tree):
    """What is painted, in order: without the wrappers of slots and the names of definitions."""
    for defs in tree.findall("{*}defs"):
        tree.remove(defs)
    flat = [(e.tag, {k: re.sub("px[0-9a-f]{8}-", "", v) for k, v in e.items()}, e.text) for e in tree.iter()]
    return [e for e in flat if "data-slot" not in e[1]]


def test_page_holds_picture_controls_and_frames(page):
    sliders = {"power": Int(1, 4, start=2, label="the <power>", play=True), "shape": Choice("round", "square")}
    html, data = page(**sliders)
    markup = re.sub(r"<script.*</script>", "", re.sub(r"<input([^>]*) disabled>", r"<input\1/>", html))
    markup = markup.replace(" checked/>", ' checked="checked"/>').replace(" disabled>", ">")
    tree = ElementTree.fromstring(markup)
    group = {"class": "px-fig", "role": "group", "aria-label": "Figure with sliders for the <power> and shape"}
    assert {key: tree.attrib[key] for key in tree.attrib if key != "data-axes"} == group
    svg = tree.find("{*}svg")
    assert svg.get("role") == "img"
    assert svg.get("aria-label") == "A curve to the power 2, steeper as it grows."
    words = ["".join(text.itertext()) for text in svg.iter() if text.tag.endswith("text")]
    assert "round <2>" in words  # the picture stands at the start values, not at the first
    assert "x, for power 2" in words
    inputs = tree.findall(".//input")
    assert [i.get("type") for i in inputs] == ["range", "radio", "radio"]
    assert [inputs[0].get(key) for key in ("min", "max", "value", "aria-valuetext")] == ["0", "3", "1", "2"]
    assert tree.find(".//button").get("aria-label") == "Play: the <power>"
    row = tree.find(".//*[@role='radiogroup']")
    assert row.get("aria-label") == "shape"
    assert ["".join(label.itertext()) for label in row.iter("label")] == ["round", "square"]
    assert [(i.get("value"), i.get("checked")) for i in inputs[1:]] == [("0", "checked"), ("1", None)]
    assert len({i.get("name") for i in inputs}) == 2
    assert tree.find("output").attrib == {"class": "px-readout", "aria-live": "polite"}
    assert tree.find("output").text == "The power is 2 & the shape round."
    assert data["texts"] == [["1", "2", "3", "4"], ["round", "square"]]
    assert len(data["alts"]) == len(data["readouts"]) == 8
    assert data["readouts"][5] == "The power is 3 & the shape square."  # the last slider turns fastest
    for slot in data["slots"]:
        assert len(slot["picks"]) == 8
        assert len(set(slot["looks"])) == len(slot["looks"]) > 1
        assert svg.find(f".//*[@data-slot='{slot['slot']}']") is not None


def test_page_without_a_readout_and_with_one_alt_for_all(page):
    html, data = page(draw=heat, alt="Sixteen cells, one color each.")
    assert data["readouts"] == []
    assert data["alts"] == ["Sixteen cells, one color each."]
    assert "px-readout" not in html


def test_page_follows_ink_and_paper_and_keeps_what_is_fixed(page):
    def draw(fig):
        ax = fig.subplots()
        (line,) = ax.plot(X, X, color="black")
        ax.plot(X, X, color="white")
        ax.text(0.5, 0.5, "fixed", color=style.PAPER_FIXED)
        return lambda power: line.set_ydata(X**power)

    html, _ = page(draw=draw)
    assert "#000000" not in html
    assert "#ffffff" not in html
    assert "var(--px-paper,#fff)" in html
    assert "stroke:currentColor" in html
    assert "#fefefe" in html
    assert "DejaVu" not in html
    assert "<style" not in html


def test_words_take_a_shade_of_their_color_and_lines_keep_it(page):
    def draw(fig):
        ax = fig.subplots()
        (line,) = ax.plot(X, X, color=style.FAMILY["linear"])
        style.label(ax, 0.5, 0.5, "plain", style.FAMILY["linear"])
        style.label(ax, 0.2, 0.5, "formula $x^2$", style.SERIES[1])
        return lambda power: line.set_ydata(X**power)

    html, _ = page(draw=draw)
    assert re.search(r'<text[^>]*fill:var\(--px-linear,#2ca800\)[^>]*>plain<', html)
    assert re.search(r"fill:var\(--px-gold,#b58200\)", html)
    assert "stroke:#2ca800" in html
    assert "stroke:var(--px-linear" not in html


def test_user_text_is_escaped(page, monkeypatch):
    html, data = page(alt='</script><b onload="x">"{power}" & more', power=Choice("<i>", "</script>"), draw=words)
    assert html.count("</script>") == 2  # the frames, and the call that starts the figure
    assert "<b onload" not in html
    assert "<i>" not in html
    assert data["texts"] == [["<i>", "</script>"]]
    assert data["alts"][1] == '</script><b onload="x">"</script>" & more'
    picture = show(figure(), alt="A line with <b>bold</b> claims.", caption="a < b & c")
    html = picture._repr_mimebundle_()[0]["text/html"]
    assert "<figcaption>a &lt; b &amp; c</figcaption>" in html
    assert "<b>bold" not in html


def words(fig):
    text = fig.subplots().text(0.5, 0.5, "")
    return lambda power: text.set_text(power) or power


def figure():
    fig = Figure()
    fig.subplots().plot(X, X)
    return fig


def test_names_of_two_figures_do_not_meet_and_all_references_resolve(page):
    pages = [page()[0], page(draw=heat)[0]]
    named = [set(re.findall(r' id="([^"]+)"', html)) for html in pages]
    assert named[0]
    assert not named[0] & named[1]
    for html, names in zip(pages, named, strict=True):
        used = set(re.findall(r'url\(#([^)"]+)\)', html)) | set(re.findall(r'href=\\?"#([^"\\]+)', html))
        assert used
        assert used <= names


def test_building_twice_gives_the_same_bytes(page):
    assert page()[0] == page()[0]


def test_page_leaves_the_picture_at_its_start(page, monkeypatch):
    monkeypatch.setenv("POSTX_STATIC", "1")
    data = make()._repr_mimebundle_()[0]
    assert set(data) == {"text/plain", "image/png", "text/html"}
    monkeypatch.delenv("POSTX_STATIC")
    live = make()._repr_mimebundle_()[0]
    assert live["text/plain"] == data["text/plain"]
    assert live["image/png"] == data["image/png"]
    monkeypatch.setenv("POSTX_STATIC", "both")
    both = make()._repr_mimebundle_()[0]
    assert set(both) == set(data) | set(live)
    assert all(both[key] == value for key, value in data.items())


def test_long_lines_are_steps_of_a_tenth():
    points = [(0, 0), (0.31, 1.0), (0.68, 1.96), (0.68, 1.97), *((i, 2) for i in range(1, 9))]
    data = "M" + " \nL".join(f" {x} {y}" for x, y in points)
    at, ends = np.zeros(2), []
    for command, x, y in re.findall(r"([Ml])(-?[\d.]+?) ?(-?(?:\d+\.?\d*|\.\d+))(?=[Ml]|$)", compact._path(data)):
        at = np.array([float(x), float(y)]) + (at if command == "l" else 0)
        ends.append(at)
    assert ends[-1] == pytest.approx((8, 2))
    assert max(min(np.abs(end - point).max() for end in ends) for point in points) <= 0.0501
    assert len(ends) == len(points) - 1  # a step of nothing is left out
    assert compact._path("M 0 0 \nC 0.123456 1 2 3 4 -0.5 \nz \n") == "M0 0C.12 1 2 3 4 -.5z"
