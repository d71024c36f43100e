"""A loss or a gradient that is not finite stops the run, names its step and its layer, and moves nothing."""

import math

import pytest
import torch
from tiny import SMALL, Tiny, batch, one_thread, same, weights
from torch import nn

from postx.train import NotFinite, train
from postx.train.loop import Loop

pytestmark = pytest.mark.usefixtures(one_thread.__name__)


class Faulty(nn.Module):
    """Identity until armed: then its output, or the gradient that it passes back, is not finite."""

    def __init__(self):
        super().__init__()
        self.mode = None

    def forward(self, x):
        if self.mode == "output":
            return x / 0
        if self.mode == "gradient":
            return x + (x.detach() - x).clamp(min=0).sqrt()  # 0, with the slope of a root at 0
        return x


@pytest.mark.parametrize(
    ("mode", "what"), [("output", "the output"), ("gradient", "the gradient of the input")]
)
def test_the_first_layer_that_is_not_finite_is_named(mode, what):
    model = Tiny(dropout=0.0)
    model.wide = nn.Sequential(nn.Linear(16, 32), Faulty(), nn.Linear(32, 32))
    reached = {}

    def arming(step):
        if step == 7:
            model.wide[1].mode = mode
            reached.update(weights(model))
        return batch(step)

    with pytest.raises(NotFinite, match=rf"step 7: {what} of 'wide.1' is not finite") as error:
        train(model, arming, SMALL)
    assert (error.value.step, error.value.layer) == (7, "wide.1")
    assert same(weights(model), reached)  # the step moved nothing


def test_the_innermost_layer_is_named():
    """The container and its first child read the same tensor."""
    model = Tiny(dropout=0.0)
    model.wide = nn.Sequential(Faulty(), nn.Linear(16, 32))
    model.wide[0].mode = "gradient"
    with pytest.raises(NotFinite, match="step 0: the gradient of the input of 'wide.0'"):
        train(model, batch, SMALL)


def test_a_parameters_own_gradient_is_named():
    model = Tiny(dropout=0.0)

    class Root(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.zeros(16))

        def forward(self, x):
            return x + self.scale.sqrt()

    model.drop = Root()
    with pytest.raises(NotFinite, match="step 0: the gradient of 'scale' of 'drop' is not finite"):
        train(model, batch, SMALL)


def test_nothing_asked_is_a_loss_that_is_not_finite():
    with pytest.raises(NotFinite, match="step 0: the value of 'loss' is not finite"):
        train(Tiny(), lambda step: (batch(0)[0], torch.full((8, 16), -100)), SMALL)


def poisoned(step, device="cpu"):
    """Token 31, which no other batch has, stands in the batch of step 7."""
    ids, targets = batch(step)
    ids[0, 5] = 31 if step == 7 else ids[0, 5]
    return ids.to(device), targets.to(device)


def poisonable():
    """A model that cannot read token 31."""
    model = Tiny(dropout=0.0)
    model.head = nn.Linear(16, 32, bias=False)
    with torch.no_grad():
        model.embed.weight[31] = math.inf
    return model


def test_a_fault_that_is_read_late_has_moved_nothing():
    """As on a GPU, where the loop runs on for a while before it looks."""
    model = poisonable()
    loop = Loop(model, SMALL)
    for step in range(11):
        if step == 7:
            reached, count = weights(model), [x["step"].clone() for x in loop.optimizer.state.values()]
        loop.run(step, *poisoned(step))
    assert same(weights(model), reached)
    assert [x["step"] for x in loop.optimizer.state.values()] == count
    assert math.isfinite(loop.report()["loss"])
    with pytest.raises(NotFinite, match="step 7: the output of 'embed' is not finite"):
        loop.hold(poisoned)
