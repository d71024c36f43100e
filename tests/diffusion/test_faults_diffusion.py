"""Faults of the samplers and objectives of diffusion: broken networks, a row for the mask, empty batches, schedules."""

import math

import pytest
import torch

from postx.diffusion import OPEN, CosineAlpha, blank, masked, oracle, pick, plaid, probabilities, sedd
from postx.models.denoiser import Denoiser

Y = 5
IDS = torch.randint(0, Y, (2, 6), generator=torch.Generator().manual_seed(0))
GRAPHS = {"absorbing": sedd.Absorbing(Y), "uniform": sedd.Uniform(Y)}
GIVEN = blank(2, 6)


def answer(rows=Y, bad=None):
    """A network that says nothing, but for one bad number at the second place of every row."""

    def network(x, *_):
        logits = torch.zeros(*x.shape[:2], rows)
        if bad is not None:
            logits[:, 1, 2] = bad
        return logits

    return network


PROCESS = plaid.Process(Y, 3)
SAMPLERS = {
    "ancestral": lambda net, given: masked.ancestral(net, given, Y, steps=3),
    "remask": lambda net, given: masked.remask(net, given, Y, steps=3),
    "remask random": lambda net, given: masked.remask(net, given, Y, steps=3, rule="random"),
    "remask in blocks": lambda net, given: masked.remask(net, given, Y, steps=3, block=2),
    "greedy": lambda net, given: masked.ancestral(net, given, Y, steps=3, temperature=0),
    "absorbing": lambda net, given: sedd.sample(net, given, GRAPHS["absorbing"], steps=3),
    "uniform": lambda net, given: sedd.sample(net, given, GRAPHS["uniform"], steps=3),
    "euler": lambda net, given: sedd.sample(net, given, GRAPHS["uniform"], steps=3, predictor="euler"),
    "plaid": lambda net, given: plaid.sample(net, given, PROCESS, steps=3),
}
OBJECTIVES = {
    "nelbo": lambda net, ids: masked.nelbo(net, ids, Y),
    "by count": lambda net, ids: masked.nelbo_by_count(net, ids, Y),
    "exact": lambda net, ids: masked.exact_nelbo(net, ids, Y),
    "in order": lambda net, ids: masked.in_order(net, ids, Y, range(ids.shape[1])),
    "sedd": lambda net, ids: sedd.loss(net, ids, GRAPHS["absorbing"]),
    "sedd uniform": lambda net, ids: sedd.loss(net, ids, GRAPHS["uniform"]),
    "plaid": lambda net, ids: plaid.bound(net, ids, PROCESS).total_B,
}
every_sampler = pytest.mark.parametrize("sampler", SAMPLERS)
every_objective = pytest.mark.parametrize("objective", OBJECTIVES)


@every_sampler
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_broken_network_is_not_sampled(sampler, bad):
    with pytest.raises(ValueError, match="not finite"):
        SAMPLERS[sampler](answer(bad=bad), GIVEN)


@every_sampler
def test_what_a_sampler_returns_has_no_mask_and_keeps_what_was_given(sampler):
    given = GIVEN.clone()
    given[0, :2] = 3
    ids = SAMPLERS[sampler](answer(), given).ids_BT
    assert ((ids >= 0) & (ids < Y)).all()
    assert (ids[given != OPEN] == 3).all()


@pytest.mark.parametrize("rows", [1, Y - 1, Y + 1])
def test_an_answer_of_another_width_is_refused(rows):
    for run in SAMPLERS.values():
        with pytest.raises(ValueError, match=rf"_BTY: expected axes .* with Y={Y} .*got shape \(\d, 6, {rows}\)"):
            run(answer(rows), GIVEN)
    for run in OBJECTIVES.values():
        with pytest.raises(ValueError, match=rf"_BTY: expected axes .* with Y={Y}"):
            run(answer(rows), IDS)
    with pytest.raises(ValueError, match="log_score_BTY"):
        sedd.exact_loss(answer(rows), IDS[:, :2], GRAPHS["uniform"])


@every_sampler
def test_samplers_take_a_batch_without_rows_or_tokens(sampler):
    for B, T in ((0, 6), (2, 0), (0, 0)):
        assert SAMPLERS[sampler](answer(), blank(B, T)).ids_BT.shape == (B, T)


@every_objective
def test_objectives_take_a_batch_without_rows(objective):
    assert OBJECTIVES[objective](answer(), IDS[:0]).shape == (0,)
    assert oracle.Table.random(3, 2).sample(0).shape == (0, 2)


def test_a_draw_never_has_weight_zero():
    weight = torch.tensor([0.3, 0.7, 0.0])
    assert pick(weight, torch.tensor(1.0 - 2**-53, dtype=torch.float64)) == 1
    assert pick(weight, torch.tensor(1.0, dtype=torch.float64)) == 1
    with pytest.raises(ValueError, match="weight"):
        pick(torch.zeros(3), torch.tensor(0.5))


def test_a_tiny_temperature_is_greedy():
    logits = torch.tensor([[2000.0, 1999.0, -torch.inf]])
    for temperature in (0, 1e-320, 1e-44, 1e-13):
        assert probabilities(logits, temperature).tolist() == [[1.0, 0.0, 0.0]]


def test_a_denoiser_reads_its_own_ids_only():
    net = Denoiser(16, 1, Y)
    assert net(torch.full((1, 3), Y)).shape == (1, 3, Y)
    for bad in (Y + 1, -1):
        with pytest.raises(ValueError, match="ids_BT"):
            net(torch.full((1, 3), bad))


def test_a_denoiser_built_on_meta_and_loaded_is_the_denoiser():
    real = Denoiser(16, 1, Y, conditioned=True)
    assert not [key for key, _ in real.named_buffers() if key not in real.state_dict()]
    for assign in (False, True):
        with torch.device("meta"):
            shell = Denoiser(16, 1, Y, conditioned=True)
        shell = shell if assign else shell.to_empty(device="cpu")
        shell.load_state_dict(real.state_dict(), assign=assign)
        assert torch.equal(shell(IDS, torch.tensor([0.3, 2.0])), real(IDS, torch.tensor([0.3, 2.0])))


# The cosine schedules of masked diffusion, as its authors' noise_schedule.py has them.


@pytest.mark.parametrize("power", [1, 2])
def test_cosine_schedules_are_the_published_ones(power):
    schedule, eps = CosineAlpha(power), 1e-3
    for t in (0.01, 0.3, 0.5, 0.9, 1.0):
        alpha = eps + (1 - eps) * math.cos(math.pi * t / 2) ** power
        angle = math.pi * t / 2 if power == 1 else math.pi * t
        rate = math.pi / 2 * (1 - eps) * math.sin(angle) / ((1 - eps) * math.cos(math.pi * t / 2) ** power + eps)
        at = torch.tensor(t, dtype=torch.float64)
        assert float(schedule.sigma(at)) == pytest.approx(-math.log(alpha), rel=1e-12)
        assert float(schedule.rate(at)) == pytest.approx(rate, rel=1e-12)
        assert float(schedule.masked(at)) == pytest.approx(1 - alpha, rel=1e-12)
        assert float(schedule.weight(at)) == pytest.approx(rate * alpha / (1 - alpha), rel=1e-12)
    t = torch.linspace(0.01, 1, 50, dtype=torch.float64).requires_grad_()
    (slope,) = torch.autograd.grad(schedule.sigma(t).sum(), t)
    assert torch.allclose(slope, schedule.rate(t), rtol=1e-9)
    tiny = torch.tensor(1e-4)  # in float32 too: 1 - cos would be 0 there
    assert float(schedule.masked(tiny)) == pytest.approx(power * (math.pi / 2 * 1e-4) ** 2 / 2 * (1 - eps), rel=1e-3)


@pytest.mark.parametrize("power", [1, 2])
def test_the_bound_does_not_depend_on_the_schedule(power):
    """By quadrature over t: the cosine's integral is the exact bound of the same network, but for m(1) = 1 - eps."""
    table = oracle.Table.random(3, 2, seed=1)
    ids, schedule = table.ids_BT[:4], CosineAlpha(power, eps=0)
    total = torch.zeros(4, dtype=torch.float64)
    nodes, weights = sedd._gauss_legendre(60), []
    for t, weight in nodes:
        at = torch.tensor(t, dtype=torch.float64)
        m = float(schedule.masked(at))
        for hidden in ((True, True), (True, False), (False, True)):
            hide = torch.tensor(hidden).expand_as(ids)
            k = sum(hidden)
            loss = masked._masked_loss(table.denoiser, ids, hide, table.Y)
            total += weight * float(schedule.weight(at)) * m**k * (1 - m) ** (2 - k) * loss
        weights.append(weight)
    assert torch.allclose(total, masked.exact_nelbo(table.denoiser, ids, table.Y), rtol=1e-6)
    assert sum(weights) == pytest.approx(1)


@pytest.mark.parametrize("power", [1, 2])
def test_samplers_run_on_the_cosine_schedules(power):
    given, net = blank(3, 6), answer()
    assert (masked.ancestral(net, given, Y, steps=4, schedule=CosineAlpha(power)).ids_BT < Y).all()
    ids = sedd.sample(net, given, GRAPHS["absorbing"], steps=4, schedule=CosineAlpha(power)).ids_BT
    assert (ids < Y).all()
    with pytest.raises(ValueError, match="power: expected 1"):
        CosineAlpha(3)
