"""Masked diffusion: noise turns tokens into masks, and a network that sees the rest says what they were.

Forward, each token alone:  x_t = mask with probability m(t), else x, where m runs from 0 to 1.
Backward, from t to s < t:  a mask stays with probability m(s) / m(t), else it becomes a draw from softmax(logits);
what is shown never changes.

    -log p(x) <= integral of  m'(t) / m(t)  E[ sum over masked i of -log softmax(logits_i)[x_i] ]  dt

Substituting m for t removes the schedule: the bound does not depend on it, the variance of its estimate does. The
integral over m is a beta integral, B(k, T-k+1) for k masks. So the bound is also the mean, over all orders, of
autoregression in that order: masked diffusion is any-order autoregression whose orders are drawn uniformly.

Source: Sahoo et al. (2024), MDLM, sec. 3; Shi et al. (2024), MD4; Ou et al. (2024) for the orders; Nie et al. (2025),
LLaDA, sec. 2 and app. A-B. The network takes no time: its perfect answer depends only on what is shown.
"""

import math
from itertools import product

import torch
from torch.nn import functional

from postx.diffusion import (
    LogLinear,
    Record,
    check_answer,
    check_given,
    check_ids,
    pick,
    probabilities,
    times,
)
from postx.diffusion.remasking import moves
from postx.shapes import check, state_dtype

RULES = ("low_confidence", "random")
MOST = 12  # tokens whose 2^T patterns of masks are enumerated


def losses(logits_BTY, ids_BT):
    """-log softmax(logits)[ids] in nats, [B, T], in at least float32."""
    logits = logits_BTY.flatten(0, -2).to(state_dtype(logits_BTY.dtype))
    return functional.cross_entropy(logits, ids_BT.flatten(), reduction="none").view(ids_BT.shape)


def nelbo(denoiser, ids_BT, Y, *, schedule=LogLinear(), t_B=None, fixed_BT=None, generator=None):  # noqa: B008
    """One draw of MDLM's bound, nats for each sequence: the loss of the masked tokens times m'(t) / m(t).

    t_B: a time for each row in (0, 1); by default `times`, spread evenly over the batch. fixed_BT: True where a token
    is always shown and not counted; the bound is then on -log p(the others | them). With the log-linear schedule this
    is LLaDA's pre-training loss (1/t; their eps = 1e-3 keeps t away from 0) times T. A schedule that ends at
    m(1) = 1 - eps leaves out the integral from there to 1, eps T log Y or so. The mean is right, the variance has no
    bound: at a small t a single mask, with probability T t, weighs 1/t. `nelbo_by_count` has no such tail.
    Raises ValueError for ids outside of 0..Y-1 or shapes that differ.
    """
    check_ids(ids_BT, Y)
    B = ids_BT.shape[0]
    if t_B is None:
        t_B = times(B, generator=generator, device=ids_BT.device)
    check({"B": B}, t_B=t_B)
    u_BT = torch.rand(ids_BT.shape, generator=generator, device=ids_BT.device, dtype=torch.float32)
    hidden_BT = _open(ids_BT, fixed_BT) & (u_BT < schedule.masked(t_B)[:, None])
    return schedule.weight(t_B) * _masked_loss(denoiser, ids_BT, hidden_BT, Y)


def nelbo_by_count(denoiser, ids_BT, Y, *, t_B=None, fixed_BT=None, generator=None):
    """The same bound from a uniform number of masks: T/k times the loss of k tokens, k = 1..T. Nats per sequence, [B].

    k = ceil(t T). All rows hide at least one token, and no number of masks is drawn twice as often as it should:
    the expectation is `nelbo`'s, the variance lower. Nie et al. (2025), eq. 6 (used there to measure likelihoods).
    Rows without an open token give 0.
    """
    check_ids(ids_BT, Y)
    if t_B is None:
        t_B = times(ids_BT.shape[0], generator=generator, device=ids_BT.device)
    check({"B": ids_BT.shape[0]}, t_B=t_B)
    open_BT = _open(ids_BT, fixed_BT)
    total_B = open_BT.sum(1)
    count_B = torch.minimum((t_B * total_B).ceil().long().clamp(min=1), total_B)
    u_BT = torch.rand(ids_BT.shape, generator=generator, device=ids_BT.device, dtype=torch.float32)
    hidden_BT = _first(u_BT, open_BT, count_B)
    return total_B / count_B.clamp(min=1) * _masked_loss(denoiser, ids_BT, hidden_BT, Y)


def exact_nelbo(denoiser, ids_BT, Y):
    """The bound itself, nats per sequence, [B]: every pattern of masks, each with its beta integral. 2^T calls' work.

    A pattern with k masks has weight (k-1)! (T-k)! / T!. Raises ValueError for T > 12.
    """
    check_ids(ids_BT, Y)
    T = ids_BT.shape[1]
    if T > MOST:
        raise ValueError(f"T: 2^T patterns are enumerated, expected at most {MOST} tokens, got {T}")
    total = 0
    for pattern in list(product((False, True), repeat=T))[1:]:
        k = sum(pattern)
        weight = math.factorial(k - 1) * math.factorial(T - k) / math.factorial(T)
        hidden = torch.tensor(pattern, device=ids_BT.device).expand_as(ids_BT)
        total = total + weight * _masked_loss(denoiser, ids_BT, hidden, Y)
    return total


def in_order(denoiser, ids_BT, Y, order_T):
    """-log p of each sequence, nats [B], when tokens are shown one at a time: first order_T[0], then order_T[1], ...

    This is a likelihood, not a bound, of the model that generates in this order; T calls. Averaged over uniform
    orders it is `exact_nelbo`. Raises ValueError where order_T is no order of the T tokens.
    """
    check_ids(ids_BT, Y)
    if sorted(int(i) for i in order_T) != list(range(ids_BT.shape[1])):
        raise ValueError(f"order_T: expected each of 0..{ids_BT.shape[1] - 1} once, got {list(order_T)}")
    seen, total = torch.full_like(ids_BT, Y), 0
    for i in order_T:
        logits = check_answer(denoiser(seen), seen, Y)
        total = total + losses(logits[:, i : i + 1], ids_BT[:, i : i + 1])[:, 0]
        seen[:, i] = ids_BT[:, i]
    return total


def transition(p_BTY, ids_BT, stay, hide=0.0):
    """One backward step as probabilities of each next state, [B, T, Y+1], mask last.

    stay, hide: the probabilities that a mask stays one and that a shown token becomes one (`remasking.moves`).
    """
    Y = p_BTY.shape[-1]
    shown = (1 - hide) * functional.one_hot(ids_BT, Y + 1).to(p_BTY.dtype)
    shown[..., Y] += hide
    step = torch.cat([(1 - stay) * p_BTY, torch.full_like(p_BTY[..., :1], stay)], -1)
    return torch.where((ids_BT == Y)[..., None], step, shown)


def ancestral(
    denoiser, given_BT, Y, *, steps, schedule=LogLinear(), corrector=None, temperature=1.0, cache=True,  # noqa: B008
    generator=None, keep=False,
):  # fmt: skip
    """MDLM's sampler: in each step every mask is shown with probability 1 - m(s)/m(t), as a draw of its own.

    corrector: one of `postx.diffusion.remasking`; a step then also hides what earlier ones have shown (ReMDM). Given
    tokens stay. None, or eta = 0: what is shown never changes.

    Tokens shown in one step do not see each other: the fewer steps, the further the samples are from the network's
    distribution, however good the network. cache=True evaluates a row only in steps that show one of its tokens; the
    samples are the same. (MDLM's cache asks again after every change; who is shown does not depend on the answer, so
    an answer that nobody needs is not asked for: without a corrector, at most min(steps, T) a row.) Returns a
    `Sample`; raises ValueError for ids out of range or steps < 1.
    """
    open_BT = check_given(given_BT, Y, steps)
    ids, device = torch.where(open_BT, Y, given_BT), given_BT.device
    record = Record(ids, keep)
    for stay, hide in moves(steps, schedule, corrector):
        u_BT = torch.rand(ids.shape, generator=generator, device=device, dtype=torch.float64)
        show_BT = (ids == Y) & (u_BT >= stay)
        hide_BT = open_BT & (ids != Y) & (u_BT < hide)
        rows_B = show_BT.any(1) if cache else torch.ones(len(ids), dtype=torch.bool, device=device)
        if (logits := record.ask(denoiser, ids, rows_B, Y)) is not None:
            p = probabilities(logits[show_BT[rows_B]], temperature)
            ids = ids.masked_scatter(show_BT, pick(p, (u_BT[show_BT] - stay) / (1 - stay)))
        ids = ids.masked_fill(hide_BT, Y)
        record.keep(ids)
    return record.done(ids)


def remask(
    denoiser,
    given_BT,
    Y,
    *,
    steps,
    rule="low_confidence",
    block=None,
    temperature=1.0,
    generator=None,
    keep=False,
):
    """LLaDA's sampler: each step draws every masked token, keeps a fixed number of them, and masks the rest again.

    A row's open tokens are spread evenly over the steps, the remainder over the first ones. rule "low_confidence"
    keeps those to which the network gave the highest probability, "random" any; "random" with a step for each token
    draws exactly from the network's any-order model, "low_confidence" from no such model. block: the open tokens are
    filled in blocks of so many, left to right, each with its share of the steps (semi-autoregressive).
    temperature changes the draw, not the confidence; 0 takes the likeliest. Returns a `Sample`.
    Raises ValueError for an unknown rule, or steps that cannot be shared among the blocks.
    Nie et al. (2025), sec. 2.4 and app. B.4; the published generate.py, whose ties are broken otherwise.
    """
    open_BT = check_given(given_BT, Y, steps)
    if rule not in RULES:
        raise ValueError(f"rule: expected one of {', '.join(map(repr, RULES))}, got {rule!r}")
    if block is not None and (isinstance(block, bool) or not isinstance(block, int) or block < 1):
        raise ValueError(f"block: expected None or a positive number of tokens, got {block!r}")
    longest = int(open_BT.sum(1).max()) if len(open_BT) else 0
    blocks = -(-longest // block) if block and longest else 1
    if steps % blocks:
        raise ValueError(f"steps: {blocks} blocks of {block} cannot share {steps} steps evenly")
    block_BT = torch.where(open_BT, (open_BT.cumsum(1) - 1) // (block or max(1, longest)), -1)
    ids, device = torch.where(open_BT, Y, given_BT), given_BT.device
    record = Record(ids, keep)
    for step in range(steps):
        i, here_BT = step % (steps // blocks), block_BT == step // (steps // blocks)
        n_B = _share(here_BT.sum(1), steps // blocks, i)
        u_BT, v_BT = torch.rand((2, *ids.shape), generator=generator, device=device, dtype=torch.float64)
        rows_B = n_B > 0
        if (logits := record.ask(denoiser, ids, rows_B, Y)) is not None:
            masked = (here_BT & (ids == Y))[rows_B]
            drawn_N = pick(probabilities(logits[masked], temperature), u_BT[rows_B][masked])
            drawn, score = ids[rows_B].masked_scatter(masked, drawn_N), v_BT[rows_B]
            if rule == "low_confidence":
                sure_N = probabilities(logits[masked]).gather(-1, drawn_N[:, None])[:, 0]
                score = score.masked_scatter(masked, 1 - sure_N)
            show = _first(score, masked, n_B[rows_B])
            ids = ids.clone()
            ids[rows_B] = torch.where(show, drawn, ids[rows_B])
        record.keep(ids)
    return record.done(ids)


def _share(total_B, steps, i):
    """How many of the tokens step i shows: as many in each, the remainder in the first steps."""
    return total_B // steps + (i < total_B % steps).long()


def _first(score_BT, allowed_BT, n_B):
    """True for the n allowed tokens of each row with the lowest score; of equal ones, the leftmost."""
    order = score_BT.masked_fill(~allowed_BT, torch.inf).argsort(dim=1, stable=True)
    return (order.argsort(1) < n_B[:, None]) & allowed_BT


def _open(ids_BT, fixed_BT):
    if fixed_BT is None:
        return torch.ones_like(ids_BT, dtype=torch.bool)
    B, T = ids_BT.shape
    check({"B": B, "T": T}, fixed_BT=fixed_BT)
    if fixed_BT.dtype != torch.bool:
        raise ValueError(f"fixed_BT: expected bool, got {fixed_BT.dtype}")
    return ~fixed_BT


def _masked_loss(denoiser, ids_BT, hidden_BT, Y):
    """The sum over hidden tokens of their losses, [B]; the shapes do not depend on the masks (CUDA graphs)."""
    logits_BTY = check_answer(denoiser(torch.where(hidden_BT, Y, ids_BT)), ids_BT, Y)
    return torch.where(hidden_BT, losses(logits_BTY, ids_BT), 0).sum(1)
