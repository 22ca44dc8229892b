"""The report's page: of any run folder, finished or not, with its words escaped, and nothing loaded from elsewhere."""

import json
import math
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from helpers.reports import page_of, write_run
from mimkit.report import read_run, write_report
from mimkit.report.verdict import verdict


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


def test_runs_with_other_epochs_are_overlaid_by_epoch(tmp_path: Path) -> None:
    first, second = write_run(tmp_path / "first"), write_run(tmp_path / "second", steps_per_epoch=20)
    labels = [attrs.get("aria-label") for tag, attrs in page_of(tmp_path, first, second).tags if tag == "svg"]
    assert "Training loss by epoch" in labels


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


def test_one_run_and_paths_as_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = write_run(tmp_path / "mine")
    page = write_report([folder], tmp_path / "list.html").read_bytes()
    assert write_report("~/mine", "~/one.html") == tmp_path / "one.html"
    assert (tmp_path / "one.html").read_bytes() == page
    with pytest.raises(ValueError, match="a report needs at least one run folder"):
        write_report([], tmp_path / "none.html")
