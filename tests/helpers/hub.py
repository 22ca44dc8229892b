"""Data sets as Hugging Face's `datasets` makes them."""

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

datasets = pytest.importorskip("datasets")


def png(number: int) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(number).integers(0, 255, (12, 16, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def dataset(first: int, count: int, classes: list[str] | None = None) -> Any:
    images = [{"bytes": png(number), "path": None} for number in range(first, first + count)]
    features = {"image": datasets.Image()}
    values: dict[str, Any] = {"image": images}
    if classes is not None:
        features["label"] = datasets.ClassLabel(names=classes)
        values["label"] = [number % len(classes) for number in range(first, first + count)]
    return datasets.Dataset.from_dict(values, features=datasets.Features(features))
