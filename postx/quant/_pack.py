"""Codes in as many bits as they have: eight codes of b bits fill b bytes, five trits fill one.

Row by row, so that a product with a vector can start at any row. The last byte group of a row is padded with code 0 (a
row of trits with trit 0).
Eight codes of b bits are one little-endian word of 8 b bits: code j stands at bits j b to (j + 1) b. Five trits are
the base-3 digits of a byte, first trit least: 3^5 = 243 of its 256 values are used, 1.6 bits a trit.
"""

import numba
import numpy as np
import torch

from postx.scans.runtime import jit

WORD, TRITS = 8, 5
POWERS = 3 ** torch.arange(TRITS)


def _steps(bits: int) -> np.ndarray:
    """[(shift, low, high)] that spread eight codes of b bits, side by side, to a byte each: by fours, twos and ones.

    x <- (x & low) | (x << shift & high). Read backwards with (x & high) >> shift they bring them together again.
    """
    steps = []
    for codes in (4, 2, 1):
        room = 8 * codes
        low = sum((2 ** (bits * codes) - 1) << at for at in range(0, 64, 2 * room))
        steps.append((room - bits * codes, low, low << room))
    return np.array(steps, dtype=np.uint64)


@jit
def _pack(codes, bits, steps, out):
    """codes [rows, words] of 64 bits, eight codes each; out [rows, words, bits] bytes."""
    rows, words = codes.shape
    for row in numba.prange(rows):
        for word in range(words):
            value = codes[row, word]
            for i in range(2, -1, -1):
                value = (value & steps[i, 1]) | ((value & steps[i, 2]) >> steps[i, 0])
            for byte in range(bits):
                out[row, word, byte] = np.uint8(value >> np.uint64(8 * byte))


@jit
def _unpack(packed, bits, steps, codes):
    rows, words = codes.shape
    for row in numba.prange(rows):
        for word in range(words):
            value = np.uint64(0)
            for byte in range(bits):
                value |= np.uint64(packed[row, word, byte]) << np.uint64(8 * byte)
            for i in range(3):
                value = (value & steps[i, 1]) | ((value << steps[i, 0]) & steps[i, 2])
            codes[row, word] = value


@jit
def _pack_trits(trits, out):
    """trits [rows, bytes, 5]"""
    for row in numba.prange(trits.shape[0]):
        for byte in range(trits.shape[1]):
            five = trits[row, byte]
            value = np.int32(121) + five[0] + 3 * five[1] + 9 * five[2] + 27 * five[3] + 81 * five[4]
            out[row, byte] = np.uint8(value)


@jit
def _unpack_trits(packed, table, trits):
    for row in numba.prange(trits.shape[0]):
        for byte in range(trits.shape[1]):
            for j in range(TRITS):
                trits[row, byte, j] = table[packed[row, byte], j]


def pack(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Codes 0 .. 2^bits - 1 as bytes: [rows, width] uint8 to [rows, ceil(width / 8) bits] uint8.

    bits 1 to 8. Numba on a CPU, torch elsewhere, the same bytes. Raises ValueError for codes out of range.
    """
    _check(codes, "codes", bits)
    if codes.numel() and int(codes.max()) >> bits:
        raise ValueError(f"codes: {int(codes.max())} does not fit in {bits} bits")
    rows, width = codes.shape
    words = -(-width // WORD)
    if codes.device.type == "cpu":
        out = torch.empty(rows, words, bits, dtype=torch.uint8)
        full = _fill(codes, WORD).contiguous().numpy().view(np.uint64)
        _pack(full, bits, _steps(bits), out.numpy())
        return out.flatten(1)
    return _pack_torch(codes, bits, words)


def _pack_torch(codes, bits, words):
    full = _fill(codes, WORD).long()
    shifts = bits * torch.arange(WORD, device=codes.device)
    # Eight codes of eight bits reach the sign bit; addition of disjoint bits is the same as "or", also there.
    value = (full.unflatten(1, (words, WORD)) << shifts).sum(-1)
    byte = 8 * torch.arange(bits, device=codes.device)
    return ((value[..., None] >> byte) & 255).to(torch.uint8).flatten(1)


def unpack(packed: torch.Tensor, bits: int, width: int) -> torch.Tensor:
    """The codes again: [rows, ceil(width / 8) bits] uint8 to [rows, width] uint8. Errors: as `pack`."""
    _check(packed, "packed", bits)
    rows, words = packed.shape[0], -(-width // WORD)
    if packed.shape[1] != words * bits:
        raise ValueError(
            f"packed: {width} codes of {bits} bits take {words * bits} bytes a row, got {packed.shape[1]}"
        )
    if packed.device.type == "cpu":
        codes = torch.empty(rows, words * WORD, dtype=torch.uint8)
        parts = packed.contiguous().view(rows, words, bits).numpy()
        _unpack(parts, bits, _steps(bits), codes.numpy().view(np.uint64))
        return codes[:, :width].contiguous()
    return _unpack_torch(packed, bits, width)


def _unpack_torch(packed, bits, width):
    byte = 8 * torch.arange(bits, device=packed.device)
    value = (packed.long().unflatten(1, (-1, bits)) << byte).sum(-1)
    shifts = bits * torch.arange(WORD, device=packed.device)
    codes = (value[..., None] >> shifts) & ((1 << bits) - 1)
    return codes.to(torch.uint8).flatten(1)[:, :width]


def pack_trits(trits: torch.Tensor) -> torch.Tensor:
    """Trits -1, 0, 1 as bytes, five a byte: [rows, width] to [rows, ceil(width / 5)] uint8, 1.6 bits a trit."""
    if trits.dim() != 2:
        raise ValueError(f"trits: expected 2 axes [rows, width], got shape {tuple(trits.shape)}")
    small = trits.to(torch.int8)
    if not torch.equal(small.to(trits.dtype), trits) or (trits.numel() and int(small.abs().max()) > 1):
        raise ValueError("trits: expected -1, 0 and 1 only")
    if trits.device.type == "cpu":
        full = _fill(small, TRITS).contiguous().unflatten(1, (-1, TRITS))
        out = torch.empty(full.shape[:2], dtype=torch.uint8)
        _pack_trits(full.numpy(), out.numpy())
        return out
    return _pack_trits_torch(small)


def _pack_trits_torch(trits):
    full = _fill(trits.long(), TRITS) + 1
    return (full.unflatten(1, (-1, TRITS)) * POWERS.to(trits.device)).sum(-1).to(torch.uint8)


def unpack_trits(packed: torch.Tensor, width: int) -> torch.Tensor:
    """The trits again, int8. Raises ValueError where the bytes of a row are not those of `width` trits."""
    if packed.dim() != 2 or packed.dtype != torch.uint8 or packed.shape[1] != -(-width // TRITS):
        raise ValueError(
            f"packed: expected uint8 [rows, {-(-width // TRITS)}], got {packed.dtype} {tuple(packed.shape)}"
        )
    digits = torch.arange(256, device=packed.device)[:, None] // POWERS.to(packed.device) % 3
    table = (digits - 1).to(torch.int8)  # the five trits of every byte
    if packed.device.type == "cpu":
        trits = torch.empty(*packed.shape, TRITS, dtype=torch.int8)
        _unpack_trits(packed.contiguous().numpy(), table.numpy(), trits.numpy())
        return trits.flatten(1)[:, :width].contiguous()
    return table[packed.long()].flatten(1)[:, :width]


def _fill(x, size):
    """x with zeros behind each row, up to a multiple of `size`."""
    return torch.nn.functional.pad(x, (0, -x.shape[1] % size)) if x.shape[1] % size else x


def _check(x, name, bits):
    if bits not in range(1, 9):
        raise ValueError(f"bits: expected 1 to 8, got {bits!r}")
    if x.dtype != torch.uint8 or x.dim() != 2:
        raise ValueError(f"{name}: expected uint8 with 2 axes, got {x.dtype} {tuple(x.shape)}")
