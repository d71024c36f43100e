"""What `benchmarks.gpu` times: for each case its inputs, our form of it, and those of the peers that are there.

A case is (make, {who: run}): `make(**sizes)` gives the inputs, and every run takes them by name and returns y. "postx"
is what `scans` picks by itself ("auto"), "postx, ..." another form of this package, the others are peers. A decay of
bfloat16 stays in float32, as models have it.
"""

import importlib
from functools import partial

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import logsigmoid, normalize, scaled_dot_product_attention

from postx import scans
from postx.mixers import attention, mamba
from postx.scans.decay_chunked import decay_chunked
from postx.scans.delta_chunked import in_chunks

BF16, DEVICE = torch.bfloat16, "cuda"


def normal(*shape, dtype=BF16, seed=0):
    generator = torch.Generator(DEVICE).manual_seed(seed)
    return torch.randn(*shape, generator=generator, device=DEVICE).to(dtype)


def fades(*shape):
    """Log-decays of 0.05 a token in the median."""
    return logsigmoid(normal(*shape, dtype=torch.float32, seed=3) + 3)


# ---------------------------------------------------------------- inputs


def linear(B=8, T=4096, H=16, K=128, V=128, dtype=BF16):
    q, k = (normal(B, T, H, K, dtype=dtype, seed=seed) for seed in range(2))
    return {"q": q * K**-0.5, "k": k, "v": normal(B, T, H, V, dtype=dtype, seed=2)}


def one_decay(B=8, T=4096, H=16, **more):
    return {**linear(B, T, H, **more), "g": fades(B, T, H)}


def per_key(B=8, T=4096, H=16, K=128, **more):
    return {**linear(B, T, H, K, **more), "g": fades(B, T, H, K)}


def rwkv6(B=8, T=4096, H=16, K=128, **more):
    return {**per_key(B, T, H, K, **more), "u": normal(H, K, dtype=torch.float32, seed=5)}


def ssd(B=8, T=4096, H=64, P=64, N=128, dtype=BF16):
    """In Mamba-2's own letters: what is written is x dt, the log-decay A dt, and all heads share B and C."""
    B_, C = (normal(B, T, 1, N, dtype=dtype, seed=seed) for seed in range(2))
    dt = torch.nn.functional.softplus(normal(B, T, H, dtype=torch.float32, seed=3) - 2).to(dtype)
    A = -torch.linspace(0.2, 1, H, device=DEVICE)
    return {"x": normal(B, T, H, P, dtype=dtype, seed=2), "dt": dt, "A": A, "B": B_, "C": C * N**-0.5}


def deltanet(B=8, T=4096, H=16, K=128, V=128, dtype=BF16):
    x = linear(B, T, H, K, V, dtype)
    x["k"] = normalize(x["k"].float(), dim=-1).to(dtype)
    return {**x, "beta": normal(B, T, H, dtype=dtype, seed=4).sigmoid()}


def gated_delta(B=8, T=4096, H=16, **more):
    return {**deltanet(B, T, H, **more), "g": fades(B, T, H)}


def kda(B=8, T=4096, H=16, K=128, **more):
    return {**deltanet(B, T, H, K, **more), "g": fades(B, T, H, K)}


def rwkv7(B=8, T=4096, H=16, K=64, dtype=BF16):
    x = linear(B, T, H, K, K, dtype)
    removal = normalize(normal(B, T, H, K, dtype=torch.float32, seed=4), dim=-1).to(dtype)
    a = normal(B, T, H, K, dtype=dtype, seed=5).sigmoid()
    g = -0.6065 * normal(B, T, H, K, dtype=torch.float32, seed=3).sigmoid()
    return {**x, "removal": removal, "a": a, "g": g}


def rg_lru(B=8, T=4096, D=2048, dtype=BF16):
    return {"g": logsigmoid(normal(B, T, D, dtype=dtype) + 3), "b": normal(B, T, D, dtype=dtype, seed=1)}


def selective(B=8, T=4096, D=2048, N=16, dtype=BF16):
    delta = torch.nn.functional.softplus(normal(B, T, D, dtype=torch.float32, seed=1) - 4).to(dtype)
    write, read = (normal(B, T, N, dtype=dtype, seed=seed) for seed in (2, 3))
    A = -torch.arange(1, N + 1, device=DEVICE).float().repeat(D, 1)
    return {"u": normal(B, T, D, dtype=dtype), "delta": delta, "A": A, "write": write, "read": read}


def causal(B=8, T=4096, H=64, K=64, dtype=BF16):
    return dict(zip("qkv", (normal(B, T, H, K, dtype=dtype, seed=seed) for seed in range(3)), strict=True))


# ---------------------------------------------------------------- this package


def our_decay(q, k, v, g=None, impl="auto"):
    return scans.decay(q, k, v, g, impl=impl)[0]


def decay_torch(q, k, v, g=None):
    return decay_chunked(q, k, v, g)[0]


def our_rwkv6(q, k, v, g, u, impl="auto"):
    return scans.decay(q, k, v, g, read="before", u_HK=u, impl=impl)[0]


def mamba2(x, dt, A, B, C):
    """Mamba-2's letters as those of the tables: (q, k, v, g)."""
    return C, B, x * dt[..., None], A * dt


def our_ssd(impl="auto", **x):
    return our_decay(*mamba2(**x), impl=impl)


def delta_terms(q, k, v, beta, g=None):
    """As the mixers have it: v comes times beta; with a decay, k reads the table before it fades."""
    wide = beta.to(torch.promote_types(beta.dtype, torch.float32))
    if g is None or g.dim() == 3:
        return (q, k, v * beta[..., None], wide if g is None else wide * g.exp(), g), {}
    return (q, k, v * beta[..., None], wide, g), {"c_BTHK": (k * g.exp()).to(k.dtype)}


def our_delta(impl="auto", **x):
    terms, more = delta_terms(**x)
    return scans.delta(*terms, **more, impl=impl)[0]


def delta_torch(chunk=64, **x):
    terms, more = delta_terms(**x)
    return in_chunks(*terms, None, **more, lengths_B=None, chunk=chunk)[0]


def our_rwkv7(q, k, v, removal, a, g, impl="auto"):
    return scans.delta(q, k, v, None, g, b_BTHK=removal * a, c_BTHK=removal, impl=impl)[0]


def our_affine(g, b, impl="auto"):
    return scans.affine(g, b, impl=impl)[0]


def our_selective(u, delta, A, write, read, impl="auto"):
    return scans.diagonal(u, delta, A, write, read, impl=impl)[0]


def selective_torch(u, delta, A, write, read):
    return mamba.chunked(u, delta, write, read, A_DN=A, skip_D=A.new_zeros(len(A)))[0]


def our_attention(q, k, v, impl="auto"):
    run = attention.parallel if impl == "reference" else partial(attention.chunked, impl=impl)
    return run(q, k, v)[0]


# ---------------------------------------------------------------- peers


def fla(module, function, arguments=None, **more):
    """A function of flash-linear-attention. It is given every head; `arguments` are what it calls ours."""

    def run(**x):
        ops = importlib.import_module(f"fla.ops.{module}")
        x = {(arguments or {}).get(name, name): value for name, value in x.items()}
        return getattr(ops, function)(**x, scale=1.0, **more)[0]

    return run


def fla_rwkv7(q, k, v, removal, a, g):
    return fla("rwkv7", "chunk_rwkv7")(r=q, w=g, k=k, v=v, a=-removal, b=removal * a)


def fla_hgrn(g, b):
    return importlib.import_module("fla.ops.hgrn").chunk_hgrn(b, g)[0]


def mamba_ssm(chunk=256, **x):
    scan = importlib.import_module("mamba_ssm.ops.triton.ssd_combined").mamba_chunk_scan_combined
    return scan(**x, chunk_size=chunk)


def sdpa(backend):
    def run(q, k, v):
        with sdpa_kernel(backend):
            heads = (x.transpose(1, 2) for x in (q, k, v))
            return scaled_dot_product_attention(*heads, is_causal=True).transpose(1, 2)

    return run


CASES = {
    "SSD, B=8 T=4096 H=64 P=64 N=128": (ssd, {"postx": our_ssd, "mamba_ssm, chunk 256": mamba_ssm}),
    "linear, B=8 T=4096 H=16 K=V=128": (linear, {
        "postx": our_decay, "postx, chunked torch": decay_torch,
        "fla linear_attn": fla("linear_attn", "chunk_linear_attn", normalize=False)}),
    "linear in float32, same": (partial(linear, dtype=torch.float32), {
        "postx": our_decay, "postx, chunked torch": decay_torch}),
    "one decay a head, same": (one_decay, {
        "postx": our_decay, "postx, chunked torch": decay_torch,
        "fla simple_gla": fla("simple_gla", "chunk_simple_gla")}),
    "GLA, same": (per_key, {
        "postx": our_decay, "postx, chunked torch": decay_torch, "fla gla": fla("gla", "chunk_gla")}),
    "RWKV-6, same": (rwkv6, {
        "postx": our_rwkv6, "fla rwkv6": fla("rwkv6", "chunk_rwkv6", {"q": "r", "g": "w"})}),
    "DeltaNet, same": (deltanet, {
        "postx": our_delta, "postx, chunked torch": delta_torch,
        "fla delta_rule": fla("delta_rule", "chunk_delta_rule")}),
    "Gated DeltaNet, same": (gated_delta, {
        "postx": our_delta, "postx, chunked torch": delta_torch,
        "fla gated_delta_rule": fla("gated_delta_rule", "chunk_gated_delta_rule")}),
    "KDA, same": (kda, {
        "postx": our_delta, "postx, chunked torch": partial(delta_torch, chunk=16),
        "fla kda": fla("kda", "chunk_kda")}),
    "RWKV-7, H=16 K=64": (rwkv7, {"postx": our_rwkv7, "fla rwkv7": fla_rwkv7}),
    "RG-LRU's scan, B=8 T=4096 D=2048": (rg_lru, {"postx": our_affine, "fla chunk_hgrn": fla_hgrn}),
    "selective scan, B=8 T=4096 D=2048 N=16": (selective, {
        "postx": our_selective, "postx, chunked torch": selective_torch}),
    "causal attention, B=8 T=4096 H=64 D=64": (causal, {
        "postx": our_attention, "postx, tiles in torch": partial(our_attention, impl="torch"),
        "torch's flash": sdpa(SDPBackend.FLASH_ATTENTION), "torch's cuDNN": sdpa(SDPBackend.CUDNN_ATTENTION)}),
    "SSD, B=1 T=131072 H=64 P=64 N=128": (
        lambda **more: ssd(**{"B": 1, "T": 131072, **more}), {"postx": our_ssd, "mamba_ssm, chunk 256": mamba_ssm}),
    "selective scan, B=1 T=131072 D=2048 N=16": (
        lambda **more: selective(**{"B": 1, "T": 131072, **more}), {"postx": our_selective}),
}  # fmt: skip
