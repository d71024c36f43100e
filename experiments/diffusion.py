"""A masked diffusion model of the kept models' size on their text, and a SEDD one on the uniform graph.

    python -m experiments.diffusion --out FOLDER/diffusion.jsonl --text FILE.npz [--only masked] [--seconds N] [--small]
    python -m experiments.diffusion --out FOLDER/diffusion.jsonl --text FILE.npz --publish 1

The first command trains every point of GRID, one after the other, and keeps each name's weights with the lowest
validation bound, rounded to bf16, in FOLDER. The second reads FOLDER's `masked`, measures it and the kept
autoregressive models on the same windows, and puts it into postx/weights. Both want a GPU.

A text of 1.3 MB is read many times. The autoregressive model of this size is best after 16 passes and worse after;
a masked one sees each window under other masks every time, and goes on improving, so that it is given more steps.
"""

import datetime
import json
import math
import platform
import time

import numpy as np
import torch
from torch import nn

from experiments.runner import corpus
from experiments.runner.program import Program
from experiments.runner.results import read
from experiments.runner.sweep import arguments, key
from postx.diffusion import masked, sedd, times
from postx.models import checkpoints
from postx.models.denoiser import Denoiser
from postx.train import measure

Y, T = 256, 512
SIZE = {"network": "Denoiser", "D": 192, "L": 8, "Y": Y, "H": 4, "F": 360}
RUN = {"T": T, "B": 64, "seed": 0, "lr": 2e-3, "decay": 0.1, "floor": 0.02, "precision": "bf16", "watch": 500}
GRID = (
    {"name": "masked", "objective": "nelbo", "steps": 8000, "drop": 0.1},
    {"name": "masked", "objective": "nelbo_by_count", "steps": 8000, "drop": 0.1},
    {"name": "masked", "objective": "nelbo_by_count", "steps": 16000, "drop": 0.1},
    {"name": "masked", "objective": "nelbo_by_count", "steps": 16000, "drop": 0.2},
    {"name": "sedd_uniform", "objective": "sedd_uniform", "steps": 8000, "drop": 0.1},
)
SMALL = {"T": 32, "B": 8, "steps": 60, "watch": 20, "precision": "float32"}
PASSES, FINAL = 4, 64  # evaluations of every window: for a point of a curve, and for what is published
SLICE = 4096  # the first bytes of validation, whose bound is quoted too: a test measures it again
GRAPH = sedd.Uniform(Y)
OTHERS = ("attention", "hybrid", "ssd")  # the kept causal models, measured on the same windows


class Trained(nn.Module):
    """A denoiser with its objective as `loss`, as the training loop asks, in nats per byte; targets are not read."""

    def __init__(self, net, objective):
        super().__init__()
        self.net, self.objective = net, objective

    def loss(self, ids_BT, targets_BT=None):
        return nats(self.net, ids_BT, self.objective).mean() / ids_BT.shape[1]


def nats(net, ids_BT, objective, t_B=None, generator=None, fixed_BT=None):
    """One draw of the objective of that name, nats for each sequence; what the last time still knows is added."""
    more = {"t_B": t_B, "generator": generator, "fixed_BT": fixed_BT}
    if objective != "sedd_uniform":
        return getattr(masked, objective)(net, ids_BT, Y, **more)
    score = sedd.from_denoiser(net, GRAPH)
    return sedd.loss(score, ids_BT, GRAPH, **more) + ids_BT.shape[1] * GRAPH.terminal(GRAPH.schedule.high)


def reconstruction(net, ids_BT, generator=None):
    """-log p(text | text at the least noise), nats for each sequence: what SEDD's integral leaves out at its start."""
    sigma_B = torch.full((len(ids_BT),), GRAPH.schedule.low, device=ids_BT.device)
    noisy_BT = GRAPH.noise(ids_BT, sigma_B, generator)
    other = -torch.expm1(-sigma_B[0]) / Y
    # p(noisy | each clean token)
    said = torch.nn.functional.one_hot(noisy_BT, Y) * torch.exp(-sigma_B[0]) + other
    return masked.losses(net(noisy_BT, sigma_B) + said.log(), ids_BT).sum(1)


def build(run):
    """The run's network from its seed, with dropout on what the embedding and the MLPs say."""
    torch.manual_seed(run["seed"])
    config = {name: x for name, x in run["model"].items() if name != "network"}
    net = Denoiser(**config)

    def drop(module, _, out):
        return torch.nn.functional.dropout(out, run["drop"], module.training)

    for module in (net.embed, *(block.mlp for block in net.blocks)):
        module.register_forward_hook(drop)
    return net


def batches(data, run):
    """[N, B, T] stretches at random places, a new set for every step."""
    rng = np.random.default_rng(run["seed"])
    at = rng.integers(0, len(data) - run["T"], (run["steps"], run["B"], 1))
    out = torch.empty(run["steps"], run["B"], run["T"], dtype=torch.uint8)
    for step, places in enumerate(at):
        out[step] = torch.from_numpy(data[places + np.arange(run["T"])])
    return out


def windows(data, T, stride=None):
    """The text in windows of T bytes, [N, T]; the last bytes that fill none are left out."""
    at = np.arange(0, len(data) - T + 1, stride or T)[:, None] + np.arange(T)
    return torch.from_numpy(data[at].astype(np.int64))


@torch.no_grad()
def bound(net, ids_NT, objective, passes, *, given=0, seed=0, rows=64):
    """Bits per byte, (mean, standard error over the passes): an upper bound on those of -log p(window).

    Every pass gives each window one time; the times of a pass cover (0, 1) evenly, in random order. given: the first
    bytes of a window are shown, and the bound is on -log p(the rest | them), for each byte of the rest.
    """
    device, was_training = next(net.parameters()).device, net.training
    net.eval()
    rng, found = torch.Generator().manual_seed(seed), []
    on_device = torch.Generator(device).manual_seed(seed)
    for _ in range(passes):
        t_N = times(len(ids_NT), generator=rng)[torch.randperm(len(ids_NT), generator=rng)]
        total = 0.0
        for ids, t in zip(ids_NT.split(rows), t_N.split(rows), strict=True):
            ids, t = ids.to(device), t.to(device)
            fixed = (torch.arange(ids.shape[1], device=device) < given).expand_as(ids) if given else None
            lost = nats(net, ids, objective, t, on_device, fixed)
            if objective == "sedd_uniform":
                lost = lost + reconstruction(net, ids, on_device)
            total += float(lost.double().sum())
        found.append(total / math.log(2) / (ids_NT.numel() - given * len(ids_NT)))
    net.train(was_training)
    x = torch.tensor(found, dtype=torch.float64)
    return float(x.mean()), float(x.std() / passes**0.5) if passes > 1 else math.nan


def causal_bits(lm, ids_NT, *, given=0):
    """Bits per byte of an autoregressive model on the same windows, a 0 before the first byte."""
    ids = torch.cat([torch.zeros_like(ids_NT[:, :1]), ids_NT[:, :-1]], 1)
    targets = ids_NT.clone()
    targets[:, :given] = -100
    return measure(lm, zip(ids.split(64), targets.split(64), strict=True))["bits"]


def fit(run, text, device, folder):
    """Train one run, keep its best weights if no run of its name has better ones, and return its record."""
    ids = batches(text.train, run)
    valid = windows(text.validation, run["T"])
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU ({platform.machine()})"
    # one ruler for all masked runs
    judged = run["objective"] if run["name"].startswith("sedd") else "nelbo_by_count"
    curve, best, start = [], None, time.monotonic()
    with torch.cuda.stream(torch.cuda.Stream(device) if device.type == "cuda" else None):
        net = build(run)
        program = Program(Trained(net, run["objective"]), ids, ids, run, device)
        step = program.capture() if device.type == "cuda" else 0
        while step < run["steps"]:
            program.step()
            step += 1
            if step % run["watch"] == 0 or step == run["steps"]:
                bits, error = bound(net, valid, judged, PASSES)
                curve.append({"step": step, "validation_bits": round(bits, 4), "error": round(error, 4)})
                print(f"{run['name']} {key(run)} {curve[-1]} {time.monotonic() - start:.0f} s", flush=True)
                if best is None or bits < best[0]:
                    weights = {n: x.detach().to("cpu", copy=True) for n, x in net.state_dict().items()}
                    best = bits, step, weights
        losses, bad = program.losses(), program.hold()
    record = {
        "key": key(run), "run": run, "parameters": sum(p.numel() for p in net.parameters()), "curve": curve,
        "loss": [round(float(x), 4) for x in losses.split(max(1, run["steps"] // 50)) for x in [x.mean()]],
        "loss_every": max(1, run["steps"] // 50), "seconds": round(time.monotonic() - start, 1),
        "device": where, "torch": torch.__version__, "date": datetime.date.today().isoformat(), "metrics": None,
    }  # fmt: skip
    if bad or best is None:
        return record | (bad or {})
    net.load_state_dict({n: x.bfloat16().to(x.dtype) for n, x in best[2].items()})
    bits, error = bound(net, valid, judged, 4 * PASSES, seed=1)
    record["metrics"] = {"validation_bits": round(bits, 4), "error": round(error, 4), "step": best[1]}
    name = run["name"]
    before = checkpoints.record(name, folder) if name in checkpoints.kept(folder) else None
    if before is None or bits < before["validation_bits"]:
        about = {n: record[n] for n in ("parameters", "key", "run", "curve", "device", "torch", "date")}
        about |= {"validation_bits": bits, "step": best[1], "train_loss": record["loss"],
                  "train_loss_every": record["loss_every"]}  # fmt: skip
        checkpoints.save(name, net, run["model"], about, folder)
    return record


def main():
    args = arguments(__doc__, text="", publish=0)
    text, about = corpus.load(args.text or None, 1024 if args.small else None)
    if args.publish:
        return publish(args, text, about)
    device, start = torch.device(args.device), time.monotonic()
    have = {r["key"] for r in read(args.out, *args.have)}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    small = {"model": SIZE | {"D": 32, "L": 2, "F": 48}} | SMALL
    for point in GRID[:: len(GRID) - 1] if args.small else GRID:
        run = RUN | {"model": SIZE, "task": about} | point | (small if args.small else {})
        run["model"] = run["model"] | ({"conditioned": True} if run["objective"] == "sedd_uniform" else {})
        if device.type == "cpu":
            run["precision"] = "float32"
        if key(run) in have or (args.only is not None and run["name"] not in args.only):
            continue
        if args.list or time.monotonic() - start > args.seconds:
            print(f"not started: {run['name']} {key(run)} {run['objective']}", flush=True)
            continue
        record = fit(run, text, device, args.out.parent)
        with args.out.open("a", encoding="utf8") as file:
            file.write(json.dumps(record) + "\n")


def publish(args, text, about, folder=checkpoints.FOLDER):
    """Measure FOLDER's `masked`, and the kept models on the same windows, and write it to `folder`.

    Raises ValueError where the text is not the one it was trained on.
    """
    name, device = "masked", torch.device(args.device)
    known = checkpoints.record(name, args.out.parent)
    if known["run"]["task"] != about:
        raise ValueError(f"text: {name} was trained on {known['run']['task']}, this is {about}")
    net, long, passes = checkpoints.load(name, args.out.parent, device=device), known["run"]["T"], FINAL
    others = {other: checkpoints.load(other, device=device) for other in OTHERS}
    known["same_windows"] = {other: {} for other in others}
    for split in ("validation", "test"):
        data = getattr(text, split)
        whole, halves = windows(data, long), windows(data, long, long // 2)
        for kind, ids, given in (("", whole, 0), ("_given_half", halves, long // 2)):
            bits, error = bound(net, ids, "nelbo_by_count", passes, given=given, seed=2)
            known[f"{split}{kind}_bits"], known[f"{split}{kind}_error"] = round(bits, 4), round(error, 4)
            print(f"{name} {split}{kind}: at most {bits:.4f} ± {error:.4f} bits per byte", flush=True)
            for other, lm in others.items():
                bits = round(causal_bits(lm, ids, given=given), 4)
                known["same_windows"][other][f"{split}{kind}_bits"] = bits
    slice_ = windows(text.validation[:SLICE], long)
    known["slice_bits"] = bound(net.cpu(), slice_, "nelbo_by_count", 2, seed=3)[0]
    known["measured"] = (
        f"float32, these bf16 weights read back; windows of {long} bytes, {passes} passes with one number of masks for "
        f"each window, spread evenly; given_half: the last {long // 2} bytes of windows that overlap, the first ones "
        f"shown; the error is that of the mean over passes; same_windows: the kept causal models on the same bytes"
    )
    built = known.pop("config")
    known.pop("name")
    print(known["same_windows"])
    return checkpoints.save(name, net, built, known, folder)


if __name__ == "__main__":
    main()
