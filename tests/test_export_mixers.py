"""The page's mixers with a table, with and without its program of WebAssembly, against those of the package."""

import math

import numpy as np
import pytest
import torch
from page_model import NEEDS_NODE, PROMPTS, at_once, node, reference, small, text

from experiments import one_recipe
from postx import export
from postx.models import checkpoints
from postx.models.lm import LM

pytestmark = NEEDS_NODE


@pytest.mark.parametrize("pattern", ["GA", "77", "SG"])
@pytest.mark.parametrize("plain", [False, True])
def test_the_same_bytes_are_written_at_16_bits(tmp_path, pattern, plain):
    path = export.write(small(tmp_path, pattern), 16, tmp_path, tmp_path)
    lm, prompts = checkpoints.load(path.name, tmp_path), [list(prompt.encode()) for prompt in PROMPTS]
    told = node("write", {"prompts": prompts, "n": 64}, export.script(path), plain)
    for prompt, got in zip(prompts, told, strict=True):
        assert got == greedy(lm, [0, *prompt], 64)


@torch.no_grad()
def greedy(lm, ids, n):
    (logits, S), found = lm(torch.tensor([ids]), form=at_once), []
    for _ in range(n):
        found.append(int(logits[0, -1].argmax()))
        logits, S = lm(torch.tensor([[found[-1]]]), S, form=at_once)
    return found


def test_two_layers_of_the_models_of_the_one_recipe(tmp_path):
    """Gated DeltaNet, RWKV-7 and the hybrid with experts at their full width, as they will be kept."""
    for name in ("gated_deltanet", "rwkv7", "whole_machine"):
        run = one_recipe.runs()[name]
        config = {key: run[key] for key in ("D", "Y", "options", "mlp")} | {"pattern": run["pattern"][1:3]}
        torch.manual_seed(0)
        checkpoints.save(name, lm := LM(**config), config, {}, tmp_path)
        path = export.write(name, 4, tmp_path, tmp_path)
        ids, lm = text(60, 1), checkpoints.load(path.name, tmp_path)
        got, want = np.array(node("logits", ids, export.script(path))), reference(lm, ids)
        assert np.abs(got - want).max() <= 1e-4 * np.abs(want).max()


@pytest.mark.parametrize("plain", [False, True])
def test_sums_of_the_program_are_those_of_javascript(plain):
    rng, asked = np.random.default_rng(0), []
    for O, I in ((1, 4), (8, 32), (19, 36), (40, 192), (3, 7)):  # rows of 7 are not for the program
        shapes = {"W": O * I, "x": I, "y": O, "S": O * I, "keep": O, "w": O, "v": I}
        asked.append({name: rng.normal(size=n).tolist() for name, n in shapes.items()})
    for ask, got in zip(asked, node("sums", asked, "", plain), strict=True):
        told = {name: np.array(value) for name, value in ask.items()}
        W, S = (told[name].reshape(-1, len(ask["x"])) for name in "WS")
        assert got["program"] != plain
        np.testing.assert_allclose(got["times"], W @ told["x"], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(got["mix"], 1 + told["y"] @ W, rtol=1e-5, atol=1e-5)
        faded = told["keep"][:, None] * S + told["w"][:, None] * told["v"]
        np.testing.assert_allclose(got["write"], faded.ravel(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("pattern", ["S", "G", "7"])
def test_half_lives_are_those_of_the_decays(tmp_path, pattern):
    path = export.write(small(tmp_path, pattern), 4, tmp_path, tmp_path)
    lm, ids, seen = checkpoints.load(path.name, tmp_path), text(90, 9), []

    def look(mixer, *z, **more):
        seen.append(z[-1])  # the log-decay
        return at_once(mixer, *z, **more)

    with torch.no_grad():
        lm(torch.tensor([[0, *ids]]), form=look)
    g_TX = seen[0][0].flatten(1)[-64:].mean(0)
    got = np.concatenate([told["halves"] for told in node("tables", {"ids": ids, "heads": 9}, export.script(path))])
    np.testing.assert_allclose(got, -math.log(2) / g_TX.numpy(), rtol=1e-3)
