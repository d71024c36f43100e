"""What models say they can do is what they do."""

import pytest
import torch

from postx.models import checkpoints
from postx.models.capabilities import rewound
from postx.models.denoiser import Denoiser
from postx.models.encoder import Encoder
from postx.models.lm import LM, leaves, size

OPTIONS = {"A": {"H": 4}, "L": {"H": 4, "window": 5}, "K": {"H": 2}, "Z": {"H": 4}}
IDS = torch.randint(0, 64, (2, 12), generator=torch.Generator().manual_seed(0))


def tiny(pattern, **more):
    torch.manual_seed(0)
    options = {key: o for key, o in OPTIONS.items() if key in pattern}
    return LM(pattern, 16, 64, options=options, **more).eval()


@pytest.mark.parametrize(
    ("pattern", "rewinds", "bounded"),
    [("AA", True, False), ("PA", True, False), ("KA", True, False), ("SMG", False, True), ("LR", False, True),
     ("AL", False, False), ("SA", False, False), ("(AS)", False, False), ("MZM", False, False), ("C4", False, True)],
)  # fmt: skip
@torch.no_grad()
def test_of_language_models(pattern, rewinds, bounded):
    lm = tiny(pattern)
    told = lm.capabilities
    assert (told.streams, told.scores, told.shares_prefix, told.fills_gap) == (True, "exactly", True, False)
    assert (told.rewinds, told.bounded) == (rewinds, bounded)
    sizes = [size(lm(IDS[:1].repeat(1, n))[1]) for n in (1, 10)]
    if bounded:
        assert sizes == [told.state_bytes] * 2
    else:
        assert sizes[0] < sizes[1]
    if rewinds:
        S = lm(IDS)[1]
        before = [x.clone() for x in leaves(S)]
        back = rewound(lm, S, 5)
        token = torch.tensor([[3], [4]])
        want = lm(token, lm(IDS[:, :7])[1])[0]
        torch.testing.assert_close(lm(token, back)[0], want, rtol=1e-5, atol=1e-6)
        assert all(torch.equal(x, y) for x, y in zip(before, leaves(S), strict=True))
        with pytest.raises(ValueError, match="tokens: expected 0 to 12"):
            rewound(lm, S, 13)
    else:
        with pytest.raises(ValueError, match="lm: it keeps a summary"):
            rewound(lm, lm(IDS)[1], 1)


@torch.no_grad()
def test_a_prefix_is_shared():
    lm = tiny("SA")
    S = lm(IDS[:1, :6])[1]
    for more in (IDS[:1, 6:], IDS[1:, 6:]):
        want = lm(torch.cat([IDS[:1, :6], more], 1))[0][:, 6:]
        torch.testing.assert_close(lm(more, S)[0], want, rtol=1e-4, atol=1e-5)


def test_where_nothing_is_kept_nothing_is_taken_back():
    lm = tiny("F")
    assert rewound(lm, lm(IDS)[1], 5) == lm(IDS)[1]
    lm = tiny("A")
    assert len(rewound(lm, lm(IDS[:0])[1], 2)[0][0][-1]) == 0
    for tokens in (1.5, True, -1):
        with pytest.raises(ValueError, match="tokens: expected 0 to 12"):
            rewound(lm, lm(IDS)[1], tokens)


def test_a_channel_mix_cannot_be_taken_back():
    assert not tiny("A", mlp="V").capabilities.rewinds


def test_of_the_kept_models():
    told = {name: checkpoints.load(name).capabilities for name in ("attention", "ssd", "hybrid", "masked")}
    assert told["attention"].rewinds
    assert [told[name].bounded for name in ("attention", "ssd", "hybrid")] == [False, True, False]
    assert told["masked"] == (False, "by a bound", False, False, True, 0)


def test_of_networks_that_write_nothing():
    assert Denoiser(16, 1, 32, R=4, conditioned=True).capabilities.scores == ""
    assert not any(Encoder(16, 1, 32, H=2, F=16).capabilities[:5])
