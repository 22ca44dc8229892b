"""What arrives inside a backward pass is taken after it."""

import os
import signal

import pytest

from mimkit.signals import uninterrupted

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGCHLD"), reason="needs SIGCHLD")


@pytest.fixture
def raising():
    """A handler as torch's: it raises wherever the program is."""

    def handle(number: int, frame: object) -> None:
        raise RuntimeError("a worker is lost")

    before = signal.signal(signal.SIGCHLD, handle)
    yield handle
    signal.signal(signal.SIGCHLD, before)


def a_pass(reached: list[str], error: Exception | None = None) -> None:
    """Loses a worker in the middle."""
    with uninterrupted():
        os.kill(os.getpid(), signal.SIGCHLD)
        if error is not None:
            raise error
        reached.append("the end of the pass")


def test_a_loss_is_raised_after_the_pass(raising):
    reached = []
    with pytest.raises(RuntimeError, match="a worker is lost"):
        a_pass(reached)
    assert reached == ["the end of the pass"]
    assert signal.getsignal(signal.SIGCHLD) is raising


def test_an_error_of_the_pass_comes_first(raising):
    with pytest.raises(ValueError, match="mine"):
        a_pass([], ValueError("mine"))
    assert signal.getsignal(signal.SIGCHLD) is raising


def test_without_a_handler_nothing_is_changed():
    before = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        with uninterrupted():
            assert signal.getsignal(signal.SIGCHLD) == signal.SIG_DFL
    finally:
        signal.signal(signal.SIGCHLD, before)
