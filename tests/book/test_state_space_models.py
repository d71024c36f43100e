"""Chapter 2: the code that stands on its page, the equations that no other file holds, and its exercise solutions."""

import cmath
import math
from functools import partial

import numpy as np
import pytest
import torch
from page import Page
from scipy.linalg import expm
from scipy.signal import cont2discrete

from postx import scans
from postx.mixers import s4d

PAGE = Page(
    "state_space_models",
    torch=torch,
    np=np,
    s4d=s4d,
    solve=partial(torch.linalg.solve_triangular, upper=False),
)
CELLS, solution = PAGE.cells, PAGE.solution
N = 8


def page_function(*names):
    """One function of the page, or several that share a scope."""
    found = PAGE.functions(*names)
    return found[0] if len(found) == 1 else found


def one_channel(T, A, delta=0.05, seed=0):
    generator = torch.Generator().manual_seed(seed)
    C = torch.randn(1, len(A), dtype=torch.complex128, generator=generator)
    v = torch.randn(T, dtype=torch.float64, generator=generator)
    return {"delta_D": torch.full((1,), delta, dtype=torch.float64), "A_DN": A[None], "C_DN": C}, v


def coefficients(f, t, N=N):
    """c_n(t) of HiPPO-LegS with 60 Gauss points, written apart from the page."""
    nodes, weights = np.polynomial.legendre.leggauss(60)
    shape = [np.polynomial.legendre.Legendre.basis(n)(nodes) * math.sqrt(2 * n + 1) for n in range(N)]
    return np.array([(weights / 2 * p * f(t * (nodes + 1) / 2)).sum() for p in shape])


@pytest.mark.equation("eq-euler-bilinear")
@pytest.mark.parametrize("rule", ["euler", "bilinear", "zoh"])
@pytest.mark.parametrize("delta", [1e-3, 0.3, 5.0])
def test_the_rules_of_the_page_are_scipys(rule, delta, residual):
    """A complex number is a real 2 x 2 matrix to scipy."""
    discretize = page_function("discretize")
    A = -0.5 + 3j
    matrix = np.array([[A.real, -A.imag], [A.imag, A.real]])
    identity = np.eye(2)
    turn, push, *_ = cont2discrete((matrix, identity, identity, 0 * identity), delta, method=rule)
    got = discretize(torch.tensor(A, dtype=torch.complex128), delta, rule)
    worst = 0.0
    for number, theirs in zip(got, (turn, push), strict=True):
        z = complex(number)
        worst = max(worst, np.abs(np.array([[z.real, -z.imag], [z.imag, z.real]]) - theirs).max())
    assert worst < 1e-12
    residual(worst)


def test_each_rule_lies_where_the_page_says():
    discretize = page_function("discretize")

    def factor(A, delta, rule):
        return abs(complex(discretize(torch.tensor(A, dtype=torch.complex128), delta, rule)[0]))

    for A in (-1.0, -0.2 + 3j):
        limit = 2 * abs(complex(A).real) / abs(A) ** 2
        assert factor(A, 0.99 * limit, "euler") < 1 < factor(A, 1.01 * limit, "euler")
    assert all(factor(-1.0, delta, "bilinear") < 1 for delta in (2.5, 100.0, 1e4))
    assert complex(discretize(torch.tensor(-1.0), 1e4, "bilinear")[0]).real < -0.999
    # ZOH with one sample a step is half a step off a smooth input
    A, off = torch.tensor(-1.0, dtype=torch.float64), []
    for delta in (0.02, 0.01):
        t, S = torch.arange(0, 6, delta, dtype=torch.float64), 0.0
        keep, push = discretize(A, delta, "zoh")
        for v in torch.sin(t)[1:]:
            S = keep * S + push * v
        off.append(abs(S - (torch.sin(t[-1]) - torch.cos(t[-1]) + torch.exp(-t[-1])) / 2).item())
    assert off[0] / off[1] == pytest.approx(2, abs=0.2)


@pytest.mark.equation("eq-ssm-fft")
@pytest.mark.parametrize("T", [1, 2, 7, 64])
def test_the_convolution_of_the_page_needs_its_padding(T, residual):
    loop, kernel, slide, by_fft, discretize = page_function("loop", "kernel", "slide", "by_fft", "discretize")
    A = s4d.lin(1, N)[0]
    A_bar, k_bar = discretize(A, 0.05, "zoh")
    w, v = one_channel(T, A)
    y, K = loop(A_bar, k_bar, w["C_DN"][0], v), kernel(A_bar, k_bar, w["C_DN"][0], T)
    expected = torch.tensor(np.convolve(K.numpy(), v.numpy())[:T])
    worst = max((x - expected).abs().max().item() for x in (y, slide(K, v), by_fft(K, v, 2 * T - 1)))
    assert worst < 1e-12
    if T > 1:
        assert (by_fft(K, v, 2 * T - 2) - expected).abs().max() > 1e-6
    residual(worst)


@pytest.mark.equation("eq-hippo-projection")
def test_the_notes_are_the_projection_on_orthonormal_shapes(residual):
    legendre = page_function("legendre")
    nodes, weights = np.polynomial.legendre.leggauss(40)
    shapes = legendre(N, (nodes + 1) / 2)
    gram = shapes.T @ (torch.tensor(weights / 2)[:, None] * shapes)
    f = np.polynomial.Polynomial([1, -2, 0, 3])
    t, u = 2.5, np.linspace(0, 1, 50)
    back = legendre(N, u) @ torch.tensor(coefficients(f, t))
    worst = max((gram - torch.eye(N)).abs().max().item(), (back - torch.tensor(f(t * u))).abs().max().item())
    assert worst < 1e-10
    residual(worst)


@pytest.mark.equation("eq-hippo-legs")
@pytest.mark.parametrize("t", [0.3, 1.0, 2.5])
@pytest.mark.parametrize("signal", ["polynomial", "wave"])
def test_the_notes_obey_their_equation_for_any_smooth_signal(t, signal, residual):
    """The slope of c_n is the integral of u f'(u t) p_n(u): no differences are taken."""
    A, b = (x.numpy() for x in page_function("hippo")(N))
    f, slope = {
        "polynomial": (lambda x: 1 - 2 * x + 3 * x**3, lambda x: -2 + 9 * x**2),
        "wave": (lambda x: np.cos(5 * x), lambda x: -5 * np.sin(5 * x)),
    }[signal]
    left = coefficients(lambda x: x / t * slope(x), t)
    worst = np.abs(left - (A @ coefficients(f, t) + b * f(t)) / t).max()
    assert worst < 1e-9
    residual(worst)


@pytest.mark.equation("eq-hippo-fixed-pace")
@pytest.mark.parametrize("s", [0.0, 0.1, 1.0, 6.0])
def test_the_answer_to_one_sample_at_a_fixed_pace(s, residual):
    A, b = (x.numpy() for x in s4d.hippo_legs(N))
    formula = math.exp(-s) * page_function("legendre")(N, np.array([math.exp(-s)]))[0].numpy()
    worst = np.abs(expm(s * A) @ b - formula).max()
    assert worst < 1e-10
    residual(worst)


@pytest.mark.equation("eq-s4d-kernel")
@pytest.mark.parametrize("init", ["lin", "inv", "legs"])
def test_the_kernel_spring_by_spring(init, residual):
    w, _ = one_channel(20, s4d.INITS[init](1, N)[0])
    springs = [(complex(a), complex(c)) for a, c in zip(w["A_DN"][0], w["C_DN"][0], strict=True)]
    z = 0.05
    expected = [
        2 * sum(c * (cmath.exp(z * a) - 1) / a * cmath.exp(j * z * a) for a, c in springs).real
        for j in range(20)
    ]
    worst = (s4d.kernel(20, **w)[0] - torch.tensor(expected, dtype=torch.float64)).abs().max()
    assert worst < 1e-12
    residual(worst)


@pytest.mark.equation("eq-ssm-timescale")
@pytest.mark.parametrize(("half_life", "period"), [(32, 16), (7, 7), (100, 4)])
def test_a_spring_halves_and_turns_when_the_page_says(half_life, period, residual):
    """Left alone for both a half-life and whole turns, the state is one half of itself, in the same phase."""
    delta = 0.01
    spring = complex(-math.log(2) / (delta * half_life), 2 * math.pi / (delta * period))
    w, _ = one_channel(1, torch.tensor([spring], dtype=torch.complex128), delta)
    start = torch.ones(1, 1, 1, dtype=torch.complex128)
    quiet = torch.zeros(1, half_life, 1, dtype=torch.float64)
    _, S = s4d.recurrent(quiet, skip_D=torch.zeros(1, dtype=torch.float64), S=start, **w)
    worst = (S - 0.5).abs().max()
    assert half_life % period == 0
    assert worst < 1e-12
    residual(worst)


@pytest.mark.equation("eq-ssm-lag-only")
def test_the_weight_of_a_token_depends_on_its_distance_alone(residual):
    w, v = one_channel(12, s4d.lin(1, N)[0])
    kernel = s4d.kernel(12, **w)[0]
    worst = 0.0
    for scale in (1.0, -30.0):  # whatever stands there

        def layer(x):
            y, _ = s4d.recurrent(x[None, :, None], skip_D=torch.zeros(1, dtype=torch.float64), **w)
            return y[0, :, 0]

        weights = torch.autograd.functional.jacobian(layer, scale * v)
        for t in range(12):
            worst = max(worst, (weights[t, : t + 1] - kernel[: t + 1].flip(0)).abs().max().item())
            assert (weights[t, t + 1 :] == 0).all()
    assert worst < 1e-12
    residual(worst)


def test_a_step_of_zero_takes_a_token_out_of_the_count():
    """What the page does by hand: the tokens around a skipped one meet as if it were not there, and it weighs 0."""
    w, v = one_channel(9, s4d.lin(1, N)[0])
    z = w["delta_D"][:, None] * w["A_DN"]
    write = torch.special.expm1(z) / z

    def run(v, keep):
        delta = (w["delta_D"] * keep)[None, :, None]
        return scans.diagonal(v[None, :, None], delta, w["A_DN"], write, 2 * w["C_DN"])[0][0, :, 0]

    keep = torch.ones(9, dtype=torch.float64)
    keep[4:6] = 0
    without = torch.cat([v[:4], v[6:]])
    short = run(without, torch.ones(7, dtype=torch.float64))
    assert (run(v, keep)[6:] - short[4:]).abs().max() < 1e-12
    assert (run(v, torch.ones_like(keep))[6:] - short[4:]).abs().max() > 1e-3


def test_the_first_cell_keeps_a_signal_that_its_number_of_shapes_can_hold():
    listen, legendre = page_function("listen", "legendre")
    u = (np.arange(1024) + 0.5) / 1024
    signal = torch.tensor(np.sin(2 * np.pi * 3 * u))

    def error(N):
        return ((legendre(N, u) @ listen(signal, N) - signal).norm() / signal.norm()).item()

    assert error(24) < 0.02
    assert error(6) > 0.2


def test_predict():
    scope = solution("ex-ssm-predict")
    assert 0.03 < scope["doubled"] < 0.07
    assert scope["exact"] < 1e-14


def test_derive():
    scope = solution("ex-ssm-derive")
    assert scope["explode"] == 21
    assert (scope["limit"] < 0.001).nonzero().min() == 11


@pytest.mark.parametrize("cut", [1, 10, 29])
def test_code_pieces(cut):
    in_two = solution("ex-ssm-pieces")["in_two"]
    (u,), w = s4d.example(30)
    whole, _ = s4d.parallel(u, **w)
    assert (in_two(u, cut, **w) - whole).abs().max() < 1e-10
    off = (in_two(u, cut, hand_over=False, **w) - whole).abs()
    assert (off[:, cut:] > 1e-6).any(-1).any(0).all()
    assert off[:, :cut].max() < 1e-10


def test_code_read_back():
    read_back = solution("ex-ssm-read")["read_back"]
    A, b = s4d.hippo_legs(N)

    def past(s):  # the input s ago: a combination of shapes in exp(-s)
        return 1 - 2 * np.exp(-s) + 3 * np.exp(-s) ** 3

    nodes, weights = np.polynomial.legendre.leggauss(200)
    s = 20 * (nodes + 1)  # from 0 to 40, beyond which exp(-s) is nothing
    heard = [torch.matrix_exp(x * A) @ b for x in s.tolist()]
    notes = sum(20 * weight * f * h for weight, f, h in zip(weights, past(s), heard, strict=True))
    ago = np.array([0.0, 0.5, 1.0, 3.0])
    assert (read_back(notes, ago) - torch.tensor(past(ago))).abs().max() < 1e-8


def test_explore():
    assert list(solution("ex-ssm-explore")["counts"].values()) == [6, 10, 18, 32, 58, 110]


def test_what_a_card_of_64_numbers_holds_and_what_it_does_not():
    """The hook's signal against a spline through 64 samples, and white noise, as the page says."""
    from scipy.interpolate import CubicSpline

    place = (np.arange(8192) + 0.5) / 8192
    scope = {"np": np, "torch": torch, "place": place}
    (source,) = [c.source for c in CELLS if c.cell_type == "code" and "signal = torch.tensor(" in c.source]
    exec(source[source.index("signal = ") : source.index("solve = ")], scope)
    signal = scope["signal"].numpy()
    spots = np.round(np.linspace(0, 8191, 64)).astype(int)
    spline = CubicSpline(place[spots], signal[spots])(place)
    assert np.linalg.norm(spline - signal) / np.linalg.norm(signal) == pytest.approx(0.0006, rel=0.1)
    legendre = page_function("legendre")(64, place).numpy()
    noise = np.random.default_rng(0).normal(size=8192)
    left = noise - legendre @ np.linalg.lstsq(legendre, noise, rcond=None)[0]  # the best that any 64 notes can do
    assert np.linalg.norm(left) / np.linalg.norm(noise) == pytest.approx(0.996, abs=0.002)


def test_the_kernel_made_by_hand_has_an_echo():
    A, delta = s4d.lin(1, 16), torch.full((1,), 0.1, dtype=torch.float64)
    (source,) = [c.source for c in CELLS if "read = partial(s4d.kernel, 24" in c.source]
    scope = {"s4d": s4d, "torch": torch, "partial": partial}
    exec(source, scope)
    K = s4d.kernel(100, delta_D=delta, A_DN=A, C_DN=scope["C"])[0]
    echoes = {6: 1.0, 26: math.exp(-1), 46: math.exp(-2), 66: math.exp(-3), 86: math.exp(-4)}
    expected = torch.tensor([echoes.get(j, 0.0) for j in range(100)], dtype=torch.float64)
    assert (K - expected).abs().max() < 1e-9
