"""Chapter "one whole machine": its steps, its bill, and the solutions of its exercises, on a small machine."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from page import Page

from _ext import pages
from postx import cost, export
from postx.mixers import ssd
from postx.models import checkpoints, experts, published
from postx.models.lm import LM, count
from postx.models.nn import MoE
from postx.text import packages_slice

PAGE = Page("whole_machine", torch=torch, cost=cost, ssd=ssd)
solution = PAGE.solution
CONFIG = {"pattern": "SA", "D": 32, "Y": 256, "mlp": "E",
          "options": {"A": {"H": 4}, "S": {"K": 8, "V": 16}, "E": {"E": 8, "k": 2, "F": 16}}}  # fmt: skip


@pytest.fixture(scope="module")
def machine(tmp_path_factory):
    """(folder, the full model, the packed one, its codes)."""
    folder = tmp_path_factory.mktemp("machine")
    torch.manual_seed(0)
    lm = LM(**CONFIG, std=0.1)
    checkpoints.save("small", lm, CONFIG, {"test_bits": 8.0}, folder)
    path = export.write("small", 4, folder, folder, ids_BT=export.calibration(2, 128))
    both = (checkpoints.load(name, folder) for name in ("small", path.name))
    return folder, *both, checkpoints.packed(path.name, folder)


@torch.no_grad()
def test_the_steps_are_the_model(machine):
    _, full, small, _ = machine
    one_byte = PAGE.function("one_byte")
    ids = torch.randint(0, 256, (1, 40))
    for net in (full, small):
        _, S = net(ids)
        kept = list(S)
        for byte in (7, 200):  # the state is brought up to date for the next byte
            want, S = net(torch.tensor([[byte]]), S)
            steps = dict(one_byte(net, byte, kept))
            torch.testing.assert_close(steps["logits"], want)
        assert list(steps) == ["embedding", "1 SSD", "1 experts", "2 attention", "2 experts", "logits"]


@pytest.mark.equation("eq-machine-bytes")
def test_the_bill_is_the_active_weights_and_what_is_kept(machine, residual):
    _, full, _, codes = machine
    bill, T, D = PAGE.function("bill"), 100, 32
    rows = bill(full, codes, T)
    assert sum(row[0] for row in rows) == count(full).active + D
    stored = 0
    for name, x in full.named_parameters():
        q = codes.get(name.removesuffix(".weight"))
        size = q.nbytes if q else 2 * x.numel()
        stored += size * 2 / 8 if name in experts.tables(full) else size
    held = 4 * sum(x.numel() for x in full(torch.zeros(1, 1, dtype=torch.int64))[1][0][0]) + 2 * 2 * D * T
    errors = [sum(row[1] for row in rows) - stored - 2 * D, sum(row[3] + row[4] for row in rows) - held]
    assert errors == [0, 0]
    residual(max(map(abs, errors)))


def test_what_is_said_of_the_sizes_is_so():
    theirs = count(published.build("Nemotron-3-Nano-30B-A3B"))
    ours = count(checkpoints.load("whole_machine"))
    assert 7500 < theirs.total / ours.total < 8500
    nano = published.MODELS["Nemotron-3-Nano-30B-A3B"]
    read = theirs.active - nano.Y * nano.D  # of its embedding a token reads one row
    assert 4.5 / 8 * read == pytest.approx(1.8e9, rel=0.03)


def test_weights_are_shared_for_nothing_by_as_many_texts_as_the_page_says():
    """Fetching a weight takes longer than its arithmetic up to 295 texts at 16 bits, 73 at 4."""
    chip = published.H100

    def fetched(bits, B):
        return bits / 8 / chip.bandwidth > 2 * B / chip.flops

    for bits, most in ((16, 295), (4, 73)):
        assert fetched(bits, most)
        assert not fetched(bits, most + 1)


def test_the_weights_that_a_byte_reads_are_as_the_exercise_says(tmp_path):
    path = export.write("whole_machine", 4, tmp_path)
    full, codes = checkpoints.load("whole_machine"), checkpoints.packed(path.name, tmp_path)
    moved = sum(row[1] for row in PAGE.function("bill")(full, codes, 0))
    assert moved == pytest.approx(1.34e6, abs=0.005e6)
    rows, found = PAGE.function("bill")(full, codes, 0)[1:-1], solution("ex-machine-derive")
    mixers = {letter: row[1] for letter, row in zip(full.pattern, rows[::2], strict=True)}
    every = moved + full.pattern.count("S") * (mixers["A"] - mixers["S"])
    assert found["all_attention"] == pytest.approx(every / (len(full.pattern) * found["c"] / 2), rel=0.01)


def test_a_packed_folder_writes_from_the_shell(tmp_path):
    """What the page says of the command line, on the kept model: quantize makes a folder, generate reads it."""
    def postx(*args):
        done = subprocess.run([sys.executable, "-m", "postx", *args], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    out = str(tmp_path / "machine_4")
    assert "bits a weight" in postx("quantize", "whole_machine", out, "--bits", "4", "--tokens", "512")
    written = postx("generate", out, "--prompt", "def f(", "--tokens", "5", "--temperature", "0")
    assert written.startswith("def f(")
    methods = {q.method for q in checkpoints.packed("packed", tmp_path / "machine_4").values()}
    assert methods == {"gptq"}


def test_every_chapter_has_one_line_in_the_list():
    text = "\n".join(cell.source for cell in PAGE.cells)
    others = [path.name for path in pages.files().values() if path.suffix == ".ipynb"]
    listed = text[text.index("## Where each chapter's idea") : text.index("## Where this breaks")]
    for number, name in enumerate(others[:-1], 1):
        assert f"- [{number}]({name}) " in listed
    assert others[-1] == pages.find("whole_machine").name


def test_a_batch_meets_nearly_all_experts():
    met = solution("ex-machine-predict")["met"]
    assert [round(met(n, 8, 2), 2) for n in (1, 8, 64)] == [0.25, 0.9, 1.0]
    assert [round(met(n, 128, 6), 2) for n in (1, 8, 64)] == [0.05, 0.32, 0.95]


def test_the_cache_outgrows_the_weights():
    found = solution("ex-machine-derive")
    assert found["c"] == 1536
    assert found["T"] == pytest.approx(870, abs=5)
    assert found["all_attention"] == pytest.approx(160, abs=5)
    assert found["all_attention"] < found["T"] / 5


def test_rounding_is_repaired_for_packages_that_do_not_judge_it():
    n, judged = 64, packages_slice().test[: 8 * 2048].tobytes()
    seen = {judged[i : i + n] for i in range(len(judged) - n)}
    for row in export.calibration():
        repaired = bytes(row.tolist())
        assert not any(repaired[i : i + n] in seen for i in range(len(repaired) - n))


def test_experts_and_mixers_have_as_many_weights_as_the_exercise_says():
    lm = checkpoints.load("whole_machine")
    named = dict(lm.named_parameters())
    in_experts = sum(named[name].numel() for name in experts.tables(lm))
    in_mixers = sum(x.numel() for name, x in named.items() if ".mix." in name and x.ndim == 2 and "weight" in name)
    assert [round(n / 1e6, 2) for n in (in_mixers, in_experts)] == [1.78, 2.06]


def test_what_a_longer_text_adds_is_above_its_bytes_by_as_much_as_the_page_says():
    rows = json.loads((Path(__file__).parents[2] / "benchmarks/results/writing.json").read_text())["rows"]
    for model, first, last, whole in (("attention", (1.4, 0.7), 1.10, 1.22), ("hybrid", (0.5, 0.25), 1.05, 1.18)):
        at = {r["context"]: (1e3 / r["tokens_per_s"], 1e3 * r["bytes_of_state"] / 4.8e12) for r in rows
              if (r["model"], r["who"], r["batch"]) == (model, "graph", 1)}  # fmt: skip

        def added(near, far, at=at):
            return [b - a for a, b in zip(at[near], at[far], strict=True)]

        took, said = added(1024, 2**17)
        assert [round(took, 1), said] == pytest.approx([*first], abs=0.05)
        assert took / said == pytest.approx(2, abs=0.2)
        for start, ratio in ((2**17, last), (1024, whole)):
            took, said = added(start, 2**20)
            assert took / said == pytest.approx(ratio, abs=0.006)


def test_an_expert_is_taken_out():
    prune = solution("ex-machine-code")["prune"]
    torch.manual_seed(0)
    moe, x = MoE(12, 5, E=4, k=2).double(), torch.randn(1, 60, 12, dtype=torch.float64)
    less, same = prune(moe, 1), moe.weights(x)[1][0, :, 1] == 0
    assert 0 < same.sum() < 60
    torch.testing.assert_close(less(x)[0][0, same], moe(x)[0][0, same])
    assert (less(x)[0] - moe(x)[0])[0, ~same].abs().max() > 1e-6
    assert moe.router.out_features == 4


def test_parts_are_rounded_apart(machine):
    part, full = solution("ex-machine-explore")["part"], machine[1]
    torch.manual_seed(0)
    for mixed in (True, False):
        lm = part(LM(**CONFIG), 3, mixed)
        fresh = dict(LM(**CONFIG).named_parameters())
        assert set(fresh) == set(dict(full.named_parameters()))
        levels = {name: len(x[0].unique()) for name, x in lm.named_parameters() if x.ndim > 1}
        for name, n in levels.items():
            rounded = name.endswith("EDF") or name.endswith("EFD")
            if mixed and rounded:
                assert max(len(row.unique()) for row in experts.rows(dict(lm.named_parameters())[name])) <= 8
            if not mixed and rounded:
                assert n > 8
