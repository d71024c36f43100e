"""The recurrences in plain torch: one source for CPU, GPU, autograd and float64. Slow, and easy to check by eye.

Each takes tensors that `postx.scans` has already validated, promoted to at least float32 and given all axes:
size-1 axes broadcast. `length_B` holds how many tokens of each row are real.
"""

import torch


def _tokens(T, *tensors):
    """The tensors' slices at each time; one of size 1 is constant.

    unbind: the gradient of x[:, t] alone would be a tensor as large as x, once for every token.
    """
    slices = (x.unbind(1) if x.shape[1] == T else x.unbind(1) * T for x in tensors)
    return enumerate(zip(*slices, strict=True))


def _freeze(t, length_B, new, old):
    """Past its length a row's state stands still."""
    real = (t < length_B).view(-1, *[1] * (new.dim() - 1))
    return torch.where(real, new, old)


def diagonal(u_BTD, delta_BTD, A_DN, B_BTDN, C_BTDN, h_BDN, length_B):
    """h <- exp(delta A) h + delta B u; y = Re(sum_n C h)."""
    ys = []
    for t, (u, delta, B, C) in _tokens(u_BTD.shape[1], u_BTD, delta_BTD, B_BTDN, C_BTDN):
        new = torch.exp(delta[..., None] * A_DN) * h_BDN + delta[..., None] * B * u[..., None]
        h_BDN = _freeze(t, length_B, new, h_BDN)
        y = (C * h_BDN).sum(-1)
        ys.append(y.real if y.is_complex() else y)
    return torch.stack(ys, 1), h_BDN


def decay(q_BTHK, k_BTHK, v_BTHV, a_BTHK, S_BHKV, u_HK, length_B, before):
    """S <- diag(a) S + k v'; y = S' q, read after the update, or before it with the bonus u on the token itself."""
    ys = []
    for t, (q, k, v, a) in _tokens(v_BTHV.shape[1], q_BTHK, k_BTHK, v_BTHV, a_BTHK):
        kv = k[..., None] * v[..., None, :]
        new = a[..., None] * S_BHKV + kv
        read = S_BHKV + u_HK[..., None] * kv if before else new
        ys.append(torch.einsum("bhk,bhkv->bhv", q, read))
        S_BHKV = _freeze(t, length_B, new, S_BHKV)
    return torch.stack(ys, 1), S_BHKV


def delta(q_BTHK, k_BTHK, v_BTHV, a_BTHK, b_BTHK, c_BTHK, beta_BTH, S_BHKV, length_B, before):
    """S <- diag(a) S - b (beta c' S) + k v'; y = S' q, read after the update, or before it."""
    ys = []
    inputs = q_BTHK, k_BTHK, v_BTHV, a_BTHK, b_BTHK, c_BTHK, beta_BTH
    for t, (q, k, v, a, b, c, beta) in _tokens(v_BTHV.shape[1], *inputs):
        erased = beta[..., None] * torch.einsum("bhk,bhkv->bhv", c, S_BHKV)
        new = a[..., None] * S_BHKV - b[..., None] * erased[..., None, :] + k[..., None] * v[..., None, :]
        ys.append(torch.einsum("bhk,bhkv->bhv", q, S_BHKV if before else new))
        S_BHKV = _freeze(t, length_B, new, S_BHKV)
    return torch.stack(ys, 1), S_BHKV


def logspace(s_BTD, v_BTD, g_D, u_D, S, length_B, bonus):
    """A decayed running softmax: num <- e^g num + e^s v, den <- e^g den + e^s, both scaled by e^-max.

    The maximum only chooses the scale, so it carries no gradient.
    """
    num, den, top = S[0], S[1], S[2].detach()
    ys = []
    for t, (s, v) in _tokens(s_BTD.shape[1], s_BTD, v_BTD):
        new_top = torch.maximum(top + g_D, s).detach()
        keep, add = torch.exp(top + g_D - new_top), torch.exp(s - new_top)
        new = keep * num + add * v, keep * den + add, new_top
        if bonus:
            peak = torch.maximum(top, u_D + s).detach()
            old, own = torch.exp(top - peak), torch.exp(u_D + s - peak)
            ys.append((old * num + own * v) / (old * den + own))
        else:
            ys.append(new[0] / new[1])
        num, den, top = (_freeze(t, length_B, n, o) for n, o in zip(new, (num, den, top), strict=True))
    return torch.stack(ys, 1), (num, den, top)


def affine(a_BTD, b_BTD, h_BD, length_B):
    """h <- a h + b; y = h."""
    ys = []
    for t, (a_BD, b_BD) in _tokens(b_BTD.shape[1], a_BTD, b_BTD):
        new = a_BD * h_BD + b_BD
        h_BD = _freeze(t, length_B, new, h_BD)
        ys.append(new)
    return torch.stack(ys, 1), h_BD


def fir(x_BMD, weight_WD):
    """y_t = sum_j w_j x_{t+j}."""
    W = weight_WD.shape[0]
    windows = (x_BMD[:, t : t + W] for t in range(x_BMD.shape[1] - W + 1))
    return torch.stack([(weight_WD * window).sum(1) for window in windows], 1)
