"""Bytes that each rank sends, and the time a pass takes at least, in closed form. P ranks, T tokens, `item` bytes.

Equal stretches: P divides T (2 P does in zigzag). The recorded runs are held to these counts.
"""

from postx.shapes import positive


def ring(T, ranks, rank=None, *, kind="zigzag", B=1, G=1, K=128, V=None, item=2, backward=False, grads=4):
    """Bytes that a rank (None: the last one in zigzag, which sends most) sends for one ring attention.

    Zigzag, in units of T / 2 P tokens' keys and values, (K + V) B G item bytes each: 2 P - 2 forward, one less on every
    rank but the last, because what comes last in the text is seen from nowhere else. Straight, in units of T / P: rank
    r passes on its own and those before, r + 1, and the last rank nothing. backward=True adds the second round, and the
    gradients at `grads` bytes a number: as many units and the way home. All of it grows with T.
    """
    V, rank = V or K, ranks - 1 if rank is None else rank
    positive(T=T, ranks=ranks, B=B, G=G, K=K, V=V)
    last = rank == ranks - 1
    if kind == "zigzag":
        unit, forward, home = T / (2 * ranks), 2 * ranks - 3 + last, 2 if not last else 1
    else:
        unit, forward, home = T / ranks, 0 if last else rank + 1, ranks - 1 if last else 0
    unit *= B * G * (K + V)
    if ranks == 1:
        return 0
    return round(unit * (forward * item * (1 + backward) + (forward + home) * grads * backward))


def passed(state_floats, *, item=4, backward=False, rank=None, ranks=2):
    """Bytes that a rank sends in turn: one state; with its backward pass, one state's gradient too. T is not in it.

    The last rank sends no state on and the first no gradient back: rank=0 .. ranks - 1; None is one in the middle.
    """
    positive(state_floats=state_floats, ranks=ranks)
    forth = rank is None or rank < ranks - 1
    back = backward and (rank is None or rank > 0)
    return (forth + back) * state_floats * item


def ring_seconds(T, ranks, *, flops, bandwidth, B=1, H=1, G=None, K=128, item=2, latency=0.0, balanced=True):
    """The least time of a causal forward pass: each of P steps takes the longer of its look and its passing.

    A rank's share is 2 T (T / P) B H K FLOPs in zigzag; in the straight layout the last rank has almost twice that, and
    all wait for it. flops and bandwidth are of one device, latency of one message in seconds.
    """
    G = G or H
    positive(T=T, ranks=ranks, B=B, H=H, G=G, K=K)
    pair = 4 * (T / ranks) ** 2 * B * H * K / flops  # a whole block of queries on a whole block of keys
    send = 0 if ranks == 1 else latency + 2 * (T / ranks) * B * G * K * item / bandwidth
    first, later = (pair / 2, pair / 2) if balanced else (pair / 2, pair)
    return max(first, send) + max(0, ranks - 2) * max(later, send) + (later if ranks > 1 else 0)


def passed_seconds(local, state_bytes, ranks, *, bandwidth, latency=0.0):
    """The time of a forward pass in turn: two local passes of `local` seconds each, and P - 1 states between them."""
    positive(ranks=ranks)
    return local if ranks == 1 else 2 * local + (ranks - 1) * (latency + state_bytes / bandwidth)
