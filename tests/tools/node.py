"""Scripts of the pages under node: their functions, without a browser."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

STATIC = Path(__file__).resolve().parents[2] / "_static"
# What a script finds when it is loaded: a window that is the global object, events that never come, an empty page.
STUB = "globalThis.window = globalThis; globalThis.addEventListener = () => {};"
STUB += "globalThis.document = { querySelectorAll: () => [] };"


def run(scripts, expression, **given):
    """The value of a JavaScript expression with the scripts of _static/ loaded; `given` are its constants.

    Numbers that JSON has no word for come back as "NaN", "Infinity" or "-Infinity". Skips where there is no node.
    """
    node = shutil.which("node")
    if node is None:
        pytest.skip("no node on this machine: the browser tests ask the same functions")
    constants = "".join(f"const {name} = {json.dumps(value)};" for name, value in given.items())
    loads = "".join(f"vm.runInThisContext(fs.readFileSync({json.dumps(str(STATIC / s))}, 'utf8'));" for s in scripts)
    odd = "(key, value) => typeof value === 'number' && !Number.isFinite(value) ? String(value) : value"
    code = f"const vm = require('vm'), fs = require('fs');{STUB}{loads}{constants}"
    code += f"process.stdout.write(JSON.stringify(({expression}), {odd}) ?? 'null')"
    done = subprocess.run([node, "-"], input=code, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
