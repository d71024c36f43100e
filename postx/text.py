"""Real text that every reader already has: Python's own manual, as bytes.

    text = load()                                   # text.train, text.validation, text.test: uint8 arrays
    batch = text.batches("train", B=32, T=256)      # batch(step) -> (ids_BT, targets_BT), for postx.train

The language reference inside CPython (`pydoc_data.topics`) and the docstrings of the standard library are read from
the running interpreter: its source files are parsed, never imported, and nothing of them is stored here. It is
about 1.7 MB and differs a little between Python versions, so `text.sha256` says which text a number belongs to.
A token is a byte; 0 stands before each document (a topic, or a module with its docstrings in order).

Nothing leaks between the splits. A topic, or a top-level package with all its modules, goes whole to one of them,
by a hash of its name; `_pydecimal` goes with `decimal`. A paragraph of 32 characters or more, spacing
aside, that has stood before (train first, then validation, then test) is dropped.
"""

import ast
import hashlib
import os
import re
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from postx import packages

SPLITS = ("train", "validation", "test")
SHORT = 32  # paragraphs of fewer characters, such as "Example:", may stand anywhere
# Not part of every installation, or not prose: tests, tools, tables, and what later versions dropped.
SKIPPED = {
    "site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3", "tkinter", "turtledemo", "distutils",
    "ensurepip", "encodings", "pydoc_data", "__pycache__",
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Text:
    """Three disjoint stretches of bytes, where they came from, and their hash."""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray
    source: str

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes in each split."""
        return {split: len(getattr(self, split)) for split in SPLITS}

    @property
    def sha256(self) -> str:
        """Of the three splits with their lengths: two texts of one hash are one text."""
        digest = hashlib.sha256(repr(self.sizes).encode())
        for split in SPLITS:
            digest.update(getattr(self, split).tobytes())
        return digest.hexdigest()

    def batches(self, split: str, B: int, T: int, *, seed: int = 0) -> Callable:
        """batch(step) -> (ids_BT, targets_BT): B stretches at random places, each byte asked for the next one.

        Raises ValueError where the split is not longer than T.
        """
        data = self._split(split)
        if len(data) <= T:
            raise ValueError(f"T: {split} has {len(data)} bytes, too few for T={T} and the byte after")
        reach = np.arange(T + 1)

        def batch(step):
            at = np.random.default_rng((seed, step)).integers(0, len(data) - T, (B, 1))
            bytes_BT = torch.from_numpy(data[at + reach].astype(np.int64))
            return bytes_BT[:, :-1], bytes_BT[:, 1:]

        return batch

    def windows(self, split: str, B: int, T: int, *, context: int = 0) -> Iterator:
        """Batches (ids_BT, targets_BT) that ask for every byte of the split once, in order.

        Each window of T starts with `context` bytes that are read and not asked for; before the first byte stand
        zeros. The last batch may have fewer rows. Raises ValueError unless 0 <= context < T.
        """
        if not 0 <= context < T:
            raise ValueError(f"context: expected 0 to {T - 1}, got {context}")
        data, stride = self._split(split).astype(np.int64), T - context
        rows = -(-len(data) // stride)
        ids, targets = np.zeros(context + rows * stride, np.int64), np.full(context + rows * stride, -100)
        ids[context + 1 : context + len(data)] = data[:-1]
        targets[context : context + len(data)] = data
        at = stride * np.arange(rows)[:, None] + np.arange(T)
        for first in range(0, rows, B):
            some = at[first : first + B]
            asked = torch.from_numpy(targets[some])
            asked[:, :context] = -100
            yield torch.from_numpy(ids[some]), asked

    def _split(self, split):
        if split not in SPLITS:
            raise ValueError(f"split: expected one of {', '.join(SPLITS)}, got {split!r}")
        return getattr(self, split)


def load(text: str | Path | None = None) -> Text:
    """Python's manual, a reader's own file, text="moby_dick.txt", or text="packages": `postx.packages`, 97 MB.

    The packages are for experiments, which read them once: seconds, and a download of 40 MB the first time. A
    committed slice of their validation and test is `packages_slice()`.
    An own file is cut, at a paragraph, into the first eight tenths, the ninth and the last; repeated paragraphs
    are dropped alike. The result is kept in memory. Raises FileNotFoundError; ValueError where a split stays empty;
    RuntimeError where this Python came without the source of its library.
    """
    if text is None:
        return _python()
    return _packages() if text == "packages" else _own(Path(text).resolve())


def packages_slice() -> Text:
    """Half a megabyte of the packages, 256 kB of validation and of test in 32 even stretches each; nothing to train."""
    with np.load(packages.SLICE) as file:
        parts = {split: file[split] for split in SPLITS[1:]}
    return Text(train=np.empty(0, np.uint8), **parts, source="a slice of the packages")


def cut_slice(text: Text, stretches: int = 32, long: int = 8192) -> dict[str, np.ndarray]:
    """The slice of a text: even stretches of its validation and test."""
    return {
        split: np.concatenate([x[at : at + long] for at in np.linspace(0, len(x) - long, stretches).astype(int)])
        for split, x in ((split, getattr(text, split)) for split in SPLITS[1:])
    }


@lru_cache(1)
def _packages():
    found = _distinct(packages.documents(), "sources of pure-Python wheels, see packages.json")
    if (known := packages.manifest().get("text")) and known["sha256"] != found.sha256:
        raise ValueError(f"packages: the text has SHA-256 {found.sha256}, the manifest says {known['sha256']}")
    return found


@lru_cache(1)
def _python():
    from pydoc_data.topics import topics

    folder = Path(sysconfig.get_path("stdlib"))
    documents = {f"topic {name}": (f"topic {name}", [words]) for name, words in topics.items()}
    for path in _sources(folder):
        parts = path.relative_to(folder).with_suffix("").parts
        if found := docstrings(path.read_bytes()):
            documents["module " + ".".join(parts)] = (f"module {group(parts[0])}", found)
    if len(documents) < len(topics) + 100:
        raise RuntimeError(f"{folder}: this Python has no source of its standard library; give text= a file")
    splits = {split: [] for split in SPLITS}
    for name in sorted(documents):
        whole, found = documents[name]
        splits[split_of(whole)].append(found)
    return _distinct(splits, "pydoc_data.topics and the standard library's docstrings")


@lru_cache(4)
def _own(path):
    found = paragraphs(path.read_text(encoding="utf8", errors="replace"))
    ends = np.cumsum([len(p) for p in found])
    cuts = [0, *np.searchsorted(ends, [0.8 * ends[-1], 0.9 * ends[-1]]), len(found)] if found else [0] * 4
    splits = {split: [found[a:b]] for split, a, b in zip(SPLITS, cuts, cuts[1:], strict=False)}
    return _distinct(splits, path.name)


def split_of(name: str) -> str:
    """A tenth of all names go to test, a tenth to validation, the rest to train, by the SHA-256 of the name."""
    tenth = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big") % 10
    return {0: "test", 1: "validation"}.get(tenth, "train")


def group(package: str) -> str:
    """The package that a private twin belongs to: group("_pydecimal") == group("_decimal") == "decimal"."""
    return re.sub(r"^_(py)?", "", package) or package


def docstrings(source: bytes) -> list[str]:
    """The docstrings of a module, its classes and functions, in order, without importing it."""
    try:
        tree = ast.parse(source)
    except SyntaxError:  # the library holds a few files that are templates, or wrong on purpose
        return []
    found, waiting = [], [tree]
    while waiting:
        node = waiting.pop()
        documented = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        if documented and (words := ast.get_docstring(node)):
            found.append(words)
        inner = [x for part in ("body", "handlers", "orelse", "finalbody") for x in getattr(node, part, [])]
        waiting += reversed([x for x in inner if isinstance(x, ast.stmt | ast.excepthandler)])
    return found


def paragraphs(words: str) -> list[str]:
    """The parts of a text between blank lines."""
    return [p.rstrip() for p in re.split(r"\n[ \t\r]*\n\s*?(?=[ \t]*\S)", words) if p.strip()]


def _sources(folder):
    """The library's own files: below SKIPPED nothing is looked at."""
    for place, inner, files in os.walk(folder):
        # config-3.11-... and _sysconfigdata... are about the machine that built this Python.
        inner[:] = [x for x in inner if x not in SKIPPED and not x.startswith("config-")]
        yield from (Path(place, f) for f in files if f.endswith(".py") and not f.startswith("_sysconfigdata"))


def _distinct(splits, source):
    """Documents to bytes, each behind a 0, without the paragraphs that have stood before."""
    seen, bytes_of = set(), {}
    for split in SPLITS:
        documents = []
        for document in splits[split]:
            kept = []
            for paragraph in (p for words in document for p in paragraphs(words)):
                key = " ".join(paragraph.split())
                if len(key) < SHORT or key not in seen:
                    kept.append(paragraph)
                    seen.add(key)
            if kept:
                documents.append("\0" + "\n\n".join(kept) + "\n")
        if not documents:
            raise ValueError(f"text: {source} is too short to be split: nothing is left for {split}")
        data = np.frombuffer("".join(documents).encode(), np.uint8)
        data.flags.writeable = False
        bytes_of[split] = data
    return Text(**bytes_of, source=source)
