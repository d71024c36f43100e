"""SEDD: tokens jump at random on a graph, and a network learns how much likelier each neighbour is.

Forward, each token alone, with total noise sigma:  Q = the graph's rates, p(x_sigma | x) = exp(sigma Q)
    Absorbing   stays with e^-sigma, else becomes the mask (id Y)
    Uniform     stays with e^-sigma, else is drawn anew from all Y tokens
The reverse rates from x to y (one token changed) are those of Q read backwards, times the ratio p(y) / p(x), which the
network estimates as s = exp(score). The loss is zero only for the true ratio, and can be had from the noise alone:

    D(x | x0) = sum over i and y != x_i of  Q(y -> x_i) (s_y - r_y log s_y + r_y (log r_y - 1)),   r = p(y|x0) / p(x|x0)
    -log p(x0) <= integral of sigma'(t) E[ D(x_t | x0) ] dt + KL(p(x_1 | x0) || the graph's limit)

(the integral from sigma = 0; a schedule that begins at sigma(0) > 0 leaves a piece out, see `loss`.) With the perfect
score the mean of the right side is the entropy plus KL(p_1 || limit). On the absorbing graph only masks have anything
to say, and with s = softmax / (e^sigma - 1) the loss is masked diffusion's: `from_denoiser`.

Source: Lou, Meng and Ermon (2024), Discrete Diffusion Modeling by Estimating the Ratios of the Data Distribution,
sec. 3 and 4, app. C; Ou et al. (2024) for the absorbing case.
"""

import math
from itertools import product

import torch
from torch.nn import functional

from postx import diffusion as door
from postx.diffusion import Geometric, LogLinear, Record, Sample, check_given, check_ids, pick, times
from postx.shapes import check, state_dtype

PREDICTORS = ("analytic", "euler")
MOST = 4096  # noisy sequences that are enumerated


class Absorbing:
    """Tokens become masks, each at rate 1, and stay masks. Its limit is all masks."""

    def __init__(self, Y):
        self.Y, self.states, self.schedule = Y, Y + 1, LogLinear(eps=1e-3)

    def noise(self, ids_BT, sigma_B, generator=None):
        """Noisy ids, each token alone."""
        u_BT = torch.rand(ids_BT.shape, generator=generator, device=ids_BT.device, dtype=sigma_B.dtype)
        return torch.where(u_BT < -torch.expm1(-sigma_B)[:, None], self.Y, ids_BT)

    def log_chance(self, noisy_BT, ids_BT, sigma_B):
        """log p(noisy | ids) for each token, [B, T]."""
        kept = torch.where(noisy_BT == ids_BT, -sigma_B[:, None], -torch.inf)
        return torch.where(noisy_BT == self.Y, torch.log(-torch.expm1(-sigma_B))[:, None], kept)

    def entropy(self, log_score_BTY, noisy_BT, ids_BT, sigma_B):
        """D of each token, [B, T]: only masks can have been something else before, with r = 1 / (e^sigma - 1)."""
        log_r = -torch.log(torch.expm1(sigma_B))[:, None]
        said = log_score_BTY.gather(-1, ids_BT[..., None])[..., 0]
        D = log_score_BTY.exp().sum(-1) + log_r.exp() * (log_r - 1 - said)
        return torch.where(noisy_BT == self.Y, D, 0)

    def limit(self, given_BT, generator=None):
        return torch.full_like(given_BT, self.Y)

    def terminal(self, sigma):
        """KL of one token's law after noise sigma from the limit, nats: infinite unless sigma is.

        Published bounds leave it out: with eps = 1e-3 a thousandth of the tokens is still readable at t = 1.
        """
        return 0.0 if math.isinf(sigma) else math.inf

    def analytic(self, s_BTY, noisy_BT, dsigma):
        """Tweedie's step: the probability of each state, [B, T, Y+1], after taking back noise dsigma."""
        moved = s_BTY * torch.expm1(dsigma)
        return self._from_masks(moved, noisy_BT)

    def euler(self, s_BTY, noisy_BT, dsigma):
        """Reverse rates times dsigma; the rest stays."""
        return self._from_masks(s_BTY * dsigma, noisy_BT)

    def _from_masks(self, moved, noisy_BT):
        stay = (1 - moved.sum(-1, keepdim=True)).clamp(min=0)
        shown = functional.one_hot(noisy_BT, self.states).to(moved.dtype)
        p = torch.where((noisy_BT == self.Y)[..., None], torch.cat([moved, stay], -1), shown)
        return p / p.sum(-1, keepdim=True)


class Uniform:
    """Tokens are drawn anew from all Y at rate 1: to each other token at rate 1 / Y. Its limit is uniform."""

    def __init__(self, Y):
        self.Y, self.states, self.schedule = Y, Y, Geometric()

    def noise(self, ids_BT, sigma_B, generator=None):
        """Noisy ids, each token alone."""
        u_BT = torch.rand(ids_BT.shape, generator=generator, device=ids_BT.device, dtype=sigma_B.dtype)
        drawn_BT = torch.randint(self.Y, ids_BT.shape, generator=generator, device=ids_BT.device)
        return torch.where(u_BT < -torch.expm1(-sigma_B)[:, None], drawn_BT, ids_BT)

    def log_chance(self, noisy_BT, ids_BT, sigma_B):
        """log p(noisy | ids) for each token, [B, T]."""
        other, same = self._log_chances(sigma_B)
        return torch.where(noisy_BT == ids_BT, same[:, None], other[:, None])

    def entropy(self, log_score_BTY, noisy_BT, ids_BT, sigma_B):
        """D of each token, [B, T], summed over its Y - 1 neighbours, each at rate 1 / Y."""
        other, same = (x[:, None, None] for x in self._log_chances(sigma_B))
        was = functional.one_hot(ids_BT, self.Y).bool()
        here = (noisy_BT == ids_BT)[..., None]
        log_r = torch.where(was, same, other) - torch.where(here, same, other)
        log_s = log_score_BTY
        D = log_s.exp() + log_r.exp() * (log_r - 1 - log_s)
        now = functional.one_hot(noisy_BT, self.Y).bool()
        return torch.where(now, 0, D).sum(-1) / self.Y

    def limit(self, given_BT, generator=None):
        return torch.randint(self.Y, given_BT.shape, generator=generator, device=given_BT.device)

    def terminal(self, sigma):
        """KL of one token's law after noise sigma from the limit, nats: what is still readable at t = 1."""
        other = -math.expm1(-sigma) / self.Y
        same = math.exp(-sigma) + other
        return same * math.log(same * self.Y) + (
            (self.Y - 1) * other * math.log(other * self.Y) if other else 0.0
        )

    def analytic(self, s_BTY, noisy_BT, dsigma):
        """Tweedie's step: (exp(-dsigma Q) s)_y times p(x_i | y) for noise dsigma, negative ones cut off, [B, T, Y]."""
        now = functional.one_hot(noisy_BT, self.Y).bool()
        s = torch.where(now, 1, s_BTY)
        before = (s * dsigma.exp() - torch.expm1(dsigma) * s.mean(-1, keepdim=True)).clamp(min=0)
        other = -torch.expm1(-dsigma) / self.Y
        p = before * torch.where(now, other + (-dsigma).exp(), other)
        return p / p.sum(-1, keepdim=True)

    def euler(self, s_BTY, noisy_BT, dsigma):
        """Reverse rates times dsigma; the rest stays."""
        now = functional.one_hot(noisy_BT, self.Y).bool()
        moved = torch.where(now, 0, s_BTY) * dsigma / self.Y
        p = torch.where(now, (1 - moved.sum(-1, keepdim=True)).clamp(min=0), moved)
        return p / p.sum(-1, keepdim=True)

    def _log_chances(self, sigma_B):
        """log p of one other token, and of the same, after noise sigma."""
        other = -torch.expm1(-sigma_B) / self.Y
        return other.log(), (torch.exp(-sigma_B) + other).log()


def loss(score, ids_BT, graph, *, schedule=None, t_B=None, fixed_BT=None, generator=None):
    """One draw of the integral, nats for each sequence: sigma'(t) times D of the noisy tokens. Lou et al., eq. 10.

    t_B: a time for each row in (0, 1); by default spread evenly over the batch. schedule: the graph's own by
    default (log-linear for masks, geometric for uniform noise). fixed_BT: tokens without noise, not counted.
    To the mean belong, for a bound on -log p: `graph.terminal(sigma(1))` for each token, and where sigma(0) > 0 the
    reconstruction -log p(x0 | x at sigma(0)). Raises ValueError for ids out of range or shapes that differ.
    """
    check_ids(ids_BT, graph.Y)
    schedule = schedule or graph.schedule
    if t_B is None:
        t_B = times(ids_BT.shape[0], generator=generator, device=ids_BT.device)
    check({"B": ids_BT.shape[0]}, t_B=t_B)
    sigma_B = schedule.sigma(t_B)
    noisy_BT = graph.noise(ids_BT, sigma_B, generator)
    if fixed_BT is not None:
        check({"B": ids_BT.shape[0], "T": ids_BT.shape[1]}, fixed_BT=fixed_BT)
        noisy_BT = torch.where(fixed_BT, ids_BT, noisy_BT)
    log_score = door.check_answer(score(noisy_BT, sigma_B), ids_BT, graph.Y, "log_score_BTY")
    D_BT = graph.entropy(log_score.to(state_dtype(log_score.dtype)), noisy_BT, ids_BT, sigma_B)
    if fixed_BT is not None:
        D_BT = torch.where(fixed_BT, 0, D_BT)
    return schedule.rate(t_B) * D_BT.sum(1)


def exact_loss(score, ids_BT, graph, *, top=math.inf, nodes=32, power=6):
    """The integral from sigma = 0 to `top` itself, nats per sequence, [B], over every noisy sequence.

    The integral does not depend on the schedule: it is taken by Gauss and Legendre over w in (0, 1), with the
    probability 1 - e^-sigma growing as w^power, which tames the logarithm at sigma = 0 of the uniform graph.
    Raises ValueError where there are more than 4096 noisy sequences.
    """
    check_ids(ids_BT, graph.Y)
    B, T = ids_BT.shape
    if graph.states**T > MOST:
        raise ValueError(f"ids_BT: at most {MOST} noisy sequences are enumerated, got {graph.states}^{T}")
    noisy = torch.tensor(list(product(range(graph.states), repeat=T)))
    most = -math.expm1(-top)
    total = torch.zeros(B, dtype=torch.float64)
    for w, weight in _gauss_legendre(nodes):
        m = most * w**power
        sigma = torch.full((len(noisy),), -math.log1p(-m), dtype=torch.float64)
        dsigma = most * power * w ** (power - 1) / (1 - m)
        log_score = door.check_answer(score(noisy, sigma), noisy, graph.Y, "log_score_BTY").double()
        for b in range(B):
            ids = ids_BT[b].expand_as(noisy)
            chance = graph.log_chance(noisy, ids, sigma).sum(1).exp()
            there = chance > 0
            D = graph.entropy(log_score[there], noisy[there], ids[there], sigma[there]).sum(1)
            total[b] += weight * dsigma * (chance[there] * D).sum()
    return total


def from_denoiser(denoiser, graph):
    """The score that belongs to a network which predicts clean tokens: ids_BT (and sigma_B, for Uniform) -> logits_BTY.

    Absorbing: log softmax - log(e^sigma - 1) for masks, exact. The loss is then `masked.nelbo`'s, number by number.
    Uniform: s_y = sum_v p(v) p(y | v) / sum_v p(v) p(x_i | v), where p(v) is the network's softmax for the clean
    token: what the other places say of it. What x_i itself says comes in by Bayes' rule, and need not be learned.
    SEDD lets the network say log s freely; this form can only say ratios that some clean token would have.
    """

    def absorbing(ids_BT, sigma_B):
        logits = denoiser(ids_BT)
        logits = logits.to(state_dtype(logits.dtype))
        return logits.log_softmax(-1) - torch.log(torch.expm1(sigma_B))[:, None, None]

    def uniform(ids_BT, sigma_B):
        logits = denoiser(ids_BT, sigma_B)
        p = logits.to(state_dtype(logits.dtype)).softmax(-1)
        other = -torch.expm1(-sigma_B)[:, None, None] / graph.Y
        log_p = torch.log(other + torch.exp(-sigma_B)[:, None, None] * p)  # of each noisy token
        return log_p - log_p.gather(-1, ids_BT[..., None])

    return absorbing if graph.states > graph.Y else uniform


def sample(
    score,
    given_BT,
    graph,
    *,
    steps,
    schedule=None,
    predictor="analytic",
    end=1e-5,
    generator=None,
    keep=False,
):
    """From noise to text in `steps` steps of equal time from 1 to `end`, and one more that takes back what is left.

    predictor "analytic" (Tweedie: the best step that treats tokens as independent) or "euler" (rates times the time);
    the last step is always analytic, and leaves no mask. Given tokens are put back after every step: exact for masks,
    an approximation on the uniform graph, where a prompt without noise is not what the network was trained on.
    Returns a `Sample` with steps + 1 evaluations for every row. Raises ValueError for an unknown predictor.
    Lou et al. (2024), sec. 4.
    """
    open_BT = check_given(given_BT, graph.Y, steps)
    schedule = schedule or graph.schedule
    ids = torch.where(open_BT, graph.limit(given_BT, generator), given_BT)
    every, record = torch.ones(len(ids), dtype=torch.bool, device=ids.device), Record(ids, keep)
    for move in moves(graph, steps, schedule, predictor, end):
        if len(ids) == 0:  # nobody to ask for
            record.keep(ids)
            continue
        p = move(
            lambda noisy, sigma_B: record.ask(lambda x: score(x, sigma_B), noisy, every, graph.Y, "log_score_BTY"),
            ids,
        )
        u_BT = torch.rand(ids.shape, generator=generator, device=ids.device, dtype=torch.float64)
        ids = ids.masked_scatter(open_BT, pick(p[open_BT], u_BT[open_BT]))
        record.keep(ids)
    return record.done(ids)


def moves(graph, steps, schedule, predictor="analytic", end=1e-5):
    """The steps of `sample`: a list of functions (score, ids_BT) -> probabilities of each token's next state."""
    if predictor not in PREDICTORS:
        raise ValueError(f"predictor: expected one of {', '.join(map(repr, PREDICTORS))}, got {predictor!r}")
    t = torch.linspace(1, end, steps + 1, dtype=torch.float64)
    sigma, rate = schedule.sigma(t), schedule.rate(t)
    if not bool(torch.isfinite(sigma).all()):
        raise ValueError(
            f"schedule: sigma(1) must be finite to start from, got {schedule}; LogLinear(eps=1e-3) is"
        )

    def move(i):
        def probabilities(score, ids_BT):
            sigma_B = sigma[i].to(ids_BT.device).expand(len(ids_BT))
            s = score(ids_BT, sigma_B).double().exp()
            if i == steps:
                p = graph.analytic(s, ids_BT, sigma_B[0])
                if graph.states > graph.Y:  # no masks remain
                    p = torch.cat([p[..., :-1], torch.zeros_like(p[..., :1])], -1)
                    p = p / p.sum(-1, keepdim=True)
                return p
            if predictor == "euler":
                return graph.euler(s, ids_BT, rate[i].to(s) * (t[i] - t[i + 1]).to(s))
            return graph.analytic(s, ids_BT, (sigma[i] - sigma[i + 1]).to(s))

        return probabilities

    return [move(i) for i in range(steps + 1)]


def _gauss_legendre(n):
    """Nodes and weights on (0, 1): eigenvalues of the Jacobi matrix (Golub and Welsch 1969)."""
    k = torch.arange(1, n, dtype=torch.float64)
    beta = k / (4 * k**2 - 1).sqrt()
    nodes, vectors = torch.linalg.eigh(torch.diag(beta, 1) + torch.diag(beta, -1))
    return list(zip(((nodes + 1) / 2).tolist(), vectors[0].square().tolist(), strict=True))


__all__ = ["Absorbing", "Sample", "Uniform", "exact_loss", "from_denoiser", "loss", "moves", "sample"]
