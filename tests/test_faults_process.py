"""Faults of processes: no home, no JIT, forks; and figures that the reader's own settings would change."""

import io
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
from PIL import Image

from postx import explore, fieldmap, style
from postx.scans import runtime


def python(code, **environ):
    """What a new process says."""
    env = {k: v for k, v in os.environ.items() if k not in ("POSTX_THREADS", "PYTEST_XDIST_WORKER_COUNT")}
    env |= {"PYTHONPATH": str(Path(__file__).parents[1])} | environ
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_user_without_a_home_gets_a_temporary_folder(monkeypatch, tmp_path):
    def nobody():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(runtime.Path, "home", nobody)
    assert runtime._home() is None
    file = tmp_path / "package"
    file.write_text("no folder can be made in a file")
    found = runtime.cache_folder(file, runtime._home())
    assert "postx-numba" in found.name
    assert runtime.cache_folder(tmp_path, None) == tmp_path / "__pycache__"


NO_JIT = """
import torch
from postx import mixers, quant, scans
from postx.mixers import by_step
for name in mixers.names():
    m = mixers.load(name)
    z, w = m.example(3)
    y, want = m.recurrent(*z, **w)[0], by_step(m, *z, **w)[0]
    assert torch.allclose(y, want, atol=1e-8), name
g = -torch.rand(1, 3, 2)
try: scans.affine(g, g, impl="numba")
except ValueError as error: assert "NUMBA_DISABLE_JIT" in str(error)
else: raise AssertionError("numba")
W, x = torch.randn(4, 32), torch.randn(40, 32)
for name in quant.names():
    more = {"x_TI": x} if name in ("gptq", "awq") else {}
    bits = () if name == "ternary" else (2 if name == "lattice" else 4,)
    q = quant.load(name).quantize(W, *bits, **more)
    back = q.dequantize()
    assert float((back - W).norm() / W.norm()) < 0.7, name
    if name in ("uniform", "gptq", "ternary"): assert torch.allclose(q.matvec(x[0]), back @ x[0], atol=1e-4), name
print("fine")
"""


def test_everything_runs_without_the_compiler():
    assert python(NO_JIT, NUMBA_DISABLE_JIT="1") == "fine"


FORK = """
import multiprocessing as mp, sys, torch
import postx.scans
x = -torch.rand(2, 30, 2)
def plain(i): return float(x.exp().sum())
def kernel(i):
    from postx import scans
    return float(scans.affine(x, x)[0].sum())
work = kernel if sys.argv[1:] == ["kernel"] else plain
if work is plain: plain(0)
pool = mp.get_context("fork").Pool(2)
try:
    pool.map_async(work, range(2)).get(timeout=100)
    print("done")
finally:
    pool.terminate()
"""


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="needs fork")
@pytest.mark.parametrize("work", ["plain", "kernel"])
def test_children_of_a_process_that_imported_postx_can_work(work):
    assert python(FORK.replace("sys.argv[1:]", f"[{work!r}]")) == "done"


def test_threads_are_set_where_the_environment_asks():
    code = "import postx.scans, numba, torch; print(numba.get_num_threads(), torch.get_num_threads())"
    assert python(code, POSTX_THREADS="1") == "1 1"


# Figures


def draw(fig):
    ax = fig.subplots()
    (line,) = ax.plot([0, 1], [0, 1])

    def update(n):
        line.set_ydata([0, n])
        ax.set_ylabel("label\n" * n)

    return update


def frames(n=3):
    picture = explore.explore(draw, alt="A line and a label of {n} lines", n=explore.Int(1, n))
    out = []
    for i in range(1, n + 1):
        picture.move(n=i)
        out.append(np.asarray(Image.open(io.BytesIO(picture.png())).convert("L")))
    return out


@pytest.mark.parametrize("page", ["0", "both"])
def test_the_readers_settings_change_no_frame(monkeypatch, page):
    monkeypatch.setenv("POSTX_STATIC", page)
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        plain = frames()
    mine = {"savefig.bbox": "tight", "savefig.transparent": True, "lines.linestyle": ":", "axes.facecolor": "0.5",
            "figure.subplot.left": 0.4, "font.family": "monospace", "xtick.direction": "in"}  # fmt: skip
    for settings in (plt.style.context("dark_background"), matplotlib.rc_context(mine)):
        with settings:
            before = dict(matplotlib.rcParams)
            assert all(np.array_equal(a, b) for a, b in zip(frames(), plain, strict=True))
            assert dict(matplotlib.rcParams) == before
    with plt.style.context("dark_background"):
        dark = fieldmap.draw()
    assert dark.axes[0].texts[0].get_color() == "black"


def test_use_makes_the_whole_look_the_default():
    with plt.style.context("dark_background"):
        backend = matplotlib.get_backend()
        style.use()
        assert matplotlib.rcParams["text.color"] == "black"
        assert matplotlib.rcParams["figure.figsize"] == list(style.RC["figure.figsize"])
        assert matplotlib.get_backend() == backend


def test_smooth_shading_is_shown_as_pixels(monkeypatch):
    monkeypatch.setenv("POSTX_STATIC", "both")
    rng = np.random.default_rng(0)
    for kind in ("mesh", "triangles"):
        fig, ax = plt.subplots()
        if kind == "mesh":
            ax.pcolormesh(rng.random((5, 5)), shading="gouraud")
        else:
            ax.tripcolor(rng.random(9), rng.random(9), rng.random(9), shading="gouraud")
        picture = explore.show(fig, alt="Five by five values as a smooth surface")
        assert "<image" in picture._page
        assert "filter" not in picture._page


def test_what_a_page_cannot_show_is_said(monkeypatch):
    from postx.explore import compact

    with pytest.raises(ValueError, match="fig: a <path> of it refers to 'colorAdd'"):
        compact._known({}, "colorAdd", "path")
