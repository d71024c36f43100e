"""The chunked Triton kernels and the affine one as torch functions with gradients. First order only.

Nothing here waits for the GPU or tries out variants, so a call can be captured in a CUDA graph. q, k, v and dy are
read by their strides as long as their last axis is dense; a table's heads are done in slices, so that no more than
`gpu_blocks.AT_ONCE` bytes of tables stand in memory at a time.
"""

import contextlib

import torch
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from postx.scans import gpu_affine, gpu_blocks, gpu_chunked
from postx.scans.arguments import sum_to


def launch(kernel, grid, like, *args, **meta):
    with torch.cuda.device(like.device) if like.is_cuda else contextlib.nullcontext():
        kernel[grid](*args, **meta)


def dense(x):
    """x with a last axis of stride 1, copied only where it has another."""
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


def operand(*tensors):
    """The dtype that products are taken in: half precision where the values have it, else that of the state."""
    v = tensors[-1]
    return v.dtype if v.dtype in (torch.bfloat16, torch.float16) else torch.promote_types(v.dtype, torch.float32)


class Chunked(Function):
    """q, k [B,T,heads,K], v_BTHV, g [B|1,T|1,heads] or None, S_BHKV (the state's dtype), lengths_B or None."""

    @staticmethod
    def forward(ctx, q, k, v, g, S, lengths):
        q, k, v, S = dense(q), dense(k), dense(v), S.contiguous()
        ctx.save_for_backward(q, k, v, g, S, lengths)
        y, last = v.new_empty(v.shape), torch.empty_like(S)
        work = Work(q, k, v, g, S, lengths, "forward", S.shape[2:])
        for h0, heads in work.slices(1):
            tables = work.walk(k, v, S, last, h0, heads)
            work.outputs((q, k, v), tables, y, h0, heads, work.blocks[2])
        return y, last

    @staticmethod
    @once_differentiable
    def backward(ctx, dy, dlast):
        q, k, v, g, S, lengths = ctx.saved_tensors
        dy, dlast = dy.contiguous(), dlast.contiguous()
        H, learn = v.shape[2], ctx.needs_input_grad[3]
        share = gpu_blocks.share(H, q.shape[2], k.shape[2])
        kind = S.dtype
        dq, dk = (
            x.new_empty(*v.shape[:2], H // share, x.shape[3], dtype=x.dtype if x.shape[2] * share == H else kind)
            for x in (q, k)
        )
        dv, dS, unused = torch.empty_like(v, memory_format=torch.contiguous_format), *map(torch.empty_like, (S, S))
        dg = v.new_empty(v.shape[:3], dtype=kind) if learn else None
        work = Work(q, k, v, g, S, lengths, "backward", S.shape[2:])
        _, _, for_v, for_k, for_q, for_g = work.blocks
        for h0, heads in work.slices(share):
            tables = work.walk(k, v, S, unused, h0, heads)
            adjoints = work.walk(q, dy, dlast, dS, h0, heads, reverse=True)
            work.outputs((k, q, dy), adjoints, dv, h0, heads, for_v, reverse=True)
            work.outputs((v, dy, q), adjoints.mT, dk, h0, heads, for_k, reverse=True, share=share)
            work.outputs((dy, v, k), tables.mT, dq, h0, heads, for_q, share=share)
            if learn:
                work.decays(dy, tables, adjoints, dg, h0, heads, for_g)
        dq, dk = (sum_to(grad, x.shape).to(x.dtype) for grad, x in ((dq, q), (dk, k)))
        dg = sum_to(dg, g.shape).to(g.dtype) if learn else None
        return dq, dk, dv, dg, dS, None


class Work:
    """The launches of one call, and what they have in common."""

    def __init__(self, q, k, v, g, S, lengths, way, widths):
        self.q, self.k, self.v, self.lengths, self.kind = q, k, v, lengths, S.dtype
        self.g = v.new_zeros(1).expand(*v.shape[:2], 1) if g is None else g.expand(*v.shape[:2], -1)
        self.op = operand(v)
        self.blocks = gpu_blocks.nearest(gpu_blocks.DECAY, self.op.itemsize, *widths)[way]
        self.chunk = self.blocks[0]
        self.chunks = -(-v.shape[1] // self.chunk)
        self.meta = {"DECAY": g is not None, "RAGGED": lengths is not None, "CHUNK": self.chunk}
        self.meta["PRECISION"] = "tf32x3" if self.op == torch.float32 else "ieee"

    def slices(self, share):
        """(first head, heads) of every slice."""
        B, H, V, K = self.v.shape[0], self.v.shape[2], self.v.shape[3], self.k.shape[3]
        bytes_of_head = B * self.chunks * K * V * self.op.itemsize
        most = max(gpu_blocks.AT_ONCE, self.v.numel() * self.v.element_size())
        heads = max(share, most // bytes_of_head // share * share)
        return [(h0, min(heads, H - h0)) for h0 in range(0, H, heads)]

    def walk(self, x, w, first, last, h0, heads, reverse=False):
        """The tables between the chunks, [B,heads,chunks,K,V]; what is left behind the last goes into `last`."""
        (B, T, H, V), K = w.shape, x.shape[3]
        *blocks, warps, stages = self.blocks[1]
        blocks = [gpu_blocks.fit(block, size) for block, size in zip(blocks, (K, V), strict=True)]
        grid = B * heads, -(-K // blocks[0]), -(-V // blocks[1])
        segments = gpu_blocks.segments(grid[0] * grid[1] * grid[2], self.chunks)
        span = -(-self.chunks // segments)
        segments = -(-self.chunks // span)
        first, whole = first[:, h0 : h0 + heads].contiguous(), heads == H
        tables = w.new_empty(B, heads, self.chunks, K, V, dtype=self.op)
        out = last if whole else torch.empty_like(first)

        def run(first, last, kept, keep):
            sizes = T, H, K, V, x.shape[2], self.g.shape[2], h0, heads, self.chunks, segments, span
            strides = *x.stride()[:3], *w.stride()[:3], *self.g.stride()
            pointers = x, w, self.g, first, self.lengths_or(w), tables, last, kept
            meta = {"REVERSE": reverse, "KEEP": keep, "BLOCK_K": blocks[0], "BLOCK_V": blocks[1], "STAGES": stages}
            launch(gpu_chunked.walk, (grid[0] * segments, *grid[1:]), w, *pointers, *sizes, *strides,
                   **self.meta, **meta, num_warps=warps)  # fmt: skip

        if segments == 1:
            run(first, out, first, True)
        else:
            ends, entering = (first.new_empty(B, heads, segments, K, V) for _ in range(2))
            kept = first.new_empty(B, heads, segments)
            run(first, ends, kept, False)
            launch(gpu_chunked.carry, (B * heads, -(-K * V // 1024)), w, first, ends, kept, entering, out, K * V,
                   segments, REVERSE=reverse, BLOCK=1024)  # fmt: skip
            run(entering, ends, kept, True)
        if not whole:
            last[:, h0 : h0 + heads] = out
        return tables

    def outputs(self, roles, tables, y, h0, heads, blocks, reverse=False, share=1):
        q, k, v = roles
        (B, T, _, I), J, H = q.shape, v.shape[3], self.v.shape[2]
        block_i, block_j = gpu_blocks.fit(blocks[0], I), gpu_blocks.fit(blocks[1], J)
        grid = B * self.chunks * heads // share, -(-J // block_j)
        groups = *(x.shape[2] for x in roles), self.g.shape[2]
        sizes = T, H, I, J, *groups, h0, heads, self.chunks, *tables.stride()[3:]
        strides = [n for x in (q, k, v, self.g) for n in x.stride()[:3]]
        meta = {"REVERSE": reverse, "KIND": KINDS[self.kind], "SHARE": share, "ONE": block_i >= I}
        launch(gpu_chunked.outputs, grid, v, q, k, v, self.g, tables, self.lengths_or(v), y, *sizes, *strides,
               **self.meta, **meta, BLOCK_I=block_i, BLOCK_J=block_j, num_warps=blocks[2], num_stages=blocks[3])  # fmt: skip

    def decays(self, dy, tables, adjoints, dg, h0, heads, blocks):
        (B, T, H, V), K = self.v.shape, self.k.shape[3]
        block_k, block_v = gpu_blocks.fit(blocks[0], K), gpu_blocks.fit(blocks[1], V)
        sizes = T, H, K, V, self.q.shape[2], self.k.shape[2], self.g.shape[2], h0, heads, self.chunks
        strides = [n for x in (self.q, self.k, self.v, self.g, dy) for n in x.stride()[:3]]
        meta = {key: value for key, value in self.meta.items() if key != "DECAY"}
        pointers = self.q, self.k, self.v, self.g, tables, adjoints, self.lengths_or(dy), dy, dg
        launch(gpu_chunked.decays, (B * self.chunks * heads,), dy, *pointers, *sizes, *strides,
               **meta, BLOCK_K=block_k, BLOCK_V=block_v, num_warps=blocks[2], num_stages=blocks[3])  # fmt: skip

    def lengths_or(self, other):
        """A kernel takes a tensor in the place of the lengths that it will not touch."""
        return other if self.lengths is None else self.lengths


KINDS = {torch.float32: gpu_chunked.tl.float32, torch.float64: gpu_chunked.tl.float64}


class Affine(Function):
    """g and b [B,T,D], S_BD in the state's dtype; lengths_B or None."""

    @staticmethod
    def forward(ctx, g, b, S, lengths):
        g, b, S = dense(g), dense(b), S.contiguous()
        entering, last = Affine.enter(g, b, S, lengths, False)
        y = b.new_empty(b.shape)
        grid, sizes, meta = Affine.layout(b)
        pointers = g, b, b if lengths is None else lengths, entering, y
        strides = *g.stride()[:2], *b.stride()[:2]
        launch(gpu_affine.walk, grid, b, *pointers, *sizes[:2], *strides, sizes[2], RAGGED=lengths is not None, **meta)
        ctx.save_for_backward(g, y, S, lengths)
        ctx.like = b.dtype
        return y, last

    @staticmethod
    def layout(b):
        """(grid, (T, D, segments), constants of the kernels)."""
        (B, T, D), (block, segment, ahead, warps) = b.shape, gpu_blocks.AFFINE
        segments = -(-T // segment)
        return (-(-D // block), segments, B), (T, D, segments), {
            "BLOCK": block, "SEGMENT": segment, "AHEAD": ahead, "num_warps": warps
        }  # fmt: skip

    @staticmethod
    def enter(g, b, first, lengths, reverse):
        """(what enters every segment [B,segments,D], what leaves the last)."""
        grid, (T, D, segments), meta = Affine.layout(b)
        products, ends, entering = (first.new_empty(b.shape[0], segments, D) for _ in range(3))
        last, ragged = torch.empty_like(first), lengths is not None
        strides = *g.stride()[:2], *b.stride()[:2]
        launch(gpu_affine.summarize, grid, b, g, b, lengths if ragged else b, products, ends, T, D, *strides, segments,
               RAGGED=ragged, REVERSE=reverse, **meta)  # fmt: skip
        launch(gpu_affine.carry, (grid[0], grid[2]), b, products, ends, first, entering, last, D, segments,
               REVERSE=reverse, BLOCK=meta["BLOCK"], num_warps=meta["num_warps"])  # fmt: skip
        return entering, last

    @staticmethod
    @once_differentiable
    def backward(ctx, dy, dlast):
        g, y, S, lengths = ctx.saved_tensors
        dy, dlast = dense(dy), dlast.contiguous()
        entering, dS = Affine.enter(g, dy, dlast, lengths, True)
        dg, db = torch.empty_like(g, memory_format=torch.contiguous_format), y.new_empty(y.shape, dtype=ctx.like)
        grid, (T, D, segments), meta = Affine.layout(y)
        pointers = g, y, S, dy, y if lengths is None else lengths, entering, dg, db
        strides = *g.stride()[:2], *dy.stride()[:2]
        launch(gpu_affine.backward, grid, y, *pointers, T, D, *strides, segments, RAGGED=lengths is not None, **meta)
        return dg, db, dS, None
