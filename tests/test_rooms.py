"""The house itself: what a room may weigh, and which way its doors open."""

import ast
import re
from collections import defaultdict
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "postx"
MODULES = {p.relative_to(PACKAGE.parent).with_suffix("").as_posix().replace("/", ".").removesuffix(".__init__"): p
           for p in PACKAGE.rglob("*.py")}  # fmt: skip
# Lines of the rooms that a reader is told to read: what they had when this was written, and 15% more. A new mixer or
# quantizer adds a file, so of those rooms the mean of a file is held. The scans grew by a third when each recurrence
# got its backward pass by hand, on a GPU and on a CPU. Explore grew by two fifths with handles of other kinds and with
# figures that are a formula, which Python writes as JavaScript; words for a phone and small heat maps are 50 lines,
# dots as one line and neighbors swapped at once 80. The scans' last 210: where the general delta rule's b is k, as in
# KDA, its two costliest kernels have a faster form (170 lines); slices of heads are added up (20).
LINES = {"shapes": 280, "cost": 335, "parts": 665, "scans": 6560, "explore": 1330}
MEAN = {"mixers": 195, "quant": 165}
LONGEST = 300


def lines(path):
    return len(path.read_text(encoding="utf8").splitlines())


def room(module):
    return module.split(".")[1] if "." in module else module


@pytest.mark.parametrize("name", [*LINES, *MEAN])
def test_a_room_keeps_its_weight(name):
    weights = [lines(path) for module, path in MODULES.items() if room(module) == name]
    weight, limit = (sum(weights), LINES[name]) if name in LINES else (sum(weights) / len(weights), MEAN[name])
    assert weight <= limit, f"{name}: {weight:.0f} lines, {limit} allowed: what can go?"


def test_no_file_takes_longer_than_ten_minutes():
    assert {module: n for module, path in MODULES.items() if (n := lines(path)) > LONGEST} == {}


def imports(path):
    """The modules of postx that a module imports, within functions too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("postx"):
            yield from (
                full if (full := f"{node.module}.{alias.name}") in MODULES else node.module for alias in node.names
            )


def test_no_two_rooms_need_each_other():
    needs = defaultdict(set)
    for module, path in MODULES.items():
        needs[room(module)] |= {room(other) for other in imports(path)} - {room(module), "postx"}

    def reached(name, seen):
        for other in needs[name] - seen:
            seen.add(other)
            reached(other, seen)
        return seen

    assert {name: sorted(needs[name]) for name in list(needs) if name in reached(name, set())} == {}
    assert not needs["shapes"], "the ground floor stands on nothing"


def test_an_underscore_is_private():
    """Nobody outside a room imports a module whose name begins with an underscore."""
    for module, path in MODULES.items():
        for other in imports(path):
            if any(part.startswith("_") for part in other.split(".")):
                assert room(other) == room(module), f"{module} imports {other}"


def test_the_readme_runs_and_prints_what_it_says(capsys):
    text = (PACKAGE.parent / "README.md").read_text(encoding="utf8")
    (code,) = re.findall(r"```python\n(.*?)```", text, re.S)
    assert len([line for line in code.splitlines() if line and "import" not in line]) <= 10
    exec(code, {})
    said = re.search(r"It prints `(.*?)`, `(.*?)` and `(.*?)`\.", text).groups()
    assert capsys.readouterr().out.splitlines() == list(said)


def test_the_package_names_its_rooms():
    doc = ast.get_docstring(ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf8")))
    assert {path.stem if path.is_file() else path.name for path in PACKAGE.iterdir() if path.suffix in ("", ".py")} - {
        "__init__", "__pycache__", "weights"
    } <= set(re.findall(r"\w+", doc))  # fmt: skip
