"""PixMIM's low-pass targets against Fourier sums written out, and against the facts of the published filter."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import Tensor

from helpers import parts
from mimkit.grids import patchify
from mimkit.targets import LowFreqPixels, Pixels
from mimkit.targets.pixels import normalize_cells
from mimkit.views import IMAGENET, Normalization

RAW = Normalization((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))  # images that are pixels in 0..1 already
SIZES = [(14, 14), (16, 24), (15, 21)]
RADII = [40, 80, 112, 300]  # 80 on 14 pixels puts (3, 4) exactly on the circle; 300 keeps everything


def waves(size: int) -> np.ndarray:
    """exp(2πi·u·x / size) for every frequency u and place x."""
    return np.exp(2j * np.pi * np.outer(np.arange(size), np.arange(size)) / size)


def spectrum(images: np.ndarray) -> np.ndarray:
    """F(u, v) = Σ_y Σ_x f(y, x) exp(−2πi(uy / H + vx / W)), summed as it stands."""
    height, width = images.shape[-2:]
    return np.einsum("bcyx,uy,vx->bcuv", images, waves(height).conj(), waves(width).conj())


def slow_centred(images: np.ndarray, radius: int) -> np.ndarray:
    """Every frequency of at most radius / 224 cycles per pixel, added up wave by wave."""
    height, width = images.shape[-2:]
    coefficients = spectrum(images)
    total = np.zeros(images.shape, complex)
    for u in range(height):
        for v in range(width):
            cycles = Fraction(min(u, height - u), height) ** 2 + Fraction(min(v, width - v), width) ** 2
            if cycles <= Fraction(radius, 224) ** 2:
                wave = np.outer(waves(height)[u], waves(width)[v]) / (height * width)
                total += coefficients[:, :, u, v, None, None] * wave
    assert np.abs(total.imag).max() < 1e-9  # a centred disc keeps a real image real
    return total.real


def slow_published(images: np.ndarray, radius: float) -> np.ndarray:
    """The published steps on pixels in 0..1: zero frequency to the middle, disc around ((h−1)/2, (w−1)/2), inverse
    transform of the spectrum as it lies, magnitude.
    """
    height, width = images.shape[-2:]
    shifted = np.roll(spectrum(images), (height // 2, width // 2), axis=(-2, -1))
    total = np.zeros(images.shape, complex)
    for i in range(height):
        for j in range(width):
            if np.hypot(i - (height - 1) / 2, j - (width - 1) / 2) <= radius * min(height, width) / 224:
                wave = np.outer(waves(height)[i], waves(width)[j]) / (height * width)
                total += shifted[:, :, i, j, None, None] * wave
    return np.abs(total)


@pytest.mark.parametrize("radius", RADII)
@pytest.mark.parametrize("size", SIZES)
def test_centred_filter_equals_explicit_sums(size, radius):
    images = parts.images(2, size)
    expected = torch.from_numpy(slow_centred(images.double().numpy(), radius)).float()
    torch.testing.assert_close(LowFreqPixels(radius=radius).low_pass(images), expected, rtol=0, atol=5e-6)


@pytest.mark.parametrize("radius", RADII)
@pytest.mark.parametrize("size", SIZES)
def test_published_filter_equals_explicit_steps(size, radius):
    images = parts.images(2, size)
    mean, deviation = (np.array(values)[:, None, None] for values in (IMAGENET.mean, IMAGENET.std))
    pixels = images.double().numpy() * deviation + mean
    expected = torch.from_numpy((slow_published(pixels, radius) - mean) / deviation).float()
    target = LowFreqPixels(radius=radius, filter="mmselfsup")
    torch.testing.assert_close(target.low_pass(images), expected, rtol=0, atol=5e-6)


@pytest.mark.parametrize("filter", ["centred", "mmselfsup"])
def test_published_size_equals_fft_in_double(filter):
    """224 pixels at the published radius, by NumPy's transform in double precision."""
    pixels = natural_noise(224)
    frequency = np.arange(224) - (112 if filter == "centred" else 111.5)
    keep = np.hypot(frequency[:, None], frequency) <= 40
    shifted = np.fft.fftshift(np.fft.fft2(pixels.double().numpy()), axes=(-2, -1)) * keep
    expected = np.fft.ifft2(np.fft.ifftshift(shifted, axes=(-2, -1)))
    expected = expected.real if filter == "centred" else np.abs(expected)
    ours = LowFreqPixels(filter=filter, normalization=RAW).low_pass(pixels)
    torch.testing.assert_close(ours, torch.from_numpy(expected).float(), rtol=0, atol=2e-6)


def test_centred_filter_keeps_a_tenth_of_the_bins():
    """A single bright pixel has every frequency alike: what is left of it is the filter."""
    for side, kept in [(224, 5025), (448, 20081)]:  # lattice points in a disc of radius 40 and 80
        image = torch.zeros(1, 3, side, side)
        image[:, :, 0, 0] = 1
        response = torch.fft.fft2(LowFreqPixels().low_pass(image))
        assert response.imag.abs().max() < 1e-4
        assert torch.allclose(response.real, response.real.round(), atol=1e-4)
        assert response.real.round().sum(dim=(2, 3)).tolist() == [[kept] * 3]
        assert kept / side**2 == pytest.approx(0.1001, abs=1e-4)


def test_published_filter_keeps_a_tenth_of_the_bins():
    """On a bright ground the magnitude is the real part, where a bin without its mirror image counts half."""
    image = torch.ones(1, 1, 224, 224)
    image[:, :, 0, 0] += 1
    target = LowFreqPixels(filter="mmselfsup", normalization=Normalization((0.0,), (1.0,)))
    response = torch.fft.fft2(target.low_pass(image).double() - 1).real[0, 0]
    halves = (2 * response).round()
    assert (2 * response - halves).abs().max() < 0.01
    assert set(halves.unique().tolist()) == {0, 1, 2}
    assert halves.sum() / 2 == 5024  # 10.01 % of 50176
    centred = torch.from_numpy(np.hypot(*np.meshgrid(*[np.fft.fftfreq(224, 1 / 224)] * 2)) <= 40)
    assert (halves == 1).sum() == 226  # mirrored pairs of the 113 bins that differ from the centred disc
    assert not (halves[~centred] == 2).any()


@pytest.mark.parametrize(("side", "last"), [(224, 40), (448, 80), (112, 20)])
def test_same_band_at_every_size(side, last):
    """Waves of up to 40 / 224 cycles per pixel pass unchanged, the next finer one is gone, whatever the size."""
    places = torch.arange(side, dtype=torch.float64) / side
    for direction in ("rows", "columns"):
        wave = torch.stack([torch.cos(2 * torch.pi * k * places + 0.3) for k in (last, last + 1)])
        images = wave[:, None, :, None] if direction == "rows" else wave[:, None, None, :]
        images = images.expand(2, 3, side, side).float()
        passed, removed = LowFreqPixels().low_pass(images)
        torch.testing.assert_close(passed, images[0], rtol=0, atol=2e-5)
        assert removed.abs().max() < 2e-5


def test_published_and_centred_filter_differ_by_little():
    """0.008 on a photograph with hard edges against black; the images' contrast decides."""
    data = pytest.importorskip("skimage.data")
    photograph = torch.from_numpy(data.astronaut()).permute(2, 0, 1)[None] / 255
    photograph = torch.nn.functional.interpolate(photograph, size=(224, 224), mode="area")
    assert difference(photograph) == pytest.approx(0.008, abs=0.0005)
    # Without black to ring below (the magnitude folds that up), the 113 bins on the rim of the disc are left.
    assert difference(0.5 + 0.1 * photograph) / 0.1 == pytest.approx(0.0046, abs=0.0005)
    assert difference(natural_noise(224)) == pytest.approx(0.005, abs=0.001)


def difference(pixels: Tensor) -> float:
    published = LowFreqPixels(filter="mmselfsup", normalization=RAW).low_pass(pixels)
    return (published - LowFreqPixels(normalization=RAW).low_pass(pixels)).abs().mean().item()


def natural_noise(side: int) -> Tensor:
    """Pixels [1, 3, side, side] in 0..1 with the 1 / f amplitudes of photographs."""
    frequencies = np.fft.fftfreq(side)
    amplitude = 1 / np.maximum(np.hypot(frequencies[:, None], frequencies), 1 / side)
    noise = np.fft.ifft2(np.fft.fft2(np.random.default_rng(0).normal(size=(1, 3, side, side))) * amplitude).real
    noise -= noise.mean()
    return torch.from_numpy(np.clip(0.5 + 0.2 * noise / noise.std(), 0, 1)).float()


@pytest.mark.parametrize("filter", ["centred", "mmselfsup"])
def test_target_is_the_pixels_of_the_filtered_image(filter):
    """Filtered first, then cut into cells and normalised by the filtered cell's own statistics."""
    images = parts.images(2, (64, 96))
    for normalized in (True, False):
        target = LowFreqPixels(filter=filter, normalized=normalized)
        cells = patchify(target.low_pass(images), (4, 6))
        expected = normalize_cells(cells) if normalized else cells
        assert torch.equal(target(images, [(4, 6)])[0], expected)
        assert not torch.allclose(
            target(images, [(4, 6)])[0], Pixels(normalized=normalized)(images, [(4, 6)])[0], atol=0.1
        )
        assert target.values(16, 3) == 768


def test_low_pass_computes_in_float32():
    images = parts.images(1, (32, 32)).bfloat16()
    for filter in ("centred", "mmselfsup"):
        low = LowFreqPixels(filter=filter).low_pass(images)
        assert low.dtype == torch.float32
        assert torch.equal(low, LowFreqPixels(filter=filter).low_pass(images.float()))
