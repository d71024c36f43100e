"""postx plan: the planner's numbers in words, and what goes wrong in one line."""

import pytest

from postx import cli, planner
from postx.planner.words import say, three


def said(capsys, *argv):
    assert cli.main(["plan", *argv]) == 0
    return capsys.readouterr().out


def test_a_published_model(capsys):
    out = said(capsys, "Llama-3-8B", "--context", "512", "--device", "RTX 4090")
    plan = planner.plan("Llama-3-8B", context=512, device="RTX 4090")
    assert out.startswith("Llama-3-8B on RTX 4090, 24 GB: 1 x 512 tokens; bits: weight 16, cache 16, state 32\n")
    assert f"at most {three(plan.found['tokens_a_second'])} tokens a second; bandwidth binds" in out
    assert "weights 16.1 GB, cache 67.1 MB, state 0 B" in out
    assert "\n".join(plan.sentences()) in out
    assert "recall     not published" in out
    assert "benchmark  MMLU, 5-shot: 66.6 (github.com/meta-llama/llama3" in out
    assert "measured   54.3 tokens a second at 16 bits, 1 x 512 tokens (llama.cpp" in out
    assert "served by  vLLM: LlamaForCausalLM, SGLang: llama.py, llama.cpp: llama" in out


def test_every_option_reaches_the_planner(capsys):
    out = said(capsys, "Jamba", "--context", "64k", "--users", "4", "--bits", "4.5", "--cache-bits", "8",
               "--state-bits", "16", "--device", "A100", "--memory", "100 GB", "--price", "2", "--window", "1k",
               "--layers", "LMMMAMMM" + "MMMMAMMM" * 3)  # fmt: skip
    plan = planner.plan("Jamba", context=65536, batch=4, weight_bits=4.5, cache_bits=8, state_bits=16, device="A100",
                        memory=100e9, price=2, layers="LMMMAMMM" + "MMMMAMMM" * 3, window=1024)  # fmt: skip
    assert f"memory   {say(plan.found['total_bytes'], 'bytes')}:" in out
    assert "$2.00 an hour" in out
    assert "where 90 GB" in out or "of the 90 GB" in out
    assert "quality  not published: these layers are your own" in out
    own = said(capsys, "SSSA", "--width", "1024")
    assert say(planner.plan("SSSA", width=1024).found["weight_bytes"], "bytes") in own
    assert "bits: weight 16" in own


def test_the_question_turned_round(capsys):
    out = said(capsys, "--fit", "24 GB, 64k tokens, 16 users", "--must", "recall")
    head, _, columns, row, *_ = out.splitlines()
    assert head == "24 GB, 16 x 65,536 tokens, must recall: 1 of 21 models survive"
    assert columns.split()[:3] == ["model", "bits", "memory"]
    assert row.split()[0] == "Falcon-H1-0.5B"
    assert "\nNemotron-3-Nano-30B-A3B\n  needs 23 GB at 4 bits: weights 15.8 GB" in out
    assert "\nMamba-2.8b\n  published for 2,048 tokens, 65,536 are asked\n  no layer keeps every token: 24.9 MB" in out
    flags = said(capsys, "--fit", "", "--memory", "24GB", "--context", "64k", "--users", "16", "--must", "recall")
    assert flags == out
    eight = said(capsys, "--fit", "24 GB, 64k tokens, 16 users", "--bits", "8").splitlines()
    assert eight[0].endswith("16 x 65,536 tokens: 6 of 21 models survive")


def test_list(capsys):
    out = said(capsys, "--list")
    assert all(name in out for name in (*planner.rows.catalogue(), *planner.facts.devices()))
    assert "8,030,261,248" in out


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        ([], "name a MODEL, or --fit, or --list"),
        (["GPT-5"], "model 'GPT-5' is neither published nor a pattern; there are Llama-3-8B"),
        (["Jamba", "--context", "lots"], "--context: expected a number such as 8192, 64k or 24 GB, got 'lots'"),
        (["Jamba", "--batch", "0"], "batch: expected a number from 1 up, got 0"),
        (["Jamba", "--device", "TPU"], "device 'TPU' is not here; there are Phone"),
        (["SSSA", "--width", "100"], "width: expected a multiple of 128, got 100"),
        (["--fit", "24 GB, 64k tokens"], "--fit: say also the users"),
        (["--fit", "24 GB, 64k, 16 users"], "cannot read '64k'"),
        (["--fit", "24 GB, 64k tokens, many users"], "--fit: expected a number such as"),
        (["--fit", ""], "--fit: say also the memory and the context and the users"),
    ],
)
def test_errors_are_one_line_and_code_1(capsys, argv, told):
    assert cli.main(["plan", *argv]) == 1
    out = capsys.readouterr()
    assert out.out == ""
    assert out.err.startswith("postx plan: ")
    assert told in out.err
    assert out.err.count("\n") == 1


def test_help_tells_a_stranger(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["plan", "--help"])
    assert stop.value.code == 0
    out = capsys.readouterr().out
    assert 'postx plan --fit "24 GB, 64k tokens, 16 users" --must recall' in out
    assert all(f"{key} " in out for key in planner.rows.letters(4096))
    with pytest.raises(SystemExit) as stop:
        cli.main(["plan", "Jamba", "--must", "sing"])
    assert stop.value.code == 2
