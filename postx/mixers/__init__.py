"""The one contract: a mixer is a module in this folder, and its `step` is its definition.

A mixer module has

    init(*z_t, **w) -> S                        the empty state of a batch; reads only shapes, dtype, device
    step(S, *z_t, **w) -> (y_t, S)              one token; never modifies the S that it was given, unless inplace=True
    recurrent(*z, S=None, ..., **w) -> (y, S)   all tokens, left to right
    parallel, chunked                           likewise, where these forms exist
    operator(*z, **w) -> (A, b)                 where the update is linear in S: all tokens together, S -> A S + b
    example(T, ...) -> (z, w)                   valid float64 inputs
    cost(T, ...) -> Cost                        FLOPs as `step` spends them, bytes, floats of state
    Layer(D, ...)                               a torch module: Layer(x_BTD, S=None) -> (y_BTD, S), S a tuple

`z` are tensors with one entry per token ([B, T, ...], or [B, ...] in `step`), `w` what stays constant over time.
A state is a tensor or a tuple of tensors whose first axis is the batch; `STATE = "S_BHKV"` names them with their axes.
Every form also takes

    lengths_B   tokens of each row that are real: past them y is 0 and the state stands still
    reset_BT    True where a token begins a new sequence: the state is emptied before it

Adding a mixer is adding a file: `names()` finds it, and `tests/mixers/test_contract.py` holds it to `by_step`. Where it
departs from the rule it says so itself, and nothing outside knows it by name:

    FAMILY = "linear"              its color and its place on the overview page: a key of `postx.style.FAMILY`
    LETTER = "G"                   its letter in a pattern; without one it goes by its name: LM(["kda", "mla"], 64)
    VARIANTS = {"L": {...}}        further letters, which stand for options of its Layer
    FOLLOW = "-"                   no MLP follows it, unless a model asks for one (the rule: "F")
    AUTO = {"triton": "recurrent"} the form that form="auto" takes where Triton is ("triton"), on a CPU or for one token
                                   ("near") and elsewhere ("far"), where that is not the first of `ORDER`
    FIRST = {...}                  options of its Layer at its first place in a model
    GROWS = "W"                    the size in `cost` that the overview page sets to the length of the text
    Layer.TAKES = (...)            what its `forward` takes of a model's pass beside `SIDE`: "inplace", "cross"
    Layer.OWN = ("delta",)         projections whose first weights are its own; a model starts the others (plain
                                   `nn.Linear` children; what lies deeper is never started anew)
    Still(tensor)                  a parameter that weight decay does not pull on: rates, decays, bonuses, mixes
"""

import functools
import importlib
import pkgutil
import sys

import torch
from torch import nn

from postx import scans
from postx.shapes import check, check_lengths, map_state, named, real, trusted

FORMS = ("recurrent", "parallel", "chunked")
PARTS = ("FAMILY", "STATE", "init", "step", "recurrent", "example", "cost", "Layer")  # what every mixer has
FORM_ONLY = ("chunk", "impl")  # arguments that change how a form computes, never what


def names() -> list[str]:
    """Every mixer in this folder, by the name of its file."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_"))


def load(name: str):
    """The mixer module of that name. Raises ValueError with the names there are, or what an unfinished one lacks."""
    if name not in names():
        raise ValueError(f"mixer {name!r} does not exist; there are {', '.join(names())}")
    mixer = importlib.import_module(f"{__name__}.{name}")
    if lacking := [part for part in PARTS if not hasattr(mixer, part)]:
        raise ValueError(f"postx/mixers/{name}.py is unfinished: it lacks {', '.join(lacking)}")
    return mixer


def forms(mixer) -> list[str]:
    """The forms that a mixer has beside `step`."""
    return [form for form in FORMS if hasattr(mixer, form)]


# The forms that form="auto" prefers: near (on a CPU, whose numba kernels have their own backward, or for one token) and
# far (on a GPU, where large products beat a loop).
ORDER = {"near": ("recurrent", "chunked", "parallel"), "far": ("chunked", "parallel", "recurrent")}
SIDE = ("form", "lengths_B", "reset_BT")  # what every Layer takes of a model's pass


class Still(nn.Parameter):
    """A parameter that weight decay leaves alone. (A type, because a mark on a parameter is lost in a copy.)"""


def by_form(path: str, form: str, x_BTD):
    """The function of the imported mixer module `path` that its Layer should train with on x's device.

    form="auto" is the first of `ORDER` that the mixer has, unless its `AUTO` says otherwise. A form by name is taken
    as it is; a function takes the mixer and then what a form takes (`postx.distributed`). Raises ValueError that lists
    the forms there are.
    """
    mixer, there = sys.modules[path], forms(sys.modules[path])
    if callable(form):
        return functools.partial(form, mixer)
    if form != "auto":
        if form not in there:
            name = path.rpartition(".")[2]
            raise ValueError(f"form: {name} has {', '.join(map(repr, there))} and 'auto', not {form!r}")
        return getattr(mixer, form)
    own = getattr(mixer, "AUTO", {})
    place = "near" if x_BTD.device.type == "cpu" or x_BTD.shape[1] == 1 else "far"
    if place == "far" and "triton" in own and x_BTD.is_cuda and scans.has_triton():
        return getattr(mixer, own["triton"])
    return getattr(mixer, next(f for f in (own.get(place), *ORDER[place]) if f in there))


def select(mask_B: torch.Tensor, S, other):
    """Row by row, S where the mask is True and `other` elsewhere. A shorter cache is padded with zeros."""

    def pick(a, b):
        for axis in range(1, a.dim()):
            size = max(a.shape[axis], b.shape[axis])
            a, b = (_pad(x, axis, size) for x in (a, b))
        return torch.where(mask_B.view(-1, *[1] * (a.dim() - 1)), a, b)

    return map_state(pick, S, other)


def _pad(x, axis, size):
    if x.shape[axis] == size:
        return x
    return torch.cat([x, x.new_zeros(*x.shape[:axis], size - x.shape[axis], *x.shape[axis + 1 :])], axis)


def by_step(mixer, *z, S=None, lengths_B=None, reset_BT=None, **w):
    """The specification of every form: call `step` on each token, in Python.

    Returns (y, S) as a form does. Slow on purpose: nothing here can be wrong in an interesting way.
    """
    B, T = z[0].shape[:2]
    check_lengths(lengths_B, B, T)
    empty = mixer.init(*(x[:, 0] for x in z), **w)
    S = empty if S is None else S
    outputs = []
    for t in range(T):
        if reset_BT is not None:
            begins = reset_BT[:, t] if lengths_B is None else reset_BT[:, t] & (t < lengths_B)
            S = select(begins, empty, S)
        y_t, S_t = mixer.step(S, *(x[:, t] for x in z), **w)
        if lengths_B is None:
            S = S_t
        else:
            real = t < lengths_B
            S = select(real, S_t, S)
            y_t = torch.where(real.view(-1, *[1] * (y_t.dim() - 1)), y_t, torch.zeros_like(y_t))
        outputs.append(y_t)
    return torch.stack(outputs, 1), S


def packed(form):
    """The door of a form: its arguments are held to their names (`named`), and it is given `reset_BT`.

    A row that holds several sequences is cut into rows that hold one each, so that the form itself needs only `S` and
    `lengths_B`. The cost is padding to the longest of the sequences. What stands past a row's length, NaN included,
    becomes zeros before the form sees it: a form may multiply it away.
    """
    bare, door = form, named(form)

    @functools.wraps(form)
    def wrapper(*z, S=None, lengths_B=None, reset_BT=None, **w):
        if len(z[0]) == 0:  # no FFT, no maximum of lengths takes a batch without a row: the shapes are those of one row
            door.check(*z, S=S, lengths_B=lengths_B, **w)
            y, S = form(*(x.new_zeros(1, *x.shape[1:]) for x in z), **w)
            return y[:0], map_state(lambda x: x[:0], S)
        if lengths_B is None and reset_BT is None:
            return door(*z, S=S, **w)
        door.check(*z, S=S, lengths_B=lengths_B, **w)
        z = [real(x, lengths_B) for x in z]
        if reset_BT is None:
            with trusted():
                return bare(*z, S=S, lengths_B=lengths_B, **w)
        B, T = z[0].shape[:2]
        check({"B": B, "T": T}, reset_BT=reset_BT)
        if reset_BT.dtype != torch.bool:
            raise ValueError(f"reset_BT: expected bool, got {reset_BT.dtype}")
        constants = {key: x for key, x in w.items() if key not in FORM_ONLY}
        init = functools.partial(sys.modules[form.__module__].init, **constants)
        S = init(*(x[:, 0] for x in z)) if S is None else S
        with trusted():
            return _run_pieces(functools.partial(bare, **w), init, z, S, lengths_B, reset_BT)

    return wrapper


def _run_pieces(form, init, z, S, lengths_B, reset_BT):
    """Cut each row where a sequence begins, run the pieces as a ragged batch, and put the results back."""
    B, T = reset_BT.shape
    device = reset_BT.device
    ends = [T] * B if lengths_B is None else lengths_B.tolist()
    pieces = []  # (row, first token, tokens, continues S)
    for row, (resets, end) in enumerate(zip(reset_BT.tolist(), ends, strict=True)):
        starts = [0] + [t for t in range(1, end) if resets[t]]
        for first, after in zip(starts, starts[1:] + [end], strict=True):
            fresh = first > 0 or (end > 0 and resets[0])
            pieces.append((row, first, after - first, not fresh))
    row_P, first_P, length_P, continues_P = (
        torch.tensor(x, device=device) for x in zip(*pieces, strict=True)
    )

    offset = torch.arange(max(1, int(length_P.max())), device=device)
    token_PT = (first_P[:, None] + offset).clamp(max=T - 1)
    pieces_z = [x[row_P[:, None], token_PT] for x in z]
    empty = init(*(x[:, 0] for x in pieces_z))
    S_P = select(continues_P, map_state(lambda x: x[row_P], S), empty)
    y_P, S_P = form(*(real(x, length_P) for x in pieces_z), S=S_P, lengths_B=length_P)

    real_PT = offset < length_P[:, None]
    y = y_P.new_zeros(B, T, *y_P.shape[2:])
    y = y.index_put((row_P[:, None].expand_as(token_PT)[real_PT], token_PT[real_PT]), y_P[real_PT])
    last = torch.cat([row_P[1:] != row_P[:-1], torch.ones(1, dtype=torch.bool, device=device)])
    return y, map_state(lambda x: x[last], S_P)
