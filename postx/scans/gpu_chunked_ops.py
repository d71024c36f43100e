"""The chunked Triton kernels and the affine one as torch functions with gradients. First order only.

Nothing here waits for the GPU or tries out variants, so a call can be captured in a CUDA graph. q, k, v and dy are
read by their strides as long as their last axis is dense; a table's heads are done in slices, so that no more than
`gpu_blocks.AT_ONCE` bytes of tables stand in memory at a time.
"""

import contextlib

import torch
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from postx.scans import gpu_affine, gpu_blocks, gpu_chunked, gpu_fused
from postx.scans.arguments import sum_to


def launch(kernel, grid, like, *args, **meta):
    with torch.cuda.device(like.device) if like.is_cuda else contextlib.nullcontext():
        kernel[grid](*args, **meta)


def dense(x):
    """x with a last axis of stride 1, copied only where it has another."""
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


def strides_of(*tensors):
    """The strides over B, T and heads, tensor by tensor."""
    return [n for x in tensors for n in x.stride()[:3]]


def room(like, shape, lengths):
    """Room for a result. Where rows are ragged, what stands past their ends is 0."""
    return (like.new_empty if lengths is None else like.new_zeros)(shape)


def whole(lengths):
    return None if lengths is None else lengths.contiguous()


def operand(v):
    """The dtype that products are taken in: half precision where the values have it, else that of the state."""
    return v.dtype if v.dtype in (torch.bfloat16, torch.float16) else torch.promote_types(v.dtype, torch.float32)


DTYPES = {getattr(torch, x): getattr(gpu_chunked.tl, x) for x in ("float16", "bfloat16", "float32", "float64")}


class Chunked(Function):
    """q, k [B,T,heads,K], v_BTHV, g [B|1,T|1,heads] or None, S_BHKV (the state's dtype), lengths_B or None."""

    @staticmethod
    def forward(ctx, q, k, v, g, S, lengths):
        q, k, v, S, lengths = dense(q), dense(k), dense(v), S.contiguous(), whole(lengths)
        ctx.save_for_backward(q, k, v, g, S, lengths)
        y, last = v.new_empty(v.shape), torch.empty_like(S)
        work = Work(q, k, v, g, S, lengths)
        (work.fused if work.blocks["fused"] else work.by_tables)((q, k, v), (k, v), S, y, last)
        return y, last

    @staticmethod
    @once_differentiable
    def backward(ctx, dy, dlast):
        q, k, v, g, S, lengths = ctx.saved_tensors
        dy, dlast = dy.contiguous(), dlast.contiguous()
        H, learn = v.shape[2], ctx.needs_input_grad[3]
        share = gpu_blocks.share(H, q.shape[2], k.shape[2])
        dv, dS = v.new_empty(v.shape), torch.empty_like(S)
        work, dg = Work(q, k, v, g, S, lengths), None
        if learn or share > 1 or not work.blocks["fused"]:
            dg = v.new_empty(v.shape[:3], dtype=S.dtype) if learn else None
            dq, dk = (x.new_empty(x.shape) if x.shape[2] * share == H else S.new_zeros(x.shape) for x in (q, k))
            work.gradients(dy, dlast, dq, dk, dv, dg, dS, share)
        else:
            dq, dk = (
                v.new_empty(*v.shape[:3], x.shape[3], dtype=x.dtype if x.shape[2] == H else S.dtype) for x in (q, k)
            )
            work.fused((k, q, dy), (q, dy), dlast, dv, dS, reverse=True)
            work.fused((v, dy, q), (q, dy), dlast, dk, None, reverse=True, turned=True)
            work.fused((dy, v, k), (k, v), S, dq, None, turned=True)
        dq, dk = (sum_to(grad, x.shape).to(x.dtype) for grad, x in ((dq, q), (dk, k)))
        dg = sum_to(dg, g.shape).to(g.dtype) if learn else None
        return dq, dk, dv, dg, dS, None


class Work:
    """The launches of one call, and what they have in common."""

    def __init__(self, q, k, v, g, S, lengths):
        self.q, self.k, self.v, self.lengths, self.S = q, k, v, lengths, S
        self.g = v.new_empty(1).expand(*v.shape[:2], 1) if g is None else g.expand(*v.shape[:2], -1)
        self.op = operand(v)
        self.blocks = gpu_blocks.decay(self.op.itemsize, *S.shape[2:])
        self.meta = {"DECAY": g is not None, "RAGGED": lengths is not None}
        self.meta["PRECISION"] = "tf32x3" if self.op == torch.float32 else "ieee"

    def fit(self, block, size):
        return gpu_blocks.fit(block, size, self.op.itemsize)

    def enter(self, x, w, first, last, most, chunk, chunks, reverse, h0=0):
        """(what enters each segment, segments, chunks of one). Where there are several, `last` is filled, too.

        `most` is into how many segments time is to be cut at most.
        """
        B, heads, K, V = first.shape
        span = max(1, -(-chunks // most))
        segments = max(1, -(-chunks // span))
        if segments == 1:
            return first, 1, span
        ends, entering = (first.new_empty(B, heads, segments, K, V) for _ in range(2))
        kept = first.new_empty(B, heads, segments)
        # No tables are kept; w stands in their place, because their dtype is that of the products.
        self.walk(x, w, first, ends, kept, w, h0, chunk, chunks, segments, span, reverse, keep=False)
        pointers = first, ends, kept, entering, first if last is None else last
        launch(gpu_chunked.carry, (B * heads, -(-K * V // 1024)), w, *pointers, K * V, segments,
               REVERSE=reverse, LAST=last is not None, BLOCK=1024)  # fmt: skip
        return entering, segments, span

    def walk(self, x, w, first, last, kept, tables, h0, chunk, chunks, segments, span, reverse, keep):
        (B, T, H, V), heads, K = w.shape, first.shape[1], x.shape[3]
        *blocks, warps, stages = self.blocks["walk"]
        block_k, block_v = self.fit(blocks[0], K), self.fit(blocks[1], V)
        sizes = T, H, K, V, x.shape[2], self.g.shape[2], h0, heads, chunks, segments, span
        strides = *x.stride()[:3], *w.stride()[:3], *self.g.stride()
        pointers = x, w, self.g, first, self.lengths_or(w), tables, last, kept
        meta = {"REVERSE": reverse, "KEEP": keep, "CHUNK": chunk, "BLOCK_K": block_k, "BLOCK_V": block_v}
        launch(gpu_chunked.walk, (B * heads * segments, -(-K // block_k), -(-V // block_v)), w, *pointers, *sizes,
               *strides, **self.meta, **meta, STAGES=stages, num_warps=warps)  # fmt: skip

    def fused(self, roles, writes, first, y, last, reverse=False, turned=False):
        """y of the roles (q, k, v) and, where it is not None, the last table; writes are x and w of its `walk`.

        A table lies in memory as [K, V]; it is `turned` where q is V wide.
        """
        q, k, v = roles
        (B, T, _, I), J, H = q.shape, v.shape[3], self.v.shape[2]
        chunk, block, warps, stages = self.blocks["fused"]
        block_i, block_j = gpu_blocks.whole(I, self.op.itemsize), self.fit(block, J)
        chunks, columns = -(-T // chunk), -(-J // block_j)
        most = gpu_blocks.segments(B * H * columns, chunks)
        entering, segments, span = self.enter(*writes, first, last, most, chunk, chunks, reverse)
        groups = *(x.shape[2] for x in roles), self.g.shape[2]
        sizes = T, H, I, J, *groups, chunks, segments, span, *((1, I) if turned else (J, 1))
        strides = strides_of(q, k, v, self.g)
        keep = last is not None and segments == 1
        meta = {"REVERSE": reverse, "LAST": keep, "OP": DTYPES[self.op], "CHUNK": chunk, "STAGES": stages}
        launch(gpu_fused.fused, (B * H * segments, columns), v, q, k, v, self.g, entering, self.lengths_or(v), y,
               last if keep else y, *sizes, *strides, **self.meta, **meta, BLOCK_I=block_i, BLOCK_J=block_j,
               num_warps=warps)  # fmt: skip

    def by_tables(self, roles, writes, first, y, last):
        """What `fused` does for the outputs, by way of the tables between the chunks."""
        (B, H, K, V), chunk = first.shape, self.blocks["chunk"]
        chunks = -(-y.shape[1] // chunk)
        for h0, heads in slices(H, B * chunks * K * V * self.op.itemsize, y, 1):
            some = slice(h0, h0 + heads)
            out = torch.empty_like(first[:, some], memory_format=torch.contiguous_format)
            tables = self.tables(*writes, first[:, some].contiguous(), out, h0, chunk, chunks, False)
            last[:, some] = out
            self.outputs(roles, tables, y, h0, chunk, self.blocks["dv"])

    def gradients(self, dy, dlast, dq, dk, dv, dg, dS, share):
        """Every gradient by way of the tables between the chunks."""
        q, k, v, (B, H, K, V) = self.q, self.k, self.v, self.S.shape
        chunk = self.blocks["chunk"]
        chunks = -(-v.shape[1] // chunk)
        for h0, heads in slices(H, B * chunks * K * V * self.op.itemsize, v, share, q.shape[2], k.shape[2]):
            some = slice(h0, h0 + heads)
            tables = self.tables(k, v, self.S[:, some].contiguous(), None, h0, chunk, chunks, False)
            out = torch.empty_like(dlast[:, some], memory_format=torch.contiguous_format)
            adjoints = self.tables(q, dy, dlast[:, some].contiguous(), out, h0, chunk, chunks, True)
            dS[:, some] = out
            self.outputs((k, q, dy), adjoints, dv, h0, chunk, self.blocks["dv"], reverse=True)
            self.add((v, dy, q), adjoints.mT, dk, h0, chunk, self.blocks["dk"], reverse=True, share=share)
            self.add((dy, v, k), tables.mT, dq, h0, chunk, self.blocks["dq"], reverse=False, share=share)
            if dg is not None:
                self.decays(dy, tables, adjoints, dg, h0, chunk)
            del tables, adjoints  # or they would stand beside the next slice's first table

    def tables(self, x, w, first, last, h0, chunk, chunks, reverse):
        """The tables between the chunks of the heads that `first` has, from h0 on: [B,heads,chunks,K,V]."""
        B, heads, K, V = first.shape
        programs = B * heads * -(-K // self.blocks["walk"][0]) * -(-V // self.blocks["walk"][1])
        most = gpu_blocks.segments(programs, chunks)
        tables = w.new_empty(B, heads, chunks, K, V, dtype=self.op)
        last = torch.empty_like(first) if last is None else last
        entering, segments, span = self.enter(x, w, first, last, most, chunk, chunks, reverse, h0)
        ends = last if segments == 1 else torch.empty_like(entering)
        self.walk(x, w, entering, ends, first, tables, h0, chunk, chunks, segments, span, reverse, keep=True)
        return tables

    def add(self, roles, tables, y, h0, chunk, blocks, reverse, share):
        """`outputs` of some heads, added to y [B,T,groups,J] where a group has more heads than `share`."""
        H, heads, groups = self.v.shape[2], tables.shape[1], y.shape[2]
        if groups * share == H:
            return self.outputs(roles, tables, y, h0, chunk, blocks, reverse, share)
        part = y.new_empty(*y.shape[:2], heads // share, y.shape[3])
        self.outputs(roles, tables, part, h0, chunk, blocks, reverse, share)
        first, some = h0 * groups // H, max(1, heads * groups // H)
        y[:, :, first : first + some] += part.unflatten(2, (some, -1)).sum(3)

    def outputs(self, roles, tables, y, h0, chunk, blocks, reverse=False, share=1):
        """y [B,T,heads,J], of all heads or of those alone that `tables` has."""
        q, k, v = roles
        (B, T, _, I), J, H = q.shape, v.shape[3], self.v.shape[2]
        heads, chunks = tables.shape[1:3]
        block_i, block_j = self.fit(blocks[0], I), self.fit(blocks[1], J)
        groups = *(x.shape[2] for x in roles), self.g.shape[2]
        past = 0 if y.shape[2] * share == H else h0 // share
        sizes = T, H, I, J, *groups, h0, heads, chunks, y.shape[2], past, *tables.stride()[3:]
        strides = strides_of(q, k, v, self.g)
        meta = {"REVERSE": reverse, "KIND": DTYPES[self.S.dtype], "SHARE": share, "ONE": block_i >= I, "CHUNK": chunk}
        launch(gpu_chunked.outputs, (B * chunks * heads // share, -(-J // block_j)), v, q, k, v, self.g, tables,
               self.lengths_or(v), y, *sizes, *strides, **self.meta, **meta, BLOCK_I=block_i, BLOCK_J=block_j,
               num_warps=blocks[2], num_stages=blocks[3])  # fmt: skip

    def decays(self, dy, tables, adjoints, dg, h0, chunk):
        (B, heads, chunks, K, V), (T, H), blocks = tables.shape, self.v.shape[1:3], self.blocks["dg"]
        block_k, block_v = self.fit(blocks[0], K), self.fit(blocks[1], V)
        sizes = T, H, K, V, self.q.shape[2], self.k.shape[2], self.g.shape[2], h0, heads, chunks
        strides = strides_of(self.q, self.k, self.v, self.g, dy)
        meta = {key: value for key, value in self.meta.items() if key != "DECAY"}
        pointers = self.q, self.k, self.v, self.g, tables, adjoints, self.lengths_or(dy), dy, dg
        launch(gpu_chunked.decays, (B * chunks * heads,), dy, *pointers, *sizes, *strides, **meta, CHUNK=chunk,
               BLOCK_K=block_k, BLOCK_V=block_v, num_warps=blocks[2], num_stages=blocks[3])  # fmt: skip

    def lengths_or(self, other):
        """A kernel takes a tensor in the place of the lengths that it will not touch."""
        return other if self.lengths is None else self.lengths


def slices(H, bytes_of_head, v, share, *groups):
    """(first head, heads) of every slice of heads whose tables stand in memory together.

    Of tensors with fewer heads, `groups`, a slice takes whole ones, or a part of one.
    """
    most = max(gpu_blocks.AT_ONCE, v.numel() * v.element_size()) // max(1, bytes_of_head)
    fits = range(share, max(share, min(most, H)) + 1, share)
    heads = max(n for n in fits if all(n % (H // group) == 0 or H // group % n == 0 for group in groups))
    return [(h0, min(heads, H - h0)) for h0 in range(0, H, heads)]


class Affine(Function):
    """g and b [B,T,D], S_BD in the state's dtype; lengths_B or None."""

    @staticmethod
    def forward(ctx, g, b, S, lengths):
        g, b, S, lengths = dense(g), dense(b), S.contiguous(), whole(lengths)
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
