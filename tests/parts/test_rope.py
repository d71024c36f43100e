"""Rotary positions against complex numbers, and through the attention that uses them."""

import pytest
import torch
from contract import close

from postx.mixers import attention
from postx.parts.rope import Rope

ROPES = (Rope(), Rope(base=100.0, pairing="interleaved", dims=4))


def test_is_multiplication_by_a_complex_number():
    x = torch.randn(2, 9, 3, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    position = torch.tensor([[5], [1000]]) + torch.arange(9)
    turn = torch.exp(1j * position[..., None, None] * 500.0 ** (-torch.arange(4) / 4).double())
    half = torch.complex(x[..., :4], x[..., 4:]) * turn
    close(Rope(500.0).rotate(x, position), torch.cat([half.real, half.imag], -1))
    interleaved = torch.view_as_complex(x.unflatten(-1, (4, 2))) * turn
    got = Rope(500.0, "interleaved").rotate(x, position)
    close(got, torch.view_as_real(interleaved).flatten(-2))


@pytest.mark.parametrize("rope", ROPES, ids=lambda rope: rope.pairing)
def test_only_differences_of_positions_matter(rope):
    z, _ = attention.example(12)
    y = attention.parallel(*z, rope=rope)[0]
    later = tuple(rope.rotate(x, torch.arange(777, 789).expand(2, 12)) for x in z[:2])
    close(attention.parallel(*later, z[2])[0], y)
    assert (attention.parallel(*z)[0] - y).abs().max() > 1e-2


def test_pairings_differ_by_a_permutation_of_channels():
    (q, k, v), _ = attention.example(10)
    order = torch.arange(8).unflatten(0, (4, 2)).T.flatten()  # 0 2 4 6 1 3 5 7
    interleaved = attention.parallel(q, k, v, rope=Rope(pairing="interleaved"))[0]
    close(attention.parallel(q[..., order], k[..., order], v, rope=Rope())[0], interleaved)
    assert (attention.parallel(q, k, v, rope=Rope())[0] - interleaved).abs().max() > 1e-2


def test_part_of_the_channels():
    x = attention.example(9)[0][0]
    got = Rope(dims=4).rotate(x, torch.arange(9).expand(2, 9))
    close(got[..., :4], Rope().rotate(x[..., :4], torch.arange(9).expand(2, 9)), 0.0)
    close(got[..., 4:], x[..., 4:], 0.0)


def test_far_positions_keep_their_digits_in_float32():
    x = torch.ones(1, 1, 1, 8)
    far = torch.tensor([[3_000_001]])
    close(Rope().rotate(x, far), Rope().rotate(x.double(), far), 1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pairing": "pairs"}, "pairing: expected one of half, interleaved, got 'pairs'"),
        ({"base": 0}, "base: expected a number above 0, got 0"),
        ({"dims": 3}, "an even number of at most K=8 channels, got dims=3"),
        ({"dims": 10}, "an even number of at most K=8 channels, got dims=10"),
    ],
)
def test_bad_input_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        Rope(**options).rotate(torch.zeros(1, 1, 8), torch.zeros(1))
