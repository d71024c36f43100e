"""python -m _ext.book build ...: the command jupyter-book, behind what _ext/__init__.py spares it."""

import sys

from jupyter_book.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
