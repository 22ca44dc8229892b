"""What a job says of itself, compared with what a run began with."""

from mimkit.training.job import differences


def test_differences_are_named_by_their_keys():
    then, now = {"a": {"b": 1, "c": [2]}, "gone": 3}, {"a": {"b": 1, "c": [4]}, "new": 5}
    assert list(differences(then, now)) == [("a.c", [2], [4])]
