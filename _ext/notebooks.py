"""Write, check and run the committed notebooks.

    python -m _ext.notebooks           execute every chapter and write it in normal form (`make notebooks`)
    python -m _ext.notebooks --fresh   the same, and record the timing cells anew
    python -m _ext.notebooks --check   fail unless every committed notebook is executed and in normal form
    python -m _ext.notebooks --test    run nbval over them: outputs compared where they are comparable

Normal form is what two runs write alike: no widget state, no timestamps, one kernel specification, adjacent
streams merged. A cell with the tag ``nbval-ignore-output`` measures time, on which no two runs agree, or prints what
no two machines agree on, such as a trained network's score, and asserts a band for it; its committed output is kept
as long as its source stays the same.
"""

import argparse
import hashlib
import os
import platform
import subprocess
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

from _ext import install

ROOT = Path(__file__).resolve().parent.parent
CELL_TIMEOUT = 600  # seconds, for slow and busy machines; the same as execute.timeout in _config.yml
TIMING = "nbval-ignore-output"  # a tag of the cell; nbval knows it
WIDGETS = ("application/vnd.jupyter.widget-view+json", "application/vnd.jupyter.widget-state+json")
KERNEL = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
STRICT_ON = "Linux x86-64 with Python 3.11"
DISAGREES = "On this machine, the opposite order"  # said by experiments/timings.py, against its record


def chapters(root: Path = ROOT) -> list[Path]:
    """The committed notebooks in reading order."""
    return sorted((root / "chapters").glob("*.ipynb"))


def normalize(nb: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Bring a notebook to the form in which it is committed, in place; running it twice changes nothing."""
    nb.metadata = nbformat.from_dict({"kernelspec": KERNEL, "language_info": {"name": "python"}})
    nb.nbformat, nb.nbformat_minor = 4, 5
    taken: set[str] = set()
    for cell in nb.cells:
        source = cell.source.rstrip()
        cell.source = source
        ident = cell.get("id", "")
        for n in range(len(nb.cells) + 1):
            if ident and ident not in taken:
                break
            ident = hashlib.sha256(f"{n}:{source}".encode()).hexdigest()[:8]
        taken.add(ident)
        cell.id = ident
        for key in ("execution", "collapsed", "scrolled", "trusted", "jupyter", "widgets"):
            cell.metadata.pop(key, None)
        if cell.cell_type == "code":
            cell.outputs = _outputs(cell.outputs)
            for output in cell.outputs:
                if output.output_type == "execute_result":
                    output.execution_count = cell.execution_count
    return nb


def _outputs(outputs: list) -> list:
    kept: list = []
    for output in outputs:
        for mime in WIDGETS:
            output.get("data", {}).pop(mime, None)
        if "data" in output and not output.data:
            continue
        if "metadata" in output:
            output.metadata = {k: v for k, v in output.metadata.items() if k in output.data}
        last = kept[-1] if kept else None
        if (
            output.output_type == "stream"
            and last
            and last.output_type == "stream"
            and last.name == output.name
        ):
            last.text += output.text
        else:
            kept.append(output)
    return kept


def text_of(nb: nbformat.NotebookNode) -> str:
    """The bytes of a notebook file: one space of indent, unescaped letters, a final line end."""
    return nbformat.writes(nb, version=4, indent=1, ensure_ascii=False).rstrip("\n") + "\n"


def execute(path: Path, fresh: bool = False) -> str:
    """Run one notebook with a live kernel, as a learner would, and return its text in normal form."""
    nb = nbformat.read(path, as_version=4)
    recorded = {c.source.rstrip(): c.outputs for c in nb.cells if c.cell_type == "code" and c.outputs}
    install.put(nb, install.address())
    NotebookClient(
        nb, timeout=CELL_TIMEOUT, kernel_name="python3", resources={"metadata": {"path": str(path.parent)}}
    ).execute()
    for cell in nb.cells:
        timing = cell.cell_type == "code" and TIMING in cell.metadata.get("tags", [])
        if timing and not fresh and cell.source.rstrip() in recorded:
            cell.outputs = recorded[cell.source.rstrip()]
    if said := disagreements(nb):
        raise Contradiction(f"{path.name} is not written: " + "; ".join(said))
    return text_of(normalize(nb))


class Contradiction(Exception):
    """Outputs whose order of two times is not that of the record."""


def disagreements(nb: nbformat.NotebookNode) -> list[str]:
    """The lines of outputs that contradict a recorded order of two times."""
    streams = [o.text for c in nb.cells if c.cell_type == "code" for o in c.outputs if o.output_type == "stream"]
    return [line for text in streams for line in text.splitlines() if line.startswith(DISAGREES)]


def faults(path: Path) -> list[str]:
    """What keeps a committed notebook from being what `make notebooks` writes."""
    text = path.read_text(encoding="utf8")
    nb = nbformat.reads(text, as_version=4)
    nbformat.validate(nb)
    found = []
    code = [c for c in nb.cells if c.cell_type == "code" and c.source.strip()]
    if [c.execution_count for c in code] != list(range(1, len(code) + 1)):
        found.append("its cells were not executed once each, from top to bottom")
    if any(o.output_type == "error" for c in code for o in c.outputs):
        found.append("a cell ends in an error")
    if any("text/html" in o.get("data", {}) for c in code for o in c.outputs):
        found.append("a cell has HTML, which GitHub and JupyterLab may strip and nbval cannot tell from a figure's")
    if any(line.strip().startswith("# NBVAL") for c in code for line in c.source.splitlines()):
        found.append("a comment speaks to nbval, and stands on the page: use the tag, such as " + TIMING)
    if not install.is_right(nb, install.address()):
        found.append("the cell that installs the package is not that of postx_repository in _config.yml")
    found += disagreements(nb)
    if text_of(normalize(nb)) != text:
        found.append("it is not in normal form")
    return [f"{path.name}: {fault}: run `make notebooks`" for fault in found]


def is_strict() -> bool:
    """Whether outputs can be compared here: only where floats print alike. If not, say why."""
    here = f"{platform.system()} {platform.machine()} with Python {sys.version_info[0]}.{sys.version_info[1]}"
    if here.replace("x86_64", "x86-64") == STRICT_ON:
        return True
    print(f"nbval: this is {here}; outputs are compared on {STRICT_ON} only, here the cells are just run")
    return False


def nbval(arguments: list[str], paths: list[Path], strict: bool, **options) -> subprocess.CompletedProcess:
    """Run nbval over notebooks. What passes becomes the page of the book: see executed.py."""
    command = [sys.executable, "-m", "pytest", "--nbval" if strict else "--nbval-lax", "--nbval-current-env"]
    command += [f"--nbval-cell-timeout={CELL_TIMEOUT}", "-p", "no:cacheprovider", "-p", "_ext.executed"]
    command += ["--dist", "loadfile", *arguments, *map(str, paths)]
    environment = os.environ | {"POSTX_STATIC": "both"}  # as a learner sees it, and as it stands in the book
    return subprocess.run(command, cwd=ROOT, env=environment, check=False, text=True, **options)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    mode = parser.add_mutually_exclusive_group()
    for name in ("fresh", "check", "test"):
        mode.add_argument(f"--{name}", action="store_true")
    options, rest = parser.parse_known_args()
    if rest and not options.test:
        parser.error(f"unknown arguments {' '.join(rest)}")
    os.environ.pop("POSTX_STATIC", None)  # committed outputs are those of a live kernel
    if options.test:
        return nbval(rest, chapters(), is_strict()).returncode
    if options.check:
        found = [fault for path in chapters() for fault in faults(path)]
        print("\n".join(found) or f"{len(chapters())} notebooks are executed and in normal form")
        return bool(found)
    refused = []
    for path in chapters():
        try:
            text = execute(path, options.fresh)
        except Contradiction as error:
            print(error)
            refused.append(path)
            continue
        changed = text != path.read_text(encoding="utf8")
        if changed:
            path.write_text(text, encoding="utf8", newline="\n")
        print(f"{path.relative_to(ROOT)}: {'written' if changed else 'unchanged'}, {len(text) // 1000} kB")
    return bool(refused)


if __name__ == "__main__":
    sys.exit(main())
