"""How fast the model in the page is, and if it remembers: python -m benchmarks.playground [speed|typing|sums|names]

speed needs a built book and Chromium. Milliseconds a byte in the page's worker, on the wall's clock; the same sums on
the page's own thread with the processor slowed 4 times (Chromium slows that thread only), on the wall's clock and, at
full speed, in time of the processor, which other work on the machine disturbs less; and the longest task of the page's
thread while 60 keys are pressed, 60 ms apart, at both speeds.

sums needs node: milliseconds a byte with the program of WebAssembly and without it, a few bytes of the one and a few of
the other in turn, in one process, and the median over the turns of their ratio. Writes results/playground.json.
"""

import argparse
import contextlib
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests" / "tools"))
import browser  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "playground.json"
SLOWER, BYTES = 4, 200
TASK = "ThreadControllerImpl::RunTask"  # as the trace calls one task; other names for it lie inside it
MODELS = ("hybrid_4", "attention_4", "ssd_4", "gated_deltanet_4", "rwkv7_4", "whole_machine_4", "ternary_trits",
          "hybrid_16", "rwkv7_8")  # fmt: skip
NAMES, FAR = ("zorbin_count", "quillfeather", "makemossle"), (0, 100, 400, 1000)
TOLD = "The attribute {} is the number of open files.\n\n"
ASKED = "\n\nThe attribute "

# On the page's own thread: the lower quartile of the later bytes, as other work on the machine only ever adds.
SUMS = """async ([id, n]) => {
  const m = {};
  Object.values(window.postx.parts).forEach((part) => part(m));
  const { told, body } = await window.postx.playground.weights(id);
  const net = m.network(told, m.open(m.fromBase64(body)));
  const times = [];
  for (let i = 0; i < n; i++) {
    const start = performance.now();
    net.step(97 + (i % 26));
    times.push(performance.now() - start);
    if (i % 20 === 19) await new Promise((done) => setTimeout(done));
  }
  times.splice(0, n / 2);
  return times.sort((a, b) => a - b)[Math.floor(times.length / 4)];
}"""
PARTS = ROOT / "_static" / "widgets" / "playground"
IN_TURN = """
const fs = require("fs"), vm = require("vm"), [folder, file, rounds] = process.argv.slice(1);
globalThis.window = { postx: {} };
globalThis.postx = window.postx;
globalThis.location = { href: "file:///page.html" };
globalThis.document = { currentScript: null };
const run = (path) => vm.runInThisContext(fs.readFileSync(path, "utf8"), { filename: path });
fs.readdirSync(folder).forEach((name) => run(`${folder}/${name}`));
let model = null;
window.postx.take = (id, told, body) => (model = { told, body });
run(file);
const network = (plain) => {
  const m = {};
  Object.values(window.postx.parts).forEach((part) => part(m));
  if (plain) [m.kernel, m.floats] = [() => null, (n) => new Float32Array(n)];
  return m.network(model.told, m.open(m.fromBase64(model.body)));
};
const BYTES = 5, nets = [network(true), network(false)], times = [[], []];
for (let round = 0; round < 2 * rounds; round++)
  for (const which of round % 2 ? [0, 1] : [1, 0]) {
    const start = performance.now();
    for (let i = 0; i < BYTES; i++) nets[which].step(97 + (i % 26));
    if (round >= rounds) times[which].push((performance.now() - start) / BYTES); // by then all is compiled
  }
process.stdout.write(JSON.stringify(times));
"""
IN_WORKER = """async ([id, n]) => new Promise(async (done) => {
  const reader = await window.postx.playground.reader(id, { rows: ({ ms, busy }) => busy || (reader.end(), done(ms)) });
  reader.ask("read", { bytes: Uint8Array.from({ length: n }, (_, i) => 97 + (i % 26)) });
})"""


def open_page(chrome, address, slower=1):
    page = chrome.new_context(viewport={"width": 390, "height": 844}).new_page()
    page.goto(address)
    page.wait_for_selector(".pp-main")
    session = page.context.new_cdp_session(page)
    session.send("Emulation.setCPUThrottlingRate", {"rate": slower})
    return page, session


def processor(session):
    """Seconds of processor time that the page's thread has spent in tasks."""
    found = session.send("Performance.getMetrics")["metrics"]
    return next(each["value"] for each in found if each["name"] == "TaskDuration")


def typing(chrome, address, slower, text=None):
    """The longest task of the page's thread, in milliseconds of the processor, while 60 keys are pressed."""
    page, session = open_page(chrome, address, slower)
    if text:
        page.fill("textarea", text)
    page.click(".pp-main")
    said = "document.querySelector('.pp-said').textContent"
    page.wait_for_function(f"{said}.includes('bits a byte')", timeout=120_000)
    page.focus("textarea")
    page.keyboard.press("Control+End")
    page.wait_for_timeout(1000)  # what was still to be drawn is
    session.send("Tracing.start", {"categories": "toplevel,devtools.timeline", "transferMode": "ReportEvents"})
    events = []
    session.on("Tracing.dataCollected", lambda event: events.extend(event["value"]))
    page.keyboard.type("this function returns the name of the file, and of those ", delay=60)
    ended = []
    session.on("Tracing.tracingComplete", lambda event: ended.append(event))
    session.send("Tracing.end")
    while not ended:
        page.wait_for_timeout(50)
    page.context.close()
    main = {e["tid"] for e in events if e.get("name") == "thread_name" and e["args"]["name"] == "CrRendererMain"}
    tasks = [e["tdur"] / 1000 for e in events if e.get("name") == TASK and e.get("tid") in main and "tdur" in e]
    return {"longest": max(tasks), "over_16": sum(t > 16 for t in tasks), "tasks": len(tasks)}


def keys(chrome, address):
    """`typing` at both speeds, behind the text that the page begins with and behind one that nearly fills it."""
    long = "open the file and read it again\n" * 90
    typed = {f"slowed_{rate}": typing(chrome, address, rate) for rate in (1, SLOWER)}
    typed |= {f"slowed_{SLOWER}_behind_{len(long)}_bytes": typing(chrome, address, SLOWER, long)}
    print(typed, flush=True)
    return {name: {key: round(value, 1) for key, value in row.items()} for name, row in typed.items()}


@contextlib.contextmanager
def started(html):
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        chrome = play.chromium.launch(executable_path=browser.chromium(), args=browser.FLAGS)
        yield chrome, (html.resolve() / "chapters" / "playground.html").as_uri()
        chrome.close()


def speed(html, repeat):
    with started(html) as (chrome, address):
        rows = {}
        for name in MODELS:
            worker, plain, slow = [], [], []
            for _ in range(repeat):
                page, session = open_page(chrome, address)
                worker.append(page.evaluate(IN_WORKER, [name, BYTES]))
                page.evaluate(SUMS, [name, BYTES])  # the weights are there now, and the compiler has seen the sums
                session.send("Performance.enable", {"timeDomain": "threadTicks"})
                before = processor(session)
                page.evaluate(SUMS, [name, 3 * BYTES])
                plain.append(1000 * (processor(session) - before) / (3 * BYTES))
                page.context.close()
                page, session = open_page(chrome, address, SLOWER)
                slow.append(page.evaluate(SUMS, [name, BYTES]))
                page.context.close()
            found = {"worker_ms": worker, "processor_ms": plain, f"page_ms_slowed_{SLOWER}": slow}
            rows[name] = {key: round(statistics.median(x), 2) for key, x in found.items()}
            rows[name]["bytes_a_second_slowed"] = round(1000 / statistics.median(slow), 1)
            print(name, rows[name], flush=True)
        typed = keys(chrome, address)
        version = chrome.version
    return {"chromium": version, "bytes": BYTES, "models": rows, "typing": typed}


def sums(rounds=30):
    """{model: milliseconds a byte without and with the program, and how many times as fast it is}: medians."""
    from postx import export

    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in ("hybrid", "attention", "ssd"):
            script = export.script(export.write(name, 4, Path(folder)))
            told = ["node", "-e", IN_TURN, str(PARTS), str(script), str(rounds)]
            times = json.loads(subprocess.run(told, capture_output=True, text=True, check=True).stdout)
            ratio = statistics.median(plain / program for plain, program in zip(*times, strict=True))
            plain, program = (round(statistics.median(x), 2) for x in times)
            rows[name] = {"javascript_ms": plain, "program_ms": program, "times_as_fast": round(ratio, 1)}
            print(name, rows[name], flush=True)
    return {"bytes": 5 * rounds, "models": rows}


def names():
    """Bits a letter of an invented name, behind its first, where it was told before, less where another one was."""
    import torch

    from postx import text
    from postx.models import checkpoints

    words = bytes(text.load().test).replace(b"\0", b"\n\n")
    gains = {}
    for model in ("attention", "hybrid", "ssd"):
        lm = checkpoints.load(model)
        for far in FAR:
            between = words[5000 : 5000 + far].decode("latin1")
            gain = []
            for name in NAMES:
                told, not_told = (bits(lm, TOLD.format(first) + between + ASKED, name, torch)
                                  for first in (name, "x" * len(name)))  # fmt: skip
                gain.append(not_told - told)
            gains[f"{model}, {far} bytes"] = round(statistics.mean(gain), 2)
            print(model, far, gain, flush=True)
    return gains


def bits(lm, before, name, torch):
    ids = torch.tensor([[0, *(before + name).encode("latin1")]])
    with torch.no_grad():
        p = lm(ids, form="parallel")[0][0].log_softmax(-1)
    at = torch.arange(ids.shape[1] - len(name) + 1, ids.shape[1])
    return float(-p[at - 1, ids[0, at]].mean() / 0.6931471805599453)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", nargs="?", choices=("speed", "typing", "sums", "names"))
    parser.add_argument("--html", type=Path, default=browser.HTML, help="the folder of the built book")
    parser.add_argument("--repeat", type=int, default=3, help="visits; the median of them is kept")
    parser.add_argument("--note", default="", help="what else the machine was doing")
    args = parser.parse_args()
    kept = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    about = {"date": datetime.date.today().isoformat(), "note": args.note,
             "device": f"{platform.machine()}, {os.cpu_count()} cores"}  # fmt: skip
    if args.what in (None, "speed"):
        kept["speed"] = about | speed(args.html, args.repeat)
    if args.what == "typing":
        with started(args.html) as (chrome, address):
            kept["speed"]["typing"] = about | keys(chrome, address)
    if args.what in (None, "sums"):
        kept["sums"] = about | sums()
    if args.what in (None, "names"):
        kept["names"] = about | {"told": TOLD, "asked": ASKED, "names": NAMES, "bits_gained": names()}
    RESULTS.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf8")


if __name__ == "__main__":
    main()
