"""Which block sizes the Triton kernels use: recorded on a GPU, taken by nearest size, so nothing is tuned at a call.

A row is recorded for widths (K, V) of a table and for the bytes of an operand. For a size between two rows the nearest
one counts, by the logarithms of the widths; an unknown GPU gets the H200's row. Blocks are made smaller where
the tensor is narrower.
"""

import functools
import math

# (bytes of an operand, K, V): blocks. "fused" is (tokens of a chunk, block of the result's width, warps, stages), or
# None where a table is too wide for one program: then tables go through memory, "chunk" tokens apart. The others are
# (block of the first width, block of the second, warps, stages): of K and V for "walk" and "dg", of what is summed
# over and of the result for "dv" (and y), "dk" and "dq".
DECAY = {
    (2, 128, 128): {
        "fused": (64, 64, 4, 2), "chunk": 64, "walk": (64, 64, 4, 3), "dv": (128, 128, 4, 1), "dk": (128, 128, 4, 1),
        "dq": (128, 128, 4, 1), "dg": (64, 64, 4, 2),
    },
    (2, 128, 64): {
        "fused": (64, 64, 4, 2), "chunk": 64, "walk": (128, 64, 4, 3), "dv": (128, 64, 4, 1), "dk": (64, 128, 4, 2),
        "dq": (64, 128, 4, 1), "dg": (64, 64, 4, 2),
    },
    (2, 64, 64): {
        "fused": (64, 64, 4, 2), "chunk": 64, "walk": (64, 64, 4, 3), "dv": (64, 64, 4, 1), "dk": (64, 64, 4, 1),
        "dq": (64, 64, 4, 1), "dg": (64, 64, 4, 1),
    },
    (2, 256, 64): {
        "fused": None, "chunk": 64, "walk": (64, 64, 4, 3), "dv": (128, 64, 4, 1), "dk": (64, 128, 4, 1),
        "dq": (64, 128, 4, 1), "dg": (128, 64, 4, 2),
    },
    (4, 128, 128): {
        "fused": None, "chunk": 32, "walk": (32, 32, 4, 1), "dv": (32, 32, 4, 1), "dk": (32, 32, 4, 1),
        "dq": (32, 32, 4, 1), "dg": (32, 32, 4, 1),
    },
}  # fmt: skip
# (bytes of an operand, K, V): tokens of a chunk, warps of "solve"; (block of V, warps, stages) of the other passes.
DELTA = {
    (2, 128, 128): {"chunk": 64, "solve": 4, "forward": (64, 4, 1), "backward": (64, 4, 1), "gradients": (64, 8, 1)},
    (2, 64, 64): {"chunk": 64, "solve": 4, "forward": (64, 4, 1), "backward": (64, 4, 1), "gradients": (64, 4, 1)},
    (4, 64, 64): {"chunk": 32, "solve": 4, "forward": (32, 4, 1), "backward": (32, 4, 1), "gradients": (32, 4, 1)},
}
# The same for the general delta recurrence, for half precision alone: tokens of a chunk; (block of V, warps, stages) of
# "walk", "outputs" and "values", warps of "pairs", "inside" and "squares", (block of K, warps) of "keys" and of "own",
# which makes the pairs where b is k, and which was timed at 128 by 128 alone.
GENERAL = {
    (2, 128, 128): {
        "chunk": 64, "pairs": 4, "inside": 4, "walk": (128, 8, 2), "outputs": (128, 4, 1), "values": (64, 8, 1),
        "squares": 4, "keys": (64, 4), "own": (64, 4),
    },
    (2, 64, 64): {
        "chunk": 64, "pairs": 4, "inside": 4, "walk": (64, 4, 3), "outputs": (64, 4, 1), "values": (64, 4, 1),
        "squares": 4, "keys": (64, 4), "own": (64, 4),
    },
}  # fmt: skip
# (bytes of an operand, K, V): tokens of a chunk; blocks of K and V, warps and stages of a pass, and of its levels.
KEYS = {
    (2, 128, 128): {
        "chunk": 64, "walk": (64, 128, 4, 3), "outputs": (128, 128, 4, 1, 1), "gradients": (64, 64, 4, 1, 1),
    },
    (2, 64, 64): {
        "chunk": 64, "walk": (64, 64, 4, 3), "outputs": (64, 64, 4, 1, 1), "gradients": (64, 64, 4, 1, 1),
    },
}  # fmt: skip
SHARE = 8  # heads with q and k in common whose gradients one program adds up
PROGRAMS = 264  # time is cut into segments where there are fewer programs: two for each multiprocessor of an H200
AT_ONCE = 2**28  # bytes of tables that may stand in memory, or v's if that is more; heads beyond come later
AFFINE = 256, 128, 16, 4  # channels of a block, tokens of a segment, tokens loaded at once, warps
# most channels of a block, numbers of a thread, tokens read at once, such groups in a chunk, and: fewer warps than the
# first number are made as many as the second by cutting time (which costs a pass, so it must pay)
DIAGONAL = 16, 8, 4, 8, (1024, 4096)


@functools.cache
def decay(item, K, V):
    """The decay scan's row for tables of K by V and operands of `item` bytes."""
    return nearest(DECAY, item, K, V)


@functools.cache
def keys(item, K, V):
    """The row of the decay scan with one decay a key, which only half precision takes in chunks."""
    return nearest(KEYS, item, K, V)


@functools.cache
def delta(item, K, V):
    """The delta scan's row."""
    return nearest(DELTA, item, K, V)


@functools.cache
def general(item, K, V):
    """The general delta scan's row."""
    return nearest(GENERAL, item, K, V)


def nearest(table, item, K, V):
    """The row recorded for the nearest widths at that many bytes an operand."""
    rows = [key for key in table if key[0] == item] or [key for key in table if key[0] == 4]
    return table[min(rows, key=lambda row: math.hypot(math.log(row[1] / K), math.log(row[2] / V)))]


def fit(block, size, item):
    """The block for a width: no wider than the power of two that holds it, and no narrower than `whole`."""
    return min(block, whole(size, item))


def whole(size, item):
    """The block that holds all of a width.

    16 is the least that a tensor core takes. Blocks of 32 of half precision are left out: Triton 3.6 for Hopper read
    shared memory out of bounds where one stood beside a block of 64.
    """
    return max(64 if item == 2 else 16, 1 << (size - 1).bit_length())


def share(heads, *groups):
    """How many neighbouring heads use one head of each of the `groups`, at most SHARE, and a divisor of that number."""
    common = math.gcd(*(heads // group for group in groups))
    return max(n for n in range(1, SHARE + 1) if common % n == 0)


def segments(programs, chunks):
    """Into how many segments a walk of so many programs and chunks is cut; a segment has at least 8 chunks."""
    return max(1, min(PROGRAMS // max(1, programs), chunks // 8))


def power(size, least):
    """The smallest power of two that holds `size`, at least `least`."""
    return max(least, 1 << (size - 1).bit_length())


def diagonal(rows, T, D, N):
    """(channels of a block, warps, tokens read at once, groups of them in a chunk, segments) for states of D by N."""
    most, numbers, group, groups, (enough, wanted) = DIAGONAL
    block = min(most, power(D, 8))
    wide = block * power(N, 4) // 32  # numbers of a warp's thread
    warps = min(8, max(1, wide // numbers))
    while group > 1 and wide // warps * group > 8 * numbers:
        group //= 2
    there = max(1, rows * -(-D // block) * warps)
    return block, warps, group, groups, max(1, min(wanted // there, T // 256)) if there < enough else 1
