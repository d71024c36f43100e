"""What computes a recurrence: which implementations there are for a case, and which of them "auto" takes."""

import functools
import importlib
import importlib.util

import torch

from postx.scans.runtime import COMPILED
from postx.shapes import pick

IMPLEMENTATIONS = ("reference", "numba")  # on a CPU, of every recurrence; "auto" is the last
GPU_IMPLEMENTATIONS = ("reference", "triton")  # on a CUDA device, where triton has a kernel for the case
HALVES = torch.float16, torch.bfloat16
MOST_KEYS, MOST_STATES = 256, 128  # the widest state that the triton kernels keep in registers
# The general delta recurrence's chunks take many launches. On an H200, H=16 K=V=64, at T=256: 0.5 ms forward, 2.8 with
# the way back (B=1 and B=8), token by token 0.3 and 1.6. At T=4096 and B=8: 1.9 and 9.3, token by token 4.3 and 24.
FEWEST_TOKENS = 512


@functools.cache
def has_triton() -> bool:
    """Whether triton is installed. It comes with torch's CUDA build for Linux, and not with the CPU build."""
    return importlib.util.find_spec("triton") is not None


def choose(impl: str, x: torch.Tensor, kernel: bool = False) -> str:
    """The implementation that `impl` stands for on x's device. Raises ValueError naming those that are there.

    `kernel` says that the recurrence has a triton kernel for the case at hand.
    """
    if x.device.type == "cpu":
        if impl == "numba" and not COMPILED:
            raise ValueError("impl: 'numba' is not available where NUMBA_DISABLE_JIT is set; 'auto' is the reference")
        return pick(impl, IMPLEMENTATIONS if COMPILED else IMPLEMENTATIONS[:1])
    return pick(impl, GPU_IMPLEMENTATIONS if kernel and x.is_cuda and has_triton() else ("reference",))


@functools.cache
def kernels(name):
    """The module gpu_`name`, which imports triton, so not before it is asked for."""
    return importlib.import_module(f"postx.scans.gpu_{name}")


def delta_in_chunks(plain, g, k_BTHK, v_BTHV):
    """The kernels that take this delta recurrence in chunks on a GPU, or None: then it goes token by token.

    One token alone is no chunk, here and in `in_chunks`: its table is read and written once, which is all there is.
    "plain" ones know b = c = k, y read after, and one decay a head or none; "general" ones all.
    """
    if v_BTHV.dtype not in HALVES or k_BTHK.shape[-1] > 128 or v_BTHV.shape[1] == 1:
        return None
    if plain and (g is None or g.dim() in (1, 3)):
        return "plain"
    return "general" if v_BTHV.shape[1] >= FEWEST_TOKENS else None


def in_chunks(v_BTHV):
    """Whether the GPU takes this table recurrence in chunks: not in float64, which its tensor cores are slow at."""
    return v_BTHV.dtype != torch.float64 and v_BTHV.shape[1] > 1


def keys_in_chunks(v_BTHV):
    """Whether the GPU takes a decay a key, or read="before", in chunks: in half precision, from one whole chunk on.

    As measured on an H200, 16 heads, K=V=128: 64 tokens take 0.03 ms (B=1) and 0.06 ms (B=16) in chunks, 0.05 and 0.52
    one by one; but 1 token takes 0.03 in a chunk and 0.01 alone. In float32 the blocks that were checked are no faster.
    """
    return v_BTHV.dtype in HALVES and v_BTHV.shape[1] >= 64
