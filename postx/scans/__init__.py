"""The few recurrences that all mixers share, and the one place that decides what computes them.

`impl` is "auto", "reference" (torch: any device, autograd, float64), "numba" (CPU, with its own backward) or "triton"
(CUDA, with its own backward: `affine`, `diagonal` with real numbers and N <= 128, `decay` and `delta` with K <= 256).
"auto" takes numba on a CPU (the reference where NUMBA_DISABLE_JIT is set); on a GPU triton where it is installed and
the case is one of these, else the reference, as for `logspace`, `fir` and complex numbers. Which of its kernels triton
takes for a table, chunks of tokens or one token after another, follows from dtype, T, K and g (`choice`).
Asking for what is not there raises ValueError. Half precision is computed in float32: outputs come back in the
input's dtype, states stay float32. Only triton's chunks (`choice` says when) take their matrix products in the half
precision of v, and add them up in float32.
"""

import torch

from postx.scans import choice, numba_ops, reference
from postx.scans.arguments import all_axes, decay_arguments, log_decay, row_lengths, table_sizes
from postx.scans.choice import (
    GPU_IMPLEMENTATIONS,
    IMPLEMENTATIONS,
    MOST_KEYS,
    MOST_STATES,
    choose,
    has_triton,
)
from postx.scans.runtime import set_threads
from postx.shapes import check, check_lengths, check_shared, empty, is_trusted, real, state_dtype

__all__ = [
    "IMPLEMENTATIONS",
    "START",
    "affine",
    "GPU_IMPLEMENTATIONS",
    "choose",
    "decay",
    "delta",
    "diagonal",
    "fir",
    "has_triton",
    "logspace",
    "merge",
    "set_threads",
]

# A maximum over nothing: finite, so that START - START is 0 and not NaN, and the least number of float32, which is how
# masks say "never": a row that holds nothing else still weighs it.
START = torch.finfo(torch.float32).min


def diagonal(u_BTD, delta, A_DN, B, C, S_BDN=None, *, lengths_B=None, impl="auto"):
    """Each channel keeps N numbers that fade and are written to on their own.

        h <- exp(delta A) h + delta B u        y = Re(sum_n C h)

    u_BTD real; delta [B,T,D] or constant [D]; A_DN real or complex; B and C [B,T,N] or constant [D,N].
    S_BDN is the state before the first token (zeros if None). Returns (y_BTD, S_BDN).

    This is Mamba's discretization (Gu & Dao 2023, sec. 2): A by zero-order hold, B by Euler. Zero-order hold of
    both is had by passing B * expm1(delta A) / (delta A). Errors: ValueError quotes the argument and its shape.
    """
    sizes = check(u_BTD=u_BTD, A_DN=A_DN)
    delta_BTD = all_axes("delta", delta, {"BTD": (), "D": (0, 0)}, sizes)
    B_BTDN, C_BTDN = (
        all_axes(name, x, {"BTN": (2,), "DN": (0, 0)}, sizes) for name, x in (("B", B), ("C", C))
    )
    Bn, T, D = u_BTD.shape
    check_lengths(lengths_B, Bn, T)
    floats = state_dtype(u_BTD.dtype)
    kind = torch.promote_types(floats, state_dtype(torch.promote_types(A_DN.dtype, C.dtype)))
    if S_BDN is None:
        S_BDN = torch.zeros(Bn, D, A_DN.shape[1], dtype=kind, device=u_BTD.device)
    check(sizes, S_BDN=S_BDN)
    chosen = choose(impl, u_BTD, not kind.is_complex and not B.is_complex() and A_DN.shape[1] <= MOST_STATES)
    if chosen == "triton":  # the kernel reads half precision as it is
        A, S = A_DN.to(kind), S_BDN.to(kind)
        y, S = choice.kernels("diagonal_ops").Diagonal.apply(u_BTD, delta_BTD, A, B_BTDN, C_BTDN, S, lengths_B)
        return real(y, lengths_B).to(u_BTD.dtype), S
    args = (u_BTD.to(floats), delta_BTD.to(floats), *(x.to(kind) for x in (A_DN, B_BTDN, C_BTDN, S_BDN)))
    lengths = row_lengths(lengths_B, u_BTD)
    selective = delta.dim() == 3 and B.dim() == C.dim() == 3 and not kind.is_complex
    if chosen == "reference":
        y, S = reference.diagonal(*args, lengths)
    elif selective:
        u, delta_BTD, A_DN, B_BTDN, C_BTDN, S_BDN = args
        y, S = numba_ops.Selective.apply(u, delta_BTD, A_DN, B_BTDN[:, :, 0], C_BTDN[:, :, 0], S_BDN, lengths)
    else:
        y, S = numba_ops.Diagonal.apply(*args, lengths)
    return real(y, lengths_B).to(u_BTD.dtype), S


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
    chosen = choose(impl, v_BTHV, k_BTHK.shape[-1] <= MOST_KEYS)
    wide = chosen != "triton"  # the kernel reads half precision as it is
    table = decay_arguments(q_BTHK, k_BTHK, v_BTHV, g, S_BHKV, read, u_HK, lengths_B, wide)
    H = v_BTHV.shape[2]
    check_shared("q_BTHK", q_BTHK.shape[2], H)
    one = read == "after" and (g is None or table.g.shape[3] == 1)  # a decay a head, or none
    if chosen == "triton" and (choice.in_chunks if one else choice.keys_in_chunks)(v_BTHV):
        if one:
            q, k, v, g4, S, _ = table
            y, S = choice.kernels("chunked_ops").Chunked.apply(q, k, v, None if g is None else g4[..., 0], S, lengths_B)
        else:
            *tensors, u = table.whole()
            y, S = choice.kernels("keys_ops").decay(*tensors, None if u_HK is None else u, lengths_B, read == "before")
        return real(y, lengths_B).to(v_BTHV.dtype), S
    if chosen == "numba":
        *tensors, _ = table.whole()
        y, S = numba_ops.Decay.apply(*tensors, table.u, row_lengths(lengths_B, v_BTHV), read == "before")
        return real(y, lengths_B).to(v_BTHV.dtype), S
    table = table.whole()
    table = table._replace(g=table.g.to(table.S.dtype).exp())
    if chosen == "triton":
        *tensors, u = table
        y, S = choice.kernels("ops").Decay.apply(*tensors, None if u_HK is None else u, lengths_B, read == "before")
    else:  # the reference knows nothing of shared heads
        full = {name: getattr(table, name) for name in ("q", "k", "g")}
        table = table._replace(**{name: x.repeat_interleave(H // x.shape[2], 2) for name, x in full.items()})
        y, S = reference.decay(*table, row_lengths(lengths_B, v_BTHV), read == "before")
    return real(y, lengths_B).to(v_BTHV.dtype), S


def delta(
    q_BTHK, k_BTHK, v_BTHV, beta_BTH=None, g=None, S_BHKV=None, *, b_BTHK=None, c_BTHK=None,
    read="after", lengths_B=None, impl="auto",
):  # fmt: skip
    """A table in which a token can correct what is stored under a key, not only add to it.

        S <- diag(exp g) S - b (beta c' S) + k v'        y = S' q

    c reads what the old state holds, and b takes the part beta of it out; b and c default to k, beta to 1. Each
    column of S sees the matrix diag(exp g) - beta b c'; it is never formed. Heads are shared, g is given, and
    read="before" reads the old state, as in `decay` (b, c and beta too may have fewer heads than v).
    Returns (y_BTHV, S_BHKV). Errors: ValueError quotes the argument, the axes and the shape.
    """
    sizes = table_sizes(
        v_BTHV, lengths_B, read, q_BTHK=q_BTHK, k_BTHK=k_BTHK, b_BTHK=b_BTHK, c_BTHK=c_BTHK
    )
    H = sizes["H"]
    kind = state_dtype(v_BTHV.dtype)
    chosen = choose(impl, v_BTHV, sizes["K"] <= MOST_KEYS)
    given = q_BTHK, k_BTHK, v_BTHV, b_BTHK, c_BTHK, beta_BTH
    if chosen != "triton":  # the kernel reads half precision as it is
        given = (None if x is None else x.to(kind) for x in given)
    q, k, v, b, c, beta = given
    c = k if c is None else c
    beta = v.new_ones(1, 1, 1) if beta is None else beta
    S_BHKV = empty(k_BTHK[:, 0], v_BTHV[:, 0]) if S_BHKV is None else S_BHKV
    if not is_trusted():
        check({letter: sizes[letter] for letter in "BT"}, beta_BTH=beta_BTH)
        check_shared("beta_BTH", beta.shape[2], H)
        check(sizes, S_BHKV=S_BHKV)
    g4 = log_decay(g, sizes)
    plain = read == "after" and b_BTHK is c_BTHK is None
    chunks = choice.delta_in_chunks(plain, g, k_BTHK, v_BTHV) if chosen == "triton" else None
    if chunks == "plain":
        y, S = choice.kernels("delta_ops").ChunkedDelta.apply(
            q, k, v, None if g is None else g4[..., 0], beta, S_BHKV.to(kind), lengths_B
        )
        return real(y, lengths_B).to(v_BTHV.dtype), S
    if chosen == "numba" and plain and (g is None or g4.shape[3] == 1):
        rate = v.new_zeros(1, 1, 1, 1) if g is None else g4.to(kind)
        y, S = numba_ops.Erase.apply(q, k, v, rate, beta, S_BHKV.to(kind), row_lengths(lengths_B, v_BTHV))
        return real(y, lengths_B).to(v_BTHV.dtype), S
    if chunks == "general":
        y, S = choice.kernels("dplr_ops").General.apply(
            q, k, v, g4, b, c, beta, S_BHKV.to(kind), lengths_B, read == "before"
        )
        return real(y, lengths_B).to(v_BTHV.dtype), S
    keep = v.new_ones(1, 1, 1, 1, dtype=kind) if g is None else g4.to(kind).exp()
    tensors = [q, k, v, keep, b, c, beta]
    if chosen == "triton":
        y, S = choice.kernels("ops").Delta.apply(*tensors, S_BHKV.to(kind), lengths_B, read == "before")
        return real(y, lengths_B).to(v_BTHV.dtype), S
    more = S_BHKV.to(kind), row_lengths(lengths_B, v_BTHV), read == "before"
    if chosen == "numba":
        y, S = numba_ops.Delta.apply(*tensors, *more)
    else:
        tensors[4] = k if b is None else b
        y, S = reference.delta(*(x.repeat_interleave(H // x.shape[2], 2) for x in tensors), *more)
    return real(y, lengths_B).to(v_BTHV.dtype), S


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
    s, v, lengths = s_BTD.to(kind), v_BTD.to(kind), row_lengths(lengths_B, v_BTD)
    if choose(impl, v_BTD) == "numba":
        y, *S = numba_ops.Logspace.apply(s, v, g, u, num_BD, den_BD, max_BD, lengths, u_D is not None)
    else:
        y, S = reference.logspace(s, v, g, u, S, lengths, u_D is not None)
    return real(y, lengths_B).to(v_BTD.dtype), tuple(S)


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
    kind = torch.promote_types(state_dtype(g_BTD.dtype), state_dtype(b_BTD.dtype))
    if S_BD is None:
        S_BD = torch.zeros(Bn, D, dtype=kind, device=b_BTD.device)
    check(sizes, S_BD=S_BD)
    chosen = choose(impl, b_BTD, kernel=True)
    if chosen == "triton":
        y, S = choice.kernels("chunked_ops").Affine.apply(g_BTD, b_BTD, S_BD.to(kind), lengths_B)
        return real(y, lengths_B).to(b_BTD.dtype), S
    args = g_BTD.to(kind).exp(), b_BTD.to(kind), S_BD.to(kind), row_lengths(lengths_B, b_BTD)
    run = {"reference": reference.affine, "numba": numba_ops.Affine.apply}[chosen]
    y, S = run(*args)
    return real(y, lengths_B).to(b_BTD.dtype), S


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
