"""Published models: weights to the unit, KV bytes as their papers print them, crossovers and refusals."""

import dataclasses

import pytest

from postx import cost
from postx.models import published
from postx.models.published import (
    A100,
    DEEPSEEK_V2,
    DEEPSEEK_V3,
    H100,
    JAMBA,
    LLAMA2_7B,
    LLAMA2_13B,
    LLAMA3_8B,
    LLAMA3_70B,
    MISTRAL_7B,
    MIXTRAL,
)

GIB = 2**30


@pytest.mark.parametrize(("config", "weights"), [
    (LLAMA2_7B, 6738415616), (LLAMA2_13B, 13015864320), (LLAMA3_8B, 8030261248), (LLAMA3_70B, 70553706496),
    (MISTRAL_7B, 7241732096),
])
def test_weights_are_the_released_counts(config, weights):
    assert config.weights() == weights


def test_a_tied_ungated_config_counts_fewer_matrices():
    small = published.Config("toy", L=2, D=8, H=2, G=2, K=4, F=16, Y=10, gated=False, tied=True)
    assert small.matrix_weights() == 2 * (4 * 64 + 2 * 8 * 16) + 80
    assert small.weights() == small.matrix_weights() + 5 * 8


@pytest.mark.equation("eq-kv-cache")
def test_kv_bytes_a_token(residual):
    assert LLAMA3_8B.kv_bytes(1) == 131072
    assert LLAMA3_70B.kv_bytes(1) == 327680
    assert LLAMA3_70B.kv_bytes(1, item=1) == 163840
    assert LLAMA2_13B.kv_bytes(8192) == pytest.approx(6.7e9, rel=0.01)
    block = cost.softmax_attention(999, H=32, G=8, K=128)
    assert LLAMA3_8B.kv_floats(999) == 32 * block.state_floats
    residual(0.0)


def test_published_caches_at_256k_are_gib_and_without_a_window():
    T = 262144
    for config, gib in ((LLAMA2_7B, 128), (MISTRAL_7B, 32), (MIXTRAL, 32), (JAMBA, 4)):
        assert config.kv_bytes(T, rolling=False) == gib * GIB
    assert MISTRAL_7B.kv_bytes(T) == GIB / 2
    assert MISTRAL_7B.kv_bytes(1000) == MISTRAL_7B.kv_bytes(1000, rolling=False)


@pytest.mark.equation("eq-mla-cache")
def test_mla_caches_a_latent_and_one_rotary_key(residual):
    assert DEEPSEEK_V2.kv_floats(1) == 34560
    assert DEEPSEEK_V3.kv_floats(1) == 35136
    assert DEEPSEEK_V3.kv_bytes(1) == 70272
    groups = DEEPSEEK_V3.kv_floats(1) / (DEEPSEEK_V3.L * 2 * DEEPSEEK_V3.K)
    assert groups == 2.25
    residual(0.0)


def test_mistral_span_and_rolling_cache():
    assert MISTRAL_7B.window * MISTRAL_7B.L == 131072
    assert MISTRAL_7B.kv_bytes(32768, rolling=False) == 8 * MISTRAL_7B.kv_bytes(32768)


def test_jamba_keeps_a_fixed_state_beside_its_cache():
    scan_and_inputs = 8192 * 16 + 8192 * 3
    assert JAMBA.fixed_state_floats() == 28 * scan_and_inputs
    assert LLAMA3_8B.fixed_state_floats() == 0


@pytest.mark.equation("eq-crossover")
def test_where_attention_equals_the_weights(residual):
    assert round(LLAMA3_8B.crossover(weights=LLAMA3_8B.weights())) == 30633
    assert round(LLAMA3_8B.crossover("prefill", weights=LLAMA3_8B.weights())) == 61266
    # the same point found in the whole model's cost: attention's share of a decode step is one half
    n = round(LLAMA3_8B.crossover())
    step, first = LLAMA3_8B.decode(n).flops, LLAMA3_8B.decode(1).flops
    assert (step - first) / step == pytest.approx(0.5, abs=1e-3)
    n = round(LLAMA3_8B.crossover("prefill"))
    blocks = 2 * (LLAMA3_8B.matrix_weights() - LLAMA3_8B.Y * LLAMA3_8B.D) * n
    attention = LLAMA3_8B.prefill(n).flops - blocks - 2 * LLAMA3_8B.Y * LLAMA3_8B.D
    head = 2 * LLAMA3_8B.Y * LLAMA3_8B.D * n  # the rule charges the output head at every token
    gap = attention / (blocks + head) - 1
    assert abs(gap) < 1e-3
    residual(abs(gap))


def test_decode_reads_weights_and_cache_once_and_memory_binds():
    n = 4096
    step = LLAMA3_8B.decode(n)
    assert step.flops == 2 * LLAMA3_8B.matrix_weights() + 4 * 32 * 4096 * n
    assert step.bytes == pytest.approx(2 * LLAMA3_8B.matrix_weights() + LLAMA3_8B.kv_bytes(n), rel=1e-3)
    assert cost.roofline(step, H100).binds == "memory"
    assert cost.roofline(LLAMA3_8B.prefill(n), H100).binds == "compute"
    assert step.state_floats == LLAMA3_8B.kv_floats(n)


def test_prefill_is_the_sum_of_its_decode_steps():
    T = 64
    steps = sum(LLAMA3_8B.decode(n).flops for n in range(1, T + 1))
    heads = 2 * (T - 1) * LLAMA3_8B.Y * LLAMA3_8B.D  # prefill scores the last token only
    assert LLAMA3_8B.prefill(T).flops == steps - heads


def test_window_bounds_prefill_and_batch_scales_it():
    long = MISTRAL_7B.prefill(65536)
    assert long.bounded
    assert long.flops < LLAMA3_8B.prefill(65536).flops
    assert LLAMA3_8B.prefill(32, B=3).flops == 3 * LLAMA3_8B.prefill(32).flops


@pytest.mark.parametrize("config", [JAMBA, DEEPSEEK_V3, MIXTRAL])
def test_what_is_not_dense_is_refused_by_name(config):
    for call in (config.prefill, config.decode):
        with pytest.raises(ValueError, match=f"dense Transformers only, and {config.name} has"):
            call(8)
    with pytest.raises(ValueError, match="dense"):
        config.weights()


def test_bad_input_names_the_argument():
    with pytest.raises(ValueError, match="T: expected a whole number >= 1, got 0"):
        LLAMA3_8B.kv_bytes(0)
    with pytest.raises(ValueError, match="where: expected 'decode' or 'prefill', got 'train'"):
        LLAMA3_8B.crossover("train")
    with pytest.raises(dataclasses.FrozenInstanceError):
        LLAMA3_8B.L = 1


def test_every_record_names_its_source():
    records = [c for c in vars(published).values() if isinstance(c, (published.Config, cost.Device))]
    assert len(records) == 11
    assert all(record.source for record in records)
    assert H100.flops / H100.bandwidth == pytest.approx(295, abs=1)
    assert A100.flops / A100.bandwidth == pytest.approx(153, abs=1)
