"""The stops of one byte in a model of S, A and experts: what each part reads, shows, and adds to the stream.

    found = stops(net, byte, S)    # after a text whose state is S

The picture of a stop is of that stop's own numbers (walk.py). `early_Y` is what the model would say if it ended there:
the stream read by the last norm and the head, which were not trained to read it there.
"""

from typing import NamedTuple

import torch
from torch.nn.functional import silu, softplus

from postx.mixers import attention
from postx.parts import conv


class Stop(NamedTuple):
    """A stop: the stream after it, what it added, and the next byte's probabilities if the model were read here.

    `shown` is what the part does: an SSD layer's (share of its table that the first head keeps, that table before, the
    key and the value whose product is written); a look at each byte of the text (head by byte); the router's share and
    the answer's weight of each expert; nothing at the ends.
    """

    name: str
    x_D: torch.Tensor
    added_D: torch.Tensor
    early_Y: torch.Tensor
    shown: tuple

    @property
    def kind(self):
        """SSD, attention, experts, embedding or logits."""
        return self.name.split()[-1]


@torch.no_grad()
def stops(net, byte, S):
    """The stops of `byte` after the text whose state is `S`, which stays as it is. See `Stop`."""
    found, x = [], net.embed(torch.tensor([[byte]]))

    def stop(name, before, shown=()):
        early = (net.norm(x) @ net.embed.weight.T)[0, 0].softmax(-1)
        found.append(Stop(name, x[0, 0], (x - before)[0, 0], early, shown))

    stop("embedding", torch.zeros_like(x))
    for i, (letter, block) in enumerate(zip(net.pattern, net.blocks, strict=True)):
        seen, before, kept = block.norm(x), x, S[i][0]
        x = x + block.mix[0](seen, kept)[0]
        if letter == "A":
            stop(f"{i + 1} attention", before, (looks(block.mix[0], seen[0], kept),))
        else:
            share, key, value = fades(block.mix[0], seen, kept)
            stop(f"{i + 1} SSD", before, (share, kept[0][0, 0], key, value))
        seen, before = block.mlp_norm(x), x
        weight, _, p = block.mlp.weights(seen)
        x = x + block.mlp(seen)[0]
        stop(f"{i + 1} experts", before, (p[0, 0], weight[0, 0]))
    stop("logits", x)
    return found


def fades(layer, seen, kept):
    """The share of its table that the first head of an SSD layer keeps, and the key and the value that it writes."""
    _, mixed, dt = layer.inward(seen).split([layer.widths[0], sum(layer.widths), layer.H], -1)
    mixed, _ = conv.short_convolution(mixed, layer.taps_DW, layer.taps_bias_D, kept[1])
    x, k, _ = silu(mixed)[0, 0].split(layer.widths)
    step = softplus(dt[0, 0, 0] + layer.dt_bias_H[0]).clamp(*layer.dt_limit)
    return float((-layer.log_rate_H[0].exp() * step).exp()), k[: layer.K], x[: layer.widths[0] // layer.H] * step


def looks(layer, seen, kept):
    """How much each head looks at each byte so far, share_HM: the answer to values of one place each."""
    (_, K), (G, _), _ = layer.heads
    keys, _, position = kept[:3]
    T = keys.shape[1]
    place = torch.eye(T + 1)[:, None].expand(-1, G, -1)[None]
    q, k = (project(seen).unflatten(-1, (-1, K)) for project in (layer.q, layer.k))
    return attention.step((keys, place[:, :T], position), q, k, place[:, T], rope=layer.rope)[0][0]
