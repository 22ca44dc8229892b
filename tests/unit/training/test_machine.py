"""What the machine of a run may be told."""

from pathlib import Path

import numpy as np
import pytest

from mimkit.errors import flag
from mimkit.training.machine import Machine


@pytest.mark.parametrize(
    "wrong",
    [
        {"workers": -1},
        {"workers": 1.5},
        {"workers": True},
        {"checkpoint_minutes": -0.5},
        {"checkpoint_minutes": float("nan")},
        {"checkpoint_minutes": None},
        {"cache_gb": 0},
        {"device": 0},
        {"parallel": "tp"},
        {"cache": 3},
        {"tensorboard": "runs"},
    ],
    ids=str,
)
def test_what_a_machine_cannot_have(wrong):
    ((name, value),) = wrong.items()
    with pytest.raises(ValueError, match=rf"^{flag(name)} .*{value}"):
        Machine(**wrong)


def test_values_of_other_types_become_those_of_the_command_line(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("USERPROFILE", "/home/me")
    given = Machine(workers=np.int64(2), checkpoint_minutes=np.float32(0.5), cache="~/cache", recompute=np.bool_(True))
    assert given == Machine(workers=2, checkpoint_minutes=0.5, cache=Path("/home/me/cache"), recompute=True)
    assert type(given.workers) is int
