"""Where numba's threads and its disk cache are decided: here and nowhere else.

Import this before numba. `POSTX_THREADS` fixes the number of threads; under pytest-xdist the cores are shared
out among the workers. Numba writes compiled kernels next to the source; where that folder cannot be written (a
system-wide install) it falls back to the user's cache, and where that cannot be written either, to a temporary
folder, in which kernels live until the machine cleans it.
"""

import os
import tempfile
from pathlib import Path

import torch


def _writable(folder: Path) -> bool:
    """Whether a file can really be made there; permission bits alone lie to root and on network disks."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def cache_folder(package: Path, home: Path) -> Path | None:
    """The folder that numba must be told of, or None where one of its own two places can be written."""
    if _writable(package / "__pycache__") or _writable(home / ".cache" / "numba"):
        return None
    return Path(tempfile.gettempdir()) / f"postx-numba-{os.getuid() if hasattr(os, 'getuid') else 'user'}"


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


if "NUMBA_CACHE_DIR" not in os.environ:
    _folder = cache_folder(Path(__file__).parent, Path.home())
    if _folder is not None:
        os.environ["NUMBA_CACHE_DIR"] = str(_folder)

import numba  # noqa: E402  (it reads its environment when imported)

# Sums may be reordered and contracted to fused multiply-adds, which vectorises them. Infinities and NaNs keep
# their meaning: a decay of exp(-inf) = 0 is a legal input.
FASTMATH = {"contract", "reassoc", "nsz"}
jit = numba.njit(cache=True, parallel=True, fastmath=FASTMATH, error_model="numpy")
# Called from a prange, compiled faster: also because Python cannot call it, which saves a wrapper for each.
serial = numba.njit(
    cache=True, fastmath=FASTMATH, error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True
)
inline = numba.njit(cache=True, fastmath=FASTMATH, error_model="numpy", inline="always")


def set_threads(threads: int) -> None:
    """Use that many threads in numba and in torch alike. Raises ValueError outside 1..the threads numba started."""
    if not 1 <= threads <= numba.config.NUMBA_NUM_THREADS:
        raise ValueError(f"threads: expected 1 to {numba.config.NUMBA_NUM_THREADS}, got {threads}")
    numba.set_num_threads(threads)
    torch.set_num_threads(threads)


set_threads(min(default_threads(), numba.config.NUMBA_NUM_THREADS))
