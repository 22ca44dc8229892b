"""`Hog` against `skimage.feature.hog`, on the images where both definitions meet.

Both take a gradient for each pixel, put its whole length into the one bin of its unsigned direction, and add up over
cells; skimage then divides by the number of pixels, which normalising one cell to unit length (blocks of one cell, L2)
undoes. They differ in three things:

- The gradient. skimage takes central differences, ours are Sobel's: the same differences, added up over three rows or
  columns with the weights 1, 2, 1. For images of the form f(y, x) = a(x) + b(y) all three are alike, so that Sobel's is
  four times the central difference along both axes. Any a and b will do, which gives all directions.
- The borders. Across a border skimage has no gradient; a reflected image has none there either.
- The direction. skimage's is atan2(down, across), ours atan2(across, down), as published: 90 degrees less the other.
  With 18 bins that is the permutation k -> (8 - k) mod 18 of the bins, up to which end belongs to a bin; with 9 it
  shifts them by half a bin. So skimage is given the transposed image, in which across and down change places.

The images have whole numbers, whose gradients are exact: none crosses from one bin to the next by rounding.
"""

import numpy as np
import pytest
import torch

from mimkit.targets import Hog

feature = pytest.importorskip("skimage.feature")

SIZE = (64, 96)


def profiles(kind: str) -> tuple[np.ndarray, np.ndarray]:
    """a [C, W] and b [C, H] of an image, whole numbers."""
    generator = np.random.default_rng(0)
    across, down = (generator.integers(-40, 41, (3, side)).astype(float) for side in SIZE[::-1])
    ramp = np.multiply.outer([1.0, 3.0, -2.0], np.arange(SIZE[1]))
    return {
        "every direction": (across, down),
        "across only": (across, 0 * down),
        "down only": (0 * across, down),
        "ramp": (ramp, 2 * ramp[::-1, : SIZE[0]]),
        "edges": (10 * (across > 0), 10 * (down > 0)),
    }[kind]


@pytest.mark.parametrize("bins", [9, 18])
@pytest.mark.parametrize("kind", ["every direction", "across only", "down only", "ramp", "edges"])
def test_equals_skimage(kind, bins):
    across, down = profiles(kind)
    image = across[:, None, :] + down[:, :, None]
    cells = (4, 8, 16, 32)
    grids = [(SIZE[0] // cell, SIZE[1] // cell) for cell in cells]
    targets = Hog(bins)(torch.from_numpy(image).float()[None], grids)
    seen = np.zeros(bins)
    for cell, (h, w), target in zip(cells, grids, targets, strict=True):
        ours = target[0].reshape(h, w, 3, bins).numpy()
        for channel in range(3):
            expected = feature.hog(
                image[channel].T,
                orientations=bins,
                pixels_per_cell=(cell, cell),
                cells_per_block=(1, 1),
                block_norm="L2",
                feature_vector=False,
            )[:, :, 0, 0].transpose(1, 0, 2)
            np.testing.assert_allclose(ours[:, :, channel], expected, rtol=0, atol=1e-5)
            seen += expected.sum(axis=(0, 1))
    # A ramp has one direction for each channel's slope, and two along the borders.
    directions = {"every direction": bins, "across only": 1, "down only": 1, "ramp": 5, "edges": 4}
    assert (seen > 0).sum() == directions[kind]


def test_with_18_bins_the_directions_are_skimages_mirrored():
    """The image as it is: ours run from down towards across, skimage's the other way, in steps of 10 degrees."""
    generator = np.random.default_rng(1)
    across, down = generator.integers(-40, 41, SIZE[1]), generator.integers(-40, 41, SIZE[0])
    image = (across[None, :] + down[:, None]).astype(float)
    (target,) = Hog(18)(torch.from_numpy(image).float()[None, None], [(8, 12)])
    options = {"orientations": 18, "pixels_per_cell": (8, 8), "cells_per_block": (1, 1), "block_norm": "L2"}
    expected = feature.hog(image, **options, feature_vector=False)[:, :, 0, 0]
    ours = target[0].numpy()[:, :, [(8 - k) % 18 for k in range(18)]]
    # Directions exactly along an axis lie between two bins and fall to different sides; leave out cells that have any.
    g_row, g_col = np.gradient(image)
    along_axis = ((g_row == 0) ^ (g_col == 0)).reshape(8, 8, 12, 8).any(axis=(1, 3))
    border = np.ones((8, 12), dtype=bool)
    border[1:-1, 1:-1] = False
    clear = ~along_axis & ~border
    assert clear.sum() > 5
    np.testing.assert_allclose(ours[clear], expected[clear], rtol=0, atol=1e-5)
