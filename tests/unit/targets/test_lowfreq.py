import pytest

from helpers import parts
from mimkit.targets import LowFreqPixels
from mimkit.views import Normalization

SIZE = (32, 48)


def test_published_filter_needs_the_normalisation_of_the_images():
    """It undoes it; the centred filter does not, and takes any number of channels."""
    images = parts.images(1, SIZE, channels=1)
    with pytest.raises(ValueError, match="images of 1 channels, but a normalisation for 3"):
        LowFreqPixels(filter="mmselfsup").low_pass(images)
    grey = Normalization.for_channels(1)
    assert LowFreqPixels(filter="mmselfsup", normalization=grey).low_pass(images).shape == (1, 1, *SIZE)
    assert LowFreqPixels().low_pass(images).shape == (1, 1, *SIZE)
