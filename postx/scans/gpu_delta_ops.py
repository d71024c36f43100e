"""The chunked delta kernels as a torch function with gradients. First order only."""

import torch
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from postx.scans import gpu_blocks, gpu_delta_chunked
from postx.scans.arguments import sum_to
from postx.scans.gpu_chunked_ops import DTYPES, dense, launch, operand, strides_of, whole


class ChunkedDelta(Function):
    """q, k [B,T,heads,K], v_BTHV, g [B|1,T|1,heads] or None, beta [B|1,T|1,heads], S_BHKV; lengths_B or None."""

    @staticmethod
    def forward(ctx, q, k, v, g, beta, S, lengths):
        q, k, v, S, lengths = dense(q), dense(k), dense(v), S.contiguous(), whole(lengths)
        work = Work(q, k, v, g, beta, S, lengths)
        inverse = work.solve()
        y, last = v.new_empty(v.shape), torch.empty_like(S)
        work.forward(inverse, y, last, None, None)
        ctx.save_for_backward(q, k, v, g, beta, S, lengths, inverse)
        return y, last

    @staticmethod
    @once_differentiable
    def backward(ctx, dy, dlast):
        q, k, v, g, beta, S, lengths, inverse = ctx.saved_tensors
        work, dy, kind = Work(q, k, v, g, beta, S, lengths), dy.contiguous(), S.dtype
        tables = v.new_empty(*S.shape[:2], work.chunks, *S.shape[2:], dtype=work.op)
        written, adjoints = v.new_empty(v.shape, dtype=work.op), torch.empty_like(tables)
        work.forward(inverse, None, None, tables, written)
        dv, dS = v.new_empty(v.shape), torch.empty_like(S)
        work.backward(inverse, dy, dlast.contiguous(), dv, dS, adjoints)
        dq, dk = (
            x.new_empty(*v.shape[:3], x.shape[3], dtype=x.dtype if x.shape[2] == v.shape[2] else kind) for x in (q, k)
        )
        dbeta, dg = (v.new_empty(v.shape[:3], dtype=kind) for _ in range(2))
        work.gradients(tables, adjoints, written, dy, dv, dq, dk, dg, dbeta)
        dq, dk, dbeta = (sum_to(grad, x.shape).to(x.dtype) for grad, x in ((dq, q), (dk, k), (dbeta, beta)))
        return dq, dk, dv, None if g is None else sum_to(dg, g.shape).to(g.dtype), dbeta, dS, None


class Work:
    """The launches of one call, and what they have in common."""

    def __init__(self, q, k, v, g, beta, S, lengths):
        self.q, self.k, self.v, self.S, self.lengths = q, k, v, S, lengths
        self.g = v.new_empty(1).expand(*v.shape[:2], 1) if g is None else g.expand(*v.shape[:2], -1)
        self.beta = beta.expand(*v.shape[:2], -1)
        self.op = operand(v)
        self.blocks = gpu_blocks.delta(self.op.itemsize, *S.shape[2:])
        self.chunk = self.blocks["chunk"]
        self.chunks = -(-v.shape[1] // self.chunk)
        B, self.H, K, V = S.shape
        self.programs = B * self.H
        self.sizes = v.shape[1], self.H, K, V
        self.heads = q.shape[2], k.shape[2], self.g.shape[2], self.beta.shape[2], self.chunks
        self.meta = {"DECAY": g is not None, "RAGGED": lengths is not None, "CHUNK": self.chunk}
        self.meta["BLOCK_K"] = gpu_blocks.whole(K, self.op.itemsize)
        self.meta["PRECISION"] = "tf32x3" if self.op == torch.float32 else "ieee"

    def solve(self):
        T, H, K, _ = self.sizes
        inverse = self.v.new_empty(self.programs, self.chunks, self.chunk, self.chunk, dtype=self.op)
        strides = strides_of(self.k, self.g, self.beta)
        pointers = self.k, self.g, self.beta, self.lengths_or(), inverse
        launch(gpu_delta_chunked.solve, (self.programs * self.chunks,), self.v, *pointers, T, H, K, *self.heads[1:],
               *strides, **self.meta, KIND=DTYPES[self.S.dtype], SOLVE="tf32x3" if self.op == torch.float32 else "tf32",
               num_warps=self.blocks["solve"])  # fmt: skip
        return inverse

    def forward(self, inverse, y, last, tables, written):
        block, warps, stages = self.blocks["forward"]
        block, read = gpu_blocks.fit(block, self.sizes[3], self.op.itemsize), y is not None
        if read:  # a kernel takes a tensor in the place of one that it will not touch
            tables = written = inverse
        else:
            y, last = written, self.S
        tokens = self.q, self.k, self.v, self.g, self.beta
        pointers = *tokens, inverse, self.S, self.lengths_or(), y, last, tables, written
        strides = strides_of(self.q, self.k, self.v, self.g, self.beta)
        launch(gpu_delta_chunked.forward, (self.programs, -(-self.sizes[3] // block)), self.v, *pointers, *self.sizes,
               *self.heads, *strides, **self.meta, READ=read, KEEP=not read, BLOCK_V=block, STAGES=stages,
               num_warps=warps)  # fmt: skip

    def backward(self, inverse, dy, dlast, dv, dS, adjoints):
        block, warps, stages = self.blocks["backward"]
        block = gpu_blocks.fit(block, self.sizes[3], self.op.itemsize)
        pointers = self.q, self.k, dy, self.g, self.beta, inverse, dlast, self.lengths_or(), dv, dS, adjoints
        strides = strides_of(self.q, self.k, dy, self.g, self.beta)
        launch(gpu_delta_chunked.backward, (self.programs, -(-self.sizes[3] // block)), self.v, *pointers, *self.sizes,
               *self.heads, *strides, **self.meta, BLOCK_V=block, STAGES=stages, num_warps=warps)  # fmt: skip

    def gradients(self, tables, adjoints, written, dy, dv, dq, dk, dg, dbeta):
        block, warps, stages = self.blocks["gradients"]
        tokens = self.q, self.k, self.g, self.beta, tables, adjoints, written
        pointers = *tokens, self.lengths_or(), dy, dv, dq, dk, dg, dbeta
        block = gpu_blocks.fit(block, self.sizes[3], self.op.itemsize)
        strides = strides_of(self.q, self.k, dy, self.g, self.beta)
        launch(gpu_delta_chunked.gradients, (self.programs * self.chunks,), self.v, *pointers, *self.sizes, *self.heads,
               *strides, **self.meta, BLOCK_V=block, num_warps=warps, num_stages=stages)  # fmt: skip

    def lengths_or(self):
        """A kernel takes a tensor in the place of the lengths that it will not touch."""
        return self.v if self.lengths is None else self.lengths
