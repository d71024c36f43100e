"""Triton's interpreter, which runs a GPU's kernels on a CPU, number by number.

The variable TRITON_INTERPRET is read when triton is imported, so it has a process of its own: `differences(__file__)`
starts the test file as a script, whose last line calls its `interpreted()` and prints what that found as JSON.
"""

import functools
import inspect
import json
import os
import subprocess
import sys

from postx import scans


def install():
    """To be called in that process: "triton" is taken where there is a kernel, on a CPU too."""
    from triton.runtime import interpreter

    patch = interpreter._patch_lang_tensor

    def with_index(tensor, scope):  # Triton 3.6 turns arrays of one number into int, which numpy 2.4 refuses
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    interpreter._patch_lang_tensor = with_index
    # Triton looks through all of its language for every call of every function, which takes longer than the sums.
    builtins = functools.cache(lambda place: inspect.getmembers(place, interpreter.tl.core.is_builtin))

    def patch_builtins(place, builder, scope):
        for name, member in builtins(place):
            if getattr(place, name) is member:
                interpreter._patch_attr(place, name, member, builder, scope)

    interpreter._patch_builtin = patch_builtins
    choose = scans.choose
    scans.choose = lambda impl, x, kernel=False: impl if impl == "triton" and kernel else choose(impl, x, kernel)


def differences(path):
    """What the process of that test file printed: {case: largest difference}, or a list of them."""
    environ = dict(os.environ, TRITON_INTERPRET="1", CUDA_VISIBLE_DEVICES="")
    environ["PYTHONPATH"] = os.pathsep.join([os.getcwd(), "tests/tools", environ.get("PYTHONPATH", "")])
    done = subprocess.run([sys.executable, path], env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])
