import json
import re

import pytest
from matplotlib.figure import Figure

from postx.explore.widget import widget

ALT = "A table of 64 numbers that holds two pictures."


def make(name="memory", data=None, alt=ALT, **kw):
    fig = Figure()
    fig.subplots().plot([0, 1], [1, 0])
    return widget(name, data, alt=alt, still=fig, **kw)


def test_a_built_page_has_the_still_picture_its_name_and_its_data(monkeypatch):
    monkeypatch.setenv("POSTX_STATIC", "1")
    told = {"K": 8, "words": ["</script>", "x < y & z", "π"]}
    page, _ = make(data=told, caption="Paint.")._repr_mimebundle_()
    text = page["text/html"]
    assert text.startswith('<figure class="px-fig px-widget" data-widget="memory" role="group"')
    assert text.endswith("</script></figure>")
    assert text.count("</figure>") == 1
    assert "<svg" in text
    assert ALT in text
    assert "<figcaption>Paint.</figcaption>" in text
    (data,) = re.findall(r'<script type="application/json">(.*?)</script>', text)
    assert json.loads(data) == told


def test_elsewhere_it_is_a_picture(monkeypatch):
    monkeypatch.delenv("POSTX_STATIC", raising=False)
    data, more = make()._repr_mimebundle_()
    assert set(data) == {"text/plain", "image/png"}
    assert more == {"image/png": {"alt": ALT}}


@pytest.mark.parametrize(
    ("kw", "error", "says"),
    [
        ({"name": "The Memory"}, ValueError, "name must be that of a script"),
        ({"data": {"x": float("nan")}}, ValueError, "JSON"),
        ({"data": {1j}}, TypeError, "not JSON serializable"),
        ({"alt": "short"}, ValueError, "alt is too short"),
    ],
)
def test_what_is_wrong_is_named(kw, error, says):
    with pytest.raises(error, match=says):
        make(**kw)
