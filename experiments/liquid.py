"""Irregularly sampled series: liquid networks beside a GRU and a state-space model, over sizes, on a CPU.

    python -m experiments.liquid --out experiments/results/liquid.jsonl [--shard 0/2] [--seconds N]

A token is a value and the time dt until the next one. Every model gets both as features; all but the GRU also live for
dt between tokens. Two tasks, both scored as mean squared error over the variance of the target, from the fourth token
on:

    pendulum   the angle of a damped pendulum at uneven times; say the next angle. Nobody's home ground
    liquid     two of four neurons of a fixed random LTC whose input holds for dt. The liquid networks' home ground

Seven cells, one readout (Linear to 16, tanh, Linear). At each size the learning rate is tuned alike for every cell, on
a validation set with seed 0: a grid of factors of about 3 that is extended until its best point is interior, at most
twice; seeds 1 and 2 train at that rate. Fresh series at every step: nothing can be learned by heart.
"""

import argparse
import datetime
import functools
import hashlib
import json
import math
import platform
import time
from pathlib import Path

import torch
from torch import nn

from experiments.runner.results import RESULTS, mean_and_deviation, read
from postx import scans
from postx.mixers import Still, cfc, liquid, ltc

WIDTHS, RATES, SEEDS = (4, 8, 16, 32, 64), (3e-3, 1e-2, 3e-2), (0, 1, 2)
STEPS, B, T, FIRST, HEAD = 400, 32, 32, 3, 16


def gaps(n, T, g):
    """Times until the next value: at least 0.1, 0.7 on average, now and then much longer."""
    return 0.1 + torch.empty(n, T).exponential_(1 / 0.6, generator=g)


def pendulum(n, T, g):
    """(angle, dt, next angle): theta'' = -sin theta - theta' / 10, from up to 2.5 rad, in 12 Runge-Kutta steps each."""
    dt = gaps(n, T, g)
    theta, omega = torch.rand(2, n, generator=g).sub(0.5).mul(torch.tensor([[5.0], [1.0]])).unbind(0)
    x = torch.stack([theta, omega])

    def slope(x):
        return torch.stack([x[1], -x[0].sin() - 0.1 * x[1]])

    seen = [x[0]]
    for step in dt.unbind(1):
        s = step / 12
        for _ in range(12):
            a = slope(x)
            b = slope(x + s / 2 * a)
            c = slope(x + s / 2 * b)
            x = x + s / 6 * (a + 2 * b + 2 * c + slope(x + s * c))
        seen.append(x[0])
    seen = torch.stack(seen, 1)
    return seen[:, :-1, None], dt, seen[:, 1:, None]


def teacher(n, T, g):
    """(input, dt, two neurons at the end of dt) of one fixed LTC with four neurons, 24 fused steps a token."""
    fixed = torch.Generator().manual_seed(12)
    r, inward = 3 * torch.randn(4, 4, generator=fixed), 2 * torch.randn(2, 4, generator=fixed)
    w = {
        "delta_D": torch.tensor([0.1, 0.3, 0.1, 0.3]), "peak_D": torch.tensor([1.0, 2.0, 4.0, 4.0]),
        "A_D": torch.tensor([1.0, -1.0, 1.0, -1.0]), "r_DD": r, "unfolds": 24,
    }  # fmt: skip
    x, dt = torch.randn(n, T, 2, generator=g), gaps(n, T, g)
    y, _ = liquid.recurrent(x @ inward, dt, **w)
    return x, dt, y[..., :2]


TASKS = {"pendulum": pendulum, "liquid": teacher}
SIZES = {"pendulum": (1, 1), "liquid": (2, 2)}  # of values in and out


class GRU(nn.Module):
    """torch's GRU, which sees dt as a number. decay=True: its state fades by exp(-rate dt) after each token."""

    def __init__(self, n, width, decay=False):
        super().__init__()
        self.gru = nn.GRU(n, width, batch_first=True)
        self.rate_D = nn.Parameter(torch.linspace(-5, 1, width)) if decay else None

    def forward(self, x, dt):
        if self.rate_D is None:
            return self.gru(x)[0]
        fade = torch.exp(-dt[..., None] * nn.functional.softplus(self.rate_D))
        own = [getattr(self.gru, f"{kind}_l0") for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
        h, ys = x.new_zeros(x.shape[0], self.rate_D.shape[0]), []
        for x_BD, fade_BD in zip(x.unbind(1), fade.unbind(1), strict=True):
            h = fade_BD * torch.gru_cell(x_BD, h, *own)
            ys.append(h)
        return torch.stack(ys, 1)


class SSM(nn.Module):
    """S4D with dt: each channel keeps N complex numbers that turn and fade for dt; held inputs, Euler for the write."""

    def __init__(self, n, width, N=4):
        super().__init__()
        self.inward = nn.Linear(n, width)
        self.log_fade_DN = Still(torch.full((width, N), math.log(0.2)))
        self.turn_DN = nn.Parameter(torch.linspace(0, 2, N).repeat(width, 1) + 0.2 * torch.rand(width, N))
        self.C_DN2 = nn.Parameter(torch.randn(width, N, 2) / N**0.5)
        self.skip_D = nn.Parameter(torch.randn(width))

    def forward(self, x, dt):
        u = self.inward(x)
        A, C = torch.complex(-self.log_fade_DN.exp(), self.turn_DN), torch.view_as_complex(self.C_DN2)
        y, _ = scans.diagonal(u, dt[..., None].expand_as(u), A, torch.ones_like(A), C)
        return nn.functional.gelu(y + self.skip_D * u)


class Synapses(nn.Module):
    """An LTC with a synapse for every wire (`mixers.ltc`), without its projection to the outside."""

    def __init__(self, n, width):
        super().__init__()
        self.layer = ltc.Layer(n, width=width)
        self.layer.out = nn.Identity()

    def forward(self, x, dt):
        return self.layer.neurons(x, dt_BT=dt)[0]


class Liquid(nn.Module):
    """A layer of postx without its projection to the outside."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer
        self.layer.out = nn.Identity()

    def forward(self, x, dt):
        return self.layer(x, dt_BT=dt)[0]


CELLS = {  # name: (cell of n features and a width, floats of state a unit of width)
    "LTC": (lambda n, width: Liquid(liquid.Layer(n, width=width)), 1),
    "LTC, no R": (lambda n, width: Liquid(liquid.Layer(n, width=width, recurrent=False, solver="exact")), 1),
    "CfC": (lambda n, width: Liquid(cfc.Layer(n, width=width)), 1),
    "GRU": (GRU, 1),
    "GRU, decay": (lambda n, width: GRU(n, width, decay=True), 1),
    "S4D": (SSM, 8),
    "LTC, synapses": (Synapses, 1),
}


class Model(nn.Module):
    """A cell and the readout that all have: (values, dt) -> predictions."""

    def __init__(self, cell, task, width):
        super().__init__()
        n, out = SIZES[task]
        self.cell = CELLS[cell][0](n + 1, width)
        self.head = nn.Sequential(nn.Linear(width, HEAD), nn.Tanh(), nn.Linear(HEAD, out))

    def forward(self, x, dt):
        return self.head(self.cell(torch.cat([x, dt[..., None].log()], -1), dt))


def error(model, data):
    """Mean squared error over the target's variance, from token FIRST on, averaged over outputs."""
    x, dt, y = data
    y = y[:, FIRST:]
    return ((model(x, dt)[:, FIRST:] - y).square().mean((0, 1)) / y.var((0, 1))).mean()


@functools.lru_cache(maxsize=4)
def batches(task, seed, steps):
    """Fresh series for every step of a run, drawn at once."""
    data = TASKS[task](steps * B, T, torch.Generator().manual_seed(seed))
    return list(zip(*(x.split(B) for x in data), strict=True))


def held_out(task, seed, n=256):
    return TASKS[task](n, T, torch.Generator().manual_seed(10**6 + seed))


def train(run, steps=None):
    """The trained model of a run: Adam, a tenth of the steps up and a cosine down, gradients clipped at 1."""
    torch.manual_seed(run["seed"])
    steps, model = steps or run["steps"], Model(run["cell"], run["task"], run["width"])
    adam = torch.optim.Adam(model.parameters(), fused=True)
    pace = torch.optim.lr_scheduler.OneCycleLR(adam, run["lr"], total_steps=steps, pct_start=0.1)
    for data in batches(run["task"], run["seed"], steps):
        error(model, data).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adam.step()
        pace.step()
        adam.zero_grad()
    return model.eval()


def study(task, cell, width):
    """Yields runs, is sent their validation errors; tunes the learning rate, then asks for the other seeds."""
    run = {"task": task, "cell": cell, "width": width, "steps": STEPS, "B": B, "T": T, "seed": 0}
    scores = {}
    for lr in RATES:
        scores[lr] = yield run | {"lr": lr}
    for _ in range(2):
        best = min(scores, key=scores.get)
        if min(scores) < best < max(scores):
            break
        new = float(f"{best / 3 if best == min(scores) else best * 3:.1g}")
        scores[new] = yield run | {"lr": new}
    best = min(scores, key=scores.get)
    for seed in SEEDS[1:]:
        yield run | {"lr": best, "seed": seed}


def key(run):
    return hashlib.sha256(json.dumps(run, sort_keys=True).encode()).hexdigest()[:12]


def record(run):
    """Train and measure one run."""
    start = time.perf_counter()
    model = train(run)
    seconds = time.perf_counter() - start
    with torch.no_grad():
        valid, test = (error(model, held_out(run["task"], seed)).item() for seed in (0, 1))
    return {
        "key": key(run), "run": run, "metrics": {"valid": valid, "test": test} if math.isfinite(valid) else None,
        "parameters": sum(p.numel() for p in model.parameters()),
        "state_floats": run["width"] * CELLS[run["cell"]][1], "seconds": round(seconds, 2),
        "device": f"CPU ({platform.machine()}), 1 thread", "torch": torch.__version__,
        "python": platform.python_version(), "date": datetime.date.today().isoformat(),
    }  # fmt: skip


def table(task, path=RESULTS / "liquid.jsonl"):
    """{cell: rows}, a row for each width: parameters, state, test error over seeds, learning rate, seconds."""
    rows = {}
    mine = [r for r in read(path) if r["run"]["task"] == task and r["metrics"] is not None]
    for cell in CELLS:
        for width in sorted({r["run"]["width"] for r in mine if r["run"]["cell"] == cell}):
            here = [r for r in mine if (r["run"]["cell"], r["run"]["width"]) == (cell, width)]
            first = [r for r in here if r["run"]["seed"] == 0]
            rates = sorted(r["run"]["lr"] for r in first)
            lr = min(first, key=lambda r: r["metrics"]["valid"])["run"]["lr"]
            chosen = [r for r in here if r["run"]["lr"] == lr]
            mean, deviation = mean_and_deviation(r["metrics"]["test"] for r in chosen)
            rows.setdefault(cell, []).append({
                "width": width, "parameters": chosen[0]["parameters"], "state": chosen[0]["state_floats"], "lr": lr,
                "interior": rates[0] < lr < rates[-1], "seeds": len(chosen), "error": mean, "deviation": deviation,
                "seconds": min(r["seconds"] for r in chosen),
            })  # fmt: skip
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cells", nargs="*", default=list(CELLS))
    parser.add_argument("--widths", nargs="*", type=int, default=WIDTHS)
    parser.add_argument("--shard", default="0/1", help="i/n: only every n-th study, from the i-th")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="after these no new run starts")
    args = parser.parse_args()
    scans.set_threads(1)
    start, (part, parts) = time.monotonic(), map(int, args.shard.split("/"))
    done = {r["key"]: r for r in read(args.out)}
    names = [(task, cell, width) for width in args.widths for task in TASKS for cell in args.cells]
    for name in names[part::parts]:
        asked, run = study(*name), None
        try:
            run = next(asked)
            while True:
                if key(run) not in done:
                    if time.monotonic() - start > args.seconds:
                        return
                    done[key(run)] = line = record(run)
                    with args.out.open("a", encoding="utf8") as file:
                        file.write(json.dumps(line) + "\n")
                    print(*name, run["lr"], run["seed"], line["metrics"], line["seconds"], flush=True)
                metrics = done[key(run)]["metrics"]
                run = asked.send(math.inf if metrics is None else metrics["valid"])
        except StopIteration:
            continue


if __name__ == "__main__":
    main()
