"""Which models the playground offers: those whose weights are kept, and what it says of each, on small stand-ins."""

import hashlib
import json
import re

import numpy as np
import pytest
import torch
from browser import ROOT
from page_model import NEEDS_NODE, node, reference, small, text

from _ext import playground_page
from postx import export
from postx import text as texts
from postx.models import checkpoints, quantized
from postx.models.denoiser import Denoiser

ALWAYS = {"attention": "AA", "hybrid": "SA", "ssd": "SS"}
LATER = {"gated_deltanet": "GG", "rwkv7": "77", "whole_machine": "SA"}
WIDEST = {"gated_deltanet": "16", "rwkv7": "8", "whole_machine": "16"}
T = 64


def run(source):
    return {"parameters": 2_400_000, "test_bits": 1.25,
            "run": {"T": T, "task": {"source": source, "sizes": {"train": 33_554_432}}}}  # fmt: skip


def stand_ins(folder, later):
    """A folder of weights: random models of two blocks under the names of the kept ones, RWKV-7 in rows of 8 bits."""
    for name, pattern in ALWAYS.items():
        small(folder, pattern, name=name, **run("pydoc_data.topics"))
    for name in later:
        mlp = "E" if name == "whole_machine" else "F"
        small(folder, LATER[name], name=name, mlp=mlp, **run("sources of pure-Python wheels, see packages.json"))
    if "rwkv7" in later:
        known = checkpoints.record("rwkv7", folder)
        lm, config, more = checkpoints.load("rwkv7", folder), known.pop("config"), {"feed": False, **export.RANGE}
        rows = quantized.quantized(lm, "uniform", 8, torch.zeros(1, 8, dtype=torch.int64), **more)[1].stored
        checkpoints.save(known.pop("name"), lm, config, known, folder, packed=rows)
    config = {"D": 16, "L": 1, "Y": 256, "H": 2, "F": 24}
    checkpoints.save("masked", Denoiser(**config), {"network": "Denoiser", **config}, {}, folder)
    return folder


@pytest.fixture
def root(tmp_path, monkeypatch):
    """The root of a book with its code and records, and a build folder of its own; texts are short."""
    for name in ("postx", "experiments"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.setattr(playground_page, "MEASURED", (2, 50))
    monkeypatch.setattr(playground_page.export, "calibration", lambda: torch.tensor([text(300, 1)]))
    return tmp_path


@pytest.mark.parametrize("later", [[], ["rwkv7"], list(LATER)])
def test_a_model_is_offered_where_its_weights_are_kept(root, later):
    weights = stand_ins(root / "weights", later)
    folder = playground_page.prepare(root, weights)
    told = playground_page.told(root, folder, weights)
    assert set(told["models"]) == {*ALWAYS, *later}
    assert list(told["models"])[:3] == ["hybrid", "attention", "ssd"]
    scripts = {path.stem for path in folder.glob("*.js")}
    files = [file for model in told["models"].values() for file in model["files"].values()]
    assert scripts == {f"weights_{file['id']}" for file in files} | {"weights_masked_4"} | {
        f"weights_{model}_16" for model in playground_page.REMEMBER}
    for name in later:
        model = told["models"][name]
        assert model["trained"] == T
        assert "2.4 million weights, trained on 33.6 MB of Python code" in model["says"]
        assert set(model["files"]) == ({"4"} if name == "whole_machine" else {"2", "3", "4", WIDEST[name]})
    read = json.loads((folder / "curves.json").read_text())
    assert len(read["long"]) == 2 * T
    assert ("whole_machine" in read["curves"]) == ("whole_machine" in later)


def test_what_rounding_costs_is_kept_for_todays_weights():
    """python -m _ext.playground_page makes the record; one row of it is read here again."""
    kept = json.loads((ROOT / playground_page.SPREAD).read_text(encoding="utf8"))
    assert {name: row["sha256"] for name, row in kept.items()} == {
        name: hashlib.sha256((checkpoints.FOLDER / f"{name}.safetensors").read_bytes()).hexdigest() for name in LATER
    }
    data = playground_page.spread(texts.packages_slice().test)
    read = playground_page._losses("whole_machine", checkpoints.FOLDER, data)
    assert read.shape == (8, 2048)
    assert float(read.mean()) == pytest.approx(kept["whole_machine"]["bits"]["8"], abs=5e-4)


@NEEDS_NODE
def test_what_the_page_loads_and_says_of_them_is_so(root):
    weights = stand_ins(root / "weights", LATER)
    folder = playground_page.prepare(root, weights)
    told = playground_page.told(root, folder, weights)
    data = texts.packages_slice().test
    read = np.stack([data[:50], data[-50:]])  # from both ends, not from one file
    for name in LATER:
        lm = checkpoints.load(f"{name}_4", folder)
        losses = [bits(net, read) for net in (lm, checkpoints.load(name, weights))]
        says = told["models"][name]["files"]["4"]["says"]
        lost = losses[0] - losses[1]
        want = re.fullmatch(r"On unseen text 1\.250 bits a byte before any rounding; on 100 bytes of it "
                            rf"(0\.\d{{3}}) (more|less) than at {WIDEST[name]} bits\.", says)  # fmt: skip
        assert float(want[1]) * (1 if want[2] == "more" else -1) == pytest.approx(lost, abs=0.0006)
        ids = text(40, 2)
        got = np.array(node("logits", ids, folder / f"weights_{name}_4.js"))
        want = reference(lm, ids)
        assert np.abs(got - want).max() <= 1e-4 * np.abs(want).max()
        methods = {q.method for q in checkpoints.packed(f"{name}_4", folder).values()}
        assert methods == ({"gptq"} if name == "whole_machine" else {"uniform"})
        assert len(quantized.linears(lm)) > 4


def bits(lm, read):
    losses = []
    for row in read:
        logits = torch.from_numpy(reference(lm, [0, *row[:-1].tolist()])).log_softmax(-1)
        losses.append(-logits.gather(1, torch.tensor(row[:, None].astype(int))).mean().item() / np.log(2))
    return losses[0] / 2 + losses[1] / 2


def test_a_chapter_names_a_model_that_is_kept(root, monkeypatch):
    monkeypatch.setattr(playground_page, "offered", lambda: {"hybrid": (4,)})
    for name in ("whole_machine", "hybrid"):
        with pytest.raises(ValueError, match="postx-playground: expected a model of a chapter"):
            playground_page.one(root, root, name)
