"""Chapter 14: the code that stands on its page, its equations, and its exercise solutions."""

import itertools
import math

import numpy as np
import pytest
import torch
from page import Page

from experiments import diffusion_orders
from postx.diffusion import masked, oracle, plaid, sedd
from postx.models import checkpoints
from postx.models.denoiser import Denoiser
from postx.models.lm import LM

PAGE = Page("diffusion", torch=torch, np=np, math=math, itertools=itertools)
solution, page_function = PAGE.solution, PAGE.function
SOURCE = oracle.Table.random(Y=3, T=4, seed=0)


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def anything(Y, T, seed=0):
    """A denoiser that answers something for every pattern, consistent with nothing."""
    table = torch.randn((Y + 1) ** T, T, Y, dtype=torch.float64, generator=rng(seed))
    place = (Y + 1) ** torch.arange(T)
    return lambda ids_BT: table[(ids_BT * place).sum(1)]


@pytest.mark.equation("eq-gaussian-embedding")
def test_the_noisy_vector_has_the_stated_mean_and_spread(residual):
    made = plaid.Process(
        4, 3, embedding_YR=torch.randn(4, 3, generator=rng()), schedule=plaid.Schedule(-3.0, 2.0)
    ).double()
    t = torch.tensor([0.1, 0.8], dtype=torch.float64)
    alpha2, sigma2 = torch.sigmoid(-made.gamma(t)), torch.sigmoid(made.gamma(t))
    assert (alpha2 + sigma2 - 1).abs().max() < 1e-12
    noise = torch.randn(2, 5, 3, generator=rng(1), dtype=torch.float64)
    ids = torch.randint(0, 4, (2, 5), generator=rng(2))
    want = alpha2.sqrt()[:, None, None] * made.embedding_YR()[ids] + sigma2.sqrt()[:, None, None] * noise
    worst = float((made.noisy(ids, t, noise) - want).detach().abs().max())
    worst = max(worst, float((made.gamma(t) - (sigma2 / alpha2).log()).detach().abs().max()))
    assert worst < 1e-12
    residual(worst)


@pytest.mark.equation("eq-masked-bound")
def test_the_bound_by_sets_by_time_and_by_the_package(residual):
    by_hand = page_function("bound_by_hand")
    net = anything(3, 4)
    mine = torch.tensor([by_hand(net, ids, 3) for ids in SOURCE.ids_BT[:9]], dtype=torch.float64)
    worst = float((mine - masked.exact_nelbo(net, SOURCE.ids_BT[:9], 3)).abs().max())
    nodes, weights = np.polynomial.legendre.leggauss(24)
    total = 0.0  # the integral over t itself
    for node, weight in zip((nodes + 1) / 2, weights / 2, strict=True):
        for hidden in itertools.product([False, True], repeat=4):
            k, hide = sum(hidden), torch.tensor(hidden)
            said = net(torch.where(hide, 3, SOURCE.ids_BT[5])[None])[0].log_softmax(-1)
            lost = -said.gather(1, SOURCE.ids_BT[5][:, None])[:, 0][hide].sum().item()
            total += weight / node * node**k * (1 - node) ** (4 - k) * lost
    worst = max(worst, abs(total - float(mine[5])))
    assert worst < 1e-10
    exact = float(SOURCE.p_B @ masked.exact_nelbo(SOURCE.denoiser, SOURCE.ids_BT, 3))
    assert exact == pytest.approx(SOURCE.entropy, abs=1e-12)
    assert float(SOURCE.p_B @ masked.exact_nelbo(net, SOURCE.ids_BT, 3)) > SOURCE.entropy
    residual(worst)


@pytest.mark.equation("eq-any-order")
def test_the_bound_is_the_mean_over_orders_and_the_sampler_is_at_least_as_good(residual):
    net = anything(3, 4, seed=1)
    orders = list(itertools.permutations(range(4)))
    each = torch.stack([masked.in_order(net, SOURCE.ids_BT, 3, order) for order in orders])
    bound = masked.exact_nelbo(net, SOURCE.ids_BT, 3)
    worst = float((each.mean(0) - bound).abs().max())
    assert worst < 1e-12
    own = -oracle.remasking_law(net, 3, 4, steps=4, rule="random").flatten().log()
    assert (own < bound).all()
    residual(worst)


@pytest.mark.equation("eq-masked-reverse")
@pytest.mark.parametrize("stay", [0.0, 0.3, 0.9])
def test_a_step_backwards(stay, residual):
    p = torch.rand(2, 3, 4, generator=rng(), dtype=torch.float64).softmax(-1)
    ids = torch.tensor([[4, 1, 4], [0, 4, 3]])
    step = masked.transition(p, ids, stay)
    hidden = ids == 4
    worst = float((step[hidden][:, :4] - (1 - stay) * p[hidden]).abs().max())
    assert worst < 1e-12
    assert (step[hidden][:, 4] == stay).all()
    assert (step[~hidden].argmax(-1) == ids[~hidden]).all()
    assert (step[~hidden].max(-1).values == 1).all()
    residual(worst)


def test_the_pages_sampler_follows_the_enumerated_law():
    write = page_function("write")
    made = write(SOURCE.denoiser, 30_000, 4, 3, 2, rng(3))
    seen = torch.bincount(made @ 3 ** torch.arange(3, -1, -1), minlength=81) / 30_000
    law = oracle.ancestral_law(SOURCE.denoiser, 3, 4, steps=2).flatten()
    assert oracle.total_variation(seen, law) < 0.03
    assert oracle.total_variation(seen, SOURCE.p_B) > 0.03


@pytest.mark.equation("eq-pair-steps")
def test_two_equal_letters_collide_in_one_of_n_steps(residual):
    twins = oracle.Table(torch.eye(2))
    worst = 0.0
    for n in (1, 2, 3, 7, 50):
        law = oracle.ancestral_law(twins.denoiser, 2, 2, n)
        worst = max(worst, abs(float(law[0, 1] + law[1, 0]) - 1 / (2 * n)))
    assert worst < 1e-12
    residual(worst)


@pytest.mark.equation("eq-total-correlation")
def test_one_step_is_off_by_the_total_correlation(residual):
    law = oracle.ancestral_law(SOURCE.denoiser, 3, 4, steps=1)
    marginals = [SOURCE.p.sum([j for j in range(4) if j != i]) for i in range(4)]
    product = torch.einsum("a,b,c,d->abcd", *marginals)
    divergence = float((SOURCE.p * (SOURCE.p / law).log()).sum())
    want = -sum(float(torch.xlogy(m, m).sum()) for m in marginals) - SOURCE.entropy
    worst = max(abs(divergence - want), float((law - product).abs().max()))
    assert worst < 1e-12
    assert divergence > 0.1
    residual(worst)


@pytest.mark.equation("eq-diffusion-flops")
@pytest.mark.parametrize(("n", "s"), [(5, 1), (16, 7)])
def test_the_arithmetic_of_a_cache_and_of_steps_counted_token_by_token(n, s, residual):
    P, L, D = 1000, 3, 8
    cached = sum(
        2 * P + L * (2 * t * D + 2 * t * D) for t in range(1, n + 1)
    )  # t keys and t values for token t
    steps = sum(2 * P + L * (2 * n * D + 2 * n * D) for _ in range(s) for _ in range(n))
    assert steps == s * n * (2 * P + 4 * L * D * n)
    assert cached == n * (2 * P + 2 * L * D * (n + 1))
    residual(0.0)


@pytest.mark.equation("eq-break-even")
@pytest.mark.parametrize(("n", "B"), [(1024, 1), (1024, 256), (100, 1), (64, 2000)])
def test_at_the_break_even_both_take_the_same_time(n, B, residual):
    P, flops, bandwidth = 8e9, 989e12, 3.35e12
    steps = page_function("break_even", RIDGE=flops / bandwidth)(n, B)
    one = max(2 * P / bandwidth, 2 * P * B / flops)  # two bytes and two operations a weight
    wide = max(2 * P / bandwidth, 2 * P * B * n / flops)
    off = abs(steps * wide / (n * one) - 1)
    assert off < 1e-12
    assert 1 <= steps <= n
    residual(off)


@pytest.mark.equation("eq-block-bound")
@pytest.mark.parametrize("size", [1, 2, 4])
def test_blocks_lie_between_autoregression_and_one_canvas(size, residual):
    """Every block by the bound over its own sets, given the blocks before; the blocks after it are hidden."""
    net, ids = anything(3, 4, seed=2), SOURCE.ids_BT

    def block_bound(denoiser):
        total = 0
        for start in range(0, 4, size):
            for hidden in list(itertools.product((False, True), repeat=size))[1:]:
                k = sum(hidden)
                hide = torch.tensor([False] * start + list(hidden) + [True] * (4 - start - size))
                lost = masked.losses(denoiser(torch.where(hide, 3, ids)), ids)
                inside = torch.tensor([False] * start + list(hidden) + [False] * (4 - start - size))
                weight = math.factorial(k - 1) * math.factorial(size - k) / math.factorial(size)
                total = total + weight * (lost * inside).sum(1)
        return total

    want = {1: masked.in_order(net, ids, 3, range(4)), 4: masked.exact_nelbo(net, ids, 3)}.get(size)
    if want is None:  # the orders that keep the blocks in order
        orders = [(*a, *b) for a in itertools.permutations((0, 1)) for b in itertools.permutations((2, 3))]
        want = torch.stack([masked.in_order(net, ids, 3, order) for order in orders]).mean(0)
    worst = float((block_bound(net) - want).abs().max())
    worst = max(worst, abs(float(SOURCE.p_B @ block_bound(SOURCE.denoiser)) - SOURCE.entropy))
    assert worst < 1e-12
    residual(worst)


@pytest.mark.equation("eq-absorbing-ratio")
@pytest.mark.parametrize("t", [0.2, 0.7])
def test_a_ratio_is_a_guess_in_other_units(t, residual):
    small = oracle.Table.random(Y=2, T=3, seed=1)
    noisy = oracle.states(3, 3)
    chance = torch.stack([
        sum(p * math.prod((1 - t) if x == y else t * (x == 2) for x, y in zip(state, clean, strict=True))
            for p, clean in zip(small.p_B.tolist(), small.ids_BT.tolist(), strict=True)) * torch.ones(())
        for state in noisy.tolist()
    ]).double()  # fmt: skip
    said, worst = small.denoiser(noisy).softmax(-1), 0.0
    for row, i, y in itertools.product(range(27), range(3), range(2)):
        if noisy[row, i] == 2:
            moved = noisy[row].clone()
            moved[i] = y
            ratio = chance[int(moved @ 3 ** torch.arange(2, -1, -1))] / chance[row]
            worst = max(worst, abs(float(ratio - (1 - t) / t * said[row, i, y])))
    assert worst < 1e-5
    score = sedd.from_denoiser(small.denoiser, sedd.Absorbing(2))
    sigma = torch.full((27,), -math.log(1 - t), dtype=torch.float64)
    hidden = noisy == 2
    got = score(noisy, sigma).exp()[hidden]
    assert (got - (1 - t) / t * said[hidden]).abs().max() < 1e-10
    residual(worst)


@pytest.mark.equation("eq-plaid-bound")
def test_the_three_parts_of_plaid_by_quadrature(residual):
    """One token of two on a line: the entropy, plus the divergence of the whole mixture at t = 1 from the normal."""
    law = torch.tensor([0.3, 0.7], dtype=torch.float64)
    made = plaid.Process(2, 1, embedding_YR=torch.tensor([[-1.0], [0.6]]), unit=False,
                         schedule=plaid.Schedule(-2.0, 3.0)).double()  # fmt: skip
    at, weight = (torch.from_numpy(x) for x in np.polynomial.hermite_e.hermegauss(96))
    weight, noise = weight / weight.sum(), at[:, None, None]
    nodes, node_weight = np.polynomial.legendre.leggauss(48)
    total, prior_gap = 0.0, 0.0

    def perfect(z, t, guess):
        return law.log().expand(*z.shape[:2], 2)

    g1 = made.gamma(torch.ones(1, dtype=torch.float64))
    alpha, sigma = torch.sigmoid(-g1).sqrt(), torch.sigmoid(g1).sqrt()
    with torch.no_grad():
        for x in (0, 1):
            ids = torch.full((96, 1), x)
            diffusion = 0.0
            for n, w in zip(nodes, node_weight, strict=True):
                t = torch.full((96,), (n + 1) / 2, dtype=torch.float64)
                diffusion += w / 2 * (plaid.diffusion_term(perfect, ids, made, t, noise) @ weight)
            last = plaid.reconstruction_term(perfect, ids, made, noise) @ weight
            total += float(law[x] * (plaid.prior_term(ids, made)[0] + diffusion + last))
            z = alpha * made.embedding_YR()[x] + sigma * at
            mixed = torch.logsumexp(
                law.log() - ((z[:, None] - alpha * made.embedding_YR()[:, 0]) / sigma).square() / 2, 1
            )
            prior_gap += float(law[x] * ((mixed - sigma.log() + z.square() / 2) @ weight))
    off = abs(total - prior_gap + float((law * law.log()).sum()))
    assert off < 1e-6
    residual(off)


def test_predict():
    right = solution("ex-diffusion-predict")["right"]
    assert right[1] == pytest.approx(2**-4)
    assert right[5] == pytest.approx(1)
    assert right[2] == pytest.approx(2**-2)  # three letters in the first step


def test_derive():
    found = solution("ex-diffusion-derive")["found"]
    (a, sa), (b, sb) = found.values()
    assert a == pytest.approx(b, rel=0.02)
    assert abs(sa / sb - 1) > 0.05


def test_code_threshold():
    confident = solution("ex-diffusion-threshold")["confident"]
    p = torch.zeros([2] * 6, dtype=torch.float64)
    p[(0,) * 6] = p[(1,) * 6] = 0.5
    same = oracle.Table(p)
    for seed in range(20):
        ids, calls = confident(same.denoiser, 6, 2, 0.9, rng(seed))
        assert calls == 2
        assert ids.min() == ids.max() < 2
    lone = oracle.Table(torch.ones([2] * 3))
    assert confident(lone.denoiser, 3, 2, 0.9, rng())[1] == 3
    assert confident(lone.denoiser, 3, 2, 0.4, rng())[1] == 1


def test_code_variance():
    scope = solution("ex-diffusion-variance")
    assert scope["means"][0] == pytest.approx(scope["means"][1], rel=0.02)
    assert scope["spreads"][1] < 0.9 * scope["spreads"][0]


def test_explore():
    scope = solution("ex-diffusion-order")
    assert scope["costs"]["1 and 3"] == pytest.approx(0.456, abs=0.001)
    assert scope["costs"]["1 and 2"] == pytest.approx(0.867, abs=0.001)
    assert scope["costs"]["1 and 4"] == pytest.approx(0.396, abs=0.001)
    pairs = {pair: scope["cost"](list(pair)) for pair in itertools.combinations(range(4), 2)}
    assert min(pairs, key=pairs.get) == (0, 3), "the best of all pairs"
    assert sorted(pairs, key=pairs.get)[3:] == [(1, 2), (0, 1), (2, 3)], "neighbors cost most"


def test_the_two_models_that_are_compared_were_not_tuned_alike():
    runs = {name: checkpoints.record(name) for name in ("attention", "masked")}
    steps = {name: r.get("step", r["run"]["steps"]) for name, r in runs.items()}
    seen = {name: steps[name] * r["run"]["B"] * r["run"]["T"] for name, r in runs.items()}
    assert seen["masked"] / seen["attention"] == pytest.approx(18, abs=0.7)
    assert runs["masked"]["curve"][-1]["step"] == runs["masked"]["run"]["steps"]


def test_what_the_script_records():
    """Orders of a tiny network: each is a likelihood, and their mean is the bound that the script estimates."""
    torch.manual_seed(0)
    net = Denoiser(16, 1, H=2).eval()
    routes = diffusion_orders.routes()
    assert all(sorted(order) == list(range(diffusion_orders.SPAN)) for order in routes.values())
    ids = diffusion_orders.unseen(2, diffusion_orders.SPAN)
    *found, mean = diffusion_orders.orders(net, ids)
    assert [r["name"] for r in found] == list(routes)
    assert all(7 < r["bits"] < 9 for r in found)  # an untrained network knows nothing: 8 bits
    (*wrote, real) = diffusion_orders.writing(
        net, LM("A", 16, 256, options={"A": {"H": 2}}).eval(), rows=1, long=80
    )
    assert [r["name"] for r in wrote] == ["left to right", "random in blocks of 16", "random"]
    assert all(r["bits"] > 0 for r in (*wrote, real))
    assert abs(mean["bits"] - np.mean([r["bits"] for r in found])) < 5 * mean["bits_error"] + 0.05


@pytest.mark.parametrize(("n", "B", "steps"), [(1024, 1, 88), (1024, 256, 1.5), (64, 2000, None)])
def test_where_speculative_decoding_takes_as_long_as_diffusion(n, B, steps):
    """A pass checks five tokens of each text and yields 3.36 on average, by the chances of drafts that are kept."""
    kept, draft, flops, bandwidth, P = 0.8, 4, 989e12, 3.35e12, 8e9
    gain = sum(k * kept ** (k - 1) * (1 - kept) for k in range(1, draft + 1)) + (draft + 1) * kept**draft
    ridge = flops / bandwidth
    found = page_function("speculative", RIDGE=ridge, DRAFT=draft, KEPT=kept, GAIN=gain)(n, B)
    a_pass, a_step = (max(2 * P / bandwidth, 2 * P * tokens / flops) for tokens in ((draft + 1) * B, n * B))
    assert found * a_step == pytest.approx(n / gain * a_pass)
    assert steps is None or found == pytest.approx(steps, rel=0.01)


def test_what_reading_the_cache_adds_to_the_break_even():
    """256 texts of 1,024 tokens, 128 KiB of keys and values a token, in time that each pass of the cache takes."""
    n, B, P, flops, bandwidth = 1024, 256, 8e9, 989e12, 3.35e12
    cache = sum(B * j * 128 * 1024 for j in range(1, n + 1)) / n  # bytes a pass reads, on average
    assert round(cache / 1e9) == 17
    a_token = max((2 * P + cache) / bandwidth, 2 * P * B / flops)
    a_step = max(2 * P / bandwidth, 2 * P * B * n / flops)
    assert n * a_token / a_step == pytest.approx(2.4, abs=0.05)
