"""The command line's edge: arguments to a command, errors to one line and an exit code.

Exit codes: 0 done, 1 the work failed, 2 the request was wrong.
"""

import contextlib
import functools
import io
import re
import sys
import warnings
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import tyro

from mimkit.cli.commands import COMMANDS
from mimkit.errors import CannotGoOn, TrainingStopped


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments == ["--version"]:
        print(f"mimkit {version('mimkit')}")
        return 0
    try:
        work = parse(arguments)
    except SystemExit as stop:  # help or a usage error, both printed already
        return int(stop.code or 0)
    warnings.showwarning = lambda message, *_: print(f"mimkit: warning: {message}", file=sys.stderr)
    try:
        return work()
    except KeyboardInterrupt:
        print("mimkit: interrupted", file=sys.stderr)
        return 1
    except (ValueError, FileNotFoundError, FileExistsError, NotADirectoryError, PermissionError) as error:
        return complain(error, 2)
    except (MemoryError, OSError) as error:
        return complain(error, 1)
    except RuntimeError as error:
        # Torch is loaded already if it can have raised. Errors that mimkit does not define keep their traceback.
        from torch import OutOfMemoryError

        if isinstance(error, TrainingStopped | CannotGoOn | OutOfMemoryError):
            return complain(error, 1)
        raise


def parse(arguments: list[str]) -> Callable[[], int]:
    """The command that the arguments ask for, ready to be called.

    Raises:
        SystemExit: with 0 after help, with 2 after one line that says what is wrong with the request.
    """
    deferred = {name: defer(command) for name, command in COMMANDS.items()}
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            return tyro.extras.subcommand_cli_from_dict(
                deferred,
                prog="mimkit",
                description="Masked image modelling: pre-train a vision backbone on your own unlabelled images. "
                "`mimkit --version` prints the version.",
                args=arguments,
            )
    except ValueError as error:  # from the settings' own checks
        complain(error, 2)
        raise SystemExit(2) from error
    except SystemExit as stop:
        if stop.code:
            complain(ValueError(unboxed(errors.getvalue())), 2)
        raise


def unboxed(box: str) -> str:
    """The message in a box that tyro drew, as one line: without title and frame, with its suggestions."""
    text = "\n".join(line.strip("╭╮╰╯│ ") for line in box.splitlines()[1:])
    sections = re.split(r"^[─-]{5,}$", text, flags=re.MULTILINE)
    message, *more = [" ".join(section.split()) for section in sections if section.strip()] or [box]
    message = re.sub(r"^Error parsing __tyro\S*: ", "", message)
    message = re.sub(
        r"^Error parsing (--\S+): no type .* could be instantiated from \[(.*?)\]\..*", r"\1 cannot be \2", message
    )
    for words in more:
        if words.startswith("Perhaps you meant"):
            message += f"; did you mean {' or '.join(dict.fromkeys(re.findall(r'--(?!help|no-)[a-z-]+', words)))}?"
        if words.startswith("Available subcommands"):
            message += f"; choose from {words.partition(': ')[2]}"
    return message


def defer(command: Callable[..., int]) -> Callable[..., Callable[[], int]]:
    """The command as a function that only binds its arguments, so that parsing is over before work begins."""

    @functools.wraps(command)
    def bind(*args: Any, **kwargs: Any) -> Callable[[], int]:
        return functools.partial(command, *args, **kwargs)

    return bind


def complain(error: BaseException, code: int) -> int:
    """Print an error as one line and return the exit code."""
    text = str(error)
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    print("mimkit: " + " ".join(text.split()), file=sys.stderr)
    return code
