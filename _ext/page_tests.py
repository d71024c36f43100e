"""The tests that a page has: python -m _ext.page_tests linear_attention (`make page`).

Its own file in tests/book, the tests elsewhere that hold its equations, its words, its notebook alone, its budget, and
the browser on it, where there is one. `make test` runs all else.
"""

import subprocess
import sys
from pathlib import Path

from _ext import evidence, pages

ROOT = Path(__file__).resolve().parent.parent
EVERY = ("test_words.py", "test_install.py", "test_run.py", "test_browser.py")  # of these, what bears the page's name


def calls(page: str, root: Path = ROOT) -> list[list[str]]:
    """The arguments of pytest for a page, in two calls. Raises KeyError with the names there are."""
    name = pages.name(page)
    pages.find(name, root)
    own = f"tests/book/test_{name}.py"
    equations = evidence.equations(root)
    held = [test for test, labels in evidence.marked_tests(root).items()
            if name in {equations[label] for label in labels} and not test.startswith(own)]  # fmt: skip
    first = [own] * (root / own).exists() + sorted(held)
    return [*([first] if first else []), [*(f"tests/book/{file}" for file in EVERY), "-k", name]]


def main() -> int:
    if len(sys.argv) != 2:
        sys.exit("which page? python -m _ext.page_tests linear_attention")
    runs = [[sys.executable, "-m", "pytest", "-rs", *arguments] for arguments in calls(sys.argv[1])]
    return max(subprocess.run(run, cwd=ROOT, check=False).returncode for run in runs)


if __name__ == "__main__":
    sys.exit(main())
