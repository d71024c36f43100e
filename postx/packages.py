"""Sources of pure-Python wheels, for experiments that need more text than Python's manual and read it once.

`packages.json` is the manifest: wheels (one file for every system) with version, SHA-256 and split. They are
fetched from the package index by pip as it is configured, checked, and read as archives; nothing is installed or
imported. A package is in one split. What is no prose of a programmer is left out: vendored copies, migrations,
tables, and files that say that they were generated.
"""

import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
MANIFEST, SLICE = HERE / "packages.json", HERE / "weights" / "packages.npz"
ANYWHERE = ("--no-deps", "--only-binary=:all:", "--platform=any", "--implementation=py", "--abi=none")
LONGEST = 200_000  # bytes; a longer file is a table
_LEFT_OUT = re.compile(
    r"(^|/)(_vendor|vendored?|_vendored|extern|migrations|locale|typeshed|node_modules)/|_pb2\.py$|/_?(unicode|mapping|"
    r"version)\w*\.py$|builtins?\.py$|/uni(data|string)\w*\.py$"
)
_GENERATED = re.compile(rb"(auto(matically|-)?\s*-?generated|generated (by|from|file)|do not (edit|modify))", re.I)


def manifest() -> dict:
    """{"wheels": [{"name", "version", "file", "sha256", "split"}], "text": {"sha256", "sizes"}}."""
    return json.loads(MANIFEST.read_text(encoding="utf8"))


def folder() -> Path:
    """Where wheels are kept: POSTX_PACKAGES, or the user's cache."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("POSTX_PACKAGES") or Path(cache) / "postx" / "packages")


def fetch(wheel: dict, to: Path) -> Path:
    """The wheel's file, downloaded where it is missing. RuntimeError with pip's words; ValueError for other bytes."""
    path = to / wheel["file"]
    if not path.exists():
        to.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=to) as fresh:  # no half file under the name
            command = [sys.executable, "-m", "pip", "download", "-q", *ANYWHERE, "--python-version=3.11", "-d", fresh]
            done = subprocess.run(
                [*command, f"{wheel['name']}=={wheel['version']}"], capture_output=True, text=True, check=False
            )
            found = [p for p in Path(fresh).iterdir() if p.suffix == ".whl"]
            if done.returncode or len(found) != 1:
                raise RuntimeError(f"pip could not download {wheel['name']} {wheel['version']}: {done.stderr.strip()}")
            found[0].rename(path)
    if (sha256 := hashlib.sha256(path.read_bytes()).hexdigest()) != wheel["sha256"]:
        raise ValueError(f"{path}: SHA-256 is {sha256}, the manifest says {wheel['sha256']}")
    return path


def sources(path: Path) -> list[str]:
    """The source files of a wheel that were written by people, in the order of their names."""
    found = []
    with zipfile.ZipFile(path) as archive:
        for info in sorted(archive.infolist(), key=lambda info: info.filename):
            if not info.filename.endswith(".py") or info.file_size > LONGEST or _LEFT_OUT.search(info.filename):
                continue
            source = archive.read(info)
            if source.strip() and not _GENERATED.search(source[:600]):
                found.append(source.decode("utf8", errors="replace").replace("\r\n", "\n"))
    return found


def documents() -> dict[str, list[list[str]]]:
    """Split to its documents, each a list with one source file, package after package."""
    splits = {"train": [], "validation": [], "test": []}
    for wheel in manifest()["wheels"]:
        splits[wheel["split"]] += [[source] for source in sources(fetch(wheel, folder()))]
    return splits
