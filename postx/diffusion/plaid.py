"""Plaid: diffusion of text in a continuous space. Tokens become vectors, the vectors become noise.

    z_t = alpha E[x] + sigma noise      alpha^2 = sigmoid(-gamma), sigma^2 = sigmoid(gamma)      gamma = gamma(t)

gamma, the log of noise over signal, rises from gamma(0) to gamma(1). A network says which token stands at each
place, not which noise was added: its softmax averages the embeddings, and that average is the guess x_hat. The loss
is a bound on -log p(x), in nats a sequence, with three terms:

    prior             sum KL( N(alpha_1 E[x], sigma_1^2) || N(0, 1) )
    diffusion         integral over t of 1/2 exp(-gamma) gamma' |E[x] - x_hat(z_t, t)|^2
    reconstruction    -sum log p(x_i | z_0)

A denoiser is any `denoiser(z_BTR, t_B, guess_BTR or None) -> logits_BTY`; its logits get those of the output prior
added, `output_prior`, so that it need not learn what the noise at a place says of that place. With self-conditioning
it is asked twice: the second time it sees the guess of the first.

Gulrajani and Hashimoto 2023 (arXiv 2305.18619), on the variational diffusion of Kingma et al. 2021 (2107.00630).
Here both the reconstruction and the diffusion term are estimated for every sequence, where the authors split a batch
between them; the guess is not sharpened while sampling (their score temperature of 0.9).
"""

from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional

from postx.diffusion import Sample, check_answer, check_given, check_ids, pick, probabilities, times
from postx.shapes import check


class Schedule(nn.Module):
    """gamma(t), rising from `low` at t = 0 to `high` at t = 1: a straight line, or with width > 0 learned.

    The learned shape is a sum of `width` rising sigmoids (tanh of positive slope, positive weight), moved and scaled
    onto the ends; the ends are learned too. Raises ValueError unless low < high.
    """

    def __init__(self, low=-3.0, high=6.0, *, width=0):
        super().__init__()
        if not low < high:
            raise ValueError(f"low, high: gamma must rise, got {low} and {high}")
        self.ends = nn.Parameter(torch.tensor([float(low), float(high)]), requires_grad=width > 0)
        self.width = width
        if width:
            self.slope, self.place = nn.Parameter(torch.randn(width)), nn.Parameter(torch.randn(width))
            self.weight = nn.Parameter(torch.randn(width))

    def shape(self, t):
        """The part between the ends: 0 at t = 0, 1 at t = 1, never falling."""
        if not self.width:
            return t
        slope, weight = functional.softplus(self.slope), functional.softplus(self.weight)
        ends = torch.tensor([0.0, 1.0], dtype=t.dtype, device=t.device)
        at = torch.cat([t.flatten(), ends])
        rise = torch.tanh((at[:, None] - 0.5) * slope + self.place) @ weight
        return ((rise[:-2] - rise[-2]) / (rise[-1] - rise[-2])).view_as(t)

    def forward(self, t, hook=None):
        """gamma(t) and its derivative, both differentiable. `hook` sees the gradients that reach the shape."""
        rise, slope = t, torch.ones_like(t)
        if self.width:
            with torch.enable_grad():
                t = t.detach().clone().requires_grad_()
                rise = self.shape(t)
                (slope,) = torch.autograd.grad(rise.sum(), t, create_graph=True)
                for part in (rise, slope) if hook is not None else ():
                    if part.requires_grad:  # not in a batch without a row
                        part.register_hook(hook)
        low, high = self.ends.to(t.dtype)
        return low + (high - low) * rise, (high - low) * slope


class Process(nn.Module):
    """What turns tokens into noise: an embedding for each of Y tokens, R numbers wide, and a noise schedule.

    unit=True keeps every embedding at length 1, as Plaid does: otherwise a longer vector would be a way to less
    noise. Give `embedding_YR` to start from given vectors; unit=False uses them as they are.
    """

    def __init__(self, Y, R=16, *, schedule=None, embedding_YR=None, unit=True):
        super().__init__()
        start = torch.randn(Y, R) if embedding_YR is None else embedding_YR
        check({"Y": Y, "R": R}, embedding_YR=start)
        self.matrix, self.unit = nn.Parameter(functional.normalize(start) if unit else start.clone()), unit
        self.schedule = Schedule(width=256) if schedule is None else schedule

    def embedding_YR(self):
        """The vectors of the tokens."""
        return functional.normalize(self.matrix) if self.unit else self.matrix

    def gamma(self, t_B):
        """The log of noise over signal at the times t."""
        return self.schedule(t_B)[0]

    def noisy(self, ids_BT, t_B, noise_BTR):
        """z_t of these tokens: alpha E[x] + sigma noise."""
        check(ids_BT=ids_BT, t_B=t_B, noise_BTR=noise_BTR)
        return _mix(self.embedding_YR()[ids_BT], self.gamma(t_B), noise_BTR)


def output_prior(z_BTR, gamma_B, E):
    """log q(z_i | x_i = y) for every token y, without what is the same for all: logits_BTY. E is [Y, R] or [B, Y, R].

    (alpha / sigma^2) z.E[y] - (alpha^2 / sigma^2) |E[y]|^2 / 2. Added to log p(y | the other places) it gives the
    exact posterior, by Bayes' rule. Plaid's embeddings have one length, and its second part is constant.
    """
    snr = (-gamma_B).exp()[:, None, None]  # alpha^2 / sigma^2
    inverse = (snr * (1 + snr)).sqrt()  # alpha / sigma^2
    return inverse * z_BTR @ E.mT - snr * E.square().sum(-1)[..., None, :] / 2


class Bound(NamedTuple):
    """An upper bound on -log p(x) in nats, one for each sequence: the sum of its three terms."""

    prior_B: torch.Tensor
    diffusion_B: torch.Tensor
    reconstruction_B: torch.Tensor

    @property
    def total_B(self):
        return self.prior_B + self.diffusion_B + self.reconstruction_B


def prior_term(ids_BT, process, *, conditioned_B=False):
    """KL of q(z_1 | x) from a standard normal, in nats a sequence."""
    E_BYR, twice_B = _embedding(process, ids_BT, conditioned_B)
    gamma = process.gamma(torch.ones(len(ids_BT), dtype=E_BYR.dtype, device=E_BYR.device))
    gamma = torch.where(twice_B, gamma.detach(), gamma)[:, None, None]
    signal, noise = torch.sigmoid(-gamma), torch.sigmoid(gamma)
    return (signal * _take(E_BYR, ids_BT).square() + noise - 1 - functional.logsigmoid(gamma)).sum((1, 2)) / 2


def diffusion_term(denoiser, ids_BT, process, t_B, noise_BTR, *, conditioned_B=False, hook=None):
    """1/2 exp(-gamma) gamma' |E[x] - x_hat|^2 at the times t: its mean over t and noise is the diffusion term.

    conditioned_B: rows in which the denoiser is asked twice. As the first answer has no gradients there, the
    embedding and the schedule get none either from these rows.
    """
    check(ids_BT=ids_BT, t_B=t_B, noise_BTR=noise_BTR)
    E_BYR, twice_B = _embedding(process, ids_BT, conditioned_B)
    gamma_B, slope_B = (torch.where(twice_B, x.detach(), x) for x in process.schedule(t_B, hook))
    x_BTR = _take(E_BYR, ids_BT)
    logits_BTY = _answer(denoiser, _mix(x_BTR, gamma_B, noise_BTR), t_B, gamma_B, E_BYR, twice_B)
    missed_B = (x_BTR - logits_BTY.softmax(-1) @ E_BYR).square().sum((1, 2))
    return (-gamma_B).exp() * slope_B * missed_B / 2


def reconstruction_term(denoiser, ids_BT, process, noise_BTR, *, conditioned_B=False):
    """-log p(x | z_0), each place by its own softmax, in nats a sequence."""
    check(ids_BT=ids_BT, noise_BTR=noise_BTR)
    E_BYR, twice_B = _embedding(process, ids_BT, conditioned_B)
    t_B = torch.zeros(len(ids_BT), dtype=E_BYR.dtype, device=E_BYR.device)
    gamma_B = process.gamma(t_B)
    gamma_B = torch.where(twice_B, gamma_B.detach(), gamma_B)
    z_BTR = _mix(_take(E_BYR, ids_BT), gamma_B, noise_BTR)
    logits_BTY = _answer(denoiser, z_BTR, t_B, gamma_B, E_BYR, twice_B)
    return functional.cross_entropy(logits_BTY.transpose(1, 2), ids_BT, reduction="none").sum(1)


def bound(denoiser, ids_BT, process, *, generator=None, self_condition=1.0):
    """An unbiased estimate of the bound: one time and one noise a sequence. Returns `Bound`; minimize its total.

    self_condition: the share of rows in which the denoiser is asked twice: 1 to evaluate, Plaid trains with 1/4, and
    0 never gives it a guess. The times are spread evenly over the batch from one random start, which lowers the
    variance. The shape of a learned schedule changes no expectation; its gradients lower the variance of the
    diffusion term instead: they are those of its square (Kingma et al. 2021, sec. 5).
    """
    E = process.matrix
    check_ids(ids_BT, len(E))
    B, T = ids_BT.shape
    if not 0 <= self_condition <= 1:
        raise ValueError(f"self_condition: expected a share from 0 to 1, got {self_condition}")
    draw = {"generator": generator, "dtype": E.dtype, "device": E.device}
    t_B = times(B, **draw)
    order = torch.randperm(B, generator=generator, device=E.device)
    twice = order < round(self_condition * B)
    noise, noise_0 = (torch.randn(B, T, E.shape[1], **draw) for _ in range(2))
    seen = []
    hook = lambda gradient: gradient * 2 * seen[0].to(gradient.dtype)  # noqa: E731
    diffusion_B = diffusion_term(denoiser, ids_BT, process, t_B, noise, conditioned_B=twice, hook=hook)
    seen.append(diffusion_B.detach())
    return Bound(
        prior_term(ids_BT, process, conditioned_B=twice), diffusion_B,
        reconstruction_term(denoiser, ids_BT, process, noise_0, conditioned_B=twice),
    )  # fmt: skip


@torch.no_grad()
def sample(
    denoiser, given_BT, process, *, steps=64, self_condition=True, temperature=1.0, generator=None, keep=False
):
    """Draw the open tokens of given_BT: from noise at t = 1 in `steps` equal steps to t = 0. steps + 1 evaluations.

    A step from t to s draws z_s from q(z_s | z_t, x) with the guess x_hat in the place of x (Kingma et al. 2021,
    eq. 33). The last call reads the tokens off z_0, at `temperature`. Self-conditioning passes on the guess of the
    step before, as Plaid does.

    The z of fixed tokens follows its own noising, and the other places are steered by the gradient of
    sum log p(x_i | z) over the fixed i: a backward pass a call, as Plaid's are. With one fixed token that is the
    exact conditional; with more it takes them for independent given z. Returns a `Sample`, whose trajectory holds
    the likeliest tokens at each call. Raises ValueError for ids out of range or steps < 1.
    """
    E = process.embedding_YR()
    open_BT = check_given(given_BT, len(E), steps)
    (B, T), steered = given_BT.shape, not bool(open_BT.all())
    fixed_BT, here, known = ~open_BT, ~open_BT[..., None], E[given_BT.clamp(min=0)]
    like = {"dtype": E.dtype, "device": E.device}
    at = torch.linspace(1, 0, steps + 1, **like)
    gammas, guess, seen = process.gamma(at), None, []

    def noise():
        return torch.randn(B, T, E.shape[1], generator=generator, **like)

    def ask(i, z):
        logits = check_answer(denoiser(z, at[i].expand(B), guess), given_BT, len(E))
        logits = logits + output_prior(z, gammas[i].expand(B), E)
        if keep:
            seen.append(torch.where(open_BT, logits.argmax(-1), given_BT))
        return logits

    z = noise()
    z = torch.where(here, _mix(known, gammas[:1], z), z)
    for i in range(steps):
        alpha_t, alpha_s = torch.sigmoid(-gammas[i : i + 2]).sqrt()
        with torch.set_grad_enabled(steered):
            z = z.requires_grad_(steered)
            logits = ask(i, z)
            x_hat = new = (logits.softmax(-1) @ E).detach()
            if steered:
                told = logits.log_softmax(-1).gather(-1, given_BT.clamp(min=0)[..., None])[fixed_BT].sum()
                (pull,) = torch.autograd.grad(told, z)
                x_hat = torch.where(here, known, new + torch.sigmoid(gammas[i]) / alpha_t * pull)
        guess = new if self_condition else None
        c = -torch.expm1(gammas[i + 1] - gammas[i])
        mean = (1 - c) * (alpha_s / alpha_t) * z.detach() + c * alpha_s * x_hat
        z = mean + (c * torch.sigmoid(gammas[i + 1])).sqrt() * noise()
    u_BT = torch.rand(B, T, generator=generator, device=E.device, dtype=torch.float64)
    ids = torch.where(open_BT, pick(probabilities(ask(steps, z), temperature), u_BT), given_BT)
    return Sample(ids, torch.full((B,), steps + 1, device=E.device), steps + 1, seen if keep else None)


def _mix(x_BTR, gamma_B, noise_BTR):
    signal, noise = torch.sigmoid(-gamma_B).sqrt(), torch.sigmoid(gamma_B).sqrt()
    return signal[:, None, None] * x_BTR + noise[:, None, None] * noise_BTR


def _embedding(process, ids_BT, conditioned_B):
    """The embedding for each row, held where the denoiser is asked twice, and the mask of those rows."""
    B, E = len(ids_BT), process.embedding_YR()
    if isinstance(conditioned_B, bool):
        twice_B = torch.full((B,), conditioned_B, device=E.device)
    else:
        check({"B": B}, conditioned_B=conditioned_B)
        twice_B = conditioned_B
    return torch.where(twice_B[:, None, None], E.detach(), E), twice_B


def _take(E_BYR, ids_BT):
    return E_BYR[torch.arange(len(ids_BT), device=ids_BT.device)[:, None], ids_BT]


def _answer(denoiser, z_BTR, t_B, gamma_B, E_BYR, twice_B):
    """Logits with the output prior; where told to, the denoiser is asked again with its own guess."""
    prior_BTY, guess_BTR = output_prior(z_BTR, gamma_B, E_BYR), None
    if twice_B.any():
        with torch.no_grad():
            first = (check_answer(denoiser(z_BTR, t_B, None), z_BTR, E_BYR.shape[1]) + prior_BTY).softmax(-1)
            guess_BTR = torch.where(twice_B[:, None, None], first @ E_BYR, 0)
    return check_answer(denoiser(z_BTR, t_B, guess_BTR), z_BTR, E_BYR.shape[1]) + prior_BTY
