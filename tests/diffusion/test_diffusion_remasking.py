"""Correctors: the share of each token's masks at every time, the sampler against its enumerated law, and its limits."""

import itertools

import pytest
import torch
from broken import mutant
from scipy import stats

from postx.diffusion import OPEN, Cosine, LogLinear, blank, masked, oracle, remasking
from postx.diffusion.remasking import Cap, Loop, Rescale, moves

Y, T = 3, 4
CORRECTORS = Cap(0.05), Cap(1.0), Rescale(0.3), Rescale(1.0), Loop(0.2), Loop(1.0, on=0.7, off=0.2, at=0.4)


@pytest.fixture(scope="module")
def table():
    return oracle.Table.random(Y, T)


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


def marginals_hold(module, corrector, schedule, steps):
    """Two tokens whose values are known: at every time each is a mask with the schedule's share, apart from the other.

    So the marginals q(z_s | x) are those that the network was trained on, whatever sigma: the paper's theorem 3.1.
    """
    x, states = torch.tensor([1, 0]), oracle.states(Y + 1, 2)
    known = torch.nn.functional.one_hot(x, Y).double().log().expand(len(states), 2, Y).softmax(-1)
    law = (states == Y).all(1).double()
    t = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
    shares = schedule.masked(corrector.clock(t))
    for (stay, hide), m in zip(module.moves(steps, schedule, corrector), shares[1:].tolist(), strict=True):
        assert 0 <= hide <= 1
        assert 0 <= stay <= 1
        law = oracle.step(law, masked.transition(known, states, stay, hide), states)
        want = torch.where(states == Y, m, (states == x).double() * (1 - m)).prod(1)
        assert (law - want).abs().max() < 1e-12


@pytest.mark.parametrize("schedule", [LogLinear(), Cosine()])
@pytest.mark.parametrize("corrector", CORRECTORS)
def test_each_token_is_hidden_as_often_as_in_training(corrector, schedule):
    for steps in (1, 2, 7, 40):
        marginals_hold(remasking, corrector, schedule, steps)


@pytest.mark.parametrize("corrector", CORRECTORS)
def test_independent_tokens_are_exact_in_any_number_of_steps(corrector):
    p = torch.tensor([0.5, 0.3, 0.2]).double()
    lone = oracle.Table(torch.einsum("a,b,c,d->abcd", p, p, p, p))
    for steps in (1, 3, 20):
        law = oracle.ancestral_law(lone.denoiser, Y, T, steps, corrector=corrector)
        assert oracle.total_variation(law, lone.p) < 1e-12


@pytest.mark.parametrize("corrector", [Cap(0.2), Rescale(0.7), Loop(0.3)])
def test_the_law_of_the_sampler(table, corrector):
    law = oracle.ancestral_law(table.denoiser, Y, T, 9, temperature=0.9, corrector=corrector).flatten()
    kw = {"steps": 9, "temperature": 0.9, "corrector": corrector, "generator": gen(2)}
    ids = masked.ancestral(table.denoiser, blank(40_000, T), Y, **kw).ids_BT
    count = torch.bincount((ids * Y ** torch.arange(T - 1, -1, -1)).sum(1), minlength=Y**T)
    assert (law * 40_000 > 5).all()  # so that no cell is pooled
    assert stats.chisquare(count.numpy(), law.numpy() * 40_000).pvalue > 0.01
    plain = oracle.ancestral_law(table.denoiser, Y, T, 9, temperature=0.9).flatten()
    assert oracle.total_variation(law, plain) > 0.02  # so that the test above can tell them apart


def test_with_a_perfect_network_the_law_tends_to_the_source(table):
    """With a number of renewals that does not grow with the steps; a share eta in every step costs more, and slows it.

    A token that is drawn again is drawn together with others, so a corrector repairs nothing in a perfect network.
    """
    def away(steps, corrector):
        law = oracle.ancestral_law(table.denoiser, Y, T, steps, corrector=corrector)
        return oracle.total_variation(law, table.p)

    few = [away(n, Cap(2 / n)) for n in (8, 32, 128)]
    assert few[1] < few[0] / 3
    assert few[2] < few[1] / 3
    assert few[2] < 0.02
    many = [away(n, Cap(0.3)) for n in (8, 32, 128)]
    assert many[0] > many[1] > many[2] > 3 * away(128, None)


def test_nothing_to_hide_is_the_sampler_without():
    net = oracle.Table.random(Y, T, seed=3).denoiser
    kw = {"steps": 6, "keep": True}
    one = masked.ancestral(net, blank(50, T), Y, generator=gen(1), **kw)
    for corrector in (Cap(0.0), Rescale(0.0)):
        other = masked.ancestral(net, blank(50, T), Y, corrector=corrector, generator=gen(1), **kw)
        assert all(torch.equal(a, b) for a, b in zip(one.trajectory, other.trajectory, strict=True))


def test_given_tokens_stay_and_shown_ones_may_change(table):
    given = torch.tensor([[OPEN, 2, OPEN, OPEN]]).expand(200, T)
    kw = {"steps": 30, "corrector": Cap(0.2), "keep": True}
    slow, fast = (masked.ancestral(table.denoiser, given, Y, cache=c, generator=gen(), **kw) for c in (False, True))
    assert torch.equal(slow.ids_BT, fast.ids_BT)
    assert slow.nfe_B.tolist() == [30] * 200
    assert fast.nfe_B.double().mean() > 3  # a row may be asked more often than it has tokens
    states = torch.stack(fast.trajectory)
    assert (states[:, :, 1] == 2).all()
    assert (states[-1] < Y).all()
    assert any(((a != Y) & (b == Y)).any() for a, b in itertools.pairwise(states))


def test_the_loop_stands_still_where_it_should():
    found = moves(20, LogLinear(), Loop(0.25, on=0.6, off=0.2, at=0.1))
    hides = [hide for _, hide in found]
    assert hides[:8] == [0.0] * 8
    assert hides[8:16] == pytest.approx([0.1 / 0.9] * 8)  # the most that nine tenths allow
    assert hides[16:] == [0.0] * 4
    assert [stay for stay, _ in found[8:16]] == pytest.approx([0.0] * 8, abs=1e-12)


def test_errors_name_the_argument():
    for call, message in [
        (lambda: Cap(1.2), "eta: expected a probability, got 1.2"),
        (lambda: Rescale(-0.1), "eta: expected"),
        (lambda: Loop(0.1, on=0.1, off=0.2), "on, off, at: expected 0 < off < on < 1"),
        (lambda: Loop(0.1, at=1.0), "on, off, at: expected"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()


MUTANTS = [  # (what is broken, source before, after)
    ("masks are not made up for", "(m_s - (1 - m_t) * hide) / m_t", "m_s / m_t"),
    ("too much is hidden", "min(1.0, m_s / (1 - m_t))", "min(1.0, m_t / (1 - m_t))"),
    ("hidden at the end", "return [*found, (0.0, 0.0)]", "return [*found, (0.0, hide if found else 0.0)]"),
]  # fmt: skip


@pytest.mark.parametrize(("broken", "old", "new"), MUTANTS, ids=[m[0] for m in MUTANTS])
def test_a_broken_corrector_is_seen(broken, old, new):
    module = mutant(remasking, old, new)
    with pytest.raises(AssertionError):
        marginals_hold(module, module.Cap(1.0), LogLinear(), 7)
