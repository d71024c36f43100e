"""Every notebook runs alone: a first cell fetches what is missing, and nothing is looked for beside the notebook."""

import ast
import os
import subprocess
import sys

import nbformat
import pytest

from _ext import install, notebooks, pages

CHAPTERS = [path for path in pages.files().values() if path.suffix == ".ipynb"]
ADDRESS = "https://github.com/owner/postx"
DEPENDENCIES = {"IPython", "ipywidgets", "matplotlib", "numba", "numpy", "safetensors", "scipy", "torch"}
DEPENDENCIES |= {"sympy"}  # comes with torch


def code(path):
    return [c.source for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code"]


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda p: p.stem)
def test_the_cell_comes_with_an_address_and_goes_without_one(path):
    assert install.is_right(nbformat.read(path, as_version=4), install.address())
    nb = nbformat.read(path, as_version=4)
    before = [cell.source for cell in nb.cells]
    install.put(install.put(nb, ADDRESS), ADDRESS)
    assert install.is_right(nb, ADDRESS)
    assert not install.is_right(nb, "")
    assert not install.is_right(nb, ADDRESS + "2")
    nbformat.validate(nb)
    assert sum(ADDRESS in cell.source for cell in nb.cells) == 1
    assert nb.cells[0].source.startswith("# "), "the title stays first"
    install.put(nb, "")
    assert [cell.source for cell in nb.cells] == [source for source in before if ADDRESS not in source]


def test_an_address_without_its_cell_is_a_fault(monkeypatch):
    monkeypatch.setattr(install, "address", lambda: ADDRESS)
    assert "the cell that installs the package" in " ".join(notebooks.faults(CHAPTERS[0]))


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda p: p.stem)
def test_a_notebook_needs_nothing_beside_it(path):
    """It imports only the package and what the package brings, and finds files from the package's own place."""
    for source in code(path):
        tree = ast.parse(source)
        names = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
        names |= {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
        tops = {name.partition(".")[0] for name in names}
        assert tops - sys.stdlib_module_names <= DEPENDENCIES | {"postx", "experiments"}, source
        texts = [n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)]
        assert not [text for text in texts if text.startswith(("../", "./"))], source
        assert "Path.cwd" not in source
        assert "Path()" not in source


FAKE = """
import sys
with open({log!r}, "a") as log:
    log.write(" ".join(sys.argv[1:]) + "\\n")
"""


def test_the_cell_fetches_what_is_missing_once_and_holds_torch(tmp_path, monkeypatch):
    """The cell against a repository on this disk, with a pip that only writes down what it was asked."""
    repository = tmp_path / "far"
    (repository / "postx").mkdir(parents=True)
    (repository / "postx" / "__init__.py").write_text("here = True\n")
    for words in (["init", "-q"], ["add", "."],
                  ["-c", "user.name=x", "-c", "user.email=x@y.z", "commit", "-qm", "first"]):  # fmt: skip
        subprocess.run(["git", *words], cwd=repository, check=True)
    alone, log = tmp_path / "alone", tmp_path / "asked"
    cell = install.CODE.format(address=repository.as_uri())
    files = {
        "torch/__init__.py": "",
        "torch-9.9.dist-info/METADATA": "Metadata-Version: 2.1\nName: torch\nVersion: 9.9\n",
        "pip/__init__.py": "",
        "pip/__main__.py": FAKE.format(log=str(log)),
        "cell.py": f"{cell}\nimport postx\nprint(postx.__file__)",
    }
    for name, text in files.items():
        (alone / name).parent.mkdir(parents=True, exist_ok=True)
        (alone / name).write_text(text)
    command = [sys.executable, "-S", "cell.py"]  # -S: no installed packages, so this postx is missing as well
    path = {"PATH": os.environ["PATH"]}
    runs = [subprocess.run(command, cwd=alone, env=path, text=True, capture_output=True, check=True) for _ in range(2)]
    assert all(str(alone / "postx-book" / "postx") in run.stdout for run in runs)
    assert "about a minute" in runs[0].stdout
    asked = f"install --quiet -c {alone}/postx-book/stays.txt -e {alone}/postx-book"
    assert log.read_text().splitlines() == [asked, asked]
    assert (alone / "postx-book" / "stays.txt").read_text() == "torch==9.9"
