"""The kernels of the general delta recurrence as a torch function with gradients. First order only.

Forward keeps nothing but its arguments: the way back makes the chunks and the tables again.
"""

import torch
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from postx.scans import gpu_blocks, gpu_dplr, gpu_dplr_back, gpu_dplr_own
from postx.scans.arguments import sum_to
from postx.scans.gpu_chunked_ops import dense, launch, operand, strides_of, whole


class General(Function):
    """q, k, c and b (None stands for k) [B,T,heads,K], v_BTHV, g [B|1,T|1,heads,K|1] or None, beta [B|1,T|1,heads].

    S_BHKV has the state's dtype; lengths_B or None; `before` says that y reads the old state.
    """

    @staticmethod
    def forward(ctx, q, k, v, g, b, c, beta, S, lengths, before):
        q, k, v, c, S, lengths = dense(q), dense(k), dense(v), dense(c), S.contiguous(), whole(lengths)
        b = None if b is None else dense(b)
        ctx.before = before
        ctx.save_for_backward(q, k, v, g, b, c, beta, S, lengths)
        work = Work(q, k, v, g, b, c, beta, S, lengths, before)
        reads, writes, moves, keeps, own, *_ = work.inside(keep=False)
        tables, last = work.walk(writes, v, moves, keeps, S)
        return work.outputs(reads, own, tables), last

    @staticmethod
    @once_differentiable
    def backward(ctx, dy, dlast):
        q, k, v, g, b, c, beta, S, lengths = ctx.saved_tensors
        dy, work = dense(dy), Work(q, k, v, g, b, c, beta, S, lengths, ctx.before)
        reads, writes, moves, keeps, own, *squares = work.inside(keep=True)
        tables, _ = work.walk(writes, v, moves, keeps, S)
        adjoints, dS = work.walk(reads, dy, moves, keeps, dlast.contiguous(), reverse=True)
        dv, *down = work.values(dy, writes, own, keeps, tables, adjoints, reads, moves)
        del tables, adjoints
        dq, dk, db, dc, dg, dbeta = work.keys(*down, squares, moves, writes, ctx.needs_input_grad[3])
        pairs = (dq, q), (dk, k), (dg, g), (db, b), (dc, c), (dbeta, beta)
        dq, dk, dg, db, dc, dbeta = (None if x is None else sum_to(x, like.shape).to(like.dtype) for x, like in pairs)
        return dq, dk, dv, dg, db, dc, dbeta, dS, None, None


class Work:
    """The launches of one call, and what they have in common."""

    def __init__(self, q, k, v, g, b, c, beta, S, lengths, before):
        self.q, self.k, self.v, self.c, self.S, self.lengths = q, k, v, c, S, lengths
        self.own, self.b, self.before = b is None, k if b is None else b, before
        self.g = v.new_zeros(1).expand(*v.shape[:2], 1, 1) if g is None else g.expand(*v.shape[:2], -1, -1)
        self.beta = beta.expand(*v.shape[:2], -1)
        self.op, self.kind = operand(v), S.dtype
        self.B, self.H, self.K, self.V = S.shape
        self.blocks = gpu_blocks.general(self.op.itemsize, self.K, self.V)
        self.width, self.chunk = gpu_blocks.whole(self.K, self.op.itemsize), self.blocks["chunk"]
        self.T, self.chunks = v.shape[1], -(-v.shape[1] // self.chunk)
        self.levels = self.chunk.bit_length() - 1
        self.programs = self.B * self.H
        self.cells = self.programs * self.chunks
        self.meta = {"RAGGED": lengths is not None, "CHUNK": self.chunk, "PRECISION": "ieee"}
        self.ones = v.new_empty(self.levels + 1, 2, self.chunk, self.chunk, dtype=self.op)
        launch(gpu_dplr.ones, (1,), v, self.ones, CHUNK=self.chunk, LEVELS=self.levels)

    def new(self, *shape, dtype=None):
        """Room for something of every chunk."""
        return self.v.new_empty(self.programs, self.chunks, *shape, dtype=dtype or self.op)

    def start(self, kernel, grid, *args, **meta):
        launch(kernel, grid, self.v, *(self.v if x is None else x for x in args), **self.meta, **meta)

    def groups_and_strides(self, *tokens):
        """How many heads each has, and its strides but the last axis's, which is g's alone."""
        strides = strides_of(*tokens)
        return [x.shape[2] for x in tokens], [*strides, self.g.stride(3) if self.g.shape[3] > 1 else 0]

    def value_blocks(self, name):
        block, warps, stages = self.blocks[name]
        block = gpu_blocks.fit(block, self.V, self.op.itemsize)
        return block, -(-self.V // block), {"BLOCK_K": self.width, "BLOCK_V": block, "num_warps": warps}, stages

    def inside(self, keep):
        """Q^, K^, X, f, Ay, QB, CK and, with `keep`, M of every chunk."""
        C, W = self.chunk, self.width
        QK, QB, CK, CB = squares = self.pairs()
        made = self.new(C, W), self.new(C, W), self.new(W, W), self.new(W, dtype=self.kind), self.new(C, C)
        inverse = self.new(C, C) if keep else None
        tokens = self.q, self.k, self.b, self.c, self.g, self.beta
        groups, strides = self.groups_and_strides(*tokens)
        sizes = self.T, self.H, self.K, *groups, self.chunks, *strides
        pointers = *tokens, self.lengths, self.ones, *squares, *made, inverse
        self.start(gpu_dplr.inside, (self.cells,), *pointers, *sizes, AFTER=not self.before, KEEP=keep, BLOCK_K=W,
                   LEVELS=self.levels, num_warps=self.blocks["inside"], SOLVE="tf32")  # fmt: skip
        return *made, QB, CK, inverse

    def pairs(self):
        """QK, QB, CK and CB of every chunk."""
        C, after = self.chunk, not self.before
        QK, CK, CB = self.new(C, C), self.new(C, C), self.new(C, C, dtype=self.kind)
        QB = QK if self.own else self.new(C, C)

        def start(kernel, readers, made, **meta):
            tokens = *readers, self.g, self.beta
            groups, strides = self.groups_and_strides(*tokens)
            sizes = self.T, self.H, self.K, *groups, self.chunks, 0, *strides
            self.start(kernel, (self.cells,), *tokens, self.lengths, self.ones, *made, *sizes, LEVELS=self.levels,
                       **meta)  # fmt: skip

        if self.own:
            block, warps = self.blocks["own"]
            start(gpu_dplr_own.pairs, (self.q, self.k, self.c), (QK, CK, CB), AFTER=after,
                  BLOCK=min(block, self.width), num_warps=warps)  # fmt: skip
        else:
            meta = {"BLOCK_K": self.width, "num_warps": self.blocks["pairs"]}
            start(gpu_dplr.pairs, (self.q, self.k, self.b), (QK, QB), PUT=False, AFTER=after, **meta)
            start(gpu_dplr.pairs, (self.c, self.k, self.b), (CK, CB), PUT=True, AFTER=False, **meta)
        return QK, QB, CK, CB

    def walk(self, x, w, moves, keeps, first, reverse=False):
        """The table before every chunk, or its gradient behind, and what comes out at the end."""
        _, blocks, meta, stages = self.value_blocks("walk")
        tables, last = self.new(self.width, self.V), torch.empty_like(first)
        sizes = self.T, self.H, self.K, self.V, self.chunks, *w.stride()[:3]
        pointers, grid = (x, w, moves, keeps, first, self.lengths, tables, last), (self.programs, blocks)
        self.start(gpu_dplr.walk, grid, *pointers, *sizes, REVERSE=reverse, STAGES=stages, **meta)
        return tables, last

    def outputs(self, reads, own, tables):
        y = self.v.new_empty(self.v.shape)
        _, blocks, meta, _ = self.value_blocks("outputs")
        sizes = self.T, self.H, self.V, self.chunks, *self.v.stride()[:3]
        grid = self.cells, blocks
        self.start(gpu_dplr.outputs, grid, reads, own, tables, self.v, self.lengths, y, *sizes, **meta)
        return y

    def values(self, dy, writes, own, keeps, tables, adjoints, dreads, dmoves):
        """dv, and of every chunk dQ^, dK^, dX, f * df and dAy; the first and the third overwrite what is not needed."""
        dv, dwrites = self.v.new_empty(self.v.shape), torch.empty_like(writes)
        dkeeps, down = torch.empty_like(keeps), torch.empty_like(own)
        sizes = self.T, self.H, self.V, self.chunks, *self.v.stride()[:3], *dy.stride()[:3]
        _, _, meta, stages = self.value_blocks("values")
        pointers = self.v, dy, writes, own, keeps, tables, adjoints, self.lengths
        pointers = *pointers, dv, dreads, dwrites, dmoves, dkeeps, down
        self.start(gpu_dplr_back.values, (self.cells,), *pointers, *sizes, **meta, num_stages=stages)
        return dv, dreads, dwrites, dkeeps, down

    def keys(self, dreads, dwrites, dkeeps, down, squares, dmoves, dput, learn):
        """The gradients of q, k, b, c, g and beta, each head alone; dput overwrites K^."""
        QB, CK, inverse = squares
        dQB, dCB, dback = torch.empty_like(QB), torch.empty_like(QB), torch.empty_like(dreads)
        dCK = None if self.own else torch.empty_like(QB)
        tokens = self.b, self.c, self.g, self.beta
        groups, strides = self.groups_and_strides(*tokens)
        sizes = self.T, self.H, self.K, *groups, self.chunks, *strides
        pointers = *tokens, self.lengths, self.ones, inverse, QB, CK, dreads, dwrites, dmoves, down, dQB, dCK, dCB
        meta = {"LEVELS": self.levels, "BLOCK_K": self.width, "OWN": self.own, "num_warps": self.blocks["squares"]}
        self.start(gpu_dplr_back.squares, (self.cells,), *pointers, dback, dput, *sizes, **meta)
        block, warps = self.blocks["keys"]
        block = min(block, self.width)
        shape = self.B, self.T, self.H, self.K

        def room(x):
            return self.v.new_empty(shape, dtype=x.dtype if x.shape[2:] == shape[2:] else self.kind)

        dq, dk, dc = room(self.q), room(self.k), room(self.c)
        db, dg = None if self.own else room(self.b), room(self.g) if learn else None
        dbeta = self.v.new_empty(self.width // block, *shape[:3], dtype=self.kind)
        if self.own:
            keys, tokens, pairs, made = gpu_dplr_own.keys, tokens[1:], (dQB, dCB), (dq, dk, dc, dg, dbeta)
        else:
            keys, pairs, made = gpu_dplr_back.keys, (down, dQB, dCK, dCB), (dq, dk, db, dc, dg, dbeta)
        tokens = self.q, self.k, *tokens
        groups, strides = self.groups_and_strides(*tokens)
        sizes = self.T, self.H, self.K, *groups, self.chunks, self.width, 0, *strides
        pointers = *tokens, self.lengths, self.ones, *pairs, dreads, dwrites, dback, dput, dkeeps, *made
        meta = {"AFTER": not self.before, "LEARN": learn, "LEVELS": self.levels, "BLOCK": block}
        self.start(keys, (self.cells, self.width // block), *pointers, *sizes, **meta, num_warps=warps)
        return dq, dk, db, dc, dg, dbeta.sum(0)
