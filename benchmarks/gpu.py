"""The scans on a GPU beside what people install: python -m benchmarks.gpu [--json FILE] [--only CASE] [--long].

Every case is first held to the float64 reference of `scans` on fewer tokens of the same widths, outputs and
gradients; only then is it timed. Times are medians in ms by GPU events, with the L2 cache emptied between calls; the
loss is a fixed random tensor's dot product with y. `peak_bytes` is what a forward and backward pass needs beyond the
inputs and their gradients' seed. `error` is the largest of |x - reference| / |reference| over y and the gradients.

Peers are optional and are looked for on the path: fla (flash-linear-attention with fla-core), and torch's fused
attention. The H200's rows were recorded with torch 2.11, where this package pins 2.13: what that machine had.
"""

import argparse
import contextlib
import datetime
import functools
import importlib.util
import json
from pathlib import Path

import torch
from torch.nn.functional import logsigmoid, normalize

from postx import scans

CHECK_T = 512  # tokens of the float64 reference, which goes one by one


def normal(*shape, dtype=torch.bfloat16, seed=0):
    generator = torch.Generator("cuda").manual_seed(seed)
    return torch.randn(*shape, generator=generator, device="cuda").to(dtype)


def table(B, T, H, K, V, dtype, G=None):
    G = G or H
    q, k = (normal(B, T, G, K, dtype=dtype, seed=seed) for seed in range(2))
    return {"q": q * K**-0.5, "k": k, "v": normal(B, T, H, V, dtype=dtype, seed=2)}


def linear(B=8, T=4096, H=16, K=128, V=128, dtype=torch.bfloat16):
    return table(B, T, H, K, V, dtype)


def one_decay(B=8, T=4096, H=16, K=128, V=128, dtype=torch.bfloat16):
    return {**table(B, T, H, K, V, dtype), "g": logsigmoid(normal(B, T, H, dtype=torch.float32, seed=3) + 3)}


def ssd(B=8, T=4096, H=64, K=128, V=64, dtype=torch.bfloat16):
    return {**table(B, T, H, K, V, dtype, G=1), "g": logsigmoid(normal(B, T, H, dtype=torch.float32, seed=3) + 3)}


def per_key(B=8, T=4096, H=16, K=128, V=128, dtype=torch.bfloat16):
    return {**table(B, T, H, K, V, dtype), "g": logsigmoid(normal(B, T, H, K, dtype=dtype, seed=3) + 3)}


def deltanet(B=8, T=4096, H=16, K=128, V=128, dtype=torch.bfloat16):
    x = table(B, T, H, K, V, dtype)
    x["k"] = normalize(x["k"].float(), dim=-1).to(dtype)
    return {**x, "beta": normal(B, T, H, dtype=dtype, seed=4).sigmoid()}


def gated_delta(B=8, T=4096, H=16, K=128, V=128, dtype=torch.bfloat16):
    return {**deltanet(B, T, H, K, V, dtype), "g": logsigmoid(normal(B, T, H, dtype=torch.float32, seed=3) + 3)}


def rg_lru(B=8, T=4096, D=2048, dtype=torch.bfloat16):
    return {"g": logsigmoid(normal(B, T, D, dtype=dtype) + 3), "b": normal(B, T, D, dtype=dtype, seed=1)}


def our_decay(q, k, v, g=None, impl="auto"):
    return scans.decay(q, k, v, g, impl=impl)[0]


def our_delta(q, k, v, beta, g=None, impl="auto"):
    """As the mixers do: v comes times beta; with a decay, k reads the table before it fades."""
    rate = beta.to(torch.promote_types(beta.dtype, torch.float32))
    v, rate = v * beta[..., None], rate if g is None else rate * g.exp()
    return scans.delta(q, k, v, rate, g, impl=impl)[0]


def our_affine(g, b, impl="auto"):
    return scans.affine(g, b, impl=impl)[0]


def fla(module, function, **more):
    def run(q, k, v, *rest, **named):
        ops = importlib.import_module(f"fla.ops.{module}")
        H = v.shape[2]
        q, k = (x if x.shape[2] == H else x.repeat_interleave(H // x.shape[2], 2) for x in (q, k))
        return getattr(ops, function)(q, k, v, *rest, scale=1.0, **named, **more)[0]

    return run


def fla_hgrn(g, b):
    return importlib.import_module("fla.ops.hgrn").chunk_hgrn(b, g)[0]


CASES = {
    "SSD, B=8 T=4096 H=64 P=64 N=128": (ssd, our_decay, {"fla simple_gla": fla("simple_gla", "chunk_simple_gla")}),
    "linear, B=8 T=4096 H=16 K=V=128": (linear, our_decay, {
        "fla linear_attn": fla("linear_attn", "chunk_linear_attn", normalize=False)}),
    "linear in float32, same": (functools.partial(linear, dtype=torch.float32), our_decay, {}),
    "one decay a head, same": (one_decay, our_decay, {"fla simple_gla": fla("simple_gla", "chunk_simple_gla")}),
    "GLA, same": (per_key, our_decay, {"fla gla": fla("gla", "chunk_gla")}),
    "DeltaNet, same": (deltanet, our_delta, {"fla delta_rule": fla("delta_rule", "chunk_delta_rule")}),
    "Gated DeltaNet, same": (gated_delta, our_delta, {
        "fla gated_delta_rule": fla("gated_delta_rule", "chunk_gated_delta_rule")}),
    "RG-LRU's scan, B=8 T=4096 D=2048": (rg_lru, our_affine, {"fla chunk_hgrn": fla_hgrn}),
}  # fmt: skip
LONG = {
    "SSD, B=1 T=131072 H=64 P=64 N=128": (
        lambda **more: ssd(**{"B": 1, "T": 131072, **more}), our_decay,
        {"fla simple_gla": fla("simple_gla", "chunk_simple_gla")},
    ),
}  # fmt: skip


def gradients(run, inputs, seed):
    y = run(**inputs)
    return torch.autograd.grad(y, list(inputs.values()), seed.to(y.dtype))


def leaves(inputs, dtype=None):
    return {
        name: x.detach().to(x.dtype if dtype is None else dtype).requires_grad_(True) for name, x in inputs.items()
    }


def errors(run, ours, inputs):
    """(relative error of y, that of the worst gradient and its name) of `run` against the float64 reference."""
    wide = leaves(inputs, torch.float64)
    want = ours(**wide, impl="reference")
    seed = normal(*want.shape, dtype=torch.bfloat16, seed=7)
    wanted = torch.autograd.grad(want, list(wide.values()), seed.double())
    narrow = leaves(inputs)
    y = run(**narrow)
    found = torch.autograd.grad(y, list(narrow.values()), seed.to(y.dtype))

    def error(got, want):
        return float(((got.double() - want).norm() / want.norm()).detach())

    each = {name: error(a, b) for name, a, b in zip(narrow, found, wanted, strict=True)}
    return error(y, want), each


def milliseconds(function):
    from triton.testing import do_bench

    return do_bench(function, warmup=15, rep=80, return_mode="median")


def measure(run, inputs):
    """(forward ms, both ms, peak bytes)."""
    inputs = leaves(inputs)
    with torch.no_grad():
        y = run(**inputs)
        seed = normal(*y.shape, dtype=y.dtype, seed=7)
        del y
        forward = milliseconds(lambda: run(**inputs))
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    gradients(run, inputs, seed)
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated() - before
    return forward, milliseconds(lambda: gradients(run, inputs, seed)), peak


def rows(case, make, ours, peers, checks_only):
    """One row for each who is there, or what kept it from running."""
    small, whole = make(B=1, T=CHECK_T), None if checks_only else make()
    for who, run in {"postx": ours, **peers}.items():
        row = {"case": case, "who": who}
        if not checks_only:  # a peer that tunes itself at its first call does so at the size that is timed
            with contextlib.suppress(Exception):
                inputs = leaves(whole)
                y = run(**inputs)
                torch.autograd.grad(y.float().square().sum(), list(inputs.values()))
            inputs = y = None
        try:
            row["error_forward"], each = errors(run, ours, small)
            row["error"], row["errors"] = max(row["error_forward"], *each.values()), each
        except Exception as reason:  # a peer that refuses its backward may still go forward
            row["refused"] = f"{type(reason).__name__}: {reason}"[:300]
        if checks_only:
            yield row
            continue
        try:
            with torch.no_grad():
                run(**small)
            if "refused" in row:
                row["forward_ms"] = milliseconds(lambda run=run: run(**whole))
            else:
                row["forward_ms"], row["both_ms"], row["peak_bytes"] = measure(run, whole)
        except Exception as reason:
            row["refused"] = f"{type(reason).__name__}: {reason}"[:300]
        torch.cuda.empty_cache()
        yield row


def show(row):
    numbers = [f"{row[key]:.3g}" if key in row else "-" for key in ("forward_ms", "both_ms", "error_forward", "error")]
    each = {name: f"{value:.1e}" for name, value in row.get("errors", {}).items()}
    print(f"{row['case']:36}{row['who']:24}", *(f"{x:>9}" for x in numbers),
          f"{row.get('peak_bytes', 0) / 2**20:9.0f} MiB", each, row.get("refused", ""), flush=True)  # fmt: skip


def main():
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", help="parts of the cases' names")
    parser.add_argument("--checks", action="store_true", help="only what comes before the timing")
    parser.add_argument("--long", action="store_true", help="also the long sequences")
    parser.add_argument("--json", type=Path, help="write the results there")
    options = parser.parse_args()
    import triton

    versions = {"torch": torch.__version__, "triton": triton.__version__}
    if importlib.util.find_spec("fla"):
        versions["fla"] = importlib.import_module("fla").__version__
    result = {
        "device": torch.cuda.get_device_name(), "versions": versions, "date": str(datetime.date.today()), "rows": []
    }  # fmt: skip
    for case, what in {**CASES, **(LONG if options.long else {})}.items():
        if options.only and not any(part in case for part in options.only):
            continue
        for row in rows(case, *what, options.checks):
            result["rows"].append(row)
            show(row)
            if options.json:
                options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
