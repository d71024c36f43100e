"""Short and long causal convolutions: equal to torch's own and to a loop, resumed, ragged, reset; named errors."""

import contract
import pytest
import torch
from torch import nn

from postx.mixers import by_step
from postx.parts import conv

B, T, D = 2, 21, 3


def randn(*shape, dtype=torch.float64, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


class Short:
    """The short convolution as the contract's checks take a mixer."""

    @staticmethod
    def init(x_BD, *, weight_DW, bias_D):
        return conv.init(x_BD, weight_DW.shape[1])

    step = staticmethod(lambda S, x, *, weight_DW, bias_D: conv.step(S, x, weight_DW, bias_D))

    @staticmethod
    def recurrent(x, *, weight_DW, bias_D, S=None, **side):
        return conv.short_convolution(x, weight_DW, bias_D, S, **side)

    @staticmethod
    def example(T, seed=0, W=4):
        return (randn(B, T, D, seed=seed),), {"weight_DW": randn(D, W, seed=1), "bias_D": randn(D, seed=2)}


class Taps(Short):
    """The same, added up tap by tap in torch."""

    @staticmethod
    def recurrent(x, *, weight_DW, bias_D, S=None, **side):
        return conv.short_convolution(x, weight_DW, bias_D, S, impl="torch", **side)


class Scan(Short):
    """The same by the sliding dot product, token by token in torch."""

    @staticmethod
    def recurrent(x, *, weight_DW, bias_D, S=None, lengths_B=None):
        y, S = conv.scan(x, weight_DW, S, lengths_B, impl="reference")
        real = 1 if lengths_B is None else (torch.arange(x.shape[1]) < lengths_B[:, None])[..., None]
        return y + bias_D * real, S


class Single(Short):
    """One tap: a scaled copy, with an empty state."""

    example = staticmethod(lambda T, seed=0: Short.example(T, seed, W=1))


class Long(Short):
    """The long convolution beside the same step: its response is the weight flipped."""

    @staticmethod
    def recurrent(x, *, weight_DW, bias_D, S=None, lengths_B=None):
        y, S = conv.long_convolution(x, weight_DW.flip(1), S, lengths_B)
        real = 1 if lengths_B is None else (torch.arange(x.shape[1]) < lengths_B[:, None])[..., None]
        return y + bias_D * real, S

    example = staticmethod(lambda T, seed=0: Short.example(T, seed, W=9))


@pytest.mark.parametrize("T", [1, 2, 8, 9, 37])
@pytest.mark.parametrize("kind", [Short, Taps, Scan, Single, Long], ids=lambda k: k.__name__)
def test_equals_a_step_at_a_time(kind, T):
    assert contract.form_equals_step(kind, "recurrent", T) <= contract.TOLERANCE


@pytest.mark.parametrize("kind", [Short, Taps, Scan, Single, Long], ids=lambda k: k.__name__)
def test_resumes_is_causal_and_has_the_gradients(kind):
    contract.cut_and_resume(kind, "recurrent")
    contract.causal(kind, "recurrent")
    assert contract.gradients_agree(kind, "recurrent") <= contract.TOLERANCE
    z, w = kind.example(T)
    ends, S = torch.tensor([0, 3]), contract.warm_state(kind)
    contract.close(kind.recurrent(*z, **w, S=S, lengths_B=ends), by_step(kind, *z, **w, S=S, lengths_B=ends))


@pytest.mark.parametrize("kind", [Short, Taps, Single], ids=lambda k: k.__name__)
def test_resets_begin_sequences(kind):
    """Also resets at the first token, one token apart, and past a row's end, where they mean nothing."""
    contract.ragged(kind, "recurrent")
    contract.packed_equals_alone(kind, "recurrent")


def test_equals_torch_conv1d():
    theirs = nn.Conv1d(D, D, 4, groups=D, padding=3).double()
    x = randn(B, T, D)
    y, _ = conv.short_convolution(x, theirs.weight[:, 0], theirs.bias)
    assert contract.close(y, theirs(x.mT)[..., :T].mT) <= contract.TOLERANCE


@pytest.mark.parametrize("W", [1, 5, 21, 40])
def test_long_equals_the_sum_over_the_past(W):
    x, h = randn(B, T, D), randn(D, W, seed=1)
    want = torch.zeros_like(x)
    for t in range(T):
        for j in range(min(t + 1, W)):
            want[:, t] += h[:, j] * x[:, t - j]
    assert contract.close(conv.long_convolution(x, h)[0], want) <= contract.TOLERANCE


def test_without_padding_the_end_wraps_onto_the_beginning():
    """What the padding is for: a circular convolution of length T is wrong by as much as the outputs are large."""
    x, h = randn(B, T, D), randn(D, T, seed=1)
    circular = torch.fft.irfft(torch.fft.rfft(x, T, dim=1) * torch.fft.rfft(h, T, dim=1).mT, T, dim=1)
    assert contract.error(circular, conv.long_convolution(x, h)[0]) > 0.1


def test_inplace_and_half_precision():
    x, weight = randn(B, D).bfloat16(), randn(D, 4).bfloat16()
    S = conv.init(x, 4)
    assert S.dtype == torch.float32
    y, kept = conv.step(S, x, weight)
    assert y.dtype == torch.bfloat16
    assert not S.any(), "step wrote into its state"
    assert conv.step(S, x, weight, inplace=True)[1] is S
    assert torch.equal(S, kept)
    for form, w in ((conv.short_convolution, weight), (conv.long_convolution, weight.flip(1))):
        got, _ = form(x[:, None], w)
        assert got.dtype == torch.bfloat16
        assert contract.close(got[:, 0], y, 1e-2) <= 1e-2


def test_fast_length():
    assert [conv.fast_length(n) for n in (1, 7, 11, 64, 121)] == [1, 8, 12, 64, 125]


def test_bad_input_is_named():
    x, weight = randn(B, T, D), randn(D, 4)
    with pytest.raises(ValueError, match=r"weight_DW: expected axes \[D, W\] with D=3"):
        conv.short_convolution(x, weight[:2])
    with pytest.raises(ValueError, match=r"response_DW: expected axes \[D, W\] with D=3"):
        conv.long_convolution(x, weight[:2])
    with pytest.raises(ValueError, match=r"bias_D: expected axes \[D\] with D=3"):
        conv.short_convolution(x, weight, weight[:2, 0])
    for form in (conv.short_convolution, conv.long_convolution):
        with pytest.raises(ValueError, match=r"S_BWD: expected axes \[B, W-1, D\] with "):
            form(x, weight, S=randn(B, 4, D))
        with pytest.raises(ValueError, match="W: expected a whole number >= 1, got 0"):
            form(x, weight[:, :0])
    with pytest.raises(ValueError, match="lengths_B: expected values from 0 to T=21"):
        conv.short_convolution(x, weight, lengths_B=torch.tensor([3, 22]))
    with pytest.raises(ValueError, match="impl: 'numba' is not available here; there are 'auto', 'torch'"):
        conv.short_convolution(x, weight, reset_BT=torch.zeros(B, T, dtype=torch.bool), impl="numba")
    with pytest.raises(
        ValueError, match="impl: 'cuda' is not available here; there are 'auto', 'reference', 'numba'"
    ):
        conv.scan(x, weight, impl="cuda")
    with pytest.raises(ValueError, match="reset_BT: expected bool"):
        conv.short_convolution(x, weight, reset_BT=torch.zeros(B, T))
