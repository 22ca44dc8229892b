import json
import math

import pytest

from mimkit.report.formatting import log_ticks, short, show, tick_labels, ticks


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.41, 1.03), (-3, 7), (1e-6, 3e-6), (38, 45), (0, 123_456), (5, 5)])
def test_ticks_are_round_and_inside(low: float, high: float) -> None:
    values = ticks(low, high)
    assert 1 <= len(values) <= 6
    assert all(low - 1e-9 * abs(high) <= value <= high + 1e-9 * abs(high) for value in values)
    labels = tick_labels(values)
    assert len(set(labels)) == len(labels)


def test_numbers_are_written_short() -> None:
    assert [short(x) for x in (0.4123, 38.94, 1204.3, 1.5e-4, 0, -0.5, None, math.nan, 2e9)] == (
        ["0.412", "38.9", "1,204", "1.5e-4", "0", "-0.500", "–", "–", "2e9"]
    )
    assert tick_labels([0, 25_000, 50_000]) == ["0", "25k", "50k"]
    assert tick_labels([0, 500_000, 1_000_000]) == ["0", "0.5M", "1M"]
    assert tick_labels([1e-5, 0.1, 10, 2000], log=True) == ["1e-5", "0.1", "10", "2,000"]
    assert tick_labels([0.0, 0.25, 0.5]) == ["0.00", "0.25", "0.50"]
    assert log_ticks(0.01, 100) == pytest.approx([0.01, 0.1, 1, 10, 100])


def test_parts_are_written_as_python_writes_them() -> None:
    mask = {"name": "RandomMask", "values": {"ratio": 0.75, "cell": None}}
    assert show(mask) == "RandomMask(ratio=0.75, cell=None)"
    nested = {
        "name": "Both",
        "values": {"first": mask, "on": True, "how": "it's", "blocks": [3, 6], "one": [1], "no": []},
    }
    assert show(nested) == (
        'Both(first=RandomMask(ratio=0.75, cell=None), on=True, how="it\'s", blocks=(3, 6), one=(1,), no=())'
    )
    assert show({"name": "squared", "values": {}}) == "squared"
    assert show([mask, {"name": "Pixels", "values": {}}]) == "RandomMask(ratio=0.75, cell=None), Pixels"
    assert [show(value) for value in ("as it is", None, [1, "a"], {"name": 3}, {"name": "a", "size": 2})] == (
        ["as it is", "none", '[1, "a"]', '{"name": 3}', '{"name": "a", "size": 2}']
    )
    deep: object = {"name": "A", "values": {}}
    for _ in range(12):
        deep = {"name": "A", "values": {"x": [deep]}}
    assert show(deep) == "A(x=(" * 12 + "A" + ",))" * 12
    for _ in range(10_000):
        deep = {"name": "A", "values": {"x": [deep]}}
    assert show(deep) == "…"


def test_what_is_only_like_a_part_is_written_as_json() -> None:
    for odd in (
        {"name": 3, "values": {}},
        {"name": "A", "values": 3},
        [{"name": "A", "values": {}}, {"name": 3, "values": {}}],
    ):
        assert json.loads(show(odd)) == odd
    assert show({"name": "A", "values": {"x": {"name": "B", "values": 3}}}) == "A(x={'name': 'B', 'values': 3})"
