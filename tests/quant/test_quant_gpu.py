"""Quantizers on a GPU: the numbers of the CPU, and ternary training captured in a graph. Skipped where there is none.

python -m pytest tests/quant/test_quant_gpu.py
"""

import numpy as np
import pytest
import torch
from test_quant import BITS, INPUTS

from experiments import spin
from experiments.runner.program import Program
from experiments.runner.sweep import build
from postx import quant
from postx import text as texts
from postx.models import quantized
from postx.models.lm import LM
from postx.quant import _pack, rotate, ternary

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")
GPU = torch.device("cuda")
CASES = [(name, bits) for name in quant.names() for bits in BITS.get(name, (2, 3, 4, 8)) or (None,)]


def gauss(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(("name", "bits"), CASES)
def test_quantizers_give_the_numbers_of_the_cpu(name, bits):
    """In float64 sums of another order change next to nothing: at most one weight in a thousand gets another code."""
    W, kw = gauss(48, 128), {"x_TI": gauss(256, 128, seed=1)} if name in INPUTS else {}
    run = quant.load(name).quantize
    args = () if bits is None else (bits,)
    want = run(W, *args, **kw)
    got = run(W.to(GPU), *args, **{key: x.to(GPU) for key, x in kw.items()})
    assert all(part.is_cuda for part in got.parts.values())
    assert got.nbytes == want.nbytes
    back = got.dequantize()
    assert back.is_cuda
    away = (back.cpu() - want.dequantize()).abs() > 1e-5
    assert float(away.float().mean()) < 1e-3
    carried = want.to(GPU).dequantize().cpu()  # the same bytes read on the other device
    assert torch.allclose(carried, want.dequantize(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("bits", range(1, 9))
def test_packing_writes_the_same_bytes(bits):
    codes = torch.randint(
        0, 2**bits, (5, 37), dtype=torch.uint8, generator=torch.Generator().manual_seed(bits)
    )
    packed = _pack.pack(codes, bits)
    assert torch.equal(_pack.pack(codes.to(GPU), bits).cpu(), packed)
    assert torch.equal(_pack.unpack(packed.to(GPU), bits, 37).cpu(), codes)


def test_trits_are_packed_the_same():
    trits = torch.randint(-1, 2, (5, 37), dtype=torch.int8, generator=torch.Generator().manual_seed(0))
    packed = _pack.pack_trits(trits)
    assert torch.equal(_pack.pack_trits(trits.to(GPU)).cpu(), packed)
    assert torch.equal(_pack.unpack_trits(packed.to(GPU), 37).cpu(), trits)


@pytest.mark.parametrize("n", [8, 12, 192, 360, 4096])
def test_hadamard(n):
    x = gauss(3, n).float()
    assert torch.allclose(rotate.hadamard(x.to(GPU)).cpu(), rotate.hadamard(x), atol=2e-5)
    assert torch.allclose(rotate.unhadamard(rotate.hadamard(x.to(GPU))).cpu(), x, atol=2e-5)


def test_matvec_is_refused_by_name():
    q = ternary.quantize(gauss(4, 16)).to(GPU)
    with pytest.raises(ValueError, match="the kernels are for a CPU, got cuda"):
        q.matvec(torch.zeros(16, device=GPU))


def test_a_captured_ternary_step_equals_one_on_the_cpu():
    run = {"pattern": "AA", "D": 32, "Y": 64, "options": {"A": {"H": 2}}, "mlp": "F", "trits": True, "B": 4, "T": 24,
           "steps": 30, "lr": 1e-3, "seed": 0, "name": "trits", "task": {}}  # fmt: skip
    ids = torch.randint(0, 64, (30, 4, 24), generator=torch.Generator().manual_seed(0))
    losses = []
    for device in (torch.device("cpu"), GPU):
        program, done = Program(build(run), ids, ids, run, device), 0
        if device.type == "cuda":
            with torch.cuda.stream(torch.cuda.Stream()):
                done = program.capture()
        for _ in range(done, 30):
            program.step()
        torch.cuda.synchronize()
        assert program.hold() is None
        losses.append(program.losses())
    # Roundings go the other way for sums of another order, so that the two drift apart.
    assert torch.allclose(losses[0][:5], losses[1][:5], rtol=2e-3)
    assert torch.allclose(losses[0][-5:], losses[1][-5:], rtol=0.05)
    assert losses[1][-1] < losses[1][0]


def test_a_rotation_is_learned_as_on_the_cpu(monkeypatch):
    monkeypatch.setattr(spin, "B", 2)
    monkeypatch.setattr(spin, "T", 24)
    words = np.frombuffer(b"a wall below four bits is a choice of range and of basis. ", np.uint8)
    text = texts.Text(*(np.tile(words, 20) for _ in texts.SPLITS), source="one sentence")
    torch.manual_seed(0)
    lm = LM("AA", 16, 256, options={"A": {"H": 2}, "F": {"F": 24}}, mlp="F", std=0.3)
    start, found = rotate.spin(torch.eye(16), 0), []
    for device in (torch.device("cpu"), GPU):
        R, losses = spin.learn(spin.Rounded(lm.to(device), 3, 4), start.to(device), text, 8, 0.1, device)
        assert float((R @ R.T - torch.eye(16, device=device)).abs().max()) < 1e-5
        found.append(losses)
    assert found[0][0] == pytest.approx(found[1][0], rel=0.01)


def test_a_whole_model_is_quantized_there():
    torch.manual_seed(0)
    lm = LM("AA", 32, 64, options={"A": {"H": 2}}, mlp="F", std=0.2)
    ids = torch.randint(0, 64, (2, 24), generator=torch.Generator().manual_seed(1))
    want = quantized.round_inputs(quantized.quantized(lm, "gptq", 4, ids)[0])(ids)[0].detach()
    small, report = quantized.quantized(lm.to(GPU), "gptq", 4, ids.to(GPU))
    got = quantized.round_inputs(small)(ids.to(GPU))[0].detach().cpu()
    assert report.bits_per_weight > 4
    assert float((got - want).square().mean() / want.square().mean()) < 0.01
