"""A writer writes what calls of the model write: the definition is `LM.forward`."""

import copy

import pytest
import torch
from torch import nn

from postx.models import checkpoints, quantized, writer
from postx.models._stages import lay_out
from postx.models.blocks import Context
from postx.models.lm import LM, generate, leaves
from postx.models.nn import Packed
from postx.parts.rope import Rope
from postx.quant import gptq, ternary, uniform
from postx.shapes import map_state, trusted

pytestmark = pytest.mark.skipif(not writer.COMPILED, reason="NUMBA_DISABLE_JIT leaves nothing to test")
BOUND = 1e-5  # of the largest logit; sums in another order cost 2e-6 at most
CASES = {
    "attention": ("AA", {}),
    "groups, widths": ("A", {"A": {"H": 4, "G": 2, "K": 6, "V": 10}}),
    "no positions": ("A", {"A": {"rope": None}}),
    "interleaved, some channels": ("A", {"A": {"H": 2, "rope": Rope(base=100.0, pairing="interleaved", dims=4)}}),
    "a ring": ("LA", {"L": {"window": 7}}),
    "a ring of one": ("L", {"L": {"window": 1}}),
    "norms of q and k, a bias": ("A", {"A": {"qk_norm": True, "qk_eps": 1e-3, "out_bias": True}}),
    "ssd": ("SS", {"S": {"K": 8}}),
    "ssd, groups": ("S", {"S": {"K": 5, "V": 12, "G": 2}}),
    "ssd, no norm, limits": ("S", {"S": {"K": 8, "V": 8, "norm": False, "dt_limit": (0.05, 0.08)}}),
    "ssd, two taps": ("S(S)", {"S": {"K": 8, "conv_size": 2}}),
    "ssd, no convolution": ("S", {"S": {"K": 8, "conv_size": 1}}),
    "gated deltanet": ("GG", {"G": {"H": 4, "G": 2}}),
    "gated deltanet, one value head": ("G", {"G": {"H": 1, "K": 5, "V": 7, "negative_eigenvalues": True}}),
    "gated deltanet, taps": ("GA", {"G": {"H": 2, "G": 1, "K": 16, "V": 20, "conv_size": 4}}),
    "two mixers side by side": ("(AS)F", {"S": {"K": 8}}),
    "an MLP of one branch": ("FF", {"F": {"gated": False, "activation": "relu2", "bias": True, "F": 37}}),
    "gelu": ("AF", {"F": {"activation": "gelu", "bias": True}}),
    "gelu by tanh": ("AF", {"F": {"activation": "gelu_tanh"}}),
}


def model(pattern, options, **more):
    """24 channels, 45 tokens: neither fills a panel. Every parameter is noise, norms and biases as well."""
    torch.manual_seed(0)
    lm = LM(pattern, 24, 45, options=options, **more)
    with torch.no_grad():
        for p in lm.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return lm.eval()


@torch.no_grad()
def by_calls(lm, S, ids_BT):
    """Logits of every token, one call each, which write into nothing; and the state."""
    found = []
    for ids_B in ids_BT.unbind(1):
        logits, S = lm(ids_B[:, None], S)
        found.append(logits[:, -1])
    return torch.stack(found, 1), S


@torch.no_grad()
def differs(lm, T=5, n=40, ordinary=()):
    """The largest difference of logits and states from `by_calls`, each over its largest number."""
    ids = torch.randint(lm.embed.num_embeddings, (1, T + n), generator=torch.Generator().manual_seed(T))
    S = lm(ids[:, :T])[1]
    before = copy.deepcopy(S)
    want, last = by_calls(lm, S, ids[:, T:])
    fast = writer.Writer(lm, S)
    assert fast.ordinary == list(ordinary)
    with trusted():
        got = torch.stack([fast(ids_B).clone() for ids_B in ids[:, T:].unbind(1)], 1)
    assert all(torch.equal(a, b) for a, b in zip(leaves(S), leaves(before), strict=True))  # it was copied
    pairs = [(got, want)]
    for a, b in zip(leaves(fast.state()), leaves(last), strict=True):
        assert a.dtype == b.dtype
        if a.dim() == 4 and a.shape != b.shape:  # a cache with room to spare
            assert not a[:, b.shape[1] :].any()
            a = a[:, : b.shape[1]]
        pairs += [(a, b)] if b.numel() else []
    return max(float((a.double() - b.double()).abs().max() / b.double().abs().max().clamp(min=1)) for a, b in pairs)


@pytest.mark.parametrize("name", CASES)
def test_a_writer_equals_the_model(name):
    assert differs(model(*CASES[name])) <= BOUND


@pytest.mark.parametrize(
    ("more", "options"), [({"tied": False}, {}), ({"embed_norm": True}, {}), ({"eps": 0.1}, {}), ({"mlp": "-"}, {})]
)
def test_the_ends_of_the_model(more, options):
    assert differs(model("A", options, **more)) <= BOUND


MIXED = {  # places without a plan
    "DSA": [0], "SPA": [1], "ZSZA": [0, 2], "ASE": [2], "SNA6": [1, 3], "A(AD)": [1],
}  # fmt: skip


@pytest.mark.parametrize("pattern", MIXED)
def test_places_without_a_plan_run_as_they_always_do(pattern):
    options = {"S": {"K": 8}, "D": {"H": 2}, "6": {"H": 2}, "Z": {"H": 2}, "P": {"size": 64}}
    used = {key: value for key, value in options.items() if key in pattern}
    assert differs(model(pattern, used), ordinary=MIXED[pattern]) <= BOUND


def test_what_crosses_places_is_there():
    assert differs(model(["rwkv7", "rwkv7", "A"], {"rwkv7": {"H": 2, "value_rank": 4}}), ordinary=[0, 1]) <= BOUND


KINDS = {
    "uint16": lambda W: W.bfloat16().float(),
    "int8": lambda W: 0.3 * W.sign() * (W.abs() > 0.1),
    "float32": lambda W: W,
}


@pytest.mark.parametrize("kind", KINDS)
def test_weights_are_kept_as_narrow_as_they_are(kind):
    lm = model("AS", {"S": {"K": 8}})
    with torch.no_grad():
        for layer in lm.modules():
            if isinstance(layer, nn.Linear):
                layer.weight.copy_(KINDS[kind](layer.weight))
    layers = [layer for layer in lm.modules() if isinstance(layer, nn.Linear)]
    for layer in layers:
        (panels,) = writer.lay_out([layer])
        assert panels.W.dtype == kind
        assert panels.W.shape == (-(-layer.out_features // 32), layer.in_features, 32)
    wider = copy.deepcopy(layers[1])
    with torch.no_grad():
        wider.weight.mul_(1.0001)
    one, _ = writer.lay_out([layers[0]], [wider])
    assert one.W.dtype == "float32" if kind != "int8" else "int8"  # as wide as the widest of a place
    assert differs(lm) <= BOUND


@pytest.mark.parametrize("name", ["attention", "hybrid", "ssd", "ternary"])
def test_the_kept_models_write_the_same_bytes(name, monkeypatch):
    lm = checkpoints.load(name)
    assert differs(lm, T=20, n=60) <= BOUND
    prompt = torch.tensor([list(b"The ")])
    drawn = ({"top_k": 20, "temperature": 0.8}, {"top_p": 0.9}) if name == "hybrid" else ()  # alike of every model
    for choice in ({"temperature": 0}, {}, *drawn):
        draw = [torch.Generator().manual_seed(5) for _ in range(2)]
        got, S = generate(lm, prompt, 80, generator=draw[0], **choice)
        with monkeypatch.context() as without:
            without.setattr(writer, "refused", lambda *args: "not now")
            want, last = generate(lm, prompt, 80, generator=draw[1], **choice)
        assert torch.equal(got, want)
        assert [x.shape for x in leaves(S)] == [x.shape for x in leaves(last)]


@pytest.mark.parametrize("group", [7, 16, "row", "tensor"])
@pytest.mark.parametrize("bits", [4, 3, 2])
def test_packed_layers_are_read_as_codes(bits, group):
    """24 channels: groups that do not come out even, outputs that fill no panel, MLPs, and a bias."""
    lm = model("AS", {"A": {"H": 2, "out_bias": True}, "S": {"K": 8}})
    for i, (name, layer) in enumerate(quantized.linears(lm).items()):
        q = uniform.quantize(layer.weight.data, bits, group=group, grid=uniform.GRIDS[i // 4 % 3])
        lm.set_submodule(name, Packed(q, layer.bias))
    assert differs(lm) <= BOUND
    W, _ = lay_out([lm.blocks[1].mix[0].inward], [lm.blocks[1].mix[0].out])
    assert W.W.itemsize * W.W.shape[2] == 4 * bits  # 32 codes


def test_packed_layers_that_have_no_codes_of_that_kind_are_read_as_numbers():
    lm, x = model("A", {"A": {"H": 2}}), torch.randn(60, 24, generator=torch.Generator().manual_seed(1))
    mlp, mix = lm.blocks[0].mlp, lm.blocks[0].mix[0]
    for part, name, q in ((mlp, "up", uniform.quantize(mlp.up.weight.data, 5)),
                          (mlp, "out", uniform.quantize(mlp.out.weight.data, 4, group=8)),
                          (mix, "q", gptq.quantize(mix.q.weight.data, 3, x, group=8, act_order=True)),
                          (mix, "out", ternary.quantize(mix.out.weight.data))):  # fmt: skip
        setattr(part, name, Packed(q))
    assert differs(lm) <= BOUND


def test_generate_ends_and_goes_on_as_without(monkeypatch):
    """At an end token; and from the state that it returned."""
    lm, prompt = model("AS", {"S": {"K": 8}}), torch.tensor([[1, 2, 3]])
    text = generate(lm, prompt, 60, temperature=0)[0]
    eos = int(text[0, 20])
    found = []
    for why in (writer.refused, lambda *args: "not now"):
        monkeypatch.setattr(writer, "refused", why)
        ended, S = generate(lm, prompt, 60, temperature=0, eos=eos)
        more, _ = generate(lm, ended[:, -1:], 30, temperature=0, S=S)
        found.append((ended, more))
    for a, b in zip(*found, strict=True):
        assert torch.equal(a, b)


def test_weights_are_read_anew_by_every_call_of_generate():
    lm, prompt = model("AF", {}), torch.tensor([[1, 2]])
    before, _ = generate(lm, prompt, 30, temperature=0)
    lm.blocks[0].mix[0].out.weight.data.mul_(-3)
    after, _ = generate(lm, prompt, 30, temperature=0)
    assert not torch.equal(before, after)


def test_it_says_why_it_does_not_write():
    lm = model("AS", {"S": {"K": 8}})
    assert writer.refused(lm, 1) is None
    assert "one row" in writer.refused(lm, 2)
    assert "at least 4 tokens" in writer.refused(lm, 1, 3)
    assert "float32" in writer.refused(model("A", {}).double(), 1)
    assert "float32" in writer.refused(model("A", {}).bfloat16(), 1)
    assert "no place" in writer.refused(model("D", {"D": {"H": 2}}, mlp="-"), 1)
    assert "own parts" in writer.refused(model("A", {}, norm="layer"), 1)
    with torch.autocast("cpu", torch.bfloat16):
        assert "autocast" in writer.refused(lm, 1)
    with pytest.raises(ValueError, match="lm: a writer is for one row"):
        writer.Writer(lm, lm(torch.zeros(2, 3, dtype=torch.int64))[1])


CHANGES = {
    "a hook": lambda lm: lm.blocks[1].mix[0].inward.register_forward_hook(lambda m, x, y: 2 * y),
    "a hook on weights": lambda lm: nn.utils.parametrizations.weight_norm(lm.blocks[1].mix[0].out),
    "another layer": lambda lm: setattr(lm.blocks[1].mix[0], "out", nn.Sequential(lm.blocks[1].mix[0].out, nn.Tanh())),
    "a forward of its own": lambda lm: setattr(lm.blocks[1].mix[0].out, "forward", lambda x: x[..., :24]),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_was_changed_is_not_passed_over(change):
    lm = model("ASA", {"S": {"K": 8}})
    CHANGES[change](lm)
    assert differs(lm, ordinary=[1]) <= BOUND


def test_a_norm_of_queries_that_was_replaced_has_no_plan():
    lm = model("A", {"A": {"qk_norm": True}})
    assert writer.planned(lm.blocks[0])
    norms = lm.blocks[0].mix[0].norms
    norms[0] = nn.LayerNorm(len(norms[0].weight))
    assert not writer.planned(lm.blocks[0])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_a_state_in_another_dtype_is_gone_on_from_by_the_model(dtype):
    lm, prompt = model("AS", {"S": {"K": 8}}), torch.tensor([[1, 2, 3]])
    S = map_state(lambda x: x.to(dtype) if x.is_floating_point() else x, lm(prompt)[1])
    assert "a state in float32" in writer.refused(lm, 1, S=S)
    got, _ = generate(lm, prompt, 12, temperature=0, S=S)
    logits, want = lm(prompt, S)[0][0, -1], []
    _, S = lm(prompt, S)
    for _ in range(12):
        want.append(int(logits.argmax()))
        y, S = lm(torch.tensor([want[-1:]]), S)
        logits = y[0, -1]
    assert got.tolist() == [want]


def test_a_writer_is_for_one_row_and_keeps_no_gradients():
    lm, ids = model("FA", {}), torch.tensor([[1, 2]])
    fast = writer.Writer(lm, lm(ids)[1])
    assert not fast(ids[0, :1]).requires_grad
    assert not fast.stream.requires_grad
    with pytest.raises(ValueError, match="ids_B: a writer is for one row, got 2"):
        fast(ids[0])


def test_a_hook_on_the_model_ends_it():
    lm = model("A", {})
    lm.register_forward_hook(lambda *_: None)
    assert "own parts" in writer.refused(lm, 1)


def test_a_cache_doubles_as_without():
    lm = model("A", {})
    ids = torch.randint(45, (1, 60), generator=torch.Generator().manual_seed(0))
    S = lm(ids[:, :3])[1]
    fast, want = writer.Writer(lm, S), S[0][0]
    with trusted(), torch.no_grad():
        for t in range(3, 60):
            fast(ids[:, t])
            x = lm.embed(ids[:, t : t + 1])
            want = lm.blocks[0](x, (want, ()), Context(inplace=True))[1][0]
            assert fast.state()[0][0][0].shape == want[0].shape
