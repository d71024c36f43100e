"""The one contract: a mixer is a module in this folder, and its `step` is its definition.

A mixer module has

    init(*z_t, **w) -> S                        the empty state of a batch; reads only shapes, dtype, device
    step(S, *z_t, **w) -> (y_t, S)              one token; never modifies the S that it was given
    recurrent(*z, S=None, ..., **w) -> (y, S)   all tokens, left to right
    parallel, chunked                           likewise, where these forms exist
    example(T, ...) -> (z, w)                   valid float64 inputs
    cost(T, ...) -> Cost                        FLOPs, bytes, floats of state
    Layer(D, ...)                               a torch module: Layer(x_BTD, S=None) -> (y_BTD, S)

`z` are tensors with one entry per token ([B, T, ...], or [B, ...] in `step`), `w` what stays constant over time.
A state is a tensor or a tuple of tensors whose first axis is the batch. Every form also takes

    lengths_B   tokens of each row that are real: past them y is 0 and the state stands still
    reset_BT    True where a token begins a new sequence: the state is emptied before it

Adding a mixer is adding a file: `names()` finds it, and `tests/test_contract.py` holds it to `by_step`.
"""

import functools
import importlib
import pkgutil
import sys

import torch

from postx.shapes import check, check_lengths

FORMS = ("recurrent", "parallel", "chunked")
FORM_ONLY = ("chunk", "impl")  # arguments that change how a form computes, never what


def names() -> list[str]:
    """Every mixer in this folder, by the name of its file."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_"))


def load(name: str):
    """The mixer module of that name. Raises ValueError with the names that exist."""
    if name not in names():
        raise ValueError(f"mixer {name!r} does not exist; there are {', '.join(names())}")
    return importlib.import_module(f"{__name__}.{name}")


def forms(mixer) -> list[str]:
    """The forms that a mixer has beside `step`."""
    return [form for form in FORMS if hasattr(mixer, form)]


ALL_AT_ONCE = ("hyena", "rwkv4", "s4d", "shortconv")  # few large operations beat a loop over chunks on a GPU
FUSED = ("deltanet", "gated_deltanet", "gla", "linear", "mamba", "retnet", "rglru", "rwkv6", "rwkv7", "ssd")  # a kernel
NEVER_STEPPED = ("attention", "hyena", "mla")  # their `recurrent` does the same work one token at a time


def by_form(path: str, form: str, x_BTD):
    """The function of the imported mixer module `path` that its Layer should train with on x's device.

    form="auto": `recurrent` on a CPU, whose numba kernels have their own backward, on a GPU where Triton has one
    kernel for it, and for a single token; elsewhere `chunked`, or `parallel` where a loop over chunks is slower.
    Attention and the long convolutions never step: chunked and parallel. A mixer that is not linear in its state has
    `recurrent` alone. A form by name is taken as it is, where the mixer has it.
    Raises ValueError that lists the forms there are.
    """
    mixer, name = sys.modules[path], path.rpartition(".")[2]
    if form != "auto":
        if form not in forms(mixer):
            raise ValueError(f"form: {name} has {', '.join(map(repr, forms(mixer)))} and 'auto', not {form!r}")
        return getattr(mixer, form)
    if forms(mixer) == ["recurrent"]:
        return mixer.recurrent
    if name not in NEVER_STEPPED and (x_BTD.device.type == "cpu" or x_BTD.shape[1] == 1):
        return mixer.recurrent
    if name in FUSED and x_BTD.is_cuda and importlib.import_module("postx.scans").has_triton():
        return mixer.recurrent
    return mixer.parallel if name in ALL_AT_ONCE else mixer.chunked


def state_dtype(dtype: torch.dtype) -> torch.dtype:
    """States are at least float32: half precision loses a long sum."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def pick(impl: str, there: tuple[str, ...]) -> str:
    """The implementation that `impl` names; "auto" is the last of those that are there, the fastest.

    Raises ValueError that lists them.
    """
    if impl == "auto":
        return there[-1]
    if impl not in there:
        raise ValueError(
            f"impl: {impl!r} is not available here; there are 'auto', {', '.join(map(repr, there))}"
        )
    return impl


def map_state(function, S, *others):
    """Apply `function` to each tensor of a state (a tensor or a tuple), with the others' tensors beside it."""
    if isinstance(S, tuple):
        return tuple(map_state(function, *parts) for parts in zip(S, *others, strict=True))
    return function(S, *others)


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
    """Give a form `reset_BT`: a row that holds several sequences is cut into rows that hold one each.

    The form itself needs only `S` and `lengths_B`. The cost is padding to the longest of the sequences.
    """

    @functools.wraps(form)
    def wrapper(*z, S=None, lengths_B=None, reset_BT=None, **w):
        B, T = z[0].shape[:2]
        check_lengths(lengths_B, B, T)
        if reset_BT is None:
            return form(*z, S=S, lengths_B=lengths_B, **w)
        check({"B": B, "T": T}, reset_BT=reset_BT)
        if reset_BT.dtype != torch.bool:
            raise ValueError(f"reset_BT: expected bool, got {reset_BT.dtype}")
        constants = {key: x for key, x in w.items() if key not in FORM_ONLY}
        init = functools.partial(sys.modules[form.__module__].init, **constants)
        S = init(*(x[:, 0] for x in z)) if S is None else S
        return _run_pieces(functools.partial(form, **w), init, z, S, lengths_B, reset_BT)

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
    y_P, S_P = form(*pieces_z, S=S_P, lengths_B=length_P)

    real_PT = offset < length_P[:, None]
    y = y_P.new_zeros(B, T, *y_P.shape[2:])
    y = y.index_put((row_P[:, None].expand_as(token_PT)[real_PT], token_PT[real_PT]), y_P[real_PT])
    last = torch.cat([row_P[1:] != row_P[:-1], torch.ones(1, dtype=torch.bool, device=device)])
    return y, map_state(lambda x: x[last], S_P)
