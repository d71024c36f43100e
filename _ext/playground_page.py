"""What the playground's directive shows (playground.py): its still picture, and the weights that its script asks for.

Models are packed once for each state of the code and the weights (`_build/playground/HASH`) and copied into the built
book, never committed. What rounding costs is read from the record of the chapter on fewer bits.

With the name of a chapter's model the directive shows that one alone: its weights are calibrated as the chapter does.
"""

import hashlib
import json
import math
import shutil
import sys
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

from postx import export, tasks, text
from postx.explore.widget import widget
from postx.models import checkpoints
from postx.style import FAMILY

RACERS = ("attention", "hybrid", "ssd")
# What is written of each model, if its weights are kept, 16 for as it is kept; rounding a model takes seconds.
FILES = {
    "hybrid": (2, 3, 4, 16), "attention": (4, 16), "ssd": (4, 16), "gated_deltanet": (2, 3, 4, 16),
    "rwkv7": (2, 3, 4, 16), "whole_machine": (4,), "ternary": (None,),
}  # fmt: skip
DELTA = ("gated_deltanet", "rwkv7")
FILLER, MACHINE = "masked", "whole_machine"  # the last chapter has a model of its own, calibrated as it shows
SAYS = {
    "hybrid": "Six blocks of SSD and two of attention",
    "attention": "Eight blocks of attention",
    "ssd": "Eight blocks of SSD, no attention",
    "gated_deltanet": "Eight blocks of Gated DeltaNet, no attention",
    "rwkv7": "Eight blocks of RWKV-7, no attention",
    "whole_machine": "Six blocks of SSD and two of attention, each with eight experts of which two answer",
    "ternary": "Eight blocks of attention, trained so that each weight is -1, 0 or 1 times one number a layer",
}
NAMES = {"ssd": "SSD", "gated_deltanet": "Gated DeltaNet", "rwkv7": "RWKV-7", "whole_machine": "the whole machine"}
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
RECALL = checkpoints.FOLDER / "recall"  # small models of tokens (experiments/remember.py), as they are kept
REMEMBER = {"recall_attention": "attention", "recall_hybrid": "hybrid", "recall_ssd": "SSD"}
TOLD = "a7 k2 q9 d4 m1 x6 t3 h8"
RECORD, SPREAD = "experiments/results/quant.jsonl", "experiments/results/page_bits.json"
MEASURED = 8, 2048  # windows spread over an unseen text, and their length, for what rounding costs beyond the record
SOURCES = ("postx/export.py", "postx/models/experts.py", "postx/models/quantized.py", "postx/quant/gptq.py",
           "postx/quant/__init__.py", "postx/quant/_pack.py", "postx/quant/uniform.py",
           "postx/models/packed.py", "postx/models/checkpoints.py")  # fmt: skip


def offered(weights=checkpoints.FOLDER) -> dict:
    """{model: its widths}: the models whose weights are there, and 8 for 16 where rows of 8 bits are kept."""
    there = checkpoints.kept(weights)
    return {model: tuple(bits and min(bits, export.width(model, weights)) for bits in widths)
            for model, widths in FILES.items() if model in there}  # fmt: skip


def prepare(root: Path, weights=checkpoints.FOLDER) -> Path:
    """The folder with today's packed models, their scripts, curves.json (a text read) and bits.json (what is lost)."""
    models, digest = offered(weights), hashlib.sha256(sys.version.encode())
    parts = [root / name for name in SOURCES]
    parts += [Path(weights) / f"{model}{end}" for model in (*models, FILLER) for end in (".safetensors", ".json")]
    parts += [RECALL / f"{model}.safetensors" for model in REMEMBER]
    for path in parts:
        digest.update(path.read_bytes())
    folder = root / "_build" / "playground" / digest.hexdigest()[:16]
    if not folder.exists():
        shutil.rmtree(folder.parent, ignore_errors=True)  # of older code
        folder.mkdir(parents=True)
    for model, bits in [(model, bits) for model, widths in models.items() for bits in widths] + [(FILLER, 4)]:
        if not _script(folder, model, bits).exists():
            ids_BT = export.calibration() if model == MACHINE else None
            export.script(export.write(model, bits, folder, weights, ids_BT))
    for model in REMEMBER:
        if not _script(folder, model, 16).exists():
            export.script(export.write(model, 16, folder, RECALL))
    _once(folder / "curves.json", lambda: _curves(models, folder, weights))
    _once(folder / "bits.json", lambda: _measured(root, models, folder, weights))
    return folder


def _once(path, make):
    if not path.exists():
        path.write_text(json.dumps(make()), encoding="utf8")


def _script(folder, model, bits):
    return folder / export.SCRIPT.format(f"{model}_{bits or 'trits'}")


def _curves(models, folder, weights):
    long = _long(2 * max(trained(name, weights) for name in RACERS))
    found = {name: curve(f"{name}_4", folder, long) for name in RACERS}
    if MACHINE in models:
        read = bytes(text.packages_slice().test[: trained(MACHINE, weights)])
        found[MACHINE] = curve(f"{MACHINE}_4", folder, read)
    return {"long": long.decode(), "curves": found}


def _measured(root, models, folder, weights, anew=False):
    """{model: {width: bits a byte}} of the models that the record of the chapter on fewer bits does not have.

    Reading takes a minute, so what it gave is kept in SPREAD beside the hash of the weights; other weights are read.
    """
    path, found = root / SPREAD, {}
    kept = json.loads(path.read_text(encoding="utf8")) if path.exists() and not anew else {}
    for model in [name for name, widths in models.items() if None not in widths and not _recorded(root, name)]:
        if kept.get(model, {}).get("sha256") == _sha(model, weights):
            found[model] = kept[model]["bits"]
            continue
        data = text.packages_slice().test if _of_packages(model, weights) else text.load().test
        places = {bits: (f"{model}_{bits}", folder) for bits in models[model]}
        places[export.width(model, weights)] = model, weights
        found[model] = {str(bits): round(float(_losses(*where, spread(data)).mean()), 4)
                        for bits, where in places.items()}  # fmt: skip
    return found


def _sha(model, weights):
    return hashlib.sha256((Path(weights) / f"{model}.safetensors").read_bytes()).hexdigest()


def record(root: Path) -> None:
    """Read all that SPREAD keeps anew (`python -m _ext.playground_page`)."""
    models, weights = offered(), checkpoints.FOLDER
    found = _measured(root, models, prepare(root), weights, anew=True)
    rows = {model: {"sha256": _sha(model, weights), "bits": bits} for model, bits in found.items()}
    (root / SPREAD).write_text(json.dumps(rows, indent=1) + "\n", encoding="utf8")


def spread(data):
    """MEASURED windows of a text, from its beginning to its end: the first ones alone are all of one file."""
    windows, T = MEASURED
    return np.stack([data[at : at + T] for at in np.linspace(0, len(data) - T, windows).astype(int)])


def trained(model, weights=checkpoints.FOLDER):
    """Bytes of the windows that a kept model was trained on."""
    return checkpoints.record(model, weights)["run"]["T"]


def _of_packages(model, weights):
    return "packages" in checkpoints.record(model, weights)["run"]["task"]["source"]


def told(root: Path, folder: Path, weights=checkpoints.FOLDER) -> dict:
    """What the page's script is told: the models, what each file weighs and costs, and the texts to begin with."""
    models = {model: about(root, folder, model, widths, weights) for model, widths in offered(weights).items()}
    filler = {"id": f"{FILLER}_4", "bytes": _script(folder, FILLER, 4).stat().st_size}
    return {"first": "hybrid", "racers": RACERS, "models": models, "filler": filler,
            "start": START, "prompt": PROMPT, "hole": HOLE, "remember": _remember(folder)}  # fmt: skip


def _remember(folder):
    """The models that were told pairs, their tokens, and what they were trained on."""
    known = {model: checkpoints.record(model, RECALL) for model in REMEMBER}
    task = known["recall_ssd"]["task"]
    alphabets = tasks.alphabets(**{name: task[name] for name in ("keys", "values", "fillers")})
    models = [{"name": name, "id": f"{model}_16", "bytes": _script(folder, model, 16).stat().st_size,
               "weights": known[model]["parameters"]} for model, name in REMEMBER.items()]  # fmt: skip
    return {"models": models, "gaps": task["gaps"], "most": max(task["pairs"]), "start": TOLD,
            "tokens": {name: [ids.start, ids.stop] for name, ids in alphabets.items()}}  # fmt: skip


def about(root, folder, model, widths, weights=checkpoints.FOLDER):
    """What the page says of one model: its parts, its weights, what it was trained on, and its files."""
    files = {}
    for bits in widths:
        script = _script(folder, model, bits)
        files[str(bits or "trits")] = {
            "id": script.stem.removeprefix("weights_"), "bytes": script.stat().st_size,
            "name": f"{bits} bits" if bits else "1.6 bits", "says": _loss(root, folder, model, bits, weights),
        }  # fmt: skip
    known, T = checkpoints.record(model, weights), trained(model, weights)
    size = known["run"]["task"]["sizes"]["train"] / 1e6
    what = "Python code of many packages" if _of_packages(model, weights) else "Python's manual and docstrings"
    says = f"{SAYS[model]}: {known['parameters'] / 1e6:.1f} million weights, trained on {size:.1f} MB of {what}."
    return {"name": NAMES.get(model, model), "says": says, "trained": T, "files": files}


def _recorded(root, model):
    """{width: bits a byte} of a model in the record, by rounding to nearest."""
    rows = (json.loads(line) for line in (root / RECORD).read_text(encoding="utf8").splitlines())
    return {row["run"]["bits"]: row["metrics"]["bits"] for row in rows if row["run"]["part"] == "table"
            and row["run"]["model"] == model and row["run"]["method"] in ("full", "nearest")}  # fmt: skip


def _loss(root, folder, model, bits, weights):
    if bits is None:
        known = checkpoints.record(model, weights)["test_bits"]
        return f"On unseen text {known:.2f} bits a byte with inputs rounded as in training; here they are not rounded."
    if lost := _recorded(root, model):
        return f"On unseen text {lost[bits]:.3f} bits a byte{_more(lost, bits)}."
    read = json.loads((folder / "bits.json").read_text(encoding="utf8"))[model]
    lost = {int(key): value for key, value in read.items()}
    cost = _more(lost, bits)
    says = f"On unseen text {checkpoints.record(model, weights)['test_bits']:.3f} bits a byte before any rounding"
    return f"{says}; on {math.prod(MEASURED):,} bytes of it{cost.removeprefix(',')}." if cost else f"{says}."


def _more(lost, bits):
    kept = max(lost)
    more = lost[bits] - lost[kept]
    return "" if bits == kept else f", {abs(more):.3f} {'more' if more >= 0 else 'less'} than at {kept} bits"


def _long(n):
    """The first document of the unseen text that is plain ASCII and long enough, from its beginning."""
    documents = bytes(text.load().test).split(b"\0")
    return next(d for d in documents if len(d) >= n and d[:n].isascii())[:n]


def curve(name, folder, read):
    """Bits of each byte of the text, from a packed model, in float32."""
    return [round(float(x), 3) for x in _losses(name, folder, np.frombuffer(read, np.uint8)[None])[0]]


def _losses(name, folder, read):
    """Bits of each byte of some texts, (B, T) bytes."""
    lm = checkpoints.load(name, folder)
    read_BT = torch.from_numpy(np.asarray(read, np.int64))
    with torch.no_grad():
        logits = lm(torch.nn.functional.pad(read_BT, (1, 0))[:, :-1], form=_at_once)[0]
    return torch.nn.functional.cross_entropy(logits.mT, read_BT, reduction="none") / math.log(2)


def _at_once(mixer, *z, **more):
    """The fastest form here; of a delta rule that is the loop, a tenth of its chunks' time in torch."""
    form = "recurrent" if mixer.__name__.endswith(DELTA) else "chunked" if hasattr(mixer, "chunked") else "parallel"
    return getattr(mixer, form)(*z, **more)


def one(root: Path, folder: Path, model: str) -> dict:
    """What the script is told where a chapter shows its own model."""
    if model != MACHINE or model not in offered():
        raise ValueError(f"postx-playground: expected a model of a chapter that is kept, {MACHINE!r}, got {model!r}")
    return {"first": model, "models": {model: about(root, folder, model, offered()[model])}, "start": CODE}


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
    ax.axvline(trained(RACERS[0]), color="black", lw=0.8, ls="--")
    ax.set(xlim=(0, 1.2 * len(curves[RACERS[0]])), ylim=(0, None), xlabel="bytes read", ylabel="bits a byte, last 64")
    return fig


def page(root: Path, arguments: list) -> str:
    """The HTML of the directive, and of its still picture."""
    folder = prepare(root)
    read = json.loads((folder / "curves.json").read_text(encoding="utf8"))
    if arguments:
        data = one(root, folder, arguments[0])
        bits = read["curves"][arguments[0]]
        alt = f"One model reads {len(bits):,} bytes that it has not seen: bits for each, the last 64 at a time."
        still = draw_one(bits)
    else:
        data = told(root, folder) | {"long": read["long"]}
        alt = (f"Three models read a text of {len(read['long']):,} bytes. Up to {trained(RACERS[0])}, the length "
               "of their training, their lines run together; then attention climbs, hybrid and SSD stay low.")
        still = draw(read["curves"])
    picture = widget("playground", data, alt=alt, still=still, caption=CAPTION)
    return picture._repr_mimebundle_()[0]["text/html"]


if __name__ == "__main__":
    record(Path(__file__).resolve().parent.parent)
