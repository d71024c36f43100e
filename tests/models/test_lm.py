"""Language models from pattern strings: every letter decodes, resumes and packs as it trains."""

import copy
import functools
import importlib
import io
import re
import sys
from pathlib import Path

import pytest
import torch

from postx import mixers
from postx.mixers import FORMS, forms, gla, load, map_state
from postx.models.blocks import MIXERS, Context, letters
from postx.models.lm import LM, count, generate, leaves, places, sample, size
from postx.models.nn import MoE

SMALL = {"S": {"K": 8}, "L": {"window": 5}, "H": {"W": 7, "hidden": 8}, "7": {"value_rank": 3}, "P": {"size": 64}}
CASES = {letter: {"pattern": 2 * letter} for letter in MIXERS} | {
    "Z": {"pattern": "MZMZ"},
    "P": {"pattern": "PA", "options": {"A": {"rope": None}}},
    "sinusoidal": {"pattern": "PA", "options": {"P": {"kind": "sinusoidal"}}},
    "alibi": {"pattern": "AL", "options": {"A": {"alibi": True}, "L": {"alibi": True, "window": 5}}},
    "(AS)": {"pattern": "(AS)(RL)"},
    "experts": {"pattern": "AE", "mlp": "E", "options": {"E": {"E": 3, "shared": 8}}},
    "channel mix": {"pattern": "7V", "mlp": "V", "norm": "layer", "embed_norm": True, "tied": False},
} | {f"{x} conv": {"pattern": x, "options": {x: {"conv_size": 4}}} for x in "ANTWDG"}
UNBOUNDED = "A", "K", "Z", "P", "sinusoidal", "alibi", "(AS)", "experts", "A conv"
every_case = pytest.mark.parametrize("case", CASES)
B, T, Y = 2, 9, 32


@functools.cache
def model(case):
    torch.manual_seed(0)
    kw = dict(CASES[case])
    mine = {x for x in kw["pattern"] if x in SMALL}
    options = {x: SMALL[x] for x in mine} | kw.pop("options", {})
    lm = LM(kw.pop("pattern"), 16, Y, options=options, std=0.2, **kw).double()
    return lm


@functools.cache
def ids():
    return torch.randint(0, Y, (B, T), generator=torch.Generator().manual_seed(1))


def close(a, b):
    assert (a - b).abs().max().item() <= 1e-9


@every_case
def test_decoding_equals_training(case):
    lm = model(case)
    logits, _ = lm(ids())
    assert logits.shape == (B, T, Y)
    S, steps = None, []
    for t in range(T):
        y, S = lm(ids()[:, t : t + 1], S)
        steps.append(y)
    close(torch.cat(steps, 1), logits)


@every_case
def test_a_later_token_moves_nothing_before_it(case):
    lm, changed = model(case), ids().clone()
    changed[:, 7] = (changed[:, 7] + 1) % Y
    before, after = lm(ids())[0], lm(changed)[0]
    close(before[:, :7], after[:, :7])
    assert (before[:, 7:] - after[:, 7:]).abs().max() > 1e-6


@every_case
def test_a_saved_state_resumes(case):
    lm = model(case)
    whole, _ = lm(ids())
    _, S = lm(ids()[:, :4])
    assert len(S) == len(lm.blocks)
    kept = map_state(lambda x: x.clone(), S)
    file = io.BytesIO()
    torch.save(map_state(lambda x: x.to("cpu"), S), file)
    file.seek(0)
    close(lm(ids()[:, 4:], torch.load(file))[0], whole[:, 4:])
    close(lm(ids()[:, 4:], S)[0], whole[:, 4:])
    assert all(torch.equal(a, b) for a, b in zip(leaves(S), leaves(kept), strict=True)), "a pure call wrote into S"


@every_case
def test_packed_and_ragged_rows_equal_separate_ones(case):
    lm = model(case)
    reset = torch.zeros(B, T, dtype=torch.bool)
    reset[0, 4], reset[1, 6] = True, True
    packed, S = lm(ids(), reset_BT=reset)
    for row, cut in ((0, 4), (1, 6)):
        close(packed[row : row + 1, :cut], lm(ids()[row : row + 1, :cut])[0])
        close(packed[row : row + 1, cut:], lm(ids()[row : row + 1, cut:])[0])
    more = ids()[:, :3]
    close(lm(more, S)[0][1:], lm(more[1:], lm(ids()[1:, 6:])[1])[0])
    ragged, S = lm(ids(), lengths_B=torch.tensor([5, T]))
    alone, S_alone = lm(ids()[:1, :5])
    close(ragged[:1, :5], alone)
    close(lm(more, S)[0][:1], lm(more[:1], S_alone)[0])


@every_case
def test_gradients_reach_every_parameter(case):
    lm = model(case)
    lm.zero_grad()
    lm.loss(ids()).backward()
    still = [n for n, p in lm.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    still = [n for n in still if "router" not in n]  # with one choice renormalised to 1, or dead by chance
    assert not still, f"no gradient reaches {still}"


@every_case
def test_generation_reads_each_token_once_and_bounds_its_state(case):
    lm, read = model(case), []
    hook = lm.embed.register_forward_hook(lambda module, args, out: read.append(args[0].shape[1]))
    greedy, S = generate(lm, ids(), 5, temperature=0)
    hook.remove()
    assert read == [T, 1, 1, 1, 1]
    whole, S_prompt = lm(ids())
    assert (size(S) == size(S_prompt)) == (case not in UNBOUNDED)
    assert torch.equal(greedy[:, :1], whole[:, -1:].argmax(-1))
    again, _ = lm(torch.cat([ids(), greedy], 1))
    assert torch.equal(greedy, again[:, T - 1 : -1].argmax(-1))


@pytest.mark.parametrize("letter", MIXERS)
def test_forms_agree(letter):
    lm = model(letter)
    want = lm(ids())[0]
    for form in forms(load(MIXERS[letter][0])):
        close(lm(ids(), form=form)[0], want)
    lacking = set(FORMS) - set(forms(load(MIXERS[letter][0])))
    for form in lacking:
        with pytest.raises(ValueError, match=f"form: {MIXERS[letter][0]} has .* not '{form}'"):
            lm(ids(), form=form)


@every_case
def test_off_the_cpu_no_step_waits_for_a_number(case):
    """On the meta device a read of a value, or a mask that decides a shape, raises: as it would in a CUDA graph."""
    lm = model(case)
    weights = {n: torch.empty_like(x, device="meta") for n, x in (*lm.named_parameters(), *lm.named_buffers())}
    weights = {n: x.requires_grad_(x.is_floating_point()) for n, x in weights.items()}
    call = torch.func.functional_call(lm, weights, (ids().to("meta"),), {"with_load": True})
    loss = call[0].square().mean() + sum(load.balance for load in call[2])
    loss.backward()
    assert all(weights[n].grad is not None for n, _ in lm.named_parameters())


@every_case
def test_state_size_is_known_without_computing(case):
    lm = model(case)
    _, S = lm(ids())
    assert lm.state_bytes(T, B) == size(S)
    assert lm.state_floats(T, B) == sum(
        x.numel() * (1 + x.is_complex()) for x in leaves(S) if x.is_floating_point() or x.is_complex()
    )


def test_a_new_mixer_goes_by_its_name_and_needs_no_chunked_form(tmp_path, monkeypatch):
    """A file with `recurrent` and `parallel` alone: a model of it trains, resumes, and is measured on any device."""
    source = Path(gla.__file__).read_text(encoding="utf8")
    alone = re.sub(r"@packed\ndef chunked.*?(?=^def |^@)", "", source.replace('"W"', '"Q"'), flags=re.M | re.S)
    (tmp_path / "standin.py").write_text(alone, encoding="utf8")
    monkeypatch.setattr(mixers, "__path__", [*mixers.__path__, str(tmp_path)])
    monkeypatch.setitem(sys.modules, "postx.mixers.standin", importlib.import_module("postx.mixers.standin"))
    assert forms(load("standin")) == ["recurrent", "parallel"]
    assert letters()["Q"] == ("standin", {})
    torch.manual_seed(0)
    lm = LM(["standin", ("attention", "S"), "F"], 16, Y, options={"standin": {"H": 2}}).double()
    S = lm(ids())[1]
    assert lm.state_bytes(T, B) == size(S)
    want = lm(ids())[0]
    close(torch.cat([lm(ids()[:, :5])[0], lm(ids()[:, 5:], lm(ids()[:, :5])[1])[0]], 1), want)
    weights = {n: torch.empty_like(x, device="meta", requires_grad=True) for n, x in lm.named_parameters()}
    torch.func.functional_call(lm, weights, (ids().to("meta"),))[0].sum().backward()
    with pytest.raises(ValueError, match="form: standin has 'recurrent', 'parallel' and 'auto', not 'chunked'"):
        lm(ids(), form="chunked")
    with pytest.raises(ValueError, match="no letter 'absent'"):
        LM(["absent"], 16)


def test_loss_is_the_mean_over_targets_that_count():
    lm = model("A")
    logits, _ = lm(ids())
    p = logits.log_softmax(-1)
    nll = -p[:, :-1].gather(2, ids()[:, 1:, None])[..., 0]
    assert lm.loss(ids()).item() == pytest.approx(nll.mean().item(), rel=1e-6)
    targets = torch.full((B, T), -100)
    targets[0, 3], targets[1, 8] = 5, 7
    want = -(p[0, 3, 5] + p[1, 8, 7]) / 2
    assert lm.loss(ids(), targets).item() == pytest.approx(want.item(), rel=1e-6)


def test_balance_loss_is_added_and_counts_are_the_experts():
    lm = model("experts")
    logits, _, loads = lm(ids(), with_load=True)
    assert len(loads) == 2
    gap = lm.loss(ids(), balance=0.5) - lm.loss(ids(), balance=0.0)
    want = 0.5 * sum(load.balance for load in lm(ids()[:, :-1], with_load=True)[2])
    assert gap.item() == pytest.approx(want.item(), rel=1e-5)
    total, active = count(lm)
    one = [m for m in lm.modules() if isinstance(m, MoE)][0]
    expert = one.up_EDF[0].numel() * 3
    assert total == sum(p.numel() for p in lm.parameters())
    assert total - active == 2 * (3 - 2) * expert  # two places, three experts of which a token reads two


def test_parallel_heads_add_on_the_same_input():
    lm = model("(AS)")
    block = lm.blocks[0]
    x = torch.randn(B, T, 16, dtype=torch.float64)
    seen = block.norm(x)
    middle = x + block.mix[0](seen)[0] + block.mix[1](seen)[0]
    want = middle + block.mlp(block.mlp_norm(middle))
    close(block(x, None, Context())[0], want)


def test_zambas_block_has_one_set_of_weights_and_reads_the_embedding():
    lm = model("Z")
    names = [n for n, _ in lm.named_parameters() if "attention" in n]
    assert names
    assert all(n.startswith("shared.") for n in names)
    assert len(lm.state_dict()) == len(list(lm.named_parameters()))
    x, other = torch.randn(2, B, T, 16, dtype=torch.float64).unbind(0)
    place = lm.blocks[1].mix[0]
    a, b = (place(x, cross={"shared": lm.shared, "embedding": e})[0] for e in (x, other))
    assert (a - b).abs().max() > 1e-3
    y = lm.shared.attention(lm.shared.norm(torch.cat([x, other], -1)))[0]
    close(b, place.out(lm.shared.mlp(lm.shared.mlp_norm(y))))


def test_rwkv7_hands_on_the_first_value():
    first, second = (block.mix[0] for block in model("7").blocks)
    assert first.value is None
    x, cross = torch.randn(B, T, 16, dtype=torch.float64), {}
    first(x, cross=cross)
    a = second(x, cross=cross)[0]
    b = second(x, cross={"first_value": 2 * cross["first_value"]})[0]
    assert (a - b).abs().max() > 1e-4
    with pytest.raises(ValueError, match="cross: this layer blends its v with the first layer's"):
        second(x)


def test_initial_weights():
    torch.manual_seed(0)
    lm = LM("MA" * 4, 128)
    assert lm.embed.weight.std().item() == pytest.approx(0.02, rel=0.05)
    attention = lm.blocks[1].mix[0]
    assert attention.q.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert attention.out.weight.std().item() == pytest.approx(0.02 / 4, rel=0.05)  # 2 L = 16
    mamba = lm.blocks[0].mix[0]
    assert torch.equal(mamba.log_rate_DN.exp().round(), torch.arange(1.0, 17).repeat(256, 1))
    step = torch.nn.functional.softplus(mamba.delta.bias)
    assert 9e-4 < step.min() < step.max() < 0.11
    assert lm.loss(torch.randint(0, 256, (2, 32)), form="chunked").item() == pytest.approx(5.545, abs=0.1)  # log 256


def test_sampling():
    logits = torch.tensor([[0.0, 2.0, 1.0, -5.0]]).repeat(4000, 1)
    assert torch.equal(sample(logits, 0)[:1], torch.tensor([1]))
    seed = torch.Generator().manual_seed(0)
    assert set(sample(logits, top_k=2, generator=seed).tolist()) == {1, 2}
    share = (sample(logits[:, 1:3], 0.5, generator=seed) == 0).double().mean().item()
    assert share == pytest.approx(1 / (1 + torch.tensor(-2.0).exp().item()), abs=0.02)
    with pytest.raises(ValueError, match="temperature: expected a finite number >= 0, got -1"):
        sample(logits, -1)


def test_patterns_and_their_errors():
    assert places("M(AS)F") == ["M", "AS", "F"]
    for wrong in ("", "M(A", "()", "A)"):
        with pytest.raises(ValueError, match="pattern: cannot read"):
            places(wrong)
    for wrong in ("Aq", "(AF)", "(PA)"):
        with pytest.raises(ValueError, match="pattern: no letter"):
            places(wrong)
    with pytest.raises(ValueError, match="mlp: expected 1 or 2 letters"):
        LM("MA", 16, mlp="FFF")
    with pytest.raises(ValueError, match="options: S not in the pattern 'MA'"):
        LM("MA", 16, options={"S": {}})
    with pytest.raises(ValueError, match="norm: expected one of 'rms', 'layer', got 'batch'"):
        LM("MA", 16, norm="batch")
    with pytest.raises(ValueError, match="S: expected 2 entries, one a place, got 1"):
        model("A")(ids(), LM("A", 16)(ids())[1])
    with pytest.raises(ValueError, match=r"ids_BT: expected 2 axes"):
        model("A")(ids()[0])


def test_a_window_is_a_ring_and_positions_start_again():
    lm = model("L")
    _, S = generate(lm, ids(), 30, generator=torch.Generator().manual_seed(0))
    assert S[0][0][0].shape == (B, 5, 4, 4)  # five slots after 38 tokens
    assert S[0][0][2].tolist() == [T + 29, T + 29]
    reset = torch.zeros(B, T, dtype=torch.bool)
    reset[0, 4] = True
    positions = model("P").blocks[0].mix[0]
    y, (last,) = positions(torch.zeros(B, T, 16), reset_BT=reset, lengths_B=torch.tensor([6, 0]))
    assert torch.equal(y[0], positions.table.weight[[0, 1, 2, 3, 0, 1, 2, 3, 4]])
    assert last.tolist() == [2, 0]


def test_seeds_differ_and_repeat():
    draws = [generate(model("M"), ids(), 8, generator=torch.Generator().manual_seed(n))[0] for n in (0, 0, 1)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


@pytest.mark.parametrize("case", ["A", "S", "I", "G", "R", "experts"])
def test_half_precision_weights_keep_wide_states(case):
    lm = copy.deepcopy(model(case)).to(torch.bfloat16)
    logits, S = lm(ids())
    more, _ = lm(ids()[:, :1], S)
    assert logits.dtype == more.dtype == torch.bfloat16
    assert more.isfinite().all()
    assert (logits - model(case)(ids())[0]).abs().max() < 0.5
    if case in "SIGR":
        assert {x.dtype for x in leaves(S)} <= {torch.float32, torch.complex64, torch.int64}
