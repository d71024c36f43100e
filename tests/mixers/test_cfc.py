"""CfC against the authors' cell written out, its bounds, and what it lost with the differential equation."""

import contract
import pytest
import torch

from postx import mixers
from postx.mixers import cfc


def cell(x, h, ts, backbone, ff1, ff2, time_a, time_b):
    """One token as the public code does it: [input, state] through a backbone, four heads, interpolation."""
    z = backbone(torch.cat([x, h], 1))
    z = 1.7159 * torch.tanh(0.666 * z)
    one, two = torch.tanh(ff1(z)), torch.tanh(ff2(z))
    t = torch.sigmoid(time_a(z) * ts[:, None] + time_b(z))
    return one * (1 - t) + t * two


def test_equals_the_authors_cell():
    torch.manual_seed(0)
    backbone = torch.nn.Linear(3 + 5, 7).double()
    heads = [torch.nn.Linear(7, 5).double() for _ in range(4)]
    x, dt = torch.randn(2, 9, 3, dtype=torch.float64), torch.rand(2, 9, dtype=torch.float64)
    h, want = torch.zeros(2, 5, dtype=torch.float64), []
    for t in range(9):
        h = cell(x[:, t], h, dt[:, t], backbone, *heads)
        want.append(h)
    u = x @ backbone.weight[:, :3].T + backbone.bias
    w = {
        "r_DF": backbone.weight[:, 3:].T,
        "heads_HFD": torch.stack([head.weight.T for head in heads]),
        "bias_HD": torch.stack([head.bias for head in heads]),
    }
    y, S = cfc.recurrent(u, dt, **w)
    assert contract.close((y, S), (torch.stack(want, 1), h)) <= contract.TOLERANCE


@pytest.mark.parametrize("scale", [0.0, 1.0, 1e6])
def test_no_state_leaves_the_unit_interval(scale):
    (u, dt), w = cfc.example(100)
    y, _ = cfc.recurrent(10 * u, scale * dt, **w)
    assert (y.abs() <= 1).all()


def test_time_cannot_be_cut():
    """What the fused solver keeps exactly (test_liquid.py) is gone: dt = 0 moves the state, halves are not a whole."""
    (u, dt), w = cfc.example(5)
    S = torch.rand(2, 5, dtype=torch.float64)
    _, after = cfc.recurrent(u[:, :1], 0 * dt[:, :1], **w, S=S)
    assert (after - S).abs().max() > 0.1
    whole, _ = cfc.recurrent(u[:, :1], dt[:, :1], **w, S=S)
    halves, _ = cfc.recurrent(u[:, :1].repeat(1, 2, 1), dt[:, :1].repeat(1, 2) / 2, **w, S=S)
    assert (halves[:, 1] - whole[:, 0]).abs().max() > 0.01


def test_layer_hears_time():
    torch.manual_seed(0)
    layer, x = cfc.Layer(16, width=6, F=10).double(), torch.randn(2, 9, 16, dtype=torch.float64)
    ones = torch.ones(2, 9, dtype=torch.float64)
    y, (h,) = layer(x)
    assert y.shape == x.shape
    assert h.shape == (2, 6)
    assert torch.equal(y, layer(x, dt_BT=ones)[0])
    assert (layer(x, dt_BT=3 * ones)[0] - y).abs().max() > 1e-4


def test_bad_input_is_named():
    (u, dt), w = cfc.example(4)
    with pytest.raises(ValueError, match="dt: expected times >= 0, got -"):
        cfc.recurrent(u, -dt, **w)
    with pytest.raises(ValueError, match="heads_HFD: mode .default. has H=4"):
        cfc.recurrent(u, dt, **w | {"heads_HFD": w["heads_HFD"][:3], "bias_HD": w["bias_HD"][:3]})


@pytest.mark.parametrize("mode", cfc.MODES)
def test_every_mode_is_the_authors_cell(mode):
    """ncps' CfCCell, term by term, and `recurrent` equal to `step`."""
    (u, dt), w = cfc.example(9, mode=mode)
    y, S = cfc.recurrent(u, dt, **w)
    contract.close((y, S), mixers.by_step(cfc, u, dt, **w))
    h = torch.zeros(2, 5, dtype=torch.float64)
    for t in range(9):
        b = 1.7159 * torch.tanh(0.666 * (u[:, t] + h @ w["r_DF"]))
        heads = [b @ w["heads_HFD"][i] + w["bias_HD"][i] for i in range(len(w["heads_HFD"]))]
        ts = dt[:, t, None]
        if mode == "pure":
            f, A = heads[0], w["A_D"]
            h = -A * torch.exp(-ts * (w["tau_D"].abs() + f.abs())) * f + A
        else:
            gate = torch.sigmoid(heads[2] * ts + heads[3])
            left, right = heads[0].tanh(), heads[1].tanh()
            h = left + gate * right if mode == "no_gate" else left * (1 - gate) + gate * right
        contract.close(y[:, t], h)


@pytest.mark.parametrize("mode", cfc.MODES)
def test_layers_of_every_mode_learn(mode):
    torch.manual_seed(0)
    layer = cfc.Layer(6, mode=mode).double()
    y, _ = layer(torch.randn(2, 7, 6, dtype=torch.float64))
    y.square().sum().backward()
    assert all(p.grad.abs().max() > 0 for p in layer.parameters())


def test_modes_are_named():
    (u, dt), w = cfc.example(3)
    with pytest.raises(ValueError, match="mode: expected one of 'default', 'no_gate', 'pure', got 'gated'"):
        cfc.recurrent(u, dt, **w, mode="gated")
    with pytest.raises(ValueError, match="heads_HFD: mode 'pure' has H=1"):
        cfc.recurrent(u, dt, **w | {"mode": "pure"})
