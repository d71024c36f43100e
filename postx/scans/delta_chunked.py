"""The delta recurrence in chunks: what the tokens of a chunk erase from each other is one triangular system.

Within a chunk that begins at the state S, with E_ij = exp(g_(j+1) + ... + g_i) between two of its tokens,

    r_i = beta_i (c_i' S-just-before-i) = beta_i [(c_i E_(i-1))' S + sum over j < i of
          (c_i E_(i-1,j))'k_j v_j - (c_i E_(i-1,j))'b_j r_j]

which is lower triangular with ones on the diagonal: one solve gives all r, and two masked products give the
outputs. Where b = k one solve gives v - r. Known as the WY or UT transform (Bischof and Van Loan 1987; Yang et al.
2024, arXiv 2406.06484, section 3.2, for DeltaNet). No factor is a quotient: every exponent is a sum of log-decays,
so it is at most 0 however small the decays are, and -inf is allowed.
"""

import torch

from postx.shapes import empty, real, state_dtype


def in_chunks(q_BTHK, k_BTHK, v_BTHV, beta_BTH, g, S, *, b_BTHK=None, c_BTHK=None, lengths_B, chunk):
    """The same arguments and results as `scans.delta`, read after; g is None, [B,T,H] or [B,T,H,K]."""
    kind, (T, H) = state_dtype(v_BTHV.dtype), v_BTHV.shape[1:3]
    beta_BTH = v_BTHV.new_ones(1, 1, 1).expand(v_BTHV.shape[:3]) if beta_BTH is None else beta_BTH
    g = None if g is None else g if g.dim() == 4 else g[..., None]
    # A token past the end erases nothing, writes nothing, and nothing fades at it.
    beta_BTH, v_BTHV, g = (None if x is None else real(x, lengths_B) for x in (beta_BTH, v_BTHV, g))
    heads_first = [
        None if x is None else x.to(kind).repeat_interleave(H // x.shape[2], 2).transpose(1, 2)
        for x in (q_BTHK, k_BTHK, v_BTHV, beta_BTH[..., None], g, b_BTHK, c_BTHK)
    ]
    outputs, S = [], (empty(heads_first[1][:, :, 0], heads_first[2][:, :, 0]) if S is None else S).to(kind)
    for t in range(0, T, chunk):
        y, S = _one_chunk(*(None if x is None else x[:, :, t : t + chunk] for x in heads_first), S)
        outputs.append(y)
    y = torch.cat(outputs, 2).transpose(1, 2)
    return real(y, lengths_B).to(v_BTHV.dtype), S


def _one_chunk(q, k, v, beta, g, b, c, S):
    """All are [B,H,C,...] here. Returns (y, the state after the chunk)."""
    c = k if c is None else c
    fade = _fade(g, q)
    after, before = fade[:, :, 1:, 1:], fade[:, :, :-1, 1:]  # at a token: with its own decay, and without
    from_start, to_end = fade[:, :, :, 0], fade[:, :, -1, 1:]
    held = beta * ((c * from_start[:, :, :-1]) @ S)  # what S alone makes each token erase
    y = (q * from_start[:, :, 1:]) @ S
    S = from_start[:, :, -1, :, None] * S
    if b is None:  # what is written under k is v - r, so one solve gives both
        u = _solve(beta * _pairs(c, k, before), v - held)
        return y + _pairs(q, k, after) @ u, S + (k * to_end).mT @ u
    r = _solve(beta * _pairs(c, b, before), held + beta * (_pairs(c, k, before) @ v))
    y = y + _pairs(q, k, after) @ v - _pairs(q, b, after) @ r
    return y, S + (k * to_end).mT @ v - (b * to_end).mT @ r


def _fade(g, like):
    """exp of the sum of g between any two points of a chunk, [B,H,C+1,C+1,1|K]; 0 where the first is the later.

    Point 0 is before the first token, point n after the n-th. Each sum is made of its own terms: the difference of
    two running sums would lose the small ones beside the large, and -inf - -inf is not a number.
    """
    points = torch.arange(like.shape[2] + 1, device=like.device)
    later = points[:, None] > points
    if g is None:
        return (points[:, None] >= points).to(like.dtype)[None, None, :, :, None]
    terms = torch.nn.functional.pad(g, (0, 0, 1, 0))[:, :, :, None]
    sums = torch.where(later[..., None], terms, 0).cumsum(2)
    return sums.masked_fill((points[:, None] < points)[..., None], -torch.inf).exp()


def _pairs(x, y, fade):
    """x_i' diag(fade_ij) y_j for every two tokens, [B,H,C,C]."""
    if fade.shape[-1] == 1:
        return (x @ y.mT) * fade[..., 0]
    return ((fade * y[:, :, None]) @ x[..., None])[..., 0]


def _solve(strict, right):
    """x with (I + strict) x = right, where only what lies below the diagonal of `strict` is read: no inverse."""
    return torch.linalg.solve_triangular(strict, right, upper=False, unitriangular=True)
