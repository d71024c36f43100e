"""Execute the chapters whose pages the book does not have yet, side by side; `make book` then only draws.

    python -m _ext.run                     every chapter that is not in the cache of today's code
    python -m _ext.run 05_linear_attention only this one
    python -m _ext.run -n 4                with four kernels at a time

Sphinx would execute what is missing as well, but one page after the other.
"""

import argparse
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from copy import deepcopy
from pathlib import Path

import nbformat
from jupyter_cache import get_cache
from jupyter_cache.base import CacheBundleIn
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

from _ext.notebooks import CELL_TIMEOUT, ROOT, chapters, normalize
from _ext.postx_book import cache_folder


def keep(root: Path, path: Path, nb: nbformat.NotebookNode, seconds: float) -> None:
    """Put an executed notebook where the book looks for it."""
    bundle = CacheBundleIn(normalize(deepcopy(nb)), str(path), data={"execution_seconds": seconds})
    get_cache(str(cache_folder(root))).cache_notebook_bundle(bundle, check_validity=False, overwrite=True)


def is_kept(root: Path, path: Path) -> bool:
    """Whether this notebook was executed with today's code."""
    try:
        get_cache(str(cache_folder(root))).match_cache_notebook(nbformat.read(path, as_version=4))
    except KeyError:
        return False
    return True


def execute(path: Path) -> tuple[nbformat.NotebookNode, float]:
    started = time.monotonic()
    nb = nbformat.read(path, as_version=4)
    folder = {"metadata": {"path": str(path.parent)}}
    NotebookClient(nb, timeout=CELL_TIMEOUT, kernel_name="python3", resources=folder).execute()
    return nb, time.monotonic() - started


def fill(root: Path, paths: list[Path], jobs: int) -> list[Path]:
    """Execute what is missing among `paths`, `jobs` at a time, and return those in which a cell fails."""
    missing = [path for path in paths if not is_kept(root, path)]
    print(f"{len(paths) - len(missing)} of {len(paths)} chapters are executed already", flush=True)
    # The kernels inherit both: static figures, and a share of the cores, for which they would fight otherwise.
    os.environ["POSTX_STATIC"] = "1"
    share = max(1, (os.cpu_count() or 1) // max(1, min(jobs, len(missing))))
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"):
        os.environ.setdefault(name, str(share))
    failed = []
    with ThreadPoolExecutor(jobs) as pool:
        running = {pool.submit(execute, path): path for path in missing}
        for done, future in enumerate(as_completed(running), 1):
            path = running[future]
            try:
                nb, seconds = future.result()
            except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
                failed.append(path)
                print(f"[{done}/{len(missing)}] {path.stem} FAILS:\n{error}", flush=True)
                continue
            keep(root, path, nb, seconds)  # here, in one thread: the cache is a database
            print(f"[{done}/{len(missing)}] {path.stem}: executed in {seconds:.0f} s", flush=True)
    return failed


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="chapters, such as 05_linear_attention")
    parser.add_argument("-n", dest="jobs", type=int, default=2, help="kernels at a time (2)")
    options = parser.parse_args()
    known = {path.stem: path for path in chapters()}
    if unknown := [name for name in options.names if name not in known]:
        parser.error(f"no chapter {', '.join(unknown)}; there are {', '.join(known)}")
    if options.jobs < 1:
        parser.error(f"-n takes a number of at least 1, got {options.jobs}")
    failed = fill(ROOT, [known[name] for name in options.names or known], options.jobs)
    if failed:
        print(f"{', '.join(path.stem for path in failed)}: a cell fails, so there is no book", file=sys.stderr)
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
