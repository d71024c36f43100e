"""Messages between the ranks of a group: who sends what to whom, and how many bytes that was.

All that this package sends goes through `Wire.exchange`, so `sent` is the whole count. Complex numbers travel as pairs.
"""

import torch
import torch.distributed as dist

from postx.distributed.mesh import require, watched


class Wire:
    """A group of ranks (all of them by default) and a counter of the bytes that this rank has sent.

    `rank` and `ranks` are those of the group. Raises RuntimeError in a process that has joined no group.
    """

    def __init__(self, group=None):
        require()
        self.group = group
        self.rank, self.ranks, self.sent = dist.get_rank(group), dist.get_world_size(group), 0
        self.waits = []  # for what `send` has begun to send

    def exchange(self, sends=(), receives=()):
        """Begin to send [(tensor, rank)] and to receive [(like, rank)]; returns a function that waits, and gives these.

        Two ranks must list what passes between them in the same order. `like` tells shape and dtype.
        """
        kept = [_plain(x.detach()).contiguous() for x, _ in sends]  # alive until they are sent
        places = [torch.empty_like(like, memory_format=torch.contiguous_format) for like, _ in receives]
        self.sent += sum(x.numel() * x.element_size() for x in kept)
        waits = self.post([(x, to) for x, (_, to) in zip(kept, sends, strict=True)],
                          [(_plain(x), source) for x, (_, source) in zip(places, receives, strict=True)])  # fmt: skip

        def wait(kept=kept):
            for each in waits:
                each()
            return places

        return wait

    def post(self, sends, receives):
        """Hand messages to torch; returns functions that wait for them."""
        works = [dist.P2POp(dist.isend, x, group=self.group, group_peer=to) for x, to in sends]
        works += [dist.P2POp(dist.irecv, x, group=self.group, group_peer=source) for x, source in receives]
        if not works:
            return []
        with watched():
            works = dist.batch_isend_irecv(works)

        def wait():
            with watched():
                for work in works:
                    work.wait()

        return [wait]

    def flush(self):
        """Wait until all that `send` began to send has gone."""
        while self.waits:
            self.waits.pop()()


def _plain(x):
    return torch.view_as_real(x) if x.is_complex() else x


class _Send(torch.autograd.Function):
    @staticmethod
    def forward(ctx, wire, to, anchor, *tensors):
        ctx.wire, ctx.to, ctx.count = wire, to, len(tensors)
        ctx.moved = [i for i, x in enumerate(tensors) if moves(x)]
        ctx.likes = [torch.empty_like(tensors[i], device="meta") for i in ctx.moved]
        wire.waits.append(wire.exchange([(x, to) for x in tensors]))
        return anchor.new_zeros(())

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dtoken):
        likes = [(torch.empty_like(x, device=dtoken.device), ctx.to) for x in ctx.likes]
        grads = [None] * ctx.count
        for i, grad in zip(ctx.moved, ctx.wire.exchange(receives=likes)(), strict=True):
            grads[i] = grad
        return None, None, None, *grads


class _Receive(torch.autograd.Function):
    @staticmethod
    def forward(ctx, wire, source, anchor, *likes):
        ctx.wire, ctx.source, ctx.count = wire, source, len(likes)
        places = wire.exchange(receives=[(x, source) for x in likes])()
        ctx.moved = [i for i, x in enumerate(places) if moves(x)]
        ctx.mark_non_differentiable(*(x for x in places if not moves(x)))
        return tuple(places)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, *grads):
        ctx.wire.exchange([(grads[i], ctx.source) for i in ctx.moved])()
        return None, None, None, *[None] * ctx.count


def moves(x):
    """Whether gradients flow through x: counters have none."""
    return x.is_floating_point() or x.is_complex()


def anchor(*tensors):
    """What ties a message to the graph, on every rank alike: a zero that needs a gradient where a tensor does.

    A message's way back must be walked whichever of these a gradient is asked for, also by `torch.autograd.grad`.
    """
    return _Anchor.apply(*(x for x in tensors if isinstance(x, torch.Tensor)))


class _Anchor(torch.autograd.Function):
    @staticmethod
    def forward(ctx, *tensors):
        ctx.count = len(tensors)
        return torch.zeros((), device=tensors[0].device)

    @staticmethod
    def backward(ctx, _):
        return (None,) * ctx.count


def send(wire, to, tensors, tie):
    """Begin to send tensors (`Wire.flush` waits); their gradients come back to them.

    Returns a zero, which must be added to what the loss is made of.
    """
    return _Send.apply(wire, to, tie, *tensors)


def receive(wire, source, likes, tie):
    """Receive tensors of the shapes and dtypes of `likes`; their gradients go back to the rank they came from."""
    return _Receive.apply(wire, source, tie, *(x.detach() for x in likes))
