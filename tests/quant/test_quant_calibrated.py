"""GPTQ and AWQ: equal to their definitions on small cases, better than rounding where they should be."""

import pytest
import torch

from postx.quant import awq, gptq, output_error, second_moment, uniform


def gauss(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def layer(O=12, I=40, T=200):
    """Weights, and inputs that are correlated and of unequal size, as those of real layers are."""
    mix = gauss(I, I, seed=1) / I**0.5 + 0.3 * gauss(I, 1, seed=2)
    return gauss(O, I), gauss(T, I, seed=3) @ mix * torch.logspace(-1, 1, I, dtype=torch.float64)


def greedy(W, H, bits, grid, size, damp=0.01):
    """The definition: round column i, then solve for the best repair of the later ones, from H itself."""
    W, Q = W.clone(), torch.empty_like(W)
    H = H + damp * H.diagonal().mean() * torch.eye(len(H), dtype=H.dtype)
    for i in range(W.shape[1]):
        if i % size == 0:
            ahead = W[:, i : i + size]
            q = uniform.quantize(ahead, bits, grid=grid, scale_dtype=torch.float64)
            s, z = q.parts["scale"], None
            if "zero" in q.parts:
                z = uniform.unpack_zero(q.parts["zero"], bits, s).double()
            origin = uniform.origin(s, z, bits, grid)
        half = origin - origin.floor()
        code = (torch.round(W[:, i : i + 1] / s + half) + origin - half).clamp(0, 2**bits - 1)
        Q[:, i : i + 1] = (code - origin) * s
        e, later = W[:, i] - Q[:, i], slice(i + 1, None)
        if i + 1 < W.shape[1]:  # minimise (e, d) H (e, d)' over d, the change of the later columns
            W[:, later] += e[:, None] * torch.linalg.solve(H[later, later], H[later, i])
    return Q


@pytest.mark.parametrize("grid", uniform.GRIDS)
@pytest.mark.parametrize(("bits", "size"), [(2, 40), (3, 40), (4, 16), (8, 7)])
def test_gptq_is_the_greedy_definition(bits, size, grid):
    W, x = layer()
    want = greedy(W, second_moment(x), bits, grid, size)
    q = gptq.quantize(W, bits, x, group=size, grid=grid, scale_dtype=torch.float64)
    assert torch.allclose(q.dequantize(), want.float(), atol=1e-5)


def test_gptq_across_segments_and_in_float32(monkeypatch):
    W, x = layer(8, 64)
    want = gptq.quantize(W, 3, x).dequantize()
    monkeypatch.setattr(gptq, "SEGMENT", 5)
    assert torch.equal(gptq.quantize(W, 3, x).dequantize(), want)
    close = gptq.quantize(W.float(), 3, x.float()).dequantize()
    assert output_error(W, close, x) < 1.05 * output_error(W, want, x)


def test_torch_rounds_as_numba_does():
    W, x = layer()
    U, _, _ = gptq.factor(second_moment(x), 0.01, False)
    s, z = torch.full((12, 1), 0.3, dtype=W.dtype), torch.full((12, 1), 3.5, dtype=W.dtype)
    codes, errors = gptq._round(W, U, s, z, 7)
    other, left = gptq._round_torch(W, U, s, z, 7)
    assert torch.equal(codes, other)
    assert torch.allclose(errors, left, atol=1e-9)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_feedback_lowers_the_output_error_and_raises_the_weight_error(bits):
    W, x = layer(64, 96, 400)
    near, fed = uniform.quantize(W, bits).dequantize(), gptq.quantize(W, bits, x).dequantize()
    assert output_error(W, fed, x) < 0.8 * output_error(W, near, x)
    assert (fed - W).square().mean() > (near - W).square().mean()


@pytest.mark.parametrize("group", ["row", 16])
def test_act_order_comes_back_in_order(group):
    W, x = layer(32, 64)
    q = gptq.quantize(W, 4, x, group=group, act_order=True)
    assert ("order" in q.parts) == (group == 16)
    assert output_error(W, q.dequantize(), x) < 2 * output_error(
        W, gptq.quantize(W, 4, x, group=group).dequantize(), x
    )
    identity = second_moment(torch.eye(64, dtype=torch.float64) * torch.arange(1, 65))
    assert torch.equal(  # inputs that are not correlated need no repair, so the order does not matter
        gptq.quantize(W, 4, H_II=identity, act_order=True).dequantize(), uniform.quantize(W, 4).dequantize()
    )


def test_dead_inputs_lose_their_weights():
    W, x = layer()
    x[:, 3] = 0
    back = gptq.quantize(W, 4, x).dequantize()
    assert torch.equal(back[:, 3], torch.zeros(12))
    assert torch.isfinite(back).all()


def test_gptq_errors():
    W, x = layer()
    with pytest.raises(ValueError, match="x_TI, H_II: expected exactly one"):
        gptq.quantize(W, 4)
    with pytest.raises(ValueError, match=r"x_TI: expected axes \[T, I\] with I=40"):
        gptq.quantize(W, 4, x[:, 1:])
    with pytest.raises(ValueError, match="H_II: not positive definite"):
        gptq.quantize(W, 4, H_II=-torch.eye(40, dtype=torch.float64))
    with pytest.raises(ValueError, match="damp: expected"):
        gptq.quantize(W, 4, x, damp=0)
    with pytest.raises(ValueError, match='group: .*"tensor"'):
        gptq.quantize(W, 4, x, group="tensor")


def test_awq_saves_a_salient_channel():
    W, x = gauss(64, 64), gauss(500, 64, seed=1)
    plain = awq.quantize(W, 3, x)
    x[:, 7] *= 50
    q = awq.quantize(W, 3, x)
    assert q.how["exponent"] > 0.2 > plain.how["exponent"]
    assert output_error(W, q.dequantize(), x) < 0.3 * output_error(W, uniform.quantize(W, 3).dequantize(), x)
    assert q.bits_per_weight == uniform.quantize(W, 3).bits_per_weight + 16 / 64


def test_awq_with_exponent_zero_is_plain_rounding(monkeypatch):
    monkeypatch.setattr(awq, "EXPONENTS", [0.0])
    W, x = layer()
    assert torch.equal(awq.quantize(W, 4, x).dequantize(), uniform.quantize(W, 4).dequantize())
