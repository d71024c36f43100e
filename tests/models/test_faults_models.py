"""Faults that people meet in language models of this kind: each test holds the right answer of one, or of its kind."""

import io

import pytest
import torch

from postx.models.blocks import MIXERS, state_axes
from postx.models.lm import LM, generate, sample
from postx.models.nn import MoE, RMSNorm

IDS = torch.randint(0, 11, (2, 6), generator=torch.Generator().manual_seed(0))
EVERY = "".join(MIXERS)


def small(pattern="AS", **kw):
    torch.manual_seed(0)
    options = {"S": {"K": 8}, "H": {"W": 16}} | kw.pop("options", {})
    return LM(pattern, 16, 11, std=0.5, options={k: x for k, x in options.items() if k in pattern or k in "FE"}, **kw)


# What generate() has to have


def test_prompts_of_different_lengths_continue_as_each_would_alone():
    for pattern in ("AS", "L", "M4", "R", "PA"):
        lm = small(pattern)
        lengths = torch.tensor([3, 6])
        together, S = generate(lm, IDS, 4, temperature=0, lengths_B=lengths)
        for row, length in enumerate(lengths.tolist()):
            alone, _ = generate(lm, IDS[row : row + 1, :length], 4, temperature=0)
            assert together[row].tolist() == alone[0].tolist()
        again, _ = generate(lm, together[:, -1:], 2, temperature=0, S=S)  # the state goes on from the last new token
        longer, _ = generate(lm, IDS, 6, temperature=0, lengths_B=lengths)
        assert torch.equal(longer[:, 4:], again)


def test_an_end_token_ends_its_row_and_no_other():
    lm = small("AM")
    free, _ = generate(lm, IDS, 8, temperature=0)
    eos = int(free[0, 2])
    ended, S = generate(lm, IDS, 8, temperature=0, eos=eos)
    for row in range(2):
        at = (free[row] == eos).nonzero()[:, 0].tolist()
        stop = at[0] if at else 8
        assert ended[row, :stop].tolist() == free[row, :stop].tolist()
        assert (ended[row, stop:] == eos).all()
    # The state of the ended row has stood still: read its end token and go on as if it alone had been there.
    first = (free[0] == eos).nonzero()[0, 0]
    _, S_alone = generate(lm, IDS[:1], int(first) + 1, temperature=0)
    assert torch.allclose(S[1][0][1][:1], S_alone[1][0][1], atol=1e-6)


def test_all_rows_ended_ask_the_model_no_more(monkeypatch):
    lm = small("M")
    eos, calls = int(generate(lm, IDS[:1], 1, temperature=0)[0]), []
    whole = lm.forward
    monkeypatch.setattr(lm, "forward", lambda *a, **kw: calls.append(1) or whole(*a, **kw))
    ids, _ = generate(lm, IDS[:1], 50, temperature=0, eos=eos)
    assert ids.shape == (1, 50)
    assert (ids == eos).all()
    assert len(calls) == 1


def test_top_p_keeps_the_fewest_tokens_that_reach_p():
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log().expand(4000, 4)
    rng = torch.Generator().manual_seed(0)
    for p, kept in ((0.4, {0}), (0.49, {0}), (0.6, {0, 1}), (0.81, {0, 1, 2}), (1.0, {0, 1, 2, 3}), (1e-9, {0})):
        assert set(sample(logits, generator=rng, top_p=p).tolist()) == kept
    share = (sample(logits, generator=rng, top_p=0.79) == 0).double().mean()
    assert abs(float(share) - 0.5 / 0.8) < 0.03
    both = sample(logits, top_k=2, generator=rng, top_p=0.6)  # top_k first: 5/8 reach 0.6 alone
    assert set(both.tolist()) == {0}


@pytest.mark.parametrize(
    ("more", "name"),
    [
        ({"top_k": 0}, "top_k: "),
        ({"top_k": -1}, "top_k: "),
        ({"top_k": 2.5}, "top_k: "),
        ({"top_p": 0}, "top_p: "),
        ({"top_p": 1.1}, "top_p: "),
        ({"n": -1}, "n: "),
        ({"n": 2.0}, "n: "),
        ({"eos": 11}, "eos: "),
        ({"eos": -1}, "eos: "),
        ({"lengths_B": torch.tensor([0, 3])}, "lengths_B: "),
        ({"lengths_B": torch.tensor([3, 7])}, "lengths_B: "),
        ({"temperature": float("nan")}, "temperature: "),
    ],
)
def test_arguments_of_generate_are_refused_by_name(more, name):
    with pytest.raises(ValueError, match=name):
        generate(small("M"), IDS, **{"n": 2} | more)
    with pytest.raises(ValueError, match="prompt_BT: "):
        generate(small("M"), IDS[:, :0], 2)


def test_arguments_of_generate_at_their_edges():
    lm = small()
    ids, S = generate(lm, IDS, 0)
    assert ids.shape == (2, 0)
    assert torch.equal(generate(lm, IDS[:, -1:], 1, temperature=0, S=generate(lm, IDS[:, :-1], 0)[1])[0],
                       generate(lm, IDS, 1, temperature=0)[0])  # fmt: skip
    drawn = [generate(lm, IDS, 5, top_k=k, generator=torch.Generator().manual_seed(1))[0] for k in (None, 11, 50)]
    assert torch.equal(drawn[0], drawn[1])
    assert torch.equal(drawn[0], drawn[2])
    greedy = generate(lm, IDS, 5, temperature=0)[0]
    for temperature in (1e-44, 1e-300, 5e-324, 1e-13):
        assert torch.equal(generate(lm, IDS, 5, temperature=temperature)[0], greedy)
    assert generate(lm, IDS[:0], 3)[0].shape == (0, 3)


def test_a_broken_network_is_not_sampled():
    for bad in (float("nan"), float("inf")):
        logits = torch.zeros(2, 5)
        logits[1, 3] = bad
        for temperature in (0, 1.0):
            with pytest.raises(ValueError, match="logits_BY: 1 of 2 rows are not finite"):
                sample(logits, temperature)
    with pytest.raises(ValueError, match="logits_BY"):
        sample(torch.full((1, 5), -torch.inf))
    masked = torch.tensor([[0.0, -torch.inf, -torch.inf]])  # a mask is no fault
    assert sample(masked).tolist() == [0]


# Padding, empty batches, states


def test_experts_do_not_count_padding():
    lm = small("A", mlp="E", options={"E": {"E": 4, "k": 1}})
    lengths, targets = torch.tensor([3, 6]), torch.roll(IDS, -1, 1)
    other = IDS.clone()
    other[0, 3:] = (other[0, 3:] + 5) % 11
    load = lm(IDS, lengths_B=lengths, with_load=True)[2][0]
    assert int(load.tokens_E.sum()) == 9
    assert abs(float(load.probability_E.sum()) - 1) < 1e-6
    losses = []
    for ids in (IDS, other):
        lm.zero_grad()
        loss = lm.loss(ids, targets, lengths_B=lengths, balance=1.0)
        loss.backward()
        losses.append((loss.item(), lm.blocks[0].mlp.router.weight.grad.clone()))
    assert losses[0][0] == losses[1][0]
    assert torch.equal(losses[0][1], losses[1][1])
    alone = [small("A", mlp="E", options={"E": {"E": 4, "k": 1}})(IDS[row : row + 1, :n], with_load=True)[2][0]
             for row, n in enumerate(lengths.tolist())]  # fmt: skip
    assert torch.equal(load.tokens_E, sum(x.tokens_E for x in alone))
    full = MoE(8, E=4)(torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0)))[1]
    assert abs(float(full.probability_E.sum()) - 1) < 1e-6


def test_targets_past_a_row_are_not_asked():
    lm, lengths = small("S"), torch.tensor([3, 6])
    targets = torch.roll(IDS, -1, 1)
    asked = targets.clone()
    asked[0, 3:] = -100
    assert lm.loss(IDS, targets, lengths_B=lengths).item() == lm.loss(IDS, asked).item()
    by_hand = IDS[:, 1:].clone()
    by_hand[0, 2:] = -100
    assert abs(lm.loss(IDS, lengths_B=lengths).item() - lm.loss(IDS[:, :-1], by_hand).item()) < 1e-6


def test_a_batch_without_rows_has_numbers():
    load = MoE(8)(torch.zeros(0, 3, 8))[1]
    assert torch.isfinite(load.balance)
    for letter in EVERY:
        lm = small(letter)
        whole = torch.zeros(0, dtype=torch.int64), torch.zeros(0, 6, dtype=torch.bool)
        for side in ({}, {"lengths_B": whole[0]}, {"reset_BT": whole[1]}):
            logits, S = lm(IDS[:0], **side)
            assert logits.shape == (0, 6, 11)
            assert lm(IDS[:0, :1], S)[0].shape == (0, 1, 11)


@pytest.mark.parametrize("letter", MIXERS)
def test_a_state_of_another_pattern_is_refused_by_name(letter):
    lm = small(letter)
    _, S = lm(IDS)
    assert [x.ndim for x in S[0][0]] == state_axes(letter, 16, **dict(lm.blocks[0].kept[0][1]))
    other = small("M" if letter != "M" else "A")(IDS)[1]
    if letter not in "DGNWHCIT" or [x.ndim for x in other[0][0]] != [x.ndim for x in S[0][0]]:
        with pytest.raises(ValueError, match=f"S: the state of {letter} is|S: place {letter} keeps"):
            lm(IDS, other)
    with pytest.raises(ValueError, match="S: place"):
        lm(IDS, ((*S[0], S[0][0]),))


def test_arguments_of_a_model_are_held_before_any_layer_sees_them():
    for pattern in ("4", "PA", "A", "MF"):
        lm = small(pattern)
        with pytest.raises(ValueError, match="reset_BT: expected bool"):
            lm(IDS, reset_BT=torch.zeros(2, 6, dtype=torch.int64))
        with pytest.raises(ValueError, match="lengths_B: expected values from 0 to T=6"):
            lm(IDS, lengths_B=torch.tensor([9, 1]))
    with torch.device("meta"):
        shell = small("A")
    ids = IDS.to("meta")
    with pytest.raises(ValueError, match="S: how full a cache is"):
        shell(ids, shell(ids)[1])


# Files, devices, dtypes


def test_every_activation_can_be_saved_with_its_module():
    for activation in ("silu", "gelu", "gelu_tanh", "relu2"):
        lm = small("A", options={"F": {"activation": activation}})
        file = io.BytesIO()
        torch.save(lm, file)
        file.seek(0)
        again = torch.load(file, weights_only=False)
        assert torch.equal(again(IDS)[0], lm(IDS)[0])


@pytest.mark.parametrize(
    "options", [{letter: {}} for letter in EVERY] + [{"A": {"alibi": True}}, {"L": {"alibi": True}}], ids=str
)
def test_a_model_built_on_meta_and_loaded_is_the_model(options):
    (letter,) = options
    real = small(2 * letter, options=options).eval()
    for assign in (False, True):
        with torch.device("meta"):
            shell = small(2 * letter, options=options)
        if not assign:
            shell.to_empty(device="cpu")
            for key, buffer in shell.named_buffers():
                if key not in shell.state_dict():
                    buffer.fill_(7.0)  # stands for anything
        shell.load_state_dict(real.state_dict(), assign=assign)
        assert torch.equal(shell.eval()(IDS)[0], real(IDS)[0])


@pytest.mark.parametrize("letter", [*EVERY, "MZMZ", "PA", "7V", "AE"])
@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")
def test_a_prompt_read_under_autocast_is_continued_without(letter):
    lm = small(letter)
    with torch.no_grad():
        with torch.autocast("cpu", torch.bfloat16):
            _, S = lm(IDS)
        y, _ = lm(IDS[:, :1], S)
        assert y.dtype == torch.float32
        want = lm(IDS[:, :1], lm(IDS)[1])[0]
    assert (y - want).abs().max() < 0.3 * want.abs().max()


def test_whole_numbers_are_refused_where_the_answer_would_be_cut():
    with pytest.raises(ValueError, match="x: expected floating point"):
        RMSNorm(4)(torch.ones(1, 2, 4, dtype=torch.int64))
