"""What the recurrences take and return: axes filled in, heads and lengths checked, dtypes settled."""

import torch

from postx.mixers import state_dtype
from postx.shapes import check, check_lengths, check_shared


def all_axes(name, x, patterns, sizes):
    """x with the axes that its pattern lacks put in at size 1, where they stand for what is constant."""
    for pattern, missing in patterns.items():
        if x.dim() == len(pattern):
            check(sizes, **{f"{name}_{pattern}": x})
            for axis in missing:
                x = x.unsqueeze(axis)
            return x
    wanted = " or ".join(f"[{', '.join(pattern)}]" for pattern in patterns)
    raise ValueError(f"{name}: expected axes {wanted}, got shape {tuple(x.shape)}")


def decay_arguments(q_BTHK, k_BTHK, v_BTHV, g, S_BHKV, read, u_HK, lengths_B, wide=True):
    """What `decay` takes, checked, in at least float32: [q, k, v, g as [B|1, T|1, heads, K|1], S, u_HK].

    Without `wide`, q, k and v keep their dtype. The heads of q are not checked against those of v. Raises ValueError
    as `decay` does.
    """
    sizes = check(v_BTHV=v_BTHV)
    known = check({letter: sizes[letter] for letter in "BT"}, q_BTHK=q_BTHK)
    del known["H"]  # q and k need not have as many heads
    check(known, k_BTHK=k_BTHK)
    sizes = table_sizes(v_BTHV, lengths_B, read, k_BTHK=k_BTHK)
    Bn, H, K, V = (sizes[letter] for letter in "BHKV")
    if u_HK is not None and read == "after":
        raise ValueError("u_HK: a bonus on the current token needs read='before'")
    kind = state_dtype(v_BTHV.dtype)
    g4 = v_BTHV.new_zeros(1, 1, 1, 1) if g is None else _decay_axes(g, sizes)
    if S_BHKV is None:
        S_BHKV = torch.zeros(Bn, H, K, V, dtype=kind, device=v_BTHV.device)
    u = v_BTHV.new_zeros(H, K) if u_HK is None else u_HK
    check(sizes, S_BHKV=S_BHKV, u_HK=u)
    tokens = [x.to(kind) if wide else x for x in (q_BTHK, k_BTHK, v_BTHV)]
    return [*tokens, *(x.to(kind) for x in (g4, S_BHKV, u))]


def table_sizes(v_BTHV, lengths_B, read, **keys):
    """The sizes of a table recurrence; keys ([B,T,heads,K]) may have fewer heads than v, which divide v's."""
    sizes = check(v_BTHV=v_BTHV)
    for name, x in keys.items():
        if x is None:
            continue
        known = {letter: size for letter, size in sizes.items() if letter != "H"}
        sizes["K"] = check(known, **{name: x})["K"]
        check_shared(name, x.shape[2], sizes["H"])
    check_lengths(lengths_B, sizes["B"], sizes["T"])
    if read not in ("after", "before"):
        raise ValueError(f"read: expected 'after' or 'before', got {read!r}")
    return sizes


def decay_factors(g, sizes, v, kind, log=False):
    """exp(g) as [B|1, T|1, heads, K|1], or g itself."""
    g4 = (v.new_zeros(1, 1, 1, 1) if g is None else _decay_axes(g, sizes)).to(kind)
    return g4 if log else g4.exp()


def _decay_axes(g, sizes):
    """The log-decay as [B|1, T|1, heads, K|1]."""
    H, K = sizes["H"], sizes["K"]
    full = {
        1: lambda: g[None, None, :, None],
        2: lambda: g[None, None],
        3: lambda: g[..., None],
        4: lambda: g,
    }
    if g.dim() not in full:
        raise ValueError(
            f"g: expected axes [H], [H, K], [B, T, H] or [B, T, H, K], got shape {tuple(g.shape)}"
        )
    g4 = full[g.dim()]()
    expected = (
        1 if g.dim() < 3 else sizes["B"],
        1 if g.dim() < 3 else sizes["T"],
        None,
        K if g.dim() in (2, 4) else 1,
    )
    if any(want is not None and want != got for want, got in zip(expected, g4.shape, strict=True)):
        raise ValueError(
            f"g: expected axes {', '.join(['[H]', '[H, K]', '[B, T, H]', '[B, T, H, K]'][g.dim() - 1 : g.dim()])} "
            f"with B={sizes['B']}, T={sizes['T']}, H={H}, K={K}, got shape {tuple(g.shape)}"
        )
    check_shared("g", g4.shape[2], H)
    return g4


def row_lengths(lengths_B, x):
    """How many tokens of each row are real, as int64: all of them where `lengths_B` is None."""
    if lengths_B is None:
        return torch.full(x.shape[:1], x.shape[1], dtype=torch.int64, device=x.device)
    return lengths_B.to(torch.int64)


def finish(y, like, lengths_B):
    """The output in the input's dtype, zero past each row's length."""
    y = y.to(like.dtype)
    if lengths_B is None:
        return y
    real = torch.arange(y.shape[1], device=y.device) < lengths_B[:, None]
    return torch.where(real.view(*real.shape, *[1] * (y.dim() - 2)), y, torch.zeros_like(y))


def sum_to(grad, shape):
    """Sum a full gradient over the axes that were broadcast, or shared by neighbouring heads."""
    for axis, size in enumerate(shape):
        if grad.shape[axis] != size:
            grad = grad.unflatten(axis, (size, grad.shape[axis] // size)).sum(axis + 1)
    return grad
