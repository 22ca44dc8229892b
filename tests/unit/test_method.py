from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from helpers import parts
from mimkit.backbones import Latent
from mimkit.decoders import LinearDecoder, TransformerDecoder
from mimkit.losses import absolute, squared
from mimkit.masks import Mask, RandomMask
from mimkit.method import Method
from mimkit.readouts import Fused, Last
from mimkit.targets import LowFreqPixels, Pixels
from mimkit.views import IMAGENET

SIZE = (64, 96)  # 4 x 6 cells of 16 pixels
COMPOSITIONS = {
    "MAE": {},
    "PixMIM": {"target": LowFreqPixels()},
    "MFF": {"readout": Fused},
    "PixMIM on MFF": {"target": LowFreqPixels(filter="mmselfsup"), "readout": Fused},
    "raw pixels, absolute": {"target": Pixels(normalized=False), "distance": absolute},
    "coarse mask": {"mask": RandomMask(ratio=0.6, cell=32)},
}


@pytest.fixture(params=COMPOSITIONS)
def method(request) -> Method:
    return parts.method(parts.encoder(size=SIZE, sincos=True), **COMPOSITIONS[request.param])


def pixels(batch: int, size=SIZE, channels: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (batch, channels, *size), dtype=torch.uint8, generator=generator)


def test_loss_is_the_equation_written_out(method):
    """Mean over hidden cells of the mean distance between prediction and target, by loops."""
    images = parts.images(3, SIZE)
    with torch.no_grad():
        output = method(images, keys=torch.arange(3))
    (prediction,) = output.predictions
    target = method.target(images, [(4, 6)])[0]
    factor = 4 // output.mask.grid[0]
    terms = []
    for b in range(3):
        for i in range(4):
            for j in range(6):
                if output.mask.hidden[b, i // factor, j // factor]:
                    difference = prediction[b, i, j] - target[b, i, j]
                    each = difference.abs() if method.distance is absolute else difference.square()
                    terms.append(each.mean().item())
    assert len(terms) == 3 * (18 if factor == 1 else 16)
    assert output.loss.item() == pytest.approx(sum(terms) / len(terms), rel=1e-5)


def test_predictions_cover_every_cell(method):
    output = method(parts.images(2, SIZE))
    assert [p.shape for p in output.predictions] == [(2, 4, 6, 768)]
    assert len(output.per_level) == 1
    assert output.loss == output.per_level[0]
    assert output.loss.shape == ()


def test_every_trainable_parameter_learns(method):
    method(parts.images(4, SIZE), keys=torch.arange(4)).loss.backward()
    for name, parameter in method.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
            assert parameter.grad.any(), name
        else:
            assert name == "encoder.vit.pos_embed"  # the fixed table


@pytest.mark.parametrize("readout", [Last, Fused])
@pytest.mark.parametrize(
    "name", ["vit_base_patch14_reg4_dinov2", "vit_base_patch16_gap_224", "vit_base_patch16_clip_224"]
)
def test_every_parameter_of_other_families_learns(name, readout):
    """Class token, registers, learned positions, norms before and after; no prefix at all."""
    method = parts.method(parts.encoder(name, size=(56, 84), patch_size=14), readout=readout)
    method(parts.images(8, (56, 84)), keys=torch.arange(8)).loss.backward()
    idle = [name for name, p in method.named_parameters() if p.grad is None or not p.grad.any()]
    assert idle == []


def test_bytes_and_normalised_floats_agree(method):
    images = pixels(2)
    keys = torch.arange(2)
    as_bytes = method(images, keys=keys)
    mean, deviation = (torch.tensor(values)[:, None, None] for values in (IMAGENET.mean, IMAGENET.std))
    as_floats = method((images / 255 - mean) / deviation, keys=keys)
    torch.testing.assert_close(as_bytes.loss, as_floats.loss, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(as_bytes.predictions, as_floats.predictions, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("channels", [1, 4])
def test_bytes_of_other_channels(channels):
    method = parts.method(parts.encoder(size=SIZE, channels=channels))
    output = method(pixels(2, channels=channels))
    assert output.predictions[0].shape == (2, 4, 6, 256 * channels)
    assert output.loss.isfinite()


def test_mask_drawn_by_keys_equals_the_same_mask_given(method):
    images, keys = parts.images(3, SIZE), torch.tensor([5, 2**61, -7])
    drawn = method(images, keys=keys)
    given = method(images, method.mask.sample(keys, method.mask.grid(SIZE, 16)))
    assert torch.equal(drawn.mask.hidden, given.mask.hidden)
    assert torch.equal(drawn.loss, given.loss)
    assert torch.equal(drawn.predictions[0], given.predictions[0])


def test_given_mask_is_used_as_it_is():
    method = parts.method(parts.encoder(size=SIZE))
    mask = parts.hide(2, (2, 3), count=1)  # neither the sampler's cell nor its ratio
    output = method(parts.images(2, SIZE), mask, keys=torch.arange(2))
    assert output.mask is mask


def test_without_keys_masks_come_from_torchs_generator():
    method = parts.method(parts.encoder(size=SIZE))
    images = parts.images(2, SIZE)
    torch.manual_seed(0)
    first, second = (method(images).mask.hidden for _ in range(2))
    torch.manual_seed(0)
    again = method(images).mask.hidden
    assert torch.equal(first, again)
    assert not torch.equal(first, second)


def test_loss_of_a_sample_does_not_depend_on_its_batch(method):
    """Equal counts of hidden cells: the batch's loss is the mean of the samples'."""
    images, keys = parts.images(4, SIZE), torch.arange(4)
    with torch.no_grad():
        together = method(images, keys=keys).loss
        alone = [method(images[i : i + 1], keys=keys[i : i + 1]).loss for i in range(4)]
    torch.testing.assert_close(together, torch.stack(alone).mean(), rtol=1e-5, atol=1e-6)


class FirstAndLast(nn.Module):
    """A readout of two levels."""

    taps = (0, -1)

    def forward(self, latents: list[Latent], norm: nn.Module) -> list[Latent]:
        return [latent.map(norm) for latent in latents]

    def scalars(self) -> dict[str, float]:
        return {"levels": 2.0}


class Coarser(nn.Module):
    """Predictions for cells of twice the side: a transformer decoder's, averaged over 2 x 2 cells."""

    def __init__(self, dim: int, values: int, grid: tuple[int, int]) -> None:
        super().__init__()
        self.fine = TransformerDecoder(dim, values, grid, width=32, depth=1, heads=4)

    def forward(self, latent: Latent, mask: Mask | None = None) -> Tensor:
        return self.fine(latent, mask).unflatten(2, (-1, 2)).unflatten(1, (-1, 2)).mean(dim=(2, 4))


@pytest.mark.parametrize("target", [Pixels(), LowFreqPixels(normalized=False)])
def test_levels_sum_to_the_loss_each_on_its_own_grid(target):
    """Two levels, cells of 16 and 32 pixels, one mask on the finer grid: the coarser level's mask is soft."""
    encoder = parts.encoder(size=SIZE)
    fine = TransformerDecoder(48, target.values(16, 3), (4, 6), width=32, depth=1, heads=4)
    method = Method(
        mask=RandomMask(),
        encoder=encoder,
        readout=FirstAndLast(),
        decoders=[fine, Coarser(48, target.values(32, 3), (4, 6))],
        target=target,
        distance=squared,
        normalization=IMAGENET,
    )
    images, mask = parts.images(2, SIZE), parts.hide(2, (4, 6), count=17)
    output = method(images, mask)
    assert [p.shape for p in output.predictions] == [(2, 4, 6, 768), (2, 2, 3, 3072)]
    torch.testing.assert_close(output.loss, output.per_level[0] + output.per_level[1])

    latents = encoder(images, mask, (0, -1))
    for index, (grid, factor) in enumerate([((4, 6), 1), ((2, 3), 2)]):
        prediction = method.decoders[index](latents[index].map(encoder.norm))
        assert torch.equal(prediction, output.predictions[index])
        each = (prediction - target(images, [grid])[0]).square().mean(dim=-1)
        weights = torch.tensor(
            [
                [
                    [
                        mask.hidden[b, factor * i : factor * (i + 1), factor * j : factor * (j + 1)].float().mean()
                        for j in range(grid[1])
                    ]
                    for i in range(grid[0])
                ]
                for b in range(2)
            ]
        )
        expected = (each * weights).sum() / weights.sum()
        torch.testing.assert_close(output.per_level[index], expected)
    assert method.scalars() == {"levels": 2.0}


def test_levels_and_decoders_must_match_in_number():
    method = parts.method(parts.encoder(size=SIZE))
    method.readout = FirstAndLast()
    with pytest.raises(ValueError, match="zip"):
        method(parts.images(1, SIZE))


def test_linear_decoder_asks_for_all_tokens():
    method = parts.method(parts.encoder(size=SIZE))
    method.decoders = nn.ModuleList([LinearDecoder(48, 768, (4, 6), complete=True)])
    with pytest.raises(ValueError, match="cannot predict cells that the encoder left out"):
        method(parts.images(1, SIZE))


def test_other_image_size_than_built_for():
    method = parts.method(parts.encoder(size=SIZE, sincos=True))
    output = method(parts.images(2, (96, 32)))
    assert output.predictions[0].shape == (2, 6, 2, 768)
    built = parts.method(parts.encoder(size=(96, 32), sincos=True))
    tables = ["encoder.vit.pos_embed", "decoders.0.positions"]
    state = {name: value for name, value in method.state_dict().items() if name not in tables}
    assert built.load_state_dict(state, strict=False).missing_keys == tables
    there = built(parts.images(2, (96, 32)), output.mask)
    assert torch.equal(there.loss, output.loss)


def test_half_precision_computes_the_loss_in_float32():
    """Under autocast predictions are bfloat16 at best; target, distance and mean are not."""
    method = parts.method(parts.encoder(size=SIZE), target=LowFreqPixels())
    images, keys = parts.images(4, SIZE), torch.arange(4)
    full = method(images, keys=keys).loss
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = method(images, keys=keys)
    half.loss.backward()
    assert half.loss.dtype == torch.float32
    assert half.loss.item() == pytest.approx(full.item(), rel=0.01)
    assert all(p.grad.isfinite().all() for p in method.parameters() if p.grad is not None)


def test_training_step_lowers_the_loss(method):
    """Twenty steps on one batch."""
    images, keys = parts.images(2, SIZE), torch.arange(2)
    optimizer = torch.optim.AdamW([p for p in method.parameters() if p.requires_grad], lr=3e-3)
    losses = []
    for _ in range(20):
        loss = method(images, keys=keys).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]


def test_mae_and_pixmim_differ_by_the_target_alone():
    encoder = parts.encoder(size=SIZE)
    mae = parts.method(encoder)
    pixmim = parts.method(encoder, target=LowFreqPixels())
    all_pass = parts.method(encoder, target=LowFreqPixels(radius=400))
    images, keys = parts.images(2, SIZE), torch.arange(2)
    first, second, third = (method(images, keys=keys) for method in (mae, pixmim, all_pass))
    assert torch.equal(first.predictions[0], second.predictions[0])
    assert abs(first.loss - second.loss) > 1e-3
    torch.testing.assert_close(first.loss, third.loss, rtol=1e-4, atol=1e-5)


def test_parts_are_descriptions():
    """Masks and targets hold values only: equal ones are equal, and changes make new ones."""
    assert LowFreqPixels() == LowFreqPixels(radius=40.0)
    assert replace(RandomMask(), cell=32) == RandomMask(ratio=0.75, cell=32)
    assert parts.method(parts.encoder(size=SIZE)).scalars() == {}


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_base_patch16_gap_224"])
def test_mask_of_another_batch_is_refused(name):
    """Without a class token nothing else would notice that one mask was taken for three images."""
    method = parts.method(parts.encoder(name, size=SIZE))
    for count in (1, 2, 4):
        with pytest.raises(ValueError, match=f"a mask for {count} images was given with 3 images"):
            method(parts.images(3, SIZE), parts.hide(count, (4, 6), count=18))
    with pytest.raises(ValueError, match="a mask for 2 images was given with 3 images"):
        method(parts.images(3, SIZE), keys=torch.arange(2))


def test_mask_of_another_grid_is_refused():
    method = parts.method(parts.encoder(size=SIZE))
    with pytest.raises(ValueError, match="do not nest"):
        method(parts.images(1, SIZE), parts.hide(1, (3, 6), count=9))
    with pytest.raises(ValueError, match="may be half hidden"):
        method(parts.images(1, SIZE), parts.hide(1, (8, 12), count=60))


def test_grey_bytes_are_no_colour_bytes():
    method = parts.method(parts.encoder(size=SIZE))
    with pytest.raises(ValueError, match="images of 1 channels, but a normalisation for 3"):
        method(pixels(2, channels=1))
