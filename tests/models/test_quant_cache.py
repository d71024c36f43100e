"""A KV cache in fewer bits: what is rounded, what is counted, and that everything is put back."""

import pytest
import torch

from postx.models import quantized_cache
from postx.models.lm import LM, generate
from postx.quant import turbo, uniform


def model(pattern="AS", **attention):
    torch.manual_seed(0)
    options = {"A": {"H": 2, "G": 1, "K": 24} | attention, "S": {"K": 8, "V": 16}}
    lm = LM(pattern, 32, 64, options={k: v for k, v in options.items() if k in pattern}, std=0.2)
    return lm.eval()


IDS = torch.randint(0, 64, (2, 20), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_plain_groups_are_those_of_the_uniform_quantizer():
    lm, seen = model("A"), {}
    layer = lm.blocks[0].mix[0]
    with quantized_cache.rounded(lm, 4, form="plain", group=8) as kept:
        layer.k.register_forward_hook(lambda m, a, y: seen.__setitem__("k", (a[0], y)))
        lm(IDS)
    x, y = seen["k"]
    want = uniform.quantize((x @ layer.k.weight.T).reshape(-1, 24), 4, group=8)
    assert torch.equal(y.reshape(-1, 24), want.dequantize())
    assert kept.bits_per_number == want.bits_per_weight


@torch.no_grad()
def test_keys_and_values_are_those_that_turbo_gives_back():
    lm, seen = model("A"), {}
    layer = lm.blocks[0].mix[0]
    with quantized_cache.rounded(lm, 3) as kept:
        for part in ("k", "v"):  # after the rounding: hooks run in the order in which they were set
            getattr(layer, part).register_forward_hook(
                lambda m, a, y, part=part: seen.__setitem__(part, (a[0], y))
            )
        S = lm(IDS)[1]
    for part in ("k", "v"):
        x, y = seen[part]
        want = turbo.quantize((x @ getattr(layer, part).weight.T).reshape(-1, 24), 3).dequantize()
        assert torch.allclose(y.reshape(-1, 24), want, atol=1e-6)
    assert torch.equal(S[0][0][1].flatten(), seen["v"][1].flatten())  # the cache itself holds them
    assert kept.vectors == 2 * 40
    assert kept.bits_per_number == 3 + 16 / 24
    assert 0.02 < kept.error < 0.05  # 0.034 for long vectors


@torch.no_grad()
def test_more_bits_are_nearer_and_nothing_stays_behind():
    lm = model()
    want, far = lm(IDS)[0], []
    for bits in (1, 2, 4, 6):
        with quantized_cache.rounded(lm, bits):
            far.append(float((lm(IDS)[0] - want).square().mean()))
    assert all(b < 0.6 * a for a, b in zip(far, far[1:], strict=False))
    assert torch.equal(lm(IDS)[0], want)
    with quantized_cache.rounded(lm, 1, parts=("k",)) as kept:
        lm(IDS)
    assert kept.vectors == 40


@torch.no_grad()
def test_one_token_at_a_time_says_the_same():
    lm = model()
    with quantized_cache.rounded(lm, 2, form="prod"):
        text, _ = generate(lm, IDS[:, :4], 8, temperature=0)
        at_once = lm(torch.cat([IDS[:, :4], text], 1))[0]
    assert torch.equal(at_once[:, 3:-1].argmax(-1), text)


def test_what_has_no_such_cache_says_so():
    with pytest.raises(ValueError, match="lm: no attention layer"), quantized_cache.rounded(model("S"), 3):
        pass
    mixed = model("A", conv_size=4)
    with pytest.raises(ValueError, match="lm: a convolution or a norm"), quantized_cache.rounded(mixed, 3):
        pass
    with (
        pytest.raises(ValueError, match="lm: a convolution or a norm"),
        quantized_cache.rounded(model("A", qk_norm=True), 3),
    ):
        pass
    with pytest.raises(ValueError, match="parts: expected"), quantized_cache.rounded(model(), 3, parts=("q",)):
        pass
