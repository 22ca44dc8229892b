"""Kinds of rows that the report does not know: a job's own numbers, as curves."""

import math
from pathlib import Path

from helpers.reports import chart_of, labels_of, page_of, path_of, segment, write_run, write_segmentation
from mimkit.report import read_run
from mimkit.report.compare import differences
from mimkit.report.kinds import MOST_CHARTS


def test_an_unknown_kind_becomes_curves_of_its_numbers(tmp_path: Path) -> None:
    rows = [segment(100, 30.0), segment(50, 99.0), segment(0, 10.0), segment(50, 20.0, late=0.5)]
    run = read_run(write_segmentation(tmp_path / "run", rows))
    assert [row["mIoU"] for row in run.rows["segment"]] == [10.0, 20.0, 30.0]  # by step; of step 50 the later line
    page = page_of(tmp_path, run.folder)
    chart = chart_of(page, "segment: mIoU by step")
    at = [10, 20, 30]  # with margins of 6 % of 20 above and below, on 190 pixels
    heights = [190 * (1 - (value - 8.8) / 22.4) for value in at]
    curve = path_of(chart, "curve c0")
    assert curve == f"M0.0 {heights[0]:.1f}L500.0 {heights[1]:.1f}L1000.0 {heights[2]:.1f}"
    assert path_of(chart, "reference c0") == f"M0 {heights[0]:.1f}H1000"
    assert "trained 30.0 untrained 10.0" in page.text
    assert "10.0 before training, 30.0 at step 100." in page.text
    assert "step 50 mIoU" not in page.text
    assert "step 50\ntrained: 20.0" in page.words
    assert labels_of(page).count("segment: late by step") == 1
    assert not [label for label in labels_of(page) if "epoch" in label]
    late = chart_of(page, "segment: late by step")
    assert path_of(late, "reference c0") is None
    assert "0.500 at step 50." in page.text


def test_many_numbers_of_a_kind_are_cut_off_and_counted(tmp_path: Path) -> None:
    many = {f"iou/{k}": k + 0.5 for k in range(MOST_CHARTS + 5)}
    page = page_of(tmp_path, write_segmentation(tmp_path / "run", [segment(0, 1.0), segment(100, 2.0, **many)]))
    labels = [label for label in labels_of(page) if label.startswith("segment: ")]
    assert len(labels) == MOST_CHARTS
    assert labels[0] == "segment: mIoU by step"
    assert "segment: classes by step" not in labels  # it never changes, so it comes last
    assert "7 more numbers are not shown; all are in log.jsonl." in page.text
    few = page_of(tmp_path, write_segmentation(tmp_path / "few", [segment(100, 2.0)]))
    assert "not shown" not in few.text


def test_odd_rows_of_an_unknown_kind_do_not_break_a_page(tmp_path: Path) -> None:
    evil = "<script>alert('x')</script>"
    values = [math.nan, math.inf, -math.inf, 1e308, -1e30, 1e30, 10**400, 5e-324, "high", "", None, True, [1], {"a": 1}]
    rows = [segment(step, value, **{evil: value, f"only {step}": value}) for step, value in enumerate(values)]
    rows += [{"kind": evil, "step": step, "x" * 5000: value, "": value} for step, value in enumerate(values)]
    rows += [{"kind": "empty", "step": 1, "text": "a", "nan": math.nan}, {"kind": "one", "step": 0, "x": 0}]
    first = write_segmentation(tmp_path / "first", rows)
    page = page_of(tmp_path, first)
    assert page.count("script") == 1
    assert not [label for label in labels_of(page) if label.startswith("empty") or "nan by" in label]
    assert {"segment: mIoU by step", f"segment: {evil} by step", "one: x by step"} <= set(labels_of(page))
    assert [label for label in labels_of(page) if "only" in label] == [f"segment: only {k} by step" for k in (4, 5, 7)]
    drawn = "".join(attrs.get("d") or "" for _, attrs in page.tags)
    assert "nan" not in drawn
    assert "inf" not in drawn
    second = write_segmentation(tmp_path / "second", list(reversed(rows)), steps_per_epoch=7)
    assert page_of(tmp_path, first, second).count("script") == 1


def test_unknown_kinds_that_runs_share_are_overlaid(tmp_path: Path) -> None:
    first = write_segmentation(tmp_path / "first", [segment(0, 2.0), segment(100, 20.0, mine=1.0)])
    second = write_segmentation(tmp_path / "second", [segment(0, 4.0), segment(100, 30.0)])
    page = page_of(tmp_path, first, second)
    assert "segment, mIoU: first 20.0, second 30.0" in page.text
    assert "neither" not in page.text
    assert "leads" not in page.text
    chart = chart_of(page, "segment: mIoU by step")  # the first with this title, before those of each run
    assert path_of(chart, "curve c0") != path_of(chart, "curve c1") is not None
    assert path_of(chart, "reference c0") != path_of(chart, "reference c1") is not None
    assert "step 100\nfirst: 20.0\nsecond: 30.0" in page.words
    assert labels_of(page).count("segment: mIoU by step") == 3
    assert labels_of(page).count("segment: mine by step") == 1  # one run alone has it
    assert "20.0 (untrained 2.00)" in page.text
    assert "Probes: accuracy" not in page.text

    by_epoch = write_segmentation(tmp_path / "third", [segment(100, 30.0)], steps_per_epoch=20)
    assert "segment: mIoU by epoch" in labels_of(page_of(tmp_path, first, by_epoch))
    pretrained = write_run(tmp_path / "pretrained", parts=read_run(first).info["parts"])
    both = page_of(tmp_path, first, pretrained)
    assert "2 runs, fewer than two of them with numbers to compare" in both.text
    assert "compare the shapes" in both.text
    assert ["kind", "segment", "pretrain"] in differences([read_run(first), read_run(pretrained)], ["a", "b"]).rows
