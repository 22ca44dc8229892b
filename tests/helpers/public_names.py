"""What `import mimkit` gives, name by name, and in every order of two.

    python tests/helpers/public_names.py NAME NAME ...

prints as JSON what each name is alone, and what was wrong in which order. Each name that is looked at first has a fork
of its own, in which nothing of mimkit is loaded, but all that it imports; what a second name loads is unloaded again.
Names that load the same modules are looked at together.
"""

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

HEAVY = ("torch.utils.data", "torch.distributed.elastic.rendezvous", "timm", "tyro", "rich.progress", "jinja2")


def looked_at(name: str) -> list[str]:
    """What a name is, by both ways of looking: its type, module and qualified name."""
    module = import_module("mimkit")
    one = __import__("mimkit", fromlist=[name])
    values = [getattr(module, name), getattr(one, name)]
    scope: dict[str, Any] = {}
    exec(f"from mimkit import {name} as it", scope)
    values.append(scope["it"])
    assert all(type(value) is type(values[0]) for value in values), f"{name} is {values}"
    it = values[0]
    return [type(it).__name__, getattr(it, "__module__", ""), getattr(it, "__qualname__", getattr(it, "__name__", ""))]


def in_fork(work: Callable[[], Any]) -> Any:
    """What work returns in a fork of this process, through JSON; an error is its text."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            answer = work()
        except BaseException as error:
            answer = f"{type(error).__name__}: {error}"
        with os.fdopen(writing, "w") as pipe:
            json.dump(answer, pipe)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        answer = json.load(pipe)
    os.waitpid(pid, 0)
    return answer


def alone(name: str) -> tuple[list[str], list[str]]:
    """What a name is when it is looked at first, and the modules of mimkit that this loads."""
    return looked_at(name), loaded()


def loaded() -> list[str]:
    return sorted(name for name in sys.modules if name.partition(".")[0] == "mimkit")


@contextmanager
def undone() -> Iterator[None]:
    """Inside, modules of mimkit may be loaded: afterwards they are not, and what was loaded before is as it was."""
    before = {name: dict(vars(sys.modules[name])) for name in loaded()}
    yield
    for name in loaded():
        if name not in before:
            del sys.modules[name]
    for name, values in before.items():
        vars(sys.modules[name]).clear()
        vars(sys.modules[name]).update(values)


def wrong_after(first: list[str], groups: list[list[str]], truth: dict[str, Any]) -> list[str]:
    """What is wrong when names are looked at after those of a first group, and these again after them.

    Args:
        first: names that load the same modules.
        groups: of all names.
        truth: what each name is alone.
    """

    def look(names: list[str], after: list[str]) -> list[str]:
        seen = {name: looked_at(name) for name in names}
        return [f"{name} after {after}: {it}, alone {truth[name]}" for name, it in seen.items() if it != truth[name]]

    found = look(first, [])
    for second in groups:
        with undone():
            found += look(second, first) + look(first, second) + look(second, first)
    return found


if __name__ == "__main__":
    for name in HEAVY:
        import_module(name)
    assert not loaded()
    kinds, modules_of = {}, {}
    for name in sys.argv[1:]:
        kinds[name], modules_of[name] = in_fork(lambda name=name: alone(name))
    groups: dict[str, list[str]] = {}
    for name, modules in modules_of.items():
        groups.setdefault(" ".join(modules), []).append(name)
    wrong = []
    for group in groups.values():
        answer = in_fork(lambda group=group: wrong_after(group, [*groups.values()], kinds))
        wrong += [answer] if isinstance(answer, str) else answer
    print(json.dumps({"alone": kinds, "wrong": wrong}))
