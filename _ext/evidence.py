"""What the book says and what holds it, read from the files: no Sphinx, no pytest, no execution.

The evidence page, the pytest plugin in tests/conftest.py and tests/book/test_evidence.py all read through this
module, so a label, a test or a claim means the same thing in all three.
"""

import ast
import json
import math
import re
import tomllib
from pathlib import Path

from _ext.pages import files as page_files

STATUSES = ("reproduced", "reproduced in part", "cited", "forecast", "wrong as stated")
NEEDS_NOTE = ("reproduced in part", "wrong as stated")
LATER = "later"  # a link to a chapter that is not written yet

_FENCED_MATH = re.compile(
    r"^[ \t>]*(?:`{3,}|:{3,}|~{3,})\{math\}[^\n]*\n((?:[ \t>]*(?::[\w-]+:|---|label:)[^\n]*\n)+)", re.M
)
_OPTION_LABEL = re.compile(r"^[ \t>]*:?label:[ \t]*(\S+)[ \t]*$", re.M)
_DOLLAR_LABEL = re.compile(r"\$\$[ \t]*\(([\w:.-]+)\)[ \t]*$", re.M)
_TARGET = re.compile(r"^[ \t>]*\(([^()\s]+)\)=[ \t]*$|^[ \t>]*:(?:label|name):[ \t]*(\S+)[ \t]*$", re.M)
_FENCE = re.compile(r"^[ \t>]*(`{3,}|~{3,}|:{3,})[ \t]*(.*)$")
_VERBATIM = ("{code", "{parsed-literal", "{literalinclude")


class EvidenceError(Exception):
    """A file of evidence/ or a label that cannot be read as the book promises."""


def pages(root: Path) -> dict[str, str]:
    """Name of every page under chapters/ to its Markdown (of a notebook: its Markdown cells)."""
    found = {}
    for name, path in page_files(root).items():
        text = path.read_text(encoding="utf8")
        if path.suffix == ".ipynb":
            cells = json.loads(text)["cells"]
            text = "\n\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
        found[name] = _without_code(text)
    return found


def _without_code(text: str) -> str:
    """Drop plain code fences: a label inside one is an example of the syntax, not an equation."""
    kept, fences = [], []  # each open fence: its marks, and whether its body is code
    for line in text.splitlines():
        match = _FENCE.match(line)
        marks, info = match.groups() if match else ("", "")
        if match and fences and not info and marks.startswith(fences[-1][0]):
            line = "" if fences.pop()[1] else line
        elif fences and fences[-1][1]:
            line = ""
        elif match:
            code = not info.startswith("{") or info.startswith(_VERBATIM)
            fences.append((marks, code))
            line = "" if code else line
        kept.append(line)
    return "\n".join(kept) + "\n"


def equations(root: Path) -> dict[str, str]:
    """Label of every numbered equation to the name of its page; a label used twice is an error."""
    found: dict[str, str] = {}
    for page, text in pages(root).items():
        labels = [m[1] for block in _FENCED_MATH.finditer(text) for m in _OPTION_LABEL.finditer(block[1])]
        for label in labels + _DOLLAR_LABEL.findall(text):
            if label in found:
                raise EvidenceError(
                    f"equation {label!r} is labelled in {found[label]} and again in {page}"
                )
            found[label] = page
    return found


def targets(root: Path) -> dict[str, set[str]]:
    """Name of every page to all labels on it that a claim can link to."""
    found = {d: {a or b for a, b in _TARGET.findall(text)} for d, text in pages(root).items()}
    for label, page in equations(root).items():
        found[page].add(label)
    return found


def marked_tests(root: Path) -> dict[str, set[str]]:
    """Test id (file::function, without parameters) to the equation labels that its marker names.

    Read from the syntax tree, so that a partial run of the tests still knows all of them.
    """
    found: dict[str, set[str]] = {}
    for path in sorted((root / "tests").rglob("test_*.py")):
        name = path.relative_to(root).as_posix()
        _collect(ast.parse(path.read_text(encoding="utf8"), filename=name), name, set(), found)
    return found


def _collect(scope: ast.AST, prefix: str, inherited: set[str], found: dict[str, set[str]]) -> None:
    """Walk one module or class: its ``pytestmark`` and decorators hold for every test function in it."""
    inherited = set(inherited)
    for node in scope.body:
        if isinstance(node, ast.Assign) and any(getattr(t, "id", "") == "pytestmark" for t in node.targets):
            inherited |= _labels(node.value, prefix)
    for node in scope.body:
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        own = inherited.union(*(_labels(d, prefix) for d in node.decorator_list))
        if isinstance(node, ast.ClassDef):
            _collect(node, f"{prefix}::{node.name}", own, found)
        elif own and node.name.startswith("test"):
            found[f"{prefix}::{node.name}"] = own


def _labels(tree: ast.AST, where: str) -> set[str]:
    """Labels in every ``pytest.mark.equation(...)`` below ``tree``; only literal strings are allowed."""
    labels: set[str] = set()
    for node in ast.walk(tree):
        if not (isinstance(node, ast.Call) and ast.unparse(node.func).endswith("mark.equation")):
            continue
        at = f"{where}, line {node.lineno}"
        for arg in node.args:
            if not (isinstance(arg, ast.Constant) and isinstance(arg.value, str)):
                raise EvidenceError(
                    f"{at}: equation({ast.unparse(arg)}) must name its label as a literal string"
                )
            labels.add(arg.value)
        if not node.args or node.keywords:
            raise EvidenceError(f"{at}: equation(...) takes one or more labels, nothing else")
    return labels


def orphans(root: Path) -> list[str]:
    """One sentence for every equation without a test and every marked test without its equation."""
    known, tests = equations(root), marked_tests(root)
    held = set().union(*tests.values())
    lost = []
    for label in (e for e in known if e not in held):
        lost.append(
            f"equation {label!r} of {known[label]} has no test marked @pytest.mark.equation({label!r})"
        )
    for test, labels in tests.items():
        for label in sorted(labels - set(known)):
            lost.append(f"{test} is marked equation({label!r}), but no page has an equation with that label")
    return lost


def decade(value: float) -> str:
    """``value`` rounded up to a power of ten, as text that does not churn; an exact zero is "0".

    >>> decade(3e-13), decade(1e-12), decade(0.0)
    ('1e-12', '1e-12', '0')
    """
    if not math.isfinite(value) or value < 0:
        raise EvidenceError(f"a residual is a finite number >= 0, got {value}")
    if value == 0:
        return "0"
    exponent = math.ceil(round(math.log10(value), 9))  # log10(1e-12) may land a hair above -12
    return f"1e{exponent:+03d}"


def settled(new: str, old: str | None) -> str:
    """The decade to commit: the old one where the new is within a factor of ten of it, or both are rounding.

    Machines differ in the last digits, and a file that follows each of them says nothing.
    """
    if old is None:
        return new
    a, b = (max(float(x), 1e-16) for x in (new, old))
    return old if max(a, b) <= 1e-12 or 0.09 < a / b < 11 else new


def ledger_text(residuals: dict[str, float], tests: dict[str, set[str]], known: dict[str, str]) -> str:
    """The text of evidence/ledger.json: of each label the page, the worst residual, and every test's."""
    rows = {}
    for label in sorted(known):
        by_test = {t: residuals[t] for t in sorted(tests) if label in tests[t]}
        rows[label] = {
            "page": known[label],
            "residual": decade(max(by_test.values())),
            "tests": {t: decade(r) for t, r in by_test.items()},
        }
    return json.dumps({"equations": rows}, indent=1) + "\n"


def agreement_text(errors: dict[tuple, str]) -> str:
    """The text of evidence/agreement.json: one row a line for each (mixer, form, dtype, T) and its decade."""
    names = ("mixer", "form", "dtype", "T", "error")
    rows = [json.dumps(dict(zip(names, (*kind, errors[kind]), strict=True))) for kind in sorted(errors)]
    return '{"rows": [\n' + ",\n".join(rows) + "\n]}\n"


def read_ledger(root: Path) -> dict[str, dict]:
    """Label to ``{"page", "residual", "tests"}`` from evidence/ledger.json (made by `make ledger`)."""
    path = root / "evidence" / "ledger.json"
    if not path.exists():
        raise EvidenceError("evidence/ledger.json is missing: run `make ledger`")
    rows = json.loads(path.read_text(encoding="utf8"))["equations"]
    for label, row in rows.items():
        fields(f"ledger.json, {label}", row, {"page": str, "residual": str, "tests": dict}, {})
    return rows


def ledger_faults(root: Path) -> list[str]:
    """One sentence for every difference between the committed ledger and today's labels and tests."""
    known, tests, ledger = equations(root), marked_tests(root), read_ledger(root)
    faults = [f"{label} is not in evidence/ledger.json" for label in known if label not in ledger]
    faults += [f"evidence/ledger.json lists {e}, which no page has" for e in ledger if e not in known]
    for label in sorted(set(known) & set(ledger)):
        now = {t for t, labels in tests.items() if label in labels}
        then = set(ledger[label]["tests"])
        faults += [f"{label}: {t} is not in the ledger" for t in sorted(now - then)]
        faults += [f"{label}: the ledger lists {t}, which is gone" for t in sorted(then - now)]
        if ledger[label]["page"] != known[label]:
            faults.append(f"{label} is on {known[label]}, the ledger says {ledger[label]['page']}")
    return [f"{fault}: run `make ledger`" for fault in faults]


def claims(root: Path) -> list[dict]:
    """The rows of evidence/claims.toml, every field checked and every link resolved."""
    rows = table(root, "claims.toml", "claim")
    required = dict.fromkeys(("id", "text", "by", "where", "status", "link", "source"), str)
    optional = dict.fromkeys(("note", "date", "falsified_by"), (str, int))
    seen: set[str] = set()
    known = targets(root)
    for row in rows:
        where = f"claims.toml, claim {row.get('id', '?')!r}"
        fields(where, row, required, optional)
        if row["id"] in seen:
            raise EvidenceError(f"{where}: the id is used twice")
        seen.add(row["id"])
        if row["status"] not in STATUSES:
            raise EvidenceError(f"{where}: status {row['status']!r} is none of {', '.join(STATUSES)}")
        if row["status"] in NEEDS_NOTE and not row.get("note"):
            raise EvidenceError(f"{where}: status {row['status']!r} needs a note that says what is right")
        if row["status"] == "forecast" and not (row.get("date") and row.get("falsified_by")):
            raise EvidenceError(f"{where}: a forecast needs `date` and `falsified_by`")
        check_link(known, where, row["link"])
    return rows


def coverage(root: Path) -> tuple[list[dict], list[dict]]:
    """The sections and the equations of evidence/coverage.toml, checked; ``label`` is always a list."""
    sections, numbered = table(root, "coverage.toml", "section"), table(root, "coverage.toml", "equation")
    known = targets(root)
    for row in sections:
        where = f"coverage.toml, section {row.get('section', '?')!r}"
        fields(where, row, dict.fromkeys(("document", "section", "treated"), str), {"note": str, "says": str})
        check_link(known, where, row["treated"])
    labels = equations(root)
    for row in numbered:
        where = f"coverage.toml, equation {row.get('eq', '?')!r}"
        fields(where, row, {"document": str, "eq": str, "label": (str, list)}, {"note": str})
        row["label"] = [row["label"]] if isinstance(row["label"], str) else row["label"]
        for label in row["label"]:
            if label != LATER and label not in labels:
                raise EvidenceError(f"{where}: no page has an equation labelled {label!r}")
    return sections, numbered


def agreement(root: Path) -> list[dict] | None:
    """The rows of evidence/agreement.json, or None while that file does not exist."""
    path = root / "evidence" / "agreement.json"
    if not path.exists():
        return None
    rows = json.loads(path.read_text(encoding="utf8"))["rows"]
    for i, row in enumerate(rows):
        kinds = {"mixer": str, "form": str, "dtype": str, "T": int, "error": (str, int, float)}
        fields(f"agreement.json, row {i}", row, kinds, {})
        row["error"] = decade(float(row["error"]))
    return rows


def check_link(known: dict[str, set[str]], where: str, link: str) -> None:
    """Raise EvidenceError unless ``link`` is "later", or a page or page#label among ``targets``."""
    if link == LATER:
        return
    page, _, label = link.partition("#")
    if page not in known:
        raise EvidenceError(f"{where}: link {link!r}: no page {page!r}; there are {', '.join(known)}")
    if label and label not in known[page]:
        raise EvidenceError(f"{where}: link {link!r}: {page} has no label {label!r}")


def table(root: Path, name: str, key: str) -> list[dict]:
    path = root / "evidence" / name
    if not path.exists():
        raise EvidenceError(f"evidence/{name} is missing")
    try:
        data = tomllib.loads(path.read_text(encoding="utf8"))
    except tomllib.TOMLDecodeError as error:
        raise EvidenceError(f"evidence/{name}: {error}") from error
    unknown = set(data) - {"claim", "section", "equation", "statement"}
    if unknown or key not in data:
        raise EvidenceError(f"evidence/{name} needs [[{key}]] tables; it has {', '.join(data) or 'none'}")
    return data[key]


def fields(where: str, row: dict, required: dict, optional: dict) -> None:
    for name, kind in required.items():
        if not isinstance(row.get(name), kind) or row[name] in ("", []):
            got = repr(row.get(name))
            raise EvidenceError(f"{where}: field {name!r} is missing, empty or of the wrong type: {got}")
    for name, value in row.items():
        if name not in required and name not in optional:
            fields = ", ".join([*required, *optional])
            raise EvidenceError(f"{where}: unknown field {name!r}; known are {fields}")
        if name in optional and not isinstance(value, optional[name]):
            raise EvidenceError(f"{where}: field {name!r} is of the wrong type: {value!r}")
