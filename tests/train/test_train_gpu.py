"""A step captured in a CUDA graph against the same step run eagerly. Skipped where there is no GPU."""

import dataclasses

import pytest
import torch
from test_train_faults import poisonable, poisoned
from tiny import SMALL, Tiny, batch

from postx.train import NotFinite, train

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")


@pytest.mark.parametrize(("dtype", "bound"), [("float32", 1e-4), ("bfloat16", 2e-2)])
def test_a_captured_step_equals_an_eager_one(dtype, bound):
    config = dataclasses.replace(SMALL, steps=40, device="cuda", dtype=dtype)
    eager, graph = Tiny(dropout=0.0), Tiny(dropout=0.0)
    want = train(eager, batch, config)
    got = train(graph, batch, dataclasses.replace(config, cuda_graph=True))
    for one, two in zip(want, got, strict=True):
        assert one["lr"] == two["lr"]
        assert two["loss"] == pytest.approx(one["loss"], rel=bound)
    assert got[-1]["loss"] < got[0]["loss"]
    for (name, p), q in zip(eager.named_parameters(), graph.parameters(), strict=True):
        assert torch.allclose(p, q, rtol=0, atol=bound), name


def test_a_captured_run_resumes(tmp_path):
    config = dataclasses.replace(SMALL, device="cuda", cuda_graph=True, log_every=3)
    kept = dataclasses.replace(config, checkpoint=str(tmp_path / "run"), checkpoint_every=4)
    whole = train(Tiny(dropout=0.0), batch, config)

    def until_killed(step):
        if step == 7:
            raise KeyboardInterrupt
        return batch(step)

    with pytest.raises(KeyboardInterrupt):
        train(Tiny(dropout=0.0), until_killed, kept)
    again = train(Tiny(seed=3, dropout=0.0), batch, kept)
    for one, two in zip(whole, again, strict=True):
        assert two["loss"] == pytest.approx(one["loss"], rel=1e-5)


@pytest.mark.parametrize("cuda_graph", [False, True])
def test_a_fault_on_the_gpu_is_named(cuda_graph):
    config = dataclasses.replace(SMALL, device="cuda", cuda_graph=cuda_graph, log_every=5)
    with pytest.raises(NotFinite, match="step 7: the output of 'embed' is not finite"):
        train(poisonable(), poisoned, config)


def test_a_captured_step_takes_one_shape():
    config = dataclasses.replace(SMALL, device="cuda", cuda_graph=True)
    with pytest.raises(ValueError, match=r"a captured step takes one shape, \(8, 16\), got \(8, 12\)"):
        train(Tiny(), lambda step: tuple(x[:, : 16 - 4 * (step == 3)] for x in batch(step)), config)
