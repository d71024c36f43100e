"""Quantization on a CPU beside plain ways to the same result, and beside what the machine's memory can do.

    python -m benchmarks --only quant [--small] [--threads N] [--json FILE]

All of a table is measured in one run, medians. Ratios carry over to other machines, milliseconds do not; a machine that
does other work slows what computes more than what waits for memory, so the load is printed with the numbers.
"""

import datetime
import os
import platform

import numba
import numpy as np
import scipy
import scipy.linalg
import torch

from benchmarks.measure import RESULTS, compare, seconds
from postx.quant import _pack, gptq, rotate, ternary, turbo, uniform

# ---------------------------------------------------------------- GPTQ


def plain_gptq(W, H, bits, group, block=128, damp=0.01):
    """Frantar et al. (2023), algorithm 1, column by column in torch, written apart from postx: the weight it leaves."""
    W, H = W.clone(), H.clone()
    n, top = W.shape[1], 2**bits - 1
    H.diagonal().add_(damp * H.diagonal().mean())
    inverse = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(H)), upper=True)
    out = torch.empty_like(W)
    for start in range(0, n, block):
        stop = min(start + block, n)
        errors = torch.zeros(W.shape[0], stop - start)
        for i in range(start, stop):
            if i % group == 0:
                ahead = W[:, i : i + group]
                low, high = ahead.amin(1).clamp(max=0), ahead.amax(1).clamp(min=0)
                scale = ((high - low) / top).half().float()
                zero = (-low / scale).round().clamp(0, top)
            column = W[:, i]
            out[:, i] = scale * (((column / scale).round() + zero).clamp(0, top) - zero)
            errors[:, i - start] = (column - out[:, i]) / inverse[i, i]
            W[:, i:stop] -= errors[:, i - start, None] * inverse[i, i:stop]
        W[:, stop:] -= errors @ inverse[start:stop, stop:]
    return out


def feedback(n, bits=4, group=128):
    W, x = torch.randn(n, n), torch.randn(2 * n, n) * torch.linspace(0.5, 2, n)
    x[:, 1:] += 0.5 * x[:, :-1]  # neighbours that are alike: something to repair
    H = x.T @ x / len(x)
    compare(
        f"GPTQ, {n} x {n}, {bits} bits, groups of {group}, H given",
        {
            "postx": lambda: gptq.quantize(W, bits, H_II=H, group=group),
            "plain torch": lambda: plain_gptq(W, H, bits, group),
            "its three factorizations alone": lambda: gptq.factor(H, 0.01, False),
            "rounding to nearest": lambda: uniform.quantize(W, bits, group=group),
        },
    )
    found = {
        "postx": gptq.quantize(W, bits, H_II=H, group=group).dequantize(),
        "plain": plain_gptq(W, H, bits, group),
    }
    lost = {name: float((((W - Q) @ H) * (W - Q)).sum() / ((W @ H) * W).sum()) for name, Q in found.items()}
    print(f"error of the output: {lost['postx']:.6f}, plain {lost['plain']:.6f}")
    RESULTS.append({"table": f"GPTQ, {n} x {n}, error of the output", **lost})


# ---------------------------------------------------------------- Hadamard


def hadamard(n, rows=512):
    x = torch.randn(rows, n)
    dense = torch.from_numpy(scipy.linalg.hadamard(n).astype(np.float32) / n**0.5)
    assert torch.allclose(rotate.hadamard(x), x @ dense, atol=1e-3)
    a, b = x.numpy(), dense.numpy()
    compare(
        f"Hadamard transform, {rows} rows of {n}",
        {
            "postx": lambda: rotate.hadamard(x),
            "torch, dense matrix": lambda: x @ dense,
            "scipy's matrix, numpy's BLAS": lambda: a @ b,
            "copy of the rows": x.clone,
        },
        lambda name, time_: f"{4 * 2 * x.numel() / time_ / 1e9:.1f} GB/s" if "copy" in name else "",
    )


# ---------------------------------------------------------------- packing


def packing(n):
    codes = torch.randint(0, 256, (n, n), dtype=torch.uint8)
    trits = torch.randint(-1, 2, (n, n), dtype=torch.int8)
    kept = {bits: _pack.pack(codes >> (8 - bits), bits) for bits in (2, 3, 4)} | {
        "trits": _pack.pack_trits(trits)
    }
    for bits, packed in kept.items():
        moved = torch.empty((codes.numel() + packed.numel()) // 2, dtype=torch.uint8)
        there, some = torch.empty_like(moved), codes >> (8 - bits) if bits != "trits" else trits
        does = (_pack.pack_trits, _pack.unpack_trits) if bits == "trits" else (
            lambda x, bits=bits: _pack.pack(x, bits), lambda p, width, bits=bits: _pack.unpack(p, bits, width)
        )  # fmt: skip
        compare(
            f"{n} x {n} codes of {bits} bits" if bits != "trits" else f"{n} x {n} trits",
            {
                "copy of as many bytes": lambda: there.copy_(moved),  # noqa: B023, called at once
                "pack, with its check": lambda: does[0](some),  # noqa: B023
                "unpack": lambda: does[1](packed, n),  # noqa: B023
            },
            lambda name, time_: f"{2 * moved.numel() / time_ / 1e9:.1f} GB/s read and written",  # noqa: B023
        )


# ---------------------------------------------------------------- one vector at a time


def vectors(n):
    W, x = torch.randn(n, n), torch.randn(n)
    half = W.bfloat16()
    packed = {
        "4 bits, a scale a row": uniform.quantize(W, 4),
        "4 bits, groups of 128": uniform.quantize(W, 4, group=128),
        "trits": ternary.quantize(W),
    }
    peers = {"torch float32": lambda: W @ x, "torch bfloat16": lambda: half @ x.bfloat16()}
    peers |= {name: lambda q=q: q.matvec(x) for name, q in packed.items()}
    peers["4 bits, unpacked first"] = lambda: packed["4 bits, a scale a row"].dequantize() @ x
    bytes_ = {"torch float32": 4 * n * n, "torch bfloat16": 2 * n * n} | {
        k: q.nbytes for k, q in packed.items()
    }

    def note(name, time_):
        return (
            f"{bytes_[name] / 1e6:6.1f} MB, {bytes_[name] / time_ / 1e9:.1f} GB/s" if name in bytes_ else ""
        )

    compare(f"matrix times vector, {n} x {n}", peers, note)


# ---------------------------------------------------------------- TurboQuant


def encoding(count, d=128):
    x = torch.randn(count, d)
    turn = rotate.orthogonal(d, 0).float()

    def note(_, time_):
        return f"{count / time_ / 1e6:.2f} million vectors a second, {4 * x.numel() / time_ / 1e9:.2f} GB/s of float32"

    ways = {
        "the dense rotation alone": lambda: x @ turn,
        "mse, dense rotation": lambda: turbo.quantize(x, 4),
        "mse, Hadamard rotation": lambda: turbo.quantize(x, 4, turn="hadamard"),
        "prod, dense rotation": lambda: turbo.quantize(x, 4, form="prod"),
        "round to nearest": lambda: uniform.quantize(x, 4),
    }
    compare(f"TurboQuant, {count} vectors of {d}, 4 bits, encoding", ways, note)
    q = turbo.quantize(x, 4)
    compare(
        f"TurboQuant, {count} vectors of {d}, 4 bits, decoding", {"mse, dense rotation": q.dequantize}, note
    )


def main(small=False):
    torch.manual_seed(0)
    load = os.getloadavg() if hasattr(os, "getloadavg") else None
    about = {
        "table": "quantization", "threads": numba.get_num_threads(), "cores": os.cpu_count(), "load before": load,
        "date": datetime.date.today().isoformat(), "machine": platform.machine(), "processor": processor(),
        "torch": torch.__version__, "numba": numba.__version__, "numpy": np.__version__, "scipy": scipy.__version__,
    }  # fmt: skip
    print(", ".join(f"{name} {value}" for name, value in about.items() if name != "table"))
    RESULTS.append(about)
    a = torch.empty(1 << 25)
    b = torch.empty_like(a)
    about["copy GB/s"] = 8 * a.numel() / seconds(lambda: b.copy_(a)) / 1e9
    print(f"copy of 128 MiB: {about['copy GB/s']:.1f} GB/s read and written")
    n = 1024 if small else 4096
    vectors(n)
    if not small:
        vectors(2 * n)
    packing(n)
    hadamard(n)
    encoding(4096 if small else 32768)
    feedback(n)
    about["load after"] = os.getloadavg() if hasattr(os, "getloadavg") else None
    print(f"\nload before {load}, after {about['load after']}")


def processor():
    """The processor's name where the system says it."""
    try:
        with open("/proc/cpuinfo", encoding="utf8") as file:
            return next(line.split(":")[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()
