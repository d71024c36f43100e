"""The cell with which a notebook runs alone: it fetches the package where that is missing, as in Colab.

A notebook has it only where _config.yml says the repository's address (postx_repository), because without an address
there is nothing to fetch; `make notebooks` puts it in or takes it out. It copies the repository instead of installing
a wheel, since chapters also read kept weights and recorded runs, which no wheel has. What is installed already stays:
pip is held to the very torch that is there, and fails rather than replace it.
"""

from pathlib import Path

import nbformat
import yaml

ROOT = Path(__file__).resolve().parent.parent
ID = "install-postx"
PLACE = 1  # behind the title
CODE = '''\
# Only where postx is missing, as in Colab: copies its repository, about a minute. The torch that is there stays.
import importlib.metadata
import importlib.util
import subprocess
import sys
from pathlib import Path

if importlib.util.find_spec("postx") is None:
    print("postx is not here: copying and installing it takes about a minute", flush=True)
    copy = Path("postx-book").resolve()
    if not copy.exists():
        subprocess.run(["git", "clone", "--quiet", "--depth", "1", "{address}", str(copy)], check=True)
    stays = [f"torch=={{importlib.metadata.version('torch')}}"] if importlib.util.find_spec("torch") else []
    (copy / "stays.txt").write_text("\\n".join(stays))
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "-c", str(copy / "stays.txt"), "-e", str(copy)]
    subprocess.run(pip, check=True)
    sys.path.insert(0, str(copy))  # this kernel has already looked for what is installed
    importlib.invalidate_caches()'''


def address(root: Path = ROOT) -> str:
    """Where the repository is, as _config.yml says, or nothing."""
    config = yaml.safe_load((root / "_config.yml").read_text(encoding="utf8"))
    return config["sphinx"]["config"]["postx_repository"].rstrip("/")


def cell(repository: str) -> nbformat.NotebookNode:
    """The cell for a repository's address. The page does not show it; JupyterLab, VS Code and Colab do."""
    return nbformat.v4.new_code_cell(CODE.format(address=repository), id=ID, metadata={"tags": ["remove-cell"]})


def put(nb: nbformat.NotebookNode, repository: str) -> nbformat.NotebookNode:
    """Put the cell behind the title, or take it out where no repository is known; in place."""
    rest = [c for c in nb.cells if c.get("id") != ID]
    nb.cells = [*rest[:PLACE], cell(repository), *rest[PLACE:]] if repository else rest
    return nb


def is_right(nb: nbformat.NotebookNode, repository: str) -> bool:
    """Whether the notebook has the cell of this address, or none where there is no address."""
    found = [(i, c.source, c.metadata.get("tags")) for i, c in enumerate(nb.cells) if c.get("id") == ID]
    return found == ([(PLACE, CODE.format(address=repository), ["remove-cell"])] if repository else [])
