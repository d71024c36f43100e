"""What the recurrences take and return: axes filled in, heads and lengths checked, dtypes settled."""

from typing import NamedTuple

import torch

from postx.shapes import check, check_lengths, check_shared, empty, is_trusted, state_dtype


def all_axes(name, x, patterns, sizes):
    """x with the axes that its pattern lacks put in at size 1, where they stand for what is constant."""
    for pattern, missing in patterns.items():
        if x.dim() == len(pattern):
            if not is_trusted():
                check(sizes, **{f"{name}_{pattern}": x})
            for axis in missing:
                x = x.unsqueeze(axis)
            return x
    wanted = " or ".join(f"[{', '.join(pattern)}]" for pattern in patterns)
    raise ValueError(f"{name}: expected axes {wanted}, got shape {tuple(x.shape)}")


class Table(NamedTuple):
    """What `decay` computes with: g as [B|1, T|1, heads, K|1] or None, a state, and a bonus u [H, K] or None."""

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    g: torch.Tensor | None
    S: torch.Tensor
    u: torch.Tensor | None

    def whole(self):
        """With zeros for the log-decay and the bonus that were not given."""
        H, K = self.S.shape[1:3]
        g, u = self.g, self.u
        g = self.S.new_zeros(1, 1, 1, 1) if g is None else g
        return self._replace(g=g, u=self.S.new_zeros(H, K) if u is None else u)


AXES_OF_G = {"H": (0, 0, 3), "HK": (0, 0), "BTH": (3,), "BTHK": ()}


def decay_arguments(q_BTHK, k_BTHK, v_BTHV, g, S_BHKV, read, u_HK, lengths_B, wide=True):
    """What `decay` takes, checked, in at least float32. Without `wide`, q, k, v and g keep their dtype.

    The heads of q are not held to those of v. Raises ValueError as `decay` does.
    """
    sizes = table_sizes(v_BTHV, lengths_B, read, k_BTHK=k_BTHK)
    if u_HK is not None and read == "after":
        raise ValueError("u_HK: a bonus on the current token needs read='before'")
    kind = state_dtype(v_BTHV.dtype)
    S = empty(k_BTHK[:, 0], v_BTHV[:, 0]) if S_BHKV is None else S_BHKV
    if not is_trusted():
        check({letter: sizes[letter] for letter in "BTK"}, q_BTHK=q_BTHK)
        check(sizes, S_BHKV=S, u_HK=u_HK)
    tokens = [q_BTHK, k_BTHK, v_BTHV, log_decay(g, sizes)]
    tokens = [x.to(kind) if wide and x is not None else x for x in tokens]
    return Table(*tokens, S.to(kind), None if u_HK is None else u_HK.to(kind))


def table_sizes(v_BTHV, lengths_B, read, **keys):
    """The sizes of a table recurrence; keys ([B,T,heads,K]) may have fewer heads than v, which divide v's."""
    if is_trusted():
        return dict(zip("BTHV", v_BTHV.shape, strict=True)) | {"K": keys["k_BTHK"].shape[3]}
    sizes = check(v_BTHV=v_BTHV)
    for name, x in keys.items():
        if x is not None:
            known = {letter: size for letter, size in sizes.items() if letter != "H"}
            sizes["K"] = check(known, **{name: x})["K"]
            check_shared(name, x.shape[2], sizes["H"])
    check_lengths(lengths_B, sizes["B"], sizes["T"])
    if read not in ("after", "before"):
        raise ValueError(f"read: expected 'after' or 'before', got {read!r}")
    return sizes


def log_decay(g, sizes):
    """g with all axes, [B|1, T|1, heads, K|1], or None; its heads divide v's."""
    if g is None:
        return None
    g4 = all_axes("g", g, AXES_OF_G, {letter: n for letter, n in sizes.items() if letter != "H"})
    check_shared("g", g4.shape[2], sizes["H"])
    return g4


def row_lengths(lengths_B, x):
    """How many tokens of each row are real, as int64: all of them where `lengths_B` is None."""
    if lengths_B is None:
        return torch.full(x.shape[:1], x.shape[1], dtype=torch.int64, device=x.device)
    return lengths_B.to(torch.int64)


def sum_to(grad, shape):
    """Sum a full gradient over the axes that were broadcast, or shared by neighbouring heads."""
    for axis, size in enumerate(shape):
        if grad.shape[axis] != size:
            grad = grad.unflatten(axis, (size, grad.shape[axis] // size)).sum(axis + 1)
    return grad
