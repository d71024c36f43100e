"""SEDD: the score entropy held to matrix exponentials, its bound to the entropy, its samplers to their exact law."""

import itertools
import math

import pytest
import torch
from broken import mutant
from scipy import stats

from postx.diffusion import OPEN, Cosine, LogLinear, blank, masked, oracle, sedd

Y, T = 3, 3
GRAPHS = [sedd.Absorbing(Y), sedd.Uniform(Y)]
NAMES = ["absorbing", "uniform"]


@pytest.fixture(scope="module")
def table():
    return oracle.Table.random(Y, T)


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


def score_of(table, graph):
    return table.uniform_score if graph.states == graph.Y else sedd.from_denoiser(table.denoiser, graph)


def rates(graph):
    """Q with Q[x, y] the rate from x to y, and exp(sigma Q), from the definition of each graph."""
    n = graph.states
    Q = torch.full((n, n), 1 / Y, dtype=torch.float64) if n == Y else torch.zeros(n, n, dtype=torch.float64)
    if n > Y:
        Q[:Y, Y] = 1
    Q -= torch.diag(Q.sum(1))
    return Q


@pytest.mark.parametrize("graph", GRAPHS, ids=NAMES)
def test_noise_is_the_matrix_exponential(graph):
    for sigma in (0.1, 1.0, 4.0):
        P = torch.linalg.matrix_exp(sigma * rates(graph))
        x, y = torch.meshgrid(torch.arange(Y), torch.arange(graph.states), indexing="ij")
        got = graph.log_chance(y.reshape(1, -1), x.reshape(1, -1), torch.tensor([sigma], dtype=torch.float64))
        assert torch.allclose(got.exp().view(Y, -1), P[:Y], atol=1e-14)
    n = 30_000
    ids = torch.arange(Y).expand(n, Y)
    noisy = graph.noise(ids, torch.full((n,), 1.0), gen(1))
    P = torch.linalg.matrix_exp(rates(graph))
    for x in range(Y):
        count = torch.bincount(noisy[:, x], minlength=graph.states)
        there = P[x] > 0
        assert not count[~there].any()
        assert stats.chisquare(count[there].numpy(), (n * P[x][there]).numpy()).pvalue > 1e-3


@pytest.mark.parametrize("graph", GRAPHS, ids=NAMES)
def test_score_entropy_is_its_definition(graph):
    """D = sum over y != x of Q(y -> x) (s - r log s + r (log r - 1)), with r from the matrix exponential."""
    Q, sigma = rates(graph), 0.7
    P = torch.linalg.matrix_exp(sigma * Q)
    log_s = torch.randn(1, 1, Y, generator=gen(1), dtype=torch.float64)
    for x0, x in itertools.product(range(Y), range(graph.states)):
        if P[x0, x] == 0:
            continue
        want = 0.0
        for y in range(Y):
            if y == x or Q[y, x] == 0:
                continue
            r, s = P[x0, y] / P[x0, x], log_s[0, 0, y].exp()
            want += Q[y, x] * (s - r * s.log() + (r * (r.log() - 1) if r > 0 else 0))
        at = torch.tensor([[x]]), torch.tensor([[x0]]), torch.tensor([sigma], dtype=torch.float64)
        assert float(graph.entropy(log_s, *at)) == pytest.approx(float(want), abs=1e-12)


@pytest.mark.parametrize("graph", GRAPHS, ids=NAMES)
def test_the_bound_of_the_true_score_is_the_entropy(table, graph):
    """Absorbing: the entropy. Uniform to a finite noise: and what the end still knows, KL(p_1 || uniform)."""
    top = math.inf if graph.states > Y else 2.0
    bound = sedd.exact_loss(score_of(table, graph), table.ids_BT, graph, top=top) + T * graph.terminal(top)
    left = 0.0
    if graph.states == Y:
        end = table.noised(top)
        left = float((end * (end * Y**T).log()).sum())
        assert left > 1e-3
    assert float((bound * table.p_B).sum()) == pytest.approx(table.entropy + left, abs=1e-9)


@pytest.mark.parametrize("graph", GRAPHS, ids=NAMES)
def test_a_wrong_score_pays_for_it(table, graph):
    true = score_of(table, graph)
    top = math.inf if graph.states > Y else 2.0
    right = sedd.exact_loss(true, table.ids_BT, graph, top=top)
    for move in (0.3, -0.3):
        wrong = sedd.exact_loss(lambda x, s, move=move: true(x, s) + move, table.ids_BT, graph, top=top)
        assert float(((wrong - right) * table.p_B).sum()) > 0.01


def test_absorbing_score_entropy_is_masked_diffusion(table):
    """Number by number: the same times and masks give the same loss, for a denoiser that is wrong."""
    graph = GRAPHS[0]

    def wrong(ids):
        return table.denoiser(ids).clamp(min=-3) * 0.7

    for schedule in (LogLinear(), LogLinear(1e-3), Cosine()):
        kw = {"schedule": schedule, "t_B": torch.rand(27, generator=gen(1), dtype=torch.float64)}
        a = masked.nelbo(wrong, table.ids_BT, Y, generator=gen(2), **kw)
        kw["t_B"] = kw["t_B"].clone()
        graph_noise = sedd.Absorbing(Y)
        graph_noise.noise = lambda ids, sigma, rng: torch.where(
            torch.rand(ids.shape, generator=rng) < -torch.expm1(-sigma)[:, None], Y, ids
        )
        b = sedd.loss(sedd.from_denoiser(wrong, graph), table.ids_BT, graph_noise, generator=gen(2), **kw)
        assert (a - b).abs().max() <= 1e-10 * float(a.abs().max())
    exact = sedd.exact_loss(sedd.from_denoiser(wrong, graph), table.ids_BT, graph)
    assert (exact - masked.exact_nelbo(wrong, table.ids_BT, Y)).abs().max() <= 1e-9


def test_a_denoiser_of_clean_tokens_gives_the_true_uniform_score(table):
    """p(x_i | the noise at the other places), put through `from_denoiser`, is the ratio of the noised probabilities."""
    graph = GRAPHS[1]
    of_token = torch.nn.functional.one_hot(table.ids_BT, Y).double()

    def others(ids, sigma_B):
        rows = [graph.log_chance(x.expand(27, T), table.ids_BT, sigma_B[:1]) for x in ids]
        chance = torch.stack(rows)
        rest = (chance.sum(-1, keepdim=True) - chance).exp() * table.p_B[:, None]
        return torch.einsum("bxt,xty->bty", rest, of_token).log()

    for sigma in (1e-3, 0.5, 3.0):
        sigma_B = torch.full((27,), sigma, dtype=torch.float64)
        got = sedd.from_denoiser(others, graph)(table.ids_BT, sigma_B)
        assert (got - table.uniform_score(table.ids_BT, sigma_B)).abs().max() <= 1e-9


@pytest.mark.parametrize("graph", GRAPHS, ids=NAMES)
def test_a_draw_of_the_loss_is_unbiased(table, graph):
    score, ids, n = score_of(table, graph), table.ids_BT[10:11], 20_000

    def flat(x, sigma):  # a score that is the same for every text
        return score(torch.zeros_like(x[:1]) + graph.states - 1, sigma[:1]).expand(len(x), T, Y) * 0 + 0.3

    class Narrow:  # sigma from 0.3 to 1.5, so that the variance is finite
        sigma = staticmethod(lambda t: 0.3 + 1.2 * t)
        rate = staticmethod(lambda t: 1.2 * torch.ones_like(t))

    t_B = torch.rand(n, generator=gen(3), dtype=torch.float64)
    draws = sedd.loss(flat, ids.expand(n, T), graph, schedule=Narrow, t_B=t_B, generator=gen(4))
    want = [float(sedd.exact_loss(flat, ids, graph, top=top, nodes=64, power=2)) for top in (1.5, 0.3)]
    assert float(draws.mean()) == pytest.approx(want[0] - want[1], abs=4 * float(draws.std()) / n**0.5)


def test_the_terminal_divergence():
    graph = GRAPHS[1]
    for sigma in (0.5, 2.0):
        P = torch.linalg.matrix_exp(sigma * rates(graph))[0]
        assert graph.terminal(sigma) == pytest.approx(float((P * (P * Y).log()).sum()), abs=1e-12)
    assert graph.terminal(40.0) == pytest.approx(0, abs=1e-12)
    assert GRAPHS[0].terminal(7.0) == math.inf
    assert GRAPHS[0].terminal(math.inf) == 0


def tweedie_is_ancestral(table, graph):
    all_BT = oracle.states(Y + 1, T)
    sigma = torch.tensor([1.3, 0.4], dtype=torch.float64)
    s = sedd.from_denoiser(table.denoiser, graph)(all_BT, sigma[:1].expand(len(all_BT))).exp()
    stay = float(torch.expm1(-sigma[1]) / torch.expm1(-sigma[0]))
    want = masked.transition(table.denoiser(all_BT).exp(), all_BT, stay)
    assert (graph.analytic(s, all_BT, sigma[0] - sigma[1]) - want).abs().max() <= 1e-12


def test_tweedies_step_on_masks_is_the_ancestral_one(table):
    tweedie_is_ancestral(table, GRAPHS[0])


@pytest.mark.parametrize("graph", GRAPHS, ids=NAMES)
def test_steps_of_one_token_are_exact(graph):
    """With one token there is nothing to be independent of: Tweedie's step is Bayes' rule, in any number of steps."""
    one = oracle.Table(torch.tensor([0.6, 0.3, 0.1]))
    score = one.uniform_score if graph.states == Y else sedd.from_denoiser(one.denoiser, graph)
    for steps in (1, 4):
        law = oracle.sedd_law(score, graph, 1, steps)
        assert oracle.total_variation(law, one.p) <= 1e-3 * (graph.states > Y) + 1e-6
    if graph.states == Y:
        assert oracle.total_variation(oracle.sedd_law(score, graph, 1, 4, predictor="euler"), one.p) > 1e-2


@pytest.mark.parametrize("predictor", sedd.PREDICTORS)
@pytest.mark.parametrize("graph", GRAPHS, ids=NAMES)
def test_samples_follow_the_law_and_more_steps_come_nearer(table, graph, predictor):
    score = score_of(table, graph)
    laws = [oracle.sedd_law(score, graph, T, n, predictor=predictor) for n in (2, 8, 40)]
    away = [oracle.total_variation(law, table.p) for law in laws]
    assert away[0] > away[1] > away[2]
    assert away[2] < 0.05
    law = laws[0].flatten()
    found = sedd.sample(score, blank(8_000, T), graph, steps=2, predictor=predictor, generator=gen(5))
    count = torch.bincount((found.ids_BT * Y ** torch.arange(T - 1, -1, -1)).sum(1), minlength=Y**T)
    assert stats.chisquare(count.numpy(), (law * 8_000).numpy()).pvalue > 0.01
    assert found.nfe_B.tolist() == [3] * 8_000
    assert found.calls == 3


@pytest.mark.parametrize("graph", GRAPHS, ids=NAMES)
def test_given_tokens_stay(table, graph):
    given = torch.tensor([[OPEN, 2, OPEN], [0, OPEN, OPEN]])
    found = sedd.sample(score_of(table, graph), given, graph, steps=4, generator=gen(), keep=True)
    assert len(found.trajectory) == 6
    assert all((x[given != OPEN] == given[given != OPEN]).all() for x in found.trajectory)
    assert found.ids_BT.max() < Y


def test_errors_name_the_argument(table):
    score, graph = table.uniform_score, GRAPHS[1]
    for call, message in [
        (lambda: sedd.loss(score, table.ids_BT + 1, graph), "ids_BT: expected clean ids"),
        (lambda: sedd.loss(score, table.ids_BT, graph, t_B=torch.rand(2)), "t_B: expected axes"),
        (
            lambda: sedd.sample(score, blank(1, T), graph, steps=2, predictor="best"),
            "predictor: expected one of",
        ),
        (
            lambda: sedd.sample(score, blank(1, T), GRAPHS[0], steps=2, schedule=LogLinear()),
            "schedule: sigma.1. must",
        ),
        (lambda: sedd.sample(score, blank(1, T), graph, steps=0), "steps: expected"),
        (lambda: sedd.exact_loss(score, torch.zeros(1, 9, dtype=torch.int64), graph), "at most 4096 noisy"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()


MUTANTS = [  # (what is broken, source before, after, test that must see it)
    ("own entry counted", "return torch.where(now, 0, D).sum(-1) / self.Y", "return D.sum(-1) / self.Y", 1),
    ("not divided by Y", "return torch.where(now, 0, D).sum(-1) / self.Y", "return torch.where(now, 0, D).sum(-1)", 1),
    ("ratio upside down", "log_r = torch.where(was, same, other) - torch.where(here, same, other)",
     "log_r = torch.where(here, same, other) - torch.where(was, same, other)", 1),
    ("score not carried back", " - torch.expm1(dsigma) * s.mean(-1, keepdim=True)", "", 1),
    ("no constant", "log_r.exp() * (log_r - 1 - said)", "log_r.exp() * (log_r - said)", 0),
    ("noise left in the step", "moved = s_BTY * torch.expm1(dsigma)", "moved = s_BTY * dsigma", 0),
]  # fmt: skip


@pytest.mark.parametrize(("broken", "old", "new", "at"), MUTANTS, ids=[m[0] for m in MUTANTS])
def test_a_broken_graph_is_seen(table, broken, old, new, at, monkeypatch):
    mutated = mutant(sedd, old, new)
    graph = (mutated.Absorbing, mutated.Uniform)[at](Y)

    def checks(graph):
        test_score_entropy_is_its_definition(graph)
        test_steps_of_one_token_are_exact(graph)
        if at == 0:
            tweedie_is_ancestral(table, graph)

    checks(GRAPHS[at])
    with pytest.raises(AssertionError):
        checks(graph)
