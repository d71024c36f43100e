"""The workflows of CI, as far as they can be held without a runner: shells parse, and what they name is there."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
FILES = (ROOT / ".github" / "workflows").glob("*.yml")
FLOWS = {path.stem: yaml.safe_load(path.read_text(encoding="utf8")) for path in FILES}
JOBS = {f"{flow}.{name}": job for flow, told in FLOWS.items() for name, job in told["jobs"].items()}
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="their shells are those of Linux")


def shells(job):
    return [step["run"] for step in job["steps"] if "run" in step]


@pytest.mark.parametrize("name", JOBS)
def test_a_job_says_what_it_may_do_and_how_long(name):
    flow = FLOWS[name.split(".")[0]]
    assert "permissions" in flow, "the default may write to the repository"
    assert JOBS[name]["timeout-minutes"] <= 60
    assert all(re.fullmatch(r"[\w/-]+@v\d+", step["uses"]) for step in JOBS[name]["steps"] if "uses" in step)
    assert shells(JOBS[name]), "a job that runs nothing"


@on_linux
@pytest.mark.parametrize("name", JOBS)
def test_its_shells_parse_and_what_they_name_is_there(name):
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf8"), re.M)
    for shell in shells(JOBS[name]):
        plain = re.sub(r"\$\{\{.*?\}\}", "x", shell)
        subprocess.run(["bash", "-n", "-c", plain], check=True)
        assert set(re.findall(r"\bmake ([a-z-]+)", plain)) <= set(targets), shell
        modules = re.findall(r"python3? -m (_ext[\w.]*|benchmarks[\w.]*)", plain)
        assert all((ROOT / f"{module.replace('.', '/')}.py").exists() for module in modules), shell
        named = re.findall(r"(?<![\w/$.])((?:tests|\.ci|_ext)/[\w./]+|requirements[\w-]*\.txt|CHANGELOG\.md)", plain)
        assert all((ROOT / path).exists() for path in named), shell


def test_every_python_that_is_promised_is_tried():
    matrix = JOBS["tests.elsewhere"]["strategy"]["matrix"]["include"]
    tried = {row["python"] for row in matrix} | {"3.11"}
    assert tried == {"3.11", "3.12", "3.13", "3.14"} == set(JOBS["newest.newest"]["strategy"]["matrix"]["python"])
    assert 'requires-python = ">=3.11"' in (ROOT / "pyproject.toml").read_text()
    assert JOBS["newest.newest"]["continue-on-error"]


@on_linux
def test_the_newest_versions_are_the_pins_without_most_of_their_numbers(tmp_path):
    (loosen,) = [shell for shell in shells(JOBS["newest.newest"]) if "sed" in shell]
    shutil.copy(ROOT / "requirements.txt", tmp_path)
    subprocess.run(["bash", "-c", loosen], cwd=tmp_path, check=True)
    pinned = [line for line in (tmp_path / "newest.txt").read_text().splitlines() if re.match(r"[\w-]+==", line)]
    assert [line.split("==")[0] for line in pinned] == ["torch", "jupyter-book"]


@on_linux
def test_binder_installs_what_is_pinned():
    script = (ROOT / ".binder" / "postBuild").read_text(encoding="utf8")
    subprocess.run(["bash", "-n", "-c", script], check=True)
    assert "-r requirements.txt" in script
    assert (ROOT / ".binder" / "runtime.txt").read_text().strip() == "python-3.11"
