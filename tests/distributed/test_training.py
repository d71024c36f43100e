"""Training on two ranks is training on one, also where a checkpoint changes hands; a killed rank ends all, clearly."""

import dataclasses
import json
import subprocess
import sys

import pytest
import ranks
import torch
import training
from tiny import one_thread

from postx.train import Config, train

pytestmark = [
    pytest.mark.usefixtures(one_thread.__name__),
    pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL; ranks join by another store"),
]


class Stopped(Exception):
    pass


def stop():
    raise Stopped


def alone(way, checkpoint=None, batch=training.batch, **more):
    return train(training.model(way), batch, dataclasses.replace(training.SMALL, checkpoint=checkpoint, **more))


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """The folder and the end of `torch.distributed.run` with two ranks; one is killed in the third training."""
    folder = tmp_path_factory.mktemp("ranks")
    with pytest.raises(Stopped):
        alone("fsdp", str(folder / "cut.safetensors"), training.stop_at(4, stop), checkpoint_every=4)
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run([*run, training.__file__, str(folder)], env=ranks.environment(), timeout=200,
                          capture_output=True, text=True, check=False)  # fmt: skip
    return folder, done


def losses(log):
    return torch.tensor([[row["loss"], row["norm"], row["tokens"]] for row in log])


@pytest.mark.parametrize("way", ["ddp", "fsdp"])
def test_two_ranks_are_one(killed, way):
    """fsdp went on from the checkpoint of one process at step 4, ddp began anew; rows are dealt out unevenly."""
    folder, done = killed
    assert (folder / "found.json").exists(), done.stderr[-4000:]
    found = json.loads((folder / "found.json").read_text(encoding="utf8"))
    torch.testing.assert_close(losses(found[way]), losses(alone(way)), rtol=0, atol=2e-5)


def test_a_killed_rank_ends_all_and_says_how_to_go_on(killed):
    folder, done = killed
    assert done.returncode != 0
    assert "RankLost: rank 0 of 2" in done.stderr  # it saw the other one go, or torchrun told it
    assert f"The same command, with any number of ranks, goes on from {folder / 'killed.safetensors'}" in done.stderr


def test_one_process_goes_on_where_two_ranks_were_killed(killed):
    folder, _ = killed
    seen = []
    log = alone("ddp", str(folder / "killed.safetensors"), lambda step: seen.append(step) or training.batch(step))
    assert seen == list(range(3, 8))
    torch.testing.assert_close(losses(log), losses(alone("ddp")), rtol=0, atol=2e-5)


def test_what_is_refused():
    with pytest.raises(ValueError, match="ranks: expected one of '', 'ddp', 'fsdp', got 'pipeline'"):
        Config(ranks="pipeline")
    with pytest.raises(ValueError, match="cuda_graph"):
        Config(ranks="ddp", device="cuda", cuda_graph=True)
    with pytest.raises(RuntimeError, match="torch.distributed.run"):
        alone("ddp", ranks="ddp")
