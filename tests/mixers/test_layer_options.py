"""Options of the mixers' Layers that language models switch on: short convolutions, norms, a fall with distance."""

import pytest
import torch

from postx.mixers import attention, by_form, gated_deltanet, load, mamba, ssd
from postx.parts import conv

FORMS = "recurrent", "parallel", "chunked"


def naive(q, k, v, slopes, window, past=0):
    """ALiBi written out: score minus slope times distance, one query at a time."""
    B, T, H, K = q.shape
    y = torch.zeros(B, T, H, v.shape[-1], dtype=q.dtype)
    for b in range(B):
        for t in range(T):
            for h in range(H):
                seen = range(0 if window is None else max(0, past + t - window + 1), past + t + 1)
                s = [q[b, t, h] @ k[b, m, h // (H // k.shape[2])] / K**0.5 - slopes[h] * (past + t - m) for m in seen]
                p = torch.stack(s).softmax(0)
                y[b, t, h] = sum(p_m * v[b, m, h // (H // k.shape[2])] for p_m, m in zip(p, seen, strict=True))
    return y


@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize("form", FORMS)
def test_alibi_equals_its_formula(form, window):
    (q, k, v), _ = attention.example(9)
    slopes = torch.tensor([0.5, 0.25, 2.0, 0.0], dtype=torch.float64)
    more = {"chunk": 3} if form == "chunked" else {}
    w = {"slopes_H": slopes, "window": window}
    leaf = [x.requires_grad_() for x in (q, k, v)]
    y, _ = getattr(attention, form)(q, k, v, **w, **more)
    want = naive(q, k, v, slopes, window)
    assert (y - want).abs().max() <= 1e-12
    draw = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for a, b in zip(*(torch.autograd.grad((x * draw).sum(), leaf) for x in (y, want)), strict=True):
        assert (a - b).abs().max() <= 1e-10
    first, S = getattr(attention, form)(q[:, :6], k[:, :6], v[:, :6], **w, **more)
    rest, S = getattr(attention, form)(q[:, 6:8], k[:, 6:8], v[:, 6:8], S=S, **w, **more)
    last, _ = attention.step(S, q[:, 8], k[:, 8], v[:, 8], **w)
    assert (torch.cat([first, rest, last[:, None]], 1) - want).abs().max() <= 1e-12


def test_alibi_slopes_are_the_papers():
    assert attention.alibi_slopes(8).tolist() == [2.0**-i for i in range(1, 9)]
    layer = attention.Layer(16, H=4, alibi=True)
    assert layer.rope is None
    assert layer.slopes_H.tolist() == [2.0**-2, 2.0**-4, 2.0**-6, 2.0**-8]
    assert not any("slopes" in name for name in layer.state_dict())


@pytest.mark.parametrize("name", ["attention", "linear", "retnet", "gla", "deltanet", "gated_deltanet"])
def test_short_convolution_comes_before_the_heads(name, monkeypatch):
    """The layer with conv_size=4 is the layer without, fed with convolved projections."""
    torch.manual_seed(0)
    module = load(name)
    kw = {"H": 2} if name == "retnet" else {}
    layer, plain = module.Layer(16, conv_size=4, **kw).double(), module.Layer(16, **kw).double()
    missing = plain.load_state_dict(layer.state_dict(), strict=False)
    assert missing.unexpected_keys == ["conv.taps_DW"]
    assert missing.missing_keys == []
    x = torch.randn(2, 9, 16, dtype=torch.float64)
    y, S = layer(x)
    parts = torch.cat([project(x) for project in (layer.q, layer.k, layer.v)], -1)
    assert S[-1].shape == (2, 3, parts.shape[-1])
    assert torch.equal(S[-1], parts[:, -3:])
    mixed, _ = conv.short_convolution(parts, layer.conv.taps_DW)
    monkeypatch.setattr(plain.conv, "forward", lambda parts, S, **side: (mixed.split(layer.conv.widths, -1), ()))
    assert (plain(x)[0] - y).abs().max() <= 1e-12


def test_queries_and_keys_may_be_normed():
    torch.manual_seed(0)
    layer = attention.Layer(16, H=2, qk_norm=True).double()
    x = torch.randn(1, 5, 16, dtype=torch.float64)
    y, _ = layer(x)
    layer.q.weight.data *= 7  # the norm takes a scale of the queries back
    assert (layer(x)[0] - y).abs().max() <= 1e-5
    layer.norms[0].weight.data *= 3
    assert (layer(x)[0] - y).abs().max() > 1e-3


def test_widths_biases_and_inner_norms():
    layer = attention.Layer(8, H=2, D_in=12, out_bias=True)
    assert layer(torch.zeros(1, 3, 12))[0].shape == (1, 3, 8)
    assert layer.out.bias.shape == (8,)
    block = ssd.Layer(16, K=4, V=8, inner=24, norm=False)
    assert (block.H, block.out.in_features) == (3, 24)
    assert not [name for name, _ in block.named_parameters() if "norm" in name]
    normed = mamba.Layer(16, norms=True).double()
    x = torch.randn(1, 5, 16, dtype=torch.float64)
    y, _ = normed(x)
    normed.choose.weight.data *= 100  # the norms take its scale back, but for their eps
    assert (normed(x)[0] - y).abs().max() <= 1e-2 * y.abs().max()


def test_the_form_that_auto_takes():
    for device, T, name, form in (
        ("cpu", 9, "ssd", "recurrent"), ("meta", 9, "ssd", "chunked"), ("meta", 1, "ssd", "recurrent"),
        ("meta", 9, "s4d", "parallel"), ("cpu", 9, "hyena", "parallel"), ("meta", 1, "attention", "chunked"),
    ):  # fmt: skip
        x, mixer = torch.zeros(1, T, 4, device=device), load(name)
        assert by_form(mixer.__name__, "auto", x) is getattr(mixer, form)
    with pytest.raises(ValueError, match="form: gated_deltanet has 'recurrent', 'chunked' and 'auto', not 'parallel'"):
        gated_deltanet.Layer(16)(torch.zeros(1, 2, 16), form="parallel")


def test_attention_both_ways():
    """causal=False: softmax over every token, last ones too; nothing else about the layer changes."""
    torch.manual_seed(0)
    layer = attention.Layer(16, H=4, G=2, causal=False).double()
    x = torch.randn(2, 7, 16, dtype=torch.float64)
    y, S = layer(x)
    assert S == ()
    at = torch.arange(7)[None]
    q, k, v = (p(x).unflatten(-1, s) for p, s in zip((layer.q, layer.k, layer.v), layer.heads, strict=True))
    everything = torch.ones(2, 7, 7, dtype=torch.bool)
    want = attention.read(layer.rope.rotate(q, at), layer.rope.rotate(k, at), v, everything)
    assert (layer.out(want.flatten(2)) - y).abs().max() <= 1e-12
    assert layer.state_dict().keys() == attention.Layer(16, H=4, G=2).state_dict().keys()
    with pytest.raises(ValueError, match="causal: False goes without"):
        attention.Layer(16, causal=False, window=4)
    with pytest.raises(ValueError, match="S, lengths_B, reset_BT: bidirectional"):
        layer(x, lengths_B=torch.tensor([3, 7]))


def test_gate_norm_bias_and_scale_of_attention_are_what_stands_around_the_heads():
    """Built by hand around the bare mixer: sigmoid gate, RMS norm over all heads, biases, a scale of its own."""
    torch.manual_seed(0)
    layer = attention.Layer(12, H=3, G=1, K=4, bias=True, out_bias=True, scale=0.3, gate=True, sub_norm=0.1, rope=None)
    layer, x = layer.double(), torch.randn(2, 7, 12, dtype=torch.float64)
    for p in layer.parameters():
        p.data.normal_()
    q, k, v = (p(x).unflatten(-1, (-1, 4)) for p in (layer.q, layer.k, layer.v))
    y, _ = attention.parallel(q, k, v, scale=0.3)
    y = y.flatten(2) * layer.gate(x).sigmoid()
    y = y / (y.square().mean(-1, keepdim=True) + 0.1).sqrt() * layer.sub_norm.weight
    want = layer.out(y)
    got, S = layer(x)
    assert (got - want).abs().max() <= 1e-12
    last, _ = layer(x[:, 6:], layer(x[:, :6])[1], inplace=True)  # one token, by `step`
    assert (last - want[:, 6:]).abs().max() <= 1e-12


def test_heads_of_mamba_are_mambas_on_a_part_of_the_channels_each():
    torch.manual_seed(0)
    whole = mamba.Layer(12, N=4, inner=16, rank=3, heads=2).double()
    for p in whole.parameters():
        p.data.normal_(0, 0.5)
    parts = []
    for h in range(2):
        one = mamba.Layer(12, N=4, inner=8, rank=3).double()
        rows, both = slice(8 * h, 8 * h + 8), [*range(8 * h, 8 * h + 8), *range(16 + 8 * h, 24 + 8 * h)]
        one.load_state_dict({
            "inward.weight": whole.inward.weight[both], "taps_DW": whole.taps_DW[rows],
            "taps_bias_D": whole.taps_bias_D[rows], "choose.weight": whole.choose.weight.chunk(2)[h],
            "delta.weight": whole.delta.weight[rows], "delta.bias": whole.delta.bias[rows],
            "log_rate_DN": whole.log_rate_DN[rows], "skip_D": whole.skip_D[rows],
            "out.weight": whole.out.weight[:, rows],
        })  # fmt: skip
        parts.append(one)
    x, lengths = torch.randn(2, 9, 12, dtype=torch.float64), torch.tensor([9, 4])
    reset = torch.zeros(2, 9, dtype=torch.bool)
    reset[0, 5] = True
    for side in ({}, {"lengths_B": lengths}, {"reset_BT": reset}):
        want = sum(one(x, **side)[0] for one in parts)
        y, S = whole(x, **side)
        assert (y - want).abs().max() <= 1e-12
    first, S = whole(x[:, :5])
    second, _ = whole(x[:, 5:], S)
    assert (torch.cat([first, second], 1) - whole(x)[0]).abs().max() <= 1e-12
    with pytest.raises(ValueError, match="heads: 3 parts do not divide 16 channels"):
        mamba.Layer(12, inner=16, heads=3)


def test_the_norm_of_ssd_stands_before_the_gate_or_behind_it():
    torch.manual_seed(0)
    x = torch.randn(1, 6, 8, dtype=torch.float64)
    layer = ssd.Layer(8, K=4, V=4, G=2, inner=16, eps=0.1).double()
    last = ssd.Layer(8, K=4, V=4, G=2, inner=16, eps=0.1, gate_last=True).double()
    bare = ssd.Layer(8, K=4, V=4, G=2, inner=16, norm=False).double()
    last.load_state_dict(layer.state_dict())
    bare.load_state_dict({key: p for key, p in layer.state_dict().items() if not key.startswith("norm")})
    bare.out = torch.nn.Identity()
    gated, gate = bare(x)[0], torch.nn.functional.silu(layer.inward(x)[..., :16])
    assert (layer(x)[0] - layer.out(layer.norm(gated))).abs().max() <= 1e-12
    assert (last(x)[0] - layer.out(layer.norm(gated / gate) * gate)).abs().max() <= 1e-10


def test_norms_without_weights_in_mamba():
    plain, scaled = (mamba.Layer(8, norms=kind, norm_eps=0.1) for kind in ("plain", True))
    assert not [key for key in plain.state_dict() if key.startswith("norms")]
    scaled.load_state_dict(plain.state_dict(), strict=False)
    x = torch.randn(1, 5, 8)
    assert torch.equal(plain(x)[0], scaled(x)[0])
