"""The scorecard by length of text: time to read, time for the next byte, memory of the state, and loss.

    python -m experiments.scorecard --out FILE [--text FILE.npz] [--device cuda:0] [--seconds N] [--small]

Six models of the small size, 2.9 million parameters each: `attention`, `ssd` and `hybrid` with their kept weights;
`local` (a window of 128, every fourth layer full), `gated_deltanet` and `rwkv7` with the first weights that a seed
gives them, which cost as much as trained ones. For lengths from 256 to 131,072 bytes, the shorter ones first:

time    reading a prompt of T bytes at batch 1, then one more byte after it at batch 1 and 16; the bytes of the state
        there, and the peak of memory beyond weights. bf16 on a GPU, float32 on a CPU; median, least and most of runs.
loss    bits per byte of the same 64 stretches of 128 bytes of the test split, each read with the T - 128 bytes
        before it, up to T = 65,536. The kept models were trained on 512 bytes: what is longer is extrapolation.

On a GPU the forms are those the package takes by itself, with two exceptions that this script holds against the
package's before it measures: one query reads its cache, and a window its band, through torch's fused attention.
The recorded file is of one CPU thread: --device cpu --longest 4096 --stretches 32, with torch.set_num_threads(1).
Without --text the running interpreter's text is read; the loss is refused on a text that the models did not learn.
"""

import copy
import datetime
import json
import platform
import statistics
import time
from contextlib import ExitStack
from unittest import mock

import torch
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from experiments.runner import corpus
from experiments.runner.equal import config
from experiments.runner.results import RESULTS, read
from experiments.runner.sweep import arguments
from postx import mixers
from postx.mixers import attention
from postx.models import checkpoints, lm
from postx.train import autocast

D, TARGET, SEED = 192, 2_900_000, 0
LENGTHS = [2**k for k in range(8, 18)]
BATCHES = 1, 16  # rows of one decoding step
KEPT = "attention", "hybrid", "ssd"
PATTERNS = {"local": "LLLALLLA", "gated_deltanet": "G" * 8, "rwkv7": "7" * 8}
TABLE = {"A": {"H": 4}, "L": {"H": 4, "window": 128}, "G": {"conv_size": 4}, "7": {"H": 4}}
NAMES = "attention", "local", "hybrid", "ssd", "gated_deltanet", "rwkv7"
STRETCH, STRETCHES, LONGEST_LOSS = 128, 64, 2**16
AT_ONCE = {"cuda": 2**21, "cpu": 2**15}  # bytes in one pass of the loss


def model(name):
    """The model of that name on the CPU, float32, in evaluation mode."""
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


@torch.inference_mode()
def times(net, T, clock, repeats):
    """What reading T bytes costs, and one more byte after them."""
    ids = torch.randint(256, (1, T), generator=torch.Generator().manual_seed(T)).to(clock.device)
    prefill, peak, (logits, S) = clock(lambda: net(ids), repeats)
    found = {"prefill_ms": prefill, "prefill_peak_bytes": peak, "state_bytes": lm.size(S)}
    del logits
    for B in BATCHES:
        hold = [mixers.map_state(lambda x, B=B: x.expand(B, *x.shape[1:]).clone(), S)]
        token = torch.zeros(B, 1, dtype=torch.int64, device=clock.device)

        def next_byte(hold=hold, token=token):
            hold[0] = net(token, hold[0], inplace=True)[1]

        found[f"token_ms_{B}"], found[f"token_peak_bytes_{B}"], _ = clock(next_byte, 3 * repeats, warm=3)
    return found


@torch.inference_mode()
def agree(net, device, T=700, tolerance=1e-3):
    """Hold the forms that are timed against the package's own, and a step against reading; returns the largest gap."""
    ids = torch.randint(256, (2, T), generator=torch.Generator().manual_seed(1)).to(device)
    whole = net(ids)[0]
    with patched(device):
        part, S = net(ids[:, :-1])
        last = net(ids[:, -1:], S, inplace=True)[0]
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


def table(path=RESULTS / "scorecard.jsonl"):
    """(about, {(kind, name, T): record}) of a recorded file, for the book."""
    found = {r["key"]: r for r in read(path)}
    about = found.pop("about")
    return about, {(r["kind"], r["name"], r["T"]): r for r in found.values()}


def main():
    args = arguments(__doc__, text="", longest=LENGTHS[-1], stretches=STRETCHES)
    device, start = torch.device(args.device), time.monotonic()
    lengths = [T for T in LENGTHS if args.longest >= T][: 4 if args.small else None]
    repeats, many = (3, 2) if args.small else (9, args.stretches)
    names = [name for name in NAMES if args.only is None or name in args.only]
    nets = {name: model(name).to(device) for name in names}
    clock = Clock(device)
    half = torch.bfloat16 if clock.gpu else torch.float32

    def write(kind, name, T, **found):
        line = {"key": f"{kind}/{name}/{T}" if name else kind, "kind": kind, "name": name, "T": T, **found}
        args.out.parent.mkdir(parents=True, exist_ok=True)
        with args.out.open("a", encoding="utf8") as file:
            file.write(json.dumps(line) + "\n")
        print(f"{time.monotonic() - start:5.0f} s", kind, name, T, found, flush=True)

    text, about = corpus.load(args.text or None)
    write(
        "about", "", 0, what=__doc__.splitlines()[0], torch=torch.__version__, dtype=str(half).removeprefix("torch."),
        device=torch.cuda.get_device_name(device) if clock.gpu else f"CPU, {platform.machine()}",
        cuda=torch.version.cuda, threads=torch.get_num_threads(), date=datetime.date.today().isoformat(),
        text=about, trained=512, stretches=many, small=args.small, repeats=repeats, clock=clock.now.__name__,
        models={name: {"pattern": net.pattern, "parameters": lm.count(net).total, "kept": name in KEPT,
                       "gap": agree(net, device)} for name, net in nets.items()},
    )  # fmt: skip
    fast = {name: copy.deepcopy(net).to(half) for name, net in nets.items()}
    longest = min(lengths[-1], LONGEST_LOSS)
    for T in lengths:
        with patched(device):
            for name in names:
                if time.monotonic() - start < args.seconds:
                    write("time", name, T, **times(fast[name], T, clock, repeats))
        for name in (name for name in names if name in KEPT and longest >= T):
            learned = checkpoints.record(name)["run"]["task"]["sha256"]
            if learned != text.sha256:
                raise ValueError(
                    f"--text: {name} learned beside another text ({learned[:8]}) than {text.sha256[:8]}"
                )
            if time.monotonic() - start < args.seconds:
                write("loss", name, T, bits=loss(nets[name], text, T, longest, many, device))


if __name__ == "__main__":
    main()
