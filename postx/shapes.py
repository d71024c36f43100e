"""The ground floor of arguments: the letters of every axis, said once, sizes, dtypes of states, rows that end.

A tensor of rank two or more carries its axes in its name: `q_BTHK` is [batch, time, head, key]. `named` and `check`
read the letters back from the name, so the name is the specification.
"""

import functools
import inspect
import math
import re
from contextlib import contextmanager
from contextvars import ContextVar
from numbers import Real

import torch

LETTERS = {
    "B": "batch",
    "T": "time, the position of a token",
    "M": "source position of attention, a slot of the cache",
    "W": "attention window",
    "H": "head",
    "G": "group of heads that share something",
    "K": "key or state width of a head",
    "V": "value width of a head",
    "D": "model width",
    "E": "expert",
    "F": "hidden width of the MLP",
    "L": "layer",
    "R": "latent width (the compressed key-value of MLA)",
    "N": "state of a per-channel state space model",
    "C": "chunk",
    "Y": "vocabulary",
    "O": "output width of a quantized weight",
    "I": "input width of a quantized weight",
}


_AXIS = re.compile(r"([A-Z])([+-]\d+)?")
_known = {}  # names that were read before
WHOLE = ("lengths_B", "reset_BT")  # arguments of a form that are no floating point numbers
_trusted = ContextVar("trusted", default=False)


def axes(name: str) -> str:
    """The axis letters that a name carries: `axes("k_BTGK") == "BTGK"`.

    Raises ValueError where the last part of the name is not made of letters in `LETTERS`.
    """
    return "".join(letter for letter, _ in _axes(name))


def _axes(name):
    """[(letter, offset)] of a name; a state's may say that an axis is longer or shorter: "S_BW-1D"."""
    if name in _known:
        return _known[name]
    pattern = name.rpartition("_")[2]
    if not re.fullmatch(rf"(?:{_AXIS.pattern})+", pattern) or set(re.sub(r"[^A-Z]", "", pattern)) - set(LETTERS):
        raise ValueError(
            f"{name}: the part after the last underscore must be axis letters out of {''.join(LETTERS)}"
        )
    return _known.setdefault(name, [(letter, int(more or 0)) for letter, more in _AXIS.findall(pattern)])


def _told(name):
    """The axes as an error quotes them: "B, W-1, D"."""
    return ", ".join(f"{letter}{more:+d}" if more else letter for letter, more in _axes(name))


def check(sizes: dict[str, int] | None = None, /, **tensors: torch.Tensor | None) -> dict[str, int]:
    """Hold every tensor to the axes in its name, and equal letters to equal sizes; return the sizes.

    `sizes` fixes letters beforehand. A tensor that is None is passed over.

    >>> check(q_BTHK=torch.zeros(2, 5, 4, 8), k_BTGK=torch.zeros(2, 5, 1, 8))
    {'B': 2, 'T': 5, 'H': 4, 'K': 8, 'G': 1}

    Within `trusted`, and while torch compiles, sizes are read and nothing is held to them.
    Raises TypeError for what is not a tensor, ValueError for a wrong rank or size; the message quotes the
    argument, the axes expected and the shape that came.
    """
    return _check(sizes, tensors.items())


def _check(sizes, tensors, apart=()):
    """As `check`, of pairs. A name in `apart` has a K of its own, shared with others of its stem (r_BTK, r_BMK)."""
    known, loose = dict(sizes or {}), is_trusted()
    origin = dict.fromkeys(known, "the call")
    for name, tensor in tensors:
        if tensor is None:
            continue
        pattern = _axes(name)
        if loose:
            known.update((letter, n - more) for (letter, more), n in zip(pattern, tensor.shape, strict=False))
            continue
        plain = re.sub(r"[+-]\d+", "", name)
        if not isinstance(tensor, torch.Tensor):
            raise TypeError(
                f"{plain}: expected a torch.Tensor with axes [{_told(name)}], got {type(tensor).__name__}"
            )
        shape = tuple(tensor.shape)
        if len(shape) != len(pattern):
            raise ValueError(f"{plain}: expected {len(pattern)} axes [{_told(name)}], got shape {shape}")
        for (letter, more), size in zip(pattern, shape, strict=True):
            key = f"K of {name.rpartition('_')[0]}" if letter == "K" and name in apart else letter
            if known.setdefault(key, size - more) != size - more:
                raise ValueError(
                    f"{plain}: expected axes [{_told(name)}] with {letter}={known[key]} "
                    f"(from {origin[key]}), got shape {shape}"
                )
            origin.setdefault(key, plain)
    return known


def is_trusted() -> bool:
    """Whether arguments are taken as they are: within `trusted`, and while torch compiles."""
    return torch.compiler.is_compiling() or _trusted.get()


@contextmanager
def trusted():
    """What was checked at the door is not checked again within: in a scan under its mixer, in the steps of generate."""
    token = _trusted.set(True)
    try:
        yield
    finally:
        _trusted.reset(token)


def named(function):
    """A door: the tensors that come in are held to the axes in the names of the function's parameters, once.

    What is called from within is trusted. A parameter S is held to the `STATE` of the function's module, a name or a
    tuple of names; `SIZES` there fixes letters, `APART` names arguments whose K is another than the others'. Where G
    and H both occur, G must divide H; whole numbers are refused; lengths_B and chunk are looked at as well. Raises as
    `check`. The door's own `check` looks at the arguments and does no more.
    """
    order = list(inspect.signature(function).parameters)
    carry = [name for name in order if "_" in name and not set(name.rpartition("_")[2]) - set(LETTERS)]

    def look(*args, **kwargs):
        if is_trusted():
            return
        given = dict(zip(order, args, strict=False)) | kwargs
        said = function.__globals__
        tensors = {name: given[name] for name in carry if given.get(name) is not None}
        held = [*tensors.items()]
        if given.get("S") is not None:
            held += _parts(said["STATE"], given["S"]).items()
        sizes = _check(said.get("SIZES"), held, said.get("APART", ()))
        for name, x in tensors.items():
            if name not in WHOLE and not (x.is_floating_point() or x.is_complex()):
                raise ValueError(f"{name}: expected floating point numbers, got {x.dtype}")
        if "H" in sizes and "G" in sizes:
            check_shared(next(name for name in tensors if "G" in axes(name)), sizes["G"], sizes["H"])
        if "T" in sizes:
            check_lengths(given.get("lengths_B"), sizes["B"], sizes["T"])
        if "chunk" in given:
            whole(chunk=given["chunk"])

    @functools.wraps(function)
    def door(*args, **kwargs):
        if is_trusted():
            return function(*args, **kwargs)
        look(*args, **kwargs)
        with trusted():
            return function(*args, **kwargs)

    door.check = look
    return door


def _parts(names, S):
    """{name: tensor} of a state."""
    if isinstance(names, str):
        return {names: S}
    if not isinstance(S, tuple) or len(S) != len(names):
        got = f"{len(S)} parts" if isinstance(S, tuple) else type(S).__name__
        raise ValueError(f"S: expected a tuple ({', '.join(names)}), got {got}")
    return dict(zip(names, S, strict=True))


def check_shared(name: str, groups: int, heads: int) -> int:
    """How many reader heads share one of `groups`; reader head h uses head h // (heads / groups).

    Raises ValueError where `groups` does not divide `heads`.
    """
    if groups < 1 or heads % groups:
        raise ValueError(f"{name}: {groups} heads do not divide the {heads} heads that read them")
    return heads // groups


def check_lengths(lengths_B: torch.Tensor | None, B: int, T: int) -> None:
    """Raise ValueError unless T >= 1 and `lengths_B` is None or B integers from 0 to T."""
    if is_trusted():
        return
    if T < 1:
        raise ValueError("T: expected at least one token, got 0")
    if lengths_B is None:
        return
    check({"B": B}, lengths_B=lengths_B)
    if lengths_B.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"lengths_B: expected integers, got {lengths_B.dtype}")
    if B and (int(lengths_B.min()) < 0 or int(lengths_B.max()) > T):
        raise ValueError(f"lengths_B: expected values from 0 to T={T}, got {lengths_B.tolist()}")


def positive(**sizes):
    """Refuse a size that is not a whole number of at least 1, 1e6 among them; the error names it."""
    for name, value in sizes.items():
        number = isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
        if not number or int(value) != value or value < 1:
            raise ValueError(f"{name}: expected a whole number >= 1, got {value!r}")


def whole(**sizes):
    """As `positive`, for what a loop counts or a shape is made of: an int. 2.0 and True are none."""
    for name, value in sizes.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name}: expected a whole number >= 1, got {value!r}")


def real(x: torch.Tensor, lengths_B: torch.Tensor | None) -> torch.Tensor:
    """x [B, T, ...] with zeros in place of whatever stands past each row's length, NaN included."""
    if lengths_B is None:
        return x
    keep_BT = torch.arange(x.shape[1], device=x.device) < lengths_B[:, None]
    return torch.where(keep_BT.view(*keep_BT.shape, *[1] * (x.dim() - 2)), x, 0)


def map_state(function, S, *others):
    """Apply `function` to each tensor of a state (a tensor or a tuple), with the others' tensors beside it."""
    if isinstance(S, tuple):
        return tuple(map_state(function, *parts) for parts in zip(S, *others, strict=True))
    return function(S, *others)


def state_dtype(dtype: torch.dtype) -> torch.dtype:
    """States are at least float32: half precision loses a long sum. Whole numbers, which would cut it, are refused."""
    if not (dtype.is_floating_point or dtype.is_complex):
        raise ValueError(f"expected floating point numbers, got {dtype}")
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def sum_dtype(dtype: torch.dtype) -> torch.dtype:
    """What a sum of weights over a text may come back in: as it is, but for float16, which ends at 65,504."""
    return torch.float32 if dtype == torch.float16 else dtype


def empty(k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Tables with nothing written: zeros S_BHKV for one token's k [B, heads, K], shared or not, and v_BHV."""
    return v.new_zeros(*v.shape[:2], k.shape[-1], v.shape[-1], dtype=state_dtype(v.dtype))


def pick(impl: str, there: tuple[str, ...]) -> str:
    """The implementation that `impl` names; "auto" is the last of those that are there, the fastest.

    Raises ValueError that lists them.
    """
    if impl == "auto":
        return there[-1]
    if impl not in there:
        listed = ", ".join(map(repr, there))
        raise ValueError(f"impl: {impl!r} is not available here; there are 'auto', {listed}")
    return impl
