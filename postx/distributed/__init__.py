"""A text longer than one device: keys and values go round a ring, or one state is passed. On torch.distributed.

    python -m torch.distributed.run --nproc-per-node 2 script.py       starts the ranks

    mesh = distributed.start()                                         in each of them: joins the group
    wire = distributed.Wire(mesh["sequence"].get_group())
    layout = distributed.Layout(T, wire.ranks, "zigzag")               who holds which tokens
    y = distributed.attend(q, k, v, layout, wire)                      ring attention: O(T) bytes a rank
    y, S = distributed.run(ssd, *z, layout=layout, wire=wire)          a passed state: O(1) in T ("straight")
    y = distributed.layer(ssd.Layer(D), x_BTD, layout, wire)           a whole layer, by its family

`bill` has the bytes and the times in closed form. Training on several ranks is `postx.train` with `ranks="ddp"`.
"""

from postx.distributed.layers import Across, layer
from postx.distributed.layout import Layout
from postx.distributed.mesh import RankLost, start
from postx.distributed.passed import run
from postx.distributed.ring import attend
from postx.distributed.wire import Wire

__all__ = ["Across", "Layout", "RankLost", "Wire", "attend", "layer", "run", "start"]
