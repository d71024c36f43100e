"""The command line on tiny models: what it prints, what it writes, and how it fails."""

import io
import json
import re
import subprocess
import sys
import types

import pytest
import torch

from postx import cli, scans
from postx.cli.generate import Writer
from postx.models import checkpoints, writer
from postx.models.denoiser import Denoiser
from postx.models.lm import LM, generate
from postx.models.loading import words
from postx.models.score import windows

CONFIG = {"pattern": "SA", "D": 32, "options": {"S": {"K": 16}, "A": {"H": 2}}}
TEXT = "The quick brown fox reads what stood before, and the lazy dog — it sleeps. " * 40


def kept(folder, config=CONFIG, network=LM):
    torch.manual_seed(0)
    model = network(**{key: x for key, x in config.items() if key != "network"})
    checkpoints.save(checkpoints.PACKED, model, config, {"words": {"ends": [], "begins": [0]}}, folder, torch.float32)
    return str(folder)


@pytest.fixture
def tiny(tmp_path):
    return kept(tmp_path / "tiny")


@pytest.fixture
def text(tmp_path):
    (tmp_path / "mine.txt").write_text(TEXT, encoding="utf8")
    return str(tmp_path / "mine.txt")


def said(capsys, *argv):
    assert cli.main([str(x) for x in argv]) == 0
    return capsys.readouterr()


def test_generate_streams_what_generate_gives(tiny, capsys):
    out = said(capsys, "generate", tiny, "--prompt", "A state", "--tokens", 12, "--temperature", 0)
    lm, ids = checkpoints.load(tiny), torch.tensor([[0, *b"A state"]])
    want = words.Bytes().decode(generate(lm, ids, 12, temperature=0)[0][0].tolist())
    assert out.out == f"A state{want}\n"
    assert "[12 tokens, " in out.err
    assert "growing with the text" in out.err
    again = [said(capsys, "generate", tiny, "--prompt", "A", "--seed", 3, "--top-p", 0.9).out for _ in range(2)]
    assert again[0] == again[1] != said(capsys, "generate", tiny, "--prompt", "A", "--seed", 4, "--top-p", 0.9).out


@pytest.mark.skipif(not writer.COMPILED, reason="NUMBA_DISABLE_JIT leaves no writer")
@pytest.mark.parametrize("pattern", ["SS", "SA", "GF", "DS"])
@pytest.mark.parametrize("draw", [["--temperature", 0], ["--top-p", 0.9, "--seed", 5]])
def test_generate_writes_the_same_with_and_without_the_writer(pattern, draw, tmp_path, capsys, monkeypatch):
    """By compiled loops, or by calls of the model: the same text, the same bytes of state; and the loops did run."""
    path = kept(tmp_path / "tiny", {"pattern": pattern, "D": 32, "options": {"S": {"K": 16}} if "S" in pattern else {}})
    called, made = [], writer.Writer.__call__
    monkeypatch.setattr(writer.Writer, "__call__", lambda self, ids_B: called.append(1) or made(self, ids_B))
    found = []
    for why in (writer.refused, lambda *args, **more: "not now"):
        monkeypatch.setattr(writer, "refused", why)
        out = said(capsys, "generate", path, "--prompt", "A state", "--tokens", 40, *draw)
        found.append((out.out, out.err.partition("; ")[2]))
    assert found[0] == found[1]
    assert len(called) == 39
    if pattern != "SA":
        assert "which it never exceeds" in found[0][1]


def test_generate_says_what_a_recurrence_keeps(tmp_path, capsys):
    path = kept(tmp_path / "ssd", {"pattern": "SS", "D": 32, "options": {"S": {"K": 16}}})
    bytes_ = checkpoints.load(path).capabilities.state_bytes
    told = [said(capsys, "generate", path, "--prompt", "A", "--tokens", n).err for n in (2, 40)]
    assert all(f"state {cli.size(bytes_)}, which it never exceeds ({cli.size(bytes_)})" in line for line in told)


def test_generate_reads_the_standard_input(tiny, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("from a pipe"))
    assert said(capsys, "generate", tiny, "--prompt", "-", "--tokens", 0).out == "from a pipe\n"


def test_generate_fills_with_a_denoiser(tmp_path, capsys):
    path = kept(tmp_path / "masked", {"network": "Denoiser", "D": 32, "L": 1}, Denoiser)
    out = said(capsys, "generate", path, "--prompt", "A", "--tokens", 9)
    assert out.out.startswith("A")
    assert "no state; all tokens at once" in out.err


def test_a_character_of_several_bytes_waits_for_its_last():
    write = Writer(words.Bytes())
    assert [write(b) for b in "a—b".encode()] == ["a", "", "", "—", "b"]
    assert [write("—".encode()[0]), write.rest(), write.rest()] == ["", "\ufffd", ""]


def test_the_first_word_keeps_its_space():
    """Some vocabularies drop the space of a text's first word; what is written is not its first."""
    sounds = types.SimpleNamespace(decode=lambda ids: "".join([" one", " two", " three"][i] for i in ids)[1:])
    write = Writer(sounds, [0])
    assert [write(1), write(2)] == [" two", " three"]


def test_all_threads_are_those_asked_for(tiny, monkeypatch):
    asked = []
    monkeypatch.setattr(scans, "set_threads", asked.append)
    assert cli.main(["look", tiny]) == cli.main(["look", tiny, "--threads", "2"]) == 0
    assert asked == [1, 2]


def test_a_pipe_that_is_no_text(tiny, monkeypatch, capsys):
    for errors in ("strict", "surrogateescape"):
        for argv in (["generate", tiny, "--prompt", "-"], ["compare", tiny, "--text", "-"]):
            monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xff\xfe"), "utf8", errors))
            assert cli.main(argv) == 1
            out = capsys.readouterr()
            assert out.out == ""
            assert f"{argv[2]}" in out.err
            assert "is not UTF-8" in out.err


def test_a_folder_of_a_kept_models_name_is_another(tmp_path, monkeypatch, capsys):
    (tmp_path / "ssd").mkdir()
    monkeypatch.chdir(tmp_path)
    assert "A" in said(capsys, "generate", "ssd", "--prompt", "A", "--tokens", 1).out
    assert "all, as stored" in said(capsys, "look", "ssd").out


def test_what_is_known_of_a_vocabulary_is_checked(tmp_path, tiny, monkeypatch):
    with pytest.raises(ValueError, match="what: expected a kept model, a folder or a .gguf file, got 'nobody'"):
        words.of("nobody")
    for held, told in (("{}", "says nothing of its model's vocabulary"), ("[", "damaged"), ("[]", "damaged")):
        (tmp_path / "tiny" / "packed.json").write_text(held, encoding="utf8")
        with pytest.raises(ValueError, match=told):
            words.of(tiny)

    def damaged(path):
        raise Exception("expected value at line 1")  # noqa: TRY002, as the package does

    tokenizer = types.SimpleNamespace(from_file=damaged)
    monkeypatch.setitem(sys.modules, "tokenizers", types.SimpleNamespace(Tokenizer=tokenizer))
    (tmp_path / "tokenizer.json").write_text("", encoding="utf8")
    with pytest.raises(ValueError, match="tokenizer.json is damaged"):
        words.of(tmp_path)


def test_a_template_is_given_the_marks_of_a_text():
    nothing = lambda: None  # noqa: E731
    tokenizer = types.SimpleNamespace(no_padding=nothing, no_truncation=nothing, get_vocab_size=lambda: 3,
                                      id_to_token=["<s>", "</s>"].__getitem__)  # fmt: skip
    template = "{{ bos_token }}{% for m in messages %}[{{ m['content'] }}]{% endfor %}{{ eos_token }}"
    assert words.Words(tokenizer, [1], [0], template).chat("why?") == "<s>[why?]</s>"
    assert words.Words(tokenizer, [], [], template).chat("why?") == "[why?]"
    with pytest.raises(ValueError, match="template of a conversation cannot be filled in"):
        words.Words(tokenizer, [1], [0], "{{ raise_exception('no') }}").chat("why?")


def test_look_counts_every_byte(tiny, capsys):
    out = said(capsys, "look", tiny).out
    lm = checkpoints.load(tiny)
    total = sum(p.numel() for p in lm.parameters())
    assert f"LM of {total:,} parameters" in out
    assert "pattern     S A" in out
    assert "can         streams, shares prefix, scores exactly" in out
    per_token = 2 * 2 * 16 * 4  # keys and values of 2 heads of 16 float32
    assert f"and {cli.size(per_token)} a token" in out
    last = out.splitlines()[-1]
    assert last.split() == ["all,", "as", "stored", f"{total:,}", *cli.size(4 * total).split()]


@pytest.mark.parametrize(("method", "more"), [("gptq", ["--bits", 3, "--group", 16]), ("ternary", []), ("nf4", [])])
def test_quantize_writes_a_folder_that_load_reads(tiny, tmp_path, text, capsys, method, more):
    out = tmp_path / "small"
    printed = said(capsys, "quantize", tiny, out, "--method", method, *more, "--text", text, "--tokens", 600).out
    record = json.loads((out / "packed.json").read_text(encoding="utf8"))
    small = checkpoints.load(out)
    ids = words.of(out).encode(TEXT[len(TEXT) * 3 // 4 :])[:600]
    bits, tokens, exact = windows(small, ids, [0])
    got = float(bits.sum()) / len(words.Bytes().decode(ids).encode())
    assert exact
    assert int(tokens.sum()) == record["tokens"] == 600
    assert abs(got - record["bits_a_byte_after"]) < 0.01  # what is not packed is in bfloat16
    assert abs(record["bits_a_byte_before"] - record["bits_a_byte_after"]) > 1e-6
    assert f"{record['bits_per_weight']:.2f} bits a weight" in printed
    packed = checkpoints.packed("packed", out)
    assert packed
    assert all(q.method == method for q in packed.values())
    assert said(capsys, "generate", out, "--prompt", "A", "--tokens", 3).out.startswith("A")
    again = tmp_path / "smaller"  # a folder that quantize wrote is a model like any other
    said(capsys, "quantize", out, again, "--method", "uniform", "--text", text, "--tokens", 64)
    assert checkpoints.load(again).pattern == "SA"


def test_compare_asks_all_for_the_same_text(tiny, tmp_path, text, capsys):
    other = kept(tmp_path / "masked", {"network": "Denoiser", "D": 32, "L": 1}, Denoiser)
    out = said(capsys, "compare", tiny, other, "--text", text, "--bytes", 700, "--window", 128, "--new", 4).out
    head, first, second, _, last = out.splitlines()
    assert head.split()[:3] == ["model", "bits", "a"]
    assert first.split()[0] == "tiny"
    assert "<=" in second
    ids = words.Bytes().encode(TEXT.encode()[:700].decode(errors="ignore"))
    bits, tokens, _ = windows(checkpoints.load(tiny), ids, [0], 128)
    assert int(tokens.sum()) == len(ids)
    assert first.split()[1] == f"{float(bits.sum()) / len(ids):.3f}"
    assert last.startswith(f"{len(ids)} bytes of")


def test_windows_ask_every_token_once():
    """With a model of no memory the windows make no difference."""
    torch.manual_seed(0)
    lm = LM("F", 16, 64, mlp="-", options={"F": {"F": 8}}).eval()
    ids = torch.randint(0, 64, (203,)).tolist()
    whole, _, _ = windows(lm, ids, window=1000)
    for size in (2, 7, 64):
        cut, tokens, _ = windows(lm, ids, window=size)
        assert int(tokens.sum()) == 202
        assert abs(float(cut.sum() - whole.sum())) < 1e-3
    for wrong in ({"window": 1}, {"window": 0}, {"window": 2.5}, {"draws": 0}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))}: expected"):
            windows(lm, ids, **wrong)


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["generate", "nobody", "--prompt", "x"], "nobody.safetensors is not in"),
        (["generate", "TINY", "--prompt", "x", "--tokens", "-1"], "--tokens: expected a number from 0 up, got -1"),
        (["generate", "TINY", "--prompt", "x", "--temperature", "-1"], "temperature: expected a finite number >= 0"),
        (["generate", "TINY", "--prompt", "x", "--tokens", "0", "--top-k", "0"], "top_k: expected None or at least 1"),
        (["generate", "TINY", "--prompt", "x", "--seed", str(2**70)], "--seed: expected a number below 2^63"),
        (["generate", "TINY", "--prompt", "x", "--seed", "-1"], "--seed: expected a number from 0 up, got -1"),
        (["generate", "TINY", "--prompt", "\udcff"], "--prompt is not UTF-8"),
        (["generate", "masked", "--prompt", "x", "--top-p", "0.5"], "--top-p: a model that fills in hidden tokens"),
        (["look", "TINY", "--threads", "0"], "threads: expected 1 to "),
        (["compare", "TINY", "--text", "SHORT", "--bytes", "-5"], "--bytes: expected a number from 1 up, got -5"),
        (["compare", "TINY", "--text", "SHORT", "--new", "-1"], "--new: expected a number from 0 up, got -1"),
        (["compare", "TINY", "--text", "SHORT", "--window", "1"], "--window: expected a number from 2 up, got 1"),
        (["quantize", "TINY", "NEW", "--tokens", "-3"], "--tokens: expected a number from 2 up, got -3"),
        (["quantize", "TINY", "NEW", "--text", "SHORT"], "is too short: a few tokens to learn from"),
        (["generate", "TINY", "--prompt", "x", "--chat"], "it has no template of a conversation"),
        (["quantize", "TINY", "TINY"], "is there already; name a folder that is not"),
        (["quantize", "TINY", "NEW", "--method", "none"], "quantizer 'none' does not exist; there are awq"),
        (["quantize", "TINY", "NEW", "--method", "nf4", "--bits", "3"], "--bits: nf4 has 4 bits, not 3"),
        (["quantize", "TINY", "NEW", "--method", "nf4", "--group", "8"], "--group: nf4 has groups of its own"),
        (["quantize", "TINY", "NEW", "--method", "ternary", "--bits", "2"], "--bits: ternary has no choice of bits"),
        (["quantize", "TINY", "NEW", "--base", "gptq"], "--base: only rotate stands on another method"),
        (["compare", "TINY", "--text", "nowhere.txt"], "nowhere.txt"),
        (["compare", "TINY", "--text", "EMPTY"], "is empty"),
        (["look", "EMPTY"], "EMPTY.safetensors is not in"),
    ],
)
def test_errors_are_one_line_and_code_1(tiny, tmp_path, capsys, argv, told):
    (tmp_path / "EMPTY").write_bytes(b"")
    (tmp_path / "SHORT").write_bytes(b"ab")
    places = {"TINY": tiny, "NEW": str(tmp_path / "new"), "EMPTY": str(tmp_path / "EMPTY"),
              "SHORT": str(tmp_path / "SHORT")}  # fmt: skip
    assert cli.main([places.get(x, x) for x in argv]) == 1
    out = capsys.readouterr()
    assert out.out == ""
    assert out.err.startswith(f"postx {argv[0]}: ")
    assert told in out.err
    assert out.err.count("\n") == 1
    assert not (tmp_path / "new").exists()


def test_what_cannot_be_understood_is_code_2(capsys):
    for argv in ([], ["write"], ["generate", "ssd"], ["generate", "ssd", "--prompt", "x", "--tokens", "many"]):
        with pytest.raises(SystemExit) as stop:
            cli.main(argv)
        assert stop.value.code == 2
        assert "usage: postx" in capsys.readouterr().err


def test_help_names_every_command_and_kind_of_model():
    done = subprocess.run([sys.executable, "-m", "postx", "--help"], capture_output=True, text=True, check=True)
    assert all(name in done.stdout for name in cli.COMMANDS)
    assert all(word in done.stdout for word in ("config.json", ".gguf", "hf:owner/name", "attention, "))
    assert set(checkpoints.kept()) <= set(re.findall(r"\w+", cli.MODELS))
