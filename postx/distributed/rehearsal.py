"""Ranks as threads of one process, which hand tensors to each other: the same code as over gloo, without its wires.

For pages, tests and a debugger. It shares the cores out and shows no speed.
"""

import queue
import threading
from collections import defaultdict

from postx.distributed.mesh import RankLost
from postx.distributed.wire import Wire


class ThreadWire(Wire):
    """A wire whose messages go through queues, one for each pair of ranks."""

    def __init__(self, rank, ranks, queues, seconds):
        self.rank, self.ranks, self.sent, self.waits = rank, ranks, 0, []
        self.queues, self.seconds = queues, seconds

    def post(self, sends, receives):
        for x, to in sends:
            self.queues[self.rank, to].put(x.clone())
        return [lambda x=x, source=source: x.copy_(self._take(source)) for x, source in receives]

    def _take(self, source):
        try:
            return self.queues[source, self.rank].get(timeout=self.seconds)
        except queue.Empty:
            raise RankLost(f"rank {self.rank} of {self.ranks} waits for rank {source} since {self.seconds} s") from None


def rehearse(ranks, work, *, seconds=60):
    """[work(wire) of rank 0, 1, ...], each in a thread of its own. The first error of any rank is raised."""
    queues, results, errors = defaultdict(queue.Queue), [None] * ranks, []
    for pair in ((a, b) for a in range(ranks) for b in range(ranks)):
        queues[pair]  # made here: a defaultdict is not to be filled by several threads

    def run(rank):
        try:
            results[rank] = work(ThreadWire(rank, ranks, queues, seconds))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(ranks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise next((e for e in errors if not isinstance(e, RankLost)), errors[0])
    return results
