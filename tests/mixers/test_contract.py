"""Every mixer in the folder, held to its own `step`. A mixer added tomorrow is tested by being there."""

import inspect

import contract
import pytest
import torch
from counting import Work

from postx import mixers

PAIRS = [(name, form) for name in mixers.names() for form in mixers.forms(mixers.load(name))]
LENGTHS = (1, 16, 37, 48)  # one token, one chunk, a ragged last chunk, whole chunks


def implementations(name, form):
    """What `impl=` must accept on a CPU, as the error message of a wrong one lists it."""
    function = getattr(mixers.load(name), form)
    if "impl" not in inspect.signature(function).parameters:
        return [None]
    z, w = mixers.load(name).example(2)
    with pytest.raises(ValueError, match="impl: 'no such thing'") as caught:
        function(*z, impl="no such thing", **w)
    return [part for part in str(caught.value).split("'")[3::2] if part != "auto"]


CASES = [
    pytest.param(
        name, form, {} if impl is None else {"impl": impl}, id=f"{name}-{form}" + (f"-{impl}" if impl else "")
    )
    for name, form in PAIRS
    for impl in implementations(name, form)
]
pairs = pytest.mark.parametrize(("name", "form"), PAIRS)
every_mixer = pytest.mark.parametrize("name", mixers.names())


def test_the_first_four_kinds_of_state_are_there():
    assert {"attention", "linear", "mla", "s4d"} <= set(mixers.names())


@pytest.mark.parametrize(("name", "form", "more"), CASES)
@pytest.mark.parametrize("T", LENGTHS)
def test_form_equals_step(name, form, more, T, agreement):
    worst = contract.form_equals_step(mixers.load(name), form, T, **more)
    assert worst <= contract.TOLERANCE
    agreement(name, form, "float64", T, worst)


@pytest.mark.parametrize(("name", "form", "more"), CASES)
def test_gradients_agree(name, form, more):
    assert contract.gradients_agree(mixers.load(name), form, **more) <= contract.TOLERANCE


@pytest.mark.parametrize("dtype", list(contract.BOUNDS), ids=lambda d: str(d).removeprefix("torch."))
@pairs
def test_low_precision_stays_within_its_bound(name, form, dtype, agreement):
    worst = contract.low_precision(mixers.load(name), form, dtype)
    assert worst <= contract.BOUNDS[dtype]
    agreement(name, form, str(dtype).removeprefix("torch."), 48, worst)


@pairs
@pytest.mark.parametrize(
    "check", ["cut_and_resume", "causal", "ragged", "packed_equals_alone", "strided", "extreme"]
)
def test_form(check, name, form):
    getattr(contract, check)(mixers.load(name), form)  # asserts within


@every_mixer
@pytest.mark.parametrize("check", ["step_is_pure", "inplace_equals_pure", "bad_states_are_refused"])
def test_step(check, name):
    getattr(contract, check)(mixers.load(name))  # asserts within


@pytest.mark.parametrize("name", [name for name in mixers.names() if hasattr(mixers.load(name), "operator")])
def test_operator(name, monkeypatch):
    mixer = mixers.load(name)
    contract.operator_equals_recurrent(mixer)  # asserts within
    whole = mixer.operator
    monkeypatch.setattr(mixer, "operator", lambda *z, **w: whole(*z, **w)._replace(A=whole(*z, **w).b))
    with pytest.raises((AssertionError, TypeError, RuntimeError, ValueError)):
        contract.operator_equals_recurrent(mixer)


def sizes_of(mixer, T, **more):
    """The sizes of `example`, by letter, read from the names of step's arguments."""
    z, w = mixer.example(T, **more)
    names = list(inspect.signature(mixer.step).parameters)[1 : len(z) + 1]
    tensors = {name.replace("_B", "_BT"): x for name, x in zip(names, z, strict=True)}
    tensors |= {name: x for name, x in w.items() if isinstance(x, torch.Tensor)}
    found = {}
    for name, x in tensors.items():
        found |= dict(zip(name.rpartition("_")[2], x.shape, strict=True))
    return found


@every_mixer
def test_cost_counts_the_real_state(name):
    mixer, T = mixers.load(name), 12
    z, w = mixer.example(T)
    _, S = mixers.by_step(mixer, *z, **w)
    floats = sum(
        x.numel() * (2 if x.is_complex() else 1) for x in contract.leaves(S) if x.dtype != torch.int64
    )
    sizes = {
        k: v
        for k, v in sizes_of(mixer, T).items()
        if k in inspect.signature(mixer.cost).parameters and k != "T"
    }
    bill = mixer.cost(T, **sizes)
    assert bill.state_floats == floats
    assert bill.bytes > 0
    assert bill.bounded or bill.by


WIDE = {"B": 16, "H": 4, "G": 2, "K": 64, "V": 64, "D": 40, "N": 32, "W": 64, "F": 48, "R": 32, "nope": 24, "rotary": 8}
# What a step does beyond the bill, in FLOPs a row, and why.
BEYOND = {
    "rwkv4": lambda s: 2 * s["D"],  # it adds u + k and max + g twice
    "rwkv6": lambda s: 2 * s["H"] * s["K"] * s["V"],  # it spreads the bonus over a table; the bill reads q'diag(u)k
    "s4d": lambda s: 4 * s["D"] * s["N"],  # the imaginary part of C h, which is thrown away
}


@every_mixer
def test_cost_counts_the_operations(name):
    """`cost` against what one step does: its contractions by torch's counter alone, or all operations one by one.

    Sizes are large enough that what is O(K) beside O(K V) is within the 6%. A cache is read with 7 tokens in it, and
    a filter as long as the text is counted with its FFTs over all of it.
    """
    mixer = mixers.load(name)
    grows = getattr(mixer, "GROWS", None)
    T, sizes = (256, WIDE | {grows: 256}) if grows else (1, WIDE)
    z, w = mixer.example(T, **{k: v for k, v in sizes.items() if k in inspect.signature(mixer.example).parameters})
    known = inspect.signature(mixer.cost).parameters
    found = {k: v for k, v in (sizes | sizes_of(mixer, T)).items() if k in known and k != "T"}
    found = {k: sizes.get(k, v) for k, v in found.items()}
    past = 0 if mixer.cost(T, **found).bounded else 7
    bill = mixer.cost(T, **found, **({"past": past} if past else {}))
    token = tuple(x[:, 0] for x in z)
    S = mixer.init(*token, **w)
    for _ in range(past):
        S = mixer.step(S, *token, **w)[1]
    with Work() as work:
        mixer.parallel(*z, **w) if grows else mixer.step(S, *token, **w)
    done = work.all - BEYOND.get(name, lambda _: 0)(sizes) * sizes["B"]
    told = f"cost says {bill.flops:,}; counted are {work.contractions:,} in contractions and {done:,} of all kinds"
    assert bill.flops == work.contractions or bill.flops == pytest.approx(done, rel=0.06), f"{name}: {told}"


@every_mixer
def test_layer_resumes_and_learns(name):
    torch.manual_seed(0)
    layer = mixers.load(name).Layer(16).double()
    x = torch.randn(2, 11, 16, dtype=torch.float64)
    y, S = layer(x)
    assert y.shape == x.shape
    assert isinstance(S, tuple), f"the state of {name}.Layer is a tuple, also where only the mixer's S is in it"
    y_a, S_a = layer(x[:, :4])
    y_b, S_b = layer(x[:, 4:], S_a)
    contract.close((torch.cat([y_a, y_b], 1), S_b), (y, S))
    y.square().sum().backward()
    still = [n for n, p in layer.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert not still, f"no gradient reaches {still}"


@every_mixer
def test_layer_takes_lengths_and_resets_and_is_causal(name):
    torch.manual_seed(0)
    layer, x = mixers.load(name).Layer(16).double(), torch.randn(2, 12, 16, dtype=torch.float64)
    reset = torch.zeros(2, 12, dtype=torch.bool)
    reset[:, 5] = True
    (y_a, S_a), (y_b, S_b) = layer(x[:, :5]), layer(x[:, 5:])
    y, S = layer(x, reset_BT=reset)
    contract.close(y, torch.cat([y_a, y_b], 1))
    contract.close(layer(x, S)[0], layer(x, S_b)[0])  # states may differ where only relative positions count
    contract.close(layer(x, layer(x, lengths_B=torch.tensor([5, 5]))[1])[0], layer(x, S_a)[0])
    changed = torch.cat([x[:, :7], x[:, 7:] + 1], 1)
    contract.close(layer(changed)[0][:, :7], layer(x)[0][:, :7])


@every_mixer
def test_bad_input_is_named(name):
    mixer = mixers.load(name)
    z, w = mixer.example(4)
    argument = list(inspect.signature(mixer.recurrent).parameters)[0]
    with pytest.raises(ValueError, match=f"{argument}: expected .*axes .*got shape"):
        mixer.recurrent(z[0][..., None], *z[1:], **w)
    with pytest.raises(ValueError, match="lengths_B: expected values from 0 to T=4"):
        mixer.recurrent(*z, lengths_B=torch.tensor([5, 1]), **w)
    with pytest.raises(ValueError, match="reset_BT: expected bool"):
        mixer.recurrent(*z, reset_BT=torch.zeros(2, 4), **w)
    with pytest.raises(ValueError, match="at least one token"):
        mixer.recurrent(*(x[:, :0] for x in z), **w)


def test_unknown_mixer_is_an_error_that_lists_the_known():
    with pytest.raises(ValueError, match="attention"):
        mixers.load("attention2")


def test_an_unfinished_mixer_is_told_what_it_lacks(tmp_path, monkeypatch):
    (tmp_path / "halfway.py").write_text("def init(): pass\ndef step(): pass\n")
    monkeypatch.setattr(mixers, "__path__", [*mixers.__path__, str(tmp_path)])
    with pytest.raises(ValueError, match="halfway.py is unfinished: it lacks FAMILY, STATE, recurrent, example, cost"):
        mixers.load("halfway")


@every_mixer
def test_whole_numbers_are_refused_by_name(name):
    """They would cut the answer to whole numbers, or stop a kernel's compiler with an error that names nothing."""
    mixer = mixers.load(name)
    z, w = mixer.example(4)
    argument = list(inspect.signature(mixer.recurrent).parameters)[0]
    for form in mixers.forms(mixer):
        with pytest.raises(ValueError, match=f"{argument}: expected floating point numbers, got torch.int64"):
            getattr(mixer, form)(z[0].long(), *z[1:], **w)
    with pytest.raises(ValueError, match="expected floating point numbers, got torch.int64"):
        mixer.step(mixer.init(*(x[:, 0] for x in z), **w), z[0][:, 0].long(), *(x[:, 0] for x in z[1:]), **w)
