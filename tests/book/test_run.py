"""`python -m _ext.run`: every chapter is executed once, side by side, and a failing cell is named."""

import nbformat
import pytest
from jupyter_cache import get_cache

from _ext import page_tests, run, spent
from _ext.keys import cache_folder
from _ext.notebooks import ROOT, chapters, normalize, text_of


def write(path, *sources):
    cells = [nbformat.v4.new_code_cell(source) for source in sources]
    path.write_text(text_of(normalize(nbformat.v4.new_notebook(cells=cells))))
    return path


@pytest.fixture(autouse=True)
def own_environment(monkeypatch):
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS", "POSTX_STATIC"):
        monkeypatch.setenv(name, "1")  # fill sets them for the kernels; monkeypatch puts back what was


def test_what_is_missing_is_executed_once_and_what_fails_is_named(tmp_path, capsys):
    busy = "import time\nwhile time.process_time() < 3:\n    pass\n6 * 7"
    good = write(tmp_path / "good.ipynb", "import os\nprint(os.environ['POSTX_STATIC'])", busy)
    bad = write(tmp_path / "bad.ipynb", "x = 0", "1 / x")
    assert run.fill(tmp_path, [good, bad], 2) == [bad]
    said = capsys.readouterr().out
    assert "0 of 2 chapters are executed already" in said
    assert "bad FAILS" in said
    assert "ZeroDivisionError" in said
    assert "1 / x" in said
    assert "[2/2]" in said
    _, page = get_cache(str(cache_folder(tmp_path))).merge_match_into_notebook(nbformat.read(good, as_version=4))
    assert [cell.outputs[0].get("text") or cell.outputs[0].data["text/plain"] for cell in page.cells] == ["1\n", "42"]
    assert not run.is_kept(tmp_path, bad)
    costs = run.costs(tmp_path, [good, bad])
    assert list(costs) == [good]
    assert 2.9 < costs[good]["page"] < 10, "processor seconds, however busy the machine is; psutil rounds them down"
    assert costs[good]["compiling"] == 0

    assert run.fill(tmp_path, [good], 2) == []
    assert "1 of 1 chapters are executed already" in capsys.readouterr().out
    write(good, "6 * 8")
    assert not run.is_kept(tmp_path, good)


def test_an_unknown_chapter_is_refused(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["pages", "05_linear_atention"])
    with pytest.raises(SystemExit):
        run.main()
    assert "no chapter linear_atention; there are attention_cost," in capsys.readouterr().err


def test_compiling_is_counted_apart(tmp_path):
    code = "import numba\n@numba.njit\ndef f(x):\n    return x + 1\nf(1), f(1.0)"
    (_, _, cost) = run.execute(write(tmp_path / "compiles.ipynb", code))
    assert cost["compiling"] > 0.05
    assert "for compiling" in run.told({"page": 4, "compiling": 30})


@pytest.mark.parametrize("path", chapters(), ids=lambda path: path.stem)
def test_a_page_keeps_its_budget(path):
    cost = run.costs(ROOT, [path])
    if not cost:
        pytest.skip("not executed with today's code: run `make book` or `make test`")
    told = f"{path.stem}: {run.told(cost[path])}: fewer frames, or a recorded run"
    assert cost[path]["page"] <= spent.BUSY * spent.BUDGET, told


def test_a_page_has_its_own_tests():
    own, every = page_tests.calls("05_linear_attention")
    assert own[0] == "tests/book/test_linear_attention.py"
    assert all("::" in test and not test.startswith(own[0]) for test in own[1:])
    assert every[-2:] == ["-k", "linear_attention"]
    assert all((ROOT / file).exists() for file in every[:-2])
    assert len(page_tests.calls("glossary")) == 1, "no equations, no file"
    with pytest.raises(KeyError, match="no page 'linear_atention'; there are"):
        page_tests.calls("linear_atention")
