"""Masked diffusion: bounds held to the entropy of enumerable distributions, samplers to the law they should have."""

import itertools

import pytest
import torch
from broken import mutant
from scipy import stats

from postx.diffusion import (
    OPEN,
    Cosine,
    Geometric,
    LogLinear,
    Power,
    blank,
    masked,
    oracle,
    pick,
    probabilities,
    times,
)  # fmt: skip
from postx.models.denoiser import Denoiser

Y, T = 3, 4
SCHEDULES = LogLinear(), LogLinear(0.05), Power(2.0), Power(3.0), Cosine()


@pytest.fixture(scope="module")
def table():
    return oracle.Table.random(Y, T)


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


def bent(table, size=0.5):
    """A wrong denoiser: the oracle's logits, moved by a fixed amount for each state; shown tokens are not known."""
    noise = size * torch.randn((Y + 1) ** T, T, Y, generator=gen(5), dtype=torch.float64)
    place = (Y + 1) ** torch.arange(T - 1, -1, -1)
    return lambda ids: table.denoiser(ids).clamp(min=-4) + noise[(ids * place).sum(1)]


def law_of_orders(denoiser, ids_BT, orders):
    """p of each row when the tokens are shown in an order drawn from `orders`, and the mean of -log p."""
    each = torch.stack([masked.in_order(denoiser, ids_BT, Y, order) for order in orders])
    return (-each).exp().mean(0), each.mean(0)


def test_the_oracle_answers_with_conditional_probabilities(table):
    logits = table.denoiser(torch.tensor([[Y, 1, Y, 2], [Y] * T, [0, 1, 2, 0]]))
    want = table.p[:, 1, :, 2]
    assert torch.allclose(logits[0, 0].exp(), want.sum(1) / want.sum(), atol=1e-14)
    assert torch.allclose(logits[0, 2].exp(), want.sum(0) / want.sum(), atol=1e-14)
    assert torch.allclose(logits[1, 3].exp(), table.p.sum((0, 1, 2)), atol=1e-14)
    assert logits[2].exp()[range(T), [0, 1, 2, 0]].tolist() == [1.0] * T
    point = oracle.Table(torch.eye(2))
    assert point.denoiser(torch.tensor([[0, 1]])).tolist() == [[[0, 0], [0, 0]]]  # never happens
    assert point.entropy == pytest.approx(0.6931471805599453)


def test_the_bound_of_a_perfect_denoiser_is_the_entropy(table):
    bound = masked.exact_nelbo(table.denoiser, table.ids_BT, Y)
    assert float((bound * table.p_B).sum()) == pytest.approx(table.entropy, abs=1e-12)


def test_the_bound_of_a_wrong_one_is_above_its_likelihood_and_the_entropy(table):
    wrong = bent(table)
    bound = masked.exact_nelbo(wrong, table.ids_BT, Y)
    p_orders, mean = law_of_orders(wrong, table.ids_BT, list(itertools.permutations(range(T))))
    assert (bound - mean).abs().max() <= 1e-12  # any-order autoregression
    law = oracle.remasking_law(wrong, Y, T, T, "random").flatten()
    assert (law - p_orders).abs().max() <= 1e-14  # the sampler's law, written down in another way
    assert float(law.sum()) == pytest.approx(1, abs=1e-12)
    gap = bound + law.log()
    assert float(gap.min()) > 1e-4
    cross = -float((table.p_B * law.log()).sum())
    assert float((bound * table.p_B).sum()) > cross + 1e-2 > table.entropy + 2e-2


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_bound_does_not_depend_on_the_schedule(table, schedule):
    """Quadrature over t of the expected loss at t, from the counts of masks, for each schedule."""
    wrong, ids = bent(table), table.ids_BT[[0, 17, 80]]
    by_count = torch.zeros(T + 1, len(ids), dtype=torch.float64)
    for pattern in itertools.product((False, True), repeat=T):
        hidden = torch.tensor(pattern).expand_as(ids)
        by_count[sum(pattern)] += masked._masked_loss(wrong, ids, hidden, Y)
    x, w = torch.tensor(stats_nodes(400)).T
    total = torch.zeros(len(ids), dtype=torch.float64)
    for t, weight in zip(x, w, strict=True):
        m = schedule.masked(t)
        at = sum(m**k * (1 - m) ** (T - k) * by_count[k] for k in range(T + 1))
        total += weight * schedule.weight(t) * at
    want = masked.exact_nelbo(wrong, ids, Y)
    left_out = 0.0 if float(schedule.masked(torch.tensor(1.0))) == 1 else 1.0
    assert ((want - total).abs() <= 1e-6).all() if not left_out else ((want - total) > 0.01).all()
    assert (want - total).max() < 0.05 * T * 3


def stats_nodes(n):
    """Gauss-Legendre on (0, 1), numpy's."""
    import numpy as np

    x, w = np.polynomial.legendre.leggauss(n)
    return np.stack([(x + 1) / 2, w / 2], 1)


@pytest.mark.parametrize("schedule", [*SCHEDULES, Geometric(1e-3, 5.0)])
def test_schedules_say_the_same_thing_in_four_ways(schedule):
    t = torch.linspace(0.01, 0.99, 50, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(schedule.sigma(t).sum(), t)
    assert torch.allclose(schedule.rate(t), slope, rtol=1e-12)
    assert torch.allclose(schedule.masked(t), 1 - (-schedule.sigma(t)).exp(), atol=1e-12)
    assert torch.allclose(schedule.weight(t), slope / torch.expm1(schedule.sigma(t)), rtol=1e-9)


@pytest.mark.parametrize("eps", [0.0, 1e-5, 1e-3, 0.1])
def test_the_log_linear_weight_is_one_over_t_for_every_eps(eps):  # facts H2
    t, schedule = torch.linspace(0.001, 0.999, 999, dtype=torch.float64), LogLinear(eps)
    weight = schedule.rate(t) / torch.expm1(schedule.sigma(t))
    assert ((weight * t - 1).abs() <= 1e-12).all()


@pytest.mark.parametrize("objective", [masked.nelbo, masked.nelbo_by_count])
def test_a_draw_is_unbiased(table, objective):
    wrong, ids, n = bent(table), table.ids_BT[50:51], 40_000
    t_B = torch.rand(n, generator=gen(1), dtype=torch.float64)
    draws = objective(wrong, ids.expand(n, T), Y, t_B=t_B, generator=gen(2))
    want = float(masked.exact_nelbo(wrong, ids, Y))
    assert float(draws.mean()) == pytest.approx(want, abs=4 * float(draws.std()) / n**0.5)
    assert float(draws.std()) / n**0.5 < 0.02 * want


def test_counting_masks_and_even_times_have_less_variance():
    """A network that is surer the more it is shown: its loss depends on the number of masks alone."""
    ids = torch.zeros(16, 8, dtype=torch.int64)

    def net(x):
        return torch.stack(
            [(x != Y).sum(1, keepdim=True).expand_as(x).double()] + 2 * [torch.zeros(x.shape)], -1
        )

    def spread(objective, even):
        rng = gen(3)
        t = (lambda: times(16, generator=rng)) if even else (lambda: torch.rand(16, generator=rng))
        means = [objective(net, ids, Y, t_B=t(), generator=rng).mean() for _ in range(200)]
        return float(torch.stack(means).std())

    plain, even, both = (
        spread(masked.nelbo, False),
        spread(masked.nelbo, True),
        spread(masked.nelbo_by_count, True),
    )
    assert even < 0.8 * plain
    assert both < 0.3 * even


def test_fixed_tokens_are_shown_and_not_counted(table):
    fixed = torch.tensor([[True, False, True, False]]).expand(81, T)
    seen = []

    def watch(ids):
        seen.append(ids)
        return table.denoiser(ids)

    for objective in (masked.nelbo, masked.nelbo_by_count):
        objective(watch, table.ids_BT, Y, fixed_BT=fixed, generator=gen())
        assert (seen[-1][fixed] == table.ids_BT[fixed]).all()
        assert (seen[-1][~fixed] == Y).any()
    # the conditional bound of a perfect denoiser is the conditional entropy
    n = 60_000
    ids = table.sample(n, gen(1))
    got = masked.nelbo_by_count(table.denoiser, ids, Y, fixed_BT=fixed[:1].expand(n, T), generator=gen(2))
    shown = table.p.sum((1, 3))
    want = table.entropy + float((shown * shown.log()).sum())
    assert float(got.mean()) == pytest.approx(want, abs=5 * float(got.std()) / n**0.5)
    all_fixed = torch.ones(81, T, dtype=torch.bool)
    assert not masked.nelbo_by_count(table.denoiser, table.ids_BT, Y, fixed_BT=all_fixed).any()


def test_times_are_even_and_uniform():
    t = times(8, generator=gen())
    assert (t * 8).floor().tolist() == list(range(8))
    assert torch.allclose(t.diff(), torch.full((7,), 1 / 8))
    many = torch.cat([times(3, generator=gen(seed)) for seed in range(2000)])
    assert stats.kstest(many.numpy(), "uniform").pvalue > 1e-3


def test_pick_draws_from_the_weights():
    weight = torch.tensor([0.0, 2.0, 0.0, 1.0, 1.0, 0.0])
    assert pick(weight.expand(4, 6), torch.tensor([0.0, 0.4999, 0.5, 0.9999999])).tolist() == [1, 1, 3, 4]
    assert probabilities(torch.tensor([1.0, 3.0, 2.0]), 0).tolist() == [0, 1, 0]
    assert torch.allclose(
        probabilities(torch.tensor([0.0, 1.0]), 0.5), torch.tensor([0.0, 2.0]).double().softmax(-1)
    )


def chi_squared(table, law, ids):
    count = torch.bincount((ids * Y ** torch.arange(T - 1, -1, -1)).sum(1), minlength=Y**T)
    want, count = law.flatten().numpy() * len(ids), count.numpy()
    rare = want < 5  # pooled
    pooled = [[*x[~rare], x[rare].sum()] for x in (count, want)]
    return stats.chisquare(
        *([x[:-1] for x in pooled] if pooled[1][-1] == 0 == pooled[0][-1] else pooled)
    ).pvalue


def test_one_token_a_step_draws_from_the_distribution(table):
    ids = masked.remask(table.denoiser, blank(40_000, T), Y, steps=T, rule="random", generator=gen(1)).ids_BT
    assert chi_squared(table, table.p, ids) > 0.01
    assert oracle.total_variation(oracle.remasking_law(table.denoiser, Y, T, T, "random"), table.p) < 1e-14


@pytest.mark.parametrize("steps", [1, 3])
def test_the_law_of_the_ancestral_sampler(table, steps):
    law = oracle.ancestral_law(table.denoiser, Y, T, steps, temperature=0.9)
    kw = {"steps": steps, "generator": gen(2), "temperature": 0.9}
    assert chi_squared(table, law, masked.ancestral(table.denoiser, blank(40_000, T), Y, **kw).ids_BT) > 0.01
    assert (
        chi_squared(table, table.p, masked.ancestral(table.denoiser, blank(40_000, T), Y, **kw).ids_BT) < 1e-6
    )


@pytest.mark.parametrize(
    ("rule", "block", "steps"), [("low_confidence", None, 2), ("random", 3, 2), ("random", 2, 4)]
)
def test_the_law_of_the_remasking_sampler(table, rule, block, steps):
    law = oracle.remasking_law(table.denoiser, Y, T, steps, rule, block)
    kw = {"rule": rule, "block": block, "steps": steps, "generator": gen(3)}
    ids = masked.remask(table.denoiser, blank(40_000, T), Y, **kw).ids_BT
    assert float(law.sum()) == pytest.approx(1, abs=1e-12)
    assert chi_squared(table, law, ids) > 0.01


def test_more_steps_come_nearer_and_confidence_does_not(table):
    away = [
        oracle.total_variation(oracle.ancestral_law(table.denoiser, Y, T, n), table.p)
        for n in (1, 2, 4, 8, 64)
    ]
    assert all(b < a for a, b in itertools.pairwise(away))
    assert away[-1] < 0.02
    product = torch.einsum("a,b,c,d->abcd", *[table.p.sum([j for j in range(T) if j != i]) for i in range(T)])
    assert (oracle.ancestral_law(table.denoiser, Y, T, 1) - product).abs().max() < 1e-14  # independent tokens
    sure = oracle.remasking_law(table.denoiser, Y, T, T, "low_confidence")
    assert oracle.total_variation(sure, table.p) > 0.3  # one token a step, and not a sampler of p


@pytest.mark.parametrize("steps", [1, 2, 8, 32])
def test_two_equal_tokens_disagree_once_in_two_T(steps):  # facts H5
    twin = oracle.Table(torch.eye(2))
    law = oracle.ancestral_law(twin.denoiser, 2, 2, steps)
    assert float(law[0, 1] + law[1, 0]) == pytest.approx(1 / (2 * steps), abs=1e-12)


@pytest.mark.parametrize("schedule", [LogLinear(), Cosine(), LogLinear(0.1)])
def test_the_cache_changes_nothing_but_the_number_of_evaluations(schedule):
    torch.manual_seed(0)
    net, steps = Denoiser(16, 2, 5, H=2).double(), 40
    kw = {"steps": steps, "schedule": schedule, "keep": True}
    slow, fast = (
        masked.ancestral(net, blank(6, 9), 5, cache=c, generator=gen(1), **kw) for c in (False, True)
    )
    assert torch.equal(slow.ids_BT, fast.ids_BT)
    assert all(torch.equal(a, b) for a, b in zip(slow.trajectory, fast.trajectory, strict=True))
    changed = sum((a != b).any(1).long() for a, b in itertools.pairwise(fast.trajectory))
    assert torch.equal(fast.nfe_B, changed)
    assert (fast.nfe_B <= 9).all()
    assert slow.nfe_B.tolist() == [steps] * 6
    assert slow.calls == steps
    assert fast.calls <= steps


def test_given_tokens_stay_and_shown_ones_never_change(table):
    given = torch.tensor([[OPEN, 2, OPEN, 0], [1, OPEN, OPEN, OPEN], [0, 1, 2, 0]])
    for sample in (
        masked.ancestral(table.denoiser, given, Y, steps=5, generator=gen(), keep=True),
        masked.remask(table.denoiser, given, Y, steps=4, block=2, generator=gen(), keep=True),
    ):
        assert (sample.ids_BT[given != OPEN] == given[given != OPEN]).all()
        assert sample.ids_BT.max() < Y
        assert len(sample.trajectory) in (5, 6)
        for a, b in itertools.pairwise(sample.trajectory):
            assert (a[a != Y] == b[a != Y]).all()
        assert sample.nfe_B[2] == 0
    assert blank(1, 3, torch.tensor([[7]])).tolist() == [[7, OPEN, OPEN]]


def test_an_infill_has_the_conditional_distribution(table):
    given = torch.tensor([[OPEN, 2, OPEN, 0]]).expand(20_000, T)
    ids = masked.remask(table.denoiser, given, Y, steps=2, rule="random", generator=gen(1)).ids_BT
    want = table.p[:, 2, :, 0] / table.p[:, 2, :, 0].sum()
    count = torch.bincount(ids[:, 0] * Y + ids[:, 2], minlength=Y * Y)
    assert stats.chisquare(count.numpy(), (want.flatten() * len(ids)).numpy()).pvalue > 0.01


def test_remasking_shares_tokens_out_and_fills_blocks_from_the_left():
    def even(ids):
        return torch.zeros(*ids.shape, 5)

    states = masked.remask(even, blank(2, 10), 5, steps=4, generator=gen(), keep=True).trajectory
    assert [(s == 5).sum(1).tolist() for s in states] == [[10, 10], [7, 7], [4, 4], [2, 2], [0, 0]]
    states = masked.remask(
        even, blank(1, 6), 5, steps=6, block=3, rule="random", generator=gen(), keep=True
    ).trajectory
    assert all((s[:, 3:] == 5).all() for s in states[:4])
    assert not (states[3][:, :3] == 5).any()
    sure = torch.zeros(5, 5)
    sure[3, 1] = 9.0  # place 3 is the only one that the network is sure of
    found = masked.remask(
        lambda ids: sure.expand(len(ids), 5, 5), blank(1, 5), 5, steps=5, generator=gen(), keep=True
    )
    assert found.trajectory[1].tolist() == [[5, 5, 5, 1, 5]]


def test_errors_name_the_argument(table):
    ids, net = table.ids_BT, table.denoiser
    for call, message in [
        (lambda: masked.nelbo(net, ids + 1, Y), "ids_BT: expected clean ids from 0 to Y-1=2"),
        (lambda: masked.nelbo(net, ids, Y, t_B=torch.rand(3)), "t_B: expected axes"),
        (lambda: masked.nelbo(net, ids, Y, fixed_BT=ids), "fixed_BT: expected bool"),
        (lambda: masked.exact_nelbo(net, torch.zeros(1, 13, dtype=torch.int64), Y), "T: 2\\^T patterns"),
        (lambda: masked.in_order(net, ids, Y, [0, 1, 1, 3]), "order_T: expected each of 0..3 once"),
        (lambda: masked.ancestral(net, ids, Y, steps=0), "steps: expected an integer of at least 1"),
        (lambda: masked.ancestral(net, ids + 1, Y, steps=2), "given_BT: expected ids from 0 to Y-1=2"),
        (lambda: masked.ancestral(net, ids.float(), Y, steps=2), "given_BT: expected int64"),
        (lambda: masked.ancestral(net, blank(1, T), Y, steps=2, temperature=-1), "temperature: expected"),
        (
            lambda: masked.remask(net, ids, Y, steps=2, rule="best"),
            "rule: expected one of 'low_confidence', 'random'",
        ),
        (lambda: masked.remask(net, blank(1, T), Y, steps=3, block=2), "steps: 2 blocks of 2 cannot share 3"),
        (lambda: masked.remask(net, blank(1, T), Y, steps=3, block=0), "block: expected None or a positive"),
        (lambda: blank(1, 2, torch.zeros(1, 3)), "prompt_BT: 3 tokens do not fit"),
        (lambda: times(-1), "B: expected a number of times"),
        (lambda: LogLinear(1.0), "eps: expected"),
        (lambda: Power(0), "power: expected"),
        (lambda: Geometric(2, 1), "low, high: expected"),
        (lambda: oracle.Table(torch.zeros(2, 3)), "p: expected weights"),
        (lambda: oracle.states(10, 9), "Y, T: at most 4096"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()


def test_the_denoiser_sees_both_ways_and_takes_what_it_was_built_for():
    torch.manual_seed(0)
    net = Denoiser(16, 2, 5, H=2).double()
    ids = torch.randint(6, (1, 7), generator=gen())
    moved = ids.clone()
    moved[0, 3] = (ids[0, 3] + 1) % 6
    assert ((net(ids) - net(moved)).abs().amax(-1) > 1e-9).all()
    assert net(ids).shape == (1, 7, 5)
    timed = Denoiser(16, 1, 5, H=2, conditioned=True)
    t = torch.tensor([0.1])
    assert not torch.equal(timed(ids, t), timed(ids, 2 * t))
    vector = Denoiser(16, 1, 5, H=2, R=3, conditioned=True)
    z = torch.randn(1, 7, 3)
    assert vector(z, t).shape == (1, 7, 5)
    assert torch.equal(vector(z, t), vector(z, t, torch.zeros_like(z)))
    assert not torch.equal(vector(z, t), vector(z, t, torch.ones_like(z)))
    for call, message in [
        (lambda: net(ids, t), "t_B: .* takes no time"),
        (lambda: timed(ids), "t_B: .* expects a time"),
        (lambda: net(ids, None, z), "guess_BTR: a denoiser of ids"),
        (lambda: vector(z[..., :2], t), "z_BTR: expected"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()


MUTANTS = [  # (what is broken, source before, after)
    ("weight of LLaDA's count", "return total_B / count_B.clamp(min=1) *", "return total_B / (count_B + 1) *"),
    ("masks counted from 0", "(t_B * total_B).ceil()", "(t_B * total_B).floor()"),
    ("all tokens in the loss", "return torch.where(hidden_BT, losses(logits_BTY, ids_BT), 0).sum(1)",
     "return losses(logits_BTY, ids_BT).sum(1)"),
    ("nothing is hidden", "denoiser(torch.where(hidden_BT, Y, ids_BT))", "denoiser(ids_BT)"),
    ("the weight is dropped", "return schedule.weight(t_B) * _masked", "return _masked"),
]  # fmt: skip


@pytest.mark.parametrize(("broken", "old", "new"), MUTANTS, ids=[m[0] for m in MUTANTS])
def test_a_broken_objective_is_seen(table, broken, old, new, monkeypatch):
    mutated = mutant(masked, old, new)

    def seen(module):
        for objective in (module.nelbo, module.nelbo_by_count):
            try:
                test_a_draw_is_unbiased(table, objective)
            except AssertionError:
                return True
        return False

    assert not seen(masked)
    assert seen(mutated)
