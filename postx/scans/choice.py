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
def gpu_ops():
    return importlib.import_module("postx.scans.gpu_ops")  # imports triton, so not before it is asked for


@functools.cache
def chunked_ops():
    return importlib.import_module("postx.scans.gpu_chunked_ops")


@functools.cache
def delta_ops():
    return importlib.import_module("postx.scans.gpu_delta_ops")


def delta_in_chunks(g, k_BTHK, v_BTHV):
    """Whether the GPU takes this delta recurrence in chunks: one decay a head or none, in half precision, K <= 128.

    One token alone is no chunk, here and in `in_chunks`: its table is read and written once, which is all there is.
    """
    per_head = g is None or g.dim() in (1, 3)
    return per_head and v_BTHV.dtype in HALVES and k_BTHK.shape[-1] <= 128 and v_BTHV.shape[1] > 1


def in_chunks(v_BTHV):
    """Whether the GPU takes this table recurrence in chunks: not in float64, which its tensor cores are slow at."""
    return v_BTHV.dtype != torch.float64 and v_BTHV.shape[1] > 1
