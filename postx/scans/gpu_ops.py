"""The Triton kernels as torch functions with gradients. First order only: a second backward raises.

Importing this imports triton; `postx.scans` does so when a GPU is first used. Nothing here waits for the GPU or
tries out variants, so a call can be captured in a CUDA graph. Block sizes follow from the shapes alone.
"""

import torch
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from postx.scans import gpu_blocks, gpu_decay, gpu_delta
from postx.scans.arguments import sum_to
from postx.scans.gpu_chunked_ops import launch, room

CHUNK = (
    16  # tokens between kept states: few enough that the rebuilt ones of all programs stay in the L2 cache
)
STAGES = 2  # tokens in flight: the next one's loads are issued while this one is computed
PROGRAMS = 512  # below this many a GPU's schedulers idle, and blocks are made smaller


class Decay(Function):
    """q, k [B,T,heads,K], v_BTHV, a [B|1,T|1,heads,K|1], S_BHKV, u_HK or None; lengths_B or None; read before.

    a and S have the state's dtype; the others are read as they are and computed in that dtype.
    """

    @staticmethod
    def forward(ctx, q, k, v, a, S, u, lengths, before):
        q, k, v, S = _whole(q, k, v, S)
        u = None if u is None else u.contiguous()
        ctx.before, keep = before, any(ctx.needs_input_grad)
        y, last, kept = _outputs(v, S, lengths, keep)
        grid, sizes, meta = _table_layout(q, v, lengths, before)
        pointers = q, k, v, a, _or(u, v), S, _lengths(lengths, v), y, last, kept
        meta |= {"KEEP": keep, "BONUS": u is not None}
        _launch(gpu_decay.forward, grid, v, *pointers, *Decay.sizes(v, q, k, a, sizes), **meta)
        ctx.save_for_backward(q, k, v, a, u, kept, lengths)
        return y, last

    @staticmethod
    def sizes(v, q, k, a, sizes):
        return *sizes, q.shape[2], k.shape[2], a.shape[2], *_strides(a, v), _chunks(v)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy, dlast):
        q, k, v, a, u, kept, lengths = ctx.saved_tensors
        dy, dlast = _whole(dy, dlast)
        grid, sizes, meta = _table_layout(q, v, lengths, ctx.before)
        dq, dk = (_by_token(dlast, v, lengths, grid, q.shape[3]) for _ in range(2))
        learn = ctx.needs_input_grad[3]
        dv, dS = room(v, v.shape, lengths), torch.empty_like(dlast)
        da = _for_decay(a, v, lengths, grid) if learn else None
        scratch = dlast.new_empty(*grid, CHUNK, meta["BLOCK_K"], meta["BLOCK"])
        du = None if u is None else dlast.new_empty(grid[1], v.shape[0], *u.shape)
        pointers = q, k, v, a, _or(u, v), kept, _lengths(lengths, v), dy, dlast, scratch
        pointers = *pointers, dq, dk, dv, _or(da, dq), dS, _or(du, dq)
        meta |= {"BONUS": u is not None, **_decay_meta(a, learn)}
        sizes = *Decay.sizes(v, q, k, a, sizes), a.shape[3]
        _launch(gpu_decay.backward, grid, v, *pointers, *sizes, **meta)
        dq, dk = (sum_to(_parts(grad), x.shape).to(x.dtype) for grad, x in ((dq, q), (dk, k)))
        du = None if u is None else du.sum((0, 1)).to(u.dtype)
        return dq, dk, dv, None if da is None else sum_to(_parts(da), a.shape), dS, du, None, None


class Delta(Function):
    """As `Decay`, with b (None stands for k) and c [B,T,heads,K] and beta [B|1,T|1,heads]."""

    @staticmethod
    def forward(ctx, q, k, v, a, b, c, beta, S, lengths, before):
        q, k, v, c, S = _whole(q, k, v, c, S)
        b = None if b is None else b.contiguous()
        ctx.before, keep = before, any(ctx.needs_input_grad)
        y, last, kept = _outputs(v, S, lengths, keep)
        grid, sizes, meta = _table_layout(q, v, lengths, before)
        pointers = q, k, v, a, _or(b, k), c, beta, S, _lengths(lengths, v), y, last, kept
        meta |= {"KEEP": keep, "OWN": b is None}
        _launch(gpu_delta.forward, grid, v, *pointers, *Delta.sizes(v, q, k, a, b, c, beta, sizes), **meta)
        ctx.save_for_backward(q, k, v, a, b, c, beta, kept, lengths)
        return y, last

    @staticmethod
    def sizes(v, q, k, a, b, c, beta, sizes):
        heads = [x.shape[2] for x in (q, k, a, _or(b, k), c, beta)]
        return *sizes, *heads, *_strides(a, v), *_strides(beta, v), _chunks(v)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy, dlast):
        q, k, v, a, b, c, beta, kept, lengths = ctx.saved_tensors
        dy, dlast = _whole(dy, dlast)
        grid, sizes, meta = _table_layout(q, v, lengths, ctx.before)
        dq, dk, dc = (_by_token(dlast, v, lengths, grid, q.shape[3]) for _ in range(3))
        db = None if b is None else _by_token(dlast, v, lengths, grid, q.shape[3])
        dbeta = room(dlast, (grid[1], *v.shape[:3]), lengths)
        learn = ctx.needs_input_grad[3]
        dv, dS = room(v, v.shape, lengths), torch.empty_like(dlast)
        da = _for_decay(a, v, lengths, grid) if learn else None
        scratch = dlast.new_empty(*grid, CHUNK, meta["BLOCK_K"], meta["BLOCK"])
        pointers = q, k, v, a, _or(b, k), c, beta, kept, _lengths(lengths, v), dy, dlast, scratch
        pointers = *pointers, dq, dk, dv, _or(da, dq), _or(db, dk), dc, dbeta, dS
        meta |= {"OWN": b is None, **_decay_meta(a, learn)}
        sizes = *Delta.sizes(v, q, k, a, b, c, beta, sizes), a.shape[3]
        _launch(gpu_delta.backward, grid, v, *pointers, *sizes, **meta)
        pairs = (dq, q), (dk, k), (db, b), (dc, c), (dbeta, beta)
        dq, dk, db, dc, dbeta = (
            None if x is None else sum_to(_parts(grad), x.shape).to(x.dtype) for grad, x in pairs
        )
        return dq, dk, dv, None if da is None else sum_to(_parts(da), a.shape), db, dc, dbeta, dS, None, None


# ---------------------------------------------------------------- what the functions share


def _launch(kernel, grid, like, *args, **meta):
    launch(kernel, grid, like, *args, **meta, CHUNK=CHUNK, STAGES=STAGES)


def _blocks(rows, size, most, least):
    """(block, how many): the widest block of `size`, at most `most`, that leaves PROGRAMS programs over all rows."""
    block = min(most, gpu_blocks.power(size, least))
    while block > least and rows * -(-size // block) < PROGRAMS:
        block //= 2
    return block, -(-size // block)


def _warps(numbers):
    """Warps for a tile of so many numbers: 32 of them a thread."""
    return min(8, max(1, numbers // 1024))


def _chunks(v):
    return -(-v.shape[1] // CHUNK)


def _whole(*tensors):
    return [x.contiguous() for x in tensors]


def _or(x, other):
    """A kernel takes a tensor in the place of one that it will not touch."""
    return other if x is None else x


def _lengths(lengths, other):
    return other if lengths is None else lengths.to(torch.int64).contiguous()


def _strides(x, v):
    """The strides of a [B|1,T|1,heads,K|1] or of beta [B|1,T|1,heads], 0 where an axis broadcasts."""
    strides = x.expand(*v.shape[:2], *x.shape[2:]).stride()
    return (*strides[:3], strides[3] if x.shape[3] > 1 else 0) if x.dim() == 4 else strides


def _table_layout(q, v, lengths, before):
    """(grid, sizes, constants of the kernels) of a table recurrence."""
    (B, T, H, V), K = v.shape, q.shape[3]
    BLOCK_K = gpu_blocks.power(K, 8)
    block, blocks = _blocks(B * H, V, 16 if BLOCK_K <= 64 else 32, 4)
    meta = {"BEFORE": before, "RAGGED": lengths is not None, "BLOCK_K": BLOCK_K, "BLOCK": block}
    return (B * H, blocks), (T, H, K, V), meta | {"num_warps": _warps(BLOCK_K * block)}


def _outputs(v, S, lengths, keep):
    """y, the last state, and room for the state before every chunk of tokens."""
    kept = S.new_empty(*S.shape[:2], _chunks(v) if keep else 0, *S.shape[2:])
    return room(v, v.shape, lengths), torch.empty_like(S), kept


def _by_token(like, v, lengths, grid, K):
    return room(like, (grid[1], *v.shape[:3], K), lengths)


def _for_decay(a, v, lengths, grid):
    B, T, H, _ = v.shape
    return room(a, (grid[1], B, T if a.shape[1] > 1 else 1, H, a.shape[3]), lengths)


def _decay_meta(a, learn):
    return {"CONSTANT": a.shape[1] == 1, "PER_KEY": a.shape[3] > 1, "LEARN": learn}


def _parts(grad):
    """What each block of values or channels gave, added up in a fixed order."""
    return grad[0] if grad.shape[0] == 1 else grad.sum(0)
