import contract
import pytest
import torch

from postx.mixers import liquid, ltc


def test_it_is_the_authors_step():
    """ncps' LTCCell, as its numerator and denominator stand: charge = capacity / (dt / unfolds)."""
    torch.manual_seed(0)
    layer, x, dt = ltc.Layer(2, width=3).double(), torch.randn(2, 4, 2).double(), torch.rand(2, 4).double() + 0.1
    h = torch.zeros(2, 3, dtype=torch.float64)
    w, leak, capacity = (torch.nn.functional.softplus(p) for p in (layer.weight_DD, layer.leak_D, layer.capacity_D))
    y, _ = layer.neurons(x, dt_BT=dt)
    for t in range(4):
        for _ in range(6):
            values = torch.cat([x[:, t] * layer.scale_D + layer.shift_D, h], 1)[..., None]
            opened = w * torch.sigmoid(layer.slope_DD * (values - layer.threshold_DD))
            charge = capacity / (dt[:, t, None] / 6)
            top = charge * h + leak * layer.rest_D + (opened * layer.level_DD).sum(1)
            h = top / (charge + leak + opened.sum(1))
        contract.close(y[:, t], h)
    slopes = [torch.autograd.grad(out.sum(), layer.slope_DD, retain_graph=True)[0] for out in (y[:, -1], h)]
    contract.close(*slopes)


def test_no_time_no_change_and_bounds():
    (drive, total, dt), w = ltc.example(50)
    y, S = ltc.recurrent(drive, total, 0 * dt, S=torch.full((2, 4), 0.3, dtype=torch.float64), **w)
    contract.close(y, torch.full_like(y, 0.3))
    # all conductances > 0: a weighted mean of what pulls
    y, _ = ltc.recurrent(total * drive.clamp(-1, 1), total, 100 * dt, **(w | {"level_DD": w["level_DD"].clamp(-1, 1)}))
    assert y.abs().max() <= 1


def test_with_one_synapse_a_neuron_it_is_liquid():
    """A gate that hears the input alone: the inputs' synapse as drive and total, no wires between neurons."""
    (u, dt), w = liquid.example(20, recurrent=False)
    f = w["peak_D"] * torch.sigmoid(u)
    off = torch.zeros(5, 5, dtype=torch.float64)
    wires = {"weight_DD": off, "level_DD": off, "slope_DD": off + 1, "threshold_DD": off}
    y = ltc.recurrent(f * w["A_D"], f + w["delta_D"], dt, capacity_D=torch.ones(5).double(), **wires)
    contract.close(y, liquid.recurrent(u, dt, **w))


def test_negative_times_are_named():
    (drive, total, dt), w = ltc.example(3)
    with pytest.raises(ValueError, match="dt: expected times >= 0"):
        ltc.recurrent(drive, total, -dt, **w)
