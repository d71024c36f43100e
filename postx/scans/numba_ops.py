"""The numba kernels as torch functions with gradients. First order only: a second backward raises."""

import math

import numba
import torch
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from postx.scans import (
    cpu_affine,
    cpu_decay,
    cpu_delta,
    cpu_diagonal,
    cpu_erase,
    cpu_fir,
    cpu_logspace,
    cpu_selective,
)
from postx.scans.arguments import sum_to
from postx.scans.lanes import LANES
from postx.shapes import real


def _arrays(*tensors):
    """Contiguous numpy views. resolve_conj: torch writes a conjugate as a flag that numpy cannot read."""
    return [x.detach().resolve_conj().contiguous().numpy() for x in tensors]


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
            sum_to(ddelta, delta.shape),
            dA.sum(0),
            sum_to(dB.sum(0), B.shape),
            sum_to(dC.sum(0), C.shape),
            dS,
            None,
        )


def _padded(x):
    """x with zeros after its last axis up to a multiple of LANES: such channels stay 0 and disturb nothing."""
    missing = -x.shape[-1] % LANES
    return torch.nn.functional.pad(x, (0, missing)) if missing else x


class Selective(Function):
    """The diagonal recurrence, all real, with delta_BTD, B_BTN and C_BTN."""

    @staticmethod
    def forward(ctx, u, delta, A, B, C, S, lengths):
        arrays = _arrays(*Selective.layout(u, delta, A, B, C), _padded(S.mT), lengths)
        y, last, kept = cpu_selective.forward(*arrays, any(ctx.needs_input_grad), numba.get_num_threads())
        ctx.save_for_backward(u, delta, A, B, C, lengths, torch.from_numpy(kept))
        y, last = (torch.from_numpy(x)[..., : u.shape[2]] for x in (y, last))
        return y, last.mT.contiguous()

    @staticmethod
    def layout(u, delta, A, B, C):
        """The arguments as the kernel wants them: channels last and padded, A by log2(e)."""
        return _padded(u), _padded(delta), _padded(A.mT * math.log2(math.e)), B, C

    @staticmethod
    @once_differentiable
    def backward(ctx, dy, dlast):
        u, delta, A, B, C, lengths, kept = ctx.saved_tensors
        D = u.shape[2]
        inputs = _arrays(*Selective.layout(u, delta, A, B, C), kept, lengths, _padded(dy), _padded(dlast.mT))
        grads = cpu_selective.backward(*inputs, numba.get_num_threads())
        du, ddelta, dA, dB, dC, dS = map(torch.from_numpy, grads)
        return du[..., :D], ddelta[..., :D], dA.sum(0)[:, :D].mT, dB.sum(0), dC.sum(0), dS[..., :D].mT, None


def _reads(q, k, u):
    """Of every head, what a token's query finds of its own value by the bonus: q' diag(u) k, [B,T,H,1]."""
    return (_to_heads(q, u) * u * _to_heads(k, u)).sum(-1, keepdim=True)


def _to_heads(x, u):
    return x.repeat_interleave(u.shape[0] // x.shape[2], 2)


def _scan(*tensors, **how):
    """`cpu_decay.scan` of tensors."""
    return map(torch.from_numpy, cpu_decay.scan(*_arrays(*tensors), numba.get_num_threads(), **how))


def _learn(*tensors, before, more=()):
    """`cpu_decay.learn` of tensors."""
    more = _arrays(*more)
    return torch.from_numpy(cpu_decay.learn(*_arrays(*tensors), before, numba.get_num_threads(), *more))


def _room(v, S):
    """`cpu_decay.room` for walks across."""
    return cpu_decay.room(*_arrays(v, S.mT), v.shape[1])


class Decay(Function):
    """g is the log-decay [B|1,T|1,G,K|1], and the bonus u may be None."""

    @staticmethod
    def forward(ctx, q, k, v, g, S, u, lengths, before):
        y, last = _scan(q, k, v, g, S, lengths, before=before)
        ctx.before = before
        ctx.save_for_backward(q, k, v, g, S, u, lengths, y, last)
        return (y if u is None else y + _reads(q, k, u) * v), last

    @staticmethod
    @once_differentiable
    def backward(ctx, dy, dlast):
        q, k, v, g, S, u, lengths, y, last = ctx.saved_tensors
        H, (Gq, Gk, Gg), keys = v.shape[2], (x.shape[2] for x in (q, k, g)), g.shape[3] > 1

        def scan(*x, **how):
            return _scan(*x, lengths, before=ctx.before, **how)

        learns = ctx.needs_input_grad[3]
        # A key's decay learns from dq and dk of its own heads alone.
        finest = max(Gq, Gk, Gg)
        finest = finest if all(finest % G == 0 for G in (Gq, Gk, Gg)) else H
        own = finest if learns and keys else None
        dv, dS = scan(k, q, dy, g, dlast, heads=H, reverse=True)
        tables = _room(v, S) if learns else None
        dq, _ = scan(dy, v, k, g, S.mT, heads=own or Gq, across=True, tables=tables)
        dk, _ = scan(v, dy, q, g, dlast.mT, heads=own or Gk, across=True, reverse=True, tables=tables)
        dg = du = None
        if learns:
            known = (dlast * last).sum(-1), torch.from_numpy(tables[1])
            if keys:
                parts, known = (q, dq, k, dk), (x.unflatten(-2, (finest, -1)).sum(-2) for x in known)
            else:
                parts, known = (y, dy, v, dv), (x.sum(-1, keepdim=True) for x in known)
            dg = sum_to(_learn(*parts, g, *known, lengths, before=ctx.before), g.shape)
        dq, dk = sum_to(dq, q.shape), sum_to(dk, k.shape)
        if u is not None:
            dy = real(dy, lengths)
            found, full_q, full_k = (dy * v).sum(-1, keepdim=True), _to_heads(q, u), _to_heads(k, u)
            dv = dv + _reads(q, k, u) * dy
            dq, dk = dq + sum_to(found * u * full_k, q.shape), dk + sum_to(found * u * full_q, k.shape)
            du = (found * full_q * full_k).sum((0, 1))
        return dq, dk, dv, dg, dS, du, None, None


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
            sum_to(dq, q.shape),
            sum_to(dk, k.shape),
            dv,
            sum_to(da, a.shape),
            None if ctx.own else sum_to(db, b.shape),
            sum_to(dc, c.shape),
            sum_to(dbeta[..., 0], beta.shape),
            dS,
            None,
            None,
        )


class Erase(Function):
    """The delta recurrence read after the update, with one log-decay a head, g [B|1,T|1,G,1], and b = c = k."""

    @staticmethod
    def forward(ctx, q, k, v, g, beta, S, lengths):
        ctx.shape, beta = beta.shape, beta.expand(*v.shape[:2], -1)
        arrays, learns = _arrays(q, k, v, beta[..., None], g, S, lengths), any(ctx.needs_input_grad)
        y, last, u = map(torch.from_numpy, cpu_erase.walk(*arrays, numba.get_num_threads(), keep=learns))
        ctx.save_for_backward(q, k, v, g, beta, S, lengths, y, last, u)
        return y, last

    @staticmethod
    @once_differentiable
    def backward(ctx, dy, dlast):
        """With du, each is a decay recurrence: of what was written, u, and of what is erased, beta k' times du."""
        q, k, v, g, beta, S, lengths, y, last, u = ctx.saved_tensors
        (Gq, Gk), H = (x.shape[2] for x in (q, k)), v.shape[2]
        arrays = _arrays(q, k, dy, beta[..., None], g, dlast, lengths)
        du, dS, _ = map(torch.from_numpy, cpu_erase.walk(*arrays, numba.get_num_threads(), reverse=True))
        learns = ctx.needs_input_grad[3]
        tables = _room(v, S) if learns else None
        dq, _ = _scan(dy, u, k, g, S.mT, lengths, heads=Gq, tables=tables)
        lost, _ = _scan(du, u, k, g, S.mT, lengths, before=True)  # the table before each token, times du
        dk, _ = _scan(u, dy, q, g, dlast.mT, lengths, heads=Gk, reverse=True, tables=tables)
        full_k, beta = (x.repeat_interleave(H // x.shape[2], 2) for x in (k, beta))
        erased = beta[..., None] * full_k
        written, none = tables[1].sum(-1, keepdims=True) if learns else None, torch.zeros_like(S.mT)
        later, _ = _scan(u, du, erased, g, none, lengths, heads=Gk, reverse=True, before=True, tables=tables)
        dk = dk - later - sum_to(beta[..., None] * lost, k.shape)
        dbeta, dg = -(full_k * lost).sum(-1), None
        if learns:
            at_end = (dlast * last).sum((2, 3))[..., None]
            between = torch.from_numpy(written - tables[1].sum(-1, keepdims=True))
            dg = _learn(y, dy, u, du, g, at_end, between, lengths, before=False, more=[beta * dbeta])
            dg = sum_to(dg, g.shape)
        return dq, dk, du, dg, sum_to(dbeta, ctx.shape), dS, None


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
