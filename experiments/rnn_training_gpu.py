"""A training step over 16,384 tokens on a GPU, cut into texts of T: an LSTM against attention, RWKV-4 and RetNet.

    python experiments/rnn_training_gpu.py [FILE]     default: experiments/results/rnn_training_gpu.json

Width 1,024 and 8 D^2 weights each: one LSTM, one RetNet layer, two of RWKV-4's time mixing, two of attention. Forward
and backward without an optimizer; float16 weights and inputs, states in float32 (TF32 products). The LSTM is cuDNN's
kernel and attention torch's fused one. RWKV-4 (`parallel`) and RetNet (`chunked`) are this package's plain torch,
without a kernel of their own. Medians of CUDA events. Chapter 7 draws the file.
"""

import datetime
import json
import statistics
import sys
from functools import partial
from pathlib import Path
from unittest import mock

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from postx.mixers import attention, retnet, rwkv4

D, TOKENS, SEED = 1024, 16384, 0
LENGTHS = [2**k for k in range(7, 15)]
LAYERS = {
    "LSTM": lambda: [nn.LSTM(D, D, batch_first=True, bias=False)],
    "attention": lambda: [attention.Layer(D, H=8) for _ in range(2)],
    "RWKV-4": lambda: [rwkv4.Layer(D) for _ in range(2)],
    "RetNet": lambda: [retnet.Layer(D)],
}


def fused_attention(q, k, v, *, S, rope, **_):
    """What attention's Layer calls, with torch's fused kernel in its place; no cache is kept."""
    place = torch.arange(q.shape[1], device=q.device).expand(len(q), -1)
    q, k = rope.rotate(q, place).to(v.dtype), rope.rotate(k, place).to(v.dtype)
    y = scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v)), is_causal=True)
    return y.transpose(1, 2), None


def forward(layers, x):
    """The output of one layer after the other."""
    for layer in layers:
        x, _ = layer(x)
    return x


def train_step(layers, x):
    """One forward and backward pass."""
    forward(layers, x).float().square().mean().backward()
    layers.zero_grad(set_to_none=True)


def milliseconds(run, repeats):
    """The median of `repeats` runs, after two that do not count."""
    times = []
    for i in range(repeats + 2):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        run()
        end.record()
        torch.cuda.synchronize()
        if i > 1:
            times.append(start.elapsed_time(end))
    return round(statistics.median(times), 3)


def main(path):
    torch.manual_seed(SEED)
    torch.backends.cuda.matmul.allow_tf32 = True
    stacks = {name: nn.ModuleList(make()).cuda().half() for name, make in LAYERS.items()}
    weights = {name: sum(p.numel() for p in stack.parameters()) for name, stack in stacks.items()}
    x = torch.randn(2, 96, D, device="cuda", dtype=torch.float16)
    with torch.no_grad():
        held = {name: forward(stack, x) for name, stack in stacks.items()}
    rows = []
    with (
        mock.patch.object(attention, "chunked", fused_attention),
        mock.patch.object(rwkv4, "recurrent", rwkv4.parallel),
        mock.patch.object(retnet, "recurrent", partial(retnet.chunked, chunk=256)),
    ):
        for name, stack in stacks.items():  # the forms timed here against those that the tests hold
            with torch.no_grad():
                gap = ((forward(stack, x) - held[name]).abs().max() / held[name].abs().max()).item()
            if gap > 0.02:
                raise RuntimeError(f"{name}: the form timed here differs from the tested one by {gap}")
        for T in LENGTHS:
            x = torch.randn(TOKENS // T, T, D, device="cuda", dtype=torch.float16)
            for name, stack in stacks.items():
                torch.cuda.reset_peak_memory_stats()
                ms = milliseconds(partial(train_step, stack, x), 10 if T <= 4096 else 5)
                peak = torch.cuda.max_memory_allocated()
                rows.append({"layer": name, "tokens_in_a_text": T, "ms": ms, "peak_bytes": peak})
                print(rows[-1], flush=True)
    record = {
        "what": __doc__.splitlines()[0], "seed": SEED, "width": D, "tokens": TOKENS, "weights": weights,
        "dtype": "float16", "device": torch.cuda.get_device_name(), "torch": torch.__version__,
        "cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version(),
        "date": datetime.date.today().isoformat(), "rows": rows,
    }  # fmt: skip
    Path(path).write_text(json.dumps(record, indent=1) + "\n", encoding="utf8")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent / "results" / "rnn_training_gpu.json")
