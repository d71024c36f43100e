"""What each of four ranks runs: every case on the first 1, 2, 3 and 4 of them, beside the same on one process.

Rank 0 writes {case: {"error": ..., "bytes": [of each rank]}} to found.json in the folder that it is given.
"""

import json
import sys
from functools import cache, partial
from pathlib import Path

import torch
import torch.distributed as dist

from postx import distributed, mixers
from postx.mixers import attention

torch.set_num_threads(1)
RANKS, FOUND = 4, {}
PASSED = [name for name in mixers.names() if name not in ("attention", "mla", "moba", "hyena")]


def grads(inputs):
    return [torch.zeros_like(x) if x.grad is None else x.grad for x in inputs]


def leaf(x):
    return x.detach().clone().requires_grad_(x.is_floating_point() or x.is_complex())


def gathered(wire, x):
    """x of all ranks of a wire's group; what is of another size on each of them too."""
    found = [None] * wire.ranks
    dist.all_gather_object(found, x.detach(), group=wire.group)
    return found


def apart(a, b):
    return (a - b).abs().max().item() / max(1.0, b.abs().max().item()) if a.numel() else 0.0


def compare(wire, layout, whole, got, name, sent):
    """What whole() is on one process against got, each (per-token tensors, tensors whose shares add up).

    Rank 0 alone asks for the whole, and asks once for all numbers of ranks (`cache`).
    """
    parts = [[layout.join(gathered(wire, x)) for x in got[0]], [sum(gathered(wire, x)) for x in got[1]]]
    counts = gathered(wire, torch.tensor(sent))
    if wire.rank == 0:
        pairs = [pair for ours, theirs in zip(parts, whole(), strict=True) for pair in zip(ours, theirs, strict=True)]
        error = max(apart(ours, theirs.detach()) for ours, theirs in pairs)
        FOUND[name] = {"error": error, "bytes": [c.tolist() for c in counts]}


def weights_of(y, T):
    """Of a whole text of T tokens, whatever part of it y is."""
    shape = (y.shape[0], T, *y.shape[2:])
    return torch.randn(shape, generator=torch.Generator().manual_seed(5), dtype=y.dtype)


@cache
def passed_whole(name, T):
    mixer = mixers.load(name)
    z, w = mixer.example(T)
    z, w = [leaf(x) for x in z], {k: leaf(x) if torch.is_tensor(x) else x for k, x in w.items()}
    y = mixer.recurrent(*z, **w)[0]
    (y * weights_of(y, T)).sum().backward()
    return [y, *grads(z)], grads([x for x in w.values() if torch.is_tensor(x)])


def passed_case(wire, name, how, T=23, form="auto"):
    mixer, layout = mixers.load(name), distributed.Layout(T, wire.ranks)
    z, w = mixer.example(T)
    mine = [leaf(layout.split(x, wire.rank)) for x in z]
    own_w = {k: leaf(x) if torch.is_tensor(x) else x for k, x in w.items()}
    before = wire.sent
    y, _ = distributed.run(mixer, *mine, layout=layout, wire=wire, how=how, form=form, **own_w)
    forward = wire.sent - before
    tensors = [x for x in own_w.values() if torch.is_tensor(x)]
    asked = [x for x in (*mine, *tensors) if x.requires_grad]
    # asked for by name, which walks only what lies on the way to them
    shares = torch.autograd.grad((y * layout.split(weights_of(y, T), wire.rank)).sum(), asked, allow_unused=True)
    for x, share in zip(asked, shares, strict=True):
        x.grad = share
    got, case = ([y, *grads(mine)], grads(tensors)), f"passed {name} {how} {form} T{T} P{wire.ranks}"
    compare(wire, layout, partial(passed_whole, name, T), got, case, [forward, wire.sent - before])


@cache
def ring_whole(T, window, H, G, K, V, slopes):
    z = [leaf(x) for x in attention.example(T, H=H, G=G, K=K, V=V)[0]]
    y = attention.parallel(*z, window=window, slopes_H=attention.alibi_slopes(H).double() if slopes else None)[0]
    (y * weights_of(y, T)).sum().backward()
    return [y, *grads(z)], []


def ring_case(wire, kind, T=26, window=None, H=4, G=2, K=8, V=8, impl="torch", slopes=False):
    layout, w = distributed.Layout(T, wire.ranks, kind), {"window": window}
    z, _ = attention.example(T, H=H, G=G, K=K, V=V)
    w["slopes_H"] = attention.alibi_slopes(H).double() if slopes else None
    mine = [leaf(layout.split(x, wire.rank)) for x in z]
    before = wire.sent
    y = distributed.attend(*mine, layout, wire, impl=impl, **w)
    forward = wire.sent - before
    (y * layout.split(weights_of(y, T), wire.rank)).sum().backward()
    name = f"ring {kind} T{T} W{window} H{H} G{G} V{V} {impl}{' slopes' if slopes else ''} P{wire.ranks}"
    whole = partial(ring_whole, T, window, H, G, K, V, slopes)
    compare(wire, layout, whole, ([y, *grads(mine)], []), name, [forward, wire.sent - before])


def layer_of(name, options, T, D):
    torch.manual_seed(3)
    part = mixers.load(name).Layer(D, **dict(options)).double()
    return part, torch.randn(2, T, D, dtype=torch.float64)


@cache
def layer_whole(name, options, T, D):
    part, x = layer_of(name, options, T, D)
    x = leaf(x)
    y = part(x)[0]
    (y * weights_of(x, T)).sum().backward()
    return [y, *grads([x])], grads(part.parameters())


def layer_case(wire, name, options, kind="straight", T=22, D=16, how="turn"):
    layout, told = distributed.Layout(T, wire.ranks, kind), tuple(options.items())
    part, x = layer_of(name, told, T, D)
    mine = leaf(layout.split(x, wire.rank))
    y = distributed.layer(part, mine, layout, wire, how=how)
    (y * layout.split(weights_of(x, T), wire.rank)).sum().backward()
    got, case = ([y, *grads([mine])], grads(part.parameters())), f"layer {name} {options} {kind} P{wire.ranks}"
    compare(wire, layout, partial(layer_whole, name, told, T, D), got, case, [0, 0])


def refused(call):
    try:
        call()
    except ValueError as error:
        return str(error)
    return "nothing was raised"


def main(folder):
    distributed.start(timeout=120)
    groups = [dist.new_group(list(range(n))) for n in range(1, RANKS + 1)]
    for group in groups[: RANKS][max(0, dist.get_rank()) :]:  # this rank is in the groups that are large enough
        wire = distributed.Wire(group)
        P = wire.ranks
        for name in PASSED:
            passed_case(wire, name, "turn")
            if P > 2 and hasattr(mixers.load(name), "operator"):
                passed_case(wire, name, "log")
        for T in (P, 40):
            passed_case(wire, "ssd", "turn", T=T, form="chunked")
        for kind in ("straight", "zigzag"):
            for T, window in ((8, None), (26, None), (24, 5), (26, 9), (24, 1)):
                ring_case(wire, kind, T=T, window=window)
            ring_case(wire, kind, H=3, G=1, V=5, slopes=True)
            ring_case(wire, kind, impl="flash")
            ring_case(wire, kind, window=13, impl="flash")
            for T in (24, 48):
                ring_case(wire, kind, T=T)
            layer_case(wire, "attention", {"H": 4, "G": 2}, kind)
        for name in PASSED if P % 2 == 0 else ():  # on 1 and 3 the mixers alone
            layer_case(wire, name, {"K": 4, "V": 4} if name in ("ssd", "mamba3") else {})
        for name in ("attention", "gla", "retnet"):
            layer_case(wire, name, {"conv_size": 4})
        layer_case(wire, "mamba", {}, how="log")  # its state is wide, and there is a convolution before it
    if dist.get_rank() == 0:
        (folder / "found.json").write_text(json.dumps(FOUND), encoding="utf8")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
