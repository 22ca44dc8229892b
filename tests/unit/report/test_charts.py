import math
import re

import numpy as np
import pytest

from helpers.reports import Page
from mimkit.report.charts import ReferenceLine, Series, line_chart, smooth, thin


def test_chart_places_points_where_they_belong() -> None:
    series = Series(label="a<b", points=[(0, 0.0), (50, math.nan), (100, 10.0)], color="c0")
    chart = line_chart([series], title="T", zero=True, references=[ReferenceLine(label="five", value=5.0)], height=106)
    page = Page(str(chart))
    curve = next(a["d"] for tag, a in page.tags if tag == "path" and a["class"] == "curve c0" and a["d"] != "M1 5H19")
    assert curve == "M0.0 106.0M1000.0 6.0"  # a gap, 0 at the bottom, 10 below a margin of 6 %
    reference = next(
        a["d"] for tag, a in page.tags if tag == "path" and a["class"] == "reference ink" and a["d"] != "M1 5H19"
    )
    assert reference == "M0 56.0H1000"
    assert "a<b: 10.0" in page.text
    assert line_chart([Series(label="x", points=[(0, math.nan)], color="c0")], title="T") == ""


def test_logarithmic_chart_spaces_decades_evenly() -> None:
    series = Series(label="a", points=[(0, 0.01), (1, 1.0), (2, 100.0)], color="c0")
    page = Page(str(line_chart([series], title="T", log=True)))
    curve = next(a["d"] for tag, a in page.tags if tag == "path")
    heights = [float(y) for y in re.findall(r" ([\d.]+)", curve or "")]
    assert heights[0] - heights[1] == pytest.approx(heights[1] - heights[2], abs=0.2)


def test_thinning_keeps_peaks_gaps_and_ends() -> None:
    rng = np.random.default_rng(0)
    found = [(float(x), float(y)) for x, y in enumerate(rng.normal(0, 1, 20_000))]
    found[7777] = (7777.0, 50.0)
    found[9999] = (9999.0, math.nan)
    thinned = thin(found, 500)
    assert len(thinned) < 800
    assert (7777.0, 50.0) in thinned
    assert any(math.isnan(y) for _, y in thinned)
    assert thinned[0] == found[0]
    assert thinned[-1] == found[-1]
    xs = [x for x, _ in thinned]
    assert xs == sorted(set(xs))


def test_smoothing_is_a_centred_mean() -> None:
    found = [(float(x), float(x)) for x in range(20)]
    found[10] = (10.0, math.nan)
    smoothed = smooth(found, 4)
    values = [y for _, y in found if math.isfinite(y)]
    for place, (_, y) in enumerate(smoothed):
        assert y == pytest.approx(np.mean(values[max(0, place - 2) : place + 3]))
    assert len(smoothed) == 19
