"""Execute the chapters whose pages the book does not have yet, side by side; `make book` then only draws.

    python -m _ext.run                     every chapter that is not in the cache of today's code
    python -m _ext.run linear_attention    only this one
    python -m _ext.run -n 4                with four kernels at a time
    python -m _ext.run --costs             what each chapter took of its budget, for those that were executed

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

from _ext import pages, spent
from _ext.keys import cache_folder
from _ext.notebooks import CELL_TIMEOUT, ROOT, chapters, normalize


def keep(root: Path, path: Path, nb: nbformat.NotebookNode, seconds: float, cost: dict) -> None:
    """Put an executed notebook where the book looks for it, with what it cost (spent.py)."""
    bundle = CacheBundleIn(normalize(deepcopy(nb)), str(path), data={"execution_seconds": seconds, "spent": cost})
    get_cache(str(cache_folder(root))).cache_notebook_bundle(bundle, check_validity=False, overwrite=True)


def is_kept(root: Path, path: Path) -> bool:
    """Whether this notebook was executed with today's code."""
    try:
        get_cache(str(cache_folder(root))).match_cache_notebook(nbformat.read(path, as_version=4))
    except KeyError:
        return False
    return True


def costs(root: Path, paths: list[Path]) -> dict[Path, dict]:
    """What each of these notebooks cost with today's code; left out are those not executed, or by Sphinx itself."""
    cache, found = get_cache(str(cache_folder(root))), {}
    for path in (path for path in paths if is_kept(root, path)):
        data = cache.match_cache_notebook(nbformat.read(path, as_version=4)).data
        if "spent" in data:
            found[path] = data["spent"]
    return found


def execute(path: Path) -> tuple[nbformat.NotebookNode, float, dict]:
    """Run a notebook: its outputs, seconds by the clock, and what it cost."""
    started = time.monotonic()
    nb = nbformat.read(path, as_version=4)
    folder = {"metadata": {"path": str(path.parent)}}
    client = NotebookClient(nb, timeout=CELL_TIMEOUT, kernel_name="python3", resources=folder)
    last = max((i for i, cell in enumerate(nb.cells) if cell.cell_type == "code" and cell.source.strip()), default=None)
    cost = {"page": 0.0, "compiling": 0.0}  # of a page without code

    async def begin(notebook):
        await client.async_wait_for_reply(spent.begin(client.kc))

    async def end(cell, cell_index, execute_reply):
        if cell_index == last:
            cost.update(spent.read(await client.async_wait_for_reply(spent.ask(client.kc))))

    client.on_notebook_start, client.on_cell_executed = begin, end
    client.execute()
    return nb, time.monotonic() - started, cost


def fill(root: Path, paths: list[Path], jobs: int) -> list[Path]:
    """Execute what is missing among `paths`, `jobs` at a time, and return those in which a cell fails."""
    missing = [path for path in paths if not is_kept(root, path)]
    print(f"{len(paths) - len(missing)} of {len(paths)} chapters are executed already", flush=True)
    # The kernels inherit both: static figures, and a share of the cores, for which they would fight otherwise.
    os.environ["POSTX_STATIC"] = "1"
    share = max(1, (os.cpu_count() or 1) // max(1, min(jobs, len(missing))))
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"):
        os.environ.setdefault(name, str(share))
    failed, started = [], time.monotonic()
    with ThreadPoolExecutor(jobs) as pool:
        running = {pool.submit(execute, path): path for path in missing}
        for done, future in enumerate(as_completed(running), 1):
            path = running[future]
            try:
                nb, seconds, cost = future.result()
            except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
                failed.append(path)
                print(f"[{done}/{len(missing)}] {path.stem} FAILS:\n{error}", flush=True)
                continue
            keep(root, path, nb, seconds, cost)  # here, in one thread: the cache is a database
            left = (time.monotonic() - started) / done * (len(missing) - done)
            print(f"[{done}/{len(missing)}] {path.stem}: {seconds:.0f} s, {told(cost)}; "
                  + (f"about {left:.0f} s left" if left else "all are done"), flush=True)  # fmt: skip
    return failed


def told(cost: dict) -> str:
    """The cost of a page in words."""
    compiled = f", {cost['compiling']:.0f} more for compiling" if cost["compiling"] >= 1 else ""
    return f"{cost['page']:.0f} of {spent.BUDGET} processor seconds{compiled}"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="chapters, such as linear_attention")
    parser.add_argument("-n", dest="jobs", type=int, default=2, help="kernels at a time (2)")
    parser.add_argument("--costs", action="store_true", help="execute nothing; print what was spent")
    options = parser.parse_args()
    known = {pages.name(path.stem): path for path in chapters()}
    options.names = [pages.name(name) for name in options.names]  # 05_linear_attention is understood as well
    if unknown := [name for name in options.names if name not in known]:
        parser.error(f"no chapter {', '.join(unknown)}; there are {', '.join(known)}")
    if options.jobs < 1:
        parser.error(f"-n takes a number of at least 1, got {options.jobs}")
    if options.costs:
        found = costs(ROOT, [known[name] for name in options.names or known])
        print("\n".join(f"{path.stem}: {told(cost)}" for path, cost in found.items()) or "nothing is executed yet")
        return 0
    failed = fill(ROOT, [known[name] for name in options.names or known], options.jobs)
    if failed:
        print(f"{', '.join(path.stem for path in failed)}: a cell fails, so there is no book", file=sys.stderr)
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
