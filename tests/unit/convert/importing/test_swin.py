import pytest

from helpers.parts import shapes
from mimkit.convert.importing import swin
from mimkit.convert.importing.hints import Hints
from mimkit.settings import ImportOptions


@pytest.mark.parametrize("name", list(swin.NAMES))
def test_published_swins_have_plain_names(name):
    assert swin.describe_swin(shapes(name), Hints(), ImportOptions()) == (name, (224, 224))


@pytest.mark.parametrize(
    ("name", "size", "window", "expected"),
    [
        ("swin_base_patch4_window7_224", 192, 6, "swin_base_patch4_window7_224(window_size=6)"),  # SimMIM
        ("swin_large_patch4_window7_224", 192, 12, "swin_large_patch4_window7_224(window_size=12)"),  # SimMIM
        ("swin_large_patch4_window7_224", 224, 14, "swin_large_patch4_window7_224(window_size=14)"),  # LocalMIM
        ("swin_base_patch4_window12_384", 384, 12, "swin_base_patch4_window7_224(window_size=12)"),
    ],
)
def test_image_size_of_swin_shows_in_its_last_window(name, size, window, expected):
    state = shapes(name, img_size=size, window_size=window)
    assert swin.describe_swin(state, Hints(), ImportOptions()) == (expected, (size, size))
