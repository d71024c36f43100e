"""The drawn bill: what a prompt and one more token cost a model of Llama-3-8B's shape on one H100, by how it mixes.

Every line is one expression of six choices, at equal parameters: the weights are Llama-3-8B's under each, and two
Mamba-2 blocks stand for one Transformer block (a state in 32 bits). The mixing is that of `postx.cost`, which
tests/book/test_bill.py holds it to; activations between the layers are left out of the traffic. A cache in
4 bits has a 16-bit scale for every 32 of them.
"""

from dataclasses import dataclass

from sympy import And, Expr, Function, Piecewise, Symbol, log

from postx import cost
from postx.explore import Choice, Log
from postx.explore.live import Live
from postx.models import published
from postx.style import FAMILY

SHAPE, CHIP = published.LLAMA3_8B, published.H100
WINDOW, TILE, CHUNK, N, P = 4096, 1024, 256, 128, 64
LATENT, ROTARY = published.DEEPSEEK_V3.latent, published.DEEPSEEK_V3.rotary
OWN, GROUPED, MLA, STATE = 2 * SHAPE.H * SHAPE.K, 2 * SHAPE.G * SHAPE.K, LATENT + ROTARY, 0  # numbers kept of a token
NAMES = {OWN: "every head its own", GROUPED: "grouped, 4 to 1", MLA: "latent (MLA)", STATE: "none: a state (Mamba-2)"}
FOUR = 4 + 16 / 32
SLIDERS = {
    "kept": Choice(*NAMES, start=GROUPED, label="keys and values", fmt=NAMES.__getitem__),
    "stored": Choice(0, 1, label="scores", fmt=("in tiles", "stored").__getitem__),
    "window": Choice(0, 1, label="a token sees", fmt=("all of the text", "4,096 tokens").__getitem__),
    "bits": Choice(16, FOUR, label="cache", fmt={16: "16 bits", FOUR: "4 bits"}.__getitem__),
    "tokens": Log(2**10, 2**20, start=2**15, per_octave=8, label="tokens"),
    "batch": Log(1, 256, start=1, label="texts at once"),
}
SYMBOLS = {name: Symbol(name) for name in SLIDERS}
ROWS = ("prompt: FLOPs", "prompt: traffic", "a token: FLOPs", "a token: traffic"), ("scores", "cache", "weights")
STARTS = 1e-5, 1e-2  # of the bars: seconds, GB


class Larger(Function):
    """The larger of two; SymPy's own Max takes minutes to look for an order among long expressions."""

    nargs, take, name = 2, max, "max"

    @classmethod
    def eval(cls, a, b):
        return cls.take(a, b) if a.is_Number and b.is_Number else None

    def _javascript(self, printer):
        return f"Math.{self.name}({', '.join(map(printer._print, self.args))})"

    def _numpycode(self, printer):
        return f"{self.name}imum({', '.join(map(printer._print, self.args))})"


class Smaller(Larger):
    """The smaller of two."""

    take, name = min, "min"


@dataclass(frozen=True)
class Bill:
    """FLOPs and bytes moved of a prompt and of one more token of each text; bytes of a layer's scores, of the cache."""

    read_flops: Expr
    read_bytes: Expr
    write_flops: Expr
    write_bytes: Expr
    scores: Expr
    cache: Expr


def lines(kept, stored, window, bits, tokens, batch) -> Bill:
    """The bill of these six choices: numbers, or the symbols of the sliders."""
    H, K, L = SHAPE.H, SHAPE.K, SHAPE.L
    weights, head = SHAPE.matrix_weights(), SHAPE.Y * SHAPE.D
    seen = window * Smaller(tokens, WINDOW) + (1 - window) * tokens

    is_state, is_own = 1 - Smaller(kept, 1), Smaller(Larger(kept - MLA, 0), 1)

    def by(own, latent, state):
        """One of three, by what is kept of a token."""
        return is_own * own + (1 - is_own - is_state) * latent + is_state * state

    wide = by(2 * K, 2 * K + ROTARY, 0)  # MLA's keys, expanded, carry the rotary numbers more
    pairs = stored * tokens**2 + (1 - stored) * (seen * (seen + 1) / 2 + (tokens - seen) * seen)
    heads = 2 * (2 * SHAPE.D // P)  # of two Mamba-2 blocks
    inside = (CHUNK + 1) * (N + P) + 4 * N * P  # causal halves, as softmax has them
    mixing = by(2 * H * pairs * wide, 2 * H * pairs * wide, tokens * heads * inside)
    # Keys and values are read once for every tile of queries, from the first that any of them sees.
    tiles = tokens / TILE
    clear = Smaller(tiles, WINDOW / TILE)
    cut = window * ((tiles - clear) * (1 - WINDOW) + TILE * (tiles * (tiles - 1) - clear * (clear - 1)) / 2)
    again = Larger(tokens, TILE * tiles * (tiles - 1) / 2 + tokens - cut)
    rows = by(kept, H * wide, 0)  # a token's keys and values, as a prompt reads them
    in_tiles = H * tokens * wide + again * rows
    moved = stored * (H * tokens * wide + tokens * rows + 4 * H * tokens**2) + (1 - stored) * in_tiles
    state = 2 * cost.mamba2_block(1, D=SHAPE.D, N=N, P=P).state_floats
    cache = batch * L * by(kept * seen * bits / 8, kept * seen * bits / 8, 4 * state)
    ends = 2 * H * by(2 * K, 2 * LATENT + ROTARY, 0)
    one = by(2 * H * seen * 2 * K, 2 * H * seen * (2 * LATENT + ROTARY), heads * 5 * N * P)
    return Bill(
        read_flops=batch * (2 * (tokens * (weights - head) + head) + L * mixing),
        read_bytes=2 * weights + batch * L * 2 * by(moved, moved, tokens * heads * 2 * (N + P)),
        write_flops=batch * (2 * weights + L * one),
        write_bytes=2 * weights + batch * L * ends + by(cache, cache, 2 * cache),  # a state is written, too
        scores=stored * by(2, 2, 0) * batch * H * tokens**2,
        cache=cache,
    )


def floors(bill) -> list[Expr]:
    """Seconds at the published peaks: FLOPs and traffic of the prompt, FLOPs and traffic of a token."""
    return [bill.read_flops / CHIP.flops, bill.read_bytes / CHIP.bandwidth,
            bill.write_flops / CHIP.flops, bill.write_bytes / CHIP.bandwidth]  # fmt: skip


def draw(fig):
    """The picture of `explore(draw, **SLIDERS)`: two times and what binds each, and what has to fit."""
    bill = lines(**SYMBOLS)
    times, weights = floors(bill), 2 * SHAPE.weights() / 1e9
    sizes = [bill.scores / 1e9, bill.cache / 1e9, weights]
    above, below = fig.subplots(2, 1, height_ratios=(4, 3))
    above.set(xscale="log", xlim=(STARTS[0], 1e6), title="time at the H100's peaks: the longer bar binds")
    above.set_xticks([1e-4, 1e-2, 1, 1e2, 1e4], ["0.1 ms", "10 ms", "1 s", "100 s", "3 h"])
    below.set(xscale="log", xlim=(STARTS[1], 1e6), title="memory: scores of one layer, cache and weights")
    below.set_xticks([0.1, 1, 10, 80, 1e3, 1e5], ["0.1", "1", "10", "80 GB", "1 TB", "100 TB"])
    below.axvline(CHIP.memory / 1e9, color="black", lw=1)
    u, moves = Symbol("u"), {}
    for ax, rows, values, start in zip((above, below), ROWS, (times, sizes), STARTS, strict=True):
        ax.minorticks_off()
        ax.set_yticks(range(len(rows)), rows)
        ax.set_ylim(len(rows) - 0.4, -0.6)
        ax.grid(axis="y", visible=False)
        for row, value in enumerate(values):
            color = FAMILY["neutral" if rows[row] == "weights" else "attention"]
            (bar,) = ax.plot([start, 1], [row, row], color=color, lw=9, solid_capstyle="butt")
            reach = Smaller(Larger(value / start, 1), 1e6 / start)
            moves[bar] = (start * reach ** (log(u) / log(2)), row)
    for low in (0, 2):
        word = above.text(1, low, "\u00a0binds", va="center", size=9)  # a page drops a plain space at the start
        first = times[low] >= times[low + 1]
        moves[word] = (Smaller(Larger(times[low], times[low + 1]), 1e5), Piecewise((low, first), (low + 1, True)))
    return Live(moves, over=(u, 1, 2), say=list(_says(times, sum(sizes) <= CHIP.memory / 1e9)),
                read=Larger(*times[:2]), write=1e3 * Larger(*times[2:]), rate=SYMBOLS["batch"] / Larger(*times[2:]),
                need=sum(sizes), share=bill.cache / bill.write_bytes)  # fmt: skip


def _says(times, fits):
    """(condition, readout) for what binds the prompt, what binds a token, and whether all of it fits."""
    for room, is_room in (("fits on one chip", fits), ("does not fit on one chip", True)):
        for reads, is_first in (("arithmetic", times[0] >= times[1]), ("traffic", True)):
            for writes, is_second in (("arithmetic", times[2] >= times[3]), ("traffic", True)):
                yield (
                    And(is_room, is_first, is_second),
                    f"The prompt takes {{read:,.2f}} s at least ({reads} binds); one more token of each text "
                    f"{{write:,.1f}} ms ({writes} binds), so {{rate:,.0f}} tokens per second. The memory needed, "
                    f"{{need:,.1f}} GB, {room}.",
                )
