"""The program: `mimkit`, or `python -m mimkit` for torchrun."""

import sys

from mimkit.cli.main import main


def run() -> None:
    """Run one command and exit with its code."""
    sys.exit(main())


if __name__ == "__main__":
    run()
