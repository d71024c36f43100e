"""What a page costs: processor seconds of its kernel, so that a page that only waited does not look slow.

Compiling kernels is counted apart, since it is done once on a machine and not for a page. Both ways to run a chapter,
run.py and executed.py, ask the kernel in the same words.
"""

import ast

BUDGET = 25  # processor seconds a page should take on an idle core, execution and frames together
BUSY = 2  # on a busy or a slower core the same work takes up to twice as many: only beyond that does a test fail
FIRST = '''
import time as _postx_time
import psutil as _postx_psutil
from numba.core import event as _postx_event
class _PostxCompiling(_postx_event.Listener):
    depth, spent = 0, 0.0
    def on_start(self, event):
        if self.depth == 0:
            self.began = _postx_time.process_time()
        self.depth += 1
    def on_end(self, event):
        self.depth -= 1
        if self.depth == 0:
            self.spent += _postx_time.process_time() - self.began
_postx_compiling = _PostxCompiling()
_postx_event.register("numba:compile", _postx_compiling)
'''
# Processor seconds of the kernel and of the processes that it has started and waited for, and of those for compiling.
ASK = {"spent": "(sum(_postx_psutil.Process().cpu_times()[:4]), _postx_compiling.spent)"}


def begin(client) -> str:
    """Start to count in the kernel behind a client; the number of the message."""
    return client.execute(FIRST, silent=True, store_history=False)


def ask(client) -> str:
    """Ask what was spent; the number of the message whose reply `read` understands."""
    return client.execute("", silent=True, store_history=False, user_expressions=ASK)


def read(reply: dict) -> dict[str, float]:
    """{"page": processor seconds without compiling, "compiling": those for it} of a kernel's reply."""
    whole, compiling = ast.literal_eval(reply["content"]["user_expressions"]["spent"]["data"]["text/plain"])
    return {"page": whole - compiling, "compiling": compiling}
