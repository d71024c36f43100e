"""Where numba's threads and its disk cache are decided: here and nowhere else.

`POSTX_THREADS` fixes the number of threads; under pytest-xdist the cores are shared out among the workers. Where
neither asks, the import sets nothing and starts no thread: a child forked before the first kernel can do what it likes
(after it, numba's OpenMP ends a forked child that calls a kernel; start children by "spawn" there).
Compiled kernels are kept in $NUMBA_CACHE_DIR or next to the source; where that folder cannot be written (a
system-wide install) in the user's cache, and where that cannot be written either, in a temporary folder, in which
kernels live until the machine cleans it. Numba compiles a kernel again when its own file changes, but does not see
that a file changed whose functions it took in; so the folder's name holds a hash of those (`SHARED`).
"""

import hashlib
import os
import tempfile
from pathlib import Path

import numba
import torch


def _writable(folder: Path) -> bool:
    """Whether a file can really be made there; permission bits alone lie to root and on network disks."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def _home() -> Path | None:
    """The user's folder; None for a user that the machine does not know, as in some containers."""
    try:
        return Path.home()
    except RuntimeError:
        return None


def cache_folder(package: Path, home: Path | None) -> Path:
    """The first of the package's, the user's and the machine's folders that can be written."""
    for folder in (package / "__pycache__", home and home / ".cache" / "numba"):
        if folder and _writable(folder):
            return folder
    return Path(tempfile.gettempdir()) / f"postx-numba-{os.getuid() if hasattr(os, 'getuid') else 'user'}"


def kernel_folder(base: Path, source: bytes) -> Path:
    """Where the kernels are that were compiled with this source of what they share."""
    return base / f"kernels-{hashlib.sha256(source).hexdigest()[:12]}"


def default_threads(environ=os.environ, cores: int | None = None) -> int:
    """Threads to use: POSTX_THREADS, or the usable cores divided among xdist's workers.

    Raises ValueError where POSTX_THREADS is not a positive integer.
    """
    if cores is None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    asked = environ.get("POSTX_THREADS")
    if asked is None:
        return max(1, cores // int(environ.get("PYTEST_XDIST_WORKER_COUNT", "1")))
    if not asked.isdecimal() or int(asked) < 1:
        raise ValueError(f"POSTX_THREADS: expected a positive integer, got {asked!r}")
    return int(asked)


_base = os.environ.get("NUMBA_CACHE_DIR") or cache_folder(Path(__file__).parent, _home())
SHARED = ("scans/lanes.py", "scans/cpu_tiles.py", "models/_panels.py")
SHARED = b"".join((Path(__file__).parents[1] / name).read_bytes() for name in SHARED)
KERNELS = kernel_folder(Path(_base), SHARED)

# Sums may be reordered and contracted to fused multiply-adds, which vectorises them. Infinities and NaNs keep
# their meaning: a decay of exp(-inf) = 0 is a legal input.
FASTMATH = {"contract", "reassoc", "nsz"}


def _njit(**options):
    """numba.njit with the flags and the cache of this package; numba reads the folder's name when it decorates."""
    decorate = numba.njit(cache=True, fastmath=FASTMATH, error_model="numpy", **options)

    def decorator(function):
        before, numba.config.CACHE_DIR = numba.config.CACHE_DIR, str(KERNELS)
        try:
            return decorate(function)
        finally:
            numba.config.CACHE_DIR = before

    return decorator


# With NUMBA_DISABLE_JIT=1 (a debugger, coverage) kernels are Python functions; what is written in LLVM is not there.
COMPILED = not numba.config.DISABLE_JIT

jit = _njit(parallel=True)
plain = _njit()  # one thread: what takes too little time to be shared out
# Called from a prange, compiled faster: also because Python cannot call it, which saves a wrapper for each.
serial = _njit(no_cpython_wrapper=True, no_cfunc_wrapper=True)
inline = _njit(inline="always")


def set_threads(threads: int) -> None:
    """Use that many threads in numba and in torch alike. Raises ValueError outside 1..the threads numba started."""
    if not 1 <= threads <= numba.config.NUMBA_NUM_THREADS:
        raise ValueError(f"threads: expected 1 to {numba.config.NUMBA_NUM_THREADS}, got {threads}")
    numba.set_num_threads(threads)
    torch.set_num_threads(threads)


if not os.environ.keys().isdisjoint(("POSTX_THREADS", "PYTEST_XDIST_WORKER_COUNT")):
    set_threads(min(default_threads(), numba.config.NUMBA_NUM_THREADS))
