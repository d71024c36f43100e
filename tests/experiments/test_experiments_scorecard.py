"""The scorecard's own parts: the two fused readings equal the package's, and a passage stands where it should."""

import types

import numpy as np
import pytest
import torch

from experiments import scorecard
from experiments.runner import results
from postx.mixers import attention
from postx.parts import tiles


@pytest.mark.parametrize("T", [5, 16, 17, 50])
def test_a_band_in_blocks_is_the_window(T):
    (q, k, v), _ = attention.example(T, B=2, H=4, G=4, K=8, V=8, window=8)
    position = torch.arange(T).expand(2, -1)
    y = scorecard.banded(tiles.Seen(q, k, v, position, position, 0), 8, None)
    expected = attention.chunked(q, k, v, window=8)[0]
    assert (y - expected).abs().max() < 1e-12


def test_one_query_reads_its_cache():
    (q, k, v), _ = attention.example(9, B=2, H=4, G=2, K=8, V=8)
    y = scorecard.read_one(q[:, -1:], k, v, None)
    assert (y - attention.chunked(q, k, v)[0][:, -1:]).abs().max() < 1e-12
    with pytest.raises(ValueError, match="one token"):
        scorecard.read_one(q, k, v, None)


def test_stretches_are_the_same_bytes_at_every_length():
    text = types.SimpleNamespace(test=np.arange(5000) % 251)
    seen = []

    def net(ids):
        seen.append(ids)
        return torch.zeros(*ids.shape, 256), None

    for T in (200, 1000):
        assert scorecard.loss(net, text, T, 1000, 3, torch.device("cpu")) == pytest.approx(8)
        assert seen[-1].shape[1] == T
    assert (seen[0][:, -100:] == seen[1][:, -100:]).all()
    assert scorecard.ends(text.test, 1000, 3)[0] >= 1001
    assert scorecard.ends(text.test, 1000, 3)[-1] == 5000


def test_bits_of_a_model_that_knows_nothing():
    net = lambda ids: (torch.zeros(*ids.shape, 256), None)  # noqa: E731
    rows = [np.zeros(20, np.uint8)] * 3
    assert scorecard.bits(net, rows, 7, torch.device("cpu")) == pytest.approx(8)


def test_a_word_is_asked_for_behind_the_text_that_followed_it():
    names = [bytes(97 + (i * j) % 26 for j in range(1, 17)) for i in range(1, 20)]
    text = types.SimpleNamespace(test=np.full(5000, 32, np.uint8), validation=np.frombuffer(b" ".join(names), np.uint8))
    rows, others = ([bytes(r) for r in scorecard.needles(text, 1000, 3, told)] for told in (True, False))
    for row, other in zip(rows, others, strict=True):
        line, rest = row[:36], row[36:]  # a line break, a name, " = " and a word
        assert line[17:20] == b" = "
        assert {line[1:17], line[20:]} < set(names)
        assert rest == b"()\n" + 1000 * b" " + line
        assert other[36:] == rest
        assert line[20:] != other[20:36]
        assert other[20:36] in names
    assert len({row[:36] for row in rows}) == 3

    def recalls(ids):  # looks the next byte up in the first line; of the text in between it knows nothing
        at = ids.shape[1] - 35
        return torch.nn.functional.one_hot(torch.cat([0 * ids[:, :at], ids[:, 1:36]], 1), 256) * 50.0, None

    told, untold = scorecard.recall(recalls, text, 1000, 3, torch.device("cpu"))
    assert told < 1e-6
    assert untold > 8
    blank = lambda ids: (torch.zeros(*ids.shape, 256), None)  # noqa: E731
    assert scorecard.recall(blank, text, 1000, 3, torch.device("cpu")) == pytest.approx([8, 8])


@pytest.mark.parametrize("name", ["hybrid", "rwkv7"])
def test_a_step_is_the_models_own(name):
    net, ids = scorecard.model(name), torch.randint(256, (2, 20), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        step = scorecard.stepper(net, net(ids[:, :18])[1], 8)
        got = torch.stack([step(ids[:, t]) for t in (18, 19)], 1)
        assert (got - net(ids)[0][:, 18:]).abs().max() < 1e-4
        assert scorecard.agree(net, torch.device("cpu"), T=40) < 1e-3


def test_six_models_of_one_size():
    sizes = {name: sum(p.numel() for p in scorecard.model(name).parameters()) for name in scorecard.NAMES}
    assert len(sizes) == 6
    assert all(abs(n - scorecard.TARGET) < 0.05 * scorecard.TARGET for n in sizes.values())


def test_the_table_of_a_file(tmp_path):
    path = tmp_path / "s.jsonl"
    path.write_text(
        '{"key": "about", "kind": "about"}\n{"key": "a", "kind": "time", "name": "ssd", "T": 256}\n'
    )
    about, rows = scorecard.table(path)
    assert about["kind"] == "about"
    assert list(rows) == [("time", "ssd", 256)]
    assert results.read(tmp_path / "none") == []
