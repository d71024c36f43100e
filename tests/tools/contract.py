"""The checks that every mixer must pass. `test_contract.py` runs them on the mixers, `test_mutants.py` on broken ones.

A check raises AssertionError, and returns the error that it measured.
"""

import inspect

import pytest
import torch

from postx import mixers

TOLERANCE = 1e-9
CHUNK = 16
# Largest relative error allowed against float64, by dtype: a few hundred roundings, and a few for halves.
BOUNDS = {torch.float32: 1e-4, torch.bfloat16: 4e-2, torch.float16: 5e-3}


def leaves(S):
    return [x for part in S for x in leaves(part)] if isinstance(S, tuple) else [S]


def error(got, want):
    """max|got - want| over max(1, max|want|), through outputs and states; a longer cache must be empty beyond."""
    worst = 0.0
    for a, b in zip(leaves(got), leaves(want), strict=True):
        assert a.dim() == b.dim(), f"rank {a.dim()} against {b.dim()}"
        if a.shape != b.shape:
            rows = torch.ones(a.shape[0], dtype=torch.bool)
            a, b = mixers.select(rows, a, b), mixers.select(rows, b, a)
        assert torch.isfinite(torch.view_as_real(a) if a.is_complex() else a).all(), "not finite"
        kind = torch.complex128 if b.is_complex() else torch.float64
        a, b = a.detach().to(kind), b.detach().to(kind)
        if a.numel():
            worst = max(worst, float((a - b).abs().max() / max(1.0, float(b.abs().max()))))
    return worst


def close(got, want, tolerance=TOLERANCE):
    worst = error(got, want)
    assert worst <= tolerance, f"differs by {worst:.1e}, allowed {tolerance:.0e}"
    return worst


def arguments(mixer, form):
    """Keyword arguments that make small inputs cross several chunks."""
    return {"chunk": CHUNK} if "chunk" in inspect.signature(getattr(mixer, form)).parameters else {}


def run(mixer, form, z, w, **more):
    return getattr(mixer, form)(*z, **w, **arguments(mixer, form), **more)


def warm_state(mixer, seed=7):
    """A state that has seen a few tokens."""
    z, w = mixer.example(5, seed=seed)
    return mixers.by_step(mixer, *z, **w)[1]


def map_tensors(function, x):
    if isinstance(x, torch.Tensor):
        return function(x)
    if isinstance(x, tuple):
        return tuple(map_tensors(function, part) for part in x)
    return {key: map_tensors(function, part) for key, part in x.items()} if isinstance(x, dict) else x


def form_equals_step(mixer, form, T, **more):
    z, w = mixer.example(T)
    worst = 0.0
    for S in (None, warm_state(mixer)):
        got = run(mixer, form, z, w, S=S, **more)
        worst = max(worst, close(got, mixers.by_step(mixer, *z, S=S, **w)))
    return worst


def cut_and_resume(mixer, form, T=37):
    z, w = mixer.example(T)
    whole = run(mixer, form, z, w)
    for cut in (1, T // 2, T - 1):
        y_a, S = run(mixer, form, tuple(x[:, :cut] for x in z), w)
        y_b, S = run(mixer, form, tuple(x[:, cut:] for x in z), w, S=S)
        close((torch.cat([y_a, y_b], 1), S), whole)


def step_is_pure(mixer):
    z, w = mixer.example(1)
    S, token = warm_state(mixer), tuple(x[:, 0] for x in z)
    before = mixers.map_state(torch.clone, S)
    first, second = (mixer.step(S, *token, **w) for _ in range(2))
    close(second, first, 0.0)
    close(S, before, 0.0)


def bad_states_are_refused(mixer):
    """A state with any axis collapsed to 1, or one too long, is no state of these tokens: by step and by every form."""
    z, w = mixer.example(3)
    S, token = warm_state(mixer), tuple(x[:, 0] for x in z)
    good = leaves(S)
    for i, x in enumerate(good):
        for axis, n in enumerate(x.shape):
            for wrong in (x.narrow(axis, 0, 1), torch.cat([x, x.narrow(axis, 0, 1)], axis)):
                if wrong.shape[axis] != n:
                    bad = [*good[:i], wrong, *good[i + 1 :]]
                    bad = tuple(bad) if isinstance(S, tuple) else bad[0]
                    for form in ("step", *mixers.forms(mixer)):
                        with pytest.raises(ValueError, match="expected axes"):
                            mixer.step(bad, *token, **w) if form == "step" else getattr(mixer, form)(*z, S=bad, **w)


def operator_equals_recurrent(mixer, T=23):
    """All tokens together as S -> A S + b are `recurrent`; blocks compose to the whole, in either order of brackets."""
    z, w = mixer.example(T)
    S, whole = warm_state(mixer), mixer.operator(*z, **w)
    want = mixer.recurrent(*z, S=S, **w)[1]
    close(whole(S), want)
    first, second, third = (
        mixer.operator(*(x[:, a:b] for x in z), **w) for a, b in ((0, 7), (7, 8), (8, T))
    )
    close(first.then(second).then(third)(S), want)
    close(first.then(second.then(third))(S), want)
    assert isinstance(whole, tuple)
    assert len(whole) == 2


def inplace_equals_pure(mixer):
    z, w = mixer.example(6)
    pure = inplace = mixer.init(*(x[:, 0] for x in z), **w)
    for t in range(6):
        token = tuple(x[:, t] for x in z)
        y, pure = mixer.step(pure, *token, **w)
        y_inplace, inplace = mixer.step(inplace, *token, inplace=True, **w)
        close((y_inplace, inplace), (y, pure))


def causal(mixer, form, T=37, t=20):
    z, w = mixer.example(T)
    changed = tuple(torch.cat([x[:, : t + 1], x[:, t + 1 :].flip(1) + 1], 1) for x in z)
    close(run(mixer, form, changed, w)[0][:, : t + 1], run(mixer, form, z, w)[0][:, : t + 1])


def gradients_agree(mixer, form, T=19, **more):
    z, w = mixer.example(T)
    S = warm_state(mixer)
    inputs = [
        x
        for x in [*z, *w.values(), *leaves(S)]
        if isinstance(x, torch.Tensor) and (x.is_floating_point() or x.is_complex())
    ]

    def gradient(function):
        for x in inputs:
            x.requires_grad_(True)
        outputs = leaves(function())
        generator = torch.Generator().manual_seed(3)
        loss = 0.0
        for x in outputs:
            if x.requires_grad:
                x = torch.view_as_real(x) if x.is_complex() else x
                loss = loss + (x * torch.randn(x.shape, generator=generator, dtype=x.dtype)).sum()
        grads = torch.autograd.grad(loss, inputs, allow_unused=True)
        return tuple(torch.zeros_like(x) if g is None else g for x, g in zip(inputs, grads, strict=True))

    return close(
        gradient(lambda: run(mixer, form, z, w, S=S, **more)),
        gradient(lambda: mixers.by_step(mixer, *z, S=S, **w)),
    )


def ragged(mixer, form, T=37):
    z, w = mixer.example(T)
    S, lengths = warm_state(mixer), torch.tensor([T - 8, 3])
    for end in (lengths, torch.tensor([0, T])):
        want = mixers.by_step(mixer, *z, S=S, lengths_B=end, **w)
        past = torch.arange(T) >= end[:, None]
        for unset in (0.0, torch.nan):  # as torch.empty might leave it
            given = tuple(x.masked_fill(past.view(2, T, *[1] * (x.dim() - 2)), unset) for x in z)
            got = run(mixer, form, given, w, S=S, lengths_B=end)
            close(got, want)
            assert (got[0][past] == 0).all()
    reset = torch.zeros(2, T, dtype=torch.bool)
    reset[0, [0, 11]], reset[1, [1, 2, 30]] = True, True
    for end in (None, lengths):
        got = run(mixer, form, z, w, S=S, lengths_B=end, reset_BT=reset)
        close(got, mixers.by_step(mixer, *z, S=S, lengths_B=end, reset_BT=reset, **w))


def packed_equals_alone(mixer, form):
    """Three sequences in one row give what each gives alone."""
    lengths = (9, 1, 17)
    alone = [mixer.example(n, seed=i) for i, n in enumerate(lengths)]
    w = alone[0][1]
    row = tuple(torch.cat([z[i][:1] for z, _ in alone], 1) for i in range(len(alone[0][0])))
    reset = torch.zeros(1, sum(lengths), dtype=torch.bool)
    reset[0, [0, 9, 10]] = True
    separate = torch.cat([run(mixer, form, tuple(x[:1] for x in z), w)[0] for z, _ in alone], 1)
    close(run(mixer, form, row, w, reset_BT=reset)[0], separate)


def cast(x, dtype):
    """Floats to dtype, complex numbers to complex64."""

    def one(t):
        if t.is_complex():
            return t.to(torch.complex64)
        return t.to(dtype) if t.is_floating_point() else t

    return map_tensors(one, x)


def cast_up(x):
    """The same numbers in float64 and complex128."""
    return map_tensors(lambda t: t.to(torch.complex128 if t.is_complex() else torch.float64), x)


def low_precision(mixer, form, dtype, T=48):
    """Against float64 on the same rounded inputs, so that only the arithmetic is judged."""
    z, w = cast(mixer.example(T), dtype)
    got_y, _ = run(mixer, form, z, w)
    assert got_y.dtype == dtype, f"output is {got_y.dtype}, input {dtype}"
    wide = [cast_up(x) for x in (z, w)]
    want_y, _ = mixers.by_step(mixer, *wide[0], **wide[1])
    return close(got_y, want_y, BOUNDS[dtype])


def strided(mixer, form, T=20):
    """Inputs that are views with odd strides."""
    z, w = mixer.example(T)
    views = tuple(x.transpose(0, -1).contiguous().transpose(0, -1) for x in z)
    close(run(mixer, form, views, w), run(mixer, form, z, w))


def extreme(mixer, form, T=20):
    """Very small and very large inputs, and rates (g, delta) near no decay and near total decay."""
    for scale in (1e-30, 1e3):
        z, w = mixer.example(T)
        z = tuple(scale * x for x in z)
        close(run(mixer, form, z, w), mixers.by_step(mixer, *z, **w))
    named = [
        name for name in inspect.signature(mixer.step).parameters if name.split("_")[0] in ("g", "delta")
    ]
    for scale in (1e-9, 1e9):
        z, w = mixer.example(T)
        order = list(inspect.signature(mixer.step).parameters)[1:]
        z = tuple(x * scale if order[i] in named else x for i, x in enumerate(z))
        w = {key: x * scale if key in named else x for key, x in w.items()}
        close(run(mixer, form, z, w), mixers.by_step(mixer, *z, **w))


def survives(mixer, form):
    """Whether the contract's checks of one form find nothing wrong."""
    try:
        for T in (1, 37, 48):
            form_equals_step(mixer, form, T)
        cut_and_resume(mixer, form)
        ragged(mixer, form)
        causal(mixer, form)
    except AssertionError:
        return False
    return True
