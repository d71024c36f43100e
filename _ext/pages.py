"""Pages by their names. A chapter's file carries its number, chapters/05_linear_attention.ipynb, so that files sort
in reading order; here and nowhere else that number is known. Tests, evidence and links say `linear_attention`.

    python -m _ext.pages insert NAME AFTER     make room for NAME.ipynb behind the page AFTER (`make insert`)

Inserting moves the files behind it by one, writes a first notebook, and rewrites every mention of a moved file. Old
addresses go on working: `redirects.json` remembers which page stood there.
"""

import argparse
import json
import re
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parent.parent
NUMBER = re.compile(r"^(\d\d)_")
TEXT = (".py", ".md", ".ipynb", ".yml", ".toml")


def files(root: Path = ROOT) -> dict[str, Path]:
    """Name of every page to its file, in the order of the files."""
    found = {}
    for path in sorted((root / "chapters").glob("*")):
        if path.suffix in (".md", ".ipynb"):
            found[NUMBER.sub("", path.stem)] = path
    return found


def find(name: str, root: Path = ROOT) -> Path:
    """The file of a page. Raises KeyError with the names there are."""
    known = files(root)
    if name not in known:
        raise KeyError(f"no page {name!r}; there are {', '.join(known)}")
    return known[name]


def name(docname: str) -> str:
    """The name of the page that Sphinx calls `docname`."""
    return NUMBER.sub("", docname.removeprefix("chapters/"))


def docname(page: str, root: Path = ROOT) -> str:
    """What Sphinx calls a page: chapters/05_linear_attention."""
    return f"chapters/{find(page, root).stem}"


def redirects(root: Path = ROOT) -> dict[str, str]:
    """Old file name (without suffix) to the name of the page that stood there."""
    path = root / "_ext" / "redirects.json"
    return json.loads(path.read_text(encoding="utf8")) if path.exists() else {}


def insert(new: str, after: str, root: Path = ROOT) -> list[tuple[str, str]]:
    """Make room for a chapter; returns the moves as (old stem, new stem). Raises ValueError, KeyError."""
    if not re.fullmatch(r"[a-z][a-z_]*", new) or new in files(root):
        raise ValueError(f"NAME: expected a new name of small letters, got {new!r}")
    last = NUMBER.match(find(after, root).stem)
    if last is None:
        raise ValueError(f"AFTER: expected a numbered chapter, got {after!r}")
    place = int(last[1]) + 1
    numbered = [path for path in files(root).values() if NUMBER.match(path.stem)]
    moves = []
    for path in sorted(numbered, reverse=True):
        number = int(path.stem[:2])
        if number >= place:
            moves.append((path.stem, f"{number + 1:02d}{path.stem[2:]}"))
            path.rename(path.with_name(f"{moves[-1][1]}{path.suffix}"))
    _rewrite(moves, root)
    kept = redirects(root) | {old: name(old) for old, _ in moves}
    text = json.dumps(dict(sorted(kept.items())), indent=1) + "\n"
    (root / "_ext" / "redirects.json").write_text(text, encoding="utf8", newline="\n")
    title = new.replace("_", " ").capitalize()
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(f"# {title}")])
    nbformat.write(nb, root / "chapters" / f"{place:02d}_{new}.ipynb")
    toc = root / "_toc.yml"
    lines = toc.read_text(encoding="utf8").splitlines(keepends=True)
    at = next(i for i, line in enumerate(lines) if f"/{find(after, root).stem}" in line) + 1
    while at < len(lines) and lines[at].strip().startswith("title:"):
        at += 1
    lines.insert(at, f"      - file: chapters/{place:02d}_{new}\n")
    toc.write_text("".join(lines), encoding="utf8", newline="\n")
    return moves[::-1]


def _rewrite(moves, root):
    """Every mention of a moved file, in links, in the table of contents and in the README."""
    stems = re.compile("|".join(rf"\b{re.escape(old)}\b" for old, _ in moves) or r"(?!)")
    for path in [*root.glob("*.*"), *(root / "chapters").glob("*"), *(root / "tests").rglob("*.py")]:
        if path.suffix in TEXT and path.is_file():
            text = path.read_text(encoding="utf8")
            new = stems.sub(lambda m: dict(moves)[m[0]], text)
            if new != text:
                path.write_text(new, encoding="utf8", newline="\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["insert"])
    parser.add_argument("name")
    parser.add_argument("after")
    given = parser.parse_args()
    for old, new in insert(given.name, given.after):
        print(f"{old} -> {new}")
    print("numbers in prose (\"chapter 5\") are yours to look at: grep -rn 'hapter [0-9]' chapters README.md")


if __name__ == "__main__":
    main()
