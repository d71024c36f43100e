"""The same numbers on a GPU. Skipped where there is none."""

import inspect

import contract
import pytest
import torch

from postx import mixers, scans

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")
PAIRS = [(name, form) for name in mixers.names() for form in mixers.forms(mixers.load(name))]


def to(x, device):
    return contract.map_tensors(lambda t: t.to(device), x)


@pytest.mark.parametrize(("name", "form"), PAIRS)
def test_form_on_the_gpu_equals_step_on_the_cpu(name, form):
    mixer = mixers.load(name)
    z, w = mixer.example(37)
    S, lengths = contract.warm_state(mixer), torch.tensor([37, 20])
    want = mixers.by_step(mixer, *z, S=S, lengths_B=lengths, **w)
    got = contract.run(mixer, form, to(z, "cuda"), to(w, "cuda"), S=to(S, "cuda"), lengths_B=lengths.cuda())
    assert all(x.is_cuda for x in contract.leaves(got))
    assert contract.close(to(got, "cpu"), want) <= contract.TOLERANCE


@pytest.mark.parametrize("dtype", list(contract.BOUNDS), ids=str)
@pytest.mark.parametrize(("name", "form"), PAIRS)
def test_low_precision_on_the_gpu(name, form, dtype):
    mixer = mixers.load(name)
    z, w = contract.cast(mixer.example(48), dtype)
    y, _ = contract.run(mixer, form, to(z, "cuda"), to(w, "cuda"))
    wide = [contract.cast_up(x) for x in (z, w)]
    want, _ = mixers.by_step(mixer, *wide[0], **wide[1])
    assert y.dtype == dtype
    assert contract.close(y.cpu(), want, contract.BOUNDS[dtype]) <= contract.BOUNDS[dtype]


CHOOSING = [p for p in PAIRS if "impl" in inspect.signature(getattr(mixers.load(p[0]), p[1])).parameters]


@pytest.mark.parametrize(("name", "form"), CHOOSING)
def test_numba_is_refused_by_name(name, form):
    mixer = mixers.load(name)
    z, w = (to(x, "cuda") for x in mixer.example(4))
    with pytest.raises(ValueError, match="impl: 'numba' is not available here"):
        contract.run(mixer, form, z, w, impl="numba")


def test_scans_pick_the_reference():
    assert scans.choose("auto", torch.zeros(1, device="cuda")) == "reference"
