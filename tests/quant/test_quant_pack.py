"""Packed codes: exact round trips, the promised number of bytes, one layout for numba and torch."""

import pytest
import torch

from postx.quant import _pack


def codes(bits, rows=5, width=37):
    return torch.randint(
        0, 2**bits, (rows, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(bits)
    )


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("width", [1, 7, 8, 9, 64, 203])
def test_round_trip_and_size(bits, width):
    c = codes(bits, width=width)
    packed = _pack.pack(c, bits)
    assert packed.shape == (5, -(-width // 8) * bits)
    assert torch.equal(_pack.unpack(packed, bits, width), c)


@pytest.mark.parametrize("bits", range(1, 9))
def test_torch_and_numba_write_the_same_bytes(bits):
    c = codes(bits)
    assert torch.equal(_pack._pack_torch(c, bits, 5), _pack.pack(c, bits))
    assert torch.equal(_pack._unpack_torch(_pack.pack(c, bits), bits, 37), c)


def test_layout_is_the_documented_one():
    assert _pack.pack(torch.tensor([[1, 2, 3, 4, 5, 6, 7, 0]], dtype=torch.uint8), 3).tolist() == [
        [0b11010001, 0b01011000, 0b00011111]
    ]
    assert _pack.pack_trits(torch.tensor([[1, 0, -1, -1, 1]])).tolist() == [[2 + 3 + 2 * 81]]


@pytest.mark.parametrize("width", [1, 4, 5, 6, 100])
def test_trits(width):
    trits = torch.randint(-1, 2, (3, width), generator=torch.Generator().manual_seed(0)).to(torch.int8)
    packed = _pack.pack_trits(trits)
    assert packed.shape == (3, -(-width // 5))
    assert int(packed.max()) < 243
    assert torch.equal(_pack.unpack_trits(packed, width), trits)
    assert torch.equal(_pack._pack_trits_torch(trits), packed)


def test_errors():
    with pytest.raises(ValueError, match="codes: 8 does not fit in 3 bits"):
        _pack.pack(torch.full((1, 4), 8, dtype=torch.uint8), 3)
    with pytest.raises(ValueError, match="bits: expected 1 to 8"):
        _pack.pack(codes(1), 9)
    with pytest.raises(ValueError, match="codes: expected uint8"):
        _pack.pack(codes(1).long(), 1)
    with pytest.raises(ValueError, match="packed: 40 codes of 2 bits take 10 bytes a row, got 4"):
        _pack.unpack(torch.zeros(1, 4, dtype=torch.uint8), 2, 40)
    with pytest.raises(ValueError, match="trits: expected -1, 0 and 1"):
        _pack.pack_trits(torch.tensor([[2]]))
    with pytest.raises(ValueError, match="packed: expected uint8"):
        _pack.unpack_trits(torch.zeros(1, 1, dtype=torch.uint8), 6)
