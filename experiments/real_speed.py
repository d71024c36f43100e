"""How fast SmolLM2-135M writes on one thread of a CPU, with its weights as they are and in fewer bits.

    python -m experiments.real_speed --out FILE [--repeats 9]

After 64 tokens of the book's own prose (real_prose.txt) 32 more are read one by one, each time from the same state; all
kinds take turns, so that a slow minute hits them alike. A line a kind: the median, least and most of its repetitions in
tokens a second, after one that is not counted, the bytes of all weights that a token reads, and how many processes
wanted the machine's cores in the five minutes before (load_average).

kinds: float32 and bfloat16, and 4, 3 and 2 bits with a scale for 128 weights, each layer a call (of torch, or of
`Quantized.product`); the same but bfloat16 by `postx.models.writer`, two calls a layer of the model; and llama.cpp on
the very file (its own clock, its own text: it writes what is likeliest). The embedding, which is the head as well,
stays in float32 with ours; the file has it in 8 bits (Q8_0).
llama.cpp comes with the package xllamacpp, which has it compiled; llama-cpp-python was still compiling after 24 minutes
of two busy cores.
"""

import argparse
import copy
import datetime
import json
import os
import statistics
import time
from pathlib import Path

import torch

from experiments.real_models import Models
from postx import scans
from postx.models import quantized, writer
from postx.models.nn import Packed
from postx.quant import load
from postx.shapes import map_state, trusted

READ, WRITTEN, GROUP = 64, 32, 128
KINDS = ("float32", "bfloat16", "4 bits", "3 bits", "2 bits", *(f"{kind}, writer" for kind in
         ("float32", "4 bits", "3 bits", "2 bits")), "llama.cpp")  # fmt: skip


def packed(net, bits):
    """The network with every linear layer of its blocks in so many bits: in place."""
    for name, layer in quantized.linears(net).items():
        net.set_submodule(name, Packed(load("uniform").quantize(layer.weight, bits, group=GROUP), layer.bias))
    return net


def weights(net):
    """Bytes of what one token reads."""
    own = sum(p.numel() * p.element_size() for p in net.parameters())
    return own + sum(m.q.nbytes for m in net.modules() if isinstance(m, Packed))


def by_calls(net, S, ids):
    """Read ids one by one; the last logits."""
    S = map_state(torch.clone, S)
    for i in ids:
        with trusted():
            logits, S = net(i.view(1, 1), S, inplace=True)
    return logits[0, -1]


class Kind:
    """A way to read: `run()` reads the 32 tokens once and gives the seconds it took."""

    def __init__(self, name, models):
        self.name, self.ids = name, models.asked[0, READ : READ + WRITTEN]
        self.net = models.lm if name.startswith("float32") else copy.deepcopy(models.lm)
        if name == "bfloat16":
            self.net = self.net.bfloat16()
        elif "bits" in name:
            packed(self.net, int(name.split()[0]))
        self.S = self.net(models.asked[:1, :READ])[1]
        self.bytes, self.last = weights(self.net), None
        self.write = writer.Writer(self.net, self.S) if name.endswith("writer") else None

    def run(self):
        if self.write is not None:
            for stage in self.write.run:  # back to the state: slots behind the position are not read
                if hasattr(stage, "position"):
                    stage.position[0] = READ
            begun = time.perf_counter()
            for i in self.ids:
                self.last = self.write(i.view(1))[0]
            return time.perf_counter() - begun
        begun = time.perf_counter()
        self.last = by_calls(self.net, self.S, self.ids)
        return time.perf_counter() - begun


class LlamaCpp:
    """llama.cpp on the file, in one thread. Raises ModuleNotFoundError without xllamacpp."""

    def __init__(self, models):
        import xllamacpp

        told = xllamacpp.CommonParams()
        told.model.path, told.n_ctx, told.n_parallel, told.n_gpu_layers = models.path, 512, 1, 0
        told.cpuparams.n_threads = told.cpuparams_batch.n_threads = 1
        self.server, self.bytes = xllamacpp.Server(told), Path(models.path).stat().st_size
        self.ask = {"prompt": models.words.decode(models.asked[0, :READ].tolist()), "n_predict": WRITTEN + 1,
                    "temperature": 0, "cache_prompt": False, "ignore_eos": True}  # fmt: skip
        self.about = xllamacpp.get_system_info()

    def run(self):
        told = self.server.handle_completions(self.ask)
        told = (json.loads(told) if isinstance(told, str | bytes) else told)["timings"]
        if told["predicted_n"] != WRITTEN + 1:
            raise ValueError(f"xllamacpp: asked for {WRITTEN + 1} tokens, got {told['predicted_n']}")
        return WRITTEN / told["predicted_per_second"]


def head(path):
    """How the file stores its embedding."""
    from gguf import GGUFReader

    return next(x.tensor_type.name for x in GGUFReader(path).tensors if x.name == "token_embd.weight")


def measured(kinds, repeats):
    """{name: [tokens a second]}: all kinds in turn, the first round left out."""
    found = {name: [] for name in kinds}
    for n in range(repeats + 1):
        for name, kind in kinds.items():
            seconds = kind.run()
            if n:
                found[name].append(WRITTEN / seconds)
    return found


@torch.no_grad()
def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--repeats", type=int, default=9)
    args = parser.parse_args()
    torch.set_num_threads(1)
    scans.set_threads(1)
    models = Models(small=True)
    kinds = {name: LlamaCpp(models) if name == "llama.cpp" else Kind(name, models) for name in KINDS}
    found = measured(kinds, args.repeats)
    same = {"sha256": models.sha256, "read": READ, "written": WRITTEN, "group": GROUP, "file_head": head(models.path)}
    lines = []
    for name, rates in found.items():
        metrics = {"tokens_a_second": statistics.median(rates), "least": min(rates), "most": max(rates),
                   "repeats": len(rates), "weight_bytes": kinds[name].bytes}  # fmt: skip
        lines.append({"key": f"speed|{name}", "run": {"kind": name, "seed": 0} | same, "metrics": metrics,
                      "device": "CPU, 1 thread", "load_average": os.getloadavg()[1],
                      "about": getattr(kinds[name], "about", ""),
                      "torch": torch.__version__, "date": datetime.date.today().isoformat()})  # fmt: skip
        print(name, {k: round(v, 2) for k, v in metrics.items()}, flush=True)
    args.out.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf8")


if __name__ == "__main__":
    main()
