"""Many small trainings at once: a study asks for runs, the runner trains them and appends one line of JSON for each.

A run is a dict that says everything about one training, and its hash is its key:

    name, pattern, D, Y, options, mlp, form, std   the model, as `postx.models.lm.LM` takes it
    trits                                       True: the blocks' linear layers are trained as trits
    task, B, T, steps, lr, seed, precision      the training; what `task` (a dict) means is the script's business

A study is a generator: it yields a list of runs, is sent the list of their records, and may ask for more (a grid of
learning rates that is extended until its best point is interior, then seeds at that point). `sweep` serves many
studies together. On a GPU up to `--streams` runs train at the same time, each a CUDA graph of one whole step on a
stream of its own: small models leave most of a GPU idle, and their kernels overlap. On a CPU runs go one by one.

A record is {"key", "run", "metrics", "loss", "parameters", "state_floats", ...}; "metrics" is what the script's
`score(lm, run)` returned, or None for a run that became non-finite ("nonfinite_step") or failed ("error"). Runs that
stand in --out or --have are not trained again; failed ones are.
"""

import argparse
import collections
import concurrent.futures
import datetime
import functools
import hashlib
import json
import os
import platform
import time
import traceback
from pathlib import Path

os.environ.setdefault(
    "CUDA_DEVICE_MAX_CONNECTIONS", "32"
)  # streams that a GPU serves at once; read at its start

import torch  # noqa: E402

from experiments.runner.program import Program  # noqa: E402
from experiments.runner.results import read  # noqa: E402
from postx.models.lm import LM  # noqa: E402
from postx.models.quantized import train_trits  # noqa: E402

BLOCK, AHEAD = 16, 4  # replays launched together, and how many such blocks may wait on a stream
MODEL = ("pattern", "D", "Y", "options", "mlp", "form", "std")


def arguments(doc, **defaults):
    """The options that every experiment has, parsed. `defaults` are further `--name` options with their values."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="lines of JSON are appended to this file")
    parser.add_argument(
        "--have", type=Path, nargs="*", default=[], help="files whose runs are not made again"
    )
    device, shard = place(os.environ, torch.cuda.device_count())
    parser.add_argument("--device", default=device)
    parser.add_argument("--shard", default=shard, help="i/n: only every n-th study, from the i-th; torchrun sets it")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="after these no new run starts")
    parser.add_argument("--streams", type=int, default=8, help="runs at the same time on a GPU")
    parser.add_argument("--small", action="store_true", help="a miniature: two CPU cores, three minutes")
    parser.add_argument("--only", nargs="*", default=None, help="only studies with these names")
    parser.add_argument("--list", action="store_true", help="say what would be run at first, and stop")
    for name, value in defaults.items():
        parser.add_argument(f"--{name}", type=type(value), default=value)
    return parser.parse_args()


def place(environ, gpus):
    """(device, shard) of this process: a GPU and a share of the studies for each rank that torchrun started.

    `python -m torch.distributed.run --nproc-per-node 8 -m experiments.recall --out FILE` spreads the studies over 8
    GPUs. The processes need not talk to each other: each appends whole lines to the same file.
    """
    rank, ranks = environ.get("RANK", "0"), environ.get("WORLD_SIZE", "1")
    if not gpus:
        return "cpu", f"{rank}/{ranks}"
    return f"cuda:{int(environ.get('LOCAL_RANK', 0)) % gpus}" if "RANK" in environ else "cuda", f"{rank}/{ranks}"


def key(run):
    """A run's hash: twelve hexadecimal digits of all it says."""
    text = json.dumps(run, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def build(run):
    """The run's model, its weights drawn from the run's seed on the CPU: the same on every device."""
    torch.manual_seed(run["seed"])
    lm = LM(**{name: run[name] for name in MODEL if run.get(name) is not None})
    if run.get("drop"):
        _drop(lm, run["drop"])
    return train_trits(lm) if run.get("trits") else lm


def _drop(lm, share):
    """Dropout while training on what the embedding and the MLPs say; the weights and their names stay as they are."""

    def hook(module, _, out):
        return torch.nn.functional.dropout(out, share, module.training)

    for module in (lm.embed, *(block.mlp for block in lm.blocks if block.mlp is not None)):
        module.register_forward_hook(hook)


def size(lm, run):
    """What stands beside every accuracy: parameters, and the floats of state after T tokens of one text."""
    total = sum(p.numel() for p in lm.parameters())
    carried = {"state_floats": lm.state_floats(run["T"])} if hasattr(lm, "state_floats") else {}
    return {"parameters": total} | carried


def sweep(studies, *, data, score, args, watch=None, build=build):
    """Serve {name: study} until all are done or the time is over; returns the records made or found.

    `data(run) -> (ids_NBT, targets_NBT)`, the batches of steps 0, 1, ... on the CPU (N divides or exceeds steps:
    batch t mod N is step t's); `build(run)` is the model; `score(lm, run) -> dict` is called after training, on the
    run's device. A run that says "watch": n also has `watch(lm, run, step) -> dict` called every n steps and after
    the last; what it returned stands in the record's "curve".
    """
    part, parts = map(int, args.shard.split("/"))
    names = [name for name in studies if args.only is None or name in args.only]
    desk = Desk({name: studies[name] for name in names[part::parts]}, read(*args.have, args.out), args.out)
    if args.list:
        for run in desk.waiting:
            print(f"{key(run)}  {run['name']:28} D {run['D']:4} lr {run['lr']:.1e} seed {run['seed']}")
        print(f"{len(desk.waiting)} runs at first, {sum(r['steps'] for r in desk.waiting)} steps")
        return desk.records
    start = time.monotonic()
    device = torch.device(args.device)
    serve = _on_gpu if device.type == "cuda" else _on_cpu
    if device.type == "cuda":
        device = torch.device("cuda", device.index or 0)
        torch.cuda.set_device(device)
    serve(desk, _batches(data), (build, score, watch), device, args, lambda: time.monotonic() - start < args.seconds)
    seconds, left = time.monotonic() - start, f"; {len(desk.waiting)} were not started" if desk.waiting else ""
    print(f"{desk.made} runs, {desk.steps} steps in {seconds:.0f} s: {desk.steps / seconds:.0f} a second{left}")
    return desk.records


class Desk:
    """Where studies hand in the runs they want and get records back, and where records are written."""

    def __init__(self, studies, records, out):
        self.studies, self.out, self.made, self.steps = studies, out, 0, 0
        self.have = {r["key"]: r for r in records if "error" not in r}
        self.open = {}  # study: the runs it waits for
        self.waiting = collections.deque()
        self.records = []
        for name in studies:
            self._ask(name, None)

    def _ask(self, name, answer):
        """Send a study its records; whatever is on file already is answered at once."""
        try:
            runs = self.studies[name].send(answer)
        except StopIteration:
            self.open.pop(name, None)
            return
        except Exception:  # a study that cannot go on (all its runs failed, say) ends; the others do not
            print(f"study {name!r} stopped\n{traceback.format_exc()}", flush=True)
            self.open.pop(name, None)
            return
        self.open[name] = runs
        self.waiting.extend(run for run in runs if key(run) not in self.have)
        self._answer(name)

    def _answer(self, name):
        runs = self.open[name]
        if all(key(run) in self.have for run in runs):
            records = [self.have[key(run)] for run in runs]
            self.records += records
            self._ask(name, records)

    def record(self, run, **found):
        """Write a run's line, and tell the studies that wait for it."""
        line = {
            "key": key(run), "run": run, **found, "torch": torch.__version__,
            "date": datetime.date.today().isoformat(),
        }  # fmt: skip
        self.out.parent.mkdir(parents=True, exist_ok=True)
        with self.out.open("ab", buffering=0) as file:  # one write: lines of several processes do not mix
            file.write((json.dumps(line) + "\n").encode())
        self.have[line["key"]] = line
        self.made, self.steps = self.made + 1, self.steps + run["steps"]
        shown = found.get("metrics") or found.get("nonfinite") or found["error"].splitlines()[-1]
        print(f"{run['name']} D{run['D']} lr {run['lr']:.1e} seed {run['seed']}: {shown}", flush=True)
        for name in [n for n, runs in self.open.items() if any(key(r) == line["key"] for r in runs)]:
            self._answer(name)

    def failed(self, run):
        """The run raised: its traceback is printed and kept, the others go on."""
        text = traceback.format_exc()
        print(text, flush=True)
        self.record(run, metrics=None, error=text)


def _batches(data):
    """`data` with one thread that draws the next runs' batches early, and each set of batches drawn once."""
    pool, futures = concurrent.futures.ThreadPoolExecutor(1), {}

    def request(run):
        name = json.dumps([run["task"], run["B"], run["T"], run["steps"], run["seed"]], sort_keys=True)
        if name not in futures:
            futures[name] = pool.submit(data, run)
        return futures[name]

    return request


def _watch(watch, run, program, curve, step):
    """Have the run's model looked at, where a point of its curve is due."""
    every = run.get("watch")
    if every and watch and (step % every == 0 or step == run["steps"]):
        with torch.no_grad():
            curve.append({"step": step, **watch(program.lm, run, step)})


def _finish(desk, run, program, score, where, points):
    """Score a trained run and write its record; a loss that was not finite is recorded as that."""
    losses, bad = program.losses(), program.hold()
    every = max(1, len(losses) // 50)
    curve = [round(x, 4) for x in losses[: len(losses) // every * every].view(-1, every).mean(1).tolist()]
    found = {
        "metrics": None, "loss": curve, "loss_every": every, **size(program.lm, run),
        "seconds": round(program.seconds(), 2), "device": where,
    }  # fmt: skip
    if points:
        found["curve"] = points
    if bad:
        found |= bad | {"loss": curve[: bad["nonfinite_step"] // every]}
    else:
        with torch.no_grad():
            found["metrics"] = score(program.lm.eval(), run)
    desk.record(run, **found)


def _on_cpu(desk, request, looks, device, args, in_time):
    make, score, watch = looks
    where = f"CPU ({platform.machine()}), {torch.get_num_threads()} threads"
    while desk.waiting and in_time():
        run = desk.waiting.popleft()
        try:
            program = Program(make(run), *request(run).result(), run, device)
            points = []
            for step in range(1, run["steps"] + 1):
                program.step()
                _watch(watch, run, program, points, step)
            _finish(desk, run, program, score, where, points)
        except Exception:  # one failing run must not cost the others; it is recorded with its traceback
            desk.failed(run)


def _on_gpu(desk, request, looks, device, args, in_time):
    make, score, watch = looks
    where = torch.cuda.get_device_name(device)
    slots = [Slot(device) for _ in range(args.streams)]
    on_device = functools.lru_cache(maxsize=8)(lambda future: [x.to(device) for x in future.result()])
    while True:
        moved = False
        for slot in slots:
            run = slot.run
            try:
                if run is None and desk.waiting and in_time():
                    slot.run = run = desk.waiting.popleft()
                    for later in list(desk.waiting)[:4]:
                        request(later)
                    slot.begin(make(run), on_device(request(run)), device)
                    moved = True
                elif run is not None and slot.due and slot.events[-1].query():
                    with torch.cuda.stream(slot.stream):
                        _watch(watch, run, slot.program, slot.points, run["steps"] - slot.left)
                    slot.due, moved = False, True
                elif run is not None and slot.left and not slot.due:
                    moved |= slot.launch()
                elif run is not None and not slot.due and slot.events[-1].query():
                    with torch.cuda.stream(slot.stream):
                        _finish(desk, run, slot.program, score, where, slot.points)
                    slot.run = slot.program = None
                    moved = True
            except Exception:  # recorded with its traceback; the other streams go on
                slot.run = slot.program = None
                desk.failed(run)
        if not moved:
            if all(slot.run is None for slot in slots) and not (desk.waiting and in_time()):
                return
            time.sleep(2e-4)


class Slot:
    """A stream, the run that trains on it, and the events behind its launched blocks of replays."""

    def __init__(self, device):
        self.stream = torch.cuda.Stream(device)
        self.run = self.program = None
        self.events, self.left = collections.deque(), 0
        self.points, self.due = [], False  # of the run's curve; whether one is due

    def begin(self, lm, batches, device):
        self.stream.wait_stream(torch.cuda.default_stream(device))
        with torch.cuda.stream(self.stream):
            self.program = Program(lm, *batches, self.run, device)
            self.left = self.run["steps"] - self.program.capture()
        self.events.clear()
        self.points, self.due = [], False
        self._mark()

    def launch(self):
        """Launch another block of steps if few wait; whether it did."""
        while len(self.events) > 1 and self.events[0].query():
            self.events.popleft()
        if len(self.events) > AHEAD:
            return False
        every = self.run.get("watch") or self.run["steps"]
        n = min(BLOCK, self.left, every - (self.run["steps"] - self.left) % every)
        with torch.cuda.stream(self.stream):
            for _ in range(n):
                self.program.step()
        self.left -= n
        self.due = "watch" in self.run and ((self.run["steps"] - self.left) % every == 0 or not self.left)
        self._mark()
        return True

    def _mark(self):
        event = torch.cuda.Event()
        event.record(self.stream)
        self.events.append(event)


def accuracy(lm, ids_BT, targets_BT, at_once):
    """The share of asked targets that the likeliest token is, rows taken `at_once` at a time."""
    device = next(lm.parameters()).device
    right = asked = torch.zeros((), dtype=torch.int64, device=device)
    for ids, targets in zip(ids_BT.split(at_once), targets_BT.to(device).split(at_once), strict=True):
        chosen = lm(ids.to(device))[0].argmax(-1)
        right, asked = right + ((chosen == targets) & (targets >= 0)).sum(), asked + (targets >= 0).sum()
    return (right / asked).item()


def best(records, metric):
    """The record with the highest finite `metric`; runs that failed or diverged are below all others.

    Raises ValueError where no run succeeded.
    """
    there = [r for r in records if r["metrics"] is not None]
    if not there:
        raise ValueError(f"no run of {records[0]['run']['name']!r} finished")
    return max(there, key=lambda r: r["metrics"][metric])


def tune(run, grid, metric, *, most=3):
    """A study's first part: `record = yield from tune(...)`, the best of a grid of learning rates.

    The grid is extended at its end by its own factor, at most `most` times, until the best point is interior. A grid
    of one rate is taken as it is.
    """
    rates, records = sorted(grid), []
    records += yield [run | {"lr": lr} for lr in rates]
    for _ in range(most if len(rates) > 1 else 0):
        factor = rates[1] / rates[0]
        lr = best(records, metric)["run"]["lr"]
        if rates[0] < lr < rates[-1]:
            break
        new = float(f"{rates[0] / factor if lr == rates[0] else rates[-1] * factor:.1e}")
        rates = sorted([*rates, new])
        records += yield [run | {"lr": new}]
    return best(records, metric)
