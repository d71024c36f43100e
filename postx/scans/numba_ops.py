"""The numba kernels as torch functions with gradients. First order only: a second backward raises."""

import numba
import torch
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from postx.scans import cpu_affine, cpu_decay, cpu_diagonal, cpu_fir, cpu_logspace


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


class Affine(Function):
    @staticmethod
    def forward(ctx, a, b, S, lengths):
        y, last = map(torch.from_numpy, cpu_affine.forward(*_arrays(a, b, S, lengths)))
        ctx.save_for_backward(a, y, S, lengths)
        return y, last

    @staticmethod
    @once_differentiable
    def backward(ctx, dy, dlast):
        grads = cpu_affine.backward(*_arrays(*ctx.saved_tensors, dy, dlast))
        return *map(torch.from_numpy, grads), None


class Fir(Function):
    @staticmethod
    def forward(ctx, x, w):
        ctx.save_for_backward(x, w)
        return torch.from_numpy(cpu_fir.forward(*_arrays(x, w)))

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        dx, dw = cpu_fir.backward(*_arrays(*ctx.saved_tensors, dy))
        return torch.from_numpy(dx), torch.from_numpy(dw)
