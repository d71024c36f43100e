"""Seven questions about memory, asked of random tokens: `task(B, T, ..., seed=0) -> (ids_BT, targets_BT)`.

The logits at t are asked for `targets_BT[:, t]`; where nothing is asked the target is -100, which torch's
cross-entropy passes over. Everything is drawn on the CPU by numpy (the same numbers on every machine) without a
loop over B; for a GPU, copy the result. A seed is an integer, or a tuple such as (0, step): training draws
batch `step` anew from (seed, step), so that a run can be resumed anywhere.

Vocabulary: 0 BLANK, 1 ASK, 2 GO, 3 END are shared marks. From 4 on come the task's own alphabets, in the order
in which its signature names their sizes; no two alphabets share a token. `alphabets(keys=64, values=64)` gives
the ranges, `vocabulary(...)` the number of tokens, and `draw` writes a row as two lines of text.

lookup.py asks for entries of a table, order.py for what stood where; letters.py has the alphabets of both.
"""

from postx.tasks.letters import ASK, BLANK, END, GO, MARKS, UNASKED, alphabets, draw, vocabulary
from postx.tasks.lookup import phone_book, recall, rewriting
from postx.tasks.order import copying, induction, parity, selective_copying

__all__ = [
    "ASK", "BLANK", "END", "GO", "MARKS", "TASKS", "UNASKED", "alphabets", "copying", "draw", "induction", "parity",
    "phone_book", "recall", "rewriting", "selective_copying", "vocabulary",
]  # fmt: skip

TASKS = {f.__name__: f for f in (recall, rewriting, selective_copying, induction, copying, phone_book, parity)}
