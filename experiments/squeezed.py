"""Fewer bits, family by family: weights, attention's cache or the recurrent state, in 8, 4, 3 and 2 bits.

    python -m experiments.squeezed --out FILE --weights FOLDER [--text FILE.npz] [--only NAME ...] [--seconds N]

FOLDER holds s0, s1, s2, each with the models of `experiments.one_recipe` from one seed, as `checkpoints.save` writes
them. All are asked for the same stretches of 2,048 bytes, evenly spaced in the test split and read with nothing before
them; without --text the split is that of `postx.text.packages_slice`. `lost` is bits a byte against the same model
unrounded, its error over stretches, paired.

weights: every linear layer of the blocks, groups of 64, asymmetric; to nearest, and by GPTQ, which reads 8 stretches of
the validation split. cache and state: the model steps token by token, and what it keeps is rounded after each token, as
where it is stored in so many bits; the token itself still reads what it wrote unrounded. One scale and zero point, from
the least and the largest number (and 0), for each head's key and value of a token (`cache`, keys as turned by their
position), or for each head and key row of a table S_BHKV (`state`). The last inputs of short convolutions and token
shifts stay whole. The state has a control, rounded after every 64th token only: what is kept is then as coarse, and is
not rounded again and again. All roundings of a model, and the model without any, step side by side, each with its own
rows; on a GPU a step is one CUDA graph. The first of their lines has the seconds of all.
"""

import argparse
import copy
import datetime
import functools
import hashlib
import json
import math
import platform
import sys
import time
import traceback
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from experiments.runner import corpus
from experiments.runner.results import mean_and_deviation, read
from experiments.runner.sweep import key
from postx import text as texts
from postx.mixers import attention
from postx.models import checkpoints, graph, quantized
from postx.shapes import map_state, trusted

FAMILIES = ("attention", "hybrid", "ssd", "gated_deltanet", "rwkv7")
BITS, T, STRETCHES, READ, GROUP, SEEDS = (8, 4, 3, 2), 2048, 32, 8, 64, (0, 1, 2)
METHODS = {"weights": ("uniform", "gptq"), "cache": ("min-max",), "state": ("min-max", "min-max, every 64th")}
EVERY = {"min-max, every 64th": 64}  # tokens from one rounding to the next; 1 for all other methods


def stretches(data, n, long=T):
    """n stretches, evenly spaced: ids [n, long]. Raises ValueError where the split is shorter than one."""
    if len(data) < long:
        raise ValueError(f"data: expected {long} bytes or more, got {len(data)}")
    at = np.linspace(0, len(data) - long, n).astype(int)
    return torch.from_numpy(data[at[:, None] + np.arange(long)].astype(np.int64))


# ---------------------------------------------------------------- rounding what is kept


def nearest(x, top):
    """x [..., width] to the nearest of top + 1 levels between its least and largest number, 0 among them.

    top is a number or a tensor beside x; where it is infinite, x stays as it is. As `uniform.round_trip` with its
    asymmetric grid and scales in float32, but without looking at a value from Python, so that a CUDA graph can hold it.
    """
    top = torch.as_tensor(top, dtype=x.dtype, device=x.device)
    low, high = x.amin(-1, keepdim=True).clamp(max=0), x.amax(-1, keepdim=True).clamp(min=0)
    scale = (high - low) / top
    scale = scale.masked_fill(scale == 0, 1)
    zero = torch.minimum(torch.round(-low / scale).clamp(min=0), top)
    codes = torch.minimum((torch.round(x / scale) + zero).clamp(min=0), top)
    return torch.where(top.isinf(), x, (codes - zero) * scale)


class Rounding(NamedTuple):
    """What is rounded ("cache", "state" or None), to how many bits, and after every how many tokens."""

    what: str | None = None
    bits: int = 32
    every: int = 1


WHOLE = Rounding()


def tops(roundings, rows, device, due):
    """{"cache": top_B, "state": top_B} for `rows` rows of each rounding: levels - 1, infinite where none is due.

    Nothing for what no row rounds. `due(every)` says which roundings are meant.
    """
    found = {}
    for what in ("cache", "state"):
        top = [2.0**r.bits - 1 if r.what == what and due(r.every) else math.inf for r in roundings]
        if min(top) < math.inf:
            found[what] = torch.tensor(top, device=device).repeat_interleave(rows)
    return found


def keeps(lm):
    """What the model has to round between tokens: "cache", "state" or both, in this order."""
    found = {_kind(part) for block in lm.blocks for part in block.mix}
    return [what for what in ("cache", "state") if what in found]


def _kind(part):
    """What a mixer keeps. Raises ValueError for one whose layout is not known here."""
    if isinstance(part, attention.Layer):
        return "cache"
    if getattr(sys.modules[type(part).__module__], "STATE", None) == "S_BHKV":
        return "state"
    raise ValueError(f"lm: {type(part).__module__} keeps neither keys and values nor one table S_BHKV")


@torch.no_grad()
def rounded(lm, S, top):
    """The state after a token with what that token changed rounded: new tables; a cache's newest slot, in place.

    top: as `tops` gives it.
    """
    return tuple(
        tuple(
            _rounded(S_i, kind, top[kind]) if i < len(block.mix) and (kind := _kind(block.mix[i])) in top else S_i
            for i, S_i in enumerate(S_B)
        )
        for block, S_B in zip(lm.blocks, S, strict=True)
    )


def _rounded(S, what, top_B):
    if what == "state":
        return nearest(S[0], top_B[:, None, None, None]), *S[1:]
    k_BMGK, v_BMGV, pos_B = S[:3]
    at = torch.arange(len(pos_B), device=pos_B.device), (pos_B - 1) % k_BMGK.shape[1]
    for x in (k_BMGK, v_BMGV):
        x.index_put_(at, nearest(x[at], top_B[:, None, None]))
    return S


class Rounded(graph.Graph):
    """A captured step that rounds what it keeps as `top` says."""

    def __init__(self, lm, S, room, top):
        self.top = top
        super().__init__(lm, S, room)

    def _step(self):
        logits, S = super()._step()
        return logits, rounded(self.lm, S, self.top)

    def round(self, top):
        """Round what is kept now, in place."""
        map_state(lambda x, new: None if x is new else x.copy_(new), self.S, rounded(self.lm, self.S, top))


# ---------------------------------------------------------------- bits a byte


@torch.no_grad()
def whole(lm, ids_BT, rows=8):
    """Bits a byte of each stretch, [B] in float64 on the CPU, from forward passes of `rows` stretches."""
    device, found = next(lm.parameters()).device, []
    for some in ids_BT.to(device).split(rows):
        log_p = torch.log_softmax(lm(some[:, :-1])[0], -1).gather(-1, some[:, 1:, None])[..., 0]
        found.append(-log_p.double().mean(1) / math.log(2))
    return torch.cat(found).cpu()


@torch.no_grad()
def stepped(lm, ids_BT, roundings=(WHOLE,)):
    """(bits a byte [roundings, B] as `whole` gives them, the last state): token by token, all of them side by side.

    Each rounding has rows of its own, B of them, in the order given. Raises ValueError for a cache that is not rounded
    after each token.
    """
    if wrong := [r for r in roundings if r.every > 1 and r.what != "state"]:
        raise ValueError(f"every: of a cache the newest token is rounded, so expected 1, got {wrong[0]}")
    device, B = next(lm.parameters()).device, len(ids_BT)
    each, later = tops(roundings, B, device, lambda n: n == 1), {r.every for r in roundings} - {1}
    more = {n: tops(roundings, B, device, lambda every, n=n: every == n) for n in later}
    ids_TB = ids_BT.to(device).repeat(len(roundings), 1).T.contiguous()
    steps = len(ids_TB) - 1
    logits, S = lm(ids_TB[0][:, None])
    logits_BY, S = logits[:, -1], rounded(lm, S, each)
    total_B = torch.zeros(ids_TB.shape[1], dtype=torch.float64, device=device)
    # Too few tokens to pay for a graph are stepped as on a CPU.
    fast = Rounded(lm, S, steps - 1, each) if ids_TB.is_cuda and steps > graph.PAYS_FROM else None
    for t in range(1, steps + 1):
        total_B += torch.log_softmax(logits_BY, -1).gather(-1, ids_TB[t][:, None])[:, 0]
        if t == steps:
            break
        due = [top for every, top in more.items() if (t + 1) % every == 0]  # t + 1 tokens are read then
        if fast is not None:
            logits_BY = fast(ids_TB[t])
            for top in due:
                fast.round(top)
            continue
        with trusted():
            logits, S = lm(ids_TB[t][:, None], S, inplace=True)
        logits_BY = logits[:, -1]
        for top in (each, *due):
            S = rounded(lm, S, top)
    bits_RB = (-total_B / steps / math.log(2)).cpu().view(len(roundings), B)
    return bits_RB, S if fast is None else fast.state()


# ---------------------------------------------------------------- runs


def error(x_B):
    """The standard error of a mean over stretches; 0 for one."""
    return float(x_B.std() / len(x_B) ** 0.5) if len(x_B) > 1 else 0.0


class Judge:
    """One model: its unrounded bits a byte, read whole and stepped, and what each of `runs` loses."""

    def __init__(self, lm, asked, calibration, device, runs):
        self.lm = copy.deepcopy(lm).to(device)
        self.asked, self.calibration = asked, calibration.to(device)
        self.roundings = [WHOLE, *(rounding(run) for run in runs if run["what"] in ("cache", "state"))]
        self.bits_B = whole(self.lm, asked)

    @functools.cached_property
    def stepped(self):
        """({rounding: bits a byte of each stretch}, last state), token by token; rounded weights need none of it."""
        found, S = stepped(self.lm, self.asked, self.roundings)
        if not (apart := float((self.bits_B - found[0]).abs().max())) < 1e-3:
            raise ArithmeticError(f"stepped and whole forward passes are {apart:.2g} bits a byte apart")
        return dict(zip(self.roundings, found, strict=True)), S

    def __call__(self, run):
        """The metrics of a run, None where its loss is not finite."""
        what, method, bits = run["what"], run["method"], run["bits"]
        if what == "nothing":
            return {
                "bits": float(self.bits_B.mean()), "bits_error": error(self.bits_B), "lost": 0.0, "lost_error": 0.0,
                "stepped_bits": float(self.stepped[0][WHOLE].mean()),
                "state_floats": self.lm.state_floats(self.asked.shape[1]),
            }  # fmt: skip
        if what == "weights":
            ids = self.calibration if method == "gptq" else self.calibration[:1, :64]  # nearest does not read it
            small, report = quantized.quantized(self.lm, method, bits, ids, judged=64, group=GROUP)
            found, base = whole(small, self.asked), self.bits_B
            more = {"bits_per_weight": report.bits_per_weight, "kept": report.kept}
        else:
            kept, S = self.stepped
            found, base = kept[rounding(run)], kept[WHOLE]
            more = {"bits_per_number": stored(self.lm, S, what, bits)}
        if not bool(found.isfinite().all()):
            return None
        lost_B = found - base
        return {"bits": float(found.mean()), "lost": float(lost_B.mean()), "lost_error": error(lost_B), **more}


def rounding(run):
    """What a run of a cache or a state asks of `stepped`."""
    return Rounding(run["what"], run["bits"], EVERY.get(run["method"], 1))


def stored(lm, S, what, bits):
    """Bits a number: the codes, and for each group a scale of 32 bits and a zero point."""
    numbers = groups = 0
    for block, S_B in zip(lm.blocks, S, strict=True):
        for part, S_i in zip(block.mix, S_B, strict=False):
            if _kind(part) == what:
                for x in S_i[: 2 if what == "cache" else 1]:
                    numbers, groups = numbers + x.numel(), groups + x.numel() // x.shape[-1]
    return bits + (32 + bits) * groups / numbers


def runs(lm):
    """What is asked of a model: nothing rounded, then everything it has that can be rounded."""
    yield {"what": "nothing", "method": "none", "bits": 32}
    for what in ("weights", *keeps(lm)):
        for method in METHODS[what]:
            for bits in BITS:
                yield {"what": what, "method": method, "bits": bits}


def wanted(run, args):
    """Whether a run is among those that --what, --method and --bits name; what was not given excludes nothing."""
    asked = {field: getattr(args, field) for field in ("what", "method", "bits")}
    return all(some is None or run[field] in some for field, some in asked.items())


def serve(args):
    """Make every run that is not on file and for which there is time; returns how many models raised an error."""
    text = corpus.load(args.text)[0] if args.text else texts.packages_slice()
    asked, calibration = stretches(text.test, args.stretches), stretches(text.validation, READ)
    about = {"sha256": text.sha256, "stretches": args.stretches, "T": T}
    device, start = torch.device(args.device), time.monotonic()
    if device.type == "cuda":
        device = torch.device("cuda", device.index or 0)
        torch.cuda.set_device(device)  # where graphs are captured
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else (
        f"CPU ({platform.machine()}), {torch.get_num_threads()} threads")  # fmt: skip
    done = {r["key"] for r in read(args.out)}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    failed = 0
    for seed in args.seeds or SEEDS:
        for name in FAMILIES if args.only is None else args.only:
            folder = args.weights / f"s{seed}"
            if name not in checkpoints.kept(folder):
                print(f"{name} seed {seed}: no such files in {folder}", flush=True)
                continue
            weights = hashlib.sha256((folder / f"{name}.safetensors").read_bytes()).hexdigest()[:12]
            lm = checkpoints.load(name, folder)
            common = {"name": name, "seed": seed} | about | {"weights": weights}
            todo = [run for run in (common | run for run in runs(lm)) if wanted(run, args) and key(run) not in done]
            try:
                judge = None
                for run in todo:
                    if time.monotonic() - start > args.seconds:
                        print("the time is over", flush=True)
                        return failed
                    judge = judge or Judge(lm, asked, calibration, device, todo)
                    record(args.out, run, judge, where)
            except Exception:  # the other models go on
                failed += 1
                print(f"{name} seed {seed}\n{traceback.format_exc()}", flush=True)
    return failed


def record(out, run, judge, where):
    """Make a run and append its line."""
    began = time.monotonic()
    line = {
        "key": key(run), "run": run, "metrics": judge(run),
        "parameters": sum(p.numel() for p in judge.lm.parameters()), "seconds": round(time.monotonic() - began, 2),
        "device": where, "torch": torch.__version__, "date": datetime.date.today().isoformat(),
    }  # fmt: skip
    with out.open("a", encoding="utf8") as file:
        file.write(json.dumps(line) + "\n")
    told = {k: round(x, 4) for k, x in (line["metrics"] or {"not finite": 0}).items()}
    print(*(run[k] for k in ("name", "seed", "what", "method", "bits")), told, line["seconds"], flush=True)


def table(path):
    """One row for each family, what, method and bits, summarised over seeds, in the order of FAMILIES.

    Rows are dicts: name, what, method, bits, seeds, diverged (runs whose loss was not finite), lost and its standard
    deviation over seeds, lost_error (the largest error over stretches of a seed), bits_a_byte.
    """
    rows, groups = [], {}
    for record in read(path):
        groups.setdefault(tuple(record["run"][k] for k in ("name", "what", "method", "bits")), []).append(record)
    for (name, what, method, bits), records in groups.items():
        found = [r["metrics"] for r in records if r["metrics"] is not None]
        row = {"name": name, "what": what, "method": method, "bits": bits, "seeds": len(records)}
        row["diverged"] = len(records) - len(found)
        row["lost"], row["deviation"] = mean_and_deviation(x["lost"] for x in found) if found else (math.nan, math.nan)
        row["lost_error"] = max((x["lost_error"] for x in found), default=math.nan)
        row["bits_a_byte"] = mean_and_deviation(x["bits"] for x in found)[0] if found else math.nan
        rows.append(row)
    order = {what: i for i, what in enumerate(("nothing", *METHODS))}
    return sorted(rows, key=lambda r: (FAMILIES.index(r["name"]), order[r["what"]], r["method"], -r["bits"]))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="lines of JSON are appended to this file")
    parser.add_argument("--weights", type=Path, required=True, help="the folder with s0, s1 and s2")
    parser.add_argument("--text", type=Path, help="of `experiments.runner.corpus`; the committed slice without it")
    parser.add_argument("--only", nargs="*", choices=FAMILIES, help="families; all without it")
    parser.add_argument("--seeds", nargs="*", type=int, choices=SEEDS, help="all without it")
    parser.add_argument("--what", nargs="*", choices=("nothing", *METHODS), help="what is rounded; all without it")
    parser.add_argument("--method", nargs="*", help="how it is rounded; all without it")
    parser.add_argument("--bits", nargs="*", type=int, choices=BITS, help="all without it")
    parser.add_argument("--seconds", type=float, default=math.inf, help="after these no new run starts")
    parser.add_argument("--stretches", type=int, default=STRETCHES, help="fewer are for a CPU")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    torch.set_float32_matmul_precision("highest")
    sys.exit(1 if serve(args) else 0)


if __name__ == "__main__":
    main()
