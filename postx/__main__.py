"""`python -m postx`: the command line of `postx.cli`."""

import sys

from postx.cli import main

if __name__ == "__main__":
    sys.exit(main())
