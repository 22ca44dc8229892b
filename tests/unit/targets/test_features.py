"""Features of a frozen network as a target, against slow computations of single cells."""

from dataclasses import replace
from functools import partial

import pytest
import timm
import torch
from torch import Tensor

from helpers import parts
from mimkit.masks import RandomMask
from mimkit.recipes import build as build_recipe
from mimkit.recipes import mae, maskfeat
from mimkit.targets import Features
from mimkit.targets.features import teacher
from mimkit.views import IMAGENET, Normalization

SIZE = (64, 96)  # 4 x 6 patches of the teacher's 16 pixels
TEACHER = "test_vit"
FEATURES = Features(TEACHER, pretrained=False)


def feature_map(images: Tensor, name: str = TEACHER) -> Tensor:
    """The teacher's own normed features [B, D, 4, 6] by timm alone; images are normalised for ImageNet."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = timm.create_model(name, num_classes=0, dynamic_img_size=True).eval()
    mean, std = (torch.tensor(network.pretrained_cfg[key])[:, None, None] for key in ("mean", "std"))
    pixels = images * torch.tensor(IMAGENET.std)[:, None, None] + torch.tensor(IMAGENET.mean)[:, None, None]
    with torch.no_grad():
        tokens = network.forward_features((pixels - mean) / std)[:, network.num_prefix_tokens :]
    return tokens.mT.unflatten(2, (4, 6))


def normed(values: Tensor) -> Tensor:
    """[D] of zero mean and unit deviation."""
    centred = values - values.mean()
    return centred / (centred.square().mean() + 1e-5).sqrt()


def interpolated(features: Tensor, y: float, x: float) -> Tensor:
    """[D, h, w] at a place measured in cells, between the centres of the four nearest; the border is continued."""
    h, w = features.shape[1:]
    y, x = min(max(y - 0.5, 0), h - 1), min(max(x - 0.5, 0), w - 1)
    top, left = int(y), int(x)
    bottom, right = min(top + 1, h - 1), min(left + 1, w - 1)
    upper = (1 - (x - left)) * features[:, top, left] + (x - left) * features[:, top, right]
    lower = (1 - (x - left)) * features[:, bottom, left] + (x - left) * features[:, bottom, right]
    return (1 - (y - top)) * upper + (y - top) * lower


def test_values_of_each_cell_on_the_teachers_own_a_coarser_and_a_finer_grid():
    images = parts.images(2, SIZE)
    features = feature_map(images)
    own, coarse, fine = FEATURES(images, [(4, 6), (2, 3), (8, 12)])
    assert own.shape == (2, 4, 6, FEATURES.values(16, 3)) == (2, 4, 6, 64)
    for b in range(2):
        for i in range(4):
            for j in range(6):
                torch.testing.assert_close(own[b, i, j], normed(features[b, :, i, j]), rtol=0, atol=1e-5)
        for i in range(2):
            for j in range(3):
                mean = sum(features[b, :, y, x] for y in (2 * i, 2 * i + 1) for x in (2 * j, 2 * j + 1)) / 4
                torch.testing.assert_close(coarse[b, i, j], normed(mean), rtol=0, atol=1e-5)
        for i in range(8):
            for j in range(12):
                between = interpolated(features[b], (i + 0.5) / 2, (j + 0.5) / 2)
                torch.testing.assert_close(fine[b, i, j], normed(between), rtol=0, atol=1e-5)


def test_images_are_normalised_as_the_teacher_wants_them():
    """The same pixels in another normalisation give the same features."""
    pixels = torch.rand(2, 3, *SIZE, generator=torch.Generator().manual_seed(0))
    own = Normalization((0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    (one,) = FEATURES(IMAGENET.apply(pixels), [(4, 6)])
    (other,) = replace(FEATURES, normalization=own)(own.apply(pixels), [(4, 6)])
    torch.testing.assert_close(one, other, rtol=0, atol=1e-4)
    assert teacher(TEACHER, 3, False, torch.device("cpu")).normalization != IMAGENET  # or this would say little


def test_the_same_each_time_without_gradient_and_whatever_the_random_state():
    images = parts.images(2, SIZE).requires_grad_()
    (first,) = FEATURES(images, [(4, 6)])
    teacher.cache_clear()
    torch.manual_seed(123)
    state = torch.get_rng_state()
    (second,) = Features(TEACHER, pretrained=False)(images, [(4, 6)])
    assert torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), state)
    assert not first.requires_grad
    network = teacher(TEACHER, 3, False, torch.device("cpu")).network
    assert not network.training
    assert not any(parameter.requires_grad for parameter in network.parameters())


def test_making_a_teacher_seeds_no_other_device(monkeypatch):
    """`torch.manual_seed` would, and nothing brings an accelerator's random state back."""
    teacher.cache_clear()
    monkeypatch.setattr(torch, "manual_seed", lambda seed: pytest.fail("every device was seeded"))
    FEATURES.values(16, 3)


def test_mixed_precision_leaves_them_alone():
    images = parts.images(1, SIZE)
    (expected,) = FEATURES(images, [(4, 6)])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        (inside,) = FEATURES(images, [(4, 6)])
    assert torch.equal(inside, expected)


@pytest.mark.parametrize(
    ("name", "dim"), [("test_efficientnet", 64), ("test_resnet", 96), ("test_convnext", 64), ("test_vit2", 64)]
)
def test_width_is_that_of_the_features_whatever_the_teacher_calls_its_own(name, dim):
    """EfficientNet's `num_features` counts a layer of its head."""
    target = Features(name, pretrained=False)
    (values,) = target(parts.images(1, (64, 64)), [(2, 2)])
    assert target.values(32, 3) == values.shape[-1] == dim
    torch.testing.assert_close(values.mean(dim=-1), torch.zeros(1, 2, 2), rtol=0, atol=1e-5)


def test_any_number_of_channels():
    for channels in (1, 4):
        target = Features(TEACHER, normalization=Normalization.for_channels(channels), pretrained=False)
        (values,) = target(parts.images(1, SIZE, channels), [(4, 6)])
        assert values.shape == (1, 4, 6, target.values(16, channels))


def test_a_teacher_without_norm_before_its_head_gives_its_features_as_they_are():
    target = Features("hiera_tiny_224", pretrained=False)
    (values,) = target(parts.images(1, (224, 224)), [(7, 7)])
    assert values.shape == (1, 7, 7, target.values(32, 3)) == (1, 7, 7, 768)


def test_teacher_is_no_part_of_the_method():
    """Neither of its state nor of what is trained; its features carry no gradient to anything."""
    torch.manual_seed(0)
    recipe = replace(
        mae(),
        encoder=lambda image_size, channels: parts.encoder(size=image_size),
        decoder=partial(mae().decoder, width=32, depth=1, heads=4),
        target=FEATURES,
        image_size=SIZE,
    )
    method = build_recipe(recipe)
    assert method.decoders[0].head.out_features == 64
    images, mask = parts.images(2, SIZE), parts.hide(2, (4, 6), 18)
    output = method(images, mask)
    (target,) = FEATURES(images, [(4, 6)])
    torch.testing.assert_close(output.loss, (output.predictions[0] - target).square().mean(-1)[mask.hidden].mean())
    output.loss.backward()
    owned = {parameter.data_ptr() for parameter in method.parameters()}
    for parameter in teacher(TEACHER, 3, False, torch.device("cpu")).network.parameters():
        assert parameter.grad is None
        assert parameter.data_ptr() not in owned
    assert all(name.startswith(("encoder.", "decoders.")) for name in method.state_dict())


def test_maskfeat_predicts_them_at_a_finer_grid():
    name = "vit_tiny_patch16_224(embed_dim=24, depth=1, num_heads=2)"
    recipe = replace(
        maskfeat(),
        encoder=partial(maskfeat().encoder, name=name),
        target=FEATURES,
        image_size=SIZE,
        mask=RandomMask(0.5),
    )
    output = build_recipe(recipe)(parts.images(1, SIZE), keys=torch.arange(1))
    assert output.predictions[0].shape == (1, 8, 12, 64)


def test_what_cannot_teach_is_refused():
    with pytest.raises(ValueError, match="timm cannot make 'no_such_model'"):
        Features("no_such_model", pretrained=False).values(16, 3)
    with pytest.raises(ValueError, match="eva02_tiny_patch14_224 cannot take 64 x 96 pixels"):
        Features("eva02_tiny_patch14_224", pretrained=False)(parts.images(1, SIZE), [(4, 6)])
    with pytest.raises(ValueError, match="images of 1 channels, but a normalisation for 3"):
        FEATURES(parts.images(1, SIZE, 1), [(4, 6)])


def test_has_no_picture():
    images = parts.images(1, SIZE)
    assert FEATURES.picture(torch.zeros(1, 4, 6, 64), images) is None
    assert FEATURES.references(images) == []
    assert FEATURES.reference_names == ()
    assert FEATURES.picture_note == ""
