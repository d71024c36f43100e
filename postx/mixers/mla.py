"""Multi-head latent attention: cache one small vector per token, and grow every head's key and value from it.

    k_mh = [Uk_h c_m, r_m]     v_mh = Uv_h c_m     y_th = sum_m softmax_m(scale (q_th . k_mh)) v_mh     m <= t

The latent c_m (R numbers) and one rotary key r_m shared by all heads are all that is kept of a token:
R + rotary numbers, whatever the number of heads. "Expanded" reading grows keys and values as written.
"Absorbed" reading moves Uk to the query, (Uk' q) . c = q . (Uk c), and Uv behind the sum: the same numbers,
with the cache read as it lies, by attention in which all heads share one key [c, r] and one value c.

z: q_BTHK, queries [content, rotary] side by side; c_BTR, latents after their RMSNorm; r_BTK, rotary keys
before rotation. The widths differ: K = nope + rotary for q, K = rotary for r.
w: up_k_HKR (K = nope here) and up_v_HVR, the up-projections; scale, (nope + rotary)^-1/2 if None; rope, a
`Rope` over the rotary channels (interleaved pairs), or None.
State: (c_BMR, r_BMK, pos_B), a cache as in `postx.parts.cache`, in the inputs' dtype; arithmetic is in at
least float32. It grows with the text.

| paper | c_t^KV | k_t^R | W^UK, W^UV | d_c | d_h^R |
|---|---|---|---|---|---|
| here | c | r | up_k, up_v | R | rotary |

Source: DeepSeek-AI 2024 (DeepSeek-V2), sec. 2.1.2 and 2.1.3. The paper states the RMSNorms in sec. 3.1.2.
"""

import torch
from torch import nn

from postx.cost import Cost, matmul
from postx.mixers import by_form, packed
from postx.mixers.attention import read
from postx.parts import cache, tiles
from postx.parts.rope import Rope
from postx.shapes import check, named, real, state_dtype

__all__ = ["Layer", "chunked", "cost", "example", "init", "parallel", "recurrent", "step", "step_absorbed"]
FAMILY, LETTER = "attention", "K"
STATE = "c_BMR", "r_BMK", "pos_B"
APART = "r_BK", "r_BTK", "r_BMK", "up_k_HKR"  # their K: rotary, or nope; that of q is both
AUTO = {"near": "chunked"}  # its `recurrent` does the same work, one token at a time
ROPE = Rope(pairing="interleaved")


@named
def init(q_BHK, c_BR, r_BK, **_):
    """An empty cache: no latents and no rotary keys. The constants do not matter here."""
    slots = [x.new_zeros(len(x), 0, x.shape[-1]) for x in (c_BR, r_BK)]
    return *slots, torch.zeros(len(c_BR), dtype=torch.int64, device=c_BR.device)


@named
def step(S, q_BHK, c_BR, r_BK, *, up_k_HKR, up_v_HVR, scale=None, rope=ROPE, inplace=False):
    """Store this token's latent and rotary key, grow all keys and values from the cache, and attend to them.

    Returns (y_BHV, S). Pure; `inplace=True`, for generation without gradients, writes into the cache and
    doubles its capacity when it is full, and the S that was given must not be used again.
    Raises ValueError for shapes that do not fit.
    """
    q_B1HK, slots, filled_B1M, S = _store(S, q_BHK, c_BR, r_BK, up_k_HKR, rope, inplace)
    k_BMHK, v_BMHV = expand(*slots, up_k_HKR, up_v_HVR)
    return read(q_B1HK, k_BMHK, v_BMHV, filled_B1M, scale)[:, 0].to(c_BR.dtype), S


@named
def step_absorbed(S, q_BHK, c_BR, r_BK, *, up_k_HKR, up_v_HVR, scale=None, rope=ROPE, inplace=False):
    """The same token from the latents as they lie: queries go down to R, and the average of latents comes up.

    Equal to `step` but for rounding. Per cached token and head it takes 2 (2 R + rotary) FLOPs; `step` takes
    2 (R + 1) (nope + V) + 2 rotary: see `cost`.
    """
    scale = q_BHK.shape[-1] ** -0.5 if scale is None else scale  # of the full key, not of the absorbed one
    q_B1HK, slots, filled_B1M, S = _store(S, q_BHK, c_BR, r_BK, up_k_HKR, rope, inplace)
    c_BM1R, r_BM1K = (x.to(state_dtype(x.dtype))[:, :, None] for x in slots)
    content, rotary = q_B1HK.to(c_BM1R.dtype).split([up_k_HKR.shape[1], r_BK.shape[-1]], -1)
    down = torch.einsum("bthk,hkr->bthr", content, up_k_HKR.to(c_BM1R.dtype))
    q, k_BM1K = torch.cat([down, rotary], -1), torch.cat([c_BM1R, r_BM1K], -1)
    mean_B1HR = read(q, k_BM1K, c_BM1R, filled_B1M, scale)
    y = torch.einsum("bthr,hvr->bthv", mean_B1HR, up_v_HVR.to(c_BM1R.dtype))
    return y[:, 0].to(c_BR.dtype), S


def expand(c_BMR, r_BMK, up_k_HKR, up_v_HVR):
    """Every head's keys [content, shared rotary] and values, grown from the cache in at least float32."""
    wide = state_dtype(c_BMR.dtype)
    c, r, up_k, up_v = (x.to(wide) for x in (c_BMR, r_BMK, up_k_HKR, up_v_HVR))
    content = torch.einsum("bmr,hkr->bmhk", c, up_k)
    shared = r[:, :, None].expand(-1, -1, up_k.shape[0], -1)
    return torch.cat([content, shared], -1), torch.einsum("bmr,hvr->bmhv", c, up_v)


@packed
def recurrent(q_BTHK, c_BTR, r_BTK, *, S=None, lengths_B=None, up_k_HKR, up_v_HVR, scale=None,
              rope=ROPE):
    """`step` on one token after the other, but each latent is expanded once. Returns (y_BTHV, S)."""
    seen, S = _look(q_BTHK, c_BTR, r_BTK, S, lengths_B, up_k_HKR, up_v_HVR, rope)
    outputs = []
    for t in range(q_BTHK.shape[1]):
        after = seen.cached + t + 1
        mask = cache.visible(seen.position_BT[:, t : t + 1], seen.position_BM[:, :after], None)
        k, v = seen.k_BMGK[:, :after], seen.v_BMGV[:, :after]
        outputs.append(read(seen.q_BTHK[:, t : t + 1], k, v, mask, scale))
    return _finish(torch.cat(outputs, 1), c_BTR, lengths_B), S


@packed
def parallel(q_BTHK, c_BTR, r_BTK, *, S=None, lengths_B=None, up_k_HKR, up_v_HVR, scale=None,
             rope=ROPE):
    """All tokens at once, over expanded keys and values: one T x M table per head. Returns (y_BTHV, S)."""
    seen, S = _look(q_BTHK, c_BTR, r_BTK, S, lengths_B, up_k_HKR, up_v_HVR, rope)
    mask = cache.visible(seen.position_BT, seen.position_BM, None)
    return _finish(read(seen.q_BTHK, seen.k_BMGK, seen.v_BMGV, mask, scale), c_BTR, lengths_B), S


@packed
def chunked(q_BTHK, c_BTR, r_BTK, *, S=None, lengths_B=None, chunk=64, up_k_HKR, up_v_HVR,
            scale=None, rope=ROPE):
    """`parallel` in tiles of `chunk` sources (see `postx.parts.tiles`): no T x T table exists.

    Expanded, because a pair then costs 2 (nope + rotary + V) FLOPs instead of 2 (2 R + rotary) absorbed.
    Returns (y_BTHV, S).
    """
    seen, S = _look(q_BTHK, c_BTR, r_BTK, S, lengths_B, up_k_HKR, up_v_HVR, rope)
    return _finish(tiles.attend(*seen, scale=scale, chunk=chunk), c_BTR, lengths_B), S


def example(T, B=2, H=4, nope=6, rotary=4, R=5, V=3, seed=0):
    """Random normal float64 inputs for T tokens, (q_BTHK, c_BTR, r_BTK), and the two up-projections."""
    rng = torch.Generator().manual_seed(seed)
    shapes = (B, T, H, nope + rotary), (B, T, R), (B, T, rotary), (H, nope, R), (H, V, R)
    q, c, r, up_k, up_v = (torch.randn(*shape, generator=rng, dtype=torch.float64) for shape in shapes)
    return (q, c, r), {"up_k_HKR": up_k / R**0.5, "up_v_HVR": up_v / R**0.5}


def cost(T, B=2, H=4, nope=6, rotary=4, R=5, V=3, past=0, form="expanded", item=2):
    """FLOPs of T tokens after `past` cached ones, with every latent that is read expanded once; or absorbed.

    With M = past + T, and P the visible sources summed over the T queries, per row of the batch:

        expanded  2 M H R (nope + V) + 2 P H (nope + rotary + V)
        absorbed  2 T H R (nope + V) + 2 P H (2 R + rotary)

    DeepSeek-V3's widths (H=128, nope=V=128, rotary=64, R=512): one token takes 33.6 million FLOPs per cached
    token expanded, 0.28 million absorbed. Only the two contractions and the up-projections are counted.
    Raises ValueError for another form.
    """
    M, P = past + T, T * past + T * (T + 1) // 2
    if form == "expanded":
        up, pair = M, nope + rotary + V
    elif form == "absorbed":
        up, pair = T, 2 * R + rotary
    else:
        raise ValueError(f"form: expected 'expanded' or 'absorbed', got {form!r}")
    rise = matmul(up, R, nope + V, batch=B * H, item=item)
    kept = B * M * (R + rotary)
    ends = B * T * H * (nope + rotary + V)
    moved = (kept + ends + H * R * (nope + V)) * item
    return Cost(rise.flops + 2 * B * H * P * pair, moved, kept, False, "every token: R + rotary floats each")


class Layer(nn.Module):
    """Latent attention with DeepSeek-V2's projections: low-rank queries, RMSNorm on both latents.

    `Layer(x_BTD, S=None) -> (y_BTD, S)`, computed by `chunked`; one token with `inplace=True` by
    `step_absorbed`. Rq is the queries' latent width; scale is that of the scores (YaRN's is larger). No biases.
    """

    TAKES = ("inplace",)

    def __init__(self, D, H=4, R=None, Rq=None, nope=None, rotary=None, V=None, rope=ROPE, chunk=64, scale=None):
        super().__init__()
        nope = nope or max(1, D // H)
        rotary, V = rotary or 2 * max(1, nope // 4), V or nope
        R, Rq = R or max(1, D // 4), Rq or max(1, D // 2)
        self.H, self.widths, self.rope, self.chunk, self.scale = H, (R, rotary), rope, chunk, scale
        self.q_down, self.q_norm = nn.Linear(D, Rq, bias=False), nn.RMSNorm(Rq, eps=1e-6)
        self.q_up = nn.Linear(Rq, H * (nope + rotary), bias=False)
        self.kv_down, self.kv_norm = nn.Linear(D, R + rotary, bias=False), nn.RMSNorm(R, eps=1e-6)
        self.up_k_HKR = nn.Parameter(torch.randn(H, nope, R) * R**-0.5)
        self.up_v_HVR = nn.Parameter(torch.randn(H, V, R) * R**-0.5)
        self.out = nn.Linear(H * V, D, bias=False)

    def forward(self, x_BTD, S=None, *, form="auto", lengths_B=None, reset_BT=None, inplace=False):
        check({"D": self.q_down.in_features}, x_BTD=x_BTD)
        q = self.q_up(self.q_norm(self.q_down(x_BTD))).unflatten(-1, (self.H, -1))
        c, r = self.kv_down(x_BTD).split(self.widths, -1)
        z = q, self.kv_norm(c), r
        w = {"up_k_HKR": self.up_k_HKR, "up_v_HVR": self.up_v_HVR, "rope": self.rope, "scale": self.scale}
        if inplace and S is not None and x_BTD.shape[1] == 1 and lengths_B is None and reset_BT is None:
            y_BHV, S = step_absorbed(S, *(x[:, 0] for x in z), inplace=True, **w)
            y = y_BHV[:, None]
        else:
            run = by_form(__name__, form, x_BTD)
            w |= {"chunk": self.chunk} if run is chunked else {}
            y, S = run(*z, S=S, lengths_B=lengths_B, reset_BT=reset_BT, **w)
        return self.out(y.flatten(2)), S


def _widths(q, r, up_k_HKR):
    """Raise ValueError unless a query is [content of up_k, rotary of r]."""
    nope, rotary = up_k_HKR.shape[1], r.shape[-1]
    if q.shape[-1] != nope + rotary:
        raise ValueError(f"q: expected K = nope + rotary = {nope} + {rotary}, got shape {tuple(q.shape)}")


def _rotate(q, r, nope, position, rope):
    """Turn the rotary part of q and the shared rotary key by their positions."""
    if rope is None:
        return q, r
    turned = rope.rotate(q[..., nope:], position)
    return torch.cat([q[..., :nope], turned], -1), rope.rotate(r[..., None, :], position)[..., 0, :]


def _store(S, q_BHK, c_BR, r_BK, up_k_HKR, rope, inplace):
    """Put one token into the cache; return its query, the slots in use, which are filled, and the cache."""
    _widths(q_BHK, r_BK, up_k_HKR)
    q_BHK, r_BK = _rotate(q_BHK, r_BK, up_k_HKR.shape[1], S[2], rope)
    S = c_BMR, r_BMK, pos_B = cache.append(S, (c_BR, r_BK), None, inplace=inplace)
    M = cache.used(S)
    filled_BM = cache.held(pos_B, M, None) >= 0
    return q_BHK[:, None], (c_BMR[:, :M], r_BMK[:, :M]), filled_BM[:, None], S


def _look(q_BTHK, c_BTR, r_BTK, S, lengths_B, up_k_HKR, up_v_HVR, rope):
    """Queries, expanded keys and values of all sources, their positions, and the cache after them."""
    B, T = c_BTR.shape[:2]
    _widths(q_BTHK, r_BTK, up_k_HKR)
    if S is None:
        S = init(*(x.new_empty(B, *x.shape[2:]) for x in (q_BTHK, c_BTR, r_BTK)))
    q_BTHK, c_BTR, r_BTK = (real(x, lengths_B) for x in (q_BTHK, c_BTR, r_BTK))
    position_BT = cache.positions(S[2], T)
    q_BTHK, r_BTK = _rotate(q_BTHK, r_BTK, up_k_HKR.shape[1], position_BT, rope)
    slots, position_BM, cached = cache.join(S, (c_BTR, r_BTK), None)
    k_BMHK, v_BMHV = expand(*slots, up_k_HKR, up_v_HVR)
    seen = tiles.Seen(q_BTHK, k_BMHK, v_BMHV, position_BT, position_BM, cached)
    return seen, cache.extend(S, (c_BTR, r_BTK), lengths_B, None)


def _finish(y_BTHV, c_BTR, lengths_B):
    return real(y_BTHV.to(c_BTR.dtype), lengths_B)
