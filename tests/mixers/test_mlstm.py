import contract
import torch

from postx import mixers
from postx.mixers import linear, mlstm


def without_stabilizer(q, k, v, i, g):
    """Eqs. 19 to 27 of the paper as they stand, exp(i) and all."""
    B, T, H, K = q.shape
    C, n, outputs = q.new_zeros(B, H, K, v.shape[-1]), q.new_zeros(B, H, K), []
    for t in range(T):
        f_t, i_t, k_t = g[:, t].exp(), i[:, t].exp(), k[:, t] * K**-0.5
        C = f_t[..., None, None] * C + i_t[..., None, None] * k_t[..., None] * v[:, t, :, None]
        n = f_t[..., None] * n + i_t[..., None] * k_t
        total = (q[:, t] * n).sum(-1).abs().clamp(min=1)
        outputs.append(torch.einsum("bhk,bhkv->bhv", q[:, t], C) / total[..., None])
    return torch.stack(outputs, 1)


def test_stabilized_equals_the_equations():
    z, _ = mlstm.example(40)
    assert z[3].max() > 3
    assert z[3].min() < -3
    for form in ("recurrent", "parallel", "chunked"):
        contract.close(getattr(mlstm, form)(*z)[0], without_stabilizer(*z))


def test_gates_that_would_overflow():
    (q, k, v, i, g), _ = mlstm.example(20)
    i = 500 * i  # exp(500) does not exist in float32, and hardly in float64
    want = mixers.by_step(mlstm, q, k, v, i, g)
    for form in ("recurrent", "parallel", "chunked"):
        contract.close(getattr(mlstm, form)(q, k, v, i, g), want)
        y, S = getattr(mlstm, form)(*(x.float() for x in (q, k, v, i, g)))
        assert y.isfinite().all()
        contract.close(y, want[0], 1e-4)


def test_never_writes_nothing():
    (q, k, v, i, g), _ = mlstm.example(12)
    i[:, 5] = -torch.inf
    g[:, 5] = 0
    keep = torch.arange(12) != 5
    y, S = mlstm.recurrent(q, k, v, i, g)
    y_without, S_without = mlstm.recurrent(*(x[:, keep] for x in (q, k, v, i, g)))
    contract.close((y[:, keep], S), (y_without, S_without))


def test_with_open_gates_and_large_sums_it_is_normalized_linear_attention():
    (q, k, v, i, g), _ = mlstm.example(30)
    q, k = linear.phi(q) + 3, linear.phi(k) + 3
    y, _ = mlstm.recurrent(q, k, v, torch.zeros_like(i), torch.zeros_like(g))
    weights = torch.einsum("bthk,bmhk->bhtm", q, k).tril()
    want = torch.einsum("bhtm,bmhv->bthv", weights / weights.sum(-1, keepdim=True), v)
    contract.close(y, want)


def test_layer_gates_start_as_published():
    layer = mlstm.Layer(16, H=4)
    assert layer.gates_HF.abs().max() == 0
    torch.testing.assert_close(layer.gates_bias_H[4:], torch.tensor([3.0, 4.0, 5.0, 6.0]))
