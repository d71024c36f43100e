"""The page's own files of the playground, run in node, and small models to run them on."""

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from postx.models import checkpoints
from postx.models.lm import LM

PARTS = Path(__file__).resolve().parents[2] / "_static" / "widgets" / "playground"
NEEDS_NODE = pytest.mark.skipif(shutil.which("node") is None, reason="no node here: it runs the files of the page")
PROMPTS = ("The following functions are defined: ", "Return a new string in which é ", "class Queue:\n    ")
OPTIONS = {
    "A": {"H": 4, "G": 2}, "S": {"K": 16, "V": 16}, "F": {"F": 40}, "E": {"E": 6, "k": 2, "F": 20},
    "G": {"conv_size": 4, "K": 12, "V": 16}, "7": {"H": 4, "rank": 8},
}  # fmt: skip

RUN = """
const fs = require("fs"), vm = require("vm"), [folder, file, job, plain] = process.argv.slice(1);
const window = { postx: {} };
const world = vm.createContext({ window, postx: window.postx, atob, TextDecoder, TextEncoder, URL, performance,
  WebAssembly: plain ? undefined : WebAssembly,
  location: { href: "file:///page.html" }, document: { currentScript: null } });
const run = (path) => vm.runInContext(fs.readFileSync(path, "utf8"), world, { filename: path });
fs.readdirSync(folder).filter((name) => name.endsWith(".js")).forEach((name) => run(`${folder}/${name}`));
const m = {};
Object.values(window.postx.parts).forEach((part) => part(m));
const page = window.postx.playground;
let model = null;
window.postx.take = (id, told, body) => (model = { told, body });
if (file) run(file);
const ask = JSON.parse(fs.readFileSync(0, "utf8"));
const weights = model && m.open(m.fromBase64(model.body));
const jobs = {
  logits: () => { const net = m.network(model.told, weights); return ask.map((byte) => Array.from(net.step(byte))); },
  experts: () => { // of the last place of every text, one after the other in one reader
    const reader = m.reader(m.network(model.told, weights));
    return ask.map((text) => {
      reader.read(Uint8Array.from(text));
      while (reader.turn(0, () => 1)?.busy);
      return reader.experts(text.length); }); },
  routes: () => {
    const net = m.network(model.told, weights);
    ask.forEach((byte) => net.step(byte));
    return net.routed.map((mlp) => mlp.chosen); },
  weights: () => Object.fromEntries(ask.map((name) => [name, Array.from(weights[name])])),
  write: () => ask.prompts.map((prompt) => {
    const reader = m.reader(m.network(model.told, weights));
    reader.read(Uint8Array.from(prompt));
    reader.write(ask.n, 0, 1);
    while (reader.turn(0, () => 1)?.busy);
    return reader.bytes.slice(prompt.length); }),
  edit: () => { // every text one after the other in one reader: what it tells of each, and its last logits
    const reader = m.reader(m.network(model.told, weights));
    return ask.map((text) => {
      reader.read(Uint8Array.from(text));
      const heard = [];
      for (let busy = true; busy; ) {
        const news = reader.turn(0, () => 1);
        heard.splice(news.from, Infinity, ...news.rows);
        busy = news.busy;
      }
      return { rows: heard.length, logits: Array.from(reader.logits[text.length]) }; }); },
  ready: () => { // whether a place may be asked about: at first, after each text was named, and after it was read
    const reader = m.reader(m.network(model.told, weights));
    return [reader.ready, ...ask.flatMap((text) => {
      reader.read(Uint8Array.from(text));
      const named = reader.ready;
      while (reader.turn(0, () => 1)?.busy);
      return [named, reader.ready]; })]; },
  tables: () => {
    const reader = m.reader(m.network(model.told, weights));
    reader.read(Uint8Array.from(ask.ids));
    while (reader.turn(0, () => 1)?.busy);
    return Array.from({ length: Math.min(ask.heads, model.told.blocks[0].H) }, (_, head) => reader.table(0, head)); },
  sums: () => ask.map(({ W, x, y, S, keep, w, v }) => {
    const held = (rows) => { const all = m.floats(rows.length); all.set(rows); return all; };
    const table = held(S);
    m.write(table, keep, w, v);
    const ones = new Float32Array(x.length).fill(1);
    return { program: m.kernel(table, 4, 4) !== null, write: Array.from(table),
      times: Array.from(m.times(held(W), Float32Array.from(x), y.length)),
      mix: Array.from(m.mix(held(W), Float32Array.from(y), ones)) }; }),
  recall: () => { // one reader, asked about one text after the other
    const reader = m.reader(m.network(model.told, weights));
    return ask.map(({ ids, asked }) => reader.recall(ids, asked).map((p) => Array.from(p))); },
  denoise: () => m.denoiser(model.told, weights)(ask).map((row) => Array.from(row)),
  fill: () => ask.map((job) => m.filler(model.told, weights, () => {}).fill(job)),
  spell: () => ask.map((bytes) => { const text = page.text(bytes); return [text, page.bytes(text)]; }),
  exp: () => ask.map(m.exp),
  numbers: () => ask.map(([seed, place]) => m.number(seed, place)),
  draws: () => ask.map((pieces) => { // 40 bytes at temperature 1, so many of them at a time
    const reader = m.reader(m.network(model.told, weights));
    reader.read(new Uint8Array());
    for (let left = 40; left; left -= pieces) {
      reader.write(pieces, 1, 7);
      while (reader.turn(0, () => 1)?.busy);
    }
    return reader.bytes; }),
  draw: () => ask.map(([logits, temperature, number]) => m.draw(Float32Array.from(logits), temperature, number)),
};
process.stdout.write(JSON.stringify(jobs[job]()));
"""


def node(job, ask, script="", plain=False):
    """What the page's files say. plain: without the program of WebAssembly, as in a browser that has none."""
    told = [str(PARTS), str(script), job, *["plain"] * plain]
    done = subprocess.run(["node", "-e", RUN, *told], input=json.dumps(ask), text=True,
                          capture_output=True, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def small(folder, pattern="AS", seed=0, name="small", mlp="F", taps=0, **record):
    """A few blocks with random weights, norms and time steps of its own included, kept as a model is."""
    torch.manual_seed(seed)
    options = {k: OPTIONS[k] | ({"conv_size": taps} if k == "A" else {}) for k in {*pattern, *mlp}}
    config = {"D": 48, "Y": 256, "pattern": pattern, "mlp": mlp, "options": options}
    lm = LM(**config)
    with torch.no_grad():
        for p in lm.parameters():
            p.add_(0.3 * torch.randn_like(p))
    checkpoints.save(name, lm, config, record, folder)
    return name


def at_once(mixer, *z, **more):
    """The form of a mixer that nothing has to be compiled for."""
    return getattr(mixer, "parallel", getattr(mixer, "chunked", None))(*z, **more)


def reference(lm, ids):
    with torch.no_grad():
        return lm(torch.tensor([ids]), form=at_once)[0][0].numpy()


def text(n, seed):
    """Bytes of every kind: words, then anything, whole characters or not."""
    rng = np.random.default_rng(seed)
    words = "Open the file, é and ﬀ; 𝛼 = 1.\n".encode() * 4
    return [*words[: n // 2], *rng.integers(0, 256, n - n // 2).tolist()]
