"""Runs the pure functions of a page's script in node, beside their counterparts in Python."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

STATIC = Path(__file__).resolve().parents[2] / "_static"
RUN = """
const { readFileSync } = require("fs"), vm = require("vm");
const { files, work, told } = JSON.parse(readFileSync(0, "utf8"));
const window = {}, document = { querySelectorAll: () => [] };
const context = vm.createContext({ window, document, console });
files.forEach((file) => vm.runInContext(readFileSync(file, "utf8"), context, file));
context.told = told;
console.log(JSON.stringify(vm.runInContext(`(${work})(window.postx, told)`, context)));
"""


def run(name, work, told):
    """What the JavaScript function `work(postx, told)` returns when _static/widgets/NAME.js is loaded.

    Skips the test where there is no node; `told` and the result are whatever JSON can say.
    """
    node = shutil.which("node")
    if node is None:
        pytest.skip("no node on this machine")
    files = [str(STATIC / "postx.js"), str(STATIC / "widgets" / f"{name}.js")]
    told = json.dumps({"files": files, "work": work, "told": told})
    done = subprocess.run([node, "-e", RUN], input=told, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
