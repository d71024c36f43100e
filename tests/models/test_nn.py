"""Norm, MLP and experts against their formulas, written out token by token."""

import pytest
import torch
from torch.nn.functional import gelu, silu

from postx.models.nn import MLP, ChannelMix, MoE, RMSNorm

X = torch.randn(2, 7, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def close(a, b, tolerance=1e-12):
    assert (a - b).abs().max().item() <= tolerance


def test_rms_norm():
    norm = RMSNorm(12, eps=0.1).double()
    norm.weight.data = torch.arange(12.0, dtype=torch.float64)
    close(norm(X), X / (X.square().mean(-1, keepdim=True) + 0.1).sqrt() * torch.arange(12))
    half = (300 * X).to(torch.float16)  # squares overflow half precision
    y = RMSNorm(12)(half)
    assert y.dtype == torch.float16
    close(y.double(), RMSNorm(12).double()(half.double()), 2e-3)


def test_mlp():
    mlp = MLP(12, 20).double()
    close(mlp(X), (silu(X @ mlp.gate.weight.T) * (X @ mlp.up.weight.T)) @ mlp.out.weight.T)
    geglu = MLP(12, 20, activation="gelu_tanh", bias=True).double()
    gate = gelu(X @ geglu.gate.weight.T + geglu.gate.bias, approximate="tanh")
    hidden = gate * (X @ geglu.up.weight.T + geglu.up.bias)
    close(geglu(X), hidden @ geglu.out.weight.T + geglu.out.bias)
    squared = MLP(12, 20, activation="relu2", gated=False).double()
    close(squared(X), (X @ squared.up.weight.T).clamp(min=0) ** 2 @ squared.out.weight.T)
    assert MLP(768).up.weight.shape == (2048, 768)
    with pytest.raises(ValueError, match="activation: expected one of 'silu', .* got 'swish'"):
        MLP(12, activation="swish")


@pytest.mark.parametrize("shared", [0, 6])
@pytest.mark.parametrize("renormalise", [True, False])
@pytest.mark.parametrize("gated", [True, False])
def test_experts_equal_a_loop_over_tokens(gated, renormalise, shared):
    torch.manual_seed(0)
    moe = MoE(12, 5, E=4, k=2, gated=gated, renormalise=renormalise, shared=shared).double()
    for p in moe.parameters():
        p.data.normal_()
    y, load = moe(X)
    chosen = torch.zeros(4, dtype=torch.float64)
    for b in range(2):
        for t in range(7):
            x = X[b, t]
            p = (moe.router.weight @ x).softmax(0)
            best = sorted(range(4), key=lambda e: -p[e])[:2]
            total, want = sum(p[e] for e in best) if renormalise else 1, 0
            for e in best:
                hidden = x @ moe.up_EDF[e]
                hidden = silu(x @ moe.gate_EDF[e]) * hidden if gated else silu(hidden)
                want = want + p[e] / total * (hidden @ moe.out_EFD[e])
                chosen[e] += 1
            want = want + (moe.shared(x) if shared else 0)
            close(y[b, t], want, 1e-11)
    assert torch.equal(load.tokens_E.double(), chosen)
    assert load.tokens_E.sum() == 2 * 14  # k * tokens
    assert load.probability_E.sum().item() == pytest.approx(1, abs=1e-6)


def test_experts_have_the_gradients_of_a_loop_over_tokens():
    """All experts are computed and weighed; what is learned is as if only the chosen ones had been asked."""
    torch.manual_seed(2)
    moe, x = MoE(12, 5, E=4, k=2).double(), X.clone().requires_grad_()
    for p in moe.parameters():
        p.data.normal_()
    rows = []
    for token in x.flatten(0, 1):
        p = (moe.router.weight @ token).softmax(0)
        best = p.topk(2).indices
        each = [(silu(token @ moe.gate_EDF[e]) * (token @ moe.up_EDF[e])) @ moe.out_EFD[e] for e in best]
        rows.append(sum(p[e] / p[best].sum() * y for e, y in zip(best, each, strict=True)))
    inputs, way = [x, *moe.parameters()], torch.randn(14, 12, dtype=torch.float64)
    want = torch.autograd.grad((torch.stack(rows) * way).sum(), inputs)
    found = torch.autograd.grad((moe(x)[0].flatten(0, 1) * way).sum(), inputs)
    for one, other in zip(found, want, strict=True):
        close(one, other, 1e-9)


def test_the_sigmoid_router_equals_a_loop_over_tokens():
    torch.manual_seed(1)
    moe = MoE(12, 5, E=8, k=3, sigmoid=True, groups=(4, 2), scale=2.5, shared=6, shared_gate=True).double()
    for x in (*moe.parameters(), moe.bias_E):
        x.data.normal_()
    y, load = moe(X)
    for b in range(2):
        for t in range(7):
            x = X[b, t]
            p = (moe.router.weight @ x).sigmoid()
            rank = (p + moe.bias_E).tolist()
            groups = sorted(range(4), key=lambda n: -sum(rank[2 * n : 2 * n + 2]))[:2]
            best = sorted((e for n in groups for e in (2 * n, 2 * n + 1)), key=lambda e: -rank[e])[:3]
            want = moe.shared(x) * (moe.shared_gate.weight[0] @ x).sigmoid()
            for e in best:
                hidden = silu(x @ moe.gate_EDF[e]) * (x @ moe.up_EDF[e])
                want = want + 2.5 * p[e] / sum(p[i] for i in best) * (hidden @ moe.out_EFD[e])
            close(y[b, t], want, 1e-11)
    assert load.tokens_E.sum() == 3 * 14
    assert load.probability_E.sum().item() == pytest.approx(1, abs=1e-6)
    assert "bias_E" in moe.state_dict()
    assert "bias_E" not in MoE(12, 5).state_dict()
    with pytest.raises(ValueError, match="groups: expected"):
        MoE(12, 5, E=8, groups=(3, 1))


def test_a_gated_channel_mix():
    torch.manual_seed(0)
    mix = ChannelMix(12, 20, gate=True).double()
    mix.mix_gate_D.data = torch.rand(12, dtype=torch.float64)
    before = torch.cat([torch.zeros(2, 1, 12, dtype=torch.float64), X[:, :-1]], 1)
    up = (torch.lerp(X, before, mix.mix_D) @ mix.up.weight.T).clamp(min=0) ** 2
    gate = (torch.lerp(X, before, mix.mix_gate_D) @ mix.gate.weight.T).sigmoid()
    close(mix(X)[0], gate * (up @ mix.out.weight.T))


def test_an_mlp_with_a_norm_inside():
    mlp = MLP(12, 20, sub_norm=0.1).double()
    hidden = silu(X @ mlp.gate.weight.T) * (X @ mlp.up.weight.T)
    close(mlp(X), hidden / (hidden.square().mean(-1, keepdim=True) + 0.1).sqrt() @ mlp.out.weight.T)


def test_balance_is_one_when_even_and_E_when_all_go_to_one():
    moe = MoE(4, 5, E=4, k=1).double()
    moe.router.weight.data = 50 * torch.eye(4, dtype=torch.float64)
    even = torch.eye(4, dtype=torch.float64)[None]
    assert moe(even)[1].balance.item() == pytest.approx(1, abs=1e-5)
    assert moe(even[:, [2, 2, 2, 2]])[1].balance.item() == pytest.approx(4, abs=1e-5)
    two = MoE(4, 5, E=4, k=2).double()  # each expert is half of the choices of half of the tokens
    two.router.weight.data = 50 * torch.tensor([[1, 0], [1, 0], [0, 1], [0, 1]], dtype=torch.float64).repeat(1, 2)
    assert two(even)[1].balance.item() == pytest.approx(1, abs=1e-5)


def test_the_router_learns_from_the_output_and_from_the_balance():
    moe = MoE(12, 5, E=4, k=2).double()
    y, load = moe(X)
    for loss in (y.square().sum(), load.balance):
        moe.router.weight.grad = None
        loss.backward(retain_graph=True)
        assert moe.router.weight.grad.abs().max() > 0


def test_idle_weights_and_errors():
    assert MoE(12, 5, E=4, k=1).idle() == 3 * 3 * 12 * 5
    assert MoE(12, 5, E=4, k=3, gated=False, shared=9).idle() == 1 * 2 * 12 * 5
    for k in (0, 5):
        with pytest.raises(ValueError, match=f"k: expected 1 to E=4 experts a token, got {k}"):
            MoE(12, 5, E=4, k=k)
    with pytest.raises(ValueError, match="x_BTD: expected axes"):
        MoE(12, 5)(X[..., :3])


def test_channel_mix_sees_the_token_before():
    mix = ChannelMix(12).double()
    mix.mix_D.data = torch.linspace(0, 1, 12, dtype=torch.float64)
    y, S = mix(X)
    before = torch.cat([torch.zeros(2, 1, 12, dtype=torch.float64), X[:, :-1]], 1)
    seen = X + (before - X) * mix.mix_D
    close(y, (seen @ mix.up.weight.T).clamp(min=0) ** 2 @ mix.out.weight.T)
    close(mix(X[:, 3:], mix(X[:, :3])[1])[0], y[:, 3:])
    close(S[0], X[:, -1])
