"""Published models, built on the meta device, have the published numbers of parameters."""

import pytest

from postx.models import published
from postx.models.lm import Count, count


@pytest.mark.parametrize("name", published.MODELS)
def test_parameters_equal_the_published_ones(name):
    stated, lm = published.MODELS[name], published.build(name)
    assert all(p.is_meta for p in lm.parameters())
    counted = count(lm)
    assert stated.agrees(counted), f"{counted} against {stated.total:,.0f} and {stated.active} active"


def test_facts_to_the_digit():
    """facts C5 and F8, and D5 without the parameters that are listed as unused."""
    totals = [published.MODELS[f"Mamba-2-{size}"].total for size in ("130m", "370m", "780m", "1.3b", "2.7b")]
    assert totals == [128989632, 368346624, 780161280, 1343757312, 2702599680]
    assert published.MODELS["RecurrentGemma-2B"].total == 2682862080
    assert 2682862080 - 256000 * 2560 == 2027502080
    assert published.MODELS["RWKV-7-0.4B"].total == 450834432 - 1024 - 2 * 1024 * 32


def test_one_parameter_too_many_is_noticed():
    exact, rounded = published.MODELS["LFM2-350M"], published.MODELS["Jamba"]
    assert not exact.agrees(Count(354483969, 354483969))
    assert rounded.agrees(Count(51_600_000_000, 12_400_000_000))
    assert not rounded.agrees(Count(51_400_000_000, 12_400_000_000))
    assert not rounded.agrees(Count(51_600_000_000, 12_600_000_000))
    with pytest.raises(ValueError, match="model 'GPT-5' is not here; there are Llama-3-8B, "):
        published.build("GPT-5")


def test_attention_shares_of_the_hybrids():
    found = {name: m.pattern for name, m in published.MODELS.items()}
    share = {name: (letters.count("A") + letters.count("L"), len(letters)) for name, letters in found.items()}
    assert share["Jamba"] == (4, 32)
    assert share["RecurrentGemma-2B"] == (8, 26)
    assert share["Nemotron-H-8B"] == (4, 52)
    assert share["LFM2-350M"] == (6, 16)
