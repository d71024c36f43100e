"""The diagonal Triton kernels as a torch function with gradients. First order only."""

import math

import torch
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from postx.scans import gpu_affine, gpu_blocks, gpu_diagonal
from postx.scans.arguments import sum_to
from postx.scans.gpu_chunked_ops import launch, room


class Layout:
    """Who computes what: the grid, the sizes and strides, and the constants of the kernels."""

    def __init__(self, u, delta, A, B, C, lengths):
        (rows, T, D), N = u.shape, A.shape[1]
        self.block, warps, group, groups, segments = gpu_blocks.diagonal(rows, T, D, N)
        self.chunk = group * groups
        self.chunks = -(-T // self.chunk)
        self.span = -(-self.chunks // segments) * self.chunk
        self.segments = -(-T // self.span)
        self.grid = -(-D // self.block), self.segments, rows
        self.sizes = T, D, N, *delta.expand(rows, T, D).stride()[:2], self.segments, self.span
        self.lengths, self.ragged = (u, False) if lengths is None else (lengths.contiguous(), True)
        self.wide = {
            f"WIDE_{name}": tuple(x.shape[:3]) != (rows, T, 1) for name, x in (("B", B), ("C", C))
        }
        self.meta = {
            "RAGGED": self.ragged, "BLOCK_N": gpu_blocks.power(N, 4), "BLOCK": self.block, "GROUP": group,
            "GROUPS": groups, "num_warps": warps,
        }  # fmt: skip

    def enter(self, u, delta, A, B, first, reverse):
        """(what enters every segment [B,segments,D,N], what leaves the last one or None where there is one)."""
        if self.segments == 1:
            return first, None
        products, ends, entering = (first.new_empty(len(u), self.segments, *A.shape) for _ in range(3))
        last, wide = torch.empty_like(first), self.wide["WIDE_C" if reverse else "WIDE_B"]
        launch(gpu_diagonal.summarize, self.grid, u, u, delta, A, B, self.lengths, products, ends, *self.sizes,
               REVERSE=reverse, WIDE=wide, **self.meta)  # fmt: skip
        numbers = A.numel()
        launch(gpu_affine.carry, (-(-numbers // 256), len(u)), u, products, ends, first, entering, last, numbers,
               self.segments, REVERSE=reverse, BLOCK=256)  # fmt: skip
        return entering, last


class Diagonal(Function):
    """u_BTD, delta [B,T,D] or [1,1,D], A_DN, B and C [B,T,1,N] or [1,1,D,N], S_BDN; lengths_B or None.

    A and S have the state's dtype; the others are read as they are and computed in that dtype.
    """

    @staticmethod
    def forward(ctx, u, delta, A, B, C, S, lengths):
        u, delta, A, B, C, S = (x.contiguous() for x in (u, delta, A, B, C, S))
        layout, keep = Layout(u, delta, A, B, C, lengths), any(ctx.needs_input_grad)
        y, last = room(u, u.shape, lengths), torch.empty_like(S)
        kept = S.new_empty(len(u), layout.chunks if keep else 0, *A.shape)
        entering, _ = layout.enter(u, delta, A, B, S, False)
        pointers = u, delta, A, B, C, entering, layout.lengths, y, last, kept
        launch(gpu_diagonal.forward, layout.grid, u, *pointers, *layout.sizes, layout.chunks, KEEP=keep,
               **layout.wide, **layout.meta)  # fmt: skip
        ctx.save_for_backward(u, delta, A, B, C, kept, lengths)
        return y, last

    @staticmethod
    @once_differentiable
    def backward(ctx, dy, dlast):
        u, delta, A, B, C, kept, lengths = ctx.saved_tensors
        dy, dlast = dy.contiguous(), dlast.contiguous()
        layout = Layout(u, delta, A, B, C, lengths)
        entering, _ = layout.enter(dy, delta, A, C, dlast, True)
        rows, T, _ = u.shape
        du, ddelta = room(u, u.shape, lengths), room(delta, u.shape, lengths)
        dA, dS = dlast.new_empty(rows, layout.segments, *A.shape), torch.empty_like(dlast)
        scratch = dlast.new_empty(math.prod(layout.grid), layout.meta["GROUPS"], layout.meta["BLOCK_N"], layout.block)
        parts = layout.grid[0], rows, T, A.shape[1]
        dB, dC = (
            torch.empty_like(dA) if layout.wide[wide] else room(dlast, parts, lengths) for wide in ("WIDE_B", "WIDE_C")
        )
        pointers = u, delta, A, B, C, kept, layout.lengths, dy, entering, scratch, du, ddelta, dA, dB, dC, dS
        sizes = *layout.sizes, layout.chunks, layout.meta["GROUPS"]
        launch(gpu_diagonal.backward, layout.grid, u, *pointers, *sizes, **layout.wide, **layout.meta)
        dB, dC = (
            (dx.sum((0, 1)) if layout.wide[wide] else dx.sum(0)).view(x.shape).to(x.dtype)
            for wide, dx, x in (("WIDE_B", dB, B), ("WIDE_C", dC, C))
        )
        return du, sum_to(ddelta, delta.shape), dA.sum((0, 1)), dB, dC, dS, None
