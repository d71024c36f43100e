"""Chapter 13: the code that stands on its page, its equations, and its exercise solutions."""

import itertools
import math

import numpy as np
import pytest
import torch
from page import Page
from scipy.integrate import solve_ivp

from experiments import liquid as race
from postx.mixers import cfc, liquid

PAGE = Page("liquid_networks", torch=torch, np=np, math=math, liquid=liquid, cfc=cfc)
solution, page_function = PAGE.solution, PAGE.function
TIGHT = {"method": "Radau", "rtol": 1e-10, "atol": 1e-12}


def one(*values):
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.equation("eq-ltc")
@pytest.mark.parametrize("wired", [True, False])
def test_the_mixer_follows_the_equation(wired, residual):
    """With the wire the solver's error halves with its steps; without it, solved exactly, it is scipy's answer."""
    (u, dt), w = liquid.example(4, B=1, recurrent=wired)
    delta, A, peak = (w[name].numpy() for name in ("delta_D", "A_D", "peak_D"))
    h = np.zeros(5)
    for t in range(4):

        def slope(_, x, u_D):
            f = peak / (1 + np.exp(-(u_D + x @ w["r_DD"].numpy() if wired else u_D)))
            return -x * delta + f * (A - x)

        h = solve_ivp(slope, (0, dt[0, t].item()), h, args=(u[0, t].numpy(),), **TIGHT).y[:, -1]
    if wired:  # Richardson takes the first-order error out
        coarse, fine = (liquid.recurrent(u, dt, **w, unfolds=n)[1][0].numpy() for n in (1000, 2000))
        worst = np.abs(2 * fine - coarse - h).max()
    else:
        worst = np.abs(liquid.recurrent(u, dt, **w, solver="exact")[1][0].numpy() - h).max()
    assert worst < 1e-5
    residual(worst)


@pytest.mark.equation("eq-ltc-relax")
@pytest.mark.parametrize(("f", "tau"), [(0.0, 2.0), (3.0, 0.5), (50.0, 1.0)])
def test_a_held_neuron_relaxes(f, tau, residual):
    held = page_function("held")
    times = np.array([0, 0.1, 0.7, 2.0])
    want = solve_ivp(lambda _, x: -x / tau + f * (0.8 - x), (0, 2), [-0.5], t_eval=times, **TIGHT).y[0]
    worst = np.abs(held(-0.5, times, f, 1 / tau, A=0.8) - want).max()
    assert worst < 1e-8
    residual(worst)


@pytest.mark.equation("eq-step-factors")
@pytest.mark.parametrize("x", [0.1, 1.0, 2.0, 9.5])
def test_what_a_step_leaves_of_the_distance(x, residual):
    explicit, fused, held = PAGE.functions("explicit", "fused", "held")
    f, leak, A, h = 4.0, 1.0, 0.8, -0.5
    s, rest = x / (f + leak), f * A / (f + leak)
    left = [
        (new - rest) / (h - rest)
        for new in (held(h, s, f, leak, A=A), explicit(h, s, f, A, leak, 1), fused(h, s, f, A, leak, 1))
    ]
    worst = np.abs(np.array(left) - [math.exp(-x), 1 - x, 1 / (1 + x)]).max()
    assert worst < 1e-12
    residual(worst)


@pytest.mark.equation("eq-fused-step")
def test_the_fused_step_is_a_weighted_mean(residual):
    (u, dt), w = liquid.example(1, recurrent=True)
    h, s = torch.rand(2, 5, dtype=torch.float64), dt[:, 0, None]
    f = w["peak_D"] * torch.sigmoid(u[:, 0] + h @ w["r_DD"])
    weights = torch.stack([torch.ones_like(f), s * f, (s * w["delta_D"]).expand_as(f)])
    mean = (weights * torch.stack([h, w["A_D"].expand_as(h), 0 * h])).sum(0) / weights.sum(0)
    worst = (liquid.recurrent(u, dt, **w, unfolds=1, S=h)[1] - mean).abs().max().item()
    assert worst < 1e-12
    assert (weights >= 0).all()
    residual(worst)


@pytest.mark.equation("eq-ltc-bounds")
@pytest.mark.parametrize("scale", [0.1, 1e6])
def test_states_and_time_constants_are_bounded(scale, residual):
    (u, dt), w = liquid.example(300, B=4, D=16)
    y, _ = liquid.recurrent(4 * u, scale * dt, **w, unfolds=1)
    over = torch.maximum(y - w["A_D"].clamp(min=0), w["A_D"].clamp(max=0) - y).max().item()
    assert over <= 1e-12
    before = torch.cat([0 * y[:, :1], y[:, :-1]], 1)
    f = w["peak_D"] * torch.sigmoid(4 * u + before @ w["r_DD"])
    tau = 1 / w["delta_D"]
    tau_sys = tau / (1 + tau * f)
    assert (tau_sys <= tau).all()
    assert (tau_sys >= tau / (1 + tau * w["peak_D"])).all()
    residual(max(over, 0.0))


@pytest.mark.equation("eq-fused-order")
@pytest.mark.parametrize("x", [0.1, 2.0, 6.0])
def test_how_late_the_fused_solver_is(x, residual):
    late, fused = PAGE.functions("late", "fused")
    n = 10_000
    off = abs(late(x, n) / (x * x / (2 * n) * math.exp(-x)) - 1)
    assert off < 5e-3
    assert fused(1.0, x, 0.0, 0.0, 1.0, 6) == pytest.approx((1 + x / 6) ** -6, rel=1e-12)
    residual(off)


@pytest.mark.equation("eq-liquid-affine")
def test_without_the_wire_it_is_a_decay_and_a_write(residual):
    (u, dt), w = liquid.example(50, recurrent=False)
    y, _ = liquid.recurrent(u, dt, **w, solver="exact")
    h, worst = torch.zeros(2, 5, dtype=torch.float64), 0.0
    for t in range(50):
        f = w["peak_D"] * torch.sigmoid(u[:, t])
        a = torch.exp(-(w["delta_D"] + f) * dt[:, t, None])
        h = a * h + (1 - a) * f * w["A_D"] / (w["delta_D"] + f)
        worst = max(worst, (h - y[:, t]).abs().max().item())
    assert worst < 1e-12
    residual(worst)


@pytest.mark.equation("eq-cfc-closed")
@pytest.mark.parametrize(("drive", "leak"), [(-2.0, 0.3), (0.0, 0.0), (3.0, 1.0)])
def test_which_equation_the_closed_form_solves(drive, leak, residual):
    """x' = -(w + f)(x - A), from where the formula starts: not the equation it is stated for, unless w = 0."""
    sigmoid, closed = PAGE.functions("sigmoid", "closed")
    f, times = sigmoid(drive), np.array([0.0, 0.5, 3.0])
    start = closed(0.0, -0.5, drive, leak)
    want = solve_ivp(lambda _, x: -(leak + f) * (x - 1), (0, 3), [start], t_eval=times, **TIGHT).y[0]
    worst = np.abs(closed(times, -0.5, drive, leak) - want).max()
    assert worst < 1e-8
    stated = solve_ivp(lambda _, x: -(leak + f) * x + f, (0, 3), [start], t_eval=times, **TIGHT).y[0]
    assert bool(np.abs(stated - want).max() < 1e-8) is (leak == 0)
    residual(worst)


@pytest.mark.parametrize("leak", [0.0, 0.3, 1.0])
def test_the_lemma_bounds_the_closed_form_for_the_equation_that_the_proof_takes(leak):
    """|x - form| <= |x(0) - A| e^(-wt) where the leak, too, pulls towards A; an open gate comes near to it."""
    sigmoid, closed = PAGE.functions("sigmoid", "closed")
    t, near = np.linspace(0, 8, 81), []
    for drive in (-30.0, -2.0, 0.0, 3.0, 30.0):
        x = 1 + (-0.5 - 1) * np.exp(-(leak + sigmoid(drive)) * t)
        off = np.abs(x - closed(t, -0.5, drive, leak))
        assert (off <= 1.5 * np.exp(-leak * t) + 1e-12).all()
        near.append(off[0] / 1.5)
    assert max(near) > 0.999  # at the start no smaller bound holds


@pytest.mark.equation("eq-cfc-limits")
@pytest.mark.parametrize(("drive", "leak", "A"), [(-2.0, 0.3, 1.0), (0.0, 0.0, -0.7), (3.0, 1.0, 2.0)])
def test_the_closed_form_at_both_ends_of_time(drive, leak, A, residual):
    sigmoid, closed, held = PAGE.functions("sigmoid", "closed", "held")
    f, x0 = sigmoid(drive), -0.5
    off = [closed(t, x0, drive, leak, A) - held(x0, t, f, leak, A) for t in (0.0, 1e3)]
    worst = np.abs(np.array(off) - [f * (A - x0), A * leak / (leak + f)]).max()
    assert worst < 1e-12
    residual(worst)


@pytest.mark.equation("eq-cfc-cell")
def test_the_cell_that_is_trained(residual):
    (u, dt), w = cfc.example(1)
    h = torch.rand(2, 5, dtype=torch.float64)
    b = 1.7159 * torch.tanh(0.666 * (u[:, 0] + h @ w["r_DF"]))
    left, right, r, c = (b @ head + bias for head, bias in zip(w["heads_HFD"], w["bias_HD"], strict=True))
    s = torch.sigmoid(r * dt + c)
    want = (1 - s) * left.tanh() + s * right.tanh()
    worst = (cfc.recurrent(u, dt, **w, S=h)[1] - want).abs().max().item()
    assert worst < 1e-12
    residual(worst)


class Counted:
    """A number that counts what is done to it; a sigmoid is 3 operations, exp and tanh are 1."""

    done = 0

    def __init__(self, value=0.3):
        self.value = value

    def _do(self, *_, n=1):
        Counted.done += n
        return Counted()

    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = _do

    def sigmoid(self):
        return self._do(n=3)

    exp = tanh = _do


def operations(run):
    Counted.done = 0
    run()
    return Counted.done


@pytest.mark.equation("eq-liquid-costs")
@pytest.mark.parametrize("D", [1, 7])
def test_the_bills(D, residual):
    def numbers(*n):
        return [numbers(*n[1:]) for _ in range(n[0])] if n else Counted()

    h, u, delta, A, peak, dt = *(numbers(D) for _ in range(5)), Counted()

    def affine(x, matrix, start):
        for value, weight in zip(x, matrix, strict=True):
            start = start + value * weight
        return start

    def wired():
        for d in range(D):
            f = peak[d] * affine(h, numbers(D), u[d]).sigmoid()
            (h[d] + dt * f * A[d]) / (1 + dt * (delta[d] + f))

    def free():
        for d in range(D):
            f = peak[d] * u[d].sigmoid()
            rate = delta[d] + f
            a = (rate * dt).exp()
            a * h[d] + (1 - a) * (f * A[d] / rate)

    def closed():
        b = [1.7159 * (0.666 * affine(h, numbers(D), u[d])).tanh() for d in range(D)]
        for _ in range(D):
            left, right, rate, shift = (affine(b, numbers(D), Counted()) for _ in range(4))
            left, right = left.tanh(), right.tanh()
            left + (rate * dt + shift).sigmoid() * (right - left)

    assert 6 * operations(wired) == 6 * (2 * D * D + 11 * D) == liquid.cost(1, D=D).flops
    assert operations(closed) == 10 * D * D + 13 * D == cfc.cost(1, D=D, F=D).flops
    assert operations(free) == 13 * D
    residual(0.0)


def test_the_recorded_race_says_what_the_page_says():
    runs = {task: race.table(task) for task in race.TASKS}
    (rival,) = PAGE.functions("rival", runs=runs)
    ratios = {
        (task, cell): [rival(task, row)[0] / row["parameters"] for row in line]
        for task, lines in runs.items()
        for cell, line in lines.items()
    }
    for task, lines in runs.items():
        assert set(lines) == set(race.CELLS)
        for cell, line in lines.items():
            assert all(row["seeds"] == 3 for row in line), (task, cell)
        errors = {cell: [row["error"] for row in line] for cell, line in lines.items()}
        assert all(gru < ltc for gru, ltc in zip(errors["GRU"], errors["LTC"], strict=False))
        assert all(gru < ltc for gru, ltc in zip(errors["GRU"], errors["LTC, synapses"], strict=False))
        assert errors["LTC, no R"][-1] > 0.6 * errors["LTC, no R"][0]
    assert all(1.5 < ratio < 5 for ratio in ratios["pendulum", "CfC"][1:3])
    assert max(max(line) for line in ratios.values()) < 5
    for cell in ("LTC", "LTC, synapses"):
        assert all(ratio < 1 for task in race.TASKS for ratio in ratios[task, cell][1:])


@pytest.mark.parametrize("cell", race.CELLS)
def test_every_cell_of_the_race_learns_and_hears_the_clock(cell):
    run = {"task": "pendulum", "cell": cell, "width": 4, "lr": 0.1, "seed": 0, "steps": 50}
    torch.manual_seed(0)
    data = race.held_out("pendulum", 0, 16)
    fresh, model = race.Model(cell, "pendulum", 4), race.train(run)
    with torch.no_grad():
        fresh = race.error(fresh, data)
        assert race.error(model, data) < 0.95 * fresh
        x, dt, _ = data
        assert (model(x, dt) - model(x, 2 * dt)).abs().max() > 1e-3


def test_predict():
    scope = solution("ex-liquid-predict")
    assert scope["left"][1] == (0, 0.5)
    assert scope["left"][2] == (-1, 1 / 3)
    assert scope["landed"][1e9][1] == pytest.approx(scope["rest"])
    assert abs(scope["landed"][1e9][0]) > 1e8


def test_derive():
    scope = solution("ex-liquid-derive")
    assert scope["enough"] == 27
    assert scope["worst"][6] == pytest.approx(0.043, abs=5e-4)
    assert all(a > b for a, b in itertools.pairwise(scope["worst"].values()))


def test_code_richardson():
    scope = solution("ex-liquid-richardson")
    assert scope["order"] == pytest.approx(2, abs=0.15)
    assert scope["beyond"] > 1


def test_code_crossing():
    crossing, held = solution("ex-liquid-crossing")["crossing"], page_function("held")
    t = crossing(-0.5, 3.0, 0.8, 2.0, 0.3)
    assert held(-0.5, t, 3.0, 0.5, A=0.8) == pytest.approx(0.3, abs=1e-12)
    assert crossing(-0.5, 3.0, 0.8, 2.0, 0.79) == math.inf
    assert crossing(-0.5, 3.0, 0.8, 2.0, -0.6) == math.inf
    assert crossing(0.1, 3.0, 0.8, 2.0, 0.1) == 0


def test_explore():
    errors = solution("ex-liquid-clock")["errors"]
    assert errors["no clock"] > 2 * errors["clock"]
