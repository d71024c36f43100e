"""What a mixer, a block or a kernel costs, in closed form: FLOPs, bytes moved, floats of state.

Conventions, used everywhere in the book:
- a multiply-add is 2 FLOPs; an addition, product, comparison, division or exp on its own is 1;
- a causal count is the work that the mask leaves over, not the square that some code computes and hides;
- bytes are traffic with main memory under the stated form, `item` bytes a number (2: half precision);
- state floats are what must be kept from one token to the next, for all B sequences;
- blocks leave out norms, residuals, activations and rotary angles: O(D) a token beside matrices of O(D^2).
Letters: B batch, T new tokens, H heads, G key-value groups, K and V widths a head, W window, D model width,
F MLP width, L layers, N state, C chunk.
"""

from dataclasses import dataclass
from math import ceil, isfinite, log2
from numbers import Real

from postx.shapes import positive


@dataclass(frozen=True)
class Cost:
    """FLOPs, bytes moved and floats of state of some work; costs add, and scale by a number.

    `bounded`: does the state stop growing with the text? `by`: what it grows with, or what stops it.
    """

    flops: float
    bytes: float = 0
    state_floats: float = 0
    bounded: bool = True
    by: str = ""

    def __add__(self, other):
        if not isinstance(other, Cost):
            return NotImplemented
        by = "; ".join(dict.fromkeys(part for part in (self.by, other.by) if part))
        return Cost(self.flops + other.flops, self.bytes + other.bytes,
                    self.state_floats + other.state_floats, self.bounded and other.bounded, by)

    def __radd__(self, other):  # sum() starts from 0
        return self if other == 0 else NotImplemented

    def __mul__(self, n):
        return Cost(self.flops * n, self.bytes * n, self.state_floats * n, self.bounded, self.by)

    __rmul__ = __mul__

    @property
    def intensity(self):
        """FLOPs for each byte moved (FLOP/byte)."""
        if not self.bytes:
            raise ValueError("intensity: this cost moves no bytes")
        return self.flops / self.bytes


def matmul(m, k, n, *, batch=1, item=2):
    """An [m, k] by [k, n] product costs 2 m k n FLOPs and reads and writes each matrix once."""
    positive(m=m, k=k, n=n, batch=batch)
    return Cost(2 * m * k * n * batch, (m * k + k * n + m * n) * batch * item)


def attention_scores(T, *, window=None, causal=True, past=0):
    """How many (query, key) pairs one head compares when T queries follow `past` cached tokens.

    All pairs: T (past + T). Causal: sum over i = 1..T of min(window, past + i), so T (T + 1) / 2 at first.
    """
    positive(T=T)
    if not isinstance(past, Real) or not isfinite(past) or int(past) != past or past < 0:
        raise ValueError(f"past: expected a whole number >= 0, got {past!r}")
    if window is None:
        window = past + T
    elif not causal:
        raise ValueError("window: needs causal=True (keys i-W+1..i)")
    positive(window=window)
    if not causal:
        return T * (past + T)
    growing = min(max(window - past, 0), T)  # queries that still see everything before them
    return growing * past + growing * (growing + 1) // 2 + (T - growing) * window


def softmax(scores, rows):
    """Explicit operation count of a stable softmax: scale, max, subtract, exp, sum, divide."""
    return Cost(6 * scores - 2 * rows)


def softmax_attention(T, *, B=1, H=1, G=None, K, V=None, window=None, causal=True, past=0, form="tiled",
                      tile=1024, item=2):
    """Scores and weighted sum of softmax attention: 2 (K + V) FLOPs for each pair, B H times.

    The two contractions only; add `softmax` for the O(1) work a pair. form="tiled" skips what the mask hides,
    keeps scores on chip, and reads keys and values once for every `tile` queries (heads of a group share it);
    form="naive" computes every pair and sends the scores to memory and back twice (write, softmax, read).
    A thread block holds about 128 queries; blocks that run together share reads in the cache: hence 1,024.
    State: one key and one value a token and group, at most `window` of them.
    Source: Vaswani et al. 2017; tiling, Dao et al. 2022 (arXiv 2205.14135), loop order of Dao 2023.
    """
    G, V = G or H, V or K
    positive(B=B, H=H, G=G, K=K, V=V, tile=tile)
    if H % G:
        raise ValueError(f"G: expected a divisor of H = {H}, got {G}")
    pairs, M = attention_scores(T, window=window, causal=causal, past=past), past + T
    ends = B * H * T * (K + V)  # each query read once, each output written once
    if form == "naive":
        pairs, moved = T * M, ends + B * G * M * (K + V) + 4 * B * H * T * M
    elif form == "tiled":
        seen = _keys_read(T, M, window, causal, past, tile)
        moved = ends + B * G * seen * (K + V)
    else:
        raise ValueError(f"form: expected 'tiled' or 'naive', got {form!r}")
    kept = M if window is None else min(window, M)
    by = f"a window of {window} tokens" if window else "every token: one key and one value each"
    return Cost(2 * B * H * pairs * (K + V), moved * item, B * G * kept * (K + V), window is not None, by)


def _keys_read(T, M, window, causal, past, tile):
    if not causal:
        return ceil(T / tile) * M
    # Summed over the tiles' starts: past + min(start + tile, T) - max(0, past + start - window + 1).
    T, tile, past = int(T), int(tile), int(past)  # whole floats are sizes too
    n = -(-T // tile)
    seen = n * past + tile * (n * (n - 1) // 2) + T
    if window is not None:
        window = int(window)
        clear = min(n, max(0, (window - 1 - past) // tile + 1))  # tiles that still see everything before them
        seen -= (n - clear) * (past - window + 1) + tile * (n * (n - 1) // 2 - clear * (clear - 1) // 2)
    return seen


def decay_recurrence(T, *, B=1, H=1, K, V=None, decay=True, normalized=False, item=2):
    """S <- a S + k v', y = S' q, a token at a time: 4 K V FLOPs a token and head, 5 K V with a decay.

    `normalized` adds the denominator of linear attention, a column of ones in v, and V divisions.
    Bytes: q, k, v in and y out; S stays on chip. State: K V a head, whatever T is.
    """
    V = V or K
    positive(T=T, B=B, H=H, K=K, V=V)
    columns = V + 1 if normalized else V
    flops = (5 if decay else 4) * K * columns + (V if normalized else 0)
    return Cost(B * T * H * flops, B * T * H * (2 * K + 2 * V) * item, B * H * K * columns)


def delta_recurrence(T, *, B=1, H=1, K, V=None, decay=False, item=2):
    """S <- a S + beta k (v - S'k)', y = S' q: 6 K V + 2 V FLOPs a token and head, K V more with a decay."""
    V = V or K
    positive(T=T, B=B, H=H, K=K, V=V)
    flops = (7 if decay else 6) * K * V + 2 * V
    return Cost(B * T * H * flops, B * T * H * (2 * K + 2 * V) * item, B * H * K * V)


def chunked_recurrence(T, *, B=1, H=1, K, V=None, chunk=64, item=2):
    """The four contractions of a chunked linear recurrence (SSD): 2CK + 2CV + 4KV FLOPs a token and head.

    Scores and weighted sum inside a chunk of C tokens, the chunk's write into S, its read from S.
    Passing S on (2 K V a chunk, elementwise) is not counted. A ragged last chunk counts at its own length.
    Source: Dao and Gu 2024 (arXiv 2405.21060), section 6, with Q = C, N = K, P = V.
    """
    V = V or K
    positive(T=T, B=B, H=H, K=K, V=V, chunk=chunk)
    whole, rest = divmod(T, chunk)
    pairs = whole * chunk**2 + rest**2
    flops = 2 * pairs * (K + V) + 4 * T * K * V
    return Cost(B * H * flops, B * T * H * (2 * K + 2 * V) * item, B * H * K * V)


def kda_chunked(T, *, B=1, H=1, K, chunk=64, item=2):
    """Kimi Delta Attention in chunks: 6 T K^2 + 3 T C K + T C^2 FLOPs a head (Kimi Linear report, eq. 13)."""
    positive(T=T, B=B, H=H, K=K, chunk=chunk)
    return Cost(B * H * T * (6 * K**2 + 3 * chunk * K + chunk**2), B * T * H * 4 * K * item, B * H * K * K)


def ssm_scan(T, *, B=1, D, N, selective=True, item=2):
    """A diagonal state-space recurrence with N states for each of D channels, and the skip D u.

    Selective (Mamba, real A): 7 N + 2 FLOPs a token and channel: delta A, exp, B (delta u), a h + b, C h.
    Fixed (S4D, complex A, N kept): 14 N + 2: complex a h + b u, then 2 Re(C h). State: D N floats, or 2 D N.
    """
    positive(T=T, B=B, D=D, N=N)
    flops = (7 if selective else 14) * N + 2
    return Cost(B * T * D * flops, B * T * (3 * D + 2 * N if selective else 2 * D) * item,
                B * D * N * (1 if selective else 2))


def short_convolution(T, *, B=1, D, conv_size=4, item=2):
    """A causal depthwise convolution: 2 conv_size FLOPs a token and channel; its state is conv_size - 1 inputs."""
    positive(T=T, B=B, D=D, conv_size=conv_size)
    return Cost(2 * conv_size * B * T * D, 2 * B * T * D * item, B * D * (conv_size - 1))


def long_convolution(T, *, B=1, D, item=4):
    """A causal convolution as long as the text, by FFT of length 2T: two transforms a channel, one a filter.

    Convention: 2.5 n log2 n FLOPs a real transform of n points, 6 for a complex product. State: all inputs.
    """
    positive(T=T, B=B, D=D)
    n = 2 * T
    flops = 2.5 * n * log2(n) * (2 * B * D + D) + 6 * (T + 1) * B * D
    by = "every token: a filter as long as the text"
    return Cost(flops, (2 * B * T * D + D * T) * item, B * D * T, False, by)


# ---------------------------------------------------------------- blocks


def transformer_block(T, *, D, B=1, H=None, G=None, K=None, F=None, gated=False, window=None, causal=True,
                      past=0, form="tiled", item=2):
    """One Transformer block: projections 2 B T D (2 H K + 2 G K), attention, an MLP of 4 (gated: 6) B T D F.

    Defaults: heads of 128, G = H, F = 4 D, no gate, so 12 D^2 weights. Biases and norms are left out.
    """
    H = H or max(1, D // 128)
    K, G, F = K or D // H, G or H, F or 4 * D
    positive(B=B, T=T, D=D, H=H, G=G, K=K, F=F)
    tokens = B * T
    projections = (matmul(tokens, D, H * K, item=item) + 2 * matmul(tokens, D, G * K, item=item)
                   + matmul(tokens, H * K, D, item=item))
    mlp = (2 if gated else 1) * matmul(tokens, D, F, item=item) + matmul(tokens, F, D, item=item)
    return projections + mlp + softmax_attention(
        T, B=B, H=H, G=G, K=K, window=window, causal=causal, past=past, form=form, item=item)


def mamba_block(T, *, D, B=1, N=16, expand=2, rank=None, conv_size=4, item=2):
    """One Mamba block (Gu and Dao 2023): in-projection, short convolution, delta B C, scan, out-projection.

    Inner width expand D, delta of rank D / 16: about 6 D^2 weights, half of a Transformer block's 12 D^2.
    """
    inner, rank = expand * D, rank or ceil(D / 16)
    tokens = B * T
    mixing = ssm_scan(T, B=B, D=inner, N=N, item=item)
    mixing += short_convolution(T, B=B, D=inner, conv_size=conv_size, item=item)
    return (matmul(tokens, D, 2 * inner, item=item) + matmul(tokens, inner, rank + 2 * N, item=item)
            + matmul(tokens, rank, inner, item=item) + mixing + matmul(tokens, inner, D, item=item))


def mamba2_block(T, *, D, B=1, N=128, P=64, G=1, expand=2, conv_size=4, chunk=256, item=2):
    """One Mamba-2 block (Dao and Gu 2024): expand D / P heads, value width P, key width N, G groups of keys.

    State: expand D N and the short convolution's inputs. One token is the recurrence; more are chunked.
    """
    inner = expand * D
    if inner % P:
        raise ValueError(f"P: expected a divisor of expand * D = {inner}, got {P}")
    heads, tokens, mixed = inner // P, B * T, inner + 2 * G * N
    sizes = {"B": B, "H": heads, "K": N, "V": P, "item": item}
    core = decay_recurrence(T, **sizes) if T == 1 else chunked_recurrence(T, chunk=chunk, **sizes)
    core += short_convolution(T, B=B, D=mixed, conv_size=conv_size, item=item)
    return matmul(tokens, D, inner + mixed + heads, item=item) + core + matmul(tokens, inner, D, item=item)


def training_flops(T, *, D, F=None, H=None, K=None, B=1, causal=False):
    """One gated layer, forward and backward: matrices 18 BTDF + 24 BTDHK, attention 12 B T^2 HK, as a pair.

    The backward pass is two products for each of the forward's. Attention over all pairs; causal halves it.
    Source: Austin et al. 2025, How to Scale Your Model, chapter "Transformers".
    """
    H = H or max(1, D // 128)
    K, F = K or D // H, F or 4 * D
    positive(T=T, B=B, D=D, F=F, H=H, K=K)
    attention = 12 * B * T * T * H * K
    return 18 * B * T * D * F + 24 * B * T * D * H * K, attention / 2 if causal else attention


@dataclass(frozen=True)
class Device:
    """An accelerator's published ceilings: FLOP/s (dense), bytes/s of main memory, bytes of main memory."""

    name: str
    flops: float
    bandwidth: float
    memory: float
    source: str = ""


@dataclass(frozen=True)
class Roofline:
    """The least time a cost can take on a device, its intensity (FLOP/byte), and which ceiling sets it."""

    seconds: float
    intensity: float
    binds: str


def roofline(cost, device):
    """time = max(flops / peak, bytes / bandwidth): a floor, not a forecast (Williams et al. 2009)."""
    compute, memory = cost.flops / device.flops, cost.bytes / device.bandwidth
    return Roofline(max(compute, memory), cost.intensity, "compute" if compute >= memory else "memory")


def ring_block(flops, bandwidth):
    """The fewest tokens in a block for which ring attention hides its passing: peak FLOP/s over link bytes/s.

    A block of c tokens takes 4 d c^2 FLOPs and passes 4 d c bytes of keys and values: c >= flops / bandwidth.
    The paper holds 6 blocks a device. Source: Liu et al. 2023 (arXiv 2310.01889), section 3, table 2.
    """
    if flops <= 0 or bandwidth <= 0:
        raise ValueError(f"flops, bandwidth: expected positive rates, got {flops!r}, {bandwidth!r}")
    return flops / bandwidth
