"""Causal softmax attention of one Llama-2-7B layer on a GPU: time and peak memory, stored scores against tiles.

    python experiments/attention_gpu.py [FILE]     default: experiments/results/attention_gpu.json

H = 32 heads of 128, batch 1, bfloat16, forward only, random normal inputs. "stored": the textbook's table of scores
with a mask. "tiles": torch's fused kernels (flash and cuDNN; the faster of the two). Medians of CUDA events. A length
is left out of a form when it does not fit in memory. Chapter 1 draws the file.
"""

import datetime
import json
import statistics
import sys
from functools import partial
from pathlib import Path

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

H, K, SEED = 32, 128, 0
LENGTHS = [2**k for k in range(11, 19)]
BACKENDS = {"flash": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION}


def stored(q, k, v):
    """The textbook: a T x T table for every head, in memory."""
    scores = (q @ k.mT) * K**-0.5
    hidden = torch.ones(q.shape[-2], q.shape[-2], dtype=torch.bool, device=q.device).triu(1)
    return scores.masked_fill_(hidden, -torch.inf).softmax(-1) @ v


def fused(backend, q, k, v):
    """One of torch's fused kernels, and no other."""
    with sdpa_kernel(backend):
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)


def measure(run, repeats):
    """(median milliseconds, peak bytes beyond what was held before), or None when memory runs out."""
    torch.cuda.empty_cache()
    held = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    try:
        for _ in range(3):
            run()
    except torch.cuda.OutOfMemoryError:
        return None
    peak = torch.cuda.max_memory_allocated() - held
    times = []
    for _ in range(repeats):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        run()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end))
    return round(statistics.median(times), 4), peak


def main(path):
    rng = torch.Generator("cuda").manual_seed(SEED)
    rows = []
    for T in LENGTHS:
        z = [torch.randn(1, H, T, K, generator=rng, device="cuda", dtype=torch.bfloat16) for _ in range(3)]
        runs = {name: partial(fused, backend, *z) for name, backend in BACKENDS.items()}
        if not rows:  # the forms must agree before their times mean anything
            exact = stored(*(x.float() for x in z))
            for name, run in runs.items():
                gap = (run().float() - exact).abs().max().item()
                if gap > 0.02:
                    raise RuntimeError(f"{name} differs from the stored form by {gap}")
        runs["stored"] = partial(stored, *z)
        for name, run in runs.items():
            result = measure(run, repeats=20 if T <= 32768 else 5)
            if result:
                rows.append({"form": name, "tokens": T, "ms": result[0], "peak_bytes": result[1]})
                print(rows[-1], flush=True)
    record = {
        "what": __doc__.splitlines()[0], "seed": SEED, "heads": H, "width": K, "dtype": "bfloat16",
        "device": torch.cuda.get_device_name(), "torch": torch.__version__, "cuda": torch.version.cuda,
        "date": datetime.date.today().isoformat(), "rows": rows,
    }
    Path(path).write_text(json.dumps(record, indent=1) + "\n", encoding="utf8")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent / "results" / "attention_gpu.json")
