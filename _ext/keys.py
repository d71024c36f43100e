"""What the book's two caches are keyed by: executed notebooks, and drawn pages. Imports nothing that takes time."""

import hashlib
import sys
from pathlib import Path

# A change in any of these means that the notebooks must be executed again; in any of CODE, that pages be drawn again.
RUN = ("postx", "experiments", "evidence/claims.toml", "requirements.txt", "pyproject.toml")
CODE = (*RUN, "_ext", "_static")


def code_digest(root: Path, names: tuple[str, ...] = CODE) -> str:
    """Hash of the content of everything that a page is computed from, its own text apart."""
    digest = hashlib.sha256(sys.version.encode())
    for name in names:
        top = root / name
        for path in [top] if top.is_file() else sorted(top.rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                digest.update(path.relative_to(root).as_posix().encode() + b"\0")
                digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:16]


def cache_folder(root: Path) -> Path:
    """Where the book looks for executed notebooks: a folder for today's code."""
    return root / "_build" / ".jupyter_cache" / code_digest(root, RUN)
