"""Tiny models of every architecture that can be loaded give the logits that transformers gives, or for RWKV-7, which
it does not have, those of the paper's equations (tests/tools/rwkv7_by_hand.py).

References are committed (tests/tools/published.py makes them); weights are made here by the same rule. `make
test-real` asks transformers itself again, and the committed files must still be what it says.
"""

import json
import os

import numpy as np
import published
import pytest
import torch
from safetensors.torch import save_file

from postx.models import checkpoints
from postx.models.lm import generate, leaves
from postx.models.loading import fill
from postx.models.loading.batch import left_padded

NAMES = sorted(published.CONFIGS)
BOUND = 2e-4  # of the largest logit


def about(name):
    return json.loads((published.FOLDER / f"{name}.json").read_text(encoding="utf8"))


def wanted(name):
    with np.load(published.FOLDER / f"{name}.npz") as file:
        return [torch.from_numpy(file[f"row{i}"]) for i in range(len(published.LENGTHS))]


def write(name, folder):
    known = about(name)
    (folder / "config.json").write_text(json.dumps(known["config"]), encoding="utf8")
    tensors = {key: torch.from_numpy(published.weight(key, shape)) for key, shape in known["shapes"].items()}
    save_file(tensors, folder / "model.safetensors")
    return tensors


@pytest.fixture(scope="module", params=[name for name in NAMES if name not in published.ENCODERS])
def model(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    write(request.param, folder)
    return request.param, checkpoints.load(folder)


def far(got, want):
    return float((got - want).abs().max() / want.abs().max())


IDS, LENGTHS = torch.from_numpy(published.ids()), torch.tensor(published.LENGTHS)


@torch.no_grad()
def test_a_prompt_read_at_once(model):
    name, lm = model
    for row, want in enumerate(wanted(name)):
        assert far(lm(IDS[row : row + 1, : len(want)])[0][0], want) < BOUND


@torch.no_grad()
def test_step_by_step_through_a_state_that_was_saved(model, tmp_path):
    name, lm = model
    (want, _), S, got = wanted(name), None, []
    for t in range(len(want)):
        if t == 6:
            torch.save(S, tmp_path / "state.pt")
            S = torch.load(tmp_path / "state.pt", weights_only=True)
        logits, S = lm(IDS[:1, t : t + 1], S)
        got.append(logits[0, 0])
    assert far(torch.stack(got), want) < BOUND


@torch.no_grad()
def test_generation_writes_the_likeliest_of_the_same_logits(model):
    """`generate` may write by another program than `forward` (postx.models.writer): it must not matter."""
    name, lm = model
    prompt = IDS[:1, :6]
    written, _ = generate(lm, prompt, 8, temperature=0)
    logits = lm(torch.cat([prompt, written], 1))[0][0, 5:-1]
    chosen = logits.gather(-1, written[0, :, None])[:, 0]
    assert float((logits.amax(-1) - chosen).max()) < BOUND * float(logits.abs().max())


@torch.no_grad()
def test_ragged_and_left_padded_batches(model):
    name, lm = model
    logits, S = lm(IDS, lengths_B=LENGTHS)
    again = torch.zeros_like(IDS)
    mask = torch.arange(IDS.shape[1]) >= IDS.shape[1] - LENGTHS[:, None]
    for row, n in enumerate(published.LENGTHS):
        again[row, -n:] = IDS[row, :n]
    ids, lengths = left_padded(again, mask)
    assert torch.equal(ids, IDS)
    assert torch.equal(lengths, LENGTHS)
    for row, want in enumerate(wanted(name)):
        assert far(logits[row, : len(want)], want) < BOUND
    # The state of a ragged batch is that of each row alone: it goes on like it.
    token = torch.tensor([[5], [9]])
    both = lm(token, S)[0]
    for row, n in enumerate(published.LENGTHS):
        alone = lm(torch.cat([IDS[row : row + 1, :n], token[row : row + 1]], 1))[0][0, -1]
        assert far(both[row, 0], alone) < BOUND
    assert all(x.shape[0] == 2 for x in leaves(S))


@torch.no_grad()
@pytest.mark.parametrize("name", published.ENCODERS)
def test_an_encoder_gives_the_same_vectors(name, tmp_path):
    write(name, tmp_path)
    net = checkpoints.load(tmp_path)
    for row, want in enumerate(wanted(name)):
        assert far(net(IDS[row : row + 1, : len(want)])[0], want) < BOUND


CHANGES = [
    ("llama3", {"rope_parameters": {"factor": 2.0}}), ("llama", {"rms_norm_eps": 1e-2}),
    ("mistral", {"sliding_window": 4}), ("qwen3", {"rope_parameters": {"factor": 2.0}}),
    ("qwen3", {"rms_norm_eps": 0.1}), ("bitnet", {"rms_norm_eps": 0.1}), ("bitnet", {"hidden_act": "silu"}),
    ("mamba", {"layer_norm_epsilon": 0.1}),
    ("falcon_mamba", {"mixer_rms_eps": 0.1}), ("mamba2", {"time_step_limit": [0.0, 0.7]}),
    ("mamba2", {"time_step_limit": [0.02, 9.0]}), ("bamba", {"rope_parameters": {"partial_rotary_factor": 1.0}}),
    ("falcon_h1", {"key_multiplier": 1.0}), ("falcon_h1", {"ssm_multipliers": [0.7, 1.1, 0.9, 1.2, 1.0]}),
    ("falcon_h1", {"ssm_in_multiplier": 1.0}), ("falcon_h1", {"ssm_out_multiplier": 1.0}),
    ("falcon_h1", {"mlp_multipliers": [1.0, 1.3]}), ("falcon_h1", {"mlp_multipliers": [0.8, 1.0]}),
    ("falcon_h1", {"attention_in_multiplier": 1.0}), ("falcon_h1", {"attention_out_multiplier": 1.0}),
    ("falcon_h1", {"embedding_multiplier": 1.0}), ("falcon_h1", {"lm_head_multiplier": 1.0}),
    ("falcon_h1_norm", {"mamba_norm_before_gate": True}), ("jamba", {"rms_norm_eps": 0.1}),
    ("jamba", {"num_experts_per_tok": 1}), ("lfm2", {"norm_eps": 0.1}), ("nemotron_h", {"time_step_min": 0.001}),
    ("nemotron_h", {"routed_scaling_factor": 1.0}), ("nemotron_h", {"topk_group": 4}),
    ("nemotron_h", {"norm_topk_prob": False}), ("recurrent_gemma", {"logits_soft_cap": 30.0}),
    ("recurrent_gemma", {"attention_window_size": 5}), ("granitemoehybrid", {"residual_multiplier": 1.0}),
    ("granitemoehybrid", {"attention_multiplier": 0.3}), ("granitemoehybrid", {"embedding_multiplier": 1.0}),
    ("granitemoehybrid", {"logits_scaling": 1.0}), ("granitemoehybrid", {"position_embedding_type": "nope"}),
    ("qwen3_next", {"norm_topk_prob": False}), ("qwen3_next", {"rope_parameters": {"partial_rotary_factor": 0.5}}),
    ("rwkv", {"layer_norm_epsilon": 0.1}), ("deepseek_v3", {"rope_interleave": False}),
    ("deepseek_v3", {"routed_scaling_factor": 1.0}), ("deepseek_v3", {"topk_group": 4}),
    ("deepseek_v3", {"rope_parameters": {"factor": 2.0}}),
    ("deepseek_v3", {"rope_parameters": {"mscale_all_dim": 0.0, "mscale": 0.0, "attention_factor": 1.0}}),
    ("zamba2", {"time_step_min": 0.001}), ("zamba2", {"use_mem_rope": False}), ("zamba2", {"rms_norm_eps": 0.1}),
    ("zamba2", {"rope_parameters": {"rope_theta": 100.0}}), ("minimax", {"full_attn_alpha_factor": 1.0}),
    ("minimax", {"full_attn_beta_factor": 1.0}), ("minimax", {"linear_attn_alpha_factor": 1.0}),
    ("minimax", {"linear_attn_beta_factor": 1.0}), ("minimax", {"mlp_alpha_factor": 1.0}),
    ("minimax", {"mlp_beta_factor": 1.0}), ("minimax", {"num_experts_per_tok": 1}), ("minimax", {"rms_norm_eps": 0.1}),
    ("minimax", {"rope_parameters": {"rope_theta": 100.0}}), ("rwkv7", {"norm_eps": 1e-5}),
]  # fmt: skip


@torch.no_grad()
@pytest.mark.parametrize(("name", "change"), CHANGES)
def test_what_a_config_says_is_heard(name, change, tmp_path):
    """One number of the config changed, the same weights: the logits leave the bound, so the bound would see it."""
    write(name, tmp_path)
    config = about(name)["config"]
    for key, value in change.items():
        config[key] = config[key] | value if isinstance(value, dict) else value
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf8")
    want = wanted(name)[0]
    assert far(checkpoints.load(tmp_path)(IDS[:1, : len(want)])[0][0], want) > 5 * BOUND


@torch.no_grad()
def test_files_that_hold_more_or_other_names(tmp_path):
    """Decays of lightning attention that the file holds; RWKV-7's six blends in one tensor, and an unused value."""
    (tmp_path / "m").mkdir()
    tensors = write("minimax", tmp_path / "m")
    slopes = {f"model.layers.{i}.self_attn.slope_rate": torch.full((4, 1, 1), 0.25) for i in (0, 2, 3)}
    save_file(tensors | slopes, tmp_path / "m" / "model.safetensors")
    assert torch.equal(checkpoints.load(tmp_path / "m").blocks[2].mix[0].g_H, torch.full((4,), -0.25))
    tensors, want = write("rwkv7", tmp_path), wanted("rwkv7")[0]
    for i in range(3):
        blends = [tensors.pop(f"model.layers.{i}.attn.x_{x}").flatten() for x in "rwkvag"]
        tensors[f"model.layers.{i}.attn.x_x"] = torch.stack(blends)
    tensors["model.layers.0.attn.v_lora.lora.2.bias"] = torch.ones(32)
    save_file(tensors, tmp_path / "model.safetensors")
    assert far(checkpoints.load(tmp_path)(IDS[:1, : len(want)])[0][0], want) < BOUND
    del tensors["model.layers.1.attn.x_x"]
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="expected attn.x_r, x_w, x_k, x_v, x_a and x_g, or x_x, got 0"):
        checkpoints.load(tmp_path)


def test_every_architecture_has_a_reference():
    assert set(fill.known()) == {about(name)["config"]["model_type"] for name in NAMES}


@pytest.mark.skipif("POSTX_REAL" not in os.environ, reason="asks transformers itself: make test-real")
@pytest.mark.parametrize("name", NAMES)
def test_transformers_still_says_so(name):
    _, shapes, rows, _ = published.reference(name)
    assert shapes == about(name)["shapes"]
    for got, want in zip(rows, wanted(name), strict=True):
        assert far(torch.from_numpy(got), want) < BOUND
