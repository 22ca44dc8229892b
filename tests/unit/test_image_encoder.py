"""What an encoder reads and takes, and what it says of anything else."""

import pytest
import torch
from PIL import Image

from helpers import parts
from mimkit.errors import BadImage
from mimkit.image_encoder import ImageEncoder
from mimkit.views import Normalization

PHOTOS = {"count": 2, "size": 48}
PICTURE = Image.new("RGB", (32, 32))


@pytest.fixture(scope="module")
def encoder() -> ImageEncoder:
    return ImageEncoder(parts.encoder(size=(32, 32)), Normalization.for_channels(3)).eval()


def test_one_path_is_a_batch_of_one(encoder, photos, monkeypatch):
    paths = sorted(photos.iterdir())
    both = encoder.read(paths)
    assert both.shape == (2, 3, 32, 32)
    monkeypatch.setenv("HOME", str(photos))
    for one in (paths[0], str(paths[0]), f"~/{paths[0].name}"):
        assert torch.equal(encoder.read(one), both[:1])
    with pytest.raises(ValueError, match="name at least one image file, got none"):
        encoder.read([])
    with pytest.raises(BadImage, match=r"nowhere\.png"):
        encoder.read("nowhere.png")


def test_float64_becomes_float32(encoder):
    images = parts.images(2, (32, 32))
    features = encoder(images)
    assert features.dtype == encoder(images.double()).dtype == torch.float32
    assert torch.equal(encoder(images.double()), features)


@pytest.mark.parametrize(
    ("images", "error", "said"),
    [
        (
            torch.zeros(3, 32, 32),
            ValueError,
            r"takes a batch \[B, 3, H, W\], got one image \[3, 32, 32\]: give images\[",
        ),
        (torch.zeros(2, 1, 32, 32), ValueError, r"of 3 channels takes images \[B, 3, H, W\], got \[2, 1, 32, 32\]"),
        (torch.zeros(2, 32, 32, 3), ValueError, r"of 3 channels takes images \[B, 3, H, W\], got \[2, 32, 32, 3\]"),
        (torch.zeros(32, 32), ValueError, r"of 3 channels takes images \[B, 3, H, W\], got \[32, 32\]"),
        (
            torch.zeros(1, 3, 32, 32, dtype=torch.int64),
            TypeError,
            r"uint8 images .* or normalised floats, got torch\.int64",
        ),
        (PICTURE, TypeError, r"got one image or a list of them \(Image\): encoder\.read\(paths\) makes one"),
        ([torch.zeros(3, 32, 32)], TypeError, r"got one image or a list of them \(list\)"),
        (torch.zeros(1, 3, 32, 32).numpy(), TypeError, r"takes a tensor \[B, 3, H, W\], got no tensor \(ndarray\)"),
        ("cat.jpg", TypeError, r"got no tensor \(str\): encoder\.read\(paths\) makes one of image files"),
    ],
)
def test_other_input_is_refused_in_a_line(encoder, images, error, said):
    for work in (encoder, encoder.latent):
        with pytest.raises(error, match=said) as caught:
            work(images)
        assert "\n" not in str(caught.value)
