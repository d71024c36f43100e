"""Mamba's block as a drawing whose boxes open: the line of the package that each is, its shapes, weights and FLOPs.

The numbers are those of the smallest published model. A second view writes one token: what is read, what is kept.
_static/widgets/block.js draws it; tests/explore/test_block_widget.py holds both to the layer and to postx.cost.
"""

from dataclasses import asdict, dataclass

from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from postx import cost, style
from postx.explore.widget import widget
from postx.mixers import mamba
from postx.style import FAMILY

NAME, L, D, N, VOCABULARY = "Mamba-130m", 24, 768, 16, 50280  # state-spaces/mamba-130m-hf
INNER, RANK, TAPS = 2 * D, D // 16, 4
COLUMNS = 1, 2, 1, 1, 1.4  # how wide: u, the step, B, C, the gate
WIRES = (0, 1, 6), (1, 2, 5), (2, 3, 5), (3, 3, 5), (4, 1, 6), (None, 0, 1), (None, 6, 8)  # column (all), rows
LABELS = ("x", 0, None), ("u", 4, 0), ("B", 4, 2), ("C", 4, 3), ("gate", 4, 4), ("out", 8, None)  # row, column


@dataclass(frozen=True)
class Box:
    """A box: where it stands (row, first column, columns), what it says, its code, shapes, and what it costs.

    `weights` are numbers; `flops` are those of a token; `kept` numbers of `item` bytes wait for the next token.
    """

    place: tuple[int, int, int]
    title: str
    does: str
    code: str
    into: tuple[tuple[str, int], ...]
    out: tuple[tuple[str, int], ...]
    weights: int = 0
    flops: int = 0
    kept: int = 0
    item: int = 2
    holds: str = ""


def boxes():
    """The boxes of the block, from x down: weights counted in the package's layer, FLOPs by postx.cost."""
    size = {name: p.numel() for name, p in mamba.Layer(D, N=N).named_parameters()}
    scan, short = cost.ssm_scan(1, D=INNER, N=N), cost.short_convolution(1, D=INNER, conv_size=TAPS)
    wide = (("u", INNER), ("gate", INNER))
    return (
        Box((1, 0, 5), "projection in", "The token twice, each time twice as wide: once to be mixed, once as a gate.",
            "u, gate = self.inward(x_BTD).chunk(2, -1)", (("x", D),), wide,
            size["inward.weight"], cost.matmul(1, D, 2 * INNER).flops),
        Box((2, 0, 4), "convolution of 4, SiLU", "Each channel sees its last four tokens, in its own proportions.",
            "u, S_conv = conv.short_convolution(u, self.taps_DW, self.taps_bias_D, S_conv, **side)",
            (("u", INNER),), (("u", INNER),), size["taps_DW"] + size["taps_bias_D"], short.flops,
            short.state_floats, holds="keeps 3 inputs"),
        Box((3, 1, 3), "the choice", "What the token says of the step (in few numbers), of where to write and read.",
            "step, write, read = choose(u).split([self.rank, self.N, self.N], -1)", (("u", INNER),),
            (("step", RANK), ("B", N), ("C", N)), size["choose.weight"], cost.matmul(1, INNER, RANK + 2 * N).flops),
        Box((4, 1, 1), "step, softplus", "From few numbers to a step for each channel; softplus makes it positive.",
            "softplus(delta(step))", (("step", RANK),), (("Δ", INNER),),
            size["delta.weight"] + size["delta.bias"], cost.matmul(1, RANK, INNER).flops),
        Box((5, 0, 4), "selective scan", "h ← exp(Δ A) h + Δ B u, then y = C h + skip u: 16 numbers per channel.",
            "run(u, softplus(delta(step)), write, read, S=S, A_DN=A, skip_D=skip)",
            (("u", INNER), ("Δ", INNER), ("B", N), ("C", N)), (("y", INNER),),
            size["log_rate_DN"] + size["skip_D"], scan.flops, scan.state_floats, 4, "keeps h"),
        Box((6, 0, 5), "× SiLU(gate)", "The gate lets a channel through or shuts it. No weights; not counted, as all "
            "that goes number by number.", "y * silu(gate)", (("y", INNER), ("gate", INNER)), (("y", INNER),)),
        Box((7, 0, 5), "projection out", "Back to the width of the model; a residual adds it to x.",
            "self.out(y * silu(gate))", (("y", INNER),), (("out", D),),
            size["out.weight"], cost.matmul(1, INNER, D).flops),
    )  # fmt: skip


def model_weights():
    """All weights of the published model: blocks, a norm before each, the embedding and a last norm."""
    return L * (sum(box.weights for box in boxes()) + D) + VOCABULARY * D + D


CAPTION = (
    f"{NAME}: width {D}, {L} layers. Weights and inputs in 16 bits, the state h in 32. "
    "Bars: shares of the weights, or of what is moved."
)


def block():
    """The drawing, opened at the projection in."""
    all_boxes = boxes()
    with style.look():
        still = _still(all_boxes)
    data = {"boxes": [asdict(box) for box in all_boxes], "columns": COLUMNS, "wires": WIRES, "labels": LABELS}
    data |= {"L": L, "model": model_weights()}
    told = "; ".join(f"{box.title}, {box.weights:,} weights, {box.flops:,} FLOPs per token" for box in all_boxes)
    alt = f"Block diagram of Mamba from x down. {told}. The gate goes from the first box to the sixth by itself."
    return widget("block", data, alt=alt, still=still, caption=CAPTION)


def _still(all_boxes):
    fig = Figure(figsize=(style.RC["figure.figsize"][0], 4.6))
    ax = fig.subplots()
    edges = [sum(COLUMNS[:i]) for i in range(len(COLUMNS) + 1)]
    middle = {None: edges[-1] / 2} | {i: (edges[i] + edges[i + 1]) / 2 for i in range(len(COLUMNS))}
    for column, first, last in WIRES:
        ax.plot([middle[column]] * 2, [first, last], color="black", lw=0.8, zorder=1)
    for name, row, column in LABELS:
        ax.text(middle[column], row, name, ha="center", va="center", size=9.5, bbox={"fc": "white", "ec": "none"})
    for box in all_boxes:
        row, first, wide = box.place
        x, width = edges[first] + 0.05, edges[first + wide] - edges[first] - 0.1
        color = FAMILY["ssm"] if box.kept else "black"
        ax.add_patch(Rectangle((x, row - 0.34), width, 0.68, fc="white", ec=color, lw=1.2, zorder=2))
        much = f"\n{box.weights:,} weights" if box.weights else ""
        ax.text(x + width / 2, row, box.title + much, ha="center", va="center", size=8.5, zorder=3)
    ax.set(xlim=(0, edges[-1]), ylim=(8.4, -0.4))
    ax.axis("off")
    return fig
