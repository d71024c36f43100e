"""The playground's directive: its still picture, and the packed weights that the page's script asks for.

Models are packed once for each state of the code and the weights (`_build/playground/HASH`) and copied into the built
book, never committed. What rounding costs is read from the record of the chapter on fewer bits.
"""

import hashlib
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import torch
from docutils import nodes
from matplotlib.figure import Figure
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from postx import export, text
from postx.explore.widget import widget
from postx.models import checkpoints
from postx.style import FAMILY

RACERS = ("attention", "hybrid", "ssd")
# What is written of each model; the widths of the hybrid are all there, as rounding a model takes seconds.
FILES = {"hybrid": (2, 3, 4, 16), "attention": (4, 16), "ssd": (4, 16), "ternary": (None,)}
FILLER = "masked"
SAYS = {
    "hybrid": "Six blocks of SSD and two of attention.",
    "attention": "Eight blocks of attention.",
    "ssd": "Eight blocks of SSD, no attention.",
    "ternary": "Eight blocks of attention, trained so that each weight is -1, 0 or 1 times one number a layer.",
}
NAMES = {"ssd": "SSD"}
START = """open_archive(path, mode="r")
    Open the archive and return an object that behaves like a file. If it cannot be opened, an OSError is raised.
"""
PROMPT = "The following functions are defined: "
HOLE = ("Return a copy of the ", " object, or raise an exception.")
LONG = 1024
RECORD = "experiments/results/quant.jsonl"
SOURCES = ("postx/export.py", "postx/quant/__init__.py", "postx/quant/_pack.py", "postx/quant/uniform.py",
           "postx/models/packed.py", "postx/models/checkpoints.py")  # fmt: skip


def prepare(root: Path) -> Path:
    """The folder with today's packed models, their scripts, and curves.json: a text read by three of them."""
    digest = hashlib.sha256(sys.version.encode())
    for name in (*SOURCES, *(f"postx/weights/{model}.safetensors" for model in (*FILES, FILLER))):
        digest.update((root / name).read_bytes())
    folder = root / "_build" / "playground" / digest.hexdigest()[:16]
    if not folder.exists():
        shutil.rmtree(folder.parent, ignore_errors=True)  # of older code
        folder.mkdir(parents=True)
    for model, bits in [(model, bits) for model, widths in FILES.items() for bits in widths] + [(FILLER, 4)]:
        if not _script(folder, model, bits).exists():
            export.script(export.write(model, bits, folder))
    curves = folder / "curves.json"
    if not curves.exists():
        long = _long()
        found = {name: curve(f"{name}_4", folder, long) for name in RACERS}
        curves.write_text(json.dumps({"long": long.decode(), "curves": found}), encoding="utf8")
    return folder


def _script(folder, model, bits):
    return folder / export.SCRIPT.format(f"{model}_{bits or 'trits'}")


def told(root: Path, folder: Path) -> dict:
    """What the page's script is told: the models, what each file weighs and costs, and the texts to begin with."""
    models = {}
    for model, widths in FILES.items():
        files = {}
        for bits in widths:
            script = _script(folder, model, bits)
            files[str(bits or "trits")] = {
                "id": script.stem.removeprefix("weights_"), "bytes": script.stat().st_size,
                "name": f"{bits} bits" if bits else "1.6 bits", "says": _loss(root, model, bits),
            }  # fmt: skip
        models[model] = {"name": NAMES.get(model, model), "says": SAYS[model], "files": files}
    filler = {"id": f"{FILLER}_4", "bytes": _script(folder, FILLER, 4).stat().st_size}
    return {"first": "hybrid", "racers": RACERS, "models": models, "filler": filler,
            "start": START, "prompt": PROMPT, "hole": HOLE}  # fmt: skip


def _loss(root, model, bits):
    if bits is None:
        known = checkpoints.record(model)["test_bits"]
        return f"On unseen text {known:.2f} bits a byte with inputs rounded as in training; here they are not rounded."
    rows = (json.loads(line) for line in (root / RECORD).read_text(encoding="utf8").splitlines())
    lost = {row["run"]["bits"]: row["metrics"]["bits"] for row in rows if row["run"]["part"] == "table"
            and row["run"]["model"] == model and row["run"]["method"] in ("full", "nearest")}  # fmt: skip
    against = "" if bits == 16 else f", {lost[bits] - lost[16]:.3f} more than at 16 bits"
    return f"On unseen text {lost[bits]:.3f} bits a byte{against}."


def _long():
    """The first document of the unseen text that is plain ASCII and long enough, from its beginning."""
    documents = bytes(text.load().test).split(b"\0")
    return next(d for d in documents if len(d) >= LONG and d[:LONG].isascii())[:LONG]


def curve(name, folder, read):
    """Bits of each byte of the text, from a packed model, in float32."""
    lm = checkpoints.load(name, folder)
    ids = torch.tensor([[0, *read]])
    with torch.no_grad():
        logits = lm(ids[:, :-1], form="parallel")[0][0]
    loss = torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="none")
    return [round(float(x) / 0.6931471805599453, 3) for x in loss]


def draw(curves):
    """Three lines: bits a byte over the last 64 bytes, along a text of twice the trained length."""
    fig = Figure(figsize=(5.6, 3.0), layout="constrained")
    ax = fig.subplots()
    for name, family in zip(RACERS, ("attention", "hybrid", "ssm"), strict=True):
        means = np.convolve(curves[name], np.ones(64) / 64, "valid")
        ax.plot(64 + np.arange(len(means)), means, color=FAMILY[family], lw=1.6)
        ax.text(len(curves[name]) + 12, means[-1], NAMES.get(name, name), color=FAMILY[family], va="center")
    ax.axvline(512, color="black", lw=0.8, ls="--")
    ax.set(xlim=(0, 1.2 * LONG), ylim=(0, None), xlabel="bytes read", ylabel="bits a byte, last 64")
    return fig


class Playground(SphinxDirective):
    def run(self):
        root = Path(self.env.srcdir)
        folder = prepare(root)
        read = json.loads((folder / "curves.json").read_text(encoding="utf8"))
        alt = ("Three models read a text of 1,024 bytes. Up to 512, the length that they were trained on, their lines "
               "run together; then attention climbs, hybrid and SSD stay low.")  # fmt: skip
        picture = widget("playground", told(root, folder) | {"long": read["long"]}, alt=alt,
                         still=draw(read["curves"]), caption="What the page computes, drawn in "
                         "Python: this reader runs no scripts.")  # fmt: skip
        data, _ = picture._repr_mimebundle_()
        return [nodes.raw("", data["text/html"], format="html")]


def copy_weights(app: Sphinx, exception) -> None:
    if exception is not None or app.builder.format != "html":
        return
    target = Path(app.outdir) / "_static" / "playground"
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for script in prepare(Path(app.srcdir)).glob("*.js"):
        shutil.copyfile(script, target / script.name)


def setup(app: Sphinx) -> None:
    app.add_directive("postx-playground", Playground)
    app.connect("build-finished", copy_weights)
