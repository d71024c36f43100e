"""TurboQuant's density, errors and biases against the published ones; ternary weights, counted and trained."""

import math

import pytest
import torch

from postx.quant import ternary, turbo


def gauss(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# The closed form for one bit, 1 - d (Gamma(d/2) / (sqrt(pi) Gamma((d+1)/2)))^2 (facts I14)
@pytest.mark.parametrize(("d", "want"), [(16, 0.34319), (64, 0.35839), (128, 0.36089), (1536, 0.36317)])
def test_one_bit_error_has_a_closed_form(d, want):
    ratio = math.exp(math.lgamma(d / 2) - math.lgamma((d + 1) / 2))
    assert turbo.codebook(d, 1)[1] == pytest.approx(1 - d * ratio**2 / math.pi, abs=1e-10)
    assert turbo.codebook(d, 1)[1] == pytest.approx(want, abs=1e-5)


@pytest.mark.parametrize(
    ("bits", "error", "slope"), [(1, 0.36, 0.6366), (2, 0.117, 0.8826), (3, 0.034, 0.9655)]
)
def test_mse_form_has_the_published_error_and_bias(bits, error, slope):
    x = gauss(400, 256)
    back = turbo.quantize(x, bits).dequantize()
    assert float((back - x).square().sum() / x.square().sum()) == pytest.approx(error, rel=0.03)
    assert float((back * x).sum() / x.square().sum()) == pytest.approx(slope, abs=0.004)


@pytest.mark.parametrize("turn", turbo.TURNS)
@pytest.mark.parametrize("bits", [1, 2, 3])
def test_prod_form_is_right_on_average(bits, turn):
    x, y = gauss(4, 64), gauss(64, seed=1)
    seeds = [turbo.quantize(x, bits, form="prod", turn=turn, seed=2 * s).dequantize() @ y for s in range(300)]
    seeds = torch.stack(seeds)
    sigma = seeds.std(0) / len(seeds) ** 0.5
    assert ((seeds.mean(0) - x @ y).abs() < 4 * sigma).all()
    biased = torch.stack([turbo.quantize(x, 1, turn=turn, seed=s).dequantize() @ x[0] for s in range(50)])
    assert float(biased[:, 0].mean() / x[0].square().sum()) == pytest.approx(2 / math.pi, abs=0.02)


def test_the_sign_sketch_has_the_exact_variance():
    """(pi/2 - cos^2) / d, not pi / (2 d) (facts I17)."""
    d, draws = 32, 3000
    x = torch.nn.functional.normalize(gauss(d), dim=0)
    side = torch.nn.functional.normalize(gauss(d, seed=1) - (gauss(d, seed=1) @ x) * x, dim=0)
    g = torch.Generator().manual_seed(2)
    for cos in (0.0, 0.6, 1.0):
        y = cos * x + math.sqrt(1 - cos * cos) * side
        values = []
        for _ in range(draws):
            G = torch.randn(d, d, generator=g)
            values.append(math.sqrt(math.pi / 2) / d * float((G @ x).sign() @ (G @ y)))
        variance = float(torch.tensor(values).var()) * d
        assert variance == pytest.approx(math.pi / 2 - cos * cos, rel=0.12)


def test_bits_and_small_cases():
    x = gauss(10, 64)
    assert turbo.quantize(x, 3).bits_per_weight == 3 + 16 / 64
    assert turbo.quantize(x, 3, form="prod").bits_per_weight == 3 + 32 / 64
    x[4] = 0
    assert torch.equal(turbo.quantize(x, 3, form="prod").dequantize()[4], torch.zeros(64))
    with pytest.raises(ValueError, match="d: the code is for vectors of at least 3"):
        turbo.quantize(x[:, :2], 3)
    with pytest.raises(ValueError, match="form: expected one of mse, prod"):
        turbo.quantize(x, 3, form="fast")


def test_ternary_by_hand():
    W = torch.tensor([[2.0, -0.4, 0.1, -1.5]])  # mean |W| = 1
    q = ternary.quantize(W)
    assert q.dequantize().tolist() == [[1, 0, 0, -1]]
    assert ternary.operations(q, tokens=2) == {
        "additions": 2,
        "multiplications": 2,
        "full additions": 6,
        "full multiplications": 8,
    }
    big = ternary.quantize(gauss(64, 320))
    assert big.bits_per_weight == 1.6 + 16 / big.parts["codes"].numel() / 5


def test_activations_in_eight_bits():
    x = gauss(5, 40)
    back = ternary.absmax(x)
    assert ((back - x).abs() <= x.abs().amax(1, keepdim=True) / 254 * 1.0001).all()
    assert torch.equal(ternary.absmax(torch.zeros(2, 3)), torch.zeros(2, 3))


def test_straight_through_trains():
    """A ternary map is found again by gradient descent through the rounding."""
    torch.manual_seed(0)
    true = torch.randint(-1, 2, (8, 32)).float()
    x, net = gauss(512, 32), ternary.Linear(32, 8, bias=False)
    opt = torch.optim.Adam(net.parameters(), lr=0.003)
    for _ in range(500):
        opt.zero_grad()
        (net(x) - x @ true.T).square().mean().backward()
        opt.step()
    trits, _ = ternary.absmean(net.weight.detach())
    assert float((trits == true).float().mean()) > 0.99
    with torch.no_grad():  # the one scale left is the mean of |W|, not the size of its trits
        assert float((net(x) - x @ true.T).square().mean()) < 0.08 * float((x @ true.T).square().mean())
