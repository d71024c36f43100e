"""One token through a place of a language model, in compiled loops: what `postx.models.writer` is made of.

Arrays are of one row, in float32, contiguous. A product's weights W and `scale` are those of `_panels`. Every stage
adds what it computes to the stream x, and writes into the state that it is given.
"""

import math

import numpy as np

from postx.models._panels import product
from postx.scans import lanes
from postx.scans.lanes import LANES
from postx.scans.runtime import plain, serial

SILU, GELU, GELU_TANH, RELU2 = range(4)
ONE, HALF, THRESHOLD = np.float32(1), np.float32(0.5), np.float32(20)  # softplus is the identity above the last
LOG2E = np.float32(1 / math.log(2))
ROOT_HALF, ROOT_2_PI, CUBIC = np.float32(0.5**0.5), np.float32((2 / math.pi) ** 0.5), np.float32(0.044715)


@serial
def dot(x, i, y, j, n):
    """The sum of the products of n numbers of x and y, from their i-th and j-th on."""
    total, k = np.float32(0), 0
    if n >= LANES:
        a, k = lanes.mul(lanes.load(x, i), lanes.load(y, j)), LANES
        while k + LANES <= n:
            a = lanes.fma(lanes.load(x, i + k), lanes.load(y, j + k), a)
            k += LANES
        total = lanes.total(a)
    while k < n:
        total += lanes.number(x, i + k) * lanes.number(y, j + k)
        k += 1
    return total


@serial
def gather(x, i, y, j, n, weight):
    """n numbers of x from the i-th on += weight times those of y from the j-th on."""
    k = 0
    while k + LANES <= n:
        lanes.store(x, i + k, lanes.fma(lanes.load(y, j + k), weight, lanes.load(x, i + k)))
        k += LANES
    while k < n:
        x[i + k] += weight * lanes.number(y, j + k)
        k += 1


@serial
def scaled(x, start, size, weight, eps):
    """x[start : start + size] divided by its root mean square, times weight (as long, or as long as x)."""
    shift = start if len(weight) > size else 0
    factor = ONE / np.sqrt(dot(x, start, x, start, size) / np.float32(size) + eps)
    for i in range(size):
        x[start + i] *= factor * weight[shift + i]


@serial
def silu(x):
    return x / (ONE + np.exp(-x))


@serial
def softplus(x):
    return x if x > THRESHOLD else np.log1p(np.exp(x))


@serial
def activated(x, kind):
    if kind == SILU:
        return silu(x)
    if kind == GELU:
        return HALF * x * (ONE + np.float32(math.erf(x * ROOT_HALF)))
    if kind == GELU_TANH:
        return HALF * x * (ONE + np.tanh(ROOT_2_PI * (x + CUBIC * x * x * x)))
    return max(x, np.float32(0)) ** 2


@serial
def add(x, y):
    for i in range(len(x)):
        x[i] += y[i]


@plain
def norm(x, weight, eps, out):
    """out = x / rms(x) * weight."""
    out[:] = x
    scaled(out, 0, len(x), weight, eps)


@plain
def head(x, weight, eps, W, scale, seen, logits):
    """The last norm and the projection to the vocabulary."""
    norm(x, weight, eps, seen)
    product(W, scale, seen, logits)


@plain
def mlp(x, seen, W, scale, W_out, scale_out, bias, bias_out, kind, gated, hidden, out):
    """x += out(act(gate(seen)) * up(seen)); W holds gate and up, or up alone."""
    F = W_out.shape[1]
    product(W, scale, seen, hidden)
    add(hidden[: len(bias)], bias)
    for f in range(F):
        hidden[f] = activated(hidden[f], kind) * (hidden[F + f] if gated else ONE)
    product(W_out, scale_out, hidden, out)
    add(x, out)
    add(x[: len(bias_out)], bias_out)


@serial
def convolved(z, start, taps_WD, past_WD):
    """Each of the channels of z from `start` on mixed with its own last inputs, in place; the inputs move on."""
    W, D = taps_WD.shape
    for d in range(D):
        new = z[start + d]
        mixed = new * taps_WD[W - 1, d]
        for j in range(W - 1):
            mixed += past_WD[j, d] * taps_WD[j, d]
        for j in range(W - 2):
            past_WD[j, d] = past_WD[j + 1, d]
        if W > 1:
            past_WD[W - 2, d] = new
        z[start + d] = mixed


@plain
def ssd(
    x, seen, S_HKV, past_WD, W, scale, taps_WD, taps_bias_D, dt_bias_H, rate_H, skip_H, least, most, G,
    norm_D, eps, W_out, scale_out, z, y, out,
):  # fmt: skip
    """`mixers.ssd.Layer`: z holds gate, x, k, q and dt; without a norm, norm_D is empty."""
    H, K, V = S_HKV.shape
    inner, D = H * V, taps_WD.shape[1]
    product(W, scale, seen, z)
    convolved(z, inner, taps_WD, past_WD)
    for d in range(D):
        z[inner + d] = silu(z[inner + d] + taps_bias_D[d])
    values, keys, queries = z[inner : 2 * inner], z[2 * inner :], z[2 * inner + G * K :]
    for h in range(H):
        first, own = h // (H // G) * K, values[h * V : h * V + V]
        dt = min(max(softplus(z[inner + D + h] + dt_bias_H[h]), least), most)
        keep, read = np.exp(rate_H[h] * dt), y[h * V : h * V + V]
        read[:] = 0
        for k in range(K):
            row, write, ask = S_HKV[h, k], keys[first + k] * dt, queries[first + k]
            for v in range(V):
                row[v] = keep * row[v] + write * own[v]
                read[v] += ask * row[v]
        for v in range(V):
            read[v] = (read[v] + skip_H[h] * own[v]) * silu(z[h * V + v])
    if len(norm_D):
        for g in range(G):
            scaled(y, g * (inner // G), inner // G, norm_D, eps)
    product(W_out, scale_out, y, out)
    add(x, out)


@plain
def gated_delta(
    x, seen, S_HKV, past_WD, G, W, scale, taps_WD, bias_H, rate_H, top, norm_V, eps, W_out, scale_out, z, y, held, out,
):  # fmt: skip
    """`mixers.gated_deltanet.Layer`: z holds q, k, v, gate, beta and rate; without a convolution, taps [1, 0]."""
    H, K, V = S_HKV.shape
    mixed = 2 * G * K + H * V
    product(W, scale, seen, z)
    convolved(z, 0, taps_WD, past_WD)
    for d in range(mixed):
        z[d] = silu(z[d])
    for g in range(2 * G):  # queries, then keys, of length 1
        length = np.sqrt(dot(z, g * K, z, g * K, K) + np.float32(1e-6))
        for k in range(g * K, g * K + K):
            z[k] /= length
    for h in range(H):
        asked, key, own = h // (H // G) * K, (G + h // (H // G)) * K, z[2 * G * K + h * V : 2 * G * K + h * V + V]
        last = mixed + H * V + h  # beta; the rate stands H further
        beta, keep = top / (ONE + np.exp(-z[last])), np.exp(rate_H[h] * softplus(z[last + H] + bias_H[h]))
        read = y[h * V : h * V + V]
        held[:] = 0
        read[:] = 0
        for k in range(K):
            row, weight = S_HKV[h, k], z[key + k]
            for v in range(V):
                row[v] *= keep
                held[v] += weight * row[v]
        for v in range(V):
            held[v] = beta * (own[v] - held[v])
        for k in range(K):
            row, weight, ask = S_HKV[h, k], z[key + k], z[asked + k] / np.sqrt(np.float32(K))
            for v in range(V):
                row[v] += weight * held[v]
                read[v] += ask * row[v]
        scaled(y, h * V, V, norm_V, eps)
        for v in range(V):
            read[v] *= silu(z[mixed + h * V + v])
    product(W_out, scale_out, y, out)
    add(x, out)


@serial
def turned(z, start, angles, half):
    """The first channels of a head's query or key, turned pair by pair; angles [2, pairs] are cosines and sines."""
    pairs = angles.shape[1]
    for i in range(pairs):
        a = start + (i if half else 2 * i)
        b = a + (pairs if half else 1)
        z[a], z[b] = z[a] * angles[0, i] - z[b] * angles[1, i], z[a] * angles[1, i] + z[b] * angles[0, i]


@serial
def softened(scores_HM, h, used):
    """e^(score - the largest) of the first `used` scores of a row, in place, and their sum. Rows end at whole lanes."""
    start, top, total = h * scores_HM.shape[1], np.float32(-np.inf), np.float32(0)
    for m in range(used):
        top = max(top, scores_HM[h, m])
    scores_HM[h, used : -(-used // LANES) * LANES] = -np.inf
    for m in range(0, used, LANES):
        p = lanes.exp2(lanes.mul(lanes.add(lanes.load(scores_HM, start + m), -top), LOG2E))
        lanes.store(scores_HM, start + m, p)
        total += lanes.total(p)
    return total


@plain
def attention(
    x, seen, keys_MGK, values_MGV, position, H, window, scale_q, frequency, half, W, scale, q_norm, k_norm, eps,
    W_out, scale_out, bias_out, z, angles, scale_H, scores_HM, y, out,
):  # fmt: skip
    """`mixers.attention.Layer`: z holds q, k and v; position [1]: tokens cached; frequency: empty without rotation."""
    G, K, V, at = keys_MGK.shape[1], keys_MGK.shape[2], values_MGV.shape[2], position[0]
    product(W, scale, seen, z)
    for i in range(len(frequency)):
        angle = at * frequency[i]
        angles[0, i], angles[1, i] = np.float32(math.cos(angle)), np.float32(math.sin(angle))
    for h in range(H + G):
        if len(q_norm):
            scaled(z, h * K, K, q_norm if h < H else k_norm, eps)
        turned(z, h * K, angles, half)
    slot, used = (at % window, min(at + 1, window)) if window else (at, at + 1)
    for g in range(G):
        keys_MGK[slot, g] = z[(H + g) * K : (H + g + 1) * K]
        values_MGV[slot, g] = z[(H + G) * K + g * V : (H + G) * K + (g + 1) * V]
    position[0] = at + 1
    share = H // G
    for m in range(used):  # all heads at a slot: a cache is read from front to back
        for h in range(H):
            scores_HM[h, m] = dot(z, h * K, keys_MGK, (m * G + h // share) * K, K) * scale_q
    y[:] = 0
    for h in range(H):
        scale_H[h] = ONE / softened(scores_HM, h, used)
    for m in range(used):
        for h in range(H):
            gather(y, h * V, values_MGV, (m * G + h // share) * V, V, scores_HM[h, m])
    for h in range(H):
        for v in range(V):
            y[h * V + v] *= scale_H[h]
    product(W_out, scale_out, y, out)
    add(x, out)
    add(x[: len(bias_out)], bias_out)
