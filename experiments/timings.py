"""Orders of two times that a page speaks of: recorded here once, and compared with the machine that runs the page.

    python -m experiments.timings          record them: one thread, a warm-up, seven repeats (half a minute)

A page calls `agree(name, slower, faster)` with its own seconds and prints what it says. `make notebooks` refuses to
write outputs in which a machine has the opposite order: then the sentence is not ready, or the machine was busy.
"""

import datetime
import json
import platform
import statistics
import time
from functools import partial

from experiments.runner.results import RESULTS, read

FILE, REPEATS = RESULTS / "timings.jsonl", 7
AGREES, DISAGREES = "On this machine, the same order", "On this machine, the opposite order"
# The program that takes longer, then the other.
ORDERS = {
    "s4d": ("a loop of steps", "the scan"),
    "selective": ("the loop in torch", "the compiled kernel"),
    "ssd": ("token by token", "chunks"),
    "filter": ("the definition", "the transform"),
    "cache": ("token 16,384 of attention", "token 10"),
}


def agree(name, slower, faster):
    """What the record says of an order, and whether these two times (in seconds) say the same."""
    a, b = ORDERS[name]
    found = {r["program"]: r for r in read(FILE) if r["name"] == name}
    if set(found) != {a, b}:
        raise ValueError(f"name: no record of {name!r} in {FILE.name}: run python -m experiments.timings")
    times = found[a]["ms"][0] / found[b]["ms"][0]
    verdict = AGREES if slower > faster else DISAGREES
    return (
        f"Recorded ({found[a]['device']}, {found[a]['date']}):\n{a} {times:.0f} times as long as {b}.\n"
        f"{verdict}: {slower / faster:.0f} times."
    )


def programs():
    """Both programs of every order, as the pages have them."""
    import numpy as np
    import torch

    from postx import scans
    from postx.mixers import attention, mamba, s4d, ssd
    from postx.parts import conv

    torch.manual_seed(0)
    torch.set_num_threads(1)
    scans.set_threads(1)

    def narrow(x):
        return x.to(torch.complex64 if x.is_complex() else torch.float32)

    def by_steps(mixer, z, w):
        S = mixer.init(*(x[:, 0] for x in z), **w)
        for t in range(z[0].shape[1]):
            _, S = mixer.step(S, *(x[:, t] for x in z), **w)

    def example(mixer, *args, **sizes):
        z, w = mixer.example(*args, **sizes)
        return [narrow(x) for x in z], {k: narrow(x) if torch.is_tensor(x) else x for k, x in w.items()}

    z, w = example(s4d, 1024, B=1, D=64, N=16)
    yield "s4d", partial(by_steps, s4d, z, w), partial(s4d.recurrent, *z, **w)
    z, w = example(mamba, T=512, B=1, D=256, N=16)
    yield "selective", partial(mamba.recurrent, *z, **w, impl="reference"), partial(mamba.recurrent, *z, **w)
    z, w = example(ssd, 2048, B=1, H=4, G=4, K=128, V=64)
    z[3] = 0.02 * z[3]
    yield "ssd", partial(by_steps, ssd, z, w), partial(ssd.chunked, *z, **w)
    text, taps = torch.randn(16384).double(), torch.randn(16384).double()
    direct = partial(np.convolve, text.numpy(), taps.numpy())
    yield "filter", direct, partial(conv.long_convolution, text[None, :, None], taps[None])

    def write(n):
        x, cache = torch.randn(1, 4, 64), torch.randn(1, n, 4, 64)
        return partial(attention.step, (cache, cache.clone(), torch.tensor([n - 1])), x, x, x, inplace=True)

    yield "cache", write(16384), write(10)


def milliseconds(run):
    """[median, least, most] of the processor's time, after one run that warms up."""
    run()
    times = []
    for _ in range(REPEATS):
        start = time.process_time()
        run()
        times.append(1e3 * (time.process_time() - start))
    return [round(x, 4) for x in (statistics.median(times), min(times), max(times))]


def main():
    import torch

    about = {
        "repeats": REPEATS, "clock": "process_time", "torch": torch.__version__, "threads": 1,
        "device": f"CPU ({platform.machine()})", "date": datetime.date.today().isoformat(),
    }  # fmt: skip
    lines = []
    with torch.no_grad():
        for name, *both in programs():
            for program, run in zip(ORDERS[name], both, strict=True):
                record = {"key": f"{name}: {program}", "kind": "timing", "name": name, "program": program}
                lines.append(record | {"ms": milliseconds(run)} | about)
                print(lines[-1]["key"], lines[-1]["ms"], flush=True)
    FILE.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf8")


if __name__ == "__main__":
    main()
