"""The closed forms of postx.cost, held to torch's counter, to explicit counts and to facts."""

import itertools
import math

import pytest
import torch
from counting import Counting, counted, numbers, operations

from postx import cost
from postx.models.published import A100, H100

# ---------------------------------------------------------------- the Cost itself


def test_costs_add_scale_and_sum():
    fixed = cost.Cost(10, 4, 3, True, "a window of 8 tokens")
    growing = cost.Cost(1, 2, 5, False, "every token")
    total = sum([fixed, 2 * growing])
    assert (total.flops, total.bytes, total.state_floats) == (12, 8, 13)
    assert not total.bounded
    assert total.by == "a window of 8 tokens; every token"
    assert (fixed + fixed).by == "a window of 8 tokens"
    assert total.intensity == 1.5
    with pytest.raises(ValueError, match="moves no bytes"):
        _ = cost.Cost(1).intensity
    with pytest.raises(TypeError):
        _ = fixed + 1


@pytest.mark.parametrize(("call", "words"), [
    (lambda: cost.matmul(0, 1, 1), "m: expected a whole number >= 1, got 0"),
    (lambda: cost.matmul(1.5, 1, 1), "m: expected a whole number >= 1, got 1.5"),
    (lambda: cost.attention_scores(True), "T: expected a whole number >= 1, got True"),
    (lambda: cost.attention_scores(4, past=-2), "past: expected a whole number >= 0, got -2"),
    (lambda: cost.attention_scores(4, window=2, causal=False), "window: needs causal=True"),
    (lambda: cost.attention_scores(4, window=0), "window: expected a whole number >= 1"),
    (lambda: cost.softmax_attention(4, H=6, G=4, K=2), "G: expected a divisor of H = 6, got 4"),
    (lambda: cost.softmax_attention(4, K=2, form="flash"), "form: expected 'tiled' or 'naive', got 'flash'"),
    (lambda: cost.mamba2_block(4, D=100), "P: expected a divisor of expand"),
    (lambda: cost.ring_block(1e12, 0), "positive rates"),
])
def test_bad_input_names_the_argument(call, words):
    with pytest.raises(ValueError, match=words.replace("*", r"\*")):
        call()


# ---------------------------------------------------------------- attention


@pytest.mark.equation("eq-attention-pairs")
def test_scores_are_the_pairs_that_the_mask_leaves(residual):
    for T, past, window in itertools.product((1, 2, 7), (0, 1, 5), (None, 1, 3, 6, 40)):
        pairs = sum(1 for i in range(past, past + T) for j in range(past + T)
                    if j <= i and (window is None or j > i - window))
        assert cost.attention_scores(T, window=window, past=past) == pairs
    assert cost.attention_scores(5, causal=False, past=2) == 35
    assert cost.attention_scores(8192) == 33558528
    residual(0.0)


@pytest.mark.equation("eq-attention-flops")
@pytest.mark.parametrize(("B", "T", "H", "K", "V"), [(1, 16, 1, 8, 8), (2, 33, 3, 16, 8)])
def test_naive_attention_is_what_torch_counts(B, T, H, K, V, residual):
    q, k, v = (torch.randn(B, H, T, width) for width in (K, K, V))
    measured = counted(lambda: torch.softmax(q @ k.mT, -1) @ v)
    assert cost.softmax_attention(T, B=B, H=H, K=K, V=V, form="naive").flops == measured
    assert cost.softmax_attention(T, B=B, H=H, K=K, V=V, causal=False).flops == measured
    causal = cost.softmax_attention(T, B=B, H=H, K=K, V=V).flops
    assert causal * 2 * T == measured * (T + 1)
    residual(0.0)


def test_softmax_operations_one_by_one():
    def run(T=5):
        for i in range(T):
            s = [x * 0.125 for x in numbers(i + 1)]
            top = s[0]
            for x in s[1:]:
                top = top.maximum(x)
            e = [(x - top).exp() for x in s]
            total = e[0]
            for x in e[1:]:
                total = total + x
            _ = [x / total for x in e]

    assert operations(run) == cost.softmax(cost.attention_scores(5), 5).flops


def test_bytes_naive_grows_with_pairs_and_tiled_with_tiles():
    T, K = 4096, 64
    naive = cost.softmax_attention(T, K=K, form="naive")
    assert naive.bytes == 2 * (4 * T * K + 4 * T * T)
    whole = cost.softmax_attention(T, K=K, tile=T)  # one tile: everything is read or written once
    assert whole.bytes == 2 * 4 * T * K
    small = cost.softmax_attention(T, K=K, tile=128)
    tiles = T // 128
    assert small.bytes == 2 * (2 * T * K + 2 * K * 128 * tiles * (tiles + 1) // 2)
    assert small.flops == whole.flops
    # keys are read once for a group of heads, not once a head
    grouped, full = (cost.softmax_attention(1, H=8, G=g, K=K, past=999) for g in (2, 8))
    assert grouped.bytes == 2 * (8 * 2 * K + 2 * 1000 * 2 * K)
    assert full.bytes == 2 * (8 * 2 * K + 8 * 1000 * 2 * K)
    # all pairs, and a window that reaches back past the tile's start
    assert cost.softmax_attention(5, K=1, causal=False, tile=2).bytes == 2 * (10 + 3 * 5 * 2)
    assert cost.softmax_attention(6, K=1, window=2, tile=2).bytes == 2 * (12 + (2 + 3 + 3) * 2)


def test_attention_state_says_what_bounds_it():
    grows = cost.softmax_attention(100, B=2, H=8, G=2, K=16, V=8)
    assert grows.state_floats == 2 * 2 * (16 + 8) * 100
    assert not grows.bounded
    assert "every token" in grows.by
    window = cost.softmax_attention(100, H=8, K=16, window=10)
    assert window.state_floats == 8 * 32 * 10
    assert window.bounded
    assert window.by == "a window of 10 tokens"


def test_window_turns_the_square_into_a_line():
    once, twice = (cost.softmax_attention(T, K=64, window=256).flops for T in (2**16, 2**17))
    assert twice / once == pytest.approx(2, rel=0.01)


# ---------------------------------------------------------------- recurrences and scans


def decay_step(K, V, decay, normalized=False):
    columns = V + 1 if normalized else V
    S = [numbers(columns) for _ in range(K)]
    k, v, q, a = numbers(K), numbers(columns), numbers(K), Counting(0.9)
    for i in range(K):
        for j in range(columns):
            kept = S[i][j] * a if decay else S[i][j]
            S[i][j] = kept + k[i] * v[j]
    y = [Counting(0) for _ in range(columns)]
    for i in range(K):
        for j in range(columns):
            y[j] = y[j] + q[i] * S[i][j]
    if normalized:
        y = [y[j] / y[-1] for j in range(V)]


@pytest.mark.parametrize(("decay", "normalized"), [(False, False), (True, False), (False, True)])
def test_decay_recurrence_operations_one_by_one(decay, normalized):
    closed = cost.decay_recurrence(1, K=3, V=4, decay=decay, normalized=normalized)
    assert operations(lambda: decay_step(3, 4, decay, normalized)) == closed.flops
    assert closed.state_floats == 3 * (5 if normalized else 4)
    assert closed.bounded


@pytest.mark.parametrize("decay", [False, True])
def test_delta_recurrence_operations_one_by_one(decay):
    K, V = 3, 4

    def run():
        S = [numbers(V) for _ in range(K)]
        k, v, q, a, beta = numbers(K), numbers(V), numbers(K), Counting(0.9), Counting(0.5)
        if decay:
            S = [[x * a for x in row] for row in S]
        held = [Counting(0) for _ in range(V)]
        for i, j in itertools.product(range(K), range(V)):
            held[j] = held[j] + k[i] * S[i][j]
        error = [(v[j] - held[j]) * beta for j in range(V)]
        y = [Counting(0) for _ in range(V)]
        for i, j in itertools.product(range(K), range(V)):
            S[i][j] = S[i][j] + k[i] * error[j]
            y[j] = y[j] + q[i] * S[i][j]

    assert operations(run) == cost.delta_recurrence(1, K=K, V=V, decay=decay).flops


def test_selective_scan_operations_one_by_one():
    N, D = 4, 3

    def run():
        for _ in range(D):
            h, A, B, C, delta, u, skip = (numbers(N), numbers(N), numbers(N), numbers(N), Counting(0.1),
                                          Counting(1), Counting(1))
            du = delta * u
            y = u * skip
            for n in range(N):
                h[n] = (delta * A[n]).exp() * h[n] + B[n] * du
                y = y + C[n] * h[n]

    assert operations(run) == cost.ssm_scan(1, D=D, N=N).flops


def test_fixed_complex_scan_operations_one_by_one():
    N = 4

    def run():
        u, skip = Counting(1), Counting(1)
        y = None
        for _ in range(N):
            (hr, hi), (ar, ai), (br, bi), (cr, ci) = (numbers(2) for _ in range(4))
            hr, hi = (ar * hr - ai * hi) + br * u, (ar * hi + ai * hr) + bi * u
            y = y + (cr * hr - ci * hi) if y else cr * hr - ci * hi
        _ = y * 2 + u * skip

    closed = cost.ssm_scan(1, D=1, N=N, selective=False)
    assert operations(run) == closed.flops
    assert closed.state_floats == 2 * N


@pytest.mark.parametrize(("T", "chunk"), [(64, 16), (70, 16), (5, 16)])
def test_chunked_recurrence_is_what_torch_counts(T, chunk):
    N, P = 8, 4

    def run():
        S = torch.zeros(N, P)
        for start in range(0, T, chunk):
            c = min(chunk, T - start)
            q, k, v = torch.randn(c, N), torch.randn(c, N), torch.randn(c, P)
            _ = torch.tril(q @ k.T) @ v + q @ S
            S = S + k.T @ v

    assert cost.chunked_recurrence(T, K=N, V=P, chunk=chunk).flops == counted(run)


def test_long_convolution_by_transform_count():
    T, D = 8, 2
    n = 2 * T
    by_hand = 5 * (n / 2) * math.log2(n) * (D + D + D) + 6 * (n // 2 + 1) * D
    closed = cost.long_convolution(T, D=D)
    assert closed.flops == by_hand
    assert not closed.bounded
    assert closed.state_floats == T * D


def test_short_convolution_operations_and_state():
    one = cost.short_convolution(1, D=1, conv_size=3)
    assert one.flops == 6
    assert one.state_floats == 2
    assert cost.short_convolution(10, B=2, D=5, conv_size=4).flops == 2 * 10 * 5 * 8


# ---------------------------------------------------------------- blocks


def test_transformer_block_is_what_torch_counts():
    T, D, H, G, K, F = 24, 32, 4, 2, 8, 80

    def run():
        x = torch.randn(T, D)
        w = {n: torch.randn(D, n) for n in (H * K, G * K, F)}
        q, k, v = x @ w[H * K], x @ w[G * K], x @ w[G * K]
        q = q.view(T, H, K).transpose(0, 1)
        k, v = (z.view(T, G, K).transpose(0, 1).repeat_interleave(H // G, 0) for z in (k, v))
        y = torch.softmax(q @ k.mT, -1) @ v
        y = y.transpose(0, 1).reshape(T, H * K) @ torch.randn(H * K, D)
        _ = (y @ w[F] * (y @ w[F])) @ torch.randn(F, D)

    block = cost.transformer_block(T, D=D, H=H, G=G, K=K, F=F, gated=True, causal=False)
    assert block.flops == counted(run)


def test_mamba_block_matrices_are_what_torch_counts():
    T, D, N = 10, 64, 16
    inner, rank = 2 * D, D // 16

    def run():
        x = torch.randn(T, D)
        u = (x @ torch.randn(D, 2 * inner))[:, :inner]
        dt = (u @ torch.randn(inner, rank + 2 * N))[:, :rank]
        _ = (u * (dt @ torch.randn(rank, inner))) @ torch.randn(inner, D)

    block = cost.mamba_block(T, D=D)
    rest = cost.ssm_scan(T, D=inner, N=N).flops + cost.short_convolution(T, D=inner).flops
    assert block.flops - rest == counted(run)
    assert block.state_floats == inner * N + 3 * inner
    assert block.bounded


def test_mamba2_block_matrices_and_its_two_cores():
    T, D, N, P = 40, 64, 16, 32
    inner, heads = 2 * D, 4

    def run():
        x = torch.randn(T, D)
        z = x @ torch.randn(D, 2 * inner + 2 * N + heads)
        _ = z[:, :inner] @ torch.randn(inner, D)

    block = cost.mamba2_block(T, D=D, N=N, P=P, chunk=16)
    conv = cost.short_convolution(T, D=inner + 2 * N).flops
    assert block.flops == counted(run) + conv + cost.chunked_recurrence(T, H=heads, K=N, V=P, chunk=16).flops
    one = cost.mamba2_block(1, D=D, N=N, P=P)
    core = heads * 5 * N * P
    assert one.flops == 2 * D * (2 * inner + 2 * N + heads) + 2 * inner * D + 8 * (inner + 2 * N) + core
    assert one.state_floats == inner * N + 3 * (inner + 2 * N)


@pytest.mark.equation("eq-block-flops")
def test_one_transformer_block_against_two_mamba_blocks(residual):
    D = 4096

    def ratio(n, causal):
        return cost.transformer_block(n, D=D, causal=causal).flops / (2 * cost.mamba_block(n, D=D)).flops

    assert ratio(2048, True) == pytest.approx(1, abs=0.05)
    assert ratio(2**20, True) == pytest.approx(21, abs=0.5)
    assert ratio(2**20, False) == pytest.approx(42, abs=0.5)
    # attention equals everything else at 12 D under a causal mask, 6 D over all pairs
    for n, causal in ((12 * D, True), (6 * D, False)):
        attention = cost.softmax_attention(n, H=32, K=128, causal=causal).flops
        rest = cost.transformer_block(n, D=D, causal=causal).flops - attention
        assert rest == 24 * D * D * n
        assert attention == pytest.approx(rest, rel=1e-4)
    residual(abs(cost.attention_scores(12 * D) * 4 * D / (24 * D * D * 12 * D) - 1))


def test_the_document_ratio_is_n_over_N():
    for n, ratio in ((512, 32), (2048, 128), (8192, 512), (32768, 2048), (131072, 8192), (1048576, 65536)):
        assert n**2 * 4096 / (n * 4096 * 16) == ratio


# ---------------------------------------------------------------- published figures


def test_training_flops_and_the_two_crossings():
    D = 4096
    matrices, attention = cost.training_flops(32768, D=D)
    assert attention == matrices  # T / (8 D) = 1
    _, attention = cost.training_flops(8192, D=D)
    assert attention == 24 * 8192 * D * D  # equal to the projections at T = 2 D
    assert cost.training_flops(8192, D=D, causal=True)[1] == attention / 2
    x = torch.randn(6, 32, requires_grad=True)
    w = [torch.randn(32, n, requires_grad=True) for n in (80, 80)] + [torch.randn(80, 32, requires_grad=True)]
    measured = counted(lambda: ((x @ w[0]) * (x @ w[1]) @ w[2]).sum().backward())
    assert measured == 18 * 6 * 32 * 80  # the MLP's share: forward and two products back
    assert cost.training_flops(6, D=32, F=80, H=4, K=8)[0] - 24 * 6 * 32 * 32 == measured


def test_ssd_and_kda_counts():
    assert cost.chunked_recurrence(256, K=128, V=64, chunk=256).flops == 256 * 131072
    assert cost.chunked_recurrence(64, K=64, V=64, chunk=64).flops == 64 * 8 * 64**2
    quadratic = 2 * (128 + 64)  # a token and a key of the full form
    crossing = cost.chunked_recurrence(256, K=128, V=64, chunk=256).flops / 256 / quadratic
    assert crossing == pytest.approx(341.33, abs=0.01)
    # Kimi Linear compares its chunked form with 2 T^2 K: equal at T = 496 for K = 128, C = 64
    assert cost.kda_chunked(496, K=128).flops == 2 * 496**2 * 128


def test_state_floats_of_the_reference_layers():
    d = 1024
    assert cost.ssm_scan(1, D=2 * d, N=16).state_floats == 32 * d
    matrices = {  # heads, key width, value width -> floats a layer
        (2 * d // 64, 128, 64): 256 * d,  # Mamba-2
        (d // 64, 64, 64): 64 * d,  # RWKV-7
        (d // 128, 128, 128): 128 * d,  # HGRN2
        (4, d // 8, d // 4): d * d // 8,  # GLA, RWKV-6
        (8, d // 8, 2 * d // 8): 2 * d * d // 8,  # RetNet
        (4, d // 4, d // 4): d * d // 4,  # DeltaNet
        (6, 256, 512): 786432,  # Gated DeltaNet at 2048
        (64, 128, 128): 1048576,  # MiniMax lightning
    }
    for (H, K, V), floats in matrices.items():
        assert cost.decay_recurrence(1, H=H, K=K, V=V).state_floats == floats
        assert cost.delta_recurrence(1, H=H, K=K, V=V).state_floats == floats
        assert cost.chunked_recurrence(9, H=H, K=K, V=V).state_floats == floats
    assert cost.short_convolution(1, D=d, conv_size=3).state_floats == 2 * d  # LFM2


@pytest.mark.equation("eq-state-price")
def test_a_mamba2_state_in_tokens_of_cache(residual):
    d, N = 4096, 128
    state = cost.chunked_recurrence(9, H=2 * d // 64, K=N, V=64).state_floats
    assert state == 2 * d * N
    assert cost.softmax_attention(N, H=32, K=128).state_floats == state
    assert cost.softmax_attention(4 * N, H=32, G=8, K=128).state_floats == state
    residual(0.0)


def test_ring_blocks_match_the_printed_table():
    for peak, link, printed in ((312e12, 300e9, 1.0e3), (312e12, 12.5e9, 24.5e3), (123e12, 112e9, 1.1e3)):
        block = cost.ring_block(peak, link)
        assert block == pytest.approx(printed, rel=0.05)
    assert cost.ring_block(312e12, 300e9) == 1040
    assert 6 * cost.ring_block(312e12, 12.5e9) == 149760
    # at that size a block's compute and its passing take the same time: 4 d c^2 FLOPs and 4 d c bytes
    d, c = 4096, 1040
    compute = cost.softmax_attention(c, H=32, K=d // 32, causal=False).flops / 312e12
    passing = cost.softmax_attention(c, H=32, K=d // 32).state_floats * 2 / 300e9
    assert compute == pytest.approx(passing, rel=1e-12)


# ---------------------------------------------------------------- roofline


@pytest.mark.equation("eq-roofline")
def test_roofline_takes_the_slower_ceiling(residual):
    fast = cost.Device("toy", flops=100.0, bandwidth=10.0, memory=1.0)
    compute = cost.roofline(cost.Cost(1000, 10), fast)
    memory = cost.roofline(cost.Cost(10, 1000), fast)
    assert (compute.seconds, compute.binds, compute.intensity) == (10, "compute", 100)
    assert (memory.seconds, memory.binds, memory.intensity) == (100, "memory", 0.01)
    # a tile of queries gives about one FLOP a byte for each query in it, so the ridge sets the tile
    for tile, side in ((128, "memory"), (512, "compute")):
        long = cost.softmax_attention(2**17, K=128, tile=tile)
        assert long.intensity == pytest.approx(tile, rel=0.02)
        assert cost.roofline(long, H100).binds == side
    assert cost.roofline(cost.matmul(1, 4096, 4096), A100).binds == "memory"
    residual(0.0)
