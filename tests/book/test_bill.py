"""The drawn bill: each line is what postx.cost counts, and the page computes what Python does."""

from dataclasses import replace

import formulas
import pytest

from postx import cost
from postx.explore import explore
from postx.models import published
from postx.widgets import bill

SIZES = [(1024, 1), (8192, 1), (2**17, 4)]
L = bill.SHAPE.L


def paid(kept=bill.GROUPED, stored=0, window=0, bits=16, *, tokens, batch):
    made = bill.lines(kept, stored, window, bits, tokens, batch)
    return {name: float(getattr(made, name)) for name in made.__dataclass_fields__}


def mixing(found, tokens, batch, what):
    """What is left of a line when the weights' share is taken from it."""
    weights, head = bill.SHAPE.matrix_weights(), bill.SHAPE.Y * bill.SHAPE.D
    per_token = tokens * (weights - head) + head
    base = {"read_flops": 2 * batch * per_token, "write_flops": 2 * batch * weights}.get(what, 2 * weights)
    return (found[what] - base) / L


@pytest.mark.parametrize(("tokens", "batch"), SIZES)
@pytest.mark.parametrize("stored", [0, 1])
@pytest.mark.parametrize("window", [0, 1])
def test_the_published_model_costs_what_its_config_says(tokens, batch, stored, window):
    model = replace(bill.SHAPE, window=bill.WINDOW if window else None)
    found = paid(stored=stored, window=window, tokens=tokens, batch=batch)
    read = model.prefill(tokens, B=batch, form="naive" if stored else "tiled")
    assert found["read_flops"] == read.flops
    assert found["write_flops"] == model.decode(tokens, B=batch).flops
    assert found["cache"] == batch * model.kv_bytes(tokens)
    assert found["write_bytes"] == pytest.approx(model.decode(tokens, B=batch).bytes, rel=0.01)
    assert found["scores"] == stored * 2 * batch * 32 * tokens**2


@pytest.mark.parametrize(("tokens", "batch"), SIZES)
@pytest.mark.parametrize("G", [32, 8])
@pytest.mark.parametrize(("form", "window"), [("naive", None), ("tiled", None), ("tiled", 4096)])
def test_traffic_of_the_scores_is_that_of_the_cost_model(tokens, batch, G, form, window):
    found = paid(2 * G * 128, form == "naive", int(window is not None), tokens=tokens, batch=batch)
    work = cost.softmax_attention(tokens, B=batch, H=32, G=G, K=128, window=window, form=form)
    assert mixing(found, tokens, batch, "read_bytes") == pytest.approx(work.bytes, rel=1e-9)
    assert mixing(found, tokens, batch, "read_flops") == pytest.approx(work.flops, rel=1e-9)


def test_latents_cost_what_their_widths_say():
    tokens, batch = 2**15, 2
    found = paid(bill.MLA, tokens=tokens, batch=batch)
    expanded = cost.softmax_attention(tokens, B=batch, H=32, K=128 + 64, V=128)
    assert mixing(found, tokens, batch, "read_flops") == pytest.approx(expanded.flops, rel=1e-9)
    assert mixing(found, tokens, batch, "read_bytes") == pytest.approx(expanded.bytes, rel=1e-9)
    absorbed = cost.softmax_attention(1, B=batch, H=32, G=1, K=512 + 64, V=512, past=tokens - 1)
    assert mixing(found, tokens, batch, "write_flops") == pytest.approx(absorbed.flops, rel=1e-9)
    latent = replace(published.DEEPSEEK_V3, L=32).kv_bytes(tokens)
    assert found["cache"] == batch * latent


def test_a_state_is_that_of_two_mamba_blocks_and_does_not_grow():
    found, longer = (paid(bill.STATE, tokens=tokens, batch=3) for tokens in (4096, 2**20))
    two = 2 * cost.mamba2_block(1, D=4096)
    assert found["cache"] == longer["cache"] == 3 * 32 * 4 * two.state_floats
    core = cost.decay_recurrence(1, B=3, H=128, K=128, V=64)
    assert mixing(found, 1, 3, "write_flops") == pytest.approx(2 * core.flops, rel=1e-9)
    chunks = cost.chunked_recurrence(4096, B=3, H=128, K=128, V=64, chunk=256)  # counts whole squares
    halves = chunks.flops - 3 * 128 * 4096 * 255 * (128 + 64)
    assert mixing(found, 4096, 3, "read_flops") == pytest.approx(2 * halves, rel=1e-9)
    assert found["write_bytes"] == pytest.approx(2 * bill.SHAPE.matrix_weights() + 2 * found["cache"])
    assert found["write_bytes"] == longer["write_bytes"]


def test_four_bits_count_their_scales():
    sixteen, four = (paid(bits=bits, tokens=8192, batch=1)["cache"] for bits in (16, bill.FOUR))
    assert four / sixteen == 4.5 / 16


@pytest.mark.parametrize("scale", [1, 4, 9])
def test_more_tokens_or_texts_never_cost_less(scale):
    for kept in bill.NAMES:
        less, more = paid(kept, tokens=2**14, batch=2), paid(kept, tokens=scale * 2**14, batch=2 * scale)
        assert all(less[name] <= more[name] for name in less)


def test_the_page_computes_what_python_computes(monkeypatch):
    monkeypatch.setenv("POSTX_STATIC", "1")
    monkeypatch.setattr(formulas, "STOPS", 4)
    figure = explore(bill.draw, alt="The bill at {tokens} tokens, drawn.", height=4.2, **bill.SLIDERS)
    html = figure._repr_mimebundle_()[0]["text/html"]
    assert formulas.disagreements(figure, html) == []
    assert "arithmetic binds" in figure.move(tokens=2**15, batch=1)
    assert "does not fit" in figure.move(tokens=2**20, batch=1)
    assert "fits on one chip" in figure.move(kept=bill.STATE)
