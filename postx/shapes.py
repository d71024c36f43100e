"""The ground floor of arguments: the letters of every axis, said once, sizes, dtypes of states, rows that end.

A tensor of rank two or more carries its axes in its name: `q_BTHK` is [batch, time, head, key]. `check` reads
the letters back from the name, so the name is the specification.
"""

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


def axes(name: str) -> str:
    """The axis letters that a name carries: `axes("k_BTGK") == "BTGK"`.

    Raises ValueError where the last part of the name is not made of letters in `LETTERS`.
    """
    pattern = name.rpartition("_")[2]
    if not pattern or any(letter not in LETTERS for letter in pattern):
        raise ValueError(
            f"{name}: the part after the last underscore must be axis letters out of {''.join(LETTERS)}"
        )
    return pattern


def check(sizes: dict[str, int] | None = None, /, **tensors: torch.Tensor | None) -> dict[str, int]:
    """Hold every tensor to the axes in its name, and equal letters to equal sizes; return the sizes.

    `sizes` fixes letters beforehand. A tensor that is None is passed over.

    >>> check(q_BTHK=torch.zeros(2, 5, 4, 8), k_BTGK=torch.zeros(2, 5, 1, 8))
    {'B': 2, 'T': 5, 'H': 4, 'K': 8, 'G': 1}

    Raises TypeError for what is not a tensor, ValueError for a wrong rank or size; the message quotes the
    argument, the axes expected and the shape that came.
    """
    known = dict(sizes or {})
    origin = dict.fromkeys(known, "the call")
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        if not isinstance(tensor, torch.Tensor):
            raise TypeError(
                f"{name}: expected a torch.Tensor with axes [{', '.join(axes(name))}], got {type(tensor).__name__}"
            )
        pattern, shape = axes(name), tuple(tensor.shape)
        if len(shape) != len(pattern):
            raise ValueError(
                f"{name}: expected {len(pattern)} axes [{', '.join(pattern)}], got shape {shape}"
            )
        for letter, size in zip(pattern, shape, strict=True):
            if known.setdefault(letter, size) != size:
                raise ValueError(
                    f"{name}: expected axes [{', '.join(pattern)}] with {letter}={known[letter]} "
                    f"(from {origin[letter]}), got shape {shape}"
                )
            origin.setdefault(letter, name)
    return known


def check_shared(name: str, groups: int, heads: int) -> int:
    """How many reader heads share one of `groups`; reader head h uses head h // (heads / groups).

    Raises ValueError where `groups` does not divide `heads`.
    """
    if groups < 1 or heads % groups:
        raise ValueError(f"{name}: {groups} heads do not divide the {heads} heads that read them")
    return heads // groups


def check_lengths(lengths_B: torch.Tensor | None, B: int, T: int) -> None:
    """Raise ValueError unless T >= 1 and `lengths_B` is None or B integers from 0 to T."""
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
        if isinstance(value, bool) or int(value) != value or value < 1:
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
        listed = ", ".join(map(repr, there))
        raise ValueError(f"impl: {impl!r} is not available here; there are 'auto', {listed}")
    return impl
