"""Every benchmark, one after the other: python -m benchmarks [--small] [--threads N].

--small takes short sequences only (a minute or two); --threads sets numba's and torch's threads alike.
Peers to compare with: pip install -r benchmarks/requirements.txt. Close other programs first.
"""

import argparse
import os
import runpy
import sys
from pathlib import Path


def main():
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true", help="short sequences only")
    parser.add_argument("--threads", type=int, help="threads to use (default: all)")
    parser.add_argument("--only", choices=("scans", "explore"), help="one of the benchmarks")
    options = parser.parse_args()
    if options.threads is not None:  # read when postx.scans is imported
        os.environ["POSTX_THREADS"] = str(options.threads)
    sys.path.insert(0, str(Path(__file__).parent))
    if options.only != "explore":
        import scans_bench

        scans_bench.main(options.small)
    if options.only != "scans":
        runpy.run_path(str(Path(__file__).parent / "explore_bench.py"), run_name="__main__")


if __name__ == "__main__":
    main()
