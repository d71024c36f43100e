"""RWKV-4's weighted average against the naive sums in high precision, its limits, its state, its layer."""

import contract
import mpmath
import pytest
import torch

from postx import mixers, scans
from postx.mixers import rwkv4

FORMS = [("recurrent", {}), ("parallel", {}), ("chunked", {"chunk": 5}), ("chunked", {})]


def by_hand(k, v, g, u):
    """The paper's quotient of sums, in 50 digits: e^((t-1-i) g + k_i) for the past, e^(u + k_t) for the token."""
    B, T, D = k.shape
    y = torch.zeros_like(v)
    with mpmath.workdps(50):
        for b, t, d in torch.cartesian_prod(*map(torch.arange, (B, T, D))).tolist():
            fade, bonus = mpmath.mpf(float(g[d])), mpmath.mpf(float(u[d]))
            weights = [mpmath.exp((t - 1 - i) * fade + float(k[b, i, d])) for i in range(t)]
            weights.append(mpmath.exp(bonus + float(k[b, t, d])))
            total = mpmath.fsum(w * float(v[b, i, d]) for i, w in enumerate(weights))
            y[b, t, d] = float(total / mpmath.fsum(weights))
    return y


@pytest.mark.parametrize(("form", "more"), FORMS)
def test_running_maximum_equals_the_naive_sum_at_scores_of_20(form, more):
    (k, v), w = rwkv4.example(17)
    k = 20 * k / k.std()
    want = by_hand(k, v, **{name[0]: x for name, x in w.items()})
    assert contract.close(getattr(rwkv4, form)(k, v, **w, **more)[0], want, 1e-12) <= 1e-12
    assert contract.close(mixers.by_step(rwkv4, k, v, **w)[0], want, 1e-12) <= 1e-12


@pytest.mark.parametrize(("form", "more"), FORMS)
def test_scores_that_overflow_exp(form, more):
    """At scores of 1e4 the largest alone counts; in float32 too."""
    (k, v), w = contract.cast(rwkv4.example(17), torch.float32)
    y, S = getattr(rwkv4, form)(1e4 * k, v, **w, **more)
    assert not torch.exp(1e4 * k).isfinite().all()
    wide = contract.cast_up(((1e4 * k, v), w))
    assert contract.close((y, S), mixers.by_step(rwkv4, *wide[0], **wide[1]), 1e-5) <= 1e-5


def test_without_decay_and_bonus_it_is_a_running_softmax():
    (k, v), w = rwkv4.example(17)
    nothing = {name: torch.zeros_like(x) for name, x in w.items()}
    want = torch.stack([(k[:, : t + 1].softmax(1) * v[:, : t + 1]).sum(1) for t in range(17)], 1)
    for form, more in FORMS:
        assert contract.close(getattr(rwkv4, form)(k, v, **nothing, **more)[0], want) <= contract.TOLERANCE


@pytest.mark.parametrize(("form", "more"), FORMS)
@pytest.mark.parametrize("rate", [-torch.inf, -1e4, -1e-12, 0.0])
def test_rates_at_the_ends(rate, form, more):
    """Some channels at the end of the range; outputs, states and gradients equal those of `step`."""
    (k, v), w = rwkv4.example(17)
    g = w["g_D"].clone()
    g[::2] = rate

    def run(scan):
        inputs = [x.clone().requires_grad_() for x in (k, v, g, w["u_D"])]
        y, S = scan(*inputs[:2], g_D=inputs[2], u_D=inputs[3])
        return y, S, *torch.autograd.grad((y * v).sum() + S[0].square().sum() + S[1].sum(), inputs)

    got = run(lambda *z, **w: getattr(rwkv4, form)(*z, **w, **more))
    want = run(lambda *z, **w: mixers.by_step(rwkv4, *z, **w))
    assert contract.close(got, want) <= contract.TOLERANCE
    if rate == -torch.inf:  # after the first token, only the token before and the token itself
        weight = torch.sigmoid(w["u_D"] + k[:, 1:] - k[:, :-1])
        want = weight * v[:, 1:] + (1 - weight) * v[:, :-1]
        assert contract.close(got[0][:, 1:, ::2], want[..., ::2]) <= contract.TOLERANCE


def test_the_incoming_maximum_carries_no_gradient():
    """It only chooses a scale; both implementations of the scan and `step` agree on that."""
    (k, v), w = rwkv4.example(6)
    S = tuple(x.detach().requires_grad_() for x in rwkv4.recurrent(k, v, **w)[1])
    outputs = [rwkv4.recurrent(k, v, S=S, **w, impl=impl)[0] for impl in scans.IMPLEMENTATIONS]
    outputs += [rwkv4.parallel(k, v, S=S, **w)[0], mixers.by_step(rwkv4, k, v, S=S, **w)[0]]
    for y in outputs:
        *rest, top = torch.autograd.grad(y.sum(), S, allow_unused=True)
        assert top is None or float(top.abs().max()) == 0
        assert all(float(x.abs().max()) > 0 for x in rest)


def test_state_is_three_numbers_a_channel_and_the_layer_keeps_a_token_more():
    _, S = rwkv4.Layer(64)(torch.randn(1, 3, 64))
    assert sum(x.numel() for x in S) == 3 * 64 + 64
    assert rwkv4.cost(100, D=64).state_floats == 3 * 64


def test_cost_counts_what_step_does():
    """FLOPs of `step`, an operation each: the same with one channel more is one channel's worth more."""
    from torch.utils._python_dispatch import TorchDispatchMode

    counted = {"add", "sub", "mul", "div", "exp", "maximum"}

    class Count(TorchDispatchMode):
        flops = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            if function.overloadpacket.__name__ in counted:
                self.flops += result.numel()
            return result

    (k, v), w = rwkv4.example(1, B=1)
    S = rwkv4.init(k[:, 0], v[:, 0], **w)
    with Count() as count:
        rwkv4.step(S, k[:, 0], v[:, 0], **w)
    repeated = 2 * 6 + 6  # u + k twice more, top + g once more, than anyone need compute
    assert count.flops - repeated <= rwkv4.cost(1).flops <= count.flops


def test_bad_input_is_named():
    (k, v), w = rwkv4.example(4)
    for form in mixers.forms(rwkv4):
        with pytest.raises(ValueError, match=r"u_D: expected axes \[D\] with D=6"):
            getattr(rwkv4, form)(k, v, g_D=w["g_D"], u_D=w["u_D"][:2])
        with pytest.raises(ValueError, match=r"v_BTD: expected axes .* with T=4"):
            getattr(rwkv4, form)(k, v[:, :2], **w)
    with pytest.raises(ValueError, match="chunk: expected a whole number >= 1, got 0"):
        rwkv4.chunked(k, v, **w, chunk=0)
