"""Correctors: how likely a step of `masked.ancestral` is to hide a shown token again, so that it can be drawn anew.

From t to s < t, with alpha = 1 - m the share that is shown:

    a shown token    becomes a mask with probability sigma
    a mask           stays one with probability (1 - alpha_s - alpha_t sigma) / (1 - alpha_t), else it is drawn

so that a token is shown with probability alpha_s at time s whatever sigma is. A network trained for masks is trained
for this: only the way back differs. Needed: 0 <= sigma <= most = min(1, (1 - alpha_s) / alpha_t); at the last step
most is 0, and nothing is hidden any more.

    Cap(eta)       sigma = min(eta, most)
    Rescale(eta)   sigma = eta most
    Loop(eta)      first to `at` without a corrector, then a while at that share of masks, then on: in the loop as
                   many tokens are hidden as are drawn, sigma = min(eta, most)

eta = 0 is the sampler without a corrector. Source: Wang, Schiff, Sahoo and Kuleshov (2025), ReMDM, arXiv 2503.00307,
sec. 3 and 4; their "conf", in which sigma depends on the network's confidence, is left out.
"""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Cap:
    """sigma = min(eta, most): at most a share eta of what is shown is hidden again in each step."""

    eta: float

    def __post_init__(self):
        if not 0 <= self.eta <= 1:
            raise ValueError(f"eta: expected a probability, got {self.eta}")

    def clock(self, t):
        """The schedule's time at time t of the sampler; both run from 1 to 0."""
        return t

    def sigma(self, m_t, m_s):
        """The probability that a shown token is hidden, in a step from a share m_t of masks to m_s."""
        return min(self.eta, most(m_t, m_s))


@dataclass(frozen=True)
class Rescale(Cap):
    """sigma = eta most: always the same share of what the marginals allow."""

    def sigma(self, m_t, m_s):
        return self.eta * most(m_t, m_s)


@dataclass(frozen=True)
class Loop(Cap):
    """Between times `on` and `off` the schedule's time stands still at `at`, and only there sigma is above 0.

    Defaults as published: from on = 0.55 to off = 0.05, with nine tenths shown. Raises ValueError for times out of
    order.
    """

    on: float = 0.55
    off: float = 0.05
    at: float = 0.1

    def __post_init__(self):
        super().__post_init__()
        if not (0 < self.off < self.on < 1 and 0 < self.at < 1):
            raise ValueError(f"on, off, at: expected 0 < off < on < 1 and 0 < at < 1, got {self}")

    def clock(self, t):
        before = 1 - (1 - t) / (1 - self.on) * (1 - self.at)
        return torch.where(t > self.on, before, (t / self.off).clamp(max=1) * self.at)

    def sigma(self, m_t, m_s):
        return min(self.eta, most(m_t, m_s)) if m_t == m_s else 0.0


def most(m_t, m_s):
    """The largest sigma for which the share of masks still becomes m_s."""
    return min(1.0, m_s / (1 - m_t)) if m_t < 1 else 1.0


def moves(steps, schedule, corrector=None):
    """[(stay, hide)] of the steps: the probabilities that a mask stays one, and that a shown token becomes one.

    Time is cut evenly from 1 to 0. The last pair is (0, 0), whatever the schedule: nothing stays masked.
    """
    t = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
    m = schedule.masked(t if corrector is None else corrector.clock(t)).tolist()
    found = []
    for m_t, m_s in zip(m[:-2], m[1:-1], strict=True):
        hide = corrector.sigma(m_t, m_s) if corrector else 0.0
        found.append((max(0.0, (m_s - (1 - m_t) * hide) / m_t), hide))
    return [*found, (0.0, 0.0)]
