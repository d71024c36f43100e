"""Softmax attention: grouped queries, an optional sliding window, rotary positions or a fall with distance.

Each token asks all tokens before it a question, and averages their values by how well their keys answer:

    y_t = sum_m p_tm v_m,    p_tm = exp(s_tm) / sum_n exp(s_tn),    s_tm = scale (q_t . k_m),    m <= t

z: q_BTHK, k_BTGK, v_BTGV. Reader head h uses key-value head h // (H / G).
w: window (tokens; the sources are t-W+1..t), scale (K^-1/2 if None), rope (a `Rope`, or None), slopes_H (ALiBi's:
slope (t - m) is taken off the score; see `alibi_slopes`).
State: (k_BMGK, v_BMGV, pos_B), the KV cache of `postx.parts.cache`: rotated keys, values, and the number of
tokens that each row has seen. It grows with the text, or is a ring of W slots. It keeps the dtype of k and v;
scores and softmax are computed in at least float32.

Source: Vaswani et al. 2017, sec. 3.2.1; grouped queries, Ainslie et al. 2023; windows, Beltagy et al. 2020; ALiBi,
Press et al. 2021.
"""

import functools
import importlib

import torch
from torch import nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from postx import cost as costs
from postx.mixers import by_form, packed
from postx.parts import cache, conv, tiles
from postx.parts.rope import Rope
from postx.scans import has_triton
from postx.shapes import check, check_shared, named, pick, real, state_dtype

__all__ = ["Layer", "Rope", "bidirectional", "chunked", "cost", "example", "init", "parallel", "recurrent", "step"]
FAMILY, LETTER = "attention", "A"
STATE = "k_BMGK", "v_BMGV", "pos_B"
VARIANTS = {"L": {"window": 64}}  # local
AUTO = {"near": "chunked"}  # its `recurrent` does the same work, one token at a time


@named
def init(q_BHK, k_BGK, v_BGV, *, window=None, **_):
    """An empty cache: no slots, or W empty slots under a window. Other constants do not matter here."""
    cache.check_window(window)
    slots = [x.new_zeros(len(x), window or 0, *x.shape[1:]) for x in (k_BGK, v_BGV)]
    return *slots, torch.zeros(len(k_BGK), dtype=torch.int64, device=k_BGK.device)


@named
def step(S, q_BHK, k_BGK, v_BGV, *, window=None, scale=None, rope=None, slopes_H=None, inplace=False):
    """Store this token's key and value, then average all stored values by softmax(scale * q . k).

    Returns (y_BHV, S). Pure: S is left as it was. `inplace=True`, for generation without gradients, writes
    into the cache and doubles its capacity when it is full; the S that was given must then not be used again.
    Raises ValueError for shapes that do not fit, a G that does not divide H, a cache of another window.
    """
    cache.check_ring(S, window)
    if rope is not None:
        q_BHK, k_BGK = rope.rotate(q_BHK, S[2]), rope.rotate(k_BGK, S[2])
    S = k_BMGK, v_BMGV, pos_B = cache.append(S, (k_BGK, v_BGV), window, inplace=inplace)
    if inplace and q_BHK.is_cuda and q_BHK.dtype != torch.float64 and slopes_H is None and has_triton():
        q = q_BHK.to(v_BGV.dtype)
        y_BHV = gpu_read().read(q, k_BMGK, v_BMGV, pos_B, q.shape[-1] ** -0.5 if scale is None else scale)
        return y_BHV.to(v_BGV.dtype), S
    M = cache.used(S)
    position_BM = cache.held(pos_B, k_BMGK.shape[1], window)[:, :M]
    far_BTM = (pos_B[:, None] - 1 - position_BM)[:, None]
    fall = None if slopes_H is None else (slopes_H, far_BTM)
    y_BTHV = read(q_BHK[:, None], k_BMGK[:, :M], v_BMGV[:, :M], (position_BM >= 0)[:, None], scale, fall)
    return y_BTHV[:, 0], S


@functools.cache
def gpu_read():
    return importlib.import_module("postx.parts.gpu_read")  # imports triton, so not before it is asked for


def read(q_BTHK, k_BMGK, v_BMGV, visible_BTM, scale=None, fall=None):
    """Softmax attention over all sources at once, as two matrix products with a softmax between them.

    The mask is applied before exp. Every token must see at least one source. Memory: B H T M scores.
    fall is (slopes_H, distance_BTM), or None.
    """
    wide, G, K = state_dtype(q_BTHK.dtype), k_BMGK.shape[2], q_BTHK.shape[-1]
    q = q_BTHK.to(wide).unflatten(2, (G, -1)) * (K**-0.5 if scale is None else scale)
    scores = torch.einsum("btghk,bmgk->bghtm", q, k_BMGK.to(wide))
    if fall is not None:
        slopes_H, far_BTM = fall
        scores = scores - slopes_H.to(wide).view(G, -1, 1, 1) * far_BTM[:, None, None]
    p = scores.masked_fill(~visible_BTM[:, None, None], -torch.inf).softmax(-1)
    y = torch.einsum("bghtm,bmgv->btghv", p, v_BMGV.to(wide))
    return y.flatten(2, 3).to(v_BMGV.dtype)


@packed
def recurrent(q_BTHK, k_BTGK, v_BTGV, *, S=None, lengths_B=None, **w):
    """`step` on one token after the other, over one cache that is allocated once.

    Token t reads the slots that were filled by then, so nothing is copied per token; a sequence of T tokens
    still takes T (T + 1) / 2 dot products per head. Returns (y_BTHV, S); raises as `step` does.
    """
    seen, S = _look(q_BTHK, k_BTGK, v_BTGV, S, lengths_B, **w)
    window, outputs = w.get("window"), []
    for t in range(q_BTHK.shape[1]):
        after = seen.cached + t + 1
        first = 0 if window is None or t < window - 1 else after - window  # the cached part is out of sight
        mask = cache.visible(seen.position_BT[:, t : t + 1], seen.position_BM[:, first:after], window)
        k, v = seen.k_BMGK[:, first:after], seen.v_BMGV[:, first:after]
        fall = _fall(seen.position_BT[:, t : t + 1], seen.position_BM[:, first:after], **w)
        outputs.append(read(seen.q_BTHK[:, t : t + 1], k, v, mask, w.get("scale"), fall))
    return real(torch.cat(outputs, 1), lengths_B), S


@packed
def parallel(q_BTHK, k_BTGK, v_BTGV, *, S=None, lengths_B=None, **w):
    """All tokens at once: one masked table of T x M scores per head, the textbook's softmax(Q K' + mask) V.

    Absolute positions decide the mask, so cached tokens (S) and windows need nothing special. Quadratic in
    both compute and memory. Returns (y_BTHV, S); raises as `step` does.
    """
    seen, S = _look(q_BTHK, k_BTGK, v_BTGV, S, lengths_B, **w)
    mask = cache.visible(seen.position_BT, seen.position_BM, w.get("window"))
    fall = _fall(seen.position_BT, seen.position_BM, **w)
    y = read(seen.q_BTHK, seen.k_BMGK, seen.v_BMGV, mask, w.get("scale"), fall)
    return real(y, lengths_B), S


@packed
def chunked(q_BTHK, k_BTGK, v_BTGV, *, S=None, lengths_B=None, chunk=64, impl="auto", **w):
    """The same numbers from tiles of `chunk` sources, with a running softmax: no T x T table ever exists.

    Quadratic in compute, linear in memory (T x chunk scores at a time), in training too: see `tiles.attend`.
    impl "sdpa" is torch's fused kernel (cuDNN's where it serves); it is there on a GPU, for rows without a cache,
    lengths or ALiBi, and "auto" takes it. Returns (y_BTHV, S); raises as `step` does.
    """
    plain = S is None and lengths_B is None and w.get("slopes_H") is None
    impl = pick(impl, ("torch", "sdpa") if plain and q_BTHK.is_cuda else ("torch",))
    seen, S = _look(q_BTHK, k_BTGK, v_BTGV, S, lengths_B, **w)
    if impl == "sdpa":
        return _fused(seen, w.get("window"), w.get("scale")), S
    w = {name: w.get(name) for name in ("window", "scale", "slopes_H")}
    y = tiles.attend(*seen, chunk=chunk, **w)
    return real(y, lengths_B), S


def _fused(seen, window, scale):
    """torch's own kernel, which tiles queries too. Under a window, W queries at a time see 2 W sources."""
    q, k, v = (x.transpose(1, 2) for x in (seen.q_BTHK, seen.k_BMGK, seen.v_BMGV))
    T = q.shape[2]
    if window is None or window >= T:
        return _sdpa(q, k, v, scale, is_causal=True).transpose(1, 2)
    y = _sdpa(*(x[:, :, :window] for x in (q, k, v)), scale, is_causal=True).transpose(1, 2)
    whole = -(-T // window) * window
    q, k, v = (functional.pad(x, (0, 0, 0, whole - T)) for x in (q, k, v))
    q = q[:, :, window:].unflatten(2, (-1, window))
    k, v = (x.unfold(2, 2 * window, window).transpose(-1, -2) for x in (k, v))
    far = torch.arange(window, device=q.device)[:, None] + window - torch.arange(2 * window, device=q.device)
    blocks = _sdpa(*(x.transpose(1, 2).flatten(0, 1) for x in (q, k, v)), scale, attn_mask=(far >= 0) & (far < window))
    rest = blocks.unflatten(0, (len(y), -1)).transpose(2, 3).flatten(1, 2)
    return torch.cat([y, rest[:, : T - window]], 1)


# The fastest on an H200 first; torch skips those that refuse the dtype, the widths or the mask.
BACKENDS = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


def _sdpa(q_BHTK, k_BGMK, v_BGMV, scale, **mask):
    with sdpa_kernel(BACKENDS, set_priority=True):
        return functional.scaled_dot_product_attention(
            q_BHTK, k_BGMK, v_BGMV, scale=scale, enable_gqa=q_BHTK.shape[1] != k_BGMK.shape[1], **mask
        )


@named
def bidirectional(q_BTHK, k_BTGK, v_BTGV, *, scale=None, rope=None):
    """All tokens look at all: y_t = sum over every m of softmax(scale * q_t . k_m) v_m, y_BTHV. No state, no mask.

    For networks that are given a whole text at once (masked and Gaussian diffusion). By torch's fused kernel.
    """
    if rope is not None:
        position_1T = torch.arange(q_BTHK.shape[1], device=q_BTHK.device)[None]
        q_BTHK, k_BTGK = rope.rotate(q_BTHK, position_1T), rope.rotate(k_BTGK, position_1T)
    return _sdpa(*(x.transpose(1, 2) for x in (q_BTHK, k_BTGK, v_BTGV)), scale).transpose(1, 2)


def alibi_slopes(H, device=None):
    """ALiBi's slopes, 2^(-8 (h + 1) / H) for head h: from steep to almost flat, [H]. Press et al. 2021, sec. 3."""
    return 2.0 ** (-8.0 * torch.arange(1, H + 1, dtype=torch.float32, device=device) / H)


def _fall(position_BT, position_BM, slopes_H=None, **_):
    """What `read` takes off the scores: slopes and distances; None without slopes."""
    return None if slopes_H is None else (slopes_H, position_BT[:, :, None] - position_BM[:, None, :])


def example(T, B=2, H=4, G=2, K=8, V=6, window=None, rope=None, seed=0):
    """Random normal float64 inputs for T tokens: (q_BTHK, k_BTGK, v_BTGV) and the constants."""
    check_shared("G", G, H)
    rng = torch.Generator().manual_seed(seed)
    shapes = (B, T, H, K), (B, T, G, K), (B, T, G, V)
    z = tuple(torch.randn(*shape, generator=rng, dtype=torch.float64) for shape in shapes)
    return z, {"window": window, "rope": rope}


def cost(T, B=2, H=4, G=2, K=8, V=6, window=None, **options):
    """2 (K + V) FLOPs for each query and source that the mask leaves; see `postx.cost.softmax_attention`."""
    return costs.softmax_attention(T, B=B, H=H, G=G, K=K, V=V, window=window, **options)


class Layer(nn.Module):
    """Attention between four projections: q, k, v from x, and the heads' outputs back to D.

    `Layer(x_BTD, S=None) -> (y_BTD, S)`, computed by `chunked`; one token with `inplace=True` by `step`.
    G = H, K = D / H and V = K by default. Positions: `rope` is True for the default `Rope`, a `Rope`, or None;
    alibi=True takes its place. conv_size=4 mixes each channel of q, k and v with its last 4 tokens first, and adds
    their last inputs to the state. qk_norm=True: an RMS norm over each head's q and k before they are rotated, with
    qk_eps in it (1e-6 as in Qwen3; LFM2 has 1e-5).
    scale: of the scores, K^-1/2 by default. gate=True: sigmoid(gate(x)) on the heads' outputs (Qwen3-Next). sub_norm:
    the eps of an RMS norm over them all (BitNet b1.58). D_in: the width of x where it is not D. bias: on q, k and v;
    out_bias: on the way back. causal=False: every token sees every other, by `bidirectional`, and S comes back empty.
    A call adds the three tensors of `beside` to q, k and v. ValueError where G does not divide H, or H not D without K.
    """

    TAKES = ("inplace",)

    def __init__(
        self, D, H=4, G=None, K=None, V=None, window=None, rope=True, chunk=64,
        *, alibi=False, conv_size=0, qk_norm=False, qk_eps=1e-6, D_in=None, bias=False, out_bias=False, causal=True,
        scale=None, gate=False, sub_norm=None,
    ):  # fmt: skip
        super().__init__()
        if not causal and (window is not None or alibi or conv_size):
            raise ValueError("causal: False goes without window, alibi and conv_size: they look at earlier tokens only")
        G = G or H
        check_shared("G", G, H)
        cache.check_window(window)
        if K is None and D % H:
            raise ValueError(f"D: expected a multiple of H={H} where K is not given, got D={D}")
        K, V = K or D // H, V or K or D // H
        self.heads = (H, K), (G, K), (G, V)
        self.window, self.chunk, self.causal, self.scale, self.alibi = window, chunk, causal, scale, alibi
        self.rope = None if alibi else Rope() if rope is True else rope or None
        widths = [heads * width for heads, width in self.heads]
        self.q, self.k, self.v = (nn.Linear(D_in or D, width, bias=bias) for width in widths)
        self.conv = conv.Mixed(widths, conv_size)
        self.norms = nn.ModuleList(nn.RMSNorm(K, eps=qk_eps) for _ in range(2)) if qk_norm else None
        self.gate = nn.Linear(D_in or D, H * V, bias=bias) if gate else None
        self.sub_norm = nn.RMSNorm(H * V, eps=sub_norm) if sub_norm is not None else None
        self.out = nn.Linear(H * V, D, bias=out_bias)

    @property
    def slopes_H(self):
        """ALiBi's slopes, or None. No buffer: no file keeps it, so a module built on meta and loaded would lack it."""
        return alibi_slopes(self.heads[0][0], self.q.weight.device).to(self.q.weight.dtype) if self.alibi else None

    def forward(self, x_BTD, S=None, *, form="auto", lengths_B=None, reset_BT=None, inplace=False, beside=None):
        check({"D": self.q.in_features}, x_BTD=x_BTD)
        side = {"lengths_B": lengths_B, "reset_BT": reset_BT}
        if not self.causal and (S or any(x is not None for x in side.values())):
            raise ValueError("S, lengths_B, reset_BT: bidirectional attention (causal=False) takes none of them")
        S, S_conv = (S[:3], S[3:]) if S else (None, ())
        parts = [project(x_BTD) for project in (self.q, self.k, self.v)]
        parts = parts if beside is None else [x + more for x, more in zip(parts, beside, strict=True)]
        parts, S_conv = self.conv(parts, S_conv, **side)
        z = [part.unflatten(-1, sizes) for part, sizes in zip(parts, self.heads, strict=True)]
        if self.norms is not None:
            z[:2] = (norm(part) for norm, part in zip(self.norms, z[:2], strict=True))
        if not self.causal:
            return self._back(bidirectional(*z, scale=self.scale, rope=self.rope), x_BTD), ()
        w = {"window": self.window, "rope": self.rope, "slopes_H": self.slopes_H, "scale": self.scale}
        if inplace and S is not None and x_BTD.shape[1] == 1 and lengths_B is None and reset_BT is None:
            y_BHV, S = step(S, *(x[:, 0] for x in z), inplace=True, **w)
            y = y_BHV[:, None]
        else:
            run = by_form(__name__, form, x_BTD)
            w |= {"chunk": self.chunk} if run is chunked else {}
            y, S = run(*z, S=S, **side, **w)
        return self._back(y, x_BTD), (*S, *S_conv)

    def _back(self, y_BTHV, x_BTD):
        """From the heads' outputs to D. A cache keeps its dtype, also under autocast: the answer is in the token's."""
        y = y_BTHV.flatten(2).to(x_BTD.dtype)
        y = y if self.gate is None else y * self.gate(x_BTD).sigmoid()
        return self.out(y if self.sub_norm is None else self.sub_norm(y))


def _look(q_BTHK, k_BTGK, v_BTGV, S, lengths_B, *, window=None, scale=None, rope=None, slopes_H=None):
    """What the tokens can look at, with their positions, and the cache after them; scale and slopes are used later."""
    (B, T), fresh = q_BTHK.shape[:2], S is None
    if fresh:
        S = init(*(x.new_empty(B, *x.shape[2:]) for x in (q_BTHK, k_BTGK, v_BTGV)), window=window)
    cache.check_ring(S, window)
    q_BTHK, k_BTGK, v_BTGV = (real(x, lengths_B) for x in (q_BTHK, k_BTGK, v_BTGV))
    position_BT = cache.positions(S[2], T)
    if rope is not None:
        q_BTHK, k_BTGK = rope.rotate(q_BTHK, position_BT), rope.rotate(k_BTGK, position_BT)
    past = cache.unfilled(S) if fresh else S
    (k_BMGK, v_BMGV), position_BM, cached = cache.join(past, (k_BTGK, v_BTGV), window)
    seen = tiles.Seen(q_BTHK, k_BMGK, v_BMGV, position_BT, position_BM, cached)
    return seen, cache.extend(S, (k_BTGK, v_BTGV), lengths_B, window)
