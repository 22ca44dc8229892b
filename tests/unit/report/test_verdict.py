"""The verdict says no more than the numbers carry."""

import math
from pathlib import Path

import numpy as np
import pytest

from helpers.reports import labels_of, page_of, probe, segment, write_run, write_segmentation
from mimkit.report import read_run
from mimkit.report.compare import differences
from mimkit.report.verdict import noise, verdict


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


def test_noise_is_two_standard_errors() -> None:
    assert noise(50.0, 100) == pytest.approx(10.0)
    assert noise(45.2, None) is None
    assert noise(100.0, 100) == pytest.approx(noise(99.0, 100))
    assert noise(0.0, 100) == pytest.approx(noise(1.0, 100))
    assert noise(100.0, 1) == pytest.approx(100.0)
    draws = np.random.default_rng(0).binomial(1000, 0.3, 20_000) / 10
    assert noise(30.0, 1000) == pytest.approx(2 * draws.std(), rel=0.02)


def test_a_run_of_another_kind_speaks_of_itself_only(tmp_path: Path) -> None:
    rows = [segment(0, 1.6, accuracy=5.7), segment(100, 20.5, accuracy=62.6)]
    run = write_segmentation(tmp_path / "run", rows, recipe="mae")
    found = verdict(read_run(run))
    assert found.headline == "segment at step 100: mIoU 20.5 (untrained 1.60), accuracy 62.6 (untrained 5.70)"
    assert found.tone == "open"
    assert found.details == [
        "These are the job's own numbers: which way is better and how much they vary is not known here."
    ]
    page = page_of(tmp_path, run)
    assert "segment · mae · 100 steps" in page.text
    for word in ("probe", "Probe", "hidden parts", "reconstruct", "Fusion", "encoder has learned", "the method"):
        assert word not in page.text
    for word in ("Training loss", "Learning rate", "Also logged while training", "segment: mIoU 20.5 untrained 1.60"):
        assert word in page.text

    early = verdict(read_run(write_segmentation(tmp_path / "early", rows[:1], upto=20)))
    assert early.headline == (
        "Nothing measured after training began yet; training loss 0.100 at step 20, from 0.200 at step 10"
    )
    assert early.details[0] == "Before training: mIoU 1.60, accuracy 5.70."
    late = verdict(read_run(write_segmentation(tmp_path / "late", rows[1:], upto=40)))
    assert late.headline == "So far: segment at step 100: mIoU 20.5, accuracy 62.6"
    assert "Nothing was measured before training, so what training changed is unknown." in late.details
    bare = verdict(read_run(write_segmentation(tmp_path / "bare", [], upto=0)))
    assert bare.headline == "Nothing trained yet"
    stuck = verdict(read_run(write_segmentation(tmp_path / "stuck", [segment(0, 4.8), segment(100, 4.8)])))
    assert stuck.headline == "segment at step 100: mIoU 4.80 (untrained 4.80)"
    other = write_segmentation(tmp_path / "other", [{**row, "kind": "voc"} for row in rows])
    assert verdict(read_run(other)).headline.startswith("voc at step 100: mIoU 20.5")


def test_a_run_without_a_kind_is_a_pre_training(tmp_path: Path) -> None:
    old, new = write_run(tmp_path / "old"), write_run(tmp_path / "new", kind="pretrain", format=2)
    assert read_run(old).pretraining
    assert "pretrain · mae · 100 steps" in page_of(tmp_path, old).text
    rows = differences([read_run(old), read_run(new)], ["old", "new"]).rows
    assert [row[0] for row in rows] == ["out"]
    with_own_rows = write_run(tmp_path / "own", more=[segment(100, 3.0)])
    assert verdict(read_run(with_own_rows)).headline.startswith("Linear probe 45.2 %")
    assert "segment: mIoU by step" in labels_of(page_of(tmp_path, with_own_rows))
