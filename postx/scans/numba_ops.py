"""The numba kernels as torch functions with gradients. First order only: a second backward raises."""

import numba
import torch
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from postx.scans import cpu_decay, cpu_delta, cpu_diagonal, cpu_logspace


def _arrays(*tensors):
    """Contiguous numpy views. resolve_conj: torch writes a conjugate as a flag that numpy cannot read."""
    return [x.detach().resolve_conj().contiguous().numpy() for x in tensors]


def _sum_to(grad, shape):
    """Sum a full gradient over the axes that were broadcast, or shared by neighbouring heads."""
    for axis, size in enumerate(shape):
        if grad.shape[axis] != size:
            grad = grad.unflatten(axis, (size, grad.shape[axis] // size)).sum(axis + 1)
    return grad


class Diagonal(Function):
    @staticmethod
    def forward(ctx, u, delta, A, B, C, S, lengths):
        ctx.save_for_backward(u, delta, A, B, C, S, lengths)
        y, last = cpu_diagonal.forward(*_arrays(u, delta, A, B, C, S, lengths))
        return torch.from_numpy(y), torch.from_numpy(last)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy, dlast):
        u, delta, A, B, C, S, lengths = ctx.saved_tensors
        arrays = _arrays(u, delta, A, B, C, S, lengths, dy, dlast)
        grads = cpu_diagonal.backward(*arrays, numba.get_num_threads())
        du, ddelta, dA, dB, dC, dS = map(torch.from_numpy, grads)
        return (
            du,
            _sum_to(ddelta, delta.shape),
            dA.sum(0),
            _sum_to(dB.sum(0), B.shape),
            _sum_to(dC.sum(0), C.shape),
            dS,
            None,
        )


class Decay(Function):
    @staticmethod
    def forward(ctx, q, k, v, a, S, u, lengths, before):
        ctx.save_for_backward(q, k, v, a, S, u, lengths)
        ctx.before = before
        y, last = cpu_decay.forward(*_arrays(q, k, v, a, S, u, lengths), before)
        return torch.from_numpy(y), torch.from_numpy(last)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy, dlast):
        q, k, v, a, S, u, lengths = ctx.saved_tensors
        arrays = _arrays(q, k, v, a, S, u, lengths)
        grads = cpu_decay.backward(*arrays, ctx.before, *_arrays(dy, dlast))
        dq, dk, dv, da, dS, du = map(torch.from_numpy, grads)
        return (
            _sum_to(dq, q.shape),
            _sum_to(dk, k.shape),
            dv,
            _sum_to(da, a.shape),
            dS,
            du.sum(0),
            None,
            None,
        )


class Delta(Function):
    @staticmethod
    def forward(ctx, q, k, v, a, b, c, beta, S, lengths, before):
        """b None stands for k."""
        ctx.own, ctx.before = b is None, before
        b = k if b is None else b
        ctx.save_for_backward(q, k, v, a, b, c, beta, S, lengths)
        y, last = cpu_delta.forward(*_arrays(q, k, v, a, b, c, beta[..., None], S, lengths), before, ctx.own)
        return torch.from_numpy(y), torch.from_numpy(last)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy, dlast):
        *tokens, beta, S, lengths = ctx.saved_tensors
        arrays = _arrays(*tokens, beta[..., None], S, lengths)
        grads = cpu_delta.backward(*arrays, ctx.before, ctx.own, *_arrays(dy, dlast))
        dq, dk, dv, da, db, dc, dbeta, dS = map(torch.from_numpy, grads)
        q, k, _, a, b, c = tokens
        return (
            _sum_to(dq, q.shape),
            _sum_to(dk, k.shape),
            dv,
            _sum_to(da, a.shape),
            None if ctx.own else _sum_to(db, b.shape),
            _sum_to(dc, c.shape),
            _sum_to(dbeta[..., 0], beta.shape),
            dS,
            None,
            None,
        )


class Logspace(Function):
    @staticmethod
    def forward(ctx, s, v, g, u, num, den, top, lengths, bonus):
        ctx.save_for_backward(s, v, g, u, num, den, top, lengths)
        ctx.bonus = bonus
        outputs = cpu_logspace.forward(*_arrays(s, v, g, u, num, den, top, lengths), bonus)
        y, num, den, top = map(torch.from_numpy, outputs)
        ctx.mark_non_differentiable(top)
        return y, num, den, top

    @staticmethod
    @once_differentiable
    def backward(ctx, dy, dnum, dden, _dtop):
        arrays = _arrays(*ctx.saved_tensors)
        ds, dv, dg, du, dnum, dden = map(
            torch.from_numpy, cpu_logspace.backward(*arrays, ctx.bonus, *_arrays(dy, dnum, dden))
        )
        return ds, dv, dg.sum(0), du.sum(0), dnum, dden, None, None, None
