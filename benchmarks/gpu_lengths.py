"""How the mixers of a GPU grow with length: python -m benchmarks.gpu_lengths [--json FILE] [--only PART ...].

Parts, all in bfloat16:
  equal     batch 1 and D = 2048, at equal parameters: one attention block (32 heads of 64, and a gated MLP: 12 D^2
            weights) beside two Mamba-2 and two Mamba blocks (6 D^2 each). "mixing" is the recurrence or the softmax
            alone, "blocks" the whole.
  lstm      torch's LSTM (cuDNN), 1 layer of 2048 cells, batch 8, at every length: the control that shows what a loop
            over time costs that cannot be cut.
  tables    linear attention, GLA and DeltaNet, 32,768 tokens in rows of T.
  chunks    SSD with chunks of 16 to 256 tokens: plain torch, and mamba_ssm's kernels where they are there.
  fft       a causal convolution as long as its input by FFT (float32), D = 2048, 32,768 tokens in rows of T.

A row has T, forward_ms, both_ms, peak_bytes, and floor_ms as in `benchmarks.gpu`; what does not fit in memory, or what
cuDNN refuses, has the reason as "refused" instead. Below about 4,096 tokens the times are those of launching kernels.
"""

import argparse
import json
from functools import partial
from pathlib import Path

import torch
from torch import nn

from benchmarks import gpu, gpu_cases
from benchmarks.gpu_cases import BF16, normal
from postx.mixers import attention, mamba, ssd
from postx.models.nn import MLP, RMSNorm

LENGTHS = [2**n for n in range(8, 18)]
D, TOKENS = 2048, 32768


class Residual(nn.Module):
    """x + f(norm(x)), one after the other."""

    def __init__(self, *parts):
        super().__init__()
        self.parts = nn.ModuleList(nn.ModuleList([RMSNorm(D), part]) for part in parts)

    def forward(self, x_BTD):
        for norm, part in self.parts:
            y = part(norm(x_BTD))
            x_BTD = x_BTD + (y[0] if isinstance(y, tuple) else y)
        return x_BTD


BLOCKS = {
    "attention and MLP": lambda: Residual(attention.Layer(D, H=32), MLP(D, 4 * D * 2 // 3)),
    "two Mamba-2": lambda: Residual(*(ssd.Layer(D) for _ in range(2))),
    "two Mamba": lambda: Residual(*(mamba.Layer(D) for _ in range(2))),
}


def block(make):
    """(inputs of T, run): the weights count as inputs, so that their gradients are taken too."""
    torch.manual_seed(0)
    with torch.device(gpu_cases.DEVICE):
        model = make().to(BF16)
    weights = {name.replace(".", "_"): p for name, p in model.named_parameters()}
    names = dict(zip(weights, dict(model.named_parameters()), strict=True))

    def inputs(T):
        return {"x": normal(1, T, D), **{name: p.detach() for name, p in weights.items()}}

    def run(x, **rest):
        return torch.func.functional_call(model, {names[name]: p for name, p in rest.items()}, (x,))

    return inputs, run


def twice(run, **x):
    """Two blocks, each with this recurrence: the second takes the first's result."""
    first = next(name for name in ("v", "x", "u") if name in x)
    return run(**{**x, first: run(**x)})


def equal():
    yield "mixing", "attention, H=32 D=64", partial(gpu_cases.causal, B=1, H=32), gpu_cases.our_attention
    yield "mixing", "two SSD, H=64 P=64 N=128", partial(gpu_cases.ssd, B=1), partial(twice, gpu_cases.our_ssd)
    yield ("mixing", "two selective scans, D=4096 N=16", partial(gpu_cases.selective, B=1, D=2 * D),
           partial(twice, gpu_cases.our_selective))  # fmt: skip
    for who, make in BLOCKS.items():
        yield "blocks", who, *block(make)


def lstm():
    with torch.device(gpu_cases.DEVICE):
        cell = nn.LSTM(D, D, batch_first=True).to(BF16)
    yield "lstm", "torch's LSTM, batch 8", lambda T: {"x": normal(8, T, D)}, lambda x: cell(x)[0]


def tables():
    for who, make, run in (
        ("linear", gpu_cases.linear, gpu_cases.our_decay), ("GLA", gpu_cases.per_key, gpu_cases.our_decay),
        ("DeltaNet", gpu_cases.deltanet, gpu_cases.our_delta),
    ):  # fmt: skip
        yield "tables", f"{who}, H=16 K=V=128", lambda T, make=make: make(B=max(1, TOKENS // T), T=T), run


def chunked_ssd(chunk, **x):
    return ssd.chunked(*gpu_cases.mamba2(**x), chunk=chunk)[0]


def convolve(u, response):
    """u [B, D, T] with a response [D, T], past tokens only."""
    n = 2 * u.shape[-1]
    product = torch.fft.rfft(u.float(), n) * torch.fft.rfft(response, n)
    return torch.fft.irfft(product, n)[..., : u.shape[-1]].to(u.dtype)


def fft():
    def make(T):
        return {"u": normal(max(1, TOKENS // T), D, T), "response": normal(D, T, dtype=torch.float32, seed=1) / T}

    yield "fft", "FFT, D=2048", make, convolve


def row(part, who, inputs, run, **more):
    found = {"part": part, "who": who, **more}
    try:
        found |= gpu.measure(run, inputs())
    except torch.cuda.OutOfMemoryError:
        found["refused"] = "out of memory"
    except RuntimeError as reason:  # cuDNN's LSTM ends between 32,768 and 65,536 tokens
        if "CUDNN_STATUS_NOT_SUPPORTED" not in str(reason):
            raise
        found["refused"] = str(reason)
    torch.cuda.empty_cache()
    return found


def chunk_rows():
    """SSD, B=8 T=4096, by the chunk."""
    for chunk in (16, 32, 64, 128, 256):
        runs = {"chunked torch": chunked_ssd, "mamba_ssm": gpu_cases.mamba_ssm}
        for who, run in runs.items():
            if who == "mamba_ssm" and chunk < 64:
                continue
            try:
                yield row("chunks", who, gpu_cases.ssd, partial(run, chunk), chunk=chunk, T=4096)
            except ModuleNotFoundError as missing:
                print(f"{who}: {missing}")


PARTS = {"equal": equal, "tables": tables, "fft": fft, "lstm": lstm}


def all_rows(only):
    if not only or "chunks" in only:
        yield from chunk_rows()
    for name, part in PARTS.items():
        if only and name not in only:
            continue
        for kind, who, make, run in part():
            for T in LENGTHS if name != "tables" else LENGTHS[1:]:
                yield row(kind, who, partial(make, T=T), run, T=T)


def main():
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_lengths", description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", choices=[*PARTS, "chunks"])
    parser.add_argument("--json", type=Path, help="write the results there")
    options = parser.parse_args()
    result = {**gpu.header(), "rows": []}
    for found in all_rows(options.only):
        result["rows"].append(found)
        numbers = " ".join(f"{found[key]:9.3f}" for key in ("forward_ms", "both_ms", "floor_ms") if key in found)
        print(f"{found['part']:8}{found['who']:36}{found['T']:8}{found.get('chunk', ''):5}{numbers}",
              found.get("refused", f"{found.get('peak_bytes', 0) / 2**20:8.0f} MiB"), flush=True)  # fmt: skip
        if options.json:
            options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
