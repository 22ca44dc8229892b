"""What several processes agree on, without starting any."""

from datetime import timedelta

import pytest
from torch.distributed import HashStore

from mimkit.training.distributed import SINGLE, fresh_store, portable


class Awkward(ValueError):
    """It cannot be made from its message alone, which is how errors travel."""

    def __init__(self, path: str, line: int) -> None:
        super().__init__(f"{path}:{line} is wrong")


def test_errors_are_sent_as_they_are_where_they_can_be():
    error = FileNotFoundError(2, "No such file", "a.png")
    assert portable(error) is error
    sent = portable(Awkward("a.py", 3))
    assert type(sent) is RuntimeError
    assert str(sent) == "Awkward: a.py:3 is wrong"


def test_alone_there_is_nobody_to_ask():
    assert SINGLE.any(True, False) == [True, False]
    assert SINGLE.gather("mine") == ["mine"]
    with pytest.raises(KeyError):
        SINGLE.on_main(lambda: {}["missing"])


def test_who_does_not_come_is_named():
    store = HashStore()
    store.set_timeout(timedelta(seconds=0.05))
    store.set("mimkit/ask/2", "of an earlier start")
    with pytest.raises(ConnectionError, match="of 3 processes, these have not come: 1, 2"):
        fresh_store(store, rank=0, size=3)
