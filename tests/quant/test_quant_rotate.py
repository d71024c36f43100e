"""Hadamard transforms of every size they promise, rotations that change nothing, one that is learned."""

import pytest
import torch

from postx.quant import output_error, rotate, uniform


def gauss(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def sylvester(n):
    H = torch.ones(1, 1, dtype=torch.float64)
    while len(H) < n:
        H = torch.kron(torch.tensor([[1.0, 1], [1, -1]], dtype=torch.float64), H)
    return H


@pytest.mark.parametrize("m", [4, 12, 20, 24, 28, 36, 44, 60])
def test_paley(m):
    P = rotate.paley(m).long()
    assert torch.equal(P @ P.T, m * torch.eye(m, dtype=torch.long))


@pytest.mark.parametrize("n", [1, 2, 8, 64, 512])
def test_powers_of_two_are_sylvester(n):
    x = gauss(3, n)
    assert torch.allclose(rotate.hadamard(x), x @ sylvester(n) / n**0.5, atol=1e-12)


@pytest.mark.parametrize("n", [12, 40, 56, 96, 192])
def test_other_sizes_are_a_kronecker_product(n):
    power, m = rotate.factors(n)
    assert power * m == n
    H = torch.kron(sylvester(power), rotate.paley(m).double()) / n**0.5
    x = gauss(3, n)
    assert torch.allclose(H @ H.T, torch.eye(n, dtype=torch.float64), atol=1e-12)
    assert torch.allclose(rotate.hadamard(x), x @ H, atol=1e-12)
    assert torch.allclose(rotate.unhadamard(rotate.hadamard(x)), x, atol=1e-12)


def test_gradients_strides_and_half_precision():
    x = gauss(16, 4).t().requires_grad_()
    assert torch.autograd.gradcheck(rotate.hadamard, x)
    assert torch.allclose(rotate.hadamard(x), rotate.hadamard(x.detach().contiguous()))
    assert rotate.hadamard(torch.ones(8, dtype=torch.bfloat16)).dtype == torch.bfloat16
    before = x.detach().contiguous()
    kept = before.clone()
    rotate.hadamard(before)
    assert torch.equal(before, kept)


def test_sizes_that_have_no_matrix():
    with pytest.raises(ValueError, match="n: no Hadamard matrix of size 7"):
        rotate.hadamard(gauss(2, 7))
    assert rotate.has_hadamard(24)
    assert not rotate.has_hadamard(902)
    R = rotate.orthogonal(7, 0)
    assert torch.allclose(R @ R.T, torch.eye(7, dtype=torch.float64), atol=1e-12)
    assert torch.equal(rotate.spin(torch.eye(7, dtype=torch.float64), 0), R)  # the documented route


@pytest.mark.parametrize("n", [24, 58])  # with a Hadamard matrix, and by the dense route
def test_a_turn_and_back(n):
    x = gauss(5, n)
    assert torch.allclose(rotate.unspin(rotate.spin(x, 3), 3), x, atol=1e-12)
    W = gauss(7, n)
    assert torch.allclose(rotate.spin(x, 3) @ rotate.spin(W, 3).T, x @ W.T, atol=1e-12)
    assert not torch.allclose(rotate.spin(x, 3), rotate.spin(x, 4), atol=0.1)


@pytest.mark.parametrize("base", ["uniform", "gptq", "lloyd"])
def test_an_outlier_is_spread_out(base):
    W, x = gauss(32, 64), gauss(300, 64, seed=1)
    W[:, 5] *= 40
    inputs = {"x_TI": x} if base == "gptq" else {}
    turned = rotate.quantize(W, 4, base=base, **inputs)
    plain = rotate.load(base).quantize(W, 4, **inputs)
    assert turned.bits_per_weight == plain.bits_per_weight  # the rotation is a seed
    assert output_error(W, turned.dequantize(), x) < 0.5 * output_error(W, plain.dequantize(), x)


def test_the_turn_is_not_a_quantizer_of_its_own():
    with pytest.raises(ValueError, match="base: expected another"):
        rotate.quantize(gauss(4, 8), 4, base="rotate")


def test_a_learned_rotation_stays_one_and_is_better():
    W = gauss(16, 16)
    W[:, 3] *= 20

    def loss(R):
        turned = W @ R
        return (uniform.round_trip(turned, 4, scale_dtype=torch.float64) - turned).square().mean()

    start = rotate.orthogonal(16, 0)
    R = rotate.learn(loss, start, steps=60, lr=0.5)
    assert torch.allclose(R @ R.T, torch.eye(16, dtype=torch.float64), atol=1e-10)
    assert float(loss(R)) < 0.9 * float(loss(start))
