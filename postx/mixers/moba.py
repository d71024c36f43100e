"""Attention that skips: a token reads its own block of the text and the few earlier blocks that answer it best.

The text lies in blocks of C tokens. A query compares itself with the mean key of every earlier block, and reads the
`keep` - 1 blocks with the largest products, and its own up to itself:

    kbar_n = mean of the keys of block n        chosen_t = own block, and the top keep - 1 of q_t . kbar_n
    y_t = softmax attention over the tokens m <= t of the chosen blocks

Nothing is forgotten: the cache is attention's, and grows with the text. What is saved is reading and arithmetic.

z: q_BTHK, k_BTGK, v_BTGV. Reader head h uses key-value head h // (H / G); every head chooses for itself.
w: block (C, tokens), keep (blocks read, the own one included), rope (a `Rope`, or None; means are of rotated keys).
Scores are scaled by K^-1/2. The choice has no gradient, and where two blocks are nearly level, half precision may
choose the other one.
State: (k_BMGK, v_BMGV, pos_B), the cache of `postx.parts.cache`, slot j for position j. A server would keep the means
too, one key for C tokens; here they are made anew from the keys, and `cost` counts them as kept.

Source: Lu et al. 2025, "MoBA" (arXiv 2502.13189), sec. 2.2. Relatives that choose otherwise: NSA, by learned summaries,
for all heads of a group together (Yuan et al. 2025, arXiv 2502.11089); DeepSeek's sparse attention, single tokens, by
scores of a small extra head (DeepSeek-V3.2, arXiv 2512.02556).
"""

import torch
from torch import nn
from torch.nn import functional

from postx.cost import Cost
from postx.mixers import by_form, packed
from postx.parts import cache
from postx.parts.rope import Rope
from postx.shapes import check, check_shared, named, real, state_dtype

FAMILY = "attention"
STATE = "k_BMGK", "v_BMGV", "pos_B"


@named
def init(q_BHK, k_BGK, v_BGV, *, block, keep, rope=None):
    """An empty cache: no slots."""
    _check(block, keep)
    slots = [x.new_zeros(len(x), 0, *x.shape[1:]) for x in (k_BGK, v_BGV)]
    return *slots, torch.zeros(len(k_BGK), dtype=torch.int64, device=k_BGK.device)


@named
def step(S, q_BHK, k_BGK, v_BGV, *, block, keep, rope=None, inplace=False):
    """Store this token's key and value, choose blocks, gather them and average their values. Returns (y_BHV, S).

    Pure unless `inplace`, which writes into the cache and spends S. Raises ValueError for block or keep below 1.
    """
    _check(block, keep)
    cache.check_ring(S, None)
    position_B = S[2]
    if rope is not None:
        q_BHK, k_BGK = rope.rotate(q_BHK, position_B), rope.rotate(k_BGK, position_B)
    S = cache.append(S, (k_BGK, v_BGV), None, inplace=inplace)
    k, v = (_blocks(x[:, : cache.used(S)], block) for x in S[:2])
    return _gathered(q_BHK, k, v, k.mean(2), position_B, keep).to(v_BGV.dtype), S


@packed
def recurrent(q_BTHK, k_BTGK, v_BTGV, *, block, keep, rope=None, S=None, lengths_B=None):
    """One token after the other, each gathers its blocks from a cache that is filled once. Returns (y_BTHV, S)."""
    q_BTHK, position_BT, k, v, S = _look(q_BTHK, k_BTGK, v_BTGV, S, lengths_B, block, keep, rope)
    means = k.mean(2)
    y = [_gathered(q_BTHK[:, t], k, v, means, position_BT[:, t], keep) for t in range(q_BTHK.shape[1])]
    return real(torch.stack(y, 1).to(v_BTGV.dtype), lengths_B), S


@packed
def parallel(q_BTHK, k_BTGK, v_BTGV, *, block, keep, rope=None, S=None, lengths_B=None):
    """All tokens at once, as a mask over one table of T x M scores: it skips nothing. Returns (y_BTHV, S)."""
    q_BTHK, position_BT, k, v, S = _look(q_BTHK, k_BTGK, v_BTGV, S, lengths_B, block, keep, rope)
    q, G = q_BTHK.to(k.dtype), k.shape[3]
    score_BTHN = torch.einsum("btghk,bngk->btghn", q.unflatten(2, (G, -1)), k.mean(2)).flatten(2, 3)
    chosen = _ranked(score_BTHN, position_BT[..., None, None] // block)[..., :keep]
    read_BTHN = torch.zeros_like(score_BTHN, dtype=torch.bool).scatter(-1, chosen, True)
    m = torch.arange(k.shape[1] * block, device=q.device)
    seen = read_BTHN.repeat_interleave(block, -1) & (m <= position_BT[..., None, None])
    scores = torch.einsum("btghk,bmgk->btghm", q.unflatten(2, (G, -1)), k.flatten(1, 2)) * q.shape[-1] ** -0.5
    p = scores.masked_fill(~seen.unflatten(2, (G, -1)), -torch.inf).softmax(-1)
    y = torch.einsum("btghm,bmgv->btghv", p, v.flatten(1, 2)).flatten(2, 3)
    return real(y.to(v_BTGV.dtype), lengths_B), S


def _check(block, keep):
    for name, value in (("block", block), ("keep", keep)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name}: expected an integer >= 1, got {value!r}")


def _blocks(x_BMGK, block):
    """Slots in blocks, [B, N, C, G, K], the last one filled up with zeros; at least float32."""
    M = x_BMGK.shape[1]
    N = max(1, -(-M // block))
    x = functional.pad(x_BMGK, (0, 0, 0, 0, 0, N * block - M)).unflatten(1, (N, block))
    return x.to(state_dtype(x.dtype))


def _look(q_BTHK, k_BTGK, v_BTGV, S, lengths_B, block, keep, rope):
    """Queries and their positions, keys and values in blocks with the new ones in their slots, and the cache."""
    if S is None:
        S = init(*(x[:, 0] for x in (q_BTHK, k_BTGK, v_BTGV)), block=block, keep=keep)
    _check(block, keep)
    cache.check_ring(S, None)
    position_BT = cache.positions(S[2], q_BTHK.shape[1])
    if rope is not None:
        q_BTHK, k_BTGK = rope.rotate(q_BTHK, position_BT), rope.rotate(k_BTGK, position_BT)
    S = cache.extend(S, (k_BTGK, v_BTGV), lengths_B, None)
    k, v = (_blocks(x[:, : cache.used(S)], block) for x in S[:2])
    return q_BTHK, position_BT, k, v, S


def _ranked(score_N, own):
    """Blocks in the order of reading: the own block first, then by score; those that come later last."""
    n = torch.arange(score_N.shape[-1], device=score_N.device)
    score_N = score_N.masked_fill(n > own, -torch.inf).masked_fill(n == own, torch.inf)
    return score_N.argsort(dim=-1, descending=True, stable=True)


def _gathered(q_BHK, k_BNCGK, v_BNCGV, mean_BNGK, position_B, keep):
    """y_BHV of one token: only the chosen blocks are fetched."""
    B, N, C, G, _ = k_BNCGK.shape
    q, H = q_BHK.to(k_BNCGK.dtype), q_BHK.shape[1]
    score_BHN = torch.einsum("bghk,bngk->bghn", q.unflatten(1, (G, -1)), mean_BNGK).flatten(1, 2)
    # A row that is padded in a ragged batch may stand behind the last slot.
    own_B11 = (position_B // C).clamp(max=N - 1)[:, None, None]
    chosen_BHR = _ranked(score_BHN, own_B11)[..., :keep]
    group_H = torch.arange(H, device=q.device) // (H // G)
    at = torch.arange(B, device=q.device)[:, None, None], chosen_BHR, group_H[None, :, None]
    k, v = (x.transpose(2, 3)[at].flatten(2, 3) for x in (k_BNCGK, v_BNCGV))  # [B, H, R C, K]
    m = (chosen_BHR[..., None] * C + torch.arange(C, device=q.device)).flatten(2)
    scores = torch.einsum("bhk,bhmk->bhm", q, k) * q.shape[-1] ** -0.5
    p = scores.masked_fill(m > position_B[:, None, None], -torch.inf).softmax(-1)
    return torch.einsum("bhm,bhmv->bhv", p, v)


def example(T, B=2, H=4, G=2, K=8, V=6, block=4, keep=2, seed=0):
    """Random normal float64 inputs for T tokens: (q_BTHK, k_BTGK, v_BTGV) and the constants."""
    check_shared("G", G, H)
    rng = torch.Generator().manual_seed(seed)
    shapes = (B, T, H, K), (B, T, G, K), (B, T, G, V)
    return tuple(torch.randn(*s, generator=rng, dtype=torch.float64) for s in shapes), {"block": block, "keep": keep}


def cost(T, B=2, H=4, G=2, K=8, V=6, block=4, keep=2, past=0, item=2) -> Cost:
    """2 K FLOPs a query and mean key, 2 (K + V) a query and source of its blocks; the whole text is kept."""
    _check(block, keep)

    def until(n):
        """Mean keys compared and sources read by the first n tokens."""
        whole, rest = divmod(n, block)
        few, many = min(whole, keep), max(0, whole - keep)  # blocks whose tokens read less than `keep`, and exactly
        earlier = few * (few - 1) // 2 + many * (keep - 1)
        pairs = whole * block * (block + 1) // 2 + rest * (rest + 1) // 2
        pairs += block * (block * earlier + rest * min(whole, keep - 1))
        return block * whole * (whole + 1) // 2 + rest * (whole + 1), pairs

    compared, pairs = (b - a for a, b in zip(until(past), until(past + T), strict=True))
    moved = B * H * T * (K + V) + B * G * compared * K + B * H * pairs * (K + V)
    kept = B * G * (past + T) * (K + V)
    by = "every token: one key and one value each, though few are read"
    return Cost(2 * B * H * (compared * K + pairs * (K + V)), moved * item, kept, False, by)


class Layer(nn.Module):
    """Four projections around it: `Layer(x_BTD, S=None) -> (y_BTD, S)`, S the cache of rotated keys and of values.

    G = H and K = V = D / H by default. rope: True for the default `Rope`, a `Rope`, or None. ValueError where G does
    not divide H, or H not D without K.
    """

    TAKES = ("inplace",)

    def __init__(self, D, *, H=4, G=None, K=None, block=8, keep=2, rope=True):
        super().__init__()
        G = G or H
        check_shared("G", G, H)
        _check(block, keep)
        if K is None and D % H:
            raise ValueError(f"D: expected a multiple of H={H} where K is not given, got D={D}")
        K = K or D // H
        rope = Rope() if rope is True else rope or None
        self.heads, self.w = (H, G, G), {"block": block, "keep": keep, "rope": rope}
        self.q, self.k, self.v = (nn.Linear(D, heads * K, bias=False) for heads in self.heads)
        self.out = nn.Linear(H * K, D, bias=False)

    def forward(self, x_BTD, S=None, *, form="auto", lengths_B=None, reset_BT=None, inplace=False):
        check({"D": self.q.in_features}, x_BTD=x_BTD)
        q, k, v = (p(x_BTD).unflatten(-1, (h, -1)) for p, h in zip((self.q, self.k, self.v), self.heads, strict=True))
        if inplace and S and x_BTD.shape[1] == 1 and lengths_B is None and reset_BT is None:
            y_BHV, S = step(S, *(x[:, 0] for x in (q, k, v)), **self.w, inplace=True)
            y = y_BHV[:, None]
        else:
            y, S = by_form(__name__, form, x_BTD)(q, k, v, **self.w, S=S, lengths_B=lengths_B, reset_BT=reset_BT)
        return self.out(y.flatten(2).to(x_BTD.dtype)), S
