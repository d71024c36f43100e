"""Chapter 4: the code that stands on its page, the equations that no other file holds, and its exercise solutions."""


import numpy as np
import pytest
import torch
from page import Page
from torch.utils.flop_counter import FlopCounterMode

from postx import cost
from postx.mixers import ssd

PAGE = Page("ssd_duality", torch=torch, ssd=ssd)
CELLS, solution, page_functions = PAGE.cells, PAGE.solution, PAGE.functions
ALL_Q, ALL_K = np.random.default_rng(11).normal(size=(2, 48, 8))
PAGE_FIGURE = {"np": np, "LONG": 48, "all_q": ALL_Q, "all_k": ALL_K, "fading": 1.0}


def one_head(T, N=8, P=6, fade=1.0, seed=0):
    """q_TN, k_TN, v_TP, g_T in float64, and the same as a batch of one."""
    (q, k, v, g), _ = ssd.example(T, B=1, H=1, G=1, K=N, V=P, seed=seed)
    z = q, k, v, fade * g
    return z, [x[0, :, 0] for x in z]


def entries(q, k, g):
    """M_ti = exp(g_{i+1} + ... + g_t) q_t . k_i, one entry at a time."""
    M = torch.zeros(len(g), len(g), dtype=g.dtype)
    for t in range(len(g)):
        for i in range(t + 1):
            M[t, i] = torch.exp(g[i + 1 : t + 1].sum()) * (q[t] @ k[i])
    return M


def counted(run):
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def worst(a, b):
    return (a - b).abs().max().item()


@pytest.mark.equation("eq-ssd-entry")
def test_the_entries_the_loop_and_the_square_are_one_map(residual):
    scan, square, own_terms = page_functions("scan", "square", "own_terms")
    z, (q, k, v, g) = one_head(33)
    y = scan(q, k, v, g)
    error = max(
        worst(entries(q, k, g) @ v, y),
        worst(square(own_terms, q, k, v, g), y),
        worst(ssd.recurrent(*z)[0][0, :, 0], y),
    )
    assert error < 1e-12
    assert worst(entries(q, k, 0.5 * g) @ v, y) > 0.1  # the decay matters
    residual(error)


@pytest.mark.equation("eq-ssd-rank")
@pytest.mark.parametrize("N", [1, 3, 8])
def test_a_block_below_the_diagonal_factors_through_the_state(N, residual):
    _, (q, k, v, g) = one_head(40, N=N)
    M, b = entries(q, k, g), 17
    later = torch.exp(g[b:].cumsum(0))[:, None] * q[b:]
    earlier = torch.stack([torch.exp(g[i + 1 : b].sum()) * k[i] for i in range(b)])
    error = worst(later @ earlier.T, M[b:, :b])
    assert error < 1e-12
    assert torch.linalg.matrix_rank(M[b:, :b], rtol=1e-12) == N
    # what crosses the boundary is the state of the recurrence
    S = ssd.recurrent(*(x[None, :b, None] for x in (q, k, v, g)))[1][0, 0]
    assert worst(earlier.T @ v[:b], S) < 1e-12
    residual(error)


@pytest.mark.equation("eq-ssd-chunks")
@pytest.mark.parametrize("Q", [1, 5, 16, 64, 100])
def test_the_chunks_of_the_page(Q, residual):
    own_terms, in_chunks, scan = page_functions("own_terms", "in_chunks", "scan")
    z, heads = one_head(64)
    y, S = in_chunks(*heads, Q)
    exact, state = ssd.recurrent(*z)
    error = max(worst(y, exact[0, :, 0]), worst(S, state[0, 0]), worst(y, scan(*heads)))
    assert error < 1e-12
    assert own_terms(heads[3]).shape == (64, 64)
    residual(error)


@pytest.mark.equation("eq-ssd-costs")
@pytest.mark.parametrize(("T", "Q", "N", "P"), [(512, 256, 128, 64), (48, 16, 16, 16), (60, 12, 5, 7)])
def test_the_three_bills(T, Q, N, P, residual):
    _, square, in_chunks = page_functions("own_terms", "square", "in_chunks")
    own_terms = square.__globals__["own_terms"]
    z, heads = one_head(T, N=N, P=P)
    bill = 2 * Q * N + 2 * Q * P + 4 * N * P
    assert counted(lambda: square(own_terms, *heads)) == T * 2 * T * (N + P)
    assert counted(lambda: in_chunks(*heads, Q)) == T * bill
    assert counted(lambda: ssd.chunked(*z, chunk=Q)) == T * bill
    assert cost.chunked_recurrence(T, K=N, V=P, chunk=Q).flops == T * bill
    assert cost.decay_recurrence(T, K=N, V=P, decay=False).flops == T * 4 * N * P
    # the crossing that the answer under the slider states
    meet = Q + 2 * N * P / (N + P)
    assert meet == pytest.approx(bill / (2 * (N + P)), rel=1e-12)
    residual(0.0)


def test_the_numbers_of_mamba_2():
    Q, N, P = 256, 128, 64
    bill = 2 * Q * N + 2 * Q * P + 4 * N * P
    assert bill == 131072
    assert round(bill / (2 * (N + P))) == 341
    assert bill / (4 * P) == 512  # against softmax attention, its square whole as well
    assert (2 * Q * 16 + 2 * Q * P + 4 * 16 * P) / (4 * P) == 176
    # causal halves on both sides, and four times the heads of attention at equal parameters
    assert (Q * (N + P) + 4 * N * P) / (2 * P) == 640 == 2560 / 4
    assert 4 * (64 * 128 / 16 + 64 * 64 + 4 * 128 * 64) / (2 * 64) == 1168


def test_differences_in_short_chunks_of_float32_are_below_the_rounding_that_follows():
    (masked_first,) = page_functions("masked_first")
    g = one_head(256)[1][3]
    exact = ssd.segment_sums(g).exp()
    error = worst(masked_first(g.float()).double(), exact)
    assert 5e-6 < error < 2e-5
    assert 100 * error < worst(exact.bfloat16().double(), exact) < 4e-3


def test_what_of_softmax_fits_a_small_state():
    (two_layers,) = page_functions("two_layers", **PAGE_FIGURE)
    for N, share in ((4, 0.91), (1, 0.83)):
        energy = np.linalg.svd(two_layers(N)[1][24:, :24], compute_uv=False) ** 2
        assert round(energy[:N].sum() / energy.sum(), 2) == share


@pytest.mark.equation("eq-ssd-best-chunk")
def test_no_chunk_is_better_than_the_best_one(residual):
    generator = torch.Generator().manual_seed(3)
    for _ in range(20):
        alpha, beta, gamma = torch.rand(3, generator=generator, dtype=torch.float64).tolist()
        N, P = (2 ** torch.randint(3, 8, (2,), generator=generator)).tolist()

        def price(Q, alpha=alpha, beta=beta, gamma=gamma, N=N, P=P):
            return alpha * (2 * Q * (N + P) + 4 * N * P) + beta * Q + gamma * N * P / Q

        best = (gamma * N * P / (2 * alpha * (N + P) + beta)) ** 0.5
        assert all(price(best) < price(best * factor) for factor in (0.5, 0.99, 1.01, 2))
    residual(0.0)


def test_the_masks_of_the_page_fail_as_it_says():
    ratios, differences, masked_first = page_functions("ratios", "differences", "masked_first")
    g = one_head(400)[1][3].float()
    exact = ssd.segment_sums(g.double()).exp()
    assert ratios(g).isnan().any()
    leaf = g.clone().requires_grad_()
    differences(leaf).sum().backward()
    assert leaf.grad.isnan().any()
    assert 1e-6 < worst(masked_first(g).double(), exact) < 1e-3
    assert worst(ssd.segment_sums(g).exp().double(), exact) < 1e-7
    g[5] = -torch.inf
    assert masked_first(g).isnan().any()
    assert not ssd.segment_sums(g).exp().isnan().any()


def test_predict():
    scope = solution("ex-ssd-predict")
    assert scope["ranks"] == {20: 8, 30: 0}
    assert scope["rows"] == 10


def test_derive():
    scope = solution("ex-ssd-derive")
    assert scope["best"] == 64
    assert scope["share"] == 0.5


@pytest.mark.parametrize(("T", "block"), [(1, 4), (20, 1), (20, 7), (20, 20), (20, 50), (300, 16)])
def test_code_segments(T, block):
    segments = solution("ex-ssd-segsum")["segments"]
    g = one_head(T)[1][3]
    expected = ssd.segment_sums(g)
    assert worst(segments(g, block).exp(), expected.exp()) < 1e-12
    assert torch.equal(segments(g, block).isinf(), expected.isinf())


def test_code_segments_keep_digits():
    segments = solution("ex-ssd-segsum")["segments"]
    g = one_head(2000)[1][3]
    exact = ssd.segment_sums(g).exp()
    in_blocks, at_once = (worst(segments(g.float(), block).double().exp(), exact) for block in (16, 2000))
    assert in_blocks < 2e-6 < 1e-5 < at_once


@pytest.mark.parametrize("Q", [1, 4, 12, 48])
def test_code_all_chunks_at_once(Q):
    all_at_once = solution("ex-ssd-parallel")["all_at_once"]
    z, heads = one_head(48)
    assert worst(all_at_once(*heads, Q), ssd.recurrent(*z)[0][0, :, 0]) < 1e-12


def test_explore():
    lost = solution("ex-ssd-explore")["lost"]
    assert [round(lost[spread, 16], 2) for spread in (1, 2, 4)] == [0.13, 0.2, 0.28]
    assert [round(lost[spread, 64], 3) for spread in (1, 2, 4)] == [0.006, 0.007, 0.002]
