"""The evidence of this book is complete, and the reader of evidence notices when it is not."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from _ext import evidence, mixers_page, recurrences, treated
from _ext.evidence import EvidenceError
from postx import mixers

ROOT = Path(__file__).resolve().parents[2]

PAGE = """# A page

(sec-here)=
## Here

```{math}
:label: eq-fenced
a = b
```

````{admonition} A box
:::{math}
---
label: eq-boxed
---
c = d
:::
````

$$
e = f
$$ (eq-dollar)

````
```{math}
:label: eq-only-shown
```
````
"""

TESTS = """
import pytest

@pytest.mark.equation("eq-fenced")
def test_one(residual):
    residual(3e-13)

def test_form(agreement):
    agreement("attention", "chunked", "float64", 64, 0.0)
    agreement("attention", "chunked", "float64", 64, 3e-14)
    agreement("attention", "chunked", "float64", 64, 2e-15)

def test_measures_nothing():
    assert False

@pytest.mark.equation("eq-boxed", "eq-dollar")
@pytest.mark.parametrize("x", [0.0, 2e-9])
def test_two(residual, x):
    residual(x)
"""

CLAIM = {
    "id": "c1",
    "text": "t",
    "by": "b",
    "where": "w",
    "status": "cited",
    "link": "page#eq-fenced",
    "source": "s",
}


def toml(key, *rows):
    """Rows of a TOML array of tables; JSON strings and lists of strings are TOML as well."""
    return "\n".join(
        f"[[{key}]]\n" + "".join(f"{k} = {json.dumps(v)}\n" for k, v in row.items()) for row in rows
    )


@pytest.fixture
def book(tmp_path):
    """A book of one page and two tests, with this repository's plugin."""
    for folder in ("chapters", "tests", "evidence"):
        (tmp_path / folder).mkdir()
    shutil.copytree(ROOT / "_ext", tmp_path / "_ext", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "tests" / "conftest.py", tmp_path / "tests")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / "chapters" / "page.md").write_text(PAGE)
    (tmp_path / "tests" / "test_page.py").write_text(TESTS)
    (tmp_path / "evidence" / "claims.toml").write_text(toml("claim", CLAIM))
    return tmp_path


def run(book, *arguments):
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:nbval", *arguments]  # slow to import
    done = subprocess.run(command, cwd=book, capture_output=True, text=True, timeout=120, check=False)
    return done.returncode, done.stdout + done.stderr


def test_every_equation_has_a_test_and_every_test_its_equation():
    assert evidence.orphans(ROOT) == []


def test_the_committed_ledger_is_todays():
    assert evidence.ledger_faults(ROOT) == []


def test_every_claim_has_a_status_and_leads_somewhere():
    claims = evidence.claims(ROOT)
    assert {c["status"] for c in claims} <= set(evidence.STATUSES)
    assert len(claims) >= 20


def test_both_documents_are_covered():
    sections, numbered = evidence.coverage(ROOT)
    assert len({s["document"] for s in sections}) == 2
    assert {e["eq"] for e in numbered} >= {f"11.{n}" for n in range(1, 7)}


def test_every_claim_of_the_documents_is_treated_where_it_leads():
    """The quoted words stand on the page that the claim links to."""
    rows = treated.statements(ROOT)
    assert len(rows) >= 100
    assert all(len(row["says"].split()) >= 3 or row["page"] == "the_race" for row in rows)
    held = [s for s in evidence.coverage(ROOT)[0] if s["treated"] not in ("later", "intro", "notation")]
    assert [s["section"] for s in held if "says" not in s] == []


def test_labels_are_found_where_equations_are(book):
    assert set(evidence.equations(book)) == {"eq-fenced", "eq-boxed", "eq-dollar"}
    assert "sec-here" in evidence.targets(book)["page"]


def test_labels_of_a_notebook_are_read_from_its_markdown_only(book):
    cells = [
        {"cell_type": "markdown", "source": ["$$ a $$ (eq-nb)\n"]},
        {"cell_type": "code", "source": ["$$ a $$ (eq-code)\n"]},
    ]
    (book / "chapters" / "02_nb.ipynb").write_text(json.dumps({"cells": cells}))
    found = evidence.equations(book)
    assert found["eq-nb"] == "nb"
    assert "eq-code" not in found


def test_a_label_used_twice_is_named(book):
    (book / "chapters" / "other.md").write_text("$$ a $$ (eq-fenced)\n")
    with pytest.raises(
        EvidenceError, match="'eq-fenced' is labelled in other and again in page"
    ):
        evidence.equations(book)


def test_markers_are_found_on_functions_classes_modules_and_parameters(book):
    (book / "tests" / "test_forms.py").write_text("""
import pytest
pytestmark = pytest.mark.equation("eq-module")

@pytest.mark.equation("eq-class")
class TestAll:
    @pytest.mark.parametrize("x", [pytest.param(1, marks=pytest.mark.equation("eq-param"))])
    def test_x(self, x): ...

def helper(): ...
""")
    tests = evidence.marked_tests(book)
    assert tests["tests/test_forms.py::TestAll::test_x"] == {"eq-module", "eq-class", "eq-param"}
    assert "tests/test_forms.py::helper" not in tests


@pytest.mark.parametrize("call", ["equation(LABEL)", "equation()", "equation(label='eq-fenced')"])
def test_a_marker_that_cannot_be_read_is_an_error(book, call):
    (book / "tests" / "test_bad.py").write_text(f"import pytest\n@pytest.mark.{call}\ndef test_x(): ...\n")
    with pytest.raises(EvidenceError, match="tests/test_bad.py, line 2"):
        evidence.marked_tests(book)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (1e-12, "1e-12"), (1.1e-12, "1e-11"), (3e-13, "1e-12"), (1.0, "1e+00"), (7, "1e+01")],
)
def test_residuals_are_rounded_up_to_a_decade(value, text):
    assert evidence.decade(value) == text


@pytest.mark.parametrize("value", [-1e-9, float("nan"), float("inf")])
def test_a_residual_that_is_none_is_refused(value):
    with pytest.raises(EvidenceError, match="finite number >= 0"):
        evidence.decade(value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"status": "true"}, "status 'true' is none of"),
        ({"status": "wrong as stated"}, "needs a note"),
        ({"status": "forecast"}, "needs `date` and `falsified_by`"),
        ({"text": ""}, "field 'text' is missing"),
        ({"colour": "red"}, "unknown field 'colour'"),
        ({"link": "none"}, "no page 'none'"),
        ({"link": "page#eq-none"}, "has no label 'eq-none'"),
        ({"note": ["a"]}, "'note' is of the wrong type"),
    ],
)
def test_a_bad_claim_is_named(book, change, message):
    (book / "evidence" / "claims.toml").write_text(toml("claim", CLAIM | change))
    with pytest.raises(EvidenceError, match=message) as error:
        evidence.claims(book)
    assert "c1" in str(error.value)


def test_claims_with_one_id_are_refused_and_later_is_allowed(book):
    (book / "evidence" / "claims.toml").write_text(toml("claim", CLAIM | {"link": "later"}))
    assert evidence.claims(book)[0]["link"] == "later"
    (book / "evidence" / "claims.toml").write_text(toml("claim", CLAIM, CLAIM))
    with pytest.raises(EvidenceError, match="the id is used twice"):
        evidence.claims(book)


def test_coverage_names_a_label_that_is_gone(book):
    section = toml("section", {"document": "d", "section": "s", "treated": "page"})
    for label in ("later", "eq-fenced", ["eq-fenced", "eq-boxed"], "eq-gone"):
        rows = toml("equation", {"document": "d", "eq": "11.1", "label": label})
        (book / "evidence" / "coverage.toml").write_text(section + rows)
        if label != "eq-gone":
            assert evidence.coverage(book)[1][0]["label"] == ([label] if isinstance(label, str) else label)
    with pytest.raises(EvidenceError, match="no page has an equation labelled 'eq-gone'"):
        evidence.coverage(book)


def test_words_that_left_their_page_are_missed(book):
    """A claim of a document needs a row; its words, with emphasis or over a line's end, must stand on its own page."""
    rows = toml("section", {"document": "d", "section": "s", "treated": "page"})
    rows += toml("equation", {"document": "d", "eq": "11.1", "label": "eq-fenced"})
    claim = CLAIM | {"by": "first document", "link": "page"}
    (book / "evidence" / "claims.toml").write_text(toml("claim", claim))
    page = next(path for path in (book / "chapters").iterdir() if path.stem == "page")
    page.write_text(page.read_text() + "\n\nIt is *here*\nand nowhere `else`.\n")

    def told(*statements):
        (book / "evidence" / "coverage.toml").write_text(rows + toml("statement", *statements))
        return treated.statements(book)

    assert told({"claim": claim["id"], "says": "it is here and nowhere else"})[0]["page"] == "page"
    for says in ("it is here and gone", "Nowhere Else."):
        wanted = "page does not say" if "gone" in says else None
        if wanted:
            with pytest.raises(EvidenceError, match=wanted):
                told({"claim": claim["id"], "says": says})
        else:
            assert told({"claim": claim["id"], "says": says})
    with pytest.raises(EvidenceError, match="no such claim"):
        told({"claim": "other", "says": "it is here"})
    (book / "evidence" / "claims.toml").write_text(toml("claim", claim, claim | {"id": "second"}))
    with pytest.raises(EvidenceError, match="where it is treated: second"):
        told({"claim": claim["id"], "says": "it is here"})


def test_headings_objectives_and_one_sentence_for_two_treat_nothing(book):
    """A heading names, an objective promises; and what answers two statements looks at neither."""
    rows = toml("section", {"document": "d", "section": "s", "treated": "page", "says": "a sentence that tells"})
    rows += toml("equation", {"document": "d", "eq": "11.1", "label": "eq-fenced"})
    claim = CLAIM | {"by": "first document", "link": "page"}
    (book / "evidence" / "claims.toml").write_text(toml("claim", claim, claim | {"id": "second"}))
    page = book / "chapters" / "page.md"
    goals = "**After this chapter you can**\n\n- judge what was claimed;\n- say so.\n\n"
    page.write_text(page.read_text() + f"\n## What it names\n\n{goals}This is a sentence that tells. So does this.\n")

    def told(first, second):
        says = toml("statement", {"claim": claim["id"], "says": first}, {"claim": "second", "says": second})
        (book / "evidence" / "coverage.toml").write_text(rows + says)
        return treated.statements(book)

    assert len(told("This is a", "So does this.")) == 2
    for first, second, fault in (
        ("What it names", "So does this.", "a heading or an objective of page"),
        ("So does this.", "judge what was claimed", "a heading or an objective of page"),
        ("So does this.", "*so does* this.", "quoted for coverage.toml, statement 'c1' already"),
        ("So does this.", "A sentence that tells", "quoted for coverage.toml, statement 'second' already"),
    ):
        with pytest.raises(EvidenceError, match=fault):
            told(first, second)


def test_agreement_is_optional_and_checked(book):
    assert evidence.agreement(book) is None
    row = {"mixer": "m", "form": "chunked", "dtype": "float64", "T": 64, "error": 3e-14}
    path = book / "evidence" / "agreement.json"
    path.write_text(json.dumps({"rows": [row]}))
    assert evidence.agreement(book)[0]["error"] == "1e-13"
    path.write_text(json.dumps({"rows": [row | {"T": "64"}]}))
    with pytest.raises(EvidenceError, match="row 0: field 'T'"):
        evidence.agreement(book)


def test_the_ledger_is_written_by_workers_and_goes_stale(book):
    code, said = run(book, "--ledger", "-n", "2")
    assert code == 0, said
    rows = evidence.read_ledger(book)
    assert rows["eq-fenced"]["residual"] == "1e-12"
    kind = {"mixer": "attention", "form": "chunked", "dtype": "float64", "T": 64}
    assert evidence.agreement(book) == [kind | {"error": "1e-13"}]
    assert rows["eq-dollar"] == {
        "page": "page",
        "residual": "1e-08",
        "tests": {"tests/test_page.py::test_two": "1e-08"},
    }
    written = (book / "evidence" / "ledger.json").read_bytes()
    assert run(book, "--ledger")[0] == 0
    assert (book / "evidence" / "ledger.json").read_bytes() == written
    assert evidence.ledger_faults(book) == []
    (book / "tests" / "test_page.py").write_text(TESTS.replace("test_one", "test_renamed"))
    faults = "\n".join(evidence.ledger_faults(book))
    assert "eq-fenced: tests/test_page.py::test_renamed is not in the ledger" in faults
    assert "lists tests/test_page.py::test_one, which is gone" in faults


def test_a_partial_run_does_not_write_the_ledger(book):
    code, said = run(book, "--ledger", "-k", "test_one")
    assert code != 0
    assert "tests/test_page.py::test_two" in said
    assert not (book / "evidence" / "ledger.json").exists()


@pytest.mark.parametrize(
    ("page", "tests", "named"),
    [
        (PAGE + "\n$$ g = h $$ (eq-alone)\n", TESTS, "equation 'eq-alone' of page has no test"),
        (
            PAGE,
            TESTS.replace('"eq-fenced"', '"eq-fenced", "eq-gone"'),
            "test_one is marked equation('eq-gone')",
        ),
    ],
)
def test_orphans_stop_even_a_partial_run(book, page, tests, named):
    (book / "chapters" / "page.md").write_text(page)
    (book / "tests" / "test_page.py").write_text(tests)
    code, said = run(book, "-k", "test_two")
    assert code == pytest.ExitCode.USAGE_ERROR
    assert named in said


def test_a_marked_test_must_measure(book):
    (book / "tests" / "test_page.py").write_text(TESTS.replace("residual(3e-13)", "assert True"))
    code, said = run(book)
    assert code == pytest.ExitCode.TESTS_FAILED
    assert "test_one is marked with an equation and never called residual(value)" in said


def test_the_mixers_page_reads_every_mixer():
    """Each docstring holds a recurrence that can be typeset, each cost takes the common sizes, each has its chapter."""
    for name in mixers.names():
        mixer = mixers.load(name)
        assert any("<-" in part or "=" in part for part in mixers_page.formula(mixer))
        for part in mixers_page.formula(mixer):
            made = recurrences.tex(part)
            assert not re.search(r"<-|<=|'(?!s\b)|[*]|(?<!\\)\b(?:sum|sqrt|beta)\b", made), made
            assert made.count("{") == made.count("}")
        assert mixers_page.bill(mixer).flops > 0
    page_of = mixers_page.treated(mixers.names(), ROOT)
    assert (page_of["ssd"], page_of["gla"]) == ("ssd_duality", "linear_attention")
    assert page_of["mla"] == "attention_cost", "no page calls it; this one says what it is"
    assert set(page_of) == set(mixers.names())
    attention = mixers_page.bill(mixers.load("attention"))
    assert attention.state_floats == 2 * 16 * 64 * mixers_page.T


@pytest.mark.parametrize(("line", "tex"), [
    ("y_t = sum_{i<t} e^((t-1-i) g + k_i) v_i", r"y_{t} = \sum_{i<t} e^{(t-1-i) g + k_{i}} v_{i}"),
    ("u + R'h <= K^-1/2 (kk' S)", r"u + R^\top h \le K^{-1/2} (kk^\top S)"),
    ("h <- a h + sqrt(1 - a^2) i x", r"h \leftarrow a h + \sqrt{1 - a^{2}} i x"),
    ("B * x,  L_ij = g_{j+1} + ... + g_i", r"B \odot x, \quad L_{ij} = g_{j+1} + \dots + g_{i}"),
    ("delta u write = q_t . kbar_n", r"\delta u~\text{write} = q_{t} \cdot \bar k_{n}"),
    ("one for each n", r"\text{one}~\text{for}~\text{each}~n"),
])  # fmt: skip
def test_a_recurrence_is_typeset(line, tex):
    assert recurrences.tex(line) == tex
    assert recurrences.pieces("y = (a + b^(c - d)) / sqrt(e - f)") == ["y = (a", "{}+ b^{c - d})", r"{}/ \sqrt{e - f}"]
    with pytest.raises(ValueError, match="not closed"):
        recurrences.tex("a_{t")


@pytest.mark.parametrize(("new", "old", "kept"), [
    ("1e-15", "1e-14", "1e-14"), ("0", "1e-15", "1e-15"), ("1e-16", "0", "0"), ("1e-08", "1e-07", "1e-07"),
    ("1e-09", "1e-07", "1e-09"), ("1e-05", "1e-07", "1e-05"), ("1e-10", "1e-15", "1e-10"), ("1e-03", None, "1e-03"),
])  # fmt: skip
def test_residuals_do_not_churn_between_machines(new, old, kept):
    assert evidence.settled(new, old) == kept
