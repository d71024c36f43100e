"""Which block sizes the Triton kernels use: recorded on a GPU, taken by nearest size, so nothing is tuned at a call.

A row is recorded for widths (K, V) of a table and for the bytes of an operand. For a size between two rows the nearest
one counts, by the logarithms of the widths; an unknown GPU gets the H200's row. Blocks are made smaller where
the tensor is narrower: never below 16, the least that a tensor core takes.
"""

import math

# The blocks of one pass: tokens of a chunk; block of what is summed over; block of the result; warps; stages.
# (operand bytes, K, V): {"forward": (chunk, walk, outputs), "backward": (chunk, walk, dv, dk, dq, decays)},
# each pass as (block of its first width, block of its second width, warps, stages).
DECAY = {
    (2, 128, 128): {
        "forward": (64, (64, 64, 4, 3), (128, 128, 4, 1)),
        "backward": (64, (64, 64, 4, 3), (128, 128, 4, 1), (128, 128, 4, 1), (128, 128, 4, 1), (128, 64, 8, 1)),
    },
    (2, 128, 64): {
        "forward": (64, (64, 64, 4, 3), (128, 64, 4, 1)),
        "backward": (64, (64, 64, 4, 3), (128, 64, 4, 1), (64, 64, 4, 2), (64, 64, 4, 2), (128, 64, 8, 1)),
    },
    (2, 64, 64): {
        "forward": (64, (64, 64, 4, 3), (64, 64, 4, 1)),
        "backward": (64, (64, 64, 4, 3), (64, 64, 4, 1), (64, 64, 4, 1), (64, 64, 4, 1), (64, 64, 4, 1)),
    },
    (4, 128, 128): {
        "forward": (32, (32, 32, 4, 1), (32, 32, 4, 1)),
        "backward": (32, (32, 32, 4, 1), (32, 32, 4, 1), (32, 32, 4, 1), (32, 32, 4, 1), (32, 32, 4, 1)),
    },
}
SHARE = 8  # heads with q and k in common whose gradients one program adds up
PROGRAMS = 512  # fewer programs than this leave a GPU idle: a walk is then cut into segments
AT_ONCE = 2**28  # bytes of tables that may stand in memory, or v's if that is more; heads beyond come later


def nearest(table, item, K, V):
    """The row recorded for the nearest widths at that many bytes an operand."""
    rows = [key for key in table if key[0] == item] or [key for key in table if key[0] == 4]
    return table[min(rows, key=lambda row: math.hypot(math.log(row[1] / K), math.log(row[2] / V)))]


def fit(block, size):
    """The block for a width: no wider than the power of two that holds it, at least 16."""
    return min(block, max(16, 1 << (size - 1).bit_length()))


def share(heads, *groups):
    """How many neighbouring heads use one head of each of the `groups`, at most SHARE, and a divisor of that number."""
    common = math.gcd(*(heads // group for group in groups))
    return max(n for n in range(1, SHARE + 1) if common % n == 0)


def segments(programs, chunks):
    """Into how many segments a walk of so many programs and chunks is cut; a segment has at least 8 chunks."""
    return max(1, min(PROGRAMS // max(1, programs), chunks // 8))

AFFINE = 128, 128, 8, 2  # channels of a block, tokens of a segment, tokens loaded at once, warps
