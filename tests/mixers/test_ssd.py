"""SSD beyond the contract: the matrix that both forms share, stable segment sums, groups, padding, the block."""

import contract
import pytest
import torch

from postx.mixers import ssd


def semiseparable(q, k, v, g):
    """Dao & Gu 2024, eq. 3 and sec. 5: y = M v with M_ij = q_i' (a_i ... a_{j+1}) k_j, written entry by entry."""
    B, T, G, _ = q.shape
    H = v.shape[2]
    M = torch.zeros(B, H, T, T, dtype=v.dtype)
    for h in range(H):
        group = h // (H // G)
        for i in range(T):
            for j in range(i + 1):
                decay = torch.exp(g[:, j + 1 : i + 1, h]).prod(1)
                M[:, h, i, j] = (q[:, i, group] * k[:, j, group]).sum(-1) * decay
    return M


@pytest.mark.parametrize("form", ["recurrent", "parallel", "chunked"])
def test_agrees_with_the_matrix(form):
    z, w = ssd.example(21)
    want = torch.einsum("bhij,bjhv->bihv", semiseparable(*z), z[2])
    assert contract.close(contract.run(ssd, form, z, w)[0], want) <= contract.TOLERANCE


def test_the_matrix_has_blocks_of_rank_K_below_its_diagonal():
    M = semiseparable(*ssd.example(24, K=3)[0])
    assert (torch.linalg.matrix_rank(M[:, :, 12:, :12]) == 3).all()
    assert (torch.linalg.matrix_rank(M) == 24).all()


@pytest.mark.parametrize("chunk", [1, 2, 7, 16, 37, 64])
def test_any_chunk_any_length(chunk):
    for T in (1, 16, 37):
        z, _ = ssd.example(T)
        S = contract.warm_state(ssd)
        got, want = ssd.chunked(*z, S=S, chunk=chunk), ssd.recurrent(*z, S=S, impl="reference")
        assert contract.close(got, want) <= contract.TOLERANCE


@pytest.mark.parametrize("G", [1, 2, 4])
def test_groups_are_shared_keys(G):
    (q, k, v, g), _ = ssd.example(19, G=G)
    full = [x.repeat_interleave(4 // G, 2) for x in (q, k)]
    for form in ("recurrent", "parallel", "chunked"):
        got, want = (contract.run(ssd, form, z, {}) for z in ((q, k, v, g), (*full, v, g)))
        assert contract.close(got, want) <= contract.TOLERANCE


def test_segment_sums_keep_their_digits_and_their_infinities():
    g = -torch.rand(4096, generator=torch.Generator().manual_seed(0)) * 10
    exact = g.double().cumsum(0)
    i, j = 4000, 3990
    want = float(exact[i] - exact[j])
    running = g.cumsum(0)
    stable = ssd.segment_sums(g[j:])[i - j, 0]
    assert abs(float(running[i] - running[j]) - want) > 1e-4 * abs(want) / 10  # a difference of large sums
    assert abs(float(stable) - want) < 1e-6 * abs(want)
    g = torch.tensor([-1.0, -torch.inf, -2.0, -3.0])
    sums = ssd.segment_sums(g)
    assert not sums.isnan().any()
    assert (sums.diagonal() == 0).all()
    assert sums[3].tolist() == [-torch.inf, -5.0, -3.0, 0.0]
    assert (sums[0, 1:] == -torch.inf).all()


@pytest.mark.parametrize("form", ["recurrent", "parallel", "chunked"])
def test_total_forgetting_is_not_nan(form):
    """g = -inf at one token starts afresh there."""
    (q, k, v, g), _ = ssd.example(20)
    g[:, 8] = -torch.inf
    y, S = contract.run(ssd, form, (q, k, v, g), {})
    alone = contract.run(ssd, form, tuple(x[:, 8:] for x in (q, k, v, g)), {})
    assert contract.close((y[:, 8:], S), alone) <= contract.TOLERANCE


def test_errors_name_the_argument():
    (q, k, v, g), _ = ssd.example(4)
    with pytest.raises(ValueError, match="q_BTGK: 3 heads do not divide the 4"):
        ssd.chunked(*(x[:, :, [0, 1, 1]] for x in (q, k)), v, g)
    with pytest.raises(ValueError, match=r"g_BTH: expected axes \[B, T, H\] with H=4"):
        ssd.parallel(q, k, v, g[..., :2])
    with pytest.raises(ValueError, match="chunk: expected a whole number >= 1, got 0"):
        ssd.chunked(q, k, v, g, chunk=0)
    with pytest.raises(ValueError, match="V: expected a divisor of the inner width 32, got 5"):
        ssd.Layer(16, V=5)


def test_layer_is_packed_and_has_the_published_sizes():
    torch.manual_seed(0)
    layer = ssd.Layer(16).double()
    x = torch.randn(2, 21, 16, dtype=torch.float64)
    reset = torch.zeros(2, 21, dtype=torch.bool)
    reset[:, 9] = True
    y, _ = layer(x, reset_BT=reset)
    alone = torch.cat([layer(x[:, :9])[0], layer(x[:, 9:])[0]], 1)
    assert contract.close(y, alone) <= contract.TOLERANCE
    # state-spaces/mamba2-130m: d_model 768, 24 heads of 64, state 128, in-projection to 3352
    assert ssd.Layer(768).inward.weight.shape == (3352, 768)
    assert ssd.Layer(768).H == 24
