"""Chapter 3: the code that stands on its page, its equations, its exercise solutions, and its recorded run."""

import itertools
import json
import math
from pathlib import Path

import pytest
import torch
from page import Page
from torch.nn.functional import softplus

from postx import cost
from postx.mixers import mamba
from postx.widgets import block

ROOT = Path(__file__).resolve().parents[2]
PAGE = Page("selective_ssm", torch=torch, softplus=softplus, math=math)
CELLS, solution, page_functions = PAGE.cells, PAGE.solution, PAGE.neighbors


def one_row(T, D=5, N=4, seed=0):
    z, w = mamba.example(T, B=1, D=D, N=N, seed=seed)
    return z, w, [x[0] for x in z]


def gap(a, b):
    return (a - b).abs().max().item()


@pytest.mark.equation("eq-delta-gate")
def test_zero_order_hold_with_a_softplus_step_is_a_gate(residual):
    generator = torch.Generator().manual_seed(3)
    raw, u = 3 * torch.randn(2, 50, generator=generator, dtype=torch.float64)
    held = gated = torch.zeros((), dtype=torch.float64)
    error = 0.0
    for z, x in zip(raw, u, strict=True):
        keep = torch.exp(-softplus(z))
        held = keep * held + (1 - keep) / 1 * x
        gated = (1 - torch.sigmoid(z)) * gated + torch.sigmoid(z) * x
        error = max(error, gap(held, gated))
    assert error < 1e-12
    # Euler's write, as in Mamba's code, is not that gate
    assert abs(softplus(torch.tensor(3.0)) - torch.sigmoid(torch.tensor(3.0))) > 2
    residual(error)


@pytest.mark.equation("eq-own-clock")
@pytest.mark.parametrize("T", [1, 40])
def test_the_scan_is_a_fixed_filter_on_the_clock_of_the_text(T, residual):
    _, w, (u, delta, write, read) = one_row(T)
    clock = delta.cumsum(0)
    faded = torch.exp((clock[:, None] - clock[None]).clamp(min=0)[..., None] * w["A_DN"])  # [T, T, D, N]
    written = (delta * u)[..., None] * write[:, None]
    h = torch.einsum("tidn,idn,ti->tdn", faded, written, torch.ones(T, T, dtype=torch.float64).tril())
    y = torch.einsum("tdn,tn->td", h, read)
    loop = page_functions("selective_scan")["selective_scan"](u, delta, write, read, w["A_DN"])
    assert gap(y, loop) < 1e-11
    residual(gap(y, loop))


def test_the_loop_of_the_page_is_every_form_of_the_mixer():
    z, w, parts = one_row(33)
    y = page_functions("selective_scan")["selective_scan"](*parts, w["A_DN"]) + w["skip_D"] * parts[0]
    for form in (mamba.recurrent, mamba.parallel, mamba.chunked):
        assert gap(form(*z, **w)[0][0], y) < 1e-12


def test_fillers_with_no_step_leave_not_a_bit_behind():
    z, w, _ = one_row(9)
    _, S = mamba.recurrent(*z, **w)
    still = [torch.cat([x, torch.randn_like(x)], 1) for x in z]
    still[1][:, 9:] = softplus(torch.full((1, 9, 5), -60.0).double())
    for impl in ("reference", "numba"):
        assert torch.equal(mamba.recurrent(*still, **w, impl=impl)[1], mamba.recurrent(*z, **w, impl=impl)[1])
    still[1][:, 9:] = 0.1
    assert gap(mamba.recurrent(*still, **w)[1], S) > 1e-2


@pytest.mark.equation("eq-cumprod")
def test_the_division_is_right_on_paper_and_dies_in_practice(residual):
    page = page_functions("by_division")
    generator = torch.Generator().manual_seed(1)
    a, b = torch.rand(2, 60, generator=generator, dtype=torch.float64)
    a = 0.5 + a / 2
    error = gap(page["by_division"](a, b), page["by_loop"](a, b))
    assert error < 1e-11
    residual(error)
    for kind, first in ((torch.float32, 56), (torch.float64, 444)):  # the numbers of the page's answer
        a = torch.full((500,), math.exp(-1.6), dtype=torch.float64).to(kind)
        alive = page["by_division"](a, torch.ones(500, dtype=kind)).isfinite()
        assert alive.logical_not().nonzero()[0].item() + 1 == first
        assert page["by_loop"](a, torch.ones(500, dtype=kind)).isfinite().all()


@pytest.mark.equation("eq-compose")
@pytest.mark.parametrize("T", [1, 2, 17, 64])
def test_updates_compose(T, residual):
    generator = torch.Generator().manual_seed(T)
    a, b = torch.rand(2, 1, T, 3, 2, generator=generator, dtype=torch.float64)
    h = torch.randn(1, 3, 2, generator=generator, dtype=torch.float64)
    keep, written = mamba.compose(a, b)
    state, error = h, 0.0
    for t in range(T):
        state = a[:, t] * state + b[:, t]
        error = max(error, gap(keep[:, t] * h + written[:, t], state))
    assert error < 1e-12
    residual(error)


class Counted:
    """A number that counts the operations done with it."""

    done = 0

    def _count(self, *_):
        Counted.done += 1
        return Counted()

    __add__ = __mul__ = exp = _count


@pytest.mark.equation("eq-selective-cost")
@pytest.mark.parametrize(("T", "D", "N"), [(1, 1, 1), (3, 4, 16)])
def test_operations_of_the_scan_one_by_one(T, D, N, residual):
    Counted.done = 0
    state = [[Counted() for _ in range(N)] for _ in range(D)]
    for _, d in itertools.product(range(T), range(D)):
        u, delta, A, B, C, skip = (Counted() for _ in range(6))
        du, y = delta * u, skip * u
        for n in range(N):
            state[d][n] = (delta * A).exp() * state[d][n] + B * du
            y = y + C * state[d][n]
    work = cost.ssm_scan(T, D=D, N=N)
    assert Counted.done == work.flops == T * D * (7 * N + 2)
    assert work.state_floats == D * N
    residual(0.0)


def test_what_the_answer_says_of_the_block():
    boxes = block.boxes()
    weights, kept = sum(box.weights for box in boxes), sum(2 * box.kept * box.item for box in boxes)
    assert (boxes[0].title, f"{boxes[0].weights / weights:.0%}") == ("projection in", "63%")
    assert f"{kept / 1e3:.0f} kB of {(2 * weights + kept) / 1e6:.1f} MB" == "215 kB of 7.8 MB"


def test_the_spoken_line():
    page = page_functions("shares")
    line = "the code is um seven you know two like I said nine so write"
    words = line.split()
    page["matters"] = matters = torch.tensor([word in ("seven", "two", "nine") for word in words])
    held = {gate: page["shares"](page["steps"](gate), 0.5)[-1] for gate in range(7)}
    assert held[2][matters].sum() < 0.9 < held[3][matters].sum()
    assert [round(held[gate][4].item(), 2) for gate in (3, 6)] == [0.17, 0.10]
    assert torch.allclose(page["shares"](page["steps"](2), 2.0).sum(1), torch.ones(14))


def test_predict():
    scope = solution("ex-selective-predict")
    assert (scope["slowest"], scope["fastest"]) == (106, 7)
    assert math.exp(-1) == pytest.approx(1 - 0.63, abs=0.005)


def test_derive():
    flops = solution("ex-selective-derive")["flops"]
    assert flops(16, False) == cost.ssm_scan(1, D=1, N=16).flops
    assert [flops(N, True) for N in (1, 16)] == [10 * N + 1 for N in (1, 16)]


@pytest.mark.parametrize("size", [1, 7, 64, 200])
def test_code_blocks(size):
    in_blocks = solution("ex-selective-blocks")["in_blocks"]
    z, w, _ = one_row(100)
    y, S = in_blocks(z, w, size)
    whole, last = mamba.recurrent(*z, **w)
    assert max(gap(y, whole), gap(S, last)) < 1e-12


@pytest.mark.parametrize("T", [1, 2, 3, 8, 13, 100])
def test_code_a_scan_with_less_work(T):
    prefixes = solution("ex-selective-work")["prefixes"]
    a, b = torch.rand(2, T, 3, 2, generator=torch.Generator().manual_seed(T), dtype=torch.float64)
    expected = mamba.compose(a[None], b[None])
    assert all(gap(mine, theirs[0]) < 1e-12 for mine, theirs in zip(prefixes(a, b), expected, strict=True))


def test_explore():
    assert round(solution("ex-selective-explore")["old"], 3) == 0.057



def test_the_recorded_run_says_what_it_is_and_what_the_page_says():
    record = json.loads((ROOT / "experiments" / "results" / "selective_copying.json").read_text(encoding="utf8"))
    assert {"steps", "batch", "width", "layers", "tokens", "data_tokens", "device", "torch", "date"} <= set(record)
    rows = record["rows"]
    best = {row["layer"]: row["rate"] for row in rows}
    final = {
        name: [row["accuracy"]["64"] for row in rows if row["layer"] == name and row["rate"] == rate]
        for name, rate in best.items()
    }
    assert all(len(scores) == 3 for scores in final.values())
    for name, rate in best.items():  # the rate that got three seeds is the best one of its layer
        tried = {row["rate"]: row["accuracy"]["64"] for row in rows if row["layer"] == name and row["seed"] == 0}
        assert len(tried) == 3
        assert tried[rate] == max(tried.values())
    assert max(final["fixed"]) < 0.65
    assert 0.7 < min(final["S4D"]) < max(final["S4D"]) < 0.8
    longer = {
        name: [row["accuracy"]["256"] for row in rows if row["layer"] == name and row["rate"] == rate]
        for name, rate in best.items()
    }
    assert [round(x, 2) for x in (min(longer["S4D"]), max(longer["S4D"]))] == [0.16, 0.21]  # as printed on the page
    assert min(longer["Delta"] + longer["Delta, B, C"] + longer["Mamba block"]) > 0.65
    assert min(final["Delta"] + final["Delta, B, C"] + final["Mamba block"]) > 0.9
    assert min(final["S4D, plain"]) > 0.99


def test_what_the_page_says_of_the_grid_of_rates():
    path = Path(__file__).resolve().parents[2] / "experiments" / "results" / "selective_copying.json"
    rows = json.loads(path.read_text(encoding="utf8"))["rows"]
    first = {(row["layer"], row["rate"]): row["accuracy"] for row in rows if row["seed"] == 0}
    rates = sorted({rate for _, rate in first})
    assert [round(first["S4D", rate]["64"], 3) for rate in rates] == [0.425, 0.677, 0.729]
    best = max(rates, key=lambda rate: first["Delta", rate]["64"])
    assert best == rates[-1]  # the edge of the grid
    tie = first["Delta, B, C", 0.01], first["Delta, B, C", 0.03]
    assert [a["64"] for a in tie] == [1, 1]
    assert round(tie[1]["256"], 3) == 0.993
    plain = [row["accuracy"]["256"] for row in rows if row["layer"] == "S4D, plain" and row["rate"] == 0.01]
    assert [round(x, 2) for x in (min(plain), max(plain))] == [0.17, 0.24]


def test_the_age_of_the_last_digit():
    """After 200 ums at a step of softplus(-1.25), in the slowest of the eight numbers."""
    assert math.log10(math.exp(-200 * math.log1p(math.exp(-1.25)))) == pytest.approx(-22, abs=0.5)
