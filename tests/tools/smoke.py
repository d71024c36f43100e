"""A few lines that import what an installed wheel has; run outside of the repository, in a bare environment."""

import torch

from postx import cost, mixers
from postx.mixers import gla, ssd
from postx.models import checkpoints
from postx.models.lm import LM
from postx.quant import gptq

for mixer in (gla, ssd):
    z, w = mixer.example(50)
    y, _ = mixers.by_step(mixer, *z, **w)
    assert float((mixer.chunked(*z, **w)[0] - y).abs().max()) < 1e-12
assert LM("SSA", D=64)(torch.zeros(1, 5, dtype=torch.int64))[0].shape == (1, 5, 256)
assert gptq.quantize(torch.randn(64, 64), 2, torch.randn(256, 64)).bits_per_weight < 2.5
assert cost.attention_scores(8192) == 8192 * 8193 // 2
assert checkpoints.kept() == [], "the wheel holds kept weights"
print("postx computes")
