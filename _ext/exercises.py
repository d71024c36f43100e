"""Exercises without their solutions, a notebook for each chapter: python -m _ext.exercises FOLDER (`make exercises`).

A notebook begins with the chapter's imports; behind each exercise is an empty cell to work in.
"""

import re
import sys
from pathlib import Path

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from _ext import install, notebooks, pages

ASKED = re.compile(r"^(`{3,})\{exercise\} (.*?)\n:label: (ex-\S+)\n(.*?)\n^\1\n?$", re.M | re.S)


def asked(path: Path) -> list[tuple[str, str, str]]:
    """(label, kind, text) of every exercise of a chapter."""
    cells = nbformat.read(path, as_version=4).cells
    text = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    return [(label, kind.strip(), told.strip()) for _, kind, label, told in ASKED.findall(text)]


def sheet(path: Path) -> nbformat.NotebookNode | None:
    """The exercises of a chapter as a notebook of their own, or None where there are none."""
    found = asked(path)
    if not found:
        return None
    cells = nbformat.read(path, as_version=4).cells
    imports = next(cell.source for cell in cells if cell.cell_type == "code" and cell.id != install.ID)
    title = re.match(r"# (.*)", cells[0].source)[1]
    told = f"# Exercises: {title}\n\nThey belong to `{path.name}`, whose equations and functions they name."
    made = [new_markdown_cell(told), new_code_cell(imports)]
    for _, kind, text in found:
        made += [new_markdown_cell(f"## {kind}\n\n{text}"), new_code_cell()]
    for number, cell in enumerate(made):
        cell.id = f"exercise-{number}"
    nb = new_notebook(cells=made, metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}})
    return install.put(nb, install.address())


def main():
    if len(sys.argv) != 2:
        sys.exit("which folder? python -m _ext.exercises _build/exercises")
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for path in pages.files().values():
        if path.suffix == ".ipynb" and (made := sheet(path)):
            (folder / path.name).write_text(notebooks.text_of(made), encoding="utf8")
            print(f"{folder / path.name}: {len(made.cells) // 2 - 1} exercises")


if __name__ == "__main__":
    main()
