"""Features of a folder as arrays, and as the file of them."""

import numpy as np
import pytest

import mimkit
from helpers.sources import VIT

PHOTOS = {"count": 8, "classes": 2, "size": 32, "broken": [3]}
HERE = {"image_size": 32, "device": "cpu", "workers": 0}


def test_features_are_arrays_and_written_only_where_asked(photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = mimkit.embed(f"random:{VIT}", data=photos, **HERE)
    assert (found.features.shape, found.features.dtype) == ((7, 48), np.float32)
    assert [*found.paths][:2] == ["class_0/0000.png", "class_0/0002.png"]
    assert found.labels.tolist() == [0, 0, 0, 1, 1, 1, 1]
    assert found.classes.tolist() == ["class_0", "class_1"]
    ((path, reason),) = found.skipped
    assert path.endswith("class_0/0006.png")
    assert reason
    assert [*tmp_path.iterdir()] == []
    monkeypatch.setenv("HOME", str(tmp_path))
    again = mimkit.embed(f"random:{VIT}", data=str(photos), out="~/more/features.npz", **HERE)
    with np.load(tmp_path / "more" / "features.npz") as file:
        assert {*file} == {"features", "paths", "labels", "classes"}
        assert all(np.array_equal(file[name], getattr(again, name)) for name in file)


def test_without_class_folders_there_are_no_labels(make_photos, tmp_path):
    found = mimkit.embed(f"random:{VIT}", data=make_photos(tmp_path / "photos", count=3), **HERE)
    assert (found.labels, found.classes, found.skipped) == (None, None, [])


def test_a_file_that_cannot_be_written_is_refused_first(tmp_path):
    with pytest.raises(ValueError, match="is a folder, not a file"):
        mimkit.embed("no such source", data="nowhere", out=tmp_path)


def test_one_side_is_an_image_size_for_a_probe(photos):
    assert mimkit.probe(f"random:{VIT}", data=photos, kind="knn", held_out=0.3, **HERE)["classes"] == 2
