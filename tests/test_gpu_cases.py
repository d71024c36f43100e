"""What the GPU benchmarks time is what they say: every case of this package, on a CPU and a few tokens."""

import json

import pytest
import torch

from benchmarks import gpu, gpu_cases, gpu_lengths


@pytest.fixture(autouse=True)
def on_a_cpu(monkeypatch):
    monkeypatch.setattr(gpu_cases, "DEVICE", "cpu")


OURS = [(case, who) for case, (_, runs) in gpu_cases.CASES.items() for who in runs if who.startswith("postx")]


@pytest.mark.parametrize(("case", "who"), OURS)
def test_a_case_equals_the_float64_reference(case, who, monkeypatch):
    monkeypatch.setattr(gpu, "CHECK_T", 9)
    row = gpu.row(case, who, checks_only=True)
    assert "refused" not in row
    assert row["error"] < 2e-2
    assert row["errors"].keys() == gpu_cases.CASES[case][0](B=1, T=1).keys()


@pytest.mark.parametrize("part", gpu_lengths.PARTS)
def test_a_part_runs_and_learns(part, monkeypatch):
    monkeypatch.setattr(gpu_lengths, "D", 64)
    monkeypatch.setattr(gpu_lengths, "TOKENS", 16)
    for _, who, make, run in gpu_lengths.PARTS[part]():
        inputs = gpu.leaves(make(T=8))
        y = run(**inputs)
        grads = torch.autograd.grad(y.float().square().sum(), list(inputs.values()))
        assert all(g.isfinite().all() for g in grads), who


def test_what_cudnn_refuses_is_a_row_and_any_other_error_is_raised(monkeypatch):
    def measure(run, inputs):
        raise RuntimeError(reason)

    monkeypatch.setattr(gpu, "measure", measure)
    reason = "cuDNN error: CUDNN_STATUS_NOT_SUPPORTED. This error may appear"
    found = gpu_lengths.row("lstm", "torch's LSTM", dict, None, T=8)
    assert found == {"part": "lstm", "who": "torch's LSTM", "T": 8, "refused": reason}
    reason = "mat1 and mat2 shapes cannot be multiplied"
    with pytest.raises(RuntimeError, match="shapes"):
        gpu_lengths.row("lstm", "torch's LSTM", dict, None, T=8)


def test_two_blocks_have_the_weights_of_one():
    """Within 6%: what "at equal parameters" says."""
    sizes = []
    for make in gpu_lengths.BLOCKS.values():
        with torch.device("meta"):
            sizes.append(sum(p.numel() for p in make().parameters()))
    assert max(sizes) / min(sizes) < 1.06, sizes


def test_ours_come_first_and_an_earlier_record_is_kept(tmp_path):
    order = gpu.tasks(["GLA", "fla hgrn", "fla chunk_hgrn"])
    assert [who for _, who in order] == ["postx", "postx, chunked torch", "fla chunk_hgrn", "fla gla"]
    head = {"device": "H", "versions": {"torch": "2"}}
    old = [{"case": "a", "who": "postx", "ms": 1}, {"case": "b", "who": "postx", "ms": 2}]
    path, new = tmp_path / "gpu.json", {**head, "rows": [{"case": "a", "who": "postx", "ms": 3}]}
    assert gpu.merged(path, new) == new
    path.write_text(json.dumps({**head, "rows": old}))
    assert gpu.merged(path, new)["rows"] == [new["rows"][0], old[1]]
    assert gpu.merged(path, {**new, "device": "other"})["rows"] == new["rows"]
