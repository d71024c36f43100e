"""A Layer in half precision hands half precision to its recurrence: what a GPU's tensor cores are for."""

from pathlib import Path

import pytest
import torch

from postx import mixers, scans
from postx.mixers import linear, mlstm

TOKENS = {"decay": slice(3), "delta": slice(3), "affine": slice(1, 2), "diagonal": slice(1)}
LOG_DECAY = {"decay": 3, "delta": 4, "affine": 0}


def calls_a_scan(name):
    """Whether a mixer's file calls one of them. Not for liquid, which solves an equation in float32 for what it writes,
    nor s4d, whose numbers are complex, do kernels in half precision exist."""
    text = Path(mixers.load(name).__file__).read_text(encoding="utf8")
    return name not in ("liquid", "s4d") and any(f"scans.{scan}(" in text for scan in TOKENS)


NAMES = [name for name in mixers.names() if calls_a_scan(name)]


@pytest.fixture
def seen(monkeypatch):
    """(the dtypes of what is read and written, that of the log-decay or None) of every call of a recurrence."""
    calls = []

    def recorded(name):
        scan, at = getattr(scans, name), LOG_DECAY.get(name)

        def record(*args, **options):
            g = None if at is None else args[at]
            calls.append(({x.dtype for x in args[TOKENS[name]]}, None if g is None else g.dtype))
            return scan(*args, **options)

        return record

    for name in TOKENS:
        monkeypatch.setattr(scans, name, recorded(name))
    return calls


def test_they_are_found():
    assert {"deltanet", "gated_deltanet", "kda", "linear", "mamba", "mlstm", "rglru", "rwkv7", "ssd"} <= {*NAMES}


@pytest.mark.parametrize("how", ["weights", "autocast"])
@pytest.mark.parametrize("name", NAMES)
def test_a_layer_hands_half_precision_to_its_recurrence(name, how, seen):
    layer, x = mixers.load(name).Layer(32), torch.randn(2, 5, 32)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=how == "autocast"):
        y, _ = layer(x, form="recurrent") if how == "autocast" else layer.bfloat16()(x.bfloat16(), form="recurrent")
    assert y.dtype == torch.bfloat16
    assert seen
    for tokens, g in seen:
        assert tokens == {torch.bfloat16}
        # retnet's decays are constants of the layer, stored as its weights are
        assert g in (None, torch.float32) or name == "retnet"


@pytest.mark.parametrize("mixer", [linear, mlstm])
def test_weights_that_are_summed_stay_in_float32_where_float16_ends(mixer):
    """1,000 tokens whose weights add up to far more than 65,504."""
    z, _ = mixer.example(1000, B=1)
    z = [x.half() for x in z]
    z[0], z[1] = 4 + z[0].abs(), 4 + z[1].abs()
    if mixer is mlstm:
        z[4] = torch.zeros_like(z[4])  # nothing fades
    y, _ = mixer.recurrent(*z)
    want, _ = mixer.recurrent(*(x.double() for x in z))
    assert y.dtype == torch.float16
    assert (y - want).abs().max() <= 5e-3


def test_one_token_alone_is_no_chunk():
    """On a GPU its table is read and written once, by the kernel that goes token by token."""
    for T in (1, 2):
        v = torch.zeros(1, T, 2, 4, dtype=torch.bfloat16)
        assert scans.choice.in_chunks(v) == bool(scans.choice.delta_in_chunks(True, None, v, v)) == (T > 1)
