"""The scorecard by length of text: time to read, time for the next byte, memory of the state, loss and recall.

    python -m experiments.scorecard --out FILE [--text FILE.npz] [--device cuda:0] [--seconds N] [--small]
    python -m experiments.scorecard --out FILE --text FILE.npz --device cuda:0 --weights FOLDER

With FOLDER, the models of `experiments.one_recipe` as `checkpoints.save` wrote them into its folders s0, s1 and s2,
trained alike on 2,048 bytes at a time: times of the first seed, loss and recall of each, in a list. Without, six models
of the small size, 2.9 million parameters each: `attention`, `ssd` and `hybrid` with their kept weights; `local` (a
window of 128, every fourth layer full), `gated_deltanet` and `rwkv7` with the first weights that a seed gives them,
which cost as much as trained ones. For lengths from 256 to 131,072 bytes, the shorter ones first:

time    reading a prompt of T bytes at batch 1, then one more byte after it at batch 1 and 16; the bytes of the state
        there, and the peak of memory beyond weights. bf16 on a GPU, float32 on a CPU; median, least and most of runs.
loss    bits per byte of the same 64 stretches of 128 bytes of the test split, each read with the T - 128 bytes
        before it, up to T = 65,536. What is longer than a model's training is extrapolation.
recall  (with FOLDER) bits per byte of a name of 16 letters to which another name was set in a line before a stretch of
        T bytes, when that line begins again behind it; and as a control the same where that line named something else.

On a GPU the forms are those the package takes by itself, a step as a CUDA graph, with two exceptions that this script
holds against the package's before it measures: one query reads its cache, and a window its band, through torch's
fused attention. The recorded file of one CPU thread was made with --device cpu --longest 4096 --stretches 32 and
torch.set_num_threads(1). Without --text the running interpreter's text is read; loss and recall are refused on a text
that the models did not learn beside.
"""

import copy
import datetime
import json
import platform
import re
import statistics
import time
from contextlib import ExitStack
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from experiments.runner import corpus
from experiments.runner.equal import config
from experiments.runner.results import RESULTS, read
from experiments.runner.sweep import arguments
from postx import mixers
from postx.mixers import attention
from postx.models import checkpoints, graph, lm
from postx.train import autocast

D, TARGET, SEED = 192, 2_900_000, 0
LENGTHS = [2**k for k in range(8, 18)]
BATCHES = 1, 16  # rows of one decoding step
KEPT = "attention", "hybrid", "ssd"
PATTERNS = {"local": "LLLALLLA", "gated_deltanet": "G" * 8, "rwkv7": "7" * 8}
TABLE = {"A": {"H": 4}, "L": {"H": 4, "window": 128}, "G": {"conv_size": 4}, "7": {"H": 4}}
NAMES = "attention", "local", "hybrid", "ssd", "gated_deltanet", "rwkv7"
WORD = 16  # letters of what is to be recalled
STRETCH, STRETCHES, LONGEST_LOSS = 128, 64, 2**16
AT_ONCE = {"cuda": 2**21, "cpu": 2**15}  # bytes in one pass of the loss


def model(name, folder=None):
    """The model of that name on the CPU, float32, in evaluation mode: out of a folder, or one of the six."""
    if folder is not None:
        return checkpoints.load(name, folder)
    if name in KEPT:
        return checkpoints.load(name)
    torch.manual_seed(SEED)
    return lm.LM(**config(PATTERNS[name], D, 256, TARGET, TABLE)).eval()


def read_one(q_BTHK, k_BMGK, v_BMGV, visible_BTM, scale=None, fall=None):
    """`attention.read` for one token that sees every slot, by torch's fused kernel: keys stay in half precision."""
    if q_BTHK.shape[1] > 1 or fall is not None:
        raise ValueError(f"q_BTHK: expected one token without a fall, got {tuple(q_BTHK.shape)}")
    heads = (x.transpose(1, 2) for x in (q_BTHK, k_BMGK, v_BMGV))
    return functional.scaled_dot_product_attention(*heads, scale=scale, enable_gqa=True).transpose(1, 2)


def banded(seen, window, scale):
    """`attention._fused`, where a window is read in blocks of W queries and 2 W keys instead of under a T x T mask."""
    if window is None or seen.q_BTHK.shape[1] <= window:
        return FUSED(seen, window, scale)
    B, T, H, K = seen.q_BTHK.shape
    n = -(-T // window)
    q, k, v = (
        functional.pad(x, (0, 0, 0, 0, 0, n * window - T)).unflatten(1, (n, window)).transpose(2, 3)
        for x in (seen.q_BTHK, seen.k_BMGK, seen.v_BMGV)
    )  # [B, n, heads, W, K]
    k, v = (torch.cat([functional.pad(x, (0, 0, 0, 0, 0, 0, 1, 0))[:, :-1], x], 3) for x in (k, v))
    i, j = torch.arange(window, device=q.device)[:, None], torch.arange(2 * window, device=q.device)
    mask = ((j > i) & (j <= i + window)).expand(n, -1, -1).clone()
    mask[0] &= j >= window  # before the first block there is nothing
    y = functional.scaled_dot_product_attention(
        *(x.flatten(0, 1) for x in (q, k, v)),
        attn_mask=mask.repeat(B, 1, 1)[:, None],
        scale=scale,
        enable_gqa=True,
    )
    return y.unflatten(0, (B, n)).transpose(2, 3).flatten(1, 2)[:, :T]


FUSED = attention._fused


def patched(device):
    """The two fused readings, on a GPU; on a CPU nothing is replaced.

    Without cuDNN's kernel: it plans anew for every length of a cache, 40 ms for each byte that is written.
    """
    stack = ExitStack()
    if device.type == "cuda":
        stack.enter_context(sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION]))
        stack.enter_context(mock.patch.object(attention, "read", read_one))
        stack.enter_context(mock.patch.object(attention, "_fused", banded))
    return stack


class Clock:
    """Times single calls, each waited for, and the memory that they took at most; on a CPU the processor's time."""

    def __init__(self, device):
        self.device, self.gpu = device, device.type == "cuda"
        self.now = time.perf_counter if self.gpu else time.process_time  # others may use the same cores

    def wait(self):
        if self.gpu:
            torch.cuda.synchronize(self.device)

    def __call__(self, call, repeats, warm=1, budget=2.0):
        """(median, least, most) in ms of up to `repeats` calls in `budget` seconds, at least 2; the peak; output."""
        held = torch.cuda.memory_allocated(self.device) if self.gpu else 0
        if self.gpu:
            torch.cuda.reset_peak_memory_stats(self.device)
        began, times = time.perf_counter(), []
        for i in range(repeats + warm):
            self.wait()
            start = self.now()
            out = call()
            self.wait()
            if i >= warm:
                times.append(1e3 * (self.now() - start))
            if len(times) >= 2 and time.perf_counter() - began > budget:
                break
        peak = torch.cuda.max_memory_allocated(self.device) - held if self.gpu else None
        return [round(f(times), 4) for f in (statistics.median, min, max)], peak, out


def stepper(net, S, room):
    """step(ids_B) -> logits_BY of the next byte, up to `room` times: on a GPU a CUDA graph, as the package writes."""
    if net.embed.weight.is_cuda:
        return graph.Graph(net, S, room)
    hold = [S]

    def step(ids_B):
        logits, hold[0] = net(ids_B[:, None], hold[0], inplace=True)
        return logits[:, -1]

    return step


@torch.inference_mode()
def times(net, T, clock, repeats):
    """What reading T bytes costs, and one more byte after them."""
    ids = torch.randint(256, (1, T), generator=torch.Generator().manual_seed(T)).to(clock.device)
    prefill, peak, (logits, S) = clock(lambda: net(ids), repeats)
    found = {"prefill_ms": prefill, "prefill_peak_bytes": peak, "state_bytes": lm.size(S)}
    del logits
    for B in BATCHES:
        token, many = torch.zeros(B, dtype=torch.int64, device=clock.device), 3 * repeats
        rows = mixers.map_state(lambda x, B=B: x.expand(B, *x.shape[1:]).clone(), S)
        step = stepper(net, rows, many + 3)
        del rows
        found[f"token_ms_{B}"], found[f"token_peak_bytes_{B}"], _ = clock(lambda: step(token), many, warm=3)  # noqa: B023
    return found


@torch.inference_mode()
def agree(net, device, T=700, tolerance=1e-3):
    """Hold the forms that are timed against the package's own, and a step against reading; returns the largest gap."""
    ids = torch.randint(256, (2, T), generator=torch.Generator().manual_seed(1)).to(device)
    whole = net(ids)[0]
    with patched(device):
        part, S = net(ids[:, :-1])
        last = stepper(net, S, graph.PAYS_FROM)(ids[:, -1])[:, None]
    gap = (torch.cat([part, last], 1) - whole).abs().max().item() / whole.abs().max().item()
    if not gap < tolerance:
        raise RuntimeError(f"{net.pattern}: the forms timed here differ from the package's by {gap}")
    return gap


def ends(data, longest, many):
    """Where the stretches end: evenly spread over what has `longest` bytes before it."""
    return torch.linspace(longest + 1, len(data), many, dtype=torch.float64).long().tolist()


@torch.inference_mode()
def bits(net, rows, asked, device):
    """Bits per byte of the last `asked` bytes of each row (a list of byte arrays of one length)."""
    data = torch.stack([torch.as_tensor(row.copy(), dtype=torch.int64) for row in rows])
    total, step = 0.0, max(1, AT_ONCE[device.type] // data.shape[1])
    for some in data.split(step):
        some = some.to(device)
        with autocast(device, "bfloat16" if device.type == "cuda" else "float32"):
            logits = net(some[:, :-1])[0][:, -asked:].float()
        total += functional.cross_entropy(
            logits.flatten(0, 1), some[:, -asked:].flatten(), reduction="sum"
        ).item()
    return total / (len(data) * asked) / 0.6931471805599453


def loss(net, text, T, longest, many, device):
    """Bits per byte of the stretches, each at the end of T bytes."""
    at = ends(text.test, longest, many)
    return bits(net, [text.test[end - T - 1 : end] for end in at], STRETCH, device)


def needles(text, T, many, told=True):
    """Rows that begin with `name = word`, go on with T bytes of the test split, and end with that line's beginning.

    Names and words are identifiers of the validation split, cut to 16 letters. told=False: the first line has another
    word, so that nothing in the row says what the last line asks for.
    """
    known = sorted(set(re.findall(rb"\b[a-z][a-z_]{15}", bytes(text.validation))))
    order = np.random.default_rng(0).permutation(len(known))[: 2 * many + 2]
    drawn, found = [known[i] for i in order], []
    for i, end in enumerate(ends(text.test, T, many)):
        name, word = drawn[2 * i : 2 * i + 2]
        first = word if told else drawn[2 * i + 3]
        ask = b"\n" + name + b" = "
        parts = ask + first + b"()\n", bytes(text.test[end - T : end]), ask + word
        found.append(np.frombuffer(b"".join(parts), np.uint8))
    return found


def recall(net, text, T, many, device):
    """Bits per byte of the words of `needles`, and of the same words where the row does not have them."""
    return [bits(net, needles(text, T, many, told), WORD, device) for told in (True, False)]


def table(path=RESULTS / "scorecard.jsonl"):
    """(about, {(kind, name, T): record}) of a recorded file, for the book."""
    found = {r["key"]: r for r in read(path)}
    about = found.pop("about")
    return about, {(r["kind"], r["name"], r["T"]): r for r in found.values()}


def main():
    args = arguments(__doc__, text="", longest=LENGTHS[-1], stretches=STRETCHES, weights="")
    device, start = torch.device(args.device), time.monotonic()
    lengths = [T for T in LENGTHS if args.longest >= T][: 4 if args.small else None]
    repeats, many = (3, 2) if args.small else (9, args.stretches)
    folders = sorted(Path(args.weights).glob("s[0-9]")) if args.weights else [checkpoints.FOLDER]
    trained = [set(checkpoints.kept(folder)) for folder in folders] if args.weights else [set(KEPT)]
    names = [name for name in NAMES if not args.weights or name in set.intersection(*trained)]
    names = [name for name in names if args.only is None or name in args.only]
    seeds = {name: [model(name, folder if args.weights else None).to(device) for folder in folders] for name in names}
    nets = {name: found[0] for name, found in seeds.items()}
    known = {name: checkpoints.record(name, folders[0])["run"] for name in names if name in trained[0]}
    clock = Clock(device)
    half = torch.bfloat16 if clock.gpu else torch.float32

    def write(kind, name, T, **found):
        line = {"key": f"{kind}/{name}/{T}" if name else kind, "kind": kind, "name": name, "T": T, **found}
        args.out.parent.mkdir(parents=True, exist_ok=True)
        with args.out.open("a", encoding="utf8") as file:
            file.write(json.dumps(line) + "\n")
        print(f"{time.monotonic() - start:5.0f} s", kind, name, T, found, flush=True)

    text, about = corpus.load(args.text or None)
    models = {name: {"pattern": net.pattern, "parameters": lm.count(net).total, "kept": name in known,
                     "gap": agree(net, device)} for name, net in nets.items()}  # fmt: skip
    for name, run in known.items():
        models[name] |= {"trained": run["T"], "seed": run["seed"]}
    write(
        "about", "", 0, what=__doc__.splitlines()[0], torch=torch.__version__, dtype=str(half).removeprefix("torch."),
        device=torch.cuda.get_device_name(device) if clock.gpu else f"CPU, {platform.machine()}",
        cuda=torch.version.cuda, threads=torch.get_num_threads(), date=datetime.date.today().isoformat(), text=about,
        stretches=many, small=args.small, repeats=repeats, clock=clock.now.__name__, models=models,
    )  # fmt: skip
    fast = {name: copy.deepcopy(net).to(half) for name, net in nets.items()}
    longest = min(lengths[-1], LONGEST_LOSS)
    for T in lengths:
        with patched(device):
            for name in names:
                if time.monotonic() - start < args.seconds:
                    write("time", name, T, **times(fast[name], T, clock, repeats))
        for name in (name for name in known if longest >= T):
            learned = known[name]["task"]["sha256"]
            if learned != text.sha256:
                raise ValueError(
                    f"--text: {name} learned beside another text ({learned[:8]}) than {text.sha256[:8]}"
                )
            if time.monotonic() - start < args.seconds:
                each = seeds[name]
                found = [loss(net, text, T, longest, many, device) for net in each]
                write("loss", name, T, bits=found if args.weights else found[0])
                if args.weights:
                    told, untold = zip(*(recall(net, text, T, many, device) for net in each), strict=True)
                    write("recall", name, T, bits=told, untold=untold)


if __name__ == "__main__":
    main()
