"""The kernels of `gpu_keys` as a torch function with gradients. First order only.

As in `gpu_chunked_ops`, nothing waits for the GPU or tries out variants, tensors are read by their strides, and the
heads' tables are done in slices. The tables are found anew on the way back: keeping them would be a tensor twice as
large as an input.
"""

import functools

import torch
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from postx.scans import gpu_blocks, gpu_keys
from postx.scans.arguments import sum_to
from postx.scans.gpu_chunked_ops import DTYPES, dense, launch, operand, slices, whole


@functools.cache
def spans(chunk, before, dtype, device):
    """Matrices of 0 and 1, [2 + 2 levels, chunk, chunk]: whether token t (column) fades what meets token i (row).

    What i reads of the table, what is left at the chunk's end of what i writes; then for each level what lies between
    i and the middle of its block, and which pairs meet there.
    """
    i, t = torch.arange(chunk)[:, None], torch.arange(chunk)[None, :]
    read, write = t < i if before else t <= i, t > i
    found = [read, write]
    for s in (1 << level for level in range(chunk.bit_length() - 1)):
        same = i // s == t // s
        found += [same & torch.where(i // s % 2 == 1, read, write), i // s == t // s ^ 1]
    return torch.stack(found).to(device, dtype)


def decay(q, k, *tensors):
    """`Keys`, whose kernels read a token's row of q or of k from where it lies, so that both have one dtype."""
    kind = torch.promote_types(q.dtype, k.dtype)
    return Keys.apply(q.to(kind), k.to(kind), *tensors)


class Keys(Function):
    """q, k [B,T,heads,K], v_BTHV, g [B|1,T|1,heads,K|1], S_BHKV and u_HK (the state's dtype); lengths_B; or None.

    `before` says that the old table is read, plus what u keeps of the token itself.
    """

    @staticmethod
    def forward(ctx, q, k, v, g, S, u, lengths, before):
        q, k, v, S, lengths = dense(q), dense(k), dense(v), S.contiguous(), whole(lengths)
        u = None if u is None else u.contiguous()
        ctx.save_for_backward(q, k, v, g, S, u, lengths)
        ctx.before, y, last = before, v.new_empty(v.shape), torch.empty_like(S)
        work = Work(q, k, v, g, S, u, lengths, before)
        for h0, heads in work.slices():
            work.outputs(v, work.walk(k, v, S, last, h0, heads), y, h0)
        return y, last

    @staticmethod
    @once_differentiable
    def backward(ctx, dy, dlast):
        q, k, v, g, S, u, lengths = ctx.saved_tensors
        dy, dlast = dense(dy), dlast.contiguous()
        B, T, H, V = v.shape
        K, learn, constant = q.shape[3], ctx.needs_input_grad[3], g.shape[1] == 1
        work = Work(q, k, v, g, S, u, lengths, ctx.before)

        def room(x, *shape):
            return x.new_empty(shape, dtype=x.dtype if x.shape[2:] == shape[2:] else S.dtype)

        dq, dk, dv, dS = room(q, B, T, H, K), room(k, B, T, H, K), v.new_empty(v.shape), torch.empty_like(S)
        dg = None
        if learn:
            dg = S.new_empty(B, work.chunks, H, K) if constant else room(g, B, T, H, K)
        du = None if u is None else S.new_empty(B, work.chunks, H, K)
        for h0, heads in work.slices():
            adjoints = work.walk(q, dy, dlast, dS, h0, heads, reverse=True)
            tables = work.walk(k, v, S, torch.empty_like(S), h0, heads)
            work.outputs(dy, adjoints, dv, h0, reverse=True)
            work.gradients(tables, adjoints, dy, dq, dk, dg, du, h0, constant)
            del tables, adjoints  # before the next heads ask for theirs
        dq, dk = (sum_to(grad, x.shape).to(x.dtype) for grad, x in ((dq, q), (dk, k)))
        dg = sum_to(dg, g.shape).to(g.dtype) if learn else None
        return dq, dk, dv, dg, dS, None if u is None else du.sum((0, 1)), None, None


class Work:
    """The launches of one call, and what they have in common."""

    def __init__(self, q, k, v, g, S, u, lengths, before):
        self.q, self.k, self.v, self.S, self.u, self.lengths = q, k, v, S, u, lengths
        self.g = g.expand(*v.shape[:2], g.shape[2], q.shape[3])
        self.op = operand(v)
        self.blocks = gpu_blocks.keys(self.op.itemsize, *S.shape[2:])
        self.chunks = -(-v.shape[1] // self.blocks["chunk"])
        self.spans = spans(self.blocks["chunk"], before, self.op, v.device)
        self.meta = {"RAGGED": lengths is not None, "CHUNK": self.blocks["chunk"]}
        self.meta["EXACT"] = self.op.itemsize >= 4 or g.dtype == self.op
        self.meta["PRECISION"] = "tf32x3" if self.op == torch.float32 else "ieee"
        self.within = {"BEFORE": before, "BONUS": u is not None, "KIND": DTYPES[S.dtype]}
        self.within["LEVELS"] = self.blocks["chunk"].bit_length() - 1

    def slices(self):
        """(first head, heads) of every slice of heads whose tables stand in memory together."""
        B, H, K, V = self.S.shape
        return slices(H, B * self.chunks * K * V * self.op.itemsize, self.v, 1)

    def fit(self, name):
        (block_k, block_v, *more), (K, V), item = self.blocks[name], self.S.shape[2:], self.op.itemsize
        return gpu_blocks.fit(block_k, K, item), gpu_blocks.fit(block_v, V, item), *more

    def sizes(self, heads, h0):
        """What both kernels within a chunk take: sizes, then strides."""
        (T, H), (K, V) = self.v.shape[1:3], self.S.shape[2:]
        sizes = T, H, K, V, self.q.shape[2], self.k.shape[2], self.g.shape[2], h0, heads, self.chunks
        return *sizes, *self.q.stride()[:3], *self.k.stride()[:3]

    def walk(self, x, w, first, last, h0, heads, reverse=False):
        """The tables between the chunks of the heads from h0 on, [B,heads,chunks,K,V]. Fills those heads of `last`."""
        B, _, K, V = first.shape
        block_k, block_v, warps, stages = self.fit("walk")
        tables = w.new_empty(B, heads, self.chunks, K, V, dtype=self.op)
        sizes = *w.shape[1:3], K, V, x.shape[2], self.g.shape[2], h0, heads, self.chunks
        strides = *x.stride()[:3], *w.stride()[:3], *self.g.stride()
        pointers = x, w, self.g, first, self.or_v(self.lengths), self.spans, tables, last
        launch(gpu_keys.walk, (B * heads, -(-K // block_k), -(-V // block_v)), w, *pointers, *sizes, *strides,
               REVERSE=reverse, **self.meta, BLOCK_K=block_k, BLOCK_V=block_v, STAGES=stages,
               num_warps=warps)  # fmt: skip
        return tables

    def outputs(self, v, tables, y, h0, reverse=False):
        """y from v, or dv from dy where `reverse`."""
        block_k, block_v, warps, stages, ahead = self.fit("outputs")
        B, heads, _, K, V = tables.shape
        pointers = self.q, self.k, v, self.g, self.or_v(self.u), tables, self.or_v(self.lengths), self.spans, y
        launch(gpu_keys.outputs, (B * self.chunks * heads, -(-V // block_v)), v, *pointers, *self.sizes(heads, h0),
               *v.stride()[:3], *self.g.stride(), REVERSE=reverse, ONE=block_k >= K, AHEAD=ahead, **self.meta,
               **self.within, BLOCK_K=block_k, BLOCK_V=block_v, num_warps=warps, num_stages=stages)  # fmt: skip

    def gradients(self, tables, adjoints, dy, dq, dk, dg, du, h0, constant):
        block_k, block_v, warps, stages, ahead = self.fit("gradients")
        B, heads, _, K, _ = tables.shape
        pointers = self.q, self.k, self.v, self.g, self.or_v(self.u), tables, adjoints, self.or_v(self.lengths)
        strides = *self.v.stride()[:3], *self.g.stride(), *dy.stride()[:3]
        launch(gpu_keys.gradients, (B * self.chunks * heads, -(-K // block_k)), dy, *pointers, self.spans, dy,
               dq, dk, dq if dg is None else dg, dq if du is None else du, *self.sizes(heads, h0), *strides,
               LEARN=dg is not None, CONSTANT=constant, AHEAD=ahead, **self.meta, **self.within, BLOCK_K=block_k,
               BLOCK_V=block_v, num_warps=warps, num_stages=stages)  # fmt: skip

    def or_v(self, x):
        """A kernel takes a tensor in the place of one that it will not touch."""
        return self.v if x is None else x
