"""The few recurrences that all mixers share, and the one place that decides what computes them.

`impl` is "auto", "reference" (torch: any device, autograd, float64) or "numba" (CPU, with its own backward).
"auto" takes numba on a CPU and the reference elsewhere. Asking for what is not there raises ValueError.
Half precision is computed in float32: outputs come back in the input's dtype, states stay float32.
"""

import torch

from postx.mixers import pick, state_dtype
from postx.scans import numba_ops, reference
from postx.scans.runtime import set_threads
from postx.shapes import check, check_lengths, check_shared

__all__ = [
    "IMPLEMENTATIONS",
    "START",
    "affine",
    "choose",
    "decay",
    "diagonal",
    "fir",
    "logspace",
    "merge",
    "set_threads",
]

IMPLEMENTATIONS = ("reference", "numba")
START = -1e30  # a maximum over nothing: finite, so that exp(START - x) is 0 and START - START is 0, not NaN


def choose(impl: str, x: torch.Tensor) -> str:
    """The implementation that `impl` stands for on x's device. Raises ValueError naming those that are there."""
    return pick(impl, IMPLEMENTATIONS if x.device.type == "cpu" else ("reference",))


def diagonal(u_BTD, delta, A_DN, B, C, S_BDN=None, *, lengths_B=None, impl="auto"):
    """Each channel keeps N numbers that fade and are written to on their own.

        h <- exp(delta A) h + delta B u        y = Re(sum_n C h)

    u_BTD real; delta [B,T,D] or constant [D]; A_DN real or complex; B and C [B,T,N] or constant [D,N].
    S_BDN is the state before the first token (zeros if None). Returns (y_BTD, S_BDN).

    This is Mamba's discretization (Gu & Dao 2023, sec. 2): A by zero-order hold, B by Euler. Zero-order hold of
    both is had by passing B * expm1(delta A) / (delta A). Errors: ValueError quotes the argument and its shape.
    """
    sizes = check(u_BTD=u_BTD, A_DN=A_DN)
    delta_BTD = _all_axes("delta", delta, {"BTD": (), "D": (0, 0)}, sizes)
    B_BTDN, C_BTDN = (
        _all_axes(name, x, {"BTN": (2,), "DN": (0, 0)}, sizes) for name, x in (("B", B), ("C", C))
    )
    Bn, T, D = u_BTD.shape
    check_lengths(lengths_B, Bn, T)
    real = state_dtype(u_BTD.dtype)
    kind = torch.promote_types(real, state_dtype(torch.promote_types(A_DN.dtype, C.dtype)))
    if S_BDN is None:
        S_BDN = torch.zeros(Bn, D, A_DN.shape[1], dtype=kind, device=u_BTD.device)
    check(sizes, S_BDN=S_BDN)
    args = (u_BTD.to(real), delta_BTD.to(real), *(x.to(kind) for x in (A_DN, B_BTDN, C_BTDN, S_BDN)))
    run = {"reference": reference.diagonal, "numba": numba_ops.Diagonal.apply}[choose(impl, u_BTD)]
    y, S = run(*args, _lengths(lengths_B, u_BTD))
    return _finish(y, u_BTD, lengths_B), S


def decay(
    q_BTHK, k_BTHK, v_BTHV, g=None, S_BHKV=None, *, read="after", u_HK=None, lengths_B=None, impl="auto"
):
    """A table of associations that fades, is written to, and is read with a query.

        S <- diag(exp g) S + k v'        y = S' q

    q, k and g may have fewer heads than v has (G that divides H): head h uses head h // (H / G).
    g <= 0 is the log-decay: None, [H], [H,K], [B,T,H] or [B,T,H,K]. read="after" reads the new state;
    "before" the old one plus a bonus u_HK on the token itself (RWKV-6): y = (S + diag(u) k v')' q.
    Returns (y_BTHV, S_BHKV). Papers that write the state as [V,K] are transposed here.

    Errors: ValueError quotes the argument, the axes and the shape.
    """
    sizes = check(v_BTHV=v_BTHV)
    Bn, T, H, V = v_BTHV.shape
    K = check({"B": Bn, "T": T}, q_BTHK=q_BTHK)["K"]  # q and k need not have H heads, so H is not fixed here
    check({"B": Bn, "T": T, "K": K}, k_BTHK=k_BTHK)
    sizes["K"] = K
    for name, x in (("q_BTHK", q_BTHK), ("k_BTHK", k_BTHK)):
        check_shared(name, x.shape[2], H)
    check_lengths(lengths_B, Bn, T)
    if read not in ("after", "before"):
        raise ValueError(f"read: expected 'after' or 'before', got {read!r}")
    if u_HK is not None and read == "after":
        raise ValueError("u_HK: a bonus on the current token needs read='before'")
    kind = state_dtype(v_BTHV.dtype)
    a_BTHK = _decay_factors(g, sizes, v_BTHV, kind)
    if S_BHKV is None:
        S_BHKV = torch.zeros(Bn, H, K, V, dtype=kind, device=v_BTHV.device)
    u = v_BTHV.new_zeros(H, K) if u_HK is None else u_HK
    check(sizes, S_BHKV=S_BHKV, u_HK=u)
    tensors = [x.to(kind) for x in (q_BTHK, k_BTHK, v_BTHV, a_BTHK, S_BHKV, u)]
    if choose(impl, v_BTHV) == "numba":
        y, S = numba_ops.Decay.apply(*tensors, _lengths(lengths_B, v_BTHV), read == "before")
    else:
        for i in (0, 1, 3):  # the reference knows nothing of shared heads
            tensors[i] = tensors[i].repeat_interleave(H // tensors[i].shape[2], 2)
        y, S = reference.decay(*tensors, _lengths(lengths_B, v_BTHV), read == "before")
    return _finish(y, v_BTHV, lengths_B), S


def logspace(s_BTD, v_BTD, g_D=None, u_D=None, S=None, *, lengths_B=None, impl="auto"):
    """A running average of v with weights e^s that fade: a softmax over the past, kept in three numbers a channel.

        num <- e^g num + e^s v        den <- e^g den + e^s        y = num / den

    Both sums are stored times e^-max, so that no s, however large, overflows. With the bonus u_D the output reads
    the state before the update and the token itself with weight e^(u+s): the wkv of RWKV-4 (Peng et al. 2023).
    g_D <= 0 is the log-decay per channel. S = (num_BD, den_BD, max_BD), with max starting at a finite `START`.
    Returns (y_BTD, S).
    """
    sizes = check(s_BTD=s_BTD, v_BTD=v_BTD)
    Bn, T, D = s_BTD.shape
    check_lengths(lengths_B, Bn, T)
    kind = state_dtype(torch.promote_types(s_BTD.dtype, v_BTD.dtype))
    zeros = torch.zeros(Bn, D, dtype=kind, device=v_BTD.device)
    if S is None:
        S = (zeros, zeros, torch.full_like(zeros, START))
    num_BD, den_BD, max_BD = S
    g = zeros.new_zeros(D) if g_D is None else g_D.to(kind)
    u = zeros.new_zeros(D) if u_D is None else u_D.to(kind)
    check(sizes, g_D=g, u_D=u, num_BD=num_BD, den_BD=den_BD, max_BD=max_BD)
    s, v, lengths = s_BTD.to(kind), v_BTD.to(kind), _lengths(lengths_B, v_BTD)
    if choose(impl, v_BTD) == "numba":
        y, *S = numba_ops.Logspace.apply(s, v, g, u, num_BD, den_BD, max_BD, lengths, u_D is not None)
    else:
        y, S = reference.logspace(s, v, g, u, S, lengths, u_D is not None)
    return _finish(y, v_BTD, lengths_B), tuple(S)


def merge(left, right):
    """Two partial softmax sums, (numerator, denominator, maximum), as one. Associative: the online softmax.

    The numerator may have one axis more than the other two (a value vector per denominator).
    """
    (num_a, den_a, max_a), (num_b, den_b, max_b) = left, right
    top = torch.maximum(max_a, max_b)
    a, b = torch.exp(max_a - top), torch.exp(max_b - top)
    wide = (..., None) if num_a.dim() > den_a.dim() else ...
    return a[wide] * num_a + b[wide] * num_b, a * den_a + b * den_b, top


def affine(g_BTD, b_BTD, S_BD=None, *, lengths_B=None, impl="auto"):
    """Each channel keeps one number, which fades by its own rate and is added to.

        h <- exp(g) h + b        y = h

    g_BTD <= 0 is the log-decay, S_BD the state before the first token (zeros if None). Returns (y_BTD, S_BD).
    The recurrence of the RG-LRU (De et al. 2024, sec. 2.4) and of every gated linear RNN with one number a channel.

    Errors: ValueError quotes the argument, the axes and the shape.
    """
    sizes = check(g_BTD=g_BTD, b_BTD=b_BTD)
    Bn, T, D = b_BTD.shape
    check_lengths(lengths_B, Bn, T)
    kind = state_dtype(torch.promote_types(g_BTD.dtype, b_BTD.dtype))
    if S_BD is None:
        S_BD = torch.zeros(Bn, D, dtype=kind, device=b_BTD.device)
    check(sizes, S_BD=S_BD)
    args = g_BTD.to(kind).exp(), b_BTD.to(kind), S_BD.to(kind), _lengths(lengths_B, b_BTD)
    run = {"reference": reference.affine, "numba": numba_ops.Affine.apply}[choose(impl, b_BTD)]
    y, S = run(*args)
    return _finish(y, b_BTD, lengths_B), S


def fir(x_BMD, weight_DW, *, impl="auto"):
    """Each channel's dot product with a window of W inputs that slides along: finite memory, no decay.

        y_t = sum_j weight_j x_{t+j}, j = 0..W-1

    x_BMD holds M = T + W - 1 inputs, the W - 1 before the first token included; the last tap meets the current
    token. Returns y_BTD in at least float32; T W products a channel, where an FFT takes log T of them.

    Errors: ValueError quotes the argument, the axes and the shape, or the lack of inputs.
    """
    sizes = check(x_BMD=x_BMD, weight_DW=weight_DW)
    if not 1 <= sizes["W"] <= sizes["M"]:
        raise ValueError(f"x_BMD: expected at least W={sizes['W']} >= 1 inputs, got M={sizes['M']}")
    kind = state_dtype(torch.promote_types(x_BMD.dtype, weight_DW.dtype))
    run = {"reference": reference.fir, "numba": numba_ops.Fir.apply}[choose(impl, x_BMD)]
    return run(x_BMD.to(kind), weight_DW.T.to(kind))


def _all_axes(name, x, patterns, sizes):
    """x with the axes that its pattern lacks put in at size 1, where they stand for what is constant."""
    for pattern, missing in patterns.items():
        if x.dim() == len(pattern):
            check(sizes, **{f"{name}_{pattern}": x})
            for axis in missing:
                x = x.unsqueeze(axis)
            return x
    wanted = " or ".join(f"[{', '.join(pattern)}]" for pattern in patterns)
    raise ValueError(f"{name}: expected axes {wanted}, got shape {tuple(x.shape)}")


def _decay_factors(g, sizes, v, kind):
    """exp(g) as [B|1, T|1, heads, K|1]."""
    if g is None:
        return torch.ones(1, 1, 1, 1, dtype=kind, device=v.device)
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
    return g4.to(kind).exp()


def _lengths(lengths_B, x):
    if lengths_B is None:
        return torch.full(x.shape[:1], x.shape[1], dtype=torch.int64, device=x.device)
    return lengths_B.to(torch.int64)


def _finish(y, like, lengths_B):
    """The output in the input's dtype, zero past each row's length."""
    y = y.to(like.dtype)
    if lengths_B is None:
        return y
    real = torch.arange(y.shape[1], device=y.device) < lengths_B[:, None]
    return torch.where(real.view(*real.shape, *[1] * (y.dim() - 2)), y, torch.zeros_like(y))
