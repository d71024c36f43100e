"""`make bench`: run every NAME_bench.py of this folder, one after the other."""

import importlib
import pkgutil

from benchmarks import __path__ as folder

for module in sorted(m.name for m in pkgutil.iter_modules(folder) if m.name.endswith("_bench")):
    print(f"== {module}", flush=True)
    importlib.import_module(f"benchmarks.{module}").main()
