"""Diffusion over tokens: one file for each way of adding noise, each with its objectives and its samplers.

    masked    tokens become masks, and come back (MDLM, LLaDA)
    remasking which shown tokens a sampler hides again (ReMDM's correctors)
    sedd      tokens jump between the states of a graph; a network learns ratios of probabilities (SEDD)
    plaid     tokens become vectors, and Gaussian noise is added to those (Plaid)
    oracle    distributions small enough to enumerate, whose perfect networks are known

The contract. A network is any callable, so an oracle or a table stands in for a trained one:

    denoiser(ids_BT) -> logits_BTY            masked: Y clean tokens; the mask is id Y, and never an answer
    score(ids_BT, sigma_B) -> log_score_BTY   sedd: log of p(y at i, the rest as it is) / p(as it is); own entry unread
    denoiser(z_BTR, t_B, guess_BTR) -> logits_BTY     plaid

Objectives return nats for each sequence, [B]: an upper bound on -log p of the whole sequence, whose expectation over
time and noise is the bound itself. What is in bits per byte says so. Time runs from 0 (text) to 1 (noise).

Samplers take `given_BT`: clean ids where a token is fixed (a prompt, or what stands around a gap) and OPEN where one
is to be made; `blank` writes one. They take a torch.Generator and a number of steps, and return a `Sample`: the ids,
how often the network was evaluated, and with keep=True every state on the way.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch

from postx.shapes import check

OPEN = -1  # in given_BT: a token that the sampler is to make


class Sample(NamedTuple):
    """What a sampler returns. NFE are counted for each row: a row that needs no answer in a step is not evaluated."""

    ids_BT: torch.Tensor
    nfe_B: torch.Tensor  # evaluations of the network for each row
    calls: int  # calls of the network, each for the rows that need it
    trajectory: list[torch.Tensor] | None = (
        None  # ids_BT before the first step and after each, with keep=True
    )


class Record:
    """Counts evaluations, and keeps the states where that is asked for."""

    def __init__(self, ids_BT, keep):
        self.nfe_B, self.calls = ids_BT.new_zeros(len(ids_BT)), 0
        self.states = [ids_BT] if keep else None

    def ask(self, denoiser, ids_BT, rows_B, Y, name="logits_BTY"):
        """The network's answer for those rows, [rows, T, Y]; None where no row needs one."""
        wanted = int(rows_B.sum())
        if not wanted:
            return None
        self.calls += 1
        self.nfe_B = self.nfe_B + rows_B
        asked_BT = ids_BT if wanted == len(ids_BT) else ids_BT[rows_B]
        with torch.no_grad():
            return check_answer(denoiser(asked_BT), asked_BT, Y, name)

    def keep(self, ids_BT):
        if self.states is not None:
            self.states.append(ids_BT)

    def done(self, ids_BT):
        return Sample(ids_BT, self.nfe_B, self.calls, self.states)


@dataclass(frozen=True)
class LogLinear:
    """A token keeps its value until time t with probability alpha = 1 - (1 - eps) t; sigma = -log alpha.

    sigma is the total noise, rate its slope in t, weight = rate / (e^sigma - 1) = -alpha' / (1 - alpha) the weight of
    a masked token's loss: here 1/t, for every eps. With eps = 0 all tokens are noise at t = 1, where sigma and rate
    are infinite. Sahoo et al. (2024), sec. 3; Lou et al. (2024), app. C.1, which has eps = 1e-3.
    """

    eps: float = 0.0

    def __post_init__(self):
        if not 0 <= self.eps < 1:
            raise ValueError(f"eps: expected a probability below 1, got {self.eps}")

    def sigma(self, t):
        return -torch.log1p(-(1 - self.eps) * t)

    def rate(self, t):
        return (1 - self.eps) / (1 - (1 - self.eps) * t)

    def masked(self, t):
        """1 - alpha: the probability that a token is noise by time t."""
        return (1 - self.eps) * t

    def weight(self, t):
        return 1 / t


@dataclass(frozen=True)
class Power:
    """1 - alpha = t^power: log-linear (eps = 0) on a clock of its own. A power above 1 stays longer with few masks."""

    power: float = 2.0

    def __post_init__(self):
        if not self.power > 0:
            raise ValueError(f"power: expected a number above 0, got {self.power}")

    def sigma(self, t):
        return -torch.log1p(-self.masked(t))

    def rate(self, t):
        return self.power * t ** (self.power - 1) / (1 - self.masked(t))

    def masked(self, t):
        return t**self.power

    def weight(self, t):
        return self.power / t


@dataclass(frozen=True)
class Cosine:
    """alpha = 1 - sin(pi t / 2): masks come fast at first, slowly in the end (the cosine of MaskGIT, 2022)."""

    def sigma(self, t):
        return -torch.log1p(-self.masked(t))

    def rate(self, t):
        return math.pi / 2 * torch.cos(math.pi / 2 * t) / (1 - self.masked(t))

    def masked(self, t):
        return torch.sin(math.pi / 2 * t)

    def weight(self, t):
        return math.pi / 2 / torch.tan(math.pi / 2 * t)


@dataclass(frozen=True)
class CosineAlpha:
    """alpha = eps + (1 - eps) cos(pi t / 2)^power: few masks at first, where `Cosine` has many.

    power 1 is `cosine`, power 2 `cosinesqr` of Sahoo et al. (2024), MDLM: noise_schedule.py of its authors' code, with
    its eps = 1e-3, so that sigma is finite at t = 1.
    """

    power: int = 1
    eps: float = 1e-3

    def __post_init__(self):
        if self.power not in (1, 2):
            raise ValueError(f"power: expected 1 (cosine) or 2 (squared cosine), got {self.power!r}")
        if not 0 <= self.eps < 1:
            raise ValueError(f"eps: expected a probability below 1, got {self.eps}")

    def sigma(self, t):
        return -torch.log1p(-self.masked(t))

    def rate(self, t):
        return self._slope(t) / (1 - self.masked(t))

    def masked(self, t):
        quarter = torch.sin(math.pi / 4 * t).square()  # 1 - cos x = 2 sin^2(x / 2): exact for small t
        return (1 - self.eps) * (2 * quarter if self.power == 1 else torch.sin(math.pi / 2 * t).square())

    def weight(self, t):
        return self._slope(t) / self.masked(t)

    def _slope(self, t):
        """-alpha'."""
        if self.power == 1:
            return (1 - self.eps) * math.pi / 2 * torch.sin(math.pi / 2 * t)
        return (1 - self.eps) * math.pi / 2 * torch.sin(math.pi * t)


@dataclass(frozen=True)
class Geometric:
    """sigma = low^(1-t) high^t: noise grows by equal factors. Lou et al. (2024), app. C.1, for the uniform graph.

    sigma(0) = low is not zero: an integral over t leaves out what happens below it (see `postx.diffusion.sedd`).
    """

    low: float = 1e-4
    high: float = 20.0

    def __post_init__(self):
        if not 0 < self.low < self.high:
            raise ValueError(f"low, high: expected 0 < low < high, got {self.low}, {self.high}")

    def sigma(self, t):
        return self.low ** (1 - t) * self.high**t

    def rate(self, t):
        return self.sigma(t) * math.log(self.high / self.low)

    def masked(self, t):
        return -torch.expm1(-self.sigma(t))

    def weight(self, t):
        return self.rate(t) / torch.expm1(self.sigma(t))


def times(B, *, generator=None, device=None, dtype=torch.float32):
    """B times in (0, 1), one in each of B equal stretches, all shifted by one uniform number; in order, [B].

    Each alone is uniform, so averages stay unbiased, but together they cover (0, 1) evenly: a batch's loss varies
    less. Kingma et al. (2021), app. I.1 (low-discrepancy sampler); Sahoo et al. (2024).
    """
    if B < 0:
        raise ValueError(f"B: expected a number of times, got {B}")
    shift = torch.rand((), generator=generator, device=device, dtype=dtype)
    t = (torch.arange(B, device=device, dtype=dtype) + shift) / max(1, B)
    return t.clamp(torch.finfo(dtype).tiny, 1 - torch.finfo(dtype).eps)


def blank(B, T, prompt_BT=None, device=None):
    """given_BT with nothing fixed, or with a prompt fixed in front; T counts the prompt."""
    given_BT = torch.full((B, T), OPEN, device=device)
    if prompt_BT is not None:
        P = check({"B": B}, prompt_BT=prompt_BT)["T"]
        if P > T:
            raise ValueError(f"prompt_BT: {P} tokens do not fit into T={T}")
        given_BT[:, :P] = prompt_BT
    return given_BT


def check_given(given_BT, Y, steps):
    """Hold a sampler's arguments: ids in 0..Y-1 or OPEN, at least one step. Returns open_BT."""
    check(given_BT=given_BT)
    if given_BT.dtype != torch.int64:
        raise ValueError(f"given_BT: expected int64, got {given_BT.dtype}")
    if given_BT.numel() and (int(given_BT.min()) < OPEN or int(given_BT.max()) >= Y):
        raise ValueError(f"given_BT: expected ids from 0 to Y-1={Y - 1}, or OPEN={OPEN}")
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise ValueError(f"steps: expected an integer of at least 1, got {steps!r}")
    return given_BT == OPEN


def check_ids(ids_BT, Y):
    """Hold clean ids to 0..Y-1 where they can be read without waiting for a GPU."""
    check(ids_BT=ids_BT)
    if ids_BT.device.type == "cpu" and ids_BT.numel() and not 0 <= int(ids_BT.min()) <= int(ids_BT.max()) < Y:
        raise ValueError(f"ids_BT: expected clean ids from 0 to Y-1={Y - 1}, got {int(ids_BT.max())}")


def check_answer(answer_BTY, ids_BT, Y, name="logits_BTY"):
    """Hold a network's answer to B, T and the Y clean tokens: a row for the mask is not read. Returns the answer."""
    check({"B": ids_BT.shape[0], "T": ids_BT.shape[1], "Y": Y}, **{name: answer_BTY})
    return answer_BTY


def pick(weight, u):
    """The entry of the last axis at which the running sum of the weights passes u times their sum; u in [0, 1).

    With u uniform this draws from weight / sum. In float64, so that no rare token is rounded away.
    """
    sums = weight.sum(-1)
    if not bool((sums.isfinite() & (sums > 0)).all()):
        raise ValueError("weight: the network's answer is not finite, or leaves nothing to draw")
    total = weight.double().cumsum(-1)
    at = (total <= u.double()[..., None] * total[..., -1:]).sum(-1)
    # A u just below 1 can be rounded to 1: then the last entry that has a weight.
    return torch.minimum(at, (total < total[..., -1:]).sum(-1))


def probabilities(logits, temperature=1.0):
    """softmax(logits / temperature) in float64; temperature 0 puts all on the likeliest token.

    Raises ValueError for logits that leave nothing to draw: a NaN, an infinity, or -infinity alone.
    """
    if temperature < 0 or not math.isfinite(temperature):
        raise ValueError(f"temperature: expected a finite number >= 0, got {temperature}")
    if logits.numel() and not bool((best := logits.amax(-1)).isfinite().all()):
        bad = int((~best.isfinite()).sum())
        raise ValueError(f"logits_BTY: {bad} of {best.numel()} places are not finite; the network's answer is broken")
    if temperature < 1e-12:  # nothing is left to the others, and the division would overflow
        return torch.nn.functional.one_hot(logits.argmax(-1), logits.shape[-1]).double()
    return (logits.double() / temperature).softmax(-1)
