"""Plaid against exact posteriors: the bound is the entropy and a stated gap, the samples have the right law."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import stats

from postx.diffusion import blank, plaid, times

WIDE = {"dtype": torch.float64}
POINTS = torch.tensor([[-1.2], [0.1], [0.9]], **WIDE)  # three tokens on a line
ONE = torch.tensor([0.5, 0.2, 0.3], **WIDE)
PAIR = torch.tensor(
    [[0.30, 0.02, 0.08], [0.05, 0.20, 0.05], [0.05, 0.05, 0.20]], **WIDE
)  # two dependent tokens


def process(points=POINTS, low=-3.0, high=6.0):
    schedule = plaid.Schedule(low, high)
    return plaid.Process(*points.shape, embedding_YR=points, unit=False, schedule=schedule).double()


def oracle(law, made, wrong=0.0):
    """log p(x_i = y | z of the other places) of a law over sequences; `wrong` is added to the first token's logit."""
    Y, T = law.shape[0], law.ndim

    def denoiser(z_BTR, t_B, guess_BTR):
        about = plaid.output_prior(z_BTR, made.gamma(t_B), made.embedding_YR())
        out = []
        for i in range(T):
            joint = law.log().expand(len(z_BTR), *law.shape)
            for j in range(T):
                if j != i:
                    joint = joint + about[:, j].view(-1, *[Y if k == j else 1 for k in range(T)])
            others = [k + 1 for k in range(T) if k != i]
            out.append(joint.logsumexp(others) if others else joint)
        logits = torch.stack(out, 1)
        return logits + wrong * torch.eye(Y, **WIDE)[0]

    return denoiser


def gauss(order, T):
    """Noises and weights whose sum is the mean over T independent standard normals (R = 1)."""
    at, weight = np.polynomial.hermite_e.hermegauss(order)
    weight = weight / weight.sum()
    grid = np.array(list(itertools.product(at, repeat=T)))
    weights = np.array([math.prod(w) for w in itertools.product(weight, repeat=T)])
    return torch.from_numpy(grid)[..., None], torch.from_numpy(weights)


def entropy(law):
    return float(-(law * law.log()).sum())


def exact_bound(law, made, denoiser, order=64, nodes=48):
    """The three terms by quadrature over x, the noise and the time."""
    T, Y = law.ndim, law.shape[0]
    noise, weight = gauss(order, T)
    t, t_weight = np.polynomial.legendre.leggauss(nodes)
    t, t_weight = torch.from_numpy(t + 1) / 2, torch.from_numpy(t_weight) / 2
    n, total = len(noise), torch.zeros(3, **WIDE)
    for x in itertools.product(range(Y), repeat=T):
        ids = torch.tensor(x).expand(n, T)
        with torch.no_grad():
            prior = plaid.prior_term(ids, made)[0]
            last = plaid.reconstruction_term(denoiser, ids, made, noise) @ weight
            middle = sum(
                w * (plaid.diffusion_term(denoiser, ids, made, at.expand(n), noise) @ weight)
                for at, w in zip(t, t_weight, strict=True)
            )
        total += law[x] * torch.stack([prior, middle, last])
    return total


def gap_at_one(law, made):
    """KL( q(z_1) || N(0, 1) ) of the true mixture, by quadrature of its own: what the prior term costs."""
    noise, weight = gauss(64, law.ndim)
    gamma, E = made.gamma(torch.ones(1, **WIDE)), made.embedding_YR()
    alpha, sigma = torch.sigmoid(-gamma).sqrt().item(), torch.sigmoid(gamma).sqrt().item()
    centers = {x: alpha * E[list(x)] for x in itertools.product(range(len(E)), repeat=law.ndim)}
    total = 0.0
    for x, center in centers.items():
        z = center + sigma * noise
        parts = [law[y].log() - ((z - c) / sigma).square().sum((1, 2)) / 2 for y, c in centers.items()]
        ratio = torch.stack(parts).logsumexp(0) - law.ndim * math.log(sigma) + z.square().sum((1, 2)) / 2
        total += float((law[x] * (ratio @ weight)).detach())
    return total


def gap_at_zero(law, made):
    """sum H(x_i | z_0) - H(x | z_0): what reading each place alone costs."""
    if law.ndim == 1:
        return 0.0
    noise, weight = gauss(64, law.ndim)
    gamma, E, total = made.gamma(torch.zeros(1, **WIDE)), made.embedding_YR(), 0.0
    for x in itertools.product(range(len(E)), repeat=2):
        z = made.noisy(torch.tensor(x).expand(len(noise), 2), torch.zeros(len(noise), **WIDE), noise)
        about = plaid.output_prior(z, gamma.expand(len(z)), E)
        joint = (
            (law.log() + about[:, 0, :, None] + about[:, 1, None, :]).flatten(1).log_softmax(1).view(-1, 3, 3)
        )
        lone = joint.logsumexp(2)[:, x[0]] + joint.logsumexp(1)[:, x[1]]
        total += float((law[x] * ((joint[:, x[0], x[1]] - lone) @ weight)).detach())
    return total


@pytest.mark.parametrize(("low", "high"), [(-3.0, 6.0), (-1.0, 2.0)])
def test_the_bound_of_an_exact_denoiser_is_the_entropy_and_the_price_of_the_prior(low, high):
    made = process(low=low, high=high)
    total = exact_bound(ONE, made, oracle(ONE, made), order=128).sum().item()
    assert total - gap_at_one(ONE, made) == pytest.approx(entropy(ONE), abs=1e-6)
    assert gap_at_one(ONE, made) > 1e-7


def test_two_dependent_tokens_also_pay_for_being_read_alone():
    made = process(low=-2.0, high=5.0)
    total = exact_bound(PAIR, made, oracle(PAIR, made), order=48, nodes=32).sum().item()
    gaps = gap_at_one(PAIR, made) + gap_at_zero(PAIR, made)
    assert total - gaps == pytest.approx(entropy(PAIR), abs=1e-6)
    assert gap_at_zero(PAIR, made) > 1e-5


def test_any_other_denoiser_pays_more():
    made = process()
    best = exact_bound(ONE, made, oracle(ONE, made)).sum().item()
    for wrong in (-0.5, 0.3):
        assert exact_bound(ONE, made, oracle(ONE, made, wrong)).sum().item() > best + 1e-3


def test_an_estimate_from_one_time_and_noise_a_sequence_has_the_bound_as_its_mean():
    made = process()
    want = exact_bound(ONE, made, oracle(ONE, made)).sum().item()
    random = torch.Generator().manual_seed(0)
    ids = torch.multinomial(ONE, 40_000, replacement=True, generator=random)[:, None]
    with torch.no_grad():
        got = plaid.bound(oracle(ONE, made), ids, made, generator=random).total_B
    assert got.mean().item() == pytest.approx(want, abs=4 * got.std().item() / 200)


@pytest.mark.parametrize("width", [0, 32])
def test_the_bound_does_not_depend_on_the_shape_of_the_schedule(width):
    torch.manual_seed(0)
    made = process()
    made.schedule = plaid.Schedule(-3.0, 6.0, width=width).double()
    total = exact_bound(ONE, made, oracle(ONE, made), order=128, nodes=96).sum().item()
    assert total - gap_at_one(ONE, made) == pytest.approx(entropy(ONE), abs=1e-6)
    t = torch.linspace(0, 1, 201, **WIDE)
    gamma, slope = made.schedule(t)
    assert gamma[[0, -1]].tolist() == pytest.approx([-3, 6])
    assert (gamma.diff() > 0).all()
    measured = (made.gamma(t + 1e-6) - made.gamma(t - 1e-6)) / 2e-6
    assert (measured - slope).abs().max() < 1e-5


def test_the_shape_of_the_schedule_is_taught_to_lower_the_square():
    torch.manual_seed(0)
    made = process()
    made.schedule = plaid.Schedule(-3.0, 6.0, width=8).double()
    ids, asked = torch.tensor([[0], [2], [1], [0]]), oracle(ONE, made)
    found = plaid.bound(asked, ids, made, generator=torch.Generator().manual_seed(3), self_condition=0.0)
    found.diffusion_B.sum().backward()
    got, ends = made.schedule.place.grad.clone(), made.schedule.ends.grad.clone()
    made.zero_grad()
    again = plaid.bound(asked, ids, made, generator=torch.Generator().manual_seed(3), self_condition=0.0)
    weights = 2 * again.diffusion_B.detach()
    random = torch.Generator().manual_seed(3)
    t = times(4, generator=random, dtype=torch.float64)
    torch.randperm(4, generator=random)
    noise = torch.randn(4, 1, 1, generator=random, **WIDE)
    plain = plaid.diffusion_term(asked, ids, made, t, noise)
    assert torch.equal(plain, again.diffusion_B)
    (want,) = torch.autograd.grad((plain * weights).sum(), made.schedule.place, retain_graph=True)
    assert (got - want).abs().max() < 1e-12
    assert (ends - torch.autograd.grad(plain.sum(), made.schedule.ends)[0]).abs().max() < 1e-12


def test_the_output_prior_is_bayes_rule():
    made = process(torch.randn(5, 3, generator=torch.Generator().manual_seed(0), **WIDE))
    t, z = (
        torch.tensor([0.2, 0.7], **WIDE),
        torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(1), **WIDE),
    )
    gamma, E = made.gamma(t), made.embedding_YR()
    center = torch.sigmoid(-gamma).sqrt()[:, None, None, None] * E
    normal = torch.distributions.Normal(center, torch.sigmoid(gamma).sqrt()[:, None, None, None])
    want = normal.log_prob(z[:, :, None]).sum(-1).log_softmax(-1)
    assert (plaid.output_prior(z, gamma, E).log_softmax(-1) - want).abs().max() < 1e-12


def test_self_conditioning_asks_twice_and_shows_the_first_guess():
    made, seen = process(), []

    def denoiser(z, t, guess):
        seen.append(guess)
        return ONE.log().expand(*z.shape[:2], 3) + (
            0 if guess is None else guess * torch.tensor([1.0, 0, 0], **WIDE)
        )

    ids, noise = torch.tensor([[0, 1], [2, 2]]), torch.zeros(2, 2, 1, **WIDE)
    mask, t = torch.tensor([True, False]), torch.tensor([0.3, 0.5], **WIDE)
    plaid.diffusion_term(denoiser, ids, made, t, noise, conditioned_B=mask).sum().backward()
    assert [guess is None for guess in seen] == [True, False]
    z = made.noisy(ids, t, noise)
    E = made.embedding_YR()
    want = (ONE.log() + plaid.output_prior(z, made.gamma(t), E)).softmax(-1) @ E
    assert torch.equal(seen[1][1], torch.zeros(2, 1, **WIDE))
    assert (seen[1][0] - want[0]).abs().max() < 1e-12
    assert not seen[1].requires_grad
    alone = (
        made.matrix.grad.clone()
    )  # only the second row teaches the embedding: that row alone gives the same
    made.zero_grad()
    plaid.diffusion_term(denoiser, ids[1:], made, t[1:], noise[1:]).sum().backward()
    assert (made.matrix.grad - alone).abs().max() < 1e-12


def law_of_one_step(made):
    """What `sample` must give with one step: noise, one move to z_0, one token; by quadrature over both noises."""
    at, weight = np.polynomial.hermite_e.hermegauss(80)
    weight = weight / weight.sum()
    g0, g1 = made.gamma(torch.tensor([0.0, 1.0], **WIDE)).tolist()
    E, p = POINTS[:, 0].numpy(), ONE.numpy()

    def posterior(z, gamma):
        a, s = math.sqrt(1 / (1 + math.exp(gamma))), math.sqrt(1 / (1 + math.exp(-gamma)))
        x = p * stats.norm.pdf(z[:, None], a * E, s)
        return x / x.sum(1, keepdims=True)

    a0, a1 = (math.sqrt(1 / (1 + math.exp(g))) for g in (g0, g1))
    c = 1 - math.exp(g0 - g1)
    mean = (1 - c) * a0 / a1 * at + c * a0 * (posterior(at, g1) @ E)
    width = math.sqrt(c * (1 - a0**2))
    return sum(w * weight @ posterior(mean + width * e, g0) for e, w in zip(at, weight, strict=True))


def same_law(ids, want):
    """The chance that counts as far off as these come from the law `want`."""
    seen = np.bincount(ids.flatten().numpy() if ids.shape[1] == 1 else (ids @ torch.tensor([3, 1])).numpy())
    want = np.asarray(want).flatten()
    return stats.chisquare(seen, want / want.sum() * len(ids)).pvalue


def drawn(law, made, given, seed=0, **how):
    return plaid.sample(oracle(law, made), given, made, generator=torch.Generator().manual_seed(seed), **how)


def test_one_step_has_the_law_of_one_step():
    made = process(low=-2.0, high=3.0)
    out = drawn(ONE, made, blank(60_000, 1), steps=1)
    assert out.calls == 2
    assert same_law(out.ids_BT, law_of_one_step(made)) > 1e-3
    assert same_law(out.ids_BT, ONE) < 1e-6  # and one step is not enough


def test_many_steps_have_the_law_of_the_data():
    made = process(high=7.0)
    out = drawn(PAIR, made, blank(12_000, 2), steps=150)
    assert out.nfe_B.tolist() == [151] * 12_000
    assert same_law(out.ids_BT, PAIR) > 1e-3
    product = PAIR.sum(1)[:, None] * PAIR.sum(0)
    assert same_law(out.ids_BT, product) < 1e-6


def test_a_fixed_token_stays_and_the_other_follows_it():
    made, given = process(), blank(4000, 2)
    given[:, 0] = 1
    out = drawn(PAIR, made, given, steps=100, keep=True)
    assert len(out.trajectory) == 101
    assert all((seen[:, 0] == 1).all() for seen in [*out.trajectory, out.ids_BT])
    assert same_law(out.ids_BT[:, 1:], PAIR[1]) > 1e-3
    assert same_law(out.ids_BT[:, 1:], PAIR.sum(0)) < 1e-6


def test_the_same_seed_gives_the_same_text_and_the_likeliest_reading_needs_no_luck():
    made = process()
    first, again, other = (drawn(PAIR, made, blank(40, 2), seed, steps=5) for seed in (0, 0, 1))
    assert torch.equal(first.ids_BT, again.ids_BT)
    assert not torch.equal(first.ids_BT, other.ids_BT)
    sure = drawn(PAIR, made, blank(40, 2), steps=5, temperature=0.0, keep=True)
    assert torch.equal(sure.ids_BT, sure.trajectory[-1])


def test_the_sampler_hands_on_the_guess_of_the_step_before():
    made, seen = process(), []

    def denoiser(z, t, guess):
        seen.append((z, t, guess))
        return torch.zeros(*z.shape[:2], 3, **WIDE)

    plaid.sample(denoiser, blank(2, 2), made, steps=3, generator=torch.Generator().manual_seed(0))
    assert seen[0][2] is None
    for (z, t, _), (_, _, guess) in itertools.pairwise(seen):
        E = made.embedding_YR()
        want = plaid.output_prior(z, made.gamma(t), E).softmax(-1) @ E
        assert (guess - want).abs().max() < 1e-12
    seen.clear()
    plaid.sample(denoiser, blank(2, 2), made, steps=2, self_condition=False)
    assert [guess for _, _, guess in seen] == [None] * 3


def test_a_small_network_learns_under_every_part():
    torch.manual_seed(0)
    made = plaid.Process(5, 4, schedule=plaid.Schedule(width=16))
    net = torch.nn.Sequential(torch.nn.Linear(9, 32), torch.nn.GELU(), torch.nn.Linear(32, 5))

    def denoiser(z, t, guess):
        guess = torch.zeros_like(z) if guess is None else guess
        return net(torch.cat([z, guess, t[:, None, None].expand(*z.shape[:2], 1)], -1))

    ids = torch.randint(0, 5, (16, 3))
    plaid.bound(denoiser, ids, made, self_condition=0.25).total_B.mean().backward()
    for name, weight in [*made.named_parameters(), *net.named_parameters()]:
        assert weight.grad is not None, name
        assert weight.grad.isfinite().all(), name
        assert weight.grad.abs().sum() > 0, name
    assert made.embedding_YR().norm(dim=1).tolist() == pytest.approx([1] * 5)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda m: plaid.sample(None, blank(1, 1), m, steps=0), "steps"),
        (lambda m: plaid.sample(None, blank(1, 1) + 4, m, steps=1), "given_BT"),
        (lambda m: plaid.bound(None, torch.zeros(1, 1).long(), m, self_condition=2.0), "self_condition"),
        (lambda m: plaid.bound(None, torch.full((1, 1), 3), m), "ids_BT"),
        (lambda m: plaid.Schedule(1.0, 1.0), "must rise"),
        (lambda m: m.noisy(torch.zeros(1, 2).long(), torch.zeros(1), torch.zeros(1, 3, 1)), "noise_BTR"),
    ],
)
def test_wrong_input_is_named(wrong, words):
    with pytest.raises(ValueError, match=words):
        wrong(process())
