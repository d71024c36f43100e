"""The committed notebooks are what `make notebooks` writes, nbval can go red, and the built pages are light."""

import ast
import gzip
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import yaml
from jupyter_cache import get_cache

from _ext import executed, notebooks
from _ext.keys import CODE, cache_folder, code_digest

ROOT = Path(__file__).resolve().parents[2]
CHAPTERS = ROOT / "_build" / "html" / "chapters"
NOTEBOOK_LIMIT = 1_500_000  # bytes: text and small PNG
PAGE_LIMIT = 200_000  # bytes of one page and its own images, gzipped: with 500 kB of theme and MathJax, 700

TINY = [
    "import os\nprint('two')\nprint(1 + 1)",
    "import time\nprint(time.time_ns())",
    "6 * 7",
]


def notebook(sources):
    """A notebook of these code cells; the one that measures time is tagged as such."""
    cells = [nbformat.v4.new_code_cell(source) for source in sources]
    for cell in cells:
        if "time_ns" in cell.source:
            cell.metadata["tags"] = [notebooks.TIMING]
    return nbformat.v4.new_notebook(cells=cells)


@pytest.fixture(scope="module")
def once(tmp_path_factory):
    """What executing three cells writes, the second of which measures time."""
    path = tmp_path_factory.mktemp("once") / "tiny.ipynb"
    nbformat.write(notebook(TINY), path)
    return notebooks.execute(path)


@pytest.fixture
def tiny(tmp_path, once):
    """A notebook of its own, executed."""
    path = tmp_path / "tiny.ipynb"
    path.write_text(once)
    return path


@pytest.mark.parametrize("path", notebooks.chapters(), ids=lambda p: p.stem)
def test_committed_notebook_is_executed_light_and_in_normal_form(path):
    assert notebooks.faults(path) == []
    assert path.stat().st_size < NOTEBOOK_LIMIT


def hidden_figures(source):
    """Calls of show() and explore() after which their cell goes on: Jupyter displays the last expression only."""
    try:
        body = ast.parse(source).body
    except SyntaxError:  # a magic of IPython
        return []
    calls = [node.value.func for node in body[:-1] if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)]
    return [call.id for call in calls if isinstance(call, ast.Name) and call.id in ("show", "explore")]


def test_a_figure_that_is_made_is_displayed():
    assert hidden_figures("show(fig, alt=alt)\nassert True") == ["show"]
    for path in notebooks.chapters():
        code = (cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code")
        assert [cell.id for cell in code if hidden_figures(cell.source)] == [], path.name


def test_every_chapter_is_in_the_table_of_contents():
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text())
    listed = {toc["root"], *(c["file"] for part in toc["parts"] for c in part["chapters"])}
    files = {f"chapters/{p.stem}" for p in (ROOT / "chapters").iterdir() if p.suffix in (".md", ".ipynb")}
    assert listed == files


def test_two_executions_write_the_same_bytes(tiny):
    first = tiny.read_text()
    assert notebooks.execute(tiny) == first
    assert notebooks.faults(tiny) == []
    before, after = (
        nbformat.reads(t, 4).cells[1].outputs[0].text for t in (first, notebooks.execute(tiny, fresh=True))
    )
    assert before != after, "--fresh must record the timing cell anew"


def test_normal_form_drops_what_no_two_runs_share(tiny):
    nb = nbformat.read(tiny, 4)
    text = notebooks.text_of(nb)
    nb.metadata.widgets = {"application/vnd.jupyter.widget-state+json": {}}
    nb.metadata.kernelspec = {"name": "my-env", "display_name": "mine"}
    cell = nb.cells[0]
    cell.metadata.execution = {"iopub.execute_input": "2026-01-01T00:00:00Z"}
    out = cell.outputs.pop()
    cell.outputs = [
        nbformat.v4.new_output("stream", name="stdout", text=t) for t in out.text.splitlines(True)
    ]
    view = {"application/vnd.jupyter.widget-view+json": {"model_id": "1"}}
    cell.outputs.append(nbformat.v4.new_output("display_data", data=view))
    assert notebooks.text_of(notebooks.normalize(nb)) == text


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ('"execution_count": 1,', '"execution_count": null,', "not executed once each"),
        ('"display_name": "Python 3 (ipykernel)"', '"display_name": "mine"', "not in normal form"),
        (
            '"output_type": "stream"',
            '"output_type": "error", "ename": "E", "evalue": "", "traceback": []',
            "error",
        ),
        ('"text/plain"', '"text/html"', "has HTML"),
        ('"import time', '"# NBVAL_IGNORE_OUTPUT\\n", "import time', "use the tag"),
    ],
)
def test_a_notebook_out_of_form_is_named(tiny, old, new, fault):
    text = tiny.read_text()
    assert old in text
    broken = text.replace(old, new)
    if "traceback" in new:
        broken = re.sub(r'"traceback": \[\],\s*"text": \[.*?\]', '"traceback": []', broken, flags=re.S)
        broken = re.sub(r'"name": "stdout",\s*', "", broken)
    tiny.write_text(broken)
    assert any(fault in found and "tiny.ipynb" in found for found in notebooks.faults(tiny))


FIGURE = """
import matplotlib.figure
from postx.explore import Int, explore
def draw(fig):
    text = fig.text(0.5, 0.5, "")
    return lambda n: text.set_text(n) or f"Now it is {n}."
explore(draw, alt="A number that the slider says.", n=Int(1, 3))
"""


def test_nbval_goes_red_when_an_output_is_altered_and_else_hands_on_the_page(tmp_path):
    """What `make test` runs: one execution, compared with what is committed; the book finds it in its cache."""
    good, altered = tmp_path / "good.ipynb", tmp_path / "altered.ipynb"
    nbformat.write(notebook([*TINY, FIGURE]), good)
    good.write_text(notebooks.execute(good))
    text = good.read_text()
    (tmp_path / "pyproject.toml").write_text("[tool.pytest.ini_options]\n")  # makes it the root folder
    assert '"42"' in text
    assert "Now it is 1." in text
    altered.write_text(text.replace("two", "too").replace("Now it is 1.", "Now it is 2."))  # other cells: another key
    done = notebooks.nbval(["--rootdir", str(tmp_path)], [good, altered], strict=True, stdout=subprocess.PIPE)
    assert done.returncode == 1, done.stdout
    assert "Now it is 2." in done.stdout
    assert re.findall(r"^FAILED \S*?(\w+\.ipynb::Cell \d+)", done.stdout, re.M) == ["altered.ipynb::Cell 3"]
    assert "1 failed, 7 passed" in done.stdout
    cache = get_cache(str(cache_folder(tmp_path)))
    with pytest.raises(KeyError):
        cache.match_cache_notebook(nbformat.read(altered, as_version=4))
    _, page = cache.merge_match_into_notebook(nbformat.read(good, as_version=4))
    assert page.cells[2].outputs[0].data["text/plain"] == "42"
    assert set(page.cells[3].outputs[0].data) == {"text/plain", "image/png", "text/html"}
    assert page.cells[3].outputs[0].data["text/html"].count("Now it is") == 4  # three frames, and the one shown


def test_only_the_html_of_a_figure_is_not_compared():
    figure = {"data": {"text/html": '<figure class="px-fig" role="group">', "text/plain": "a figure"}}
    tool = {"data": {"text/html": '<figure class="px-fig px-widget" data-widget="x">', "text/plain": "a tool"}}
    table = {"data": {"text/html": "<table>", "text/plain": "a table"}}
    stream = {"name": "stdout", "text": executed.FIGURE}
    assert executed.without_pages([figure, tool, table, stream]) == [
        {"data": {"text/plain": "a figure"}},
        {"data": {"text/plain": "a tool"}},
        table,
        stream,
    ]
    assert "text/html" in figure["data"], "the page needs it"


def test_an_edit_of_the_package_gives_the_cache_a_new_key(tmp_path):
    (tmp_path / "postx").mkdir()
    source = tmp_path / "postx" / "cost.py"
    source.write_text("a = 1\n")
    before = code_digest(tmp_path)
    os.utime(source, (0, 0))
    assert code_digest(tmp_path) == before, "a touched file is not a changed file"
    source.write_text("a = 2\n")
    assert code_digest(tmp_path) != before
    assert {"postx", "_ext", "_static"} <= set(CODE)


def test_a_page_that_only_looks_different_is_drawn_again_but_not_executed_again(tmp_path):
    (tmp_path / "_static").mkdir()
    (tmp_path / "postx").mkdir()
    drawn, executed_in = code_digest(tmp_path), cache_folder(tmp_path)
    (tmp_path / "_static" / "postx.css").write_text("figure {}")
    assert code_digest(tmp_path) != drawn
    assert cache_folder(tmp_path) == executed_in
    (tmp_path / "postx" / "cost.py").write_text("a = 1\n")
    assert cache_folder(tmp_path) != executed_in


def test_every_requirement_is_pinned_for_every_platform():
    lines = [line.split("#")[0].strip() for line in (ROOT / "requirements.txt").read_text().splitlines()]
    lines = [line for line in lines if line and line != "-e ."]
    assert len(lines) > 100
    for line in lines:
        marker = r'sys_platform [!=]= "\w+"|python_full_version [<>]=? "[\d.]+"'
        assert re.fullmatch(rf"[a-z0-9-]+==[0-9a-z.]+( ; ({marker}))?", line), line
        assert not line.startswith("nvidia"), line
    (ours,) = (line.split(" ;")[0] for line in lines if line.startswith("triton"))
    torchs = [line.split(";")[0].strip() for line in importlib.metadata.requires("torch") if line.startswith("triton")]
    assert torchs in ([], [ours]), "torch's CUDA build asks for another triton"


@pytest.mark.parametrize(
    "page", sorted(p.stem for p in (ROOT / "chapters").iterdir() if p.suffix in (".md", ".ipynb"))
)
def test_page_is_light_and_shows_no_warning(page):
    path = CHAPTERS / f"{page}.html"
    if not path.exists():
        pytest.skip("no built book: run `make book`")
    html = path.read_text(encoding="utf8")
    files = [
        path,
        *((CHAPTERS / src).resolve() for src in set(re.findall(r'src="([^"]*(?:_images|_static/cards)/[^"]+)"', html))),
    ]
    weight = sum(len(gzip.compress(p.read_bytes(), 6)) for p in files)
    assert weight < PAGE_LIMIT, f"{page} weighs {weight // 1000} kB gzipped with its {len(files) - 1} images"
    warned = re.findall(r'<div class="output stderr.*?</div>', html, re.DOTALL)
    assert not warned, f"{page} shows what a cell wrote to stderr: {warned[0][:300]}"


def test_a_shared_link_has_words_and_a_picture():
    path = CHAPTERS / "01_attention_cost.html"
    if not path.exists():
        pytest.skip("no built book: run `make book`")
    head = path.read_text(encoding="utf8").partition("</head>")[0]
    tags = dict(re.findall(r'<meta (?:property|name)="([^"]+)" content="([^"]*)"', head))
    assert len(tags["description"]) > 40
    assert tags["og:description"] == tags["description"]
    assert (CHAPTERS / tags["og:image"]).resolve().is_file()
    assert head.count('name="viewport"') == 1


@pytest.mark.skipif(shutil.which("make") is None, reason="no make on this machine")
def test_make_refuses_an_old_python_by_name(tmp_path):
    old = tmp_path / "python-old"
    old.write_text(
        f"#!/bin/sh\nexec {sys.executable} -c \"$(printf '%s' \"$2\" | sed 's/(3, 11)/(9, 0)/')\"\n"
    )
    old.chmod(0o755)
    shutil.copy(ROOT / "Makefile", tmp_path)
    for name in ("requirements.txt", "pyproject.toml"):
        (tmp_path / name).touch()
    done = subprocess.run(
        ["make", "book", f"PYTHON={old}"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert "needs Python 3.11 or newer" in done.stderr


@pytest.mark.parametrize("path", notebooks.chapters(), ids=lambda p: p.stem)
def test_every_exercise_has_a_tested_solution(path):
    """Each exercise of a chapter has a folded solution, and the chapter's test file runs it."""
    cells = nbformat.read(path, as_version=4).cells
    text = "\n".join(c.source for c in cells if c.cell_type == "markdown")
    asked = re.findall(r"^:label: (ex-\S+)$", text, re.M)
    assert len(asked) >= 4
    assert sorted(re.findall(r"\{solution\} (\S+)", text)) == sorted(asked)
    tests = (ROOT / "tests" / "book" / f"test_{path.stem[3:]}.py").read_text(encoding="utf8")
    untested = [label for label in asked if f'solution("{label}")' not in tests]
    assert not untested, f"no test runs the solutions of {untested}"
