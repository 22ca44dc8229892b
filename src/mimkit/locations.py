"""Where data lie: paths, and URLs, which a `Path` would mangle."""

import re
from pathlib import Path

Location = Path | str
"""A path, or the text of a URL."""

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_CHOICE = re.compile(r"\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}")


def located(data: str | Path) -> Location:
    """A URL as it is, anything else as a path."""
    return data if isinstance(data, str) and _URL.match(data) else Path(data)


def absolute(data: Location) -> Location:
    """The same place, wherever it is looked at from."""
    return data if isinstance(data, str) else data.resolve()


def below(root: Location, name: str) -> Location:
    """What has a name, with `/` between folders, below a place."""
    return f"{root}/{name}" if isinstance(root, str) else root / name


def expand(pattern: str) -> list[str]:
    """All that a text with `{000..012}` or `{train,val}` in it names, in order.

    Raises:
        ValueError: a range ends before it begins.
    """
    match = _CHOICE.search(pattern)
    if match is None:
        return [pattern]
    first, last, words = match.groups()
    if words is not None:
        choices = words.split(",")
    elif int(last) < int(first):
        raise ValueError(f"{pattern}: {first} to {last} are no shards")
    else:
        choices = [f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1)]
    ends = expand(pattern[match.end() :])
    return [pattern[: match.start()] + choice + end for choice in choices for end in ends]
