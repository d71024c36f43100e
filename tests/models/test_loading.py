"""Loading published checkpoints: sizes, shards, GGUF, the hub, and what is said when something does not fit."""

import json
import subprocess
import sys
import types
from pathlib import Path

import published
import pytest
import torch
from safetensors.torch import save_file

from postx.models import checkpoints
from postx.models.lm import count
from postx.models.loading import batch, files, fill, from_gguf, rotary
from postx.models.loading.config import Config
from postx.models.quantized import round_inputs

SIZES = json.loads((Path(__file__).parent / "published_sizes.json").read_text(encoding="utf8"))


@pytest.fixture
def folder(tmp_path):
    """The tiny llama of the references, and its tensors."""
    about = json.loads((published.FOLDER / "llama.json").read_text(encoding="utf8"))
    (tmp_path / "config.json").write_text(json.dumps(about["config"]), encoding="utf8")
    tensors = {key: torch.from_numpy(published.weight(key, shape)) for key, shape in about["shapes"].items()}
    save_file(tensors, tmp_path / "model.safetensors")
    return tmp_path, tensors


@pytest.mark.parametrize("name", SIZES)
def test_published_parameter_counts(name):
    about = SIZES[name]
    total = count(fill.build(about["config"])).total
    off = abs(total - about["total"])
    assert off == 0 if about["rounded_to"] == 1 else off <= about["rounded_to"] / 2, total


def test_every_model_type_has_a_published_size():
    assert {about["config"]["model_type"] for about in SIZES.values()} == set(fill.known())


def test_shards_are_one_model(folder, tmp_path):
    path, tensors = folder
    want = checkpoints.load(path).state_dict()
    names = sorted(tensors)
    (path / "model.safetensors").unlink()
    where = {}
    for n, part in enumerate((names[:9], names[9:])):
        file = f"model-{n + 1:05}-of-00002.safetensors"
        save_file({key: tensors[key] for key in part}, path / file)
        where |= dict.fromkeys(part, file)
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}), encoding="utf8")
    got = checkpoints.load(path).state_dict()
    assert all(torch.equal(got[key], want[key]) for key in want)
    (path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ValueError, match="names model-00002-of-00002.safetensors, which the folder does not have"):
        checkpoints.load(path)


def test_weights_that_do_not_fit_are_listed_by_name(folder):
    path, tensors = folder
    broken = dict(tensors)
    broken["model.layers.1.mlp.odd.weight"] = broken.pop("model.layers.1.mlp.up_proj.weight")
    broken["model.norm.weight"] = torch.zeros(31)
    save_file(broken, path / "model.safetensors")
    with pytest.raises(ValueError, match="do not fit") as error:
        checkpoints.load(path)
    told = str(error.value)
    assert "missing: model.layers.1.mlp.up_proj.weight;" in told
    assert "unknown: model.layers.1.mlp.odd.weight;" in told
    assert "of another shape: model.norm.weight gives [31], norm.weight is [32]" in told


def test_a_wrong_folder_says_what_was_expected(tmp_path, folder):
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ValueError, match=r"expected a folder with config.json and model.safetensors.*it has nothing"):
        checkpoints.load(empty)
    (empty / "config.json").write_text("{}", encoding="utf8")
    (empty / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ValueError, match="a pickle runs code"):
        checkpoints.load(empty)
    path, _ = folder
    (path / "model.safetensors").write_bytes(b"half of a file")
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        checkpoints.load(path)
    with pytest.raises(FileNotFoundError, match=r"kept models there: .*no folder or \.gguf file 'nothing/of/the/kind'"):
        checkpoints.load("nothing/of/the/kind")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"model_type": "gpt2"}, r"model_type 'gpt2' is not known here; there are bamba, "),
        ({"hidden_size": None}, "no 'hidden_size', which llama needs"),
        ({"hidden_act": "mish"}, "activation 'mish' is not known"),
        ({"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4}}, "rope_type 'dynamic' is not known"),
        ({"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4}}, "rope_type 'linear' needs 'factor'"),
        ({"hidden_size": "many"}, "a value of it is no llama's"),
        ({"num_attention_heads": 0}, "a value of it is no llama's"),
        ({"model_type": ["llama"]}, r"model_type \['llama'\] is not known here"),
        ({"quantization_config": "fp8"}, "weights packed by 'fp8' cannot be read"),
        ({"model_type": "granitemoehybrid"}, "no 'layer_types', which granitemoehybrid needs"),
        ({"model_type": "lfm2", "layer_types": ["conv", "sliding_attention"]}, "of kind sliding_attention; there"),
        ({"model_type": "nemotron_h", "attention_bias": False, "mlp_bias": False, "hybrid_override_pattern": "MX"},
         "layers of kind X; there are M, "),  # fmt: skip
        ({"model_type": "qwen2", "use_sliding_window": True}, "use_sliding_window=True is not supported, only False"),
    ],
)
def test_a_config_that_is_not_understood(folder, change, told):
    path, _ = folder
    config = json.loads((path / "config.json").read_text(encoding="utf8"))
    (path / "config.json").write_text(json.dumps(config | change), encoding="utf8")
    with pytest.raises(ValueError, match=told):
        checkpoints.load(path)


@pytest.mark.parametrize("text", ["[]", "null", "3", '{"model_type"', '"llama"'])
def test_a_json_file_that_holds_something_else(folder, text):
    path, _ = folder
    (path / "config.json").write_text(text, encoding="utf8")
    with pytest.raises(ValueError, match="config.json is damaged"):
        checkpoints.load(path)
    (path / "model.safetensors").unlink()
    for held in (text, f'{{"weight_map": {text}}}'):
        (path / "model.safetensors.index.json").write_text(held, encoding="utf8")
        with pytest.raises(ValueError, match="is damaged"):
            files.Tensors(path)


def test_older_files_say_the_same_in_other_words(folder):
    path, _ = folder
    want = checkpoints.load(path)
    config = json.loads((path / "config.json").read_text(encoding="utf8"))
    base = config.pop("rope_parameters")["rope_theta"]
    (path / "config.json").write_text(json.dumps(config | {"rope_theta": base, "rope_scaling": None}), encoding="utf8")
    got, ids = checkpoints.load(path), torch.arange(9)[None]
    assert torch.equal(got(ids)[0], want(ids)[0])


def test_half_precision_and_device_are_as_asked(folder):
    lm = checkpoints.load(folder[0], dtype=torch.bfloat16)
    assert {p.dtype for p in lm.parameters()} == {torch.bfloat16}
    assert not lm.training


def test_a_linear_stretch_is_positions_divided():
    c = Config(rope_scaling={"type": "linear", "factor": 4.0}, rope_theta=1e4, max_position_embeddings=64)
    turn, sharper = rotary.rope(c, 8)
    plain, _ = rotary.rope(Config(rope_theta=1e4), 8)
    x = torch.randn(1, 5, 2, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    position = torch.arange(5)[None]
    assert sharper == 1
    torch.testing.assert_close(turn.rotate(x, 4 * position), plain.rotate(x, position), rtol=0, atol=1e-12)


def test_left_padding_is_checked():
    ids = torch.arange(8).view(2, 4)
    got, lengths = batch.left_padded(ids, torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]]))
    assert got.tolist() == [[2, 3, 0, 0], [4, 5, 6, 7]]
    assert lengths.tolist() == [2, 4]
    with pytest.raises(ValueError, match="mask_BT: expected each row's padding on the left"):
        batch.left_padded(ids, torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]]))


def hub(monkeypatch, answer):
    monkeypatch.setitem(sys.modules, "huggingface_hub", types.SimpleNamespace(snapshot_download=answer))


def test_the_hub_gives_a_folder(folder, monkeypatch):
    asked = []

    def answer(name, *, revision, allow_patterns):
        asked.append((name, revision))
        assert not any("bin" in pattern for pattern in allow_patterns)
        assert "chat_template.jinja" in allow_patterns
        return str(folder[0])

    hub(monkeypatch, answer)
    assert count(checkpoints.load("hf:owner/tiny@v1.0")).total == 28032
    assert count(checkpoints.load("hf:owner/tiny")).total == 28032
    assert asked == [("owner/tiny", "v1.0"), ("owner/tiny", None)]
    with pytest.raises(ValueError, match="expected hf:owner/name or hf:owner/name@revision"):
        checkpoints.load("hf:tiny")


def test_no_network_is_said_in_one_line(monkeypatch):
    def answer(*_, **__):
        raise OSError("could not resolve the name\nand much more")

    hub(monkeypatch, answer)
    with pytest.raises(ConnectionError) as error:
        checkpoints.load("hf:owner/tiny@main")
    assert "did not give owner/tiny at main" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_package_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ModuleNotFoundError, match=r"huggingface_hub is not installed: pip install 'postx\[real\]'"):
        checkpoints.load("hf:owner/tiny")


def gguf_stand_in(path, tensors, config, monkeypatch):
    """A reader with the interface of the package gguf, over tensors of the published layout."""
    back = {theirs: ours for ours, theirs in from_gguf.TENSORS.items()}
    found = []
    for name, x in tensors.items():
        stem, _, last = name.rpartition(".")
        layer, inner = "", stem
        if stem.startswith("model.layers."):
            _, _, i, inner = stem.split(".", 3)
            layer = f"blk.{i}."
        if inner.endswith(("q_proj", "k_proj")):  # the halves of a head next to each other, as llama.cpp wants them
            H = config["num_attention_heads"] if inner.endswith("q_proj") else config["num_key_value_heads"]
            x = x.unflatten(0, (H, 2, -1)).transpose(1, 2).flatten(0, 2)
        data = x.numpy()
        name = f"{layer}{back[inner]}.{last}"
        found.append(types.SimpleNamespace(name=name, data=data, tensor_type="F32", shape=list(data.shape[::-1])))
    keys = {"general.architecture": "llama"} | {
        f"llama.{theirs}": config.get(ours, config["rope_parameters"]["rope_theta"])
        for ours, theirs in from_gguf.CONFIG.items() if ours in config or ours == "rope_theta"}  # fmt: skip
    fields = {key: types.SimpleNamespace(contents=lambda x=x: x) for key, x in keys.items()}

    def reader(asked):
        assert asked == str(path)
        return types.SimpleNamespace(fields=fields, tensors=found)

    quants = types.SimpleNamespace(dequantize=lambda data, kind: data)
    monkeypatch.setitem(sys.modules, "gguf", types.SimpleNamespace(GGUFReader=reader, quants=quants))


def test_a_gguf_file_is_the_published_folder(folder, monkeypatch):
    path, tensors = folder
    config = json.loads((path / "config.json").read_text(encoding="utf8"))
    tensors = {key: x for key, x in tensors.items() if not key.endswith("bias")}
    config |= {"attention_bias": False, "mlp_bias": False}
    (path / "config.json").write_text(json.dumps(config), encoding="utf8")
    save_file(tensors, path / "model.safetensors")
    file = path / "tiny.gguf"
    file.write_bytes(b"")
    gguf_stand_in(file, tensors, config, monkeypatch)
    got, want, ids = checkpoints.load(file), checkpoints.load(path), torch.arange(9)[None]
    torch.testing.assert_close(got(ids)[0], want(ids)[0], rtol=0, atol=1e-6)
    sys.modules["gguf"].GGUFReader(str(file)).fields["general.architecture"].contents = lambda: "bert"
    with pytest.raises(ValueError, match="a GGUF file of architecture 'bert'"):
        checkpoints.load(file)


def test_the_core_imports_no_extra():
    code = (
        "import importlib, pkgutil, sys, postx\n"
        "for m in pkgutil.walk_packages(postx.__path__, 'postx.'):\n"
        "    try:\n"
        "        if not m.name.endswith('__main__'): importlib.import_module(m.name)\n"
        "    except ModuleNotFoundError as error:\n"
        "        assert error.name == 'triton', error\n"
        "print(*{'gguf', 'tokenizers', 'huggingface_hub', 'transformers'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr


def test_bitnet_in_two_bits_and_with_rounded_inputs(tmp_path):
    """Four rows of trits in a byte and a scale, as published, are the same model as their numbers."""
    about = json.loads((published.FOLDER / "bitnet.json").read_text(encoding="utf8"))
    tensors = {key: torch.from_numpy(published.weight(key, shape)) for key, shape in about["shapes"].items()}
    packed, plain = dict(tensors), dict(tensors)
    for key in [key for key in tensors if key.endswith("_proj.weight")]:
        trits, scale = tensors[key].mul(2).round().clamp(-1, 1), torch.tensor([0.37])
        rows = (trits + 1).to(torch.uint8).chunk(4)
        packed[key] = sum(part << (2 * n) for n, part in enumerate(rows)).to(torch.uint8)
        packed[f"{key}_scale"], plain[key] = scale, trits * scale
    how = {"quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "offline"}
    made = {}
    for name, held, more in (("packed", packed, {"quantization_config": how}), ("plain", plain, {})):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(about["config"] | more), encoding="utf8")
        save_file({key: x.contiguous() for key, x in held.items()}, tmp_path / name / "model.safetensors")
        made[name] = checkpoints.load(tmp_path / name)
    ids = torch.arange(9)[None]
    want = round_inputs(made["plain"], 8)(ids)[0]
    torch.testing.assert_close(made["packed"](ids)[0], want, rtol=1e-5, atol=1e-5)
    config = {"network": "published", "config": made["packed"].published}
    checkpoints.save("packed", made["packed"], config, {}, tmp_path / "kept", torch.float32)
    again = checkpoints.load(tmp_path / "kept")  # as `postx quantize` writes it: its inputs are rounded there too
    torch.testing.assert_close(again(ids)[0], want, rtol=1e-5, atol=1e-5)
    other = {"quantization_config": {"quant_method": "fp8"}}
    (tmp_path / "packed" / "config.json").write_text(json.dumps(about["config"] | other), encoding="utf8")
    with pytest.raises(ValueError, match="weights packed by 'fp8' cannot be read"):
        checkpoints.load(tmp_path / "packed")
