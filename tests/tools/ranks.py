"""Starts a script as several gloo ranks of this machine, one thread each, and collects what they wrote."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# Kernels run as torch's reference: four processes would compile each of them at the same time.
ALONE = {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1", "POSTX_THREADS": "1", "NUMBA_DISABLE_JIT": "1"}


def environment(**more):
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "tools"), os.environ.get("PYTHONPATH", "")])
    return os.environ | ALONE | {"PYTHONPATH": path} | more


def start(script, ranks, folder, seconds=300):
    """Run `script folder` on that many ranks; returns {case: what rank 0 wrote}. A rank that fails fails the call."""
    if sys.platform == "win32":
        pytest.skip("torch for Windows joins ranks by another store")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(ranks)}
    started = []
    for rank in range(ranks):
        log = open(folder / f"rank{rank}.log", "w", encoding="utf8")  # noqa: SIM115  (the process writes to it)
        env = environment(**where, RANK=str(rank), LOCAL_RANK=str(rank))
        started.append(subprocess.Popen([sys.executable, str(script), str(folder)], env=env, stdout=log, stderr=log))
    try:
        codes = [process.wait(seconds) for process in started]
    finally:
        for process in started:
            process.kill()
    logs = "\n".join((folder / f"rank{rank}.log").read_text(encoding="utf8") for rank in range(ranks))
    assert not any(codes), f"ranks ended with {codes}\n{logs[-6000:]}"
    return json.loads((folder / "found.json").read_text(encoding="utf8"))
