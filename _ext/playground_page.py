"""The playground's directive: its still picture, and the packed weights that the page's script asks for.

Models are packed once for each state of the code and the weights (`_build/playground/HASH`) and copied into the built
book, never committed. What rounding costs is read from the record of the chapter on fewer bits.

With the name of a chapter's model the directive shows that one alone: its weights are calibrated as the chapter does.
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
CODE = """def read_lines(path, encoding="utf-8"):
    with open(path, encoding=encoding) as file:
        for line in file:
            yield line.rstrip()


"""
CAPTION = "What the page computes, drawn in Python: this reader runs no scripts."
LONG = 1024
RECORD = "experiments/results/quant.jsonl"
MACHINE, TRAINED = "whole_machine", 2048  # the last chapter's model, and the length that it was trained on
SOURCES = ("postx/export.py", "postx/models/experts.py", "postx/models/quantized.py", "postx/quant/gptq.py",
           "postx/quant/__init__.py", "postx/quant/_pack.py", "postx/quant/uniform.py",
           "postx/models/packed.py", "postx/models/checkpoints.py")  # fmt: skip


def prepare(root: Path) -> Path:
    """The folder with today's packed models, their scripts, and curves.json: a text read by three of them."""
    digest = hashlib.sha256(sys.version.encode())
    alone = [MACHINE] if MACHINE in checkpoints.kept() else []
    for name in (*SOURCES, *(f"postx/weights/{model}.safetensors" for model in (*FILES, FILLER, *alone))):
        digest.update((root / name).read_bytes())
    folder = root / "_build" / "playground" / digest.hexdigest()[:16]
    if not folder.exists():
        shutil.rmtree(folder.parent, ignore_errors=True)  # of older code
        folder.mkdir(parents=True)
    for model, bits in [(model, bits) for model, widths in FILES.items() for bits in widths] + [(FILLER, 4)]:
        if not _script(folder, model, bits).exists():
            export.script(export.write(model, bits, folder))
    for model in alone:
        if not _script(folder, model, 4).exists():
            export.script(export.write(model, 4, folder, ids_BT=export.calibration()))
            read = bytes(text.packages_slice().test[:TRAINED])
            (folder / f"{model}.json").write_text(json.dumps(curve(f"{model}_4", folder, read)), encoding="utf8")
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


def one(folder: Path, model: str) -> dict:
    """What the script is told where a chapter shows its own model."""
    if not _script(folder, model, 4).exists():
        raise ValueError(f"postx-playground: expected a model of a chapter that is kept, {MACHINE!r}, got {model!r}")
    script = _script(folder, model, 4)
    file = {"id": f"{model}_4", "bytes": script.stat().st_size, "name": "4 bits", "says": ""}
    says = "Six blocks of SSD and two of attention, with experts in each, in 4 bits by GPTQ."
    return {"first": model, "models": {model: {"name": "the machine", "says": says, "files": {"4": file}}},
            "start": CODE}  # fmt: skip


def draw_one(bits):
    """Bits a byte over the last 64 bytes of an unseen text."""
    fig = Figure(figsize=(5.6, 2.4), layout="constrained")
    ax = fig.subplots()
    means = np.convolve(bits, np.ones(64) / 64, "valid")
    ax.plot(64 + np.arange(len(means)), means, color=FAMILY["hybrid"], lw=1.6)
    ax.set(xlim=(0, len(bits)), ylim=(0, None), xlabel="bytes read", ylabel="bits a byte, last 64")
    return fig


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
    optional_arguments = 1

    def run(self):
        root = Path(self.env.srcdir)
        folder = prepare(root)
        if self.arguments:
            (model,) = self.arguments
            data = one(folder, model)
            bits = json.loads((folder / f"{model}.json").read_text(encoding="utf8"))
            alt = f"One model reads {len(bits):,} bytes that it has not seen: bits for each, the last 64 at a time."
            picture = widget("playground", data, alt=alt, still=draw_one(bits), caption=CAPTION)
            return [nodes.raw("", picture._repr_mimebundle_()[0]["text/html"], format="html")]
        read = json.loads((folder / "curves.json").read_text(encoding="utf8"))
        alt = ("Three models read a text of 1,024 bytes. Up to 512, the length that they were trained on, their lines "
               "run together; then attention climbs, hybrid and SSD stay low.")  # fmt: skip
        picture = widget("playground", told(root, folder) | {"long": read["long"]}, alt=alt,
                         still=draw(read["curves"]), caption=CAPTION)
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
