"""What a refused request is about, in the command line's words."""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def naming(*flags: str) -> Iterator[None]:
    """Put the flags concerned before the message of a ValueError or FileNotFoundError raised inside."""
    try:
        yield
    except (ValueError, FileNotFoundError) as error:
        kind = FileNotFoundError if isinstance(error, FileNotFoundError) else ValueError
        raise kind(f"{', '.join(flags)}: {error}") from error
