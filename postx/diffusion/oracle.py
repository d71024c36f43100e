"""Distributions small enough to enumerate: their perfect networks, and the exact law of what a sampler returns.

A `Table` holds p(x) of every sequence of T tokens out of Y. It answers as a perfect denoiser or score would, so an
objective can be held to the entropy, and a sampler to p itself: what is then left over is the method's own error.
"""

from itertools import product

import torch

from postx.diffusion import LogLinear, masked, probabilities, remasking, sedd

STATES = 4096  # states whose whole transition matrix is made


class Table:
    """p(x) for each of the Y^T sequences: Table(p) with one axis of size Y for each token, which is normalised.

    Raises ValueError for axes that differ in size, or weights that are negative or all zero.
    """

    def __init__(self, p):
        p = torch.as_tensor(p, dtype=torch.float64)
        if p.ndim == 0 or len(set(p.shape)) != 1 or not bool((p >= 0).all()) or not float(p.sum()) > 0:
            raise ValueError(
                f"p: expected weights >= 0 with T axes of one size Y, got shape {tuple(p.shape)}"
            )
        self.p, self.T, self.Y = p / p.sum(), p.ndim, p.shape[0]
        self.ids_BT = states(self.Y, self.T)

    @classmethod
    def random(cls, Y, T, seed=0, sharpness=1.5):
        """Weights exp(sharpness * normal): all sequences possible, some much likelier than others."""
        rng = torch.Generator().manual_seed(seed)
        return cls((sharpness * torch.randn([Y] * T, generator=rng, dtype=torch.float64)).exp())

    @property
    def p_B(self):
        """p of each row of ids_BT."""
        return self.p.flatten()

    @property
    def entropy(self):
        """- sum p log p, nats for a sequence."""
        return -float(torch.xlogy(self.p, self.p).sum())

    def denoiser(self, ids_BT):
        """log p(x_i = y | the tokens that are not masks), [B, T, Y]. What never happens together answers 0 for all."""
        fits = ((ids_BT[:, None] == self.ids_BT) | (ids_BT[:, None] == self.Y)).all(-1)
        weight = fits * self.p_B
        of_token = torch.nn.functional.one_hot(self.ids_BT, self.Y).double()
        joint = torch.einsum("bx,xty->bty", weight, of_token)
        return torch.where(
            joint.sum(-1, keepdim=True) > 0, joint.log() - joint.sum(-1, keepdim=True).log(), 0.0
        )

    def noised(self, sigma):
        """p after noise sigma on the uniform graph: each token keeps its value with e^-sigma, or is drawn anew."""
        keep = torch.exp(-torch.as_tensor(sigma, dtype=torch.float64))
        p = self.p
        for axis in range(self.T):
            p = keep * p + (1 - keep) * p.mean(axis, keepdim=True)
        return p

    def uniform_score(self, ids_BT, sigma_B):
        """The perfect log score on the uniform graph: log p_sigma(x with y at i) - log p_sigma(x), [B, T, Y]."""
        out = torch.empty(*ids_BT.shape, self.Y, dtype=torch.float64)
        for sigma in sigma_B.unique():
            rows, log_p = sigma_B == sigma, self.noised(sigma).log()
            for i in range(self.T):
                at = list(ids_BT[rows].T)
                at[i] = torch.arange(self.Y)[:, None]
                out[rows, i] = (log_p[tuple(at)] - log_p[tuple(ids_BT[rows].T)]).T
        return out

    def sample(self, n, generator=None):
        """n sequences drawn from p, [n, T]."""
        if n == 0:
            return self.ids_BT[:0]
        return self.ids_BT[torch.multinomial(self.p_B, n, replacement=True, generator=generator)]


def states(Y, T):
    """All sequences of T tokens out of Y in order, [Y^T, T]. Raises ValueError for more than 4096."""
    if Y**T > STATES:
        raise ValueError(f"Y, T: at most {STATES} sequences are enumerated, got {Y}^{T}")
    return torch.cartesian_prod(*[torch.arange(Y)] * T).view(-1, T)


def step(law_B, p_BTY, states_BT):
    """The law after one step in which, from each state, tokens move independently with probabilities p_BTY."""
    matrix = torch.ones(len(law_B), len(law_B), dtype=torch.float64)
    for i in range(states_BT.shape[1]):
        matrix *= p_BTY[:, i][:, states_BT[:, i]]
    return law_B @ matrix


def ancestral_law(denoiser, Y, T, steps, schedule=LogLinear(), temperature=1.0, corrector=None):  # noqa: B008
    """The exact distribution of `masked.ancestral`'s samples, a tensor with T axes of size Y."""
    all_BT = states(Y + 1, T)
    p = probabilities(denoiser(all_BT), temperature)
    law = (all_BT == Y).all(1).double()
    for stay, hide in remasking.moves(steps, schedule, corrector):
        law = step(law, masked.transition(p, all_BT, stay, hide), all_BT)
    return _clean(law, Y, T)


def remasking_law(denoiser, Y, T, steps, rule="low_confidence", block=None, temperature=1.0):
    """The exact distribution of `masked.remask`'s samples: every draw in every state, kept as the sampler keeps it."""
    all_BT = states(Y + 1, T)
    p, sure = probabilities(denoiser(all_BT), temperature), probabilities(denoiser(all_BT))
    blocks = -(-T // block) if block else 1
    if steps % blocks:
        raise ValueError(f"steps: {blocks} blocks of {block} cannot share {steps} steps evenly")
    place = (Y + 1) ** torch.arange(T - 1, -1, -1)
    law = (all_BT == Y).all(1).double()
    for i in range(steps):
        size, number = block or T, i // (steps // blocks)
        here = (torch.arange(T) // size) == number
        n = int(masked._share(here.sum()[None], steps // blocks, i % (steps // blocks)))
        after = torch.zeros_like(law)
        for x in law.nonzero()[:, 0].tolist():
            at = ((all_BT[x] == Y) & here).nonzero()[:, 0]
            k = len(at)
            if min(n, k) == 0:
                after[x] += law[x]
                continue
            draws = torch.tensor(list(product(range(Y), repeat=k)))
            chance = law[x] * p[x][at, draws].prod(1)
            if rule == "random":
                kept = torch.combinations(torch.arange(k), n)
                draws, chance = (
                    draws.repeat_interleave(len(kept), 0),
                    chance.repeat_interleave(len(kept)) / len(kept),
                )
                kept = kept.repeat(len(draws) // len(kept), 1)
            else:
                kept = (1 - sure[x][at, draws]).argsort(dim=1, stable=True)[:, :n]
            moved = (draws.gather(1, kept) - Y) * place[at[kept]]
            after.index_add_(0, x + moved.sum(1), chance)
        law = after
    return _clean(law, Y, T)


def sedd_law(score, graph, T, steps, schedule=None, predictor="analytic", end=1e-5):
    """The exact distribution of `sedd.sample`'s samples."""
    all_BT = states(graph.states, T)
    masks = (all_BT == graph.Y).all(1).double()
    law = (
        masks if graph.states > graph.Y else torch.full((len(all_BT),), 1 / len(all_BT), dtype=torch.float64)
    )
    for move in sedd.moves(graph, steps, schedule or graph.schedule, predictor, end):
        law = step(law, move(score, all_BT), all_BT)
    return _clean(law, graph.Y, T, graph.states)


def total_variation(p, q):
    """Half the sum of |p - q|: the largest difference in the probability of any event."""
    return float((p - q).abs().sum() / 2)


def _clean(law, Y, T, number=None):
    """The law of sequences without masks, as a table. Raises ValueError where masks remain."""
    whole = law.view([number or Y + 1] * T)
    clean = whole[(slice(Y),) * T]
    if abs(float(clean.sum()) - 1) > 1e-9:
        raise ValueError(f"law: masks remain with probability {1 - float(clean.sum()):.3g}")
    return clean
