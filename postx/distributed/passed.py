"""A recurrence over ranks that each hold a stretch of the text: one state goes from rank to rank, whatever T is.

A stretch of updates that are linear in the state is one update, S -> A S + b, which a mixer's file gives as `operator`.
So no rank waits for another one's tokens:

    1. every rank computes the operator of its own tokens, all at the same time
    2. the operators are combined from the front:   S_r = A_(r-1) S_(r-1) + b_(r-1)
    3. every rank runs its tokens from the state S_r that is true for it, all at the same time

The work is done twice, the waiting once. how="turn": step 2 goes from rank to rank; each sends one state and no
operator, after one product. how="log": in log2 P rounds (Hillis and Steele 1986), in which ranks send operators.
Gradients take the same way back, one state's worth from each rank to the one before.

A mixer without an operator, whose state stands inside of a nonlinearity (CfC, liquid networks), is run in turn: rank r
waits for all tokens before its own, and only the memory is shared out. The first rank's state comes from its own run:
an operator is of tokens that do not begin a text.

Source: the decomposition is Blelloch's (1990); between devices, Sun et al. 2024, "Linear Attention Sequence
Parallelism" (arXiv 2404.02882), passes the state in turn, for a decay.
"""

import torch

from postx.distributed import wire as wires
from postx.mixers import by_form
from postx.shapes import map_state

HOWS = ("turn", "log")


def run(mixer, *z, layout, wire, S=None, form="auto", how="turn", **w):
    """This rank's part of mixer.form(*whole text, S=S, **w): returns (y, S), the state after this rank's tokens.

    z: this rank's tokens in the straight layout. S: the state before the text; the first rank's counts, and None is the
    empty one. Every rank must call it, and the backward pass of its y. Raises ValueError for attention (`ring` is for
    it), for convolutions as long as the text, another layout, and an S that not all ranks can have.
    """
    refuse(mixer)
    name = mixer.__name__.rpartition(".")[2]
    if how not in HOWS:
        raise ValueError(f"how: expected one of {', '.join(map(repr, HOWS))}, got {how!r}")
    if layout.kind != "straight" or layout.ranks != wire.ranks:
        raise ValueError(
            f"layout: a state passes through the text in order: {name} needs 'straight' over {wire.ranks} ranks, "
            f"got {layout.kind!r} over {layout.ranks}"
        )
    layout.hold(f"the tokens of {name}", z[0], wire.rank)
    forward = by_form(mixer.__name__, form, z[0])
    if wire.ranks == 1:
        return forward(*z, S=S, **w)
    tie = wires.anchor(*z, *w.values(), *leaves(S))
    first, last = wire.rank == 0, wire.rank == wire.ranks - 1
    if first or not hasattr(mixer, "operator"):
        S = S if first else _receive(wire, mixer, z, w, tie)
        y, S = forward(*z, S=S, **w)
        zero = _from_the_front(S, wire, how, tie) if first else 0 if last else _send(wire, S, tie)
    else:
        operator = mixer.operator(*z, **w)
        before, zero = (_in_turn if how == "turn" else _in_rounds)(operator, wire, tie)
        y, S = forward(*z, S=before, **w)
    wire.flush()
    return y + zero, S


def refuse(mixer):
    """Raise ValueError for a mixer whose state is as long as the text: a cache, the inputs of a long filter."""
    name = mixer.__name__.rpartition(".")[2]
    if mixer.FAMILY == "attention":
        raise ValueError(f"{name}: its state is a cache that grows with the text; use distributed.ring.attend")
    if hasattr(mixer, "GROWS") and not hasattr(mixer, "operator"):
        raise ValueError(
            f"{name}: a convolution as long as the text has no state smaller than the text; it is not divided here"
        )


def leaves(S):
    """The tensors of a state, an operator or any tuple of such, in order; what is None is passed over."""
    if isinstance(S, tuple):
        return [x for part in S for x in leaves(part)]
    return [] if S is None else [S]


def _filled(S, parts):
    """S with its tensors replaced, in order, by those that `parts` gives."""
    if isinstance(S, tuple):
        made = [_filled(part, parts) for part in S]
        return type(S)(*made) if hasattr(S, "_fields") else tuple(made)
    return None if S is None else next(parts)


def _send(wire, S, tie, to=None):
    return wires.send(wire, wire.rank + 1 if to is None else to, leaves(S), tie)


def _receive_like(wire, S, tie, source=None):
    parts = wires.receive(wire, wire.rank - 1 if source is None else source, leaves(S), tie)
    return _filled(S, iter(parts))


def _receive(wire, mixer, z, w, tie):
    constants = {name: x for name, x in w.items() if name not in ("chunk", "impl")}
    with torch.no_grad():
        like = mixer.init(*(x[:, 0] for x in z), **constants)
    return _receive_like(wire, like, tie)


def _from_the_front(S, wire, how, tie):
    """The first rank hands out its state: to the next one, or in every round to the rank 2^round further on."""
    zero, reach = 0, 1
    while reach < wire.ranks:
        zero = zero + _send(wire, S, tie, reach)
        reach = wire.ranks if how == "turn" else 2 * reach
    return zero


def _in_turn(operator, wire, tie):
    """The state before this rank's tokens; the one after them is on its way as soon as this one is there."""
    before = _receive_like(wire, operator.b, tie)
    if wire.rank == wire.ranks - 1:
        return before, 0
    return before, _send(wire, operator(before), tie)


def _in_rounds(operator, wire, tie):
    """Exclusive prefix: after the round of reach d a rank knows what the 2 d - 1 ranks before it do together.

    A rank below d has the front among those it knows: it then holds, and sends, a state and no operator.
    """
    before, zero, reach = None, 0, 1
    while reach < wire.ranks:
        if wire.rank + reach < wire.ranks:
            zero = zero + _send(wire, _after(before, operator, wire.rank < reach), tie, wire.rank + reach)
        if wire.rank >= reach:
            source, state = wire.rank - reach, wire.rank - reach < reach
            come = _receive_like(wire, operator.b if state else operator, tie, source)
            before = come if before is None else before(come) if state else come.then(before)
        reach *= 2
    return before, zero


def _after(before, operator, state):
    """What all tokens known so far do, this rank's own among them."""
    if before is None:
        return operator
    return operator(before) if state else before.then(operator)


def halo(S, wire, tie):
    """The tensors of S from the rank before, for what looks back a few tokens only; and the zero. None at the front."""
    zero = _send(wire, S, tie) if wire.rank + 1 < wire.ranks else 0
    came = _receive_like(wire, S, tie) if wire.rank else None
    wire.flush()
    return came, zero


def detached(S):
    """S without its history."""
    return map_state(torch.Tensor.detach, S)
