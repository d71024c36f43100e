"""The model that runs in the page against the model of the package: weights, logits and written bytes.

The page's own files run in node. POSTX_LONG=1 holds every file that the page can load; without it the hybrid at 4 bits,
and two layers of each kind for the rest, as a model in node takes seconds.
"""

import os
import re

import numpy as np
import page_model
import pytest
import torch
from page_model import NEEDS_NODE, PROMPTS, node, reference, small, text

from _ext import playground_page
from postx import export
from postx.diffusion import masked
from postx.models import checkpoints, quantized
from postx.models.denoiser import Denoiser
from postx.models.lm import LM, generate

LONG = os.environ.get("POSTX_LONG") == "1"
FILES = [(model, bits) for model, widths in playground_page.offered().items() for bits in widths]
pytestmark = NEEDS_NODE


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """packed(name, bits) -> (the script, the same model in the package): written once."""
    folder, made = tmp_path_factory.mktemp("page"), {}

    def make(name, bits):
        if (name, bits) not in made:
            path = export.write(name, bits, folder)
            made[name, bits] = export.script(path), checkpoints.load(path.name, folder)
        return made[name, bits]

    return make


@pytest.mark.parametrize(
    ("name", "bits"),
    [pytest.param(*file, marks=[] if LONG or file == ("hybrid", 4) else pytest.mark.skip(
        reason="a model in node takes seconds: POSTX_LONG=1 runs every file of the page")) for file in FILES],
)  # fmt: skip
class TestKept:
    def test_logits_are_those_of_the_package(self, packed, name, bits):
        script, lm = packed(name, bits)
        ids = [0, *PROMPTS[0].encode(), *text(60, 3)]
        got, want = np.array(node("logits", ids, script)), reference(lm, ids)
        assert np.abs(got - want).max() <= 1e-4 * np.abs(want).max()

    def test_the_same_64_bytes_are_written(self, packed, name, bits):
        script, lm = packed(name, bits)
        prompts = [list(prompt.encode()) for prompt in PROMPTS]
        for prompt, got in zip(prompts, node("write", {"prompts": prompts, "n": 64}, script), strict=True):
            want, _ = generate(lm, torch.tensor([[0, *prompt]]), 64, temperature=0)
            assert bytes(got) == bytes(want[0].tolist())


@pytest.mark.parametrize(
    ("pattern", "mlp"), [("AS", "F"), ("SA", "F"), ("SA", "E"), ("AS", "FE"), ("GG", "F"), ("77", "F"), ("G7A", "F")]
)
@pytest.mark.parametrize("bits", [16, 4, 3, 2])
def test_any_list_of_blocks_at_any_width(tmp_path, pattern, mlp, bits):
    path = export.write(small(tmp_path, pattern, mlp=mlp), bits, tmp_path, tmp_path)
    ids = text(150, seed=bits)
    got = np.array(node("logits", ids, export.script(path)))
    want = reference(checkpoints.load(path.name, tmp_path), ids)
    assert np.abs(got - want).max() <= 1e-4 * np.abs(want).max()


@pytest.mark.parametrize("pattern", ["SA", "G7"])
def test_a_model_kept_in_rows_of_8_bits_is_written_as_it_is_and_in_fewer(tmp_path, pattern):
    name, ids = small(tmp_path, pattern, mlp="FE"), text(90, 4)
    lm, config = checkpoints.load(name, tmp_path), checkpoints.record(name, tmp_path)["config"]
    rows = quantized.quantized(lm, "uniform", 8, torch.tensor([ids]), feed=False, **export.RANGE)[1].stored
    checkpoints.save(name, lm, config, {}, tmp_path, packed=rows)
    assert export.width(name, tmp_path) == 8
    for bits in (8, 4):
        path = export.write(name, bits, tmp_path, tmp_path)
        want = reference(checkpoints.load(path.name, tmp_path), ids)
        got = np.array(node("logits", ids, export.script(path)))
        assert np.abs(got - want).max() <= 1e-4 * np.abs(want).max()
        kept = reference(checkpoints.load(name, tmp_path), ids)
        assert (np.abs(want - kept).max() == 0) == (bits == 8)
    with pytest.raises(ValueError, match="bits: small is written in 8 or 4 or 3 or 2, got 16"):
        export.write(name, 16, tmp_path, tmp_path)


@pytest.mark.parametrize("mlp", ["F", "E"])
@pytest.mark.parametrize("bits", [16, 4, 3, 2])
def test_weights_are_equal_bit_for_bit(tmp_path, bits, mlp):
    path = export.write(small(tmp_path, mlp=mlp), bits, tmp_path, tmp_path)
    want = checkpoints.load(path.name, tmp_path).state_dict()
    for name, got in node("weights", list(want), export.script(path)).items():
        np.testing.assert_array_equal(np.float32(got), want[name].flatten().numpy(), name)


def test_calibrated_weights_are_read_as_well(tmp_path):
    """GPTQ on a text: what the page computes is what the package computes with the same rounded weights."""
    told = torch.tensor([text(600, 2)])
    path = export.write(small(tmp_path, "SA", mlp="E"), 4, tmp_path, tmp_path, ids_BT=told)
    lm, ids = checkpoints.load(path.name, tmp_path), text(150, 3)
    assert {q.method for q in checkpoints.packed(path.name, tmp_path).values()} == {"gptq"}
    got, want = np.array(node("logits", ids, export.script(path))), reference(lm, ids)
    assert np.abs(got - want).max() <= 1e-4 * np.abs(want).max()
    plain = reference(checkpoints.load(export.write("small", 4, tmp_path, tmp_path).name, tmp_path), ids)
    assert np.abs(want - plain).max() > 1e-3


def test_the_page_sends_every_byte_to_the_experts_of_the_package(tmp_path):
    path = export.write(small(tmp_path, "SA", mlp="E"), 4, tmp_path, tmp_path)
    lm, ids = checkpoints.load(path.name, tmp_path), text(120, 4)
    seen = []
    for block in lm.blocks:
        block.mlp.register_forward_pre_hook(lambda moe, args: seen.append(moe.weights(args[0])[0][0]))
    reference(lm, ids)
    for got, weight_TE in zip(node("routes", ids, export.script(path)), seen, strict=True):
        table = np.zeros(weight_TE.shape)
        for t, chosen in enumerate(got):
            assert len(chosen) == 2
            for e, weight in chosen:
                table[t, e] = weight
        np.testing.assert_allclose(table, weight_TE.detach().numpy(), atol=1e-4)


def test_shares_of_experts_follow_an_edit(tmp_path):
    path = export.write(small(tmp_path, "SA", mlp="FE"), 4, tmp_path, tmp_path)
    lm, whole = checkpoints.load(path.name, tmp_path), text(90, 7)
    edits, seen = [whole, whole[:70] + text(30, 8), whole[:3], []], []
    lm.blocks[1].mlp.register_forward_pre_hook(lambda moe, args: seen.append(moe.weights(args[0])[1][0]))
    for edit, told in zip(edits, node("experts", edits, export.script(path)), strict=True):
        seen.clear()
        reference(lm, [0, *edit])
        (place,) = told["places"]
        assert (told["place"], place["block"]) == (len(edit), 1)
        np.testing.assert_allclose(place["share"], seen[0].mean(0).numpy(), atol=1e-6)
        assert {e for e, _ in place["chosen"]} == set(seen[0][-1].nonzero()[:, 0].tolist())


@pytest.mark.parametrize(("pattern", "taps"), [("AA", 0), ("AA", 4), ("SA", 0), ("SA", 3), ("G7", 0)])
def test_an_edited_text_is_read_as_if_it_were_new(tmp_path, pattern, taps):
    script = export.script(path := export.write(small(tmp_path, pattern, taps=taps), 4, tmp_path, tmp_path))
    whole, lm = text(170, 5), checkpoints.load(path.name, tmp_path)
    edits = [whole, whole[:140], whole[:100] + text(30, 6), whole[:3], [], whole, whole[:64], whole[:63] + [7]]
    for edit, told in zip(edits, node("edit", edits, script), strict=True):
        want = reference(lm, [0, *edit])[-1]
        assert told["rows"] <= len(edit)
        assert np.abs(np.array(told["logits"]) - want).max() <= 1e-4 * np.abs(want).max()


@pytest.mark.parametrize(("pattern", "kept"), [("AA", True), ("SA", False)])
def test_nothing_is_asked_of_a_reader_that_an_edit_leads_back_before_its_first_byte(tmp_path, pattern, kept):
    """Where a state is kept there is no way back to byte 1: until it is read again, no place can be asked about."""
    script = export.script(export.write(small(tmp_path, pattern), 4, tmp_path, tmp_path))
    assert node("ready", [[1, 2, 3], [9, 2, 3]], script) == [False, False, True, kept, True]
    served = (page_model.PARTS / "serve.js").read_text()
    asks = re.findall(r"^      (next|look|experts|sharpest|table): .*? => (reader\.ready && )?say", served, re.M)
    assert len(asks) == 5
    assert all(guarded for _, guarded in asks)


@pytest.mark.parametrize(("pattern", "taps"), [("AA", 4), ("SA", 4), ("G7", 0)])
def test_every_question_stands_directly_behind_the_context(tmp_path, pattern, taps):
    script = export.script(path := export.write(small(tmp_path, pattern, taps=taps), 4, tmp_path, tmp_path))
    lm, asked = checkpoints.load(path.name, tmp_path), [7, 99, 7]
    told = [text(n, n) for n in (130, 64, 63, 1)]
    for ids, got in zip(told, node("recall", [{"ids": ids, "asked": asked} for ids in told], script), strict=True):
        for one, p in zip(asked, got, strict=True):
            want = torch.from_numpy(reference(lm, [*ids, one])[-1]).double().softmax(-1).numpy()
            np.testing.assert_allclose(p, want, rtol=1e-3, atol=1e-9)


def tiny_denoiser(folder):
    torch.manual_seed(3)
    config = {"network": "Denoiser", "D": 48, "L": 2, "Y": 256, "H": 4, "F": 40}
    lm = Denoiser(**{key: value for key, value in config.items() if key != "network"}).eval()
    with torch.no_grad():
        for p in lm.parameters():
            p.add_(0.3 * torch.randn_like(p))
    checkpoints.save("holes", lm, config, {}, folder)
    return "holes"


@pytest.mark.parametrize("real", [False, pytest.param(True, marks=[] if LONG else pytest.mark.skip(
    reason="the kept denoiser in node takes a minute: POSTX_LONG=1"))])  # fmt: skip
def test_holes_are_filled_as_the_package_fills_them(tmp_path, packed, real):
    if real:
        script, lm = packed("masked", 4)
    else:
        path = export.write(tiny_denoiser(tmp_path), 4, tmp_path, tmp_path)
        script, lm = export.script(path), checkpoints.load(path.name, tmp_path)
    ids = [*b"Return the ", *[256] * 9, *b" of the file, \xc3."]
    got = np.array(node("denoise", ids, script))
    with torch.no_grad():
        want = lm(torch.tensor([ids]))[0].numpy()
    assert np.abs(got - want).max() <= 1e-4 * np.abs(want).max()
    given = torch.tensor([[-1 if id_ == 256 else id_ for id_ in ids]])
    for steps, filled in zip((9, 4), node("fill", [{"ids": ids, "steps": n} for n in (9, 4)], script), strict=True):
        assert filled == masked.remask(lm, given, 256, steps=steps, temperature=0).ids_BT[0].tolist()


def test_bytes_survive_the_text_box():
    rng = np.random.default_rng(0)
    texts = [list(range(256)), list("\uf7a0\ufeff𝛼é".encode())]
    texts += [text(int(n), int(n)) for n in rng.integers(0, 200, 40)]
    for bytes_, (shown, back) in zip(texts, node("spell", texts), strict=True):
        assert back == bytes_
        assert "\r" not in shown
        assert "\0" not in shown
    assert node("spell", [list("é ﬀ 𝛼\n".encode())])[0][0] == "é ﬀ 𝛼\n"


def test_the_exponential_has_ten_digits():
    x = np.concatenate([np.linspace(-690, 690, 999), np.linspace(-2, 2, 99), [0.0, -1e-9, -745.0, -1e4]])
    np.testing.assert_allclose(np.array(node("exp", x.tolist()), float), np.exp(x), rtol=1e-10)


def test_bytes_written_one_by_one_are_those_written_at_once(tmp_path):
    script = export.script(export.write(small(tmp_path, "SA"), 4, tmp_path, tmp_path))
    once, pieces, singly = node("draws", [40, 8, 1], script)
    assert once == pieces == singly
    x = np.array(node("numbers", [[seed, place] for seed in range(10) for place in range(1000)])).reshape(10, 1000)
    assert np.abs(np.sort(x) - np.linspace(0, 1, 1000)).max() < 1.95 / np.sqrt(1000)  # Kolmogorov's, at 1 of 1,000
    assert np.abs(np.corrcoef(x) - np.eye(10)).max() < 0.15
    assert np.abs(np.mean((x[:, 1:] - 0.5) * (x[:, :-1] - 0.5)) * 12) < 0.04  # one place and the next


def test_draws_follow_the_probabilities():
    logits = [0.0, 2.0, 1.0]
    p = np.exp(np.array(logits) / 0.5) / np.exp(np.array(logits) / 0.5).sum()
    edges = p.cumsum()
    numbers = [0.0, edges[0] - 1e-6, edges[0] + 1e-6, edges[1] - 1e-6, edges[1] + 1e-6, 1 - 1e-9]
    assert node("draw", [[logits, 0.5, x] for x in numbers]) == [0, 0, 1, 1, 2, 2]
    assert node("draw", [[[1.0, 3.0, 3.0], 0, 0.9]]) == [1]


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"pattern": "M"}, "block 0"),
        ({"pattern": "A(AS)"}, "block 1 is not one mixer"),
        ({"pattern": "AA", "options": {"A": {"window": 8}}}, "attention of block 0"),
        ({"pattern": "SA", "mlp": "F", "options": {"A": {"qk_norm": True}}}, "attention of block 1"),
        ({"pattern": "S", "mlp": "F", "options": {"S": {"norm": False}}}, "SSD of block 0"),
        ({"pattern": "A", "options": {"F": {"activation": "gelu"}}}, "SwiGLU"),
        ({"pattern": "A", "mlp": "E", "options": {"E": {"shared": 8}}}, "block 0 has another mixture"),
        ({"pattern": "A", "mlp": "E", "options": {"E": {"sigmoid": True}}}, "block 0 has another mixture"),
        ({"pattern": "77", "mlp": "F", "options": {"7": {"H": 2, "value_rank": 4}}}, "RWKV-7 of block 1"),
        ({"pattern": "A", "tied": False}, "tied head"),
        ({"pattern": "A", "softcap": 3.0}, "bends"),
    ],
)
def test_what_the_page_has_no_code_for_is_refused(config, says):
    with pytest.raises(ValueError, match=says):
        export.describe(LM(D=16, **config))


def test_a_denoiser_says_that_it_is_one():
    told = export.describe(Denoiser(16, 2, H=2, F=24))
    assert told["network"] == "denoiser"
    assert told["Y"] == 257
    assert [block["mixer"] for block in told["blocks"]] == ["attention"] * 2


@pytest.mark.parametrize(("name", "bits"), [("hybrid", 5), ("hybrid", None), ("ternary", 4)])
def test_widths_that_are_not_there_are_named(tmp_path, name, bits):
    with pytest.raises(ValueError, match=f"bits: {name} is written in"):
        export.write(name, bits, tmp_path)


def test_four_bits_weigh_at_most_two_and_a_half_megabytes(packed):
    script, _ = packed("hybrid", 4)
    assert script.stat().st_size <= 2.5e6
    assert script.with_name("hybrid_4.safetensors").stat().st_size < script.stat().st_size
