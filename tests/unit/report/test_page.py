"""The report: reads any run folder, finished or not, says no more than the numbers carry, and is one safe page."""

import json
import math
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from helpers.reports import Page, page_of, probe, write_run
from mimkit.report import read_run, write_report
from mimkit.report.charts import Level, Series, line_chart, smooth, thin
from mimkit.report.compare import differences, unique_names
from mimkit.report.formatting import log_ticks, short, tick_labels, ticks
from mimkit.report.read import points
from mimkit.report.verdict import compare, noise, verdict


def test_torch_stays_out() -> None:
    code = "import mimkit.report, sys; assert 'torch' not in sys.modules and 'timm' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_whole_run_becomes_one_page(tmp_path: Path) -> None:
    skipped = [{"kind": "skipped", "step": 3, "path": f"bad-{i % 60}.jpg", "reason": "truncated"} for i in range(70)]
    nonfinite = [{"kind": "nonfinite", "step": 44, "loss": "nan"}]
    page = page_of(tmp_path, write_run(tmp_path / "mine", more=skipped + nonfinite))
    for title in (
        "Probe accuracy",
        "Training loss",
        "What it reconstructs",
        "Loss on held-out images",
        "Effective rank",
        "Spread of the features",
        "Fusion weights",
        "Learning rate",
        "Gradient norm",
        "Speed",
        "Waiting for data",
    ):
        assert title in page.text
    assert "60 files could not be used and were left out, 70 times in all." in page.text
    assert sum(word.startswith("bad-") for word in page.words) == 50
    assert "1 step gave a loss or gradient that was not finite." in page.text
    assert "5,524,416" in page.text
    assert "25 % waiting for data" in page.text
    assert page.count("figure") == page.count("figcaption") == 10
    sources = [attrs["src"] for tag, attrs in page.tags if tag == "img"]
    assert len(sources) == 2
    assert all(source and source.startswith("data:image/png;base64,") for source in sources)
    assert ["hidden" in attrs for tag, attrs in page.tags if tag == "img"] == [True, False]  # the last one is shown


def test_nothing_is_loaded_from_elsewhere(tmp_path: Path) -> None:
    page = page_of(tmp_path, write_run(tmp_path / "a"), write_run(tmp_path / "b"))
    assert page.count("link") == page.count("iframe") == page.count("object") == 0
    for _, attrs in page.tags:
        for name in ("src", "href", "xlink:href", "srcset", "data", "action"):
            assert (attrs.get(name) or "data:").startswith("data:")
        assert "url(" not in (attrs.get("style") or "")
    for loader in ("http:", "https:", "//cdn", "@import", "url(", "fetch(", "XMLHttpRequest", "import("):
        assert loader not in page.scripts


def test_what_comes_from_the_disk_is_escaped(tmp_path: Path) -> None:
    evil = "<script>alert('x')</script>&\"<img src=x onerror=y>"
    run = write_run(
        tmp_path / "<script>alert(1)<!--",
        more=[
            {"kind": "skipped", "step": 1, "path": evil, "reason": evil},
            {"kind": "train", "step": 100, "loss": 1.0, f"{evil}/{evil}": 0.5},
        ],
        settings={evil: evil},
        recipe=evil,
        data={"path": evil, "classes": [evil], "train_images": evil},
        parts={evil: evil},
    )
    (run / "reconstructions" / "legend.json").write_text(json.dumps({"columns": [evil, 3], "note": evil}))
    page = page_of(tmp_path, run)
    assert page.count("script") == 1
    assert page.count("img") == 2
    assert not any(name.startswith("on") for _, attrs in page.tags for name in attrs)
    assert sum(evil in word for word in page.words) >= 8
    assert "alert(" not in page.scripts
    two = page_of(tmp_path, run, write_run(tmp_path / "</title><script>", settings={evil: 1}))
    assert two.count("script") == 1


def test_improvement_is_told_with_its_noise(tmp_path: Path) -> None:
    found = verdict(read_run(write_run(tmp_path / "run")))
    assert found.headline == (
        "Linear probe 45.2 % against 38.9 % for the untrained encoder (chance 10 %), on 1,000 held-out images"
    )
    assert found.tone == "better"
    two_errors = 200 * math.hypot(math.sqrt(0.452 * 0.548 / 1000), math.sqrt(0.389 * 0.611 / 1000))
    assert f"added 6.3 points, more than the noise of ±{two_errors:.1f}" in found.details[0]


@pytest.mark.parametrize(
    ("trained", "images", "tone", "words"),
    [
        (40.0, 1000, "open", "no improvement is shown"),
        (38.9, 1000, "open", "The difference of 0.0 points lies within the noise"),
        (30.0, 1000, "worse", "worse than untrained ones: −8.9 points"),
        (45.2, 100, "open", "no improvement is shown"),
        (45.2, None, "open", "A difference of +6.3 points; the number of held-out images is not known."),
        (0.0, 1000, "worse", "worse than untrained ones"),
    ],
)
def test_no_improvement_is_told_too(tmp_path: Path, trained: float, images: int | None, tone: str, words: str) -> None:
    probes = [probe(0, 38.9, test_images=images), probe(100, trained, test_images=images)]
    found = verdict(read_run(write_run(tmp_path / "run", probes=probes)))
    assert found.tone == tone
    assert words in " ".join(found.details)


def test_an_earlier_better_probe_is_told(tmp_path: Path) -> None:
    probes = [probe(0, 30.0), probe(50, 60.0), probe(100, 45.0)]
    found = verdict(read_run(write_run(tmp_path / "run", probes=probes)))
    assert "An earlier probe was better: 60.0 % at step 50." in found.details


def test_without_labels_the_loss_is_told(tmp_path: Path) -> None:
    fell = verdict(read_run(write_run(tmp_path / "fell", probes=[probe(0), probe(100, classes=None)])))
    assert fell.headline == "No labels to probe with; the loss on held-out images fell from 1.00 (untrained) to 0.900"
    assert fell.tone == "open"
    rose = verdict(read_run(write_run(tmp_path / "rose", probes=[probe(0), probe(100, masked_loss=1.2)])))
    assert "did not fall: 1.20 against 1.00 untrained" in rose.headline
    assert rose.tone == "worse"
    page = page_of(tmp_path, tmp_path / "fell")
    assert "Probe accuracy" not in page.text
    assert "%)" not in page.text


def test_a_collapse_is_told_unless_the_probe_denies_it(tmp_path: Path) -> None:
    probes = [probe(0, effective_rank=40.0), probe(100, effective_rank=2.0)]
    assert "collapsing" in " ".join(verdict(read_run(write_run(tmp_path / "a", probes=probes))).details)
    probes = [probe(0, 10.0, effective_rank=40.0), probe(100, 60.0, effective_rank=2.0)]
    assert "collapsing" not in " ".join(verdict(read_run(write_run(tmp_path / "b", probes=probes))).details)


def test_an_unfinished_run_says_so(tmp_path: Path) -> None:
    found = verdict(read_run(write_run(tmp_path / "run", probes=[probe(0, 38.9), probe(20, 50.0)], upto=40)))
    assert found.headline.startswith("So far: Linear probe 50.0 %")
    assert "This run is unfinished: still running or interrupted at step 40 of 100." in found.details
    early = verdict(read_run(write_run(tmp_path / "early", probes=[probe(0, 38.9)], upto=20)))
    assert early.headline == "No probe after training began yet; training loss 0.100 at step 20, from 0.200 at step 10"
    assert "Linear probe of the untrained encoder: 38.9 %." in early.details
    only = verdict(read_run(write_run(tmp_path / "only", probes=[probe(100, 50.0)])))
    assert only.headline == "Linear probe 50.0 % (chance 10 %), on 1,000 held-out images"
    assert "unknown" in only.details[0]


def test_a_torn_last_line_is_left_out_silently_and_a_broken_one_is_named(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", upto=40)
    log = run / "log.jsonl"
    whole = len(read_run(run).train)
    with log.open("ab") as file:
        file.write('{"kind": "train", "step": 50, "loss": 0.1, "note": "ü'.encode()[:-1])
    torn = read_run(run)
    assert len(torn.train) == whole
    assert torn.problems == []
    with log.open("ab") as file:
        file.write(b'\n[1, 2]\n{"kind": "train", "loss": 1}\n\xff\xfe\n{"kind": "train", "step": 60, "loss": 0.2}\n')
    broken = read_run(run)
    assert [record["step"] for record in broken.train[-2:]] == [40, 60]
    assert broken.problems == ["log.jsonl: 4 unreadable lines were left out."]
    assert "4 unreadable lines" in page_of(tmp_path, run).text


def test_a_resumed_run_shows_each_step_once(tmp_path: Path) -> None:
    again = [{"kind": "train", "step": step, "loss": 9.0} for step in (90, 100)]
    run = read_run(write_run(tmp_path / "run", more=again))
    assert [record["step"] for record in run.train] == list(range(10, 101, 10))
    assert [record["loss"] for record in run.train[-2:]] == [9.0, 9.0]


def test_half_written_folders_still_make_a_page(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    (run / "run.json").write_text('{"recipe": "ma')
    (run / "speed.jsonl").unlink()
    (run / "reconstructions" / "legend.json").write_text("")
    sheet = run / "reconstructions" / "step-00000010.png"
    sheet.write_bytes(sheet.read_bytes()[:40])
    (run / "reconstructions" / "step-later.png").write_bytes(b"")
    page = page_of(tmp_path, run)
    assert "run.json could not be read; it may be half written." in page.text
    assert "The picture step-00000010.png could not be read" in page.text
    assert page.count("img") == 1
    assert "45.2" in page.text

    almost_nothing = (("log.jsonl", ""), ("log.jsonl", '{"kin'), ("run.json", "{}"), ("run.json", "[]"))
    for k, (name, text) in enumerate(almost_nothing):
        bare = tmp_path / f"bare-{k}"
        bare.mkdir()
        (bare / name).write_text(text)
        assert "Nothing trained yet" in page_of(tmp_path, bare).text
        assert "2 runs compared" in page_of(tmp_path, bare, run).text


def test_odd_values_do_not_break_a_page(tmp_path: Path) -> None:
    odd = [
        {"kind": "train", "step": 20, "loss": math.nan, "lr": math.inf, "grad_norm": None},
        {"kind": "train", "step": 30, "loss": "high", "lr": True, "extra": 10**400},
        {"kind": "train", "step": 40, "loss": -1e300, "lr": 0, "grad_norm": 1e-300, "extra": 1e300},
        {"kind": "probe", "step": 100, "linear": 130.0, "knn": None, "test_images": 0, "classes": 0},
        {"kind": "skipped", "step": 5, "path": None},
        {"kind": "skipped", "step": 5, "path": ["a"], "reason": {"b": 1}},
        {"kind": "nonfinite", "step": 5},
        {"kind": None, "step": 5},
    ]
    run = write_run(tmp_path / "run", more=odd, steps="many", data=None, parts=[1], versions={"x": None})
    assert "Linear probe 130.0 %" in verdict(read_run(run)).headline
    page = page_of(tmp_path, run)
    assert "nan" not in "".join(attrs.get("d") or "" for _, attrs in page.tags)
    assert "Training loss" in page.text


def test_no_value_in_a_log_breaks_a_page(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    values = [
        None,
        True,
        -1,
        0,
        1,
        2.5,
        1e308,
        -1e308,
        5e-324,
        math.nan,
        math.inf,
        10**400,
        "",
        "x",
        [],
        [1],
        {},
        {"a": 1},
    ]
    keys = ["epoch", "loss", "lr", "grad_norm", "fusion/a", "extra", "linear", "knn", "masked_loss", "effective_rank"]
    keys += ["feature_std", "test_images", "classes", "path", "reason", "images_per_second", "data_wait"]

    def draw() -> object:
        return values[rng.integers(len(values))]

    for trial in range(12):
        runs = []
        for part in "ab":
            records = [
                {key: draw() for key in keys}
                | {"step": int(rng.integers(5)), "kind": rng.choice(["train", "probe", "skipped", "nonfinite", "end"])}
                for _ in range(20)
            ]
            facts = (
                "recipe",
                "parts",
                "data",
                "versions",
                "steps",
                "steps_per_epoch",
                "parameters",
                "created",
            )
            run = write_run(tmp_path / f"{trial}{part}", more=records, **{key: draw() for key in facts})
            (run / "speed.jsonl").write_text("\n".join(map(json.dumps, records)))
            (run / "reconstructions" / "legend.json").write_text(json.dumps({"columns": draw(), "note": draw()}))
            runs.append(run)
        page_of(tmp_path, *runs)
        page_of(tmp_path, runs[0])


def test_file_names_that_are_no_text_are_written(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", more=[{"kind": "skipped", "step": 1, "path": "\udcff.jpg", "reason": "?"}])
    assert "\\udcff.jpg" in page_of(tmp_path, run).text


def test_wrong_requests_are_refused(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"neither run\.json nor log\.jsonl"):
        write_report([tmp_path / "empty"], tmp_path / "report.html")
    with pytest.raises(ValueError, match="no run folder at"):
        write_report([tmp_path / "nowhere"], tmp_path / "report.html")
    with pytest.raises(ValueError, match="at least one run folder"):
        write_report([], tmp_path / "report.html")
    with pytest.raises(ValueError, match="is a folder"):
        write_report([run], tmp_path / "empty")


def test_a_page_is_replaced_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = write_report([write_run(tmp_path / "run")], tmp_path / "pages" / "report.html")
    before = out.read_text()

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_report([tmp_path / "run"], out)
    assert out.read_text() == before
    assert [path.name for path in out.parent.iterdir()] == ["report.html"]


def test_several_runs_are_compared(tmp_path: Path) -> None:
    first = write_run(tmp_path / "first")
    second = write_run(
        tmp_path / "second",
        probes=[probe(0, 38.9), probe(100, 55.0)],
        settings={"lr": 3e-4},
        parts={"target": "LowFreqPixels()", "distance": "squared"},
        recipe="pixmim",
    )
    page = page_of(tmp_path, first, second)
    assert "2 runs compared" in page.text
    assert "second leads by 9.8 points, more than the noise of ±4.5" in page.text
    assert page.count("details") == 2
    for cell in ("45.2 % (+6.3)", "55.0 % (+16.1)", "0.0003", "LowFreqPixels()", "part: target"):
        assert cell in page.text
    assert "compare the shapes, not the heights" in page.text
    rows = differences([read_run(first), read_run(second)], ["first", "second"]).rows
    assert [row[0] for row in rows] == ["part: target", "lr", "out"]

    same = compare([read_run(first)] * 3, ["a", "b", "c"])
    assert same.tone == "open"
    assert "neither is shown to be better" in same.details[0]
    unlabelled = read_run(write_run(tmp_path / "third", probes=[probe(0), probe(100)]))
    assert "fewer than two" in compare([read_run(first), unlabelled], ["first", "third"]).headline
    other = read_run(write_run(tmp_path / "fourth", data={"fingerprint": "f00"}))
    assert "different data" in " ".join(compare([read_run(first), other], ["first", "fourth"]).details)


def test_what_a_half_written_run_does_not_say_is_no_difference(tmp_path: Path) -> None:
    runs = [read_run(write_run(tmp_path / name, settings={"out": "x"})) for name in "abc"]
    (tmp_path / "c" / "run.json").write_text("{")
    runs[2] = read_run(tmp_path / "c")
    assert differences(runs, ["a", "b", "c"]).rows == []
    assert "compare the shapes" not in page_of(tmp_path, *(run.folder for run in runs)).text
    twice = page_of(tmp_path, tmp_path / "a", tmp_path / "b" / ".." / "a")
    assert "compared" not in twice.text


def test_runs_with_other_epochs_are_overlaid_by_epoch(tmp_path: Path) -> None:
    first, second = write_run(tmp_path / "first"), write_run(tmp_path / "second", steps_per_epoch=20)
    labels = [attrs.get("aria-label") for tag, attrs in page_of(tmp_path, first, second).tags if tag == "svg"]
    assert "Training loss by epoch" in labels


def test_runs_get_the_shortest_names_that_differ(tmp_path: Path) -> None:
    folders = [tmp_path / "x" / "run", tmp_path / "y" / "run", tmp_path / "z"]
    assert unique_names(folders) == ["x/run", "y/run", "z"]
    assert unique_names([tmp_path / "x", tmp_path / "x"]) == [str(tmp_path / "x")] * 2


def test_large_and_many_pictures_are_thinned(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", pictures=30)
    pixels = np.random.default_rng(0).integers(0, 255, (500, 500, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(run / "reconstructions" / "step-00000290.png")
    page = page_of(tmp_path, run)
    steps = [attrs["data-step"] for tag, attrs in page.tags if tag == "img"]
    assert len(steps) == 12
    assert (steps[0], steps[-1]) == ("0", "290")
    kinds = [re.match(r"data:image/(\w+)", attrs["src"] or "")[1] for tag, attrs in page.tags if tag == "img"]  # type: ignore[index]
    assert kinds == ["png"] * 11 + ["jpeg"]
    assert "12 of 30 pictures" in page.text


def test_noise_is_two_standard_errors() -> None:
    assert noise(50.0, 100) == pytest.approx(10.0)
    assert noise(45.2, None) is None
    assert noise(100.0, 100) == pytest.approx(noise(99.0, 100))
    assert noise(0.0, 100) == pytest.approx(noise(1.0, 100))
    assert noise(100.0, 1) == pytest.approx(100.0)
    draws = np.random.default_rng(0).binomial(1000, 0.3, 20_000) / 10
    assert noise(30.0, 1000) == pytest.approx(2 * draws.std(), rel=0.02)


def test_chart_places_points_where_they_belong() -> None:
    series = Series(label="a<b", points=[(0, 0.0), (50, math.nan), (100, 10.0)], color="c0")
    chart = line_chart([series], title="T", zero=True, levels=[Level(label="five", value=5.0)], height=106)
    page = Page(str(chart))
    curve = next(a["d"] for tag, a in page.tags if tag == "path" and a["class"] == "curve c0" and a["d"] != "M1 5H19")
    assert curve == "M0.0 106.0M1000.0 6.0"  # a gap, 0 at the bottom, 10 below a margin of 6 %
    level = next(a["d"] for tag, a in page.tags if tag == "path" and a["class"] == "level ink" and a["d"] != "M1 5H19")
    assert level == "M0 56.0H1000"
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


def test_points_take_numbers_only() -> None:
    records = [{"step": 1, "a": 2}, {"step": 2, "a": True}, {"step": 3}, {"step": 4, "a": "x"}, {"a": 1}]
    assert str(points(records, "a", scale=10)) == "[(1.0, 20.0), (2.0, nan), (4.0, nan)]"


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
