"""Liquid networks against an ODE solver that is not ours: order of the fused step, the papers' bounds, stiffness."""

import contract
import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

from postx import mixers
from postx.mixers import liquid


def truth(u, dt, *, delta_D, A_D, peak_D, r_DD=None, h=None):
    """Eq. 1 of the paper with inputs that hold for dt, by scipy's implicit Runge-Kutta method at 1e-10. One row."""
    delta, A, peak, r = (None if x is None else x.numpy() for x in (delta_D, A_D, peak_D, r_DD))
    h, hs = np.zeros(u.shape[1]) if h is None else h, []

    def slope(_, x, u_D):
        f = peak / (1 + np.exp(-(u_D if r is None else u_D + x @ r)))
        return -(delta + f) * x + f * A

    for u_D, step in zip(u.numpy(), dt.tolist(), strict=True):
        h = solve_ivp(slope, (0, step), h, method="Radau", rtol=1e-10, atol=1e-12, args=(u_D,)).y[:, -1]
        hs.append(h)
    return torch.from_numpy(np.stack(hs))


@pytest.mark.parametrize("recurrent", [True, False])
def test_the_fused_solver_is_of_order_one(recurrent):
    """Twice the unfolds, half the error, on eight inputs of uneven length."""
    (u, dt), w = liquid.example(8, B=1, recurrent=recurrent)
    want = truth(u[0], dt[0], **w)
    errors = [(liquid.recurrent(u, dt, **w, unfolds=n)[0][0] - want).abs().max().item() for n in (16, 32, 64, 128)]
    orders = -np.diff(np.log2(errors))
    assert orders == pytest.approx(1, abs=0.06)
    assert errors[-1] < 5e-3


def test_numbers_of_one_neuron():
    """tau = 1, f = 2, A = 0.8 from -0.5 over dt = 1: the published check values, and scipy's."""
    one = torch.ones(1, dtype=torch.float64)
    w = {"delta_D": one, "A_D": 0.8 * one, "peak_D": 4 * one}  # sigmoid(0) = 1/2
    z = torch.zeros(1, 1, 1, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64)
    S = torch.full((1, 1), -0.5, dtype=torch.float64)
    got = {n: liquid.recurrent(*z, **w, unfolds=n, S=S)[0].item() for n in (1, 6, 12)}
    assert list(got.values()) == pytest.approx([0.27500, 0.44262, 0.46232], abs=1e-5)
    exact = liquid.recurrent(*z, **w, solver="exact", S=S)[0].item()
    assert exact == pytest.approx(0.48189, abs=1e-5)
    assert exact == pytest.approx(truth(z[0][0], z[1][0], **w, h=np.array([-0.5])).item(), abs=1e-9)


def test_a_stiff_gate_breaks_explicit_euler_and_not_the_fused_step():
    """f = 50 over dt = 1 in six steps: 0.78431 against -2.29e5."""
    one = torch.ones(1, dtype=torch.float64)
    w = {"delta_D": one, "A_D": 0.8 * one, "peak_D": 100 * one}
    z = torch.zeros(1, 1, 1, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64)
    S = torch.full((1, 1), -0.5, dtype=torch.float64)
    fused = liquid.recurrent(*z, **w, S=S)[0].item()
    assert fused == pytest.approx(truth(z[0][0], z[1][0], **w, h=np.array([-0.5])).item(), abs=1e-5)
    h = -0.5
    for _ in range(6):
        h += (-(1 + 50) * h + 50 * 0.8) / 6
    assert h == pytest.approx(-228579, rel=1e-4)


@pytest.mark.parametrize("scale", [1e-2, 1.0, 1e2, 1e6])
def test_states_and_time_constants_stay_in_their_bounds(scale):
    """Theorems 1 and 2, for steps of every size: the fused step is a mean of h, A and 0."""
    (u, dt), w = liquid.example(200, B=4)
    y, _ = liquid.recurrent(3 * u, scale * dt, **w, unfolds=1)
    low, high = w["A_D"].clamp(max=0), w["A_D"].clamp(min=0)
    assert (y >= low - 1e-12).all()
    assert (y <= high + 1e-12).all()
    before = torch.cat([0 * y[:, :1], y[:, :-1]], 1)
    tau = 1 / (w["delta_D"] + w["peak_D"] * torch.sigmoid(3 * u + before @ w["r_DD"]))
    assert (tau <= 1 / w["delta_D"]).all()
    assert (tau >= 1 / (w["delta_D"] + w["peak_D"])).all()


def test_where_the_bounds_end():
    """From outside of the box; and with a gate that can be negative, where the fused step divides by nearly 0."""
    (u, dt), w = liquid.example(60, B=1)
    high = w["A_D"].clamp(min=0)
    y, _ = liquid.recurrent(u, dt, **w, S=10 + torch.zeros(1, 5, dtype=torch.float64))
    assert (y[0, 0] > high).any()
    assert (y[0, -1] <= high + 1e-6).all()  # it comes back
    negative = w | {"peak_D": -4 * w["peak_D"]}
    y, _ = liquid.recurrent(u, dt, **negative)
    assert (y.abs() > 10 * w["A_D"].abs().max()).any()


def test_time_can_be_cut():
    """One input for dt in 12 steps is the same input twice for dt / 2 in 6, and no time changes nothing."""
    (u, dt), w = liquid.example(5)
    whole, _ = liquid.recurrent(u, dt, **w, unfolds=12)
    halves, _ = liquid.recurrent(u.repeat_interleave(2, 1), dt.repeat_interleave(2, 1) / 2, **w, unfolds=6)
    assert contract.close(halves[:, 1::2], whole) <= contract.TOLERANCE
    S = torch.rand(2, 5, dtype=torch.float64)
    _, after = liquid.recurrent(u, 0 * dt, **w, S=S)
    assert contract.close(after, S) <= contract.TOLERANCE


@pytest.mark.parametrize("solver", liquid.SOLVERS)
def test_without_a_recurrent_gate_it_is_an_affine_scan(solver):
    """Both solvers hold the whole contract there; "exact" is the solution."""

    class Linear:
        init, step = liquid.init, liquid.step
        recurrent = staticmethod(liquid.recurrent)

        @staticmethod
        def example(T, seed=0):
            z, w = liquid.example(T, seed=seed, recurrent=False)
            return z, {k: x for k, x in w.items() if x is not None} | {"solver": solver}

    assert contract.form_equals_step(Linear, "recurrent", 37) <= contract.TOLERANCE
    assert contract.gradients_agree(Linear, "recurrent") <= contract.TOLERANCE
    contract.cut_and_resume(Linear, "recurrent")
    contract.ragged(Linear, "recurrent")
    (u, dt), w = Linear.example(6)
    want = truth(u[1], dt[1], **{k: x for k, x in w.items() if k != "solver"})
    y, _ = liquid.recurrent(u, dt, **w)
    assert (y[1] - want).abs().max() < (1e-8 if solver == "exact" else 0.1)


def test_layer_hears_time():
    torch.manual_seed(0)
    layer, x = liquid.Layer(16).double(), torch.randn(2, 9, 16, dtype=torch.float64)
    ones = torch.ones(2, 9, dtype=torch.float64)
    assert torch.equal(layer(x)[0], layer(x, dt_BT=ones)[0])
    assert (layer(x, dt_BT=3 * ones)[0] - layer(x)[0]).abs().max() > 1e-3
    linear = liquid.Layer(16, recurrent=False, solver="exact").double()
    (y_a, S), (y_b, _) = linear(x[:, :4]), linear(x)
    assert contract.close((y_a, linear(x[:, 4:], S)[0]), (y_b[:, :4], y_b[:, 4:])) <= contract.TOLERANCE


def test_bad_input_is_named():
    (u, dt), w = liquid.example(4)
    with pytest.raises(ValueError, match="dt: expected times >= 0, got -"):
        liquid.recurrent(u, -dt, **w)
    with pytest.raises(ValueError, match="solver: expected 'fused', or 'exact' where r_DD is None, got 'exact'"):
        liquid.recurrent(u, dt, **w, solver="exact")
    with pytest.raises(ValueError, match="unfolds: expected a whole number >= 1, got 0"):
        liquid.recurrent(u, dt, **w, unfolds=0)
    with pytest.raises(ValueError, match=r"r_DD: expected axes \[D, D\] with D=5"):
        liquid.recurrent(u, dt, **w | {"r_DD": w["r_DD"][:2]})
    with pytest.raises(ValueError, match="form: liquid has 'recurrent' and 'auto', not 'chunked'"):
        mixers.by_form("postx.mixers.liquid", "chunked", u)
    assert mixers.by_form("postx.mixers.liquid", "auto", u) is liquid.recurrent
