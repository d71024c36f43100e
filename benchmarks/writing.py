"""Writing, a token at a time: python -m benchmarks.writing [--json FILE] [--seconds S] [--budget S].

On a CPU the kept models write bytes with one thread: `generate`, beside a loop of `LM.forward` (what it did before) and
the same with weights that need all of float32. On a GPU models of 24 to 48 layers with random weights in bfloat16 write
from a context that is set, not read: caches are filled with noise, recurrent states are what a few tokens leave (they
are as long after a million). Each token is one replay of a captured step and a greedy choice; beside it the same step
without capture, and transformers' Llama and Mamba-2 of the same shape, called as its `generate` does.

tokens_per_s counts those of all rows. `error` is the largest difference from the logits of `LM.forward` that writes
into nothing, over the largest logit, on eight tokens; None where its copies of the cache do not fit, or a peer's
weights are others. bytes_of_state is what the model keeps of the context.
"""

import argparse
import datetime
import importlib.util
import json
import platform
import statistics
import time
from importlib import metadata
from pathlib import Path

import torch

from postx.mixers import attention
from postx.models import checkpoints, graph, lm, writer
from postx.models.lm import LM, sample, size
from postx.shapes import trusted

D, Y, H, G = 1024, 32000, 16, 4
SHAPES = {  # name: pattern, options
    "attention": ("A" * 24, {"A": {"H": H, "G": G}}),
    "ssd": ("S" * 48, {}),
    "gated deltanet": ("G" * 24, {"G": {"H": 16, "G": 16, "conv_size": 4}}),
    "hybrid": ("SSSA" * 9, {"A": {"H": H, "G": G}}),
}
CASES = [(B, context) for context in (1024, 131072, 1048576, 16384) for B in (1, 64)]  # rows, tokens before
MOST = 60e9  # bytes of state that are tried: a graph copies them


def clock(step, ids, seconds, device):
    """Tokens a second of ids = step(ids), the median of stretches of 4 calls."""
    for _ in range(2):
        ids = step(ids)
    times, began = [], time.perf_counter()
    while len(times) < 3 or time.perf_counter() - began < seconds:
        start = time.perf_counter()
        for _ in range(4):
            ids = step(ids)
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
        if len(times) == 200:
            break
    return 4 * len(ids) / statistics.median(times)


def row(model, who, context, batch, dtype, **more):
    found = {"model": model, "who": who, "context": context, "batch": batch, "dtype": dtype} | more
    print(json.dumps(found), flush=True)
    return found


@torch.no_grad()
def difference(fast, model, S, B, device):
    """The largest difference of fast(ids_B) from the definition, over the largest logit, on eight tokens."""
    worst, draw = 0.0, torch.Generator().manual_seed(1)
    for _ in range(8):
        ids_B = torch.randint(model.embed.num_embeddings, (B,), generator=draw).to(device)
        want, S = model(ids_B[:, None], S)
        worst = max(worst, float((fast(ids_B).float() - want[:, -1].float()).abs().max() / want.abs().max()))
    return worst


# ---------------------------------------------------------------- CPU


def cpu(seconds, only):
    rows, prompt = [], torch.randint(256, (1, 1024), generator=torch.Generator().manual_seed(0))
    for name in ("attention", "hybrid", "ssd", "ternary"):
        for dtype in ("float32, stored in 16 bits or less", "float32"):
            if only not in (None, name) or (name == "ternary" and dtype == "float32"):
                continue
            model = checkpoints.load(name)
            if dtype == "float32":
                with torch.no_grad():
                    for p in model.parameters():
                        p.mul_(1 + 1e-4)  # all 32 bits count
            for T in (64, 1024):
                rows += cpu_rows(name, model, dtype, prompt[:, :T], seconds)
    return rows


@torch.no_grad()
def cpu_rows(name, model, dtype, prompt, seconds):
    S, state = model(prompt)[1], model(prompt)[1]
    fast = writer.Writer(model, S)
    common = name, prompt.shape[1], 1, dtype
    error = difference(fast, model, S, 1, "cpu")

    def generated(n):
        start = time.perf_counter()
        lm.generate(model, prompt, n, generator=torch.Generator().manual_seed(0))
        return time.perf_counter() - start

    times, began = [], time.perf_counter()
    while len(times) < 3 or time.perf_counter() - began < seconds:
        times.append(generated(257) - generated(1))  # without reading the prompt, with laying out the weights
    rate = 256 / statistics.median(times)

    def step(ids_B):
        nonlocal state
        with trusted():
            logits, state = model(ids_B[:, None], state, inplace=True)
        return sample(logits[:, -1])

    before = clock(step, prompt[:, -1], seconds, "cpu")
    state_bytes = {"bytes_of_state": size(S)}
    return [
        row(common[0], "generate", *common[1:], tokens_per_s=rate, error=error, **state_bytes),
        row(common[0], "LM.forward", *common[1:], tokens_per_s=before, error=0.0, **state_bytes),
    ]


# ---------------------------------------------------------------- GPU


@torch.no_grad()
def aged(model, B, context):
    """A state as after `context` tokens: of eight random tokens, with caches of noise as long as the context."""
    S = model(torch.randint(Y, (B, 8), device="cuda"))[1]

    def age(part, S):
        if not isinstance(part, attention.Layer):
            return S
        slots = (torch.randn(B, context, *x.shape[2:], dtype=x.dtype, device="cuda") for x in S[:2])
        return *slots, torch.full_like(S[2], context)

    return tuple(
        tuple(age(part, S_i) for part, S_i in zip([*block.mix, block.mlp], S_B, strict=False))
        for block, S_B in zip(model.blocks, S, strict=True)
    )


def cache_bytes(model, B, context):
    heads = [part.heads for block in model.blocks for part in block.mix if isinstance(part, attention.Layer)]
    return sum(2 * B * context * (g[0] * g[1] + v[0] * v[1]) for _, g, v in heads)


def gpu(seconds, only, budget):
    """The cases in the order of what they tell, as far as the budget goes."""
    rows, models, began = [], {}, time.perf_counter()
    for B, context in CASES:
        for name, (pattern, options) in SHAPES.items():
            if only not in (None, name) or time.perf_counter() - began > budget:
                continue
            if name not in models:
                torch.manual_seed(0)
                with torch.device("cuda"):
                    models[name] = LM(pattern, D, Y, options=options).bfloat16().eval(), Peer(name)
            model, peer = models[name]
            if (need := cache_bytes(model, B, context)) > MOST:
                rows.append(row(name, "graph", context, B, "bfloat16", missing=f"a cache of {need / 1e9:.0f} GB"))
            elif need or context in (1024, 1048576):  # without a cache the middle is as the ends
                rows += gpu_rows(name, model, B, context, need, seconds)
                rows += peer.rows(B, context, seconds)
            torch.cuda.empty_cache()
    return rows


@torch.no_grad()
def gpu_rows(name, model, B, context, need, seconds):
    S, common = aged(model, B, context), (context, B, "bfloat16")
    held = {"bytes_of_state": size(S)}
    fast = graph.Graph(model, S, 2048)
    error = difference(fast, model, S, B, "cuda") if need < 1e9 else None
    ids = torch.zeros(B, dtype=torch.int64, device="cuda")
    rate = clock(lambda ids_B: sample(fast(ids_B), 0.0), ids, seconds, "cuda")
    found = [row(name, "graph", *common, tokens_per_s=rate, error=error, **held)]
    state = fast.state()

    def step(ids_B):
        nonlocal state
        with trusted():
            logits, state = model(ids_B[:, None], state, inplace=True)
        return sample(logits[:, -1], 0.0)

    rate = clock(step, ids, seconds / 2, "cuda")
    return [*found, row(name, "LM.forward", *common, tokens_per_s=rate, error=None, **held)]


class Peer:
    """transformers' model of the same shape, with random weights and its own cache."""

    def __init__(self, name):
        self.name, self.model = name, None
        if name not in ("attention", "ssd") or importlib.util.find_spec("transformers") is None:
            return
        import transformers

        if name == "attention":
            config = transformers.LlamaConfig(
                vocab_size=Y, hidden_size=D, num_hidden_layers=24, num_attention_heads=H, num_key_value_heads=G,
                intermediate_size=-(-8 * D // 24) * 8, tie_word_embeddings=True,
                max_position_embeddings=2**21,
            )  # fmt: skip
        else:
            config = transformers.Mamba2Config(
                vocab_size=Y, hidden_size=D, num_hidden_layers=48, state_size=128, num_heads=2 * D // 64, head_dim=64,
                n_groups=1, chunk_size=8, tie_word_embeddings=True,
            )  # fmt: skip
        build = transformers.LlamaForCausalLM if name == "attention" else transformers.Mamba2ForCausalLM
        with torch.device("cuda"):
            self.model = build(config).bfloat16().eval()

    @torch.no_grad()
    def rows(self, B, context, seconds):
        if self.model is None:
            return []
        from transformers import DynamicCache, StaticCache

        model, found = self.model, []
        for kind in ("DynamicCache", "StaticCache") if self.name == "attention" else ("DynamicCache",):
            who, common = f"transformers, {kind}", (context, B, "bfloat16")
            try:
                if self.name == "attention":
                    cache = DynamicCache() if kind == "DynamicCache" else StaticCache(model.config, context + 1024)
                    for layer in range(24):
                        z = (torch.randn(B, G, context, D // H, dtype=torch.bfloat16, device="cuda") for _ in range(2))
                        cache.update(*z, layer)
                    keep = {"past_key_values": cache}
                else:
                    ids = torch.randint(Y, (B, 8), device="cuda")
                    keep = {"cache_params": model(ids, use_cache=True).cache_params}

                def step(ids_B):
                    return model(ids_B[:, None], use_cache=True, **keep).logits[:, -1].argmax(-1)  # noqa: B023

                ids = torch.zeros(B, dtype=torch.int64, device="cuda")
                rate = clock(step, ids, seconds / 2, "cuda")
                found.append(row(self.name, who, *common, tokens_per_s=rate, error=None))
            except (RuntimeError, TypeError, ValueError) as error:  # no memory, or another version's arguments
                found.append(row(self.name, who, *common, missing=f"{type(error).__name__}: {str(error)[:100]}"))
            keep = cache = None
            torch.cuda.empty_cache()
        return found


def main():
    parser = argparse.ArgumentParser(prog="python -m benchmarks.writing", description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seconds", type=float, default=2.0, help="for each time")
    parser.add_argument("--budget", type=float, default=3600, help="seconds on a GPU, after which no case begins")
    parser.add_argument("--only", help="one model")
    parser.add_argument("--json", type=Path, help="write the results there")
    options = parser.parse_args()
    if options.device == "cpu":
        torch.set_num_threads(1)
    if options.device == "cpu":
        rows = cpu(options.seconds, options.only)
    else:
        rows = gpu(options.seconds, options.only, options.budget)
    names = ("torch", "numba", "triton", "transformers")
    versions = {name: metadata.version(name) if importlib.util.find_spec(name) else "not installed" for name in names}
    device = torch.cuda.get_device_name() if options.device == "cuda" else f"{platform.machine()}, one thread"
    if options.json is not None:
        record = {"device": device, "versions": versions, "date": str(datetime.date.today()), "rows": rows}
        options.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf8")


if __name__ == "__main__":
    main()
