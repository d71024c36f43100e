"""One byte's way through a model: its stops are the model's own, and the drawing says of each what it is."""

import gzip
from itertools import pairwise

import pytest
import torch
from matplotlib.patches import Rectangle

from postx.models.lm import LM
from postx.widgets import walk
from postx.widgets.stops import stops

READ, BYTE, CAME = list(b"a text of some length, read before its last byt"), ord("e"), ord(".")
OPTIONS = {"A": {"H": 4, "G": 2}, "S": {"K": 8, "V": 16}, "E": {"E": 8, "k": 2, "F": 16}}
MOVED = [(10, 0), (1000, 8000), (500, 0), (700, 9000), (500, 0), (2000, 0)]


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return LM("SA", 32, 256, mlp="E", options=OPTIONS, std=0.4).eval()


@pytest.fixture(scope="module")
def before(net):
    with torch.no_grad():
        return net(torch.tensor([READ]))[1]


@pytest.fixture(scope="module")
def found(net, before):
    return stops(net, BYTE, before)


@torch.no_grad()
def test_the_last_stop_is_the_model(net, before, found):
    want = net(torch.tensor([[BYTE]]), before)[0][0, 0].softmax(-1)
    torch.testing.assert_close(found[-1].early_Y, want)
    assert [stop.name for stop in found] == ["embedding", "1 SSD", "1 experts", "2 attention", "2 experts", "logits"]
    again = stops(net, BYTE, before)  # the state is as it was
    assert torch.equal(again[-1].x_D, found[-1].x_D)


@torch.no_grad()
def test_a_stop_adds_what_it_says_and_is_read_by_the_last_norm_and_the_head(net, found):
    for one, other in pairwise(found):
        torch.testing.assert_close(one.x_D + other.added_D, other.x_D)
        assert other.added_D.any() == (other.kind != "logits")
    for stop in found:
        torch.testing.assert_close(stop.early_Y, (net.norm(stop.x_D) @ net.embed.weight.T).softmax(-1))


@torch.no_grad()
def test_a_table_fades_and_is_written_by_one_product(net, before, found):
    share, table, key, value = found[1].shown
    after = net(torch.tensor([[BYTE]]), before)[1][0][0][0][0, 0]
    torch.testing.assert_close(share * table + torch.outer(key, value), after)
    assert 0 < share < 1


@torch.no_grad()
def test_looks_weigh_the_values_as_the_layer_does(net, before, found):
    layer, (share_HM,) = net.blocks[1].mix[0], found[3].shown
    seen = net.blocks[1].norm(found[2].x_D)[None, None]
    values = torch.cat([before[1][0][1], layer.v(seen).unflatten(-1, (2, -1))], 1)[0]  # [M, G, V]
    mixed = torch.einsum("hm,mhv->hv", share_HM, values.repeat_interleave(2, 1))
    torch.testing.assert_close(layer.out(mixed.flatten()), found[3].added_D)


def test_two_experts_answer(found):
    for stop in (found[2], found[4]):
        p, weight = stop.shown
        assert float(p.sum()) == pytest.approx(1)
        assert float(weight.sum()) == pytest.approx(1)
        assert set(weight.nonzero()[:, 0].tolist()) == set(p.topk(2).indices.tolist())


@pytest.fixture(scope="module")
def drawing(found):
    patch = pytest.MonkeyPatch()
    patch.setenv("POSTX_STATIC", "1")
    yield walk.walk(found, READ, BYTE, MOVED, CAME)
    patch.undo()


def texts(fig):
    return [artist.get_text() for artist in fig._artists if hasattr(artist, "get_text") and artist.get_text()]


@pytest.mark.parametrize("n", range(len(MOVED)))
def test_the_drawing_says_what_a_stop_is(drawing, found, n):
    told, stop = drawing.move(stop=n), found[n]
    likely = walk.sign(int(stop.early_Y.argmax()))
    assert told.startswith(f"{stop.name}: {walk.does(stop, READ, BYTE)}. It reads {MOVED[n][0] / 1000:,.1f} kB")
    assert f"{sum(map(sum, MOVED[: n + 1])) / 1e6:.2f} of {sum(map(sum, MOVED)) / 1e6:.2f} MB" in told
    assert told.endswith(f"byte is {likely} with {float(stop.early_Y.max()):.0%}.")
    assert ("Read early" in told) == (stop.kind != "logits")
    shown = texts(drawing)
    assert f"stream: {float(stop.x_D.norm()):.1f} long" in shown
    assert ("next byte" in shown, "read early" in shown) == (stop.kind == "logits", stop.kind != "logits")
    answers = [f"answers {float(w):.0%}" for w in stop.shown[1] if w] if stop.kind == "experts" else []
    assert [text for text in shown if text.startswith("answers")] == answers
    if stop.kind == "SSD":
        assert f"{stop.shown[0]:.3f} × before" in shown


def test_what_a_part_does_is_said_in_words(found):
    embedding, fades, answer, looks, _, logits = (walk.does(stop, READ, BYTE) for stop in found)
    assert embedding == "row 101 of a table, the one of e, becomes the stream"
    assert f"{found[1].shown[0]:.1%} stays" in fades
    weight = found[2].shown[1]
    first, second = weight.topk(2).indices.tolist()
    assert answer == (f"experts {first + 1} ({weight[first]:.0%}) and {second + 1} ({weight[second]:.0%}) of 8 answer")
    share_HM = found[3].shown[0][:, :-1]
    assert f"puts {share_HM.max():.0%} of its look on the end of " in looks
    back = len(READ) - int(share_HM.amax(0).argmax())
    assert f", {back} byte" in looks
    assert "all 256 rows" in logits


def test_experts_and_marks_of_the_text_appear_when_the_byte_is_there(drawing, found):
    def seen(n):
        drawing.move(stop=n)
        way, text = drawing._fig.axes[:2]
        squares = [p for p in way.patches if isinstance(p, Rectangle) and p.get_height() == 0.36]
        full = [p for p in squares if p.get_linewidth() == 0 and p.get_alpha()]
        marks = text.images[0].get_array()
        return len(full), bool((~marks.mask if hasattr(marks, "mask") else marks == marks).any())

    assert [seen(n) for n in range(len(found))] == [
        (0, False), (0, False), (2, False), (2, True), (4, False), (4, False)]  # fmt: skip


def test_the_page_plays_it_and_lets_the_byte_be_dragged(drawing):
    page = drawing._page
    assert 'class="px-play"' in page
    assert '"drag":' in page
    assert len(gzip.compress(page.encode())) < 40_000
    for text in drawing._fig.findobj(lambda artist: hasattr(artist, "get_fontsize")):
        assert text.get_fontsize() >= 9.5 or not text.get_text(), "too small for a phone"


def test_signs_are_one_character_each():
    assert [walk.sign(b) for b in (10, 32, 65, 0, 200)] == ["↵", "␣", "A", "·", "·"]
