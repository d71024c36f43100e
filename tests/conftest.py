"""The evidence plugin: every numbered equation has a test, and every test that names an equation measures it.

    @pytest.mark.equation("eq-softmax-attention")
    def test_softmax(residual):
        ...
        assert error < 1e-12
        residual(error)

An equation without a test, or a marker without its equation, stops the run at collection and is named.
``--ledger`` runs the tests that measure, and writes evidence/ledger.json and evidence/agreement.json; with ``-k`` only
some of them, whose rows are then merged into the rest.
"""

import math
from pathlib import Path

import pytest

import _ext.share  # noqa: F401  (before torch and numba)
from _ext import evidence

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def residual(request):
    """Record the largest absolute difference between the two sides of the marked equation; 0.0 if equal."""

    def record(value) -> None:
        if request.node.get_closest_marker("equation") is None:
            raise TypeError("residual() needs @pytest.mark.equation(label) on the test")
        value = float(value)
        if not math.isfinite(value) or value < 0:
            raise ValueError(f"residual() takes a finite number >= 0, got {value}")
        request.node.user_properties.append(("residual", value))

    return record


@pytest.fixture
def agreement(request):
    """Record how far a form of a mixer is from its step: agreement(mixer, form, dtype, T, error)."""

    def record(mixer: str, form: str, dtype: str, T: int, error) -> None:
        row = (str(mixer), str(form), str(dtype), int(T), evidence.decade(float(error)))
        request.node.user_properties.append(("agreement", row))

    return record


def pytest_collection_modifyitems(config, items):
    if config.getoption("--ledger"):
        measures = [i for i in items if {"residual", "agreement"} & set(getattr(i, "fixturenames", ()))]
        config.hook.pytest_deselected(items=[i for i in items if i not in measures])
        items[:] = measures


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """A marked test that passes without a residual has not measured its equation: fail it."""
    report = yield
    marked = call.when == "call" and report.passed and item.get_closest_marker("equation") is not None
    if marked and not any(key == "residual" for key, _ in report.user_properties):
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} is marked with an equation and never called residual(value)"
    return report


def pytest_addoption(parser):
    parser.addoption("--ledger", action="store_true", help="run what measures, and write evidence/")


def pytest_configure(config):
    if not hasattr(config, "workerinput"):  # once, in the process that sees every report
        config.pluginmanager.register(Ledger(config.getoption("--ledger")), "postx-ledger")


class Ledger:
    """Checks for orphans at the start, gathers the residuals, and writes the ledger at the end."""

    def __init__(self, write: bool):
        self.write = write
        self.residuals: dict[str, float] = {}
        self.agreement: dict[tuple, str] = {}
        self.message: list[str] = []

    def pytest_sessionstart(self):
        try:
            lost = evidence.orphans(ROOT)
        except evidence.EvidenceError as error:
            lost = [str(error)]
        if lost:
            raise pytest.UsageError("\n".join(["the book and its tests disagree:", *lost]))

    def pytest_runtest_logreport(self, report):
        # User properties travel with the report from an xdist worker, so -n changes nothing here.
        if report.when == "call" and report.passed:
            test = report.nodeid.split("[")[0]
            for value in (v for key, v in report.user_properties if key == "residual"):
                self.residuals[test] = max(value, self.residuals.get(test, 0.0))
            for *kind, error in (v for key, v in report.user_properties if key == "agreement"):
                self.agreement[tuple(kind)] = max(error, self.agreement.get(tuple(kind), "0"), key=float)

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session, exitstatus):
        if not self.write:
            return
        tests, known = evidence.marked_tests(ROOT), evidence.equations(ROOT)
        folder, partial = ROOT / "evidence", bool(session.config.getoption("keyword"))
        rows = evidence.read_ledger(ROOT).values() if (folder / "ledger.json").exists() else ()
        then = {t: r for row in rows for t, r in row["tests"].items()}
        now = {t: float(evidence.settled(evidence.decade(r), then.get(t))) for t, r in self.residuals.items()}
        if partial:
            now = {t: float(r) for t, r in then.items()} | now
        missing = sorted(set(tests) - set(now))
        if exitstatus != 0 or missing:
            self.message = ["evidence/ is NOT written: a test failed, or was not run:", *missing]
            session.exitstatus = exitstatus or pytest.ExitCode.TESTS_FAILED
            return
        text = evidence.ledger_text(now, tests, known)
        (folder / "ledger.json").write_text(text, encoding="utf8", newline="\n")
        rows = evidence.agreement(ROOT) or []
        then = {(r["mixer"], r["form"], r["dtype"], r["T"]): r["error"] for r in rows}
        now = {kind: evidence.settled(error, then.get(kind)) for kind, error in self.agreement.items()}
        text = evidence.agreement_text((then if partial else {}) | now)
        (folder / "agreement.json").write_text(text, encoding="utf8", newline="\n")
        self.message = [f"evidence/: {len(self.residuals)} tests and {len(now)} agreements measured"]

    def pytest_terminal_summary(self, terminalreporter):
        for line in self.message:
            terminalreporter.write_line(line)
