"""`python -m mimkit`, as torchrun starts it: the same as the program `mimkit`."""

import sys

from mimkit.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
